"""Is the embedding collapsing? Numbers, most of them from the literature, and a verdict on them.

Every function takes embeddings z: [B, d] of any floating type, one row per image, computes in float64 without
gradient, and returns a finite float also for degenerate input: equal rows, zero rows, d = 1, one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SETTLED_STEPS = 40
"""Before so many steps no look counts: batch norm's running statistics, of which each step replaces a tenth, are still
those of the start."""

COLLAPSED_STD_RATIO = 0.3
"""Below this, the embedding is close to one point. Rows spread evenly on the sphere give 1, equal rows 0."""

COLLAPSED_RANK = 3.0
"""Below this effective rank, the embedding is close to one line or two."""

FALLEN_SHARE = 0.45
"""Below this share of its highest of late, std ratio x effective rank has fallen: the embedding has lost most of its
spread, or of its directions, or some of both. Half of it a method as it is can lose in its first hundreds of steps."""

COLLAPSED_VIEW_RATIO = 0.9
"""Above this, two views of an image are hardly closer than two images: the embedding says nothing of what is in
them."""

NARROW_STD_RATIO = 0.5
"""Below this, most of each row is common to all images."""

NARROW_RANK = 5.0
"""Below this effective rank, the embedding uses hardly more than four directions. The thresholds are
this package's choice, not a paper's. The rank is at most min(B - 1, d): with B < 6 or d < 5 no verdict is
healthy."""

Word = Literal["early", "healthy", "narrow", "collapsed"]


@dataclass(frozen=True)
class Health:
    """The numbers of one batch; see the function of each name."""

    std: float
    std_ratio: float
    """std * sqrt(d): about 1 where the embedding is healthy, 0 where all rows have one direction."""
    effective_rank: float
    alignment: float
    uniformity: float
    view_ratio: float
    """Distance of an image's views over that of different images: about 0 where views agree, 1 where they tell
    nothing."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Health:
        """From numbers by name, among others."""
        return cls(**{each.name: found[each.name] for each in fields(cls)})


def health(z1: Tensor, z2: Tensor) -> Health:
    """All numbers for the embeddings z1, z2: [B, d] of two views, row i of both from image i.

    Alignment compares the views; the others are taken over z1, where no two rows come from one image.
    """
    std = feature_std(z1)
    return Health(
        std=std,
        std_ratio=std * math.sqrt(z1.shape[1]),
        effective_rank=effective_rank(z1),
        alignment=alignment(z1, z2),
        uniformity=uniformity(z1),
        view_ratio=view_ratio(z1, z2),
    )


def verdict(looks: Sequence[Health]) -> Word:
    """One word for the last of the looks at a run, by the thresholds of this module; "early" where there is none.

    looks: in order, those that count: from the end of the learning rate's warm-up on, and not before `SETTLED_STEPS`.
    Until then an embedding may still open up.
    """
    if not looks:
        return "early"
    now = looks[-1]
    if (
        now.std_ratio < COLLAPSED_STD_RATIO
        or now.effective_rank < COLLAPSED_RANK
        or now.view_ratio > COLLAPSED_VIEW_RATIO
        or _fallen([look.std_ratio * look.effective_rank for look in looks])
    ):
        return "collapsed"
    if now.std_ratio < NARROW_STD_RATIO or now.effective_rank < NARROW_RANK:
        return "narrow"
    return "healthy"


def _fallen(values: Sequence[float]) -> bool:
    """Whether the last value is below `FALLEN_SHARE` of the highest in the last two thirds of those so far, or has not
    come back to that since it was."""
    # From random weights the rank comes down in every method, at first fast and then ever more slowly: from any step to
    # three times as many by about as much.
    height = None
    for i, value in enumerate(values):
        highest = height or max(values[i // 3 : i + 1])
        height = highest if value < FALLEN_SHARE * highest else None
    return height is not None


def feature_std(z: Tensor) -> float:
    """Standard deviation over the batch of L2-normalised rows, mean over dimensions. Chen & He 2021, 4.1.

    In [0, 1/sqrt(d)]: about 1/sqrt(d) for rows spread evenly over the sphere, 0 when all rows have one
    direction. The divisor is B, so that one row gives 0.
    """
    return float(F.normalize(_rows(z), dim=1).std(dim=0, correction=0).mean())


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of p = sigma / sum(sigma), sigma the singular values of z minus its mean row.

    Roy & Vetterli 2007; as RankMe (Garrido et al. 2023), which does not centre. In [1, min(B - 1, d)], and 0
    where all rows are equal: the definition has no value there.
    """
    rows = _rows(z)
    sigma = torch.linalg.svdvals(rows - rows.mean(dim=0))
    # What rounding leaves of equal rows is no direction: it is judged against the rows before centring.
    rounding = torch.finfo(rows.dtype).eps * max(rows.shape) * torch.linalg.norm(rows)
    sigma = sigma[sigma > rounding]
    if sigma.numel() == 0:
        return 0.0
    p = sigma / sigma.sum()
    return float((-(p * p.log()).sum()).exp())


def alignment(z1: Tensor, z2: Tensor, alpha: float = 2) -> float:
    """Mean of |z1_i - z2_i|^alpha over L2-normalised rows. Wang & Isola 2020, 4.1.1.

    z1, z2: [B, d], row i of both from image i. In [0, 2^alpha]; 0 when the two views agree. Lower is better,
    but a collapsed embedding has 0 too: read it with `uniformity`.
    """
    if z1.shape != z2.shape:
        raise ValueError(f"z1 is {list(z1.shape)} and z2 is {list(z2.shape)}; row i of both must be image i")
    gaps = F.normalize(_rows(z1), dim=1) - F.normalize(_rows(z2), dim=1)
    return float(torch.linalg.norm(gaps, dim=1).pow(alpha).mean())


def uniformity(z: Tensor, t: float = 2) -> float:
    """log mean of exp(-t |z_i - z_j|^2) over pairs i < j of L2-normalised rows. Wang & Isola 2020, 4.1.2.

    In [-4t, 0]: 0 when all rows have one direction, or when there is one row; lower is more uniform. Holds
    the B (B - 1) / 2 distances in memory at once: 64 MiB at B = 4096.
    """
    rows = F.normalize(_rows(z), dim=1)
    if len(rows) == 1:
        return 0.0
    exponents = -t * torch.pdist(rows).square()
    return float(exponents.logsumexp(dim=0) - math.log(exponents.numel()))


def view_ratio(z1: Tensor, z2: Tensor) -> float:
    """alignment(z1, z2) over the mean squared distance of different rows of z1, L2-normalised; 1 where these are equal.

    z1, z2: [B, d], row i of both from image i. At least 0; 1 when two views of an image are as far apart as two images.
    """
    rows = F.normalize(_rows(z1), dim=1)
    # The mean over pairs i != j of |z_i - z_j|^2 is twice the variance with divisor B - 1, summed over dimensions.
    between = 2 * float((rows - rows.mean(dim=0)).square().sum()) / max(1, len(rows) - 1)
    rounding = torch.finfo(rows.dtype).eps * rows.numel()
    return alignment(z1, z2) / between if between > rounding else 1.0


def _rows(z: Tensor) -> Tensor:
    """z in float64 without gradient, after checks."""
    if z.ndim != 2 or z.numel() == 0:
        raise ValueError(f"z has shape {list(z.shape)}; embeddings are [B, d] with B >= 1 and d >= 1")
    # MPS has no float64.
    rows = z.detach().to("cpu" if z.device.type == "mps" else z.device).double()
    if not rows.isfinite().all():
        raise ValueError("z holds values that are not finite; the network has diverged")
    return rows
