"""What every method must keep to, as a check that anyone can run on a method of their own.

`check("my_module:MyMethod")` raises AssertionError in words at the first promise of `Method` that is not kept.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from byol import rng
from byol.encoder import Encoder
from byol.methods import Method, Out, Situation, get, wanted
from byol.names import FILLED, method_arguments

BATCH, SIZE, NUM_IMAGES, NUM_CLASSES = 16, 12, 96, 4


class SmallEncoder(nn.Sequential):
    """Two convolutions with batch norm: images [B, 3, S, S] -> features [B, dim]."""

    dim = 12

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, self.dim, 3, bias=False), nn.BatchNorm2d(self.dim), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )


def make(name: str, *, dtype: torch.dtype = torch.float64, **method_args: Any) -> Method:
    """A small instance of a method, by its own defaults and `method_args`; always the same."""
    kind = get(name)
    situation = Situation(NUM_IMAGES, SIZE, 3, BATCH, 100)
    args = {**kind.defaults(situation).method_args, **method_args}
    kind.check(situation, **args)
    data = {"num_images": NUM_IMAGES, "num_classes": NUM_CLASSES}
    filled = {n: data[n] for n in FILLED if n in inspect.signature(kind).parameters}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = kind(cast(Encoder, SmallEncoder()), **filled, **args)
    return method.to(dtype).train()


def batch(method: Method, *, seed: int = 0) -> tuple[list[Tensor], dict[str, Tensor]]:
    """(views, ids and labels and key) of one step, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(method.parameters()).dtype
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    noise = [torch.randn(images.shape, generator=generator, dtype=torch.float64) for _ in method.views]
    given = {
        "ids": torch.randperm(NUM_IMAGES, generator=generator)[:BATCH],
        "labels": torch.randint(-1, NUM_CLASSES, (BATCH,), generator=generator),
        "key": rng.key(seed),
    }
    return [(images + 0.3 * each).to(dtype) for each in noise], given


def forward(method: Method, views: list[Tensor], given: dict[str, Tensor]) -> Out:
    return method(*views, **{name: given[name] for name in wanted(type(method))})


def rows(
    views: list[Tensor], given: dict[str, Tensor], order: Tensor | slice
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same step with some of its images, or in another order."""
    chosen = {name: value if name == "key" else value[order] for name, value in given.items()}
    return [view[order] for view in views], chosen


def check(name: str) -> None:
    """Every promise in turn. name: of this package's methods, or module:Class."""
    for each in CHECKS:
        each(name)


def check_arguments(name: str) -> None:
    """Each default is an argument that a run may set."""
    defaults = get(name).defaults(Situation(NUM_IMAGES, SIZE, 3, BATCH, 100)).method_args
    strange = set(defaults) - set(method_arguments(name))
    assert not strange, f"{name}.defaults gives {', '.join(sorted(strange))}, which its __init__ does not take"


def check_out(name: str) -> None:
    """A finite scalar of the stated dtype, features and embedding with a row for each image."""
    for dtype in (torch.float32, torch.float64):
        method = make(name, dtype=dtype)
        out = forward(method, *batch(method))
        assert out.loss.shape == () and out.loss.dtype == dtype, f"{name}: the loss is no {dtype} scalar"
        assert bool(out.loss.isfinite()), f"{name}: the loss is {out.loss.item()}"
        assert out.features.shape == (BATCH, SmallEncoder.dim), f"{name}: features are {list(out.features.shape)}"
        assert out.embedding.ndim == 2 and len(out.embedding) == BATCH, f"{name}: no embedding for each image"
        assert method.embed(batch(method)[0][0]).shape == out.embedding.shape, f"{name}: embed gives another width"


def check_gradients(name: str) -> None:
    """Every trainable parameter has a gradient, and the loss depends on nothing else."""
    method = make(name)
    forward(method, *batch(method)).loss.backward()
    for part, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name}: no gradient reaches {part}"
            assert bool(parameter.grad.isfinite().all()), f"{name}: the gradient of {part} is not finite"
        else:
            assert parameter.grad is None, f"{name}: a gradient reaches {part}, which is not trained"
    learned = any(bool(p.grad.any()) for p in method.encoder.parameters() if p.grad is not None)
    assert learned, f"{name}: the gradient of the encoder is zero"
    for part in dict(method.named_parameters()):
        if part.startswith("target."):
            assert not method.get_parameter(part).requires_grad, f"{name}: {part} is trained"


def check_purity(name: str) -> None:
    """Forward changes nothing but batch-norm statistics, and the same key gives the same bits."""
    method = make(name)
    before = copy.deepcopy(method.state_dict())
    first = forward(method, *batch(method))
    for part, value in method.state_dict().items():
        if part.rpartition(".")[2] not in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(value, before[part]), f"{name}: forward changes {part}; let after_step do that"
    method.load_state_dict(before)
    torch.manual_seed(torch.initial_seed() + 1)
    second = forward(method, *batch(method))
    assert torch.equal(first.loss, second.loss), f"{name}: the same key gives another loss"


def check_order(name: str) -> None:
    """Images in another order, with their ids, change nothing beyond rounding."""
    method = make(name)
    views, given = batch(method)
    before = copy.deepcopy(method.state_dict())
    first = forward(method, views, given)
    method.load_state_dict(before)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    second = forward(method, *rows(views, given, order))
    assert torch.allclose(first.loss, second.loss, rtol=1e-10, atol=1e-12), f"{name}: the order of images matters"
    for part in ("features", "embedding"):
        moved, expected = getattr(second, part), getattr(first, part)[order]
        assert torch.allclose(moved, expected, rtol=1e-8, atol=1e-10), f"{name}: {part} are not row i of image i"


def check_learning(name: str) -> None:
    """The loss of one fixed batch falls when the optimizer works on it."""
    method = make(name)
    step = batch(method)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    seen = []
    for _ in range(11):
        loss = forward(method, *step).loss
        seen.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert seen[-1] < seen[0], f"{name}: the loss of one batch goes from {seen[0]} to {seen[-1]} in ten steps"


def check_state(name: str) -> None:
    """A state dict holds everything: a method restored from one goes on exactly as the one it was taken from."""
    method = make(name)
    take_step(method, seed=0, progress=0.0)
    other = make(name)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for seed in (1, 2):
        losses = [take_step(each, seed=seed, progress=seed / 3) for each in (method, other)]
        assert losses[0] == losses[1], f"{name}: what its state dict restores goes another way"


def take_step(method: Method, *, seed: int, progress: float) -> float:
    """One step of plain gradient descent with what follows it; returns the loss before it."""
    out = forward(method, *batch(method, seed=seed))
    method.zero_grad()
    out.loss.backward()
    descend(method)
    method.after_step(progress, [out.detach()])
    return out.loss.item()


@torch.no_grad()
def descend(method: Method, lr: float = 0.05) -> None:
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter.sub_(lr * parameter.grad)


CHECKS: tuple[Callable[[str], None], ...] = (
    check_arguments,
    check_out,
    check_gradients,
    check_purity,
    check_order,
    check_learning,
    check_state,
)
