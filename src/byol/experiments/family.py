"""BYOL with its parts exchangeable, for the experiments that take one away; SimCLR's objective is one of its ends."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from byol import checkpoint
from byol.encoder import Encoder, initialize
from byol.heads import mlp
from byol.losses import Normalize, contrast, squared_distance
from byol.methods import Defaults, Method, Out, Situation, check_decay, check_temperature, check_widths, get
from byol.parallel import gather
from byol.schedules import target_decay
from byol.target import Target
from byol.views.view import BYOL_T, BYOL_T_PRIME


class Family(Method):
    """The family of Grill et al. 2020, Appendix F (tables 5, 14, 19 to 21); with its defaults it is BYOL.

    Of image i the loss is |phi(v) - psi(v')|^2 + beta 2 alpha ln(...), see `losses.contrast`, and the same with the
    views exchanged: phi is the online network's prediction, or without a predictor its projection, and psi the target's
    projection.

    depth, predictor_depth: Linear layers of projector and predictor; predictor_depth=0 for no predictor.
    target: "ema", the moving average; "stop-gradient", the online projection without gradient; "gradient", with it.
    tau_schedule: "cosine", from tau to 1 as in BYOL; "constant".
    teacher: a run of this method whose online network is the target at the start, instead of `target_init`.
    normalize: of predictions and targets in the loss. symmetric: whether the views are also exchanged.
    """

    views = (BYOL_T, BYOL_T_PRIME)
    across_batch = True
    """With beta; without it the loss is each image's own."""

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        return get("byol").defaults(situation)

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 4096,
        out: int = 256,
        depth: int = 2,
        predictor_depth: int = 2,
        tau: float = 0.996,
        tau_schedule: Literal["cosine", "constant"] = "cosine",
        target: Literal["ema", "stop-gradient", "gradient"] = "ema",
        target_init: Literal["independent", "copy"] = "independent",
        teacher: str | None = None,
        alpha: float = 0.1,
        beta: float = 0.0,
        normalize: Normalize = "l2",
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        check_decay(tau=tau)
        check_temperature(alpha)
        check_widths(hidden=hidden, out=out, depth=depth)
        self.encoder = encoder
        self.projector = mlp(encoder.dim, *[hidden] * (depth - 1), out)
        self.predictor = mlp(out, *[hidden] * (predictor_depth - 1), out) if predictor_depth else torch.nn.Identity()
        initialize(self.projector)
        initialize(self.predictor)
        self.target = Target(self.online(), init=target_init) if target == "ema" else None
        if teacher is not None:
            if self.target is None:
                raise ValueError(f"teacher={teacher!r} needs target='ema', not {target!r}")
            self.target.module.load_state_dict(_online_of(teacher))
        self.tau, self.tau_schedule, self.with_gradient = tau, tau_schedule, target == "gradient"
        self.alpha, self.beta, self.normalize, self.symmetric = alpha, beta, normalize, symmetric

    def forward(self, v: Tensor, v_prime: Tensor) -> Out:  # type: ignore[override]
        y, y_prime = self.encoder(v), self.encoder(v_prime)
        z, z_prime = self.projector(y), self.projector(y_prime)
        phi, phi_prime = map(gather, (self.predictor(z), self.predictor(z_prime)))
        psi, psi_prime = map(gather, self._targets(v, v_prime, z, z_prime))
        loss = self._loss(phi, psi, psi_prime)
        if self.symmetric:
            loss = loss + self._loss(phi_prime, psi_prime, psi)
        return Out(loss=loss.mean(), features=y, embedding=z)

    def _targets(self, v: Tensor, v_prime: Tensor, z: Tensor, z_prime: Tensor) -> tuple[Tensor, Tensor]:
        if self.target is not None:
            return self.target(v), self.target(v_prime)
        return (z, z_prime) if self.with_gradient else (z.detach(), z_prime.detach())

    def _loss(self, phi: Tensor, psi: Tensor, psi_prime: Tensor) -> Tensor:
        loss = squared_distance(phi, psi_prime, self.normalize)
        if self.beta:
            loss = loss + self.beta * contrast(phi, psi, psi_prime, self.alpha)
        return loss

    def decay(self, progress: float) -> float:
        return self.tau if self.tau_schedule == "constant" else target_decay(progress, self.tau)

    def after_step(self, progress: float, outs: list[Out]) -> None:
        if self.target is not None:
            self.target.follow(self.online(), self.decay(progress))

    def status(self, progress: float) -> dict[str, float]:
        return {} if self.target is None else {"tau": self.decay(progress)}


def _online_of(run: str) -> dict[str, Tensor]:
    """Encoder and projector of a run's last checkpoint, by the names that `Method.online` gives them."""
    path = checkpoint.latest(Path(run) / "checkpoints")
    if path is None:
        raise ValueError(f"teacher={run!r} holds no checkpoint; give a run that was trained to its end")
    state = checkpoint.tensors(path, "module.method.")
    parts = {"encoder.": "0.", "projector.": "1."}
    return {
        new + name.removeprefix(old): value
        for old, new in parts.items()
        for name, value in state.items()
        if name.startswith(old)
    }
