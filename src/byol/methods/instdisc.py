"""Instance discrimination: every image is a class of its own, remembered in a bank."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from byol import rng
from byol.encoder import Encoder
from byol.losses import instance_nce, l2_normalize
from byol.memory import Bank
from byol.methods import Defaults, Method, Out, Situation, adamw, check_decay, check_temperature, check_widths
from byol.parallel import gather, mean
from byol.views.view import MOCO_V1

FULL_SOFTMAX_LIMIT = 65536
"""Up to this many images the softmax over all of them is the default: exact, and a small product."""


class InstDisc(Method):
    """Non-parametric instance discrimination. Wu et al. 2018, arXiv:1805.01978, section 3.

    num_images: rows of the bank. out: width of a row. negatives: drawn for each image in noise-contrastive estimation;
    0 for the softmax over all images. momentum: the share of a row that stays (the paper's proximal term).
    """

    views = (MOCO_V1,)

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        negatives = 0 if situation.num_images <= FULL_SOFTMAX_LIMIT else 4096
        temperature = 0.1 if situation.small else 0.07
        return adamw(situation, {"out": 128, "negatives": negatives, "temperature": temperature, "momentum": 0.5})

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_images: int,
        out: int = 128,
        negatives: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        check_widths(out=out)
        check_temperature(temperature)
        check_decay(momentum=momentum)
        if negatives < 0:
            raise ValueError(f"negatives={negatives} must not be negative; 0 is the softmax over all images")
        self.encoder = encoder
        self.projector = nn.Linear(encoder.dim, out)
        self.bank = Bank(num_images, out, momentum)
        self.register_buffer("partition", torch.zeros(()))  # Z; 0 until the first step has estimated it
        self.negatives, self.temperature = negatives, temperature

    partition: Tensor

    def forward(self, x: Tensor, *, ids: Tensor, key: Tensor) -> Out:  # type: ignore[override]
        y = self.encoder(x)
        z = self.projector(y)
        v = l2_normalize(z)
        extras = {"ids": ids, "v": v}
        if self.negatives == 0:
            with torch.autocast(v.device.type, enabled=False):
                loss = F.cross_entropy(v @ self.bank.rows.T / self.temperature, ids)
        else:
            num = len(self.bank.rows)
            # With replacement, the image itself not excluded: as in the authors' code.
            drawn = rng.bits(rng.fold(key, ids), self.negatives) % num
            rows = self.bank.rows[torch.cat([ids[:, None], drawn], dim=1)]
            with torch.autocast(v.device.type, enabled=False):
                exponentials = torch.exp((rows @ v[:, :, None]).squeeze(2) / self.temperature)
            estimate = mean(exponentials.detach().mean()) * num
            loss = instance_nce(exponentials, torch.where(self.partition > 0, self.partition, estimate), num)
            extras["partition"] = estimate.expand(len(ids))
        return Out(loss=mean(loss), features=y, embedding=z, extras=extras)

    def after_step(self, progress: float, outs: list[Out]) -> None:
        if self.negatives:
            estimate = torch.stack([out.extras["partition"][0] for out in outs]).mean()
            self.partition.copy_(torch.where(self.partition > 0, self.partition, estimate))
        ids, v = (gather(torch.cat([out.extras[name] for out in outs])) for name in ("ids", "v"))
        self.bank.update(ids, v)
