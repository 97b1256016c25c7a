"""LARS as in BYOL's released code, and the parameter groups every optimizer here uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def parameter_groups(
    modules: Iterable[nn.Module],
    *,
    weight_decay: float,
    decay_all: bool = False,
    bias_lr: float = 1.0,
    constant: Iterable[nn.Module] = (),
    lr_scales: Mapping[nn.Module, float] | None = None,
) -> list[dict[str, Any]]:
    """Weights (decayed, adapted by LARS), and biases and normalisation parameters (neither, unless decay_all).

    The second kind is every parameter of at most one dimension, which in these networks is the same as the authors'
    test by name. bias_lr: its learning rate, as a multiple. constant: modules whose parameters get groups of their own,
    marked `constant`. lr_scales: modules whose parameters learn at a multiple of the rate. Groups without parameters
    are left out.
    """
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    held = {id(p) for m in constant for p in m.parameters()}
    scale_of = {id(p): scale for m, scale in (lr_scales or {}).items() for p in m.parameters()}
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for is_constant in (False, True):
        for scale in sorted({1.0, *scale_of.values()}):
            for is_weight in (True, False):
                groups[is_constant, is_weight, scale] = {
                    "params": [],
                    "weight_decay": weight_decay if is_weight or decay_all else 0.0,
                    "adapt": is_weight,
                    "lr_scale": scale * (1.0 if is_weight else bias_lr),
                    "constant": is_constant,
                }
    for p in parameters:
        groups[id(p) in held, p.ndim > 1, scale_of.get(id(p), 1.0)]["params"].append(p)
    return [group for group in groups.values() if group["params"]]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum, in the order of BYOL's released code (You et al. 2017).

    For a weight w of a group with adapt=True, and its gradient g:

        u = g + weight_decay * w
        u = u * eta * |w| / |u|        (ratio 1 where either norm is 0; no epsilon, no clipping)
        m = momentum * m + u
        w = w - lr * m                 (lr outside the momentum buffer)

    With lr_in_momentum=True, as in SimCLR's code, the last two lines are m = momentum * m + lr * u and w = w - m,
    which differs while the learning rate changes. A group with adapt=False skips the second line; give it
    weight_decay=0 for the reference's exclusion of biases and normalisation parameters. Norms are Frobenius, over the
    whole tensor.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        adapt: bool = True,
        lr_in_momentum: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt}
        super().__init__(params, defaults | {"lr_in_momentum": lr_in_momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = torch._foreach_add([p.grad for p in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                weight_norms = torch.stack(torch._foreach_norm(weights))
                update_norms = torch.stack(torch._foreach_norm(updates))
                ratios = torch.where(
                    (weight_norms > 0) & (update_norms > 0),
                    group["eta"] * weight_norms / update_norms,
                    torch.ones_like(weight_norms),
                )
                torch._foreach_mul_(updates, list(ratios.unbind()))
            buffers = []
            for p in weights:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffers.append(state["momentum_buffer"])
            torch._foreach_mul_(buffers, group["momentum"])
            inside, outside = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
            torch._foreach_add_(buffers, updates, alpha=inside)
            torch._foreach_add_(weights, buffers, alpha=-outside)
        return loss
