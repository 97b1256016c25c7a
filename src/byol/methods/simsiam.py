"""SimSiam: BYOL without a moving average; the stop-gradient alone keeps it from collapsing."""

from __future__ import annotations

from torch import Tensor

from byol.encoder import Encoder
from byol.heads import mlp
from byol.losses import negative_cosine
from byol.methods import Defaults, Method, Out, Situation, adamw, check_widths
from byol.parallel import mean
from byol.views.view import MOCO_V2


class SimSiam(Method):
    """Simple Siamese representation learning. Chen & He 2021, arXiv:2011.10566, section 3.

    hidden: of the projector, out: of projector and predictor, bottleneck: the predictor's hidden width. layers: of the
    projector, 3 for ImageNet and 2 for CIFAR-10 (Appendix D). out_scale: a scale for the projector's last batch norm,
    as in the paper's default; the authors' code has none.
    """

    views = (MOCO_V2, MOCO_V2)

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        width = 512 if situation.small else 2048
        args = {"hidden": width, "out": width, "bottleneck": width // 4, "layers": 2 if situation.small else 3}
        # The predictor must keep up with its moving input: its learning rate does not fall (section 4.2).
        return adamw(situation, args, constant_lr=("predictor",))

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int = 2048,
        out: int = 2048,
        bottleneck: int = 512,
        layers: int = 3,
        out_scale: bool = False,
    ) -> None:
        super().__init__()
        check_widths(hidden=hidden, out=out, bottleneck=bottleneck, layers=layers)
        self.encoder = encoder
        widths = (encoder.dim, *[hidden] * (layers - 1), out)
        self.projector = mlp(*widths, hidden_bias=False, out_norm="affine" if out_scale else "plain")
        self.predictor = mlp(out, bottleneck, out, hidden_bias=False, out_bias=True)

    def forward(self, x1: Tensor, x2: Tensor) -> Out:  # type: ignore[override]
        y1, y2 = self.encoder(x1), self.encoder(x2)
        z1, z2 = self.projector(y1), self.projector(y2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = negative_cosine(p1, z2.detach()) / 2 + negative_cosine(p2, z1.detach()) / 2
        return Out(loss=mean(loss.mean()), features=y1, embedding=z1)
