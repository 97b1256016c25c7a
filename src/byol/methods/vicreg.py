"""VICReg: the views agree, each feature varies, and no two features vary together."""

from __future__ import annotations

from torch import Tensor

from byol import losses
from byol.encoder import Encoder
from byol.heads import mlp
from byol.methods import Defaults, Method, Out, Situation, adamw, check_widths
from byol.parallel import gather
from byol.views.view import BYOL_TORCHVISION, BYOL_TORCHVISION_PRIME


class VICReg(Method):
    """Variance-invariance-covariance regularisation. Bardes et al. 2022, arXiv:2105.04906, section 4.

    width: of the expander's three layers. sim, std, cov: weights of the three terms (the paper's equations, which do
    not halve the variance as the code does, are std=50).
    """

    views = (BYOL_TORCHVISION, BYOL_TORCHVISION_PRIME)
    across_batch = True

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        return adamw(situation, {"width": 512 if situation.small else 8192, "sim": 25.0, "std": 25.0, "cov": 1.0})

    def __init__(
        self, encoder: Encoder, *, width: int = 8192, sim: float = 25.0, std: float = 25.0, cov: float = 1.0
    ) -> None:
        super().__init__()
        check_widths(width=width)
        self.encoder = encoder
        self.projector = mlp(encoder.dim, width, width, width)
        self.sim, self.std, self.cov = sim, std, cov

    def forward(self, x1: Tensor, x2: Tensor) -> Out:  # type: ignore[override]
        y1, y2 = self.encoder(x1), self.encoder(x2)
        z1, z2 = self.projector(y1), self.projector(y2)
        # Variances and covariances are over all images of the step, so every process needs all of them.
        loss = losses.vicreg(gather(z1), gather(z2), self.sim, self.std, self.cov)
        return Out(loss=loss, features=y1, embedding=z1)
