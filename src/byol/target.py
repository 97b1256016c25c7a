"""The target network: a slowly moving average of the online network."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from byol.encoder import initialize


class Target(nn.Module):
    """An exponential moving average of an online module's parameters. Grill et al. 2020, section 3.1.

    Parameters only: its batch-norm statistics are its own, from its own forward passes, which stay in training mode
    like the online network's. It never receives a gradient.

    init: "independent" draws the weights anew, as the authors' code does; "copy" starts equal to the online module.
    """

    def __init__(self, online: nn.Module, *, init: Literal["independent", "copy"]) -> None:
        super().__init__()
        self.module = copy.deepcopy(online)
        if init == "independent":
            initialize(self.module)
        elif init != "copy":
            raise ValueError(f"target_init={init!r} is not known; use 'independent' or 'copy'")
        self.module.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    @torch.no_grad()
    def follow(self, online: nn.Module, decay: float) -> None:
        """xi <- xi + (1 - decay) (theta - xi) for every parameter, in the parameters' own (full) precision."""
        # At decay = 0.996 the increment is 2**-8 of the gap: half types would lose it.
        own: list[Tensor] = list(self.module.parameters())
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in own):
            raise TypeError("the target's weights are in half precision; keep master weights in float32")
        torch._foreach_lerp_(own, list(online.parameters()), 1 - decay)
