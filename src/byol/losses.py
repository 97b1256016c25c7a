"""The losses, as pure functions of [B, D] tensors.

Half types are promoted to float32; float64 stays float64. Nothing here detaches or gathers: the method does that.
"""

from __future__ import annotations

import torch
from torch import Tensor


def l2_normalize(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Rows of x [B, D] scaled to length 1: x * rsqrt(max(sum x^2, epsilon)), so that a zero row stays zero."""
    x = _full_precision(x)
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True).clamp_min(epsilon))


def regression(p: Tensor, z: Tensor) -> Tensor:
    """BYOL's loss of one direction, || p/|p| - z/|z| ||^2 = 2 - 2 cos(p, z). Grill et al. 2020, equation 2.

    p: [B, D] float, online predictions. z: [B, D] float, target projections (detached by the caller).
    Returns [B] in [0, 4]: summed over features, not reduced over the batch.
    """
    return (l2_normalize(p) - l2_normalize(z)).square().sum(dim=-1)


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
