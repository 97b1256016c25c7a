"""Barlow Twins: the two views' features agree one by one, and say different things."""

from __future__ import annotations

from torch import Tensor

from byol import losses
from byol.encoder import Encoder
from byol.heads import mlp
from byol.methods import Defaults, Method, Out, Situation, adamw, check_widths
from byol.parallel import gather
from byol.views.view import BYOL_TORCHVISION, BYOL_TORCHVISION_PRIME


class BarlowTwins(Method):
    """Barlow Twins. Zbontar et al. 2021, arXiv:2103.03230, section 2.

    width: of the projector's three layers. lambd: of the redundancy term; the code's value, the paper has 0.005.
    """

    views = (BYOL_TORCHVISION, BYOL_TORCHVISION_PRIME)
    across_batch = True

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        return adamw(situation, {"width": 512 if situation.small else 8192, "lambd": 0.0051})

    def __init__(self, encoder: Encoder, *, width: int = 8192, lambd: float = 0.0051) -> None:
        super().__init__()
        check_widths(width=width)
        self.encoder = encoder
        self.projector = mlp(encoder.dim, width, width, width, hidden_bias=False)
        self.lambd = lambd

    def forward(self, x1: Tensor, x2: Tensor) -> Out:  # type: ignore[override]
        y1, y2 = self.encoder(x1), self.encoder(x2)
        z1, z2 = self.projector(y1), self.projector(y2)
        # The correlation is over all images of the step, so every process needs all of them.
        loss = losses.barlow_twins(gather(z1), gather(z2), self.lambd)
        return Out(loss=loss, features=y1, embedding=z1)
