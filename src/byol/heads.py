"""The one MLP: projector and predictor of every method."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(
    *widths: int,
    hidden_bias: bool = True,
    out_bias: bool = False,
    norm: bool = True,
    out_norm: Literal["plain", "scale", "affine"] | None = None,
) -> nn.Sequential:
    """Linear -> BN -> ReLU for each hidden width, then Linear: [B, widths[0]] -> [B, widths[-1]].

    hidden_bias, out_bias: whether the Linears have biases. norm: the hidden batch norms. out_norm: batch norm on the
    output, "plain" without parameters, "scale" without an offset, "affine" with both.

    The defaults are BYOL's projector and predictor: Grill et al. 2020, section 3.3, with the biases of the released
    code. (The paper's listing leaves a bias on the last Linear too.)
    """
    parts: list[nn.Module] = []
    *hidden, (last_in, last_out) = pairwise(widths)
    for from_width, to_width in hidden:
        parts.append(nn.Linear(from_width, to_width, bias=hidden_bias))
        parts += [nn.BatchNorm1d(to_width)] if norm else []
        parts.append(nn.ReLU(inplace=True))
    parts.append(nn.Linear(last_in, last_out, bias=out_bias))
    if out_norm is not None:
        last = nn.BatchNorm1d(last_out, affine=out_norm != "plain")
        if out_norm == "scale":
            last.bias.requires_grad_(False)
        parts.append(last)
    return nn.Sequential(*parts)
