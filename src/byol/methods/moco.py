"""MoCo: the query finds its key among a queue of earlier images' keys, made by a slowly moving encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from byol import rng
from byol.encoder import Encoder
from byol.heads import mlp
from byol.losses import info_nce, l2_normalize
from byol.memory import Queue, check_queue
from byol.methods import Defaults, Method, Out, Situation, adamw, check_decay, check_temperature, check_widths
from byol.norm import check_groups, dealt, share
from byol.parallel import gather, mean
from byol.target import Target
from byol.views.view import MOCO_V2


class MoCo(Method):
    """Momentum contrast. He et al. 2020, arXiv:1911.05722 (v1), and Chen et al. 2020, arXiv:2003.04297 (v2).

    hidden: of v2's projector; None for v1's single layer. out: width of queries and keys. queue: its length, a
    multiple of the keys of one step. tau: the key encoder's decay, constant (the papers' m). symmetric: each view is
    query and key (the sum of both losses, as in the authors' CIFAR-10 demo). groups: equal parts of the batch over
    which batch norm runs; queries and keys are dealt to them anew, so that batch statistics do not give a query's key
    away (v1, section 3.3).
    """

    views = (MOCO_V2, MOCO_V2)

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        # An eighth of the images at most: a longer queue mostly holds other views of the images it is asked about.
        keys = situation.images_per_step
        length = max(1, min(65536, situation.num_images // 8) // keys) * keys
        return adamw(
            situation,
            {
                "hidden": 512 if situation.small else 2048,
                "out": 128,
                "queue": length,
                # 0.999 in a million steps, 0.99 in the CIFAR-10 demo's 20,000. At 0.9 short runs collapse
                # (docs/defaults.md): the keys of a queue must come from nearly one encoder.
                "tau": situation.decay(200, slowest=0.999, fastest=0.99),
                "temperature": 0.1 if situation.small else 0.2,
                "symmetric": False,
                # Statistics of one image are none.
                "groups": next(g for g in (8, 4, 2, 1) if g == 1 or situation.batch_size % (2 * g) == 0),
            },
        )

    @classmethod
    def check(cls, situation: Situation, **method_args: Any) -> None:
        keys = situation.images_per_step * (2 if method_args.get("symmetric") else 1)
        check_queue(method_args.get("queue", 65536), keys)
        check_groups(method_args.get("groups", 8), situation.batch_size)

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int | None = 2048,
        out: int = 128,
        queue: int = 65536,
        tau: float = 0.999,
        temperature: float = 0.2,
        symmetric: bool = False,
        groups: int = 8,
    ) -> None:
        super().__init__()
        check_widths(hidden=hidden, out=out, queue=queue, groups=groups)
        check_decay(tau=tau)
        check_temperature(temperature)
        share(encoder, groups)
        self.encoder = encoder
        widths = (encoder.dim, out) if hidden is None else (encoder.dim, hidden, out)
        self.projector = mlp(*widths, out_bias=True, norm=False)
        self.target = Target(self.online(), init="copy")
        self.queue = Queue(out, queue)
        self.tau, self.temperature, self.symmetric = tau, temperature, symmetric

    def forward(self, x1: Tensor, x2: Tensor, *, ids: Tensor, key: Tensor) -> Out:  # type: ignore[override]
        loss, y, q, k = self.contrast(x1, x2, ids, rng.fold(key, 0))
        keys = [k]
        if self.symmetric:
            other, _, _, k = self.contrast(x2, x1, ids, rng.fold(key, 1))
            loss, keys = loss + other, [k, *keys]
        return Out(loss=mean(loss), features=y, embedding=q, extras={"keys": torch.stack(keys, dim=1)})

    def contrast(self, x_q: Tensor, x_k: Tensor, ids: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, features, queries, keys) of one direction."""
        y = dealt(self.encoder, x_q, ids, rng.fold(key, 0))
        q = self.projector(y)
        with torch.no_grad():
            k = l2_normalize(dealt(self.target, x_k, ids, rng.fold(key, 1)))
        # This step's keys join the queue after it, so a query never meets its own key as a negative.
        return info_nce(q, k, self.queue.keys, self.temperature), y, q, k

    def after_step(self, progress: float, outs: list[Out]) -> None:
        for out in outs:
            self.queue.enqueue(gather(out.extras["keys"]).transpose(0, 1).flatten(0, 1))
        # Before the next step's keys, as in the authors' code.
        self.target.follow(self.online(), self.tau)
