"""A step asks the device for no number: on a GPU the host would wait for it, and the GPU for the host after that."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from byol import names
from byol.data.loader import Batch
from byol.methods import get
from byol.networks import build, make_optimizer
from byol.step import train_step

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
    aten.bincount,
}
"""Operations whose result, or its shape, the host has to know."""


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or func.overloadpacket in WAITS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("method", [*names.METHODS, "instdisc, contrastive"])
def test_a_step_waits_for_nothing(make_run, method, optimizer):
    method, _, contrastive = method.partition(", ")
    arguments = {"negatives": 4 if contrastive else 0} if method == "instdisc" else {}
    arguments |= {
        name: value
        for name, value in {"hidden": 32, "out": 16, "width": 32}.items()
        if name in names.method_arguments(method)
    }
    run = make_run(method=method, method_args=arguments, optimizer=optimizer, total_steps=20)
    networks = build(run, num_classes=3, num_images=64)
    optimizer = make_optimizer(run, networks)
    networks.train()
    views = tuple(torch.rand(16, 3, 16, 16) for _ in get(method).views)
    ids = torch.arange(16)
    batch = Batch(ids, ids % 3 - 1, views)
    with Waits() as waits:
        for step in range(2):
            train_step(run, step, networks, networks.method, optimizer, [batch], torch.Tensor.backward)
    assert waits.found == []


def test_what_waits_is_seen():
    with Waits() as waits:
        float(torch.ones(3).sum())
        torch.arange(4)[torch.arange(4) > 1]
    assert len(waits.found) == 2
