"""SimCLR: each view finds its other view among all views of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from byol.encoder import Encoder
from byol.heads import mlp
from byol.losses import nt_xent
from byol.methods import Defaults, Method, Out, Situation, adamw, check_temperature, check_widths
from byol.parallel import gather
from byol.views.view import SIMCLR


class SimCLR(Method):
    """A simple framework for contrastive learning. Chen et al. 2020, arXiv:2002.05709 (v1) and arXiv:2006.10029 (v2).

    hidden, out: widths of the projector. layers: of the projector, 2 in v1's paper, 3 in v2 and the released code.
    scale: of the loss, 2 in the released code, which adds both views' means; the paper's is 1, the mean over all views.
    """

    views = (SIMCLR, SIMCLR)
    across_batch = True

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        # Long runs on small images did best at 0.5, ImageNet's at 0.1 (sections 5.1 and B.9).
        args = {"hidden": 512 if situation.small else 2048, "out": 128, "layers": 3}
        return adamw(situation, args | {"temperature": 0.5 if situation.small else 0.1, "scale": 2.0})

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 2048,
        out: int = 128,
        layers: int = 3,
        temperature: float = 0.1,
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        check_widths(hidden=hidden, out=out, layers=layers)
        check_temperature(temperature)
        self.encoder = encoder
        widths = (encoder.dim, *[hidden] * (layers - 1), out)
        self.projector = mlp(*widths, hidden_bias=False, out_norm="scale")
        for part in self.projector:
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.01)
        self.temperature, self.scale = temperature, scale

    def forward(self, x1: Tensor, x2: Tensor) -> Out:  # type: ignore[override]
        # Both views in one batch, as in the authors' code: batch norm mixes them.
        y = self.encoder(torch.cat([x1, x2]))
        z1, z2 = self.projector(y).chunk(2)
        loss = self.scale * nt_xent(gather(z1), gather(z2), self.temperature)
        return Out(loss=loss, features=y[: len(x1)], embedding=z1)
