"""MoCo v3: contrast within the batch, with a predictor and a momentum encoder, and without a queue."""

from __future__ import annotations

import torch
from torch import Tensor

from byol.encoder import Encoder
from byol.heads import mlp
from byol.losses import batch_info_nce
from byol.methods import Defaults, Method, Out, Situation, adamw, check_decay, check_temperature, check_widths
from byol.parallel import gather
from byol.schedules import target_decay
from byol.target import Target
from byol.views.view import MOCO_V3, MOCO_V3_PRIME


class MoCoV3(Method):
    """Momentum contrast v3. Chen, Xie & He 2021, arXiv:2104.02057, algorithm 1, with the authors' ResNet-50 heads.

    hidden, out: widths of projector and predictor. temperature: 1 for ResNet-50, 0.2 for ViT. tau: the key encoder's
    decay at the first step, rising to 1 by a cosine.
    """

    views = (MOCO_V3, MOCO_V3_PRIME)
    across_batch = True

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        tau = situation.decay(375, slowest=0.996, fastest=0.9)
        args = {"hidden": 1024 if situation.small else 4096, "out": 256, "tau": tau}
        return adamw(situation, args | {"temperature": 0.2 if situation.small else 1.0})

    def __init__(
        self, encoder: Encoder, *, hidden: int = 4096, out: int = 256, temperature: float = 1.0, tau: float = 0.99
    ) -> None:
        super().__init__()
        check_widths(hidden=hidden, out=out)
        check_temperature(temperature)
        check_decay(tau=tau)
        self.encoder = encoder
        self.projector = mlp(encoder.dim, hidden, out, hidden_bias=False, out_norm="plain")
        self.predictor = mlp(out, hidden, out, hidden_bias=False)
        self.target = Target(self.online(), init="copy")
        self.temperature, self.tau = temperature, tau

    def forward(self, x1: Tensor, x2: Tensor) -> Out:  # type: ignore[override]
        y1, y2 = self.encoder(x1), self.encoder(x2)
        z1, z2 = self.projector(y1), self.projector(y2)
        q1, q2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            k1, k2 = gather(self.target(x1)), gather(self.target(x2))
        # The keys of the whole batch; a key's own query is the only one that it answers.
        loss = batch_info_nce(gather(q1), k2, self.temperature) + batch_info_nce(gather(q2), k1, self.temperature)
        return Out(loss=2 * self.temperature * loss, features=y1, embedding=z1)

    def after_step(self, progress: float, outs: list[Out]) -> None:
        self.target.follow(self.online(), target_decay(progress, self.tau))

    def status(self, progress: float) -> dict[str, float]:
        return {"tau": target_decay(progress, self.tau)}
