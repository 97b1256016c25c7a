"""The losses, as pure functions of [B, D] tensors.

Half types are promoted to float32, also under autocast; float64 stays float64. Nothing here detaches or gathers: the
method does that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Normalize = Literal["l2", "layer", "batch", "none"]


def _full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss with its tensors promoted and autocast off: autocast would take the matrix products in bfloat16."""

    def full(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @wraps(loss)
    def promoted(*values: Any, **named: Any) -> Tensor:
        first = next(v for v in (*values, *named.values()) if isinstance(v, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            return loss(*map(full, values), **{name: full(value) for name, value in named.items()})

    return promoted


@_full_precision
def l2_normalize(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Rows of x [B, D] scaled to length 1: x * rsqrt(max(sum x^2, epsilon)), so that a zero row stays zero."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True).clamp_min(epsilon))


@_full_precision
def regression(p: Tensor, z: Tensor) -> Tensor:
    """BYOL's loss of one direction, || p/|p| - z/|z| ||^2 = 2 - 2 cos(p, z). Grill et al. 2020, equation 2.

    p: [B, D] float, online predictions. z: [B, D] float, target projections (detached by the caller).
    Returns [B] in [0, 4]: summed over features, not reduced over the batch.
    """
    return (l2_normalize(p) - l2_normalize(z)).square().sum(dim=-1)


@_full_precision
def squared_distance(p: Tensor, z: Tensor, normalize: Normalize) -> Tensor:
    """`regression` with another normalisation of predictions and targets. Grill et al. 2020, Appendix F.6, table 20.

    p, z: [B, D] float, of the whole batch. "l2" is `regression`. "layer" and "batch": each row, or each feature over
    the batch, has mean 0 and variance 1 / D. "none": as they are, unbounded. Returns [B], at least 0.
    """
    if normalize == "l2":
        return regression(p, z)
    if normalize == "layer":
        p, z = (F.layer_norm(x, x.shape[1:]) / x.shape[1] ** 0.5 for x in (p, z))
    elif normalize == "batch":
        p, z = (_standardize(x) / x.shape[1] ** 0.5 for x in (p, z))
    return (p - z).square().sum(dim=-1)


@_full_precision
def contrast(phi: Tensor, psi: Tensor, psi_prime: Tensor, alpha: float) -> Tensor:
    """The term that a weight beta adds to BYOL's loss to make the family which ends in SimCLR. Grill et al. 2020,
    Appendix F.4, equation 10.

    2 alpha ln(sum_{j != i} exp(cos(phi_i, psi_j) / alpha) + sum_j exp(cos(phi_i, psi'_j) / alpha)): what the first view
    of image i says, phi_i, should be unlike what the target says of the other images, in either view. phi, psi,
    psi_prime: [B, D] float, of the whole batch. alpha: the temperature. Returns [B].
    """
    phi, psi, psi_prime = map(l2_normalize, (phi, psi, psi_prime))
    itself = torch.eye(len(phi), dtype=torch.bool, device=phi.device)
    same = (phi @ psi.T / alpha).masked_fill(itself, -torch.inf)
    return 2 * alpha * torch.cat([same, phi @ psi_prime.T / alpha], dim=1).logsumexp(dim=1)


@_full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """SimSiam's D(p, z) = -cos(p, z). Chen & He 2021, arXiv:2011.10566, equation 1.

    p: [B, D] float, predictions. z: [B, D] float, projections (detached by the caller). Returns [B] in [-1, 1].
    """
    return -(l2_normalize(p) * l2_normalize(z)).sum(dim=-1)


@_full_precision
def barlow_twins(z1: Tensor, z2: Tensor, lambd: float = 0.0051) -> Tensor:
    """Barlow Twins: sum_i (C_ii - 1)^2 + lambd sum_{i != j} C_ij^2. Zbontar et al. 2021, arXiv:2103.03230, equation 1.

    z1, z2: [B, D] float, embeddings of two views of the whole batch. C is their cross-correlation [D, D], each feature
    standardised over the batch (biased variance, epsilon 1e-5). lambd: the code's; the paper has 0.005. Scalar >= 0.
    """
    c = _standardize(z1).T @ _standardize(z2) / len(z1)
    on_diagonal = (c.diagonal() - 1).square().sum()
    return on_diagonal + lambd * (c.square().sum() - c.diagonal().square().sum())


@_full_precision
def vicreg(z1: Tensor, z2: Tensor, sim: float = 25.0, std: float = 25.0, cov: float = 1.0) -> Tensor:
    """VICReg: sim x invariance + std x variance + cov x covariance. Bardes et al. 2022, arXiv:2105.04906, section 4.

    z1, z2: [B, D] float, embeddings of two views of the whole batch. As the authors' code has it: the invariance is
    the mean squared difference over images and features, the variance half the sum of both views' hinges (the paper
    takes them whole: std=50). Scalar >= 0.
    """
    invariance = (z1 - z2).square().mean()
    variance = (_hinge(z1) + _hinge(z2)) / 2
    return sim * invariance + std * variance + cov * (_covariance(z1) + _covariance(z2))


@_full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's NT-Xent: each of 2B views picks its other view out of 2B - 1. Chen et al. 2020, arXiv:2002.05709,
    equation 1.

    z1, z2: [B, D] float, embeddings of two views of the whole batch. Scalar: the paper's mean over 2B. (The authors'
    code adds the two views' means, which is twice that.)
    """
    z = l2_normalize(torch.cat([z1, z2]))
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z1)))


@_full_precision
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's InfoNCE: the query picks its key out of itself and a queue. He et al. 2020, arXiv:1911.05722, equation 1.

    q, k: [B, D] float, queries and keys (detached by the caller). queue: [D, K] float, negative keys in columns. All
    are scaled to length 1. Scalar: the mean over queries.
    """
    q, k, negatives = l2_normalize(q), l2_normalize(k), l2_normalize(queue.T)
    logits = torch.cat([(q * k).sum(dim=-1, keepdim=True), q @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


@_full_precision
def batch_info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """MoCo v3's InfoNCE of one direction: the query picks its key out of the batch's. Chen et al. 2021,
    arXiv:2104.02057, algorithm 1.

    q, k: [B, D] float, queries and keys (detached by the caller) of the whole batch. Scalar: the mean over queries,
    without the factor 2 x temperature that the method gives it.
    """
    logits = l2_normalize(q) @ l2_normalize(k).T / temperature
    return F.cross_entropy(logits, torch.arange(len(q), device=q.device))


@_full_precision
def instance_nce(exponentials: Tensor, partition: Tensor, num_images: int) -> Tensor:
    """Instance discrimination by noise-contrastive estimation. Wu et al. 2018, arXiv:1805.01978, equation 7.

    exponentials: [B, 1 + K] float, exp(similarity / temperature) with the image's own memory first, then K drawn
    uniformly from num_images. partition: scalar Z, so that exponentials / Z is P(i | v). Scalar: the mean over images
    of -ln h(own) - sum ln (1 - h(drawn)), with the authors' 1e-7 in both denominators.
    """
    p = exponentials / partition
    noise = (p.shape[1] - 1) / num_images
    of_data = p[:, 0] / (p[:, 0] + noise + 1e-7)
    of_noise = noise / (p[:, 1:] + noise + 1e-7)
    return -(of_data.log() + of_noise.log().sum(dim=1)).mean()


@_full_precision
def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled images; 0 where there is none.

    logits: [B, C] float. labels: [B] int64, -1 for unknown. Scalar.
    """
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp_min(1)


def _standardize(z: Tensor) -> Tensor:
    var, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) * torch.rsqrt(var + 1e-5)


def _hinge(z: Tensor) -> Tensor:
    return F.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean()


def _covariance(z: Tensor) -> Tensor:
    centred = z - z.mean(dim=0)
    c = centred.T @ centred / (len(z) - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]
