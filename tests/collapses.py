"""Ways to spoil a run from any step on, shared by test_collapse.py and benchmarks/collapse.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from byol import losses
from byol.data.loader import Batch
from byol.methods import Method, Out
from byol.step import Gradients
from byol.train import Training

Spoil = Callable[[Method, Optimizer], None]


def attraction(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (losses.l2_normalize(a) * losses.l2_normalize(b)).sum(1).mean()


def both(method: Method, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(features of the first view, embedding of the first, of the second)."""
    y1 = method.encoder(x1)
    return y1, method.projector(y1), method.projector(method.encoder(x2))


def with_forward(forward: Callable[..., Out]) -> Spoil:
    def spoil(method: Method, optimizer: Optimizer) -> None:
        method.forward = MethodType(forward, method)

    return spoil


def with_views(change: Callable[[Tensor], Tensor]) -> Spoil:
    """The method trains on changed views; held-out images stay as they are."""

    def spoil(method: Method, optimizer: Optimizer) -> None:
        method.register_forward_pre_hook(lambda _, views: tuple(map(change, views)))

    return spoil


def with_values(**values: float) -> Spoil:
    def spoil(method: Method, optimizer: Optimizer) -> None:
        for name, value in values.items():
            setattr(method, name, value)

    return spoil


def with_optimizer(**factors: float) -> Spoil:
    def spoil(method: Method, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for name, factor in factors.items():
                group[name] *= factor

    return spoil


def together(*spoils: Spoil) -> Spoil:
    def spoil(method: Method, optimizer: Optimizer) -> None:
        for each in spoils:
            each(method, optimizer)

    return spoil


def no_predictor(method: Any, optimizer: Optimizer) -> None:
    """Grill et al. 2020, Table 5b: no predictor, beta = 0: 0.2 %."""
    method.predictor = nn.Identity()


def no_stop_gradient(self: Any, x1: Tensor, x2: Tensor) -> Out:
    """Chen & He 2021, Figure 2: 0.1 %."""
    y1, z1, z2 = both(self, x1, x2)
    return Out((attraction(self.predictor(z1), z2) + attraction(self.predictor(z2), z1)) / 2, y1, z1)


def redundancy_alone(self: Any, x1: Tensor, x2: Tensor) -> Out:
    """Zbontar et al. 2021, Table 5: the redundancy term alone, 0.1 %."""
    y1, z1, z2 = both(self, x1, x2)
    return Out(0.0051 * (losses.barlow_twins(z1, z2, 1.0) - losses.barlow_twins(z1, z2, 0.0)), y1, z1)


def no_negatives(self: Any, x1: Tensor, x2: Tensor) -> Out:
    """Grill et al. 2020, Table 5b: no predictor, no target, beta = 0: 0.1 %."""
    y = self.encoder(torch.cat([x1, x2]))
    z1, z2 = self.projector(y).chunk(2)
    return Out(attraction(z1, z2) / self.temperature, y[: len(x1)], z1)


def no_queue(self: Any, x1: Tensor, x2: Tensor, *, ids: Tensor, key: Tensor) -> Out:
    """A query has its own key and no other."""
    _, y, q, k = self.contrast(x1, x2, ids, key)
    return Out(attraction(q, k), y, q, {"keys": k[:, None]})


def no_contrast(self: Any, x1: Tensor, x2: Tensor) -> Out:
    y1, z1, z2 = both(self, x1, x2)
    return Out(attraction(z1, self.target(x2)) + attraction(z2, self.target(x1)), y1, z1)


def nothing_to_contrast(method: Any, optimizer: Optimizer) -> None:
    """No negatives and no predictor, and no batch norm on the output to keep the features apart."""
    method.projector[-1] = nn.Identity()
    method.target.module[1][-1] = nn.Identity()
    method.predictor = nn.Identity()
    method.forward = MethodType(no_contrast, method)


def own_memory_alone(self: Any, x: Tensor, *, ids: Tensor, key: Tensor) -> Out:
    """No other images: each is drawn to its own row of the bank alone."""
    y = self.encoder(x)
    z = self.projector(y)
    loss = attraction(z, self.bank.rows[ids]) / self.temperature
    return Out(loss, y, z, {"ids": ids, "v": losses.l2_normalize(z)})


def one_label(method: Any, optimizer: Optimizer) -> None:
    right = method.forward
    method.forward = lambda *views, labels: right(*views, labels=torch.zeros_like(labels))


def wrong_pairs(method: Method, optimizer: Optimizer) -> None:
    """Each image's second view is of another image."""
    method.register_forward_pre_hook(lambda _, views: (views[0], views[1].roll(1, 0)))


def two_directions(method: Method, optimizer: Optimizer) -> None:
    """All that passes the projector passes two numbers."""
    width = next(m.out_features for m in reversed(list(method.projector.modules())) if isinstance(m, nn.Linear))
    method.projector = nn.Sequential(method.projector, nn.Linear(width, 2), nn.Linear(2, width))


def offset(method: Method, optimizer: Optimizer) -> None:
    """The output's bias has run away."""
    method.projector.register_forward_hook(lambda _, given, out: out + 10 * out.detach().norm(dim=1).mean())


def dead_units(method: Method, optimizer: Optimizer) -> None:
    """The encoder's last units never fire again."""
    last = [m for m in method.encoder.modules() if hasattr(m, "running_mean")][-1]
    with torch.no_grad():
        last.bias.fill_(-100)


CAUSES: dict[str, tuple[str, Spoil]] = {
    "no predictor": ("byol", no_predictor),
    "no predictor, tau 0": ("byol", together(no_predictor, with_values(tau=0.0))),
    "learning rate x 300": ("byol", with_optimizer(lr_scale=300)),
    "grey views": ("byol", with_views(torch.zeros_like)),
    "no stop-gradient": ("simsiam", with_forward(no_stop_gradient)),
    "no predictor and no target": ("simsiam", no_predictor),
    "two directions": ("simsiam", two_directions),
    "redundancy alone": ("barlow_twins", with_forward(redundancy_alone)),
    "on the diagonal alone": ("barlow_twins", with_values(lambd=0.0)),
    # Bardes et al. 2022, Table 7: each of these four collapses, or nearly.
    "invariance alone": ("vicreg", with_values(sim=1.0, std=0.0, cov=0.0)),
    "no variance": ("vicreg", with_values(std=0.0)),
    "no invariance": ("vicreg", with_values(sim=0.0)),
    "no covariance": ("vicreg", with_values(cov=0.0)),
    "no negatives": ("simclr", with_forward(no_negatives)),
    "temperature 0.001": ("simclr", with_values(temperature=0.001)),
    "weight decay x 1e6": ("simclr", with_optimizer(weight_decay=1e6)),
    "dead units": ("simclr", dead_units),
    # He et al. 2020, Table 1: without momentum it fails.
    "tau 0": ("moco", with_values(tau=0.0)),
    "no queue": ("moco", with_forward(no_queue)),
    "offset": ("moco", offset),
    "nothing to contrast": ("moco_v3", nothing_to_contrast),
    "MoCo v3, learning rate x 300": ("moco_v3", with_optimizer(lr_scale=300)),
    "own memory alone": ("instdisc", with_forward(own_memory_alone)),
    "InstDisc, weight decay x 1e6": ("instdisc", with_optimizer(weight_decay=1e6)),
    "one label": ("supervised", one_label),
    "supervised, dead units": ("supervised", dead_units),
    "BYOL, dead units": ("byol", dead_units),
    "SimSiam, grey views": ("simsiam", with_views(torch.zeros_like)),
    "VICReg, learning rate x 300": ("vicreg", with_optimizer(lr_scale=300)),
    "InstDisc, offset": ("instdisc", offset),
    "wrong pairs": ("moco_v3", wrong_pairs),
}
"""What is wrong -> the method it is wrong with, and how."""


@contextmanager
def spoiled(spoil: Spoil, step: int) -> Iterator[None]:
    """While it lasts, `spoil` happens to each run just before its step number `step`, the first one being 0."""
    right = Training.passes

    def passes(training: Training, number: int, micro: list[Batch]) -> Gradients:
        if number == step:
            spoil(training.method, training.optimizer)
        return right(training, number, micro)

    with mock.patch.object(Training, "passes", passes):
        yield
