"""The one MLP: projector and predictor of every method."""

from __future__ import annotations

from torch import nn


def mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Linear (bias) -> BN -> ReLU -> Linear (no bias), [B, in_dim] -> [B, out_dim].

    The projector and the predictor of BYOL: Grill et al. 2020, section 3.3, with the biases of the released code.
    (The paper's listing leaves a bias on the last Linear too.)
    """
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )
