"""BYOL: the online network predicts what a slowly following target says of the other view."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from byol.encoder import Encoder, initialize
from byol.heads import mlp
from byol.losses import regression
from byol.methods import Defaults, Method, Out, Situation, adamw, check_decay, check_widths
from byol.parallel import mean
from byol.schedules import target_decay
from byol.target import Target
from byol.views.view import BYOL_T, BYOL_T_PRIME


class BYOL(Method):
    """Bootstrap Your Own Latent. Grill et al. 2020, arXiv:2006.07733, section 3.1.

    encoder: the online encoder f, with `dim` features. hidden, out: widths of projector g and predictor q
    (section 3.3). tau: the target's decay at the first step. target_init: see `Target`.
    """

    views = (BYOL_T, BYOL_T_PRIME)

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        """The rules of docs/defaults.md."""
        # The paper's own pairs (12.5k steps, 0.97), (31k, 0.99), (313k, 0.996) lie near 1 - tau = 375 / K. It holds in
        # runs of hundreds of steps too, down to 0.6, the lowest tried on digits and photographs (docs/defaults.md).
        tau = situation.decay(375, slowest=0.996, fastest=0.6)
        hidden = 1024 if situation.small else 4096
        return adamw(situation, {"hidden": hidden, "out": 256, "tau": tau, "target_init": "independent"})

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 4096,
        out: int = 256,
        tau: float = 0.996,
        target_init: Literal["independent", "copy"] = "independent",
    ) -> None:
        super().__init__()
        check_decay(tau=tau)
        check_widths(hidden=hidden, out=out)
        self.encoder = encoder
        self.projector = mlp(encoder.dim, hidden, out)
        self.predictor = mlp(out, hidden, out)
        # The encoder comes with weights of its own: drawn, or given.
        initialize(self.projector)
        initialize(self.predictor)
        self.target = Target(self.online(), init=target_init)
        self.tau = tau

    def forward(self, v: Tensor, v_prime: Tensor) -> Out:  # type: ignore[override]
        # Each view is a forward pass of its own: batch-norm statistics never mix the two.
        y, y_prime = self.encoder(v), self.encoder(v_prime)
        z, z_prime = self.projector(y), self.projector(y_prime)
        q, q_prime = self.predictor(z), self.predictor(z_prime)
        with torch.no_grad():
            xi, xi_prime = self.target(v), self.target(v_prime)
        loss = mean((regression(q, xi_prime) + regression(q_prime, xi)).mean())
        return Out(loss=loss, features=y, embedding=z)

    def after_step(self, progress: float, outs: list[Out]) -> None:
        self.target.follow(self.online(), target_decay(progress, self.tau))

    def status(self, progress: float) -> dict[str, float]:
        return {"tau": target_decay(progress, self.tau)}
