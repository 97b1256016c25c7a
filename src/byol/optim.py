"""LARS as in BYOL's released code, and the parameter groups every optimizer here uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def parameter_groups(modules: Iterable[nn.Module], *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights (decayed, adapted by LARS), and biases and normalisation parameters (neither).

    The second group is every parameter of at most one dimension, which in these networks is the same as the authors'
    test by name.
    """
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "adapt": True},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum, in the order of BYOL's released code (You et al. 2017).

    For a weight w of a group with adapt=True, and its gradient g:

        u = g + weight_decay * w
        u = u * eta * |w| / |u|        (ratio 1 where either norm is 0; no epsilon, no clipping)
        m = momentum * m + u
        w = w - lr * m                 (lr outside the momentum buffer)

    A group with adapt=False skips the second line; give it weight_decay=0 for the reference's exclusion of biases
    and normalisation parameters. Norms are Frobenius, over the whole tensor.
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
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt},
        )

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
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(weights, buffers, alpha=-group["lr"])
        return loss
