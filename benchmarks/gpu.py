"""BYOL on one CUDA GPU: a training step with data beside the bare step of the same networks, and beside lightly.

    .venv/bin/python benchmarks/gpu.py [--compile default|reduce-overhead] [--part large|small|lightly]

- large: ResNet-50, 224 px, from a folder of JPEGs of 500 x 375 px; small: ResNet-18 with a 3x3 stem, 32 px, from
  memory. "bare" is the forward and backward passes, the optimizer and the target's average on two tensors that stay on
  the device, bf16 and channels_last, compiled where byol's networks are; "byol" is the same with views of the data.
- lightly: ResNet-18, 224 px, from the same JPEGs: byol, lightly as its BYOL example in bf16 and channels_last, and what
  each one's loader gives a step that does nothing.

Sides take turns; every time is taken between two synchronisations; medians. The rate of a matrix product of 8,192 in
bf16, of random numbers, is measured first.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from views224 import write

from byol.capacity import step_flops
from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.options import Options
from byol.plan import plan
from byol.train import Training


def seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def matrix_rate(size: int = 8192) -> float:
    """Floating-point operations a second of a bf16 product, the median of 20."""
    a, b = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    taken = [seconds(lambda: a @ b) for _ in range(25)][5:]
    return 2 * size**3 / statistics.median(taken)


def training_of(data: Path, options: Options, out: Path) -> Training:
    source = open_source(data)
    pixels = None
    if data.suffix == ".npy":
        source, pixels, _ = load_pixels(source)
    training = Training(plan(options, source, pixels), source, pixels, out)
    training.module.train()
    return training


def bare_step(training: Training) -> Callable[[], None]:
    """The same networks, without the loop around them."""
    run, method = training.run, training.method
    shape = (run.batch_size, run.channels, run.image_size, run.image_size)
    views = tuple(torch.randn(shape, device="cuda").contiguous(memory_format=torch.channels_last) for _ in range(2))
    target: Any = method.target
    online = list(method.online().parameters())  # type: ignore[attr-defined]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = method(*views).loss
        loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.module.parameters()), online, 0.004)

    return step


def beside_bare(name: str, training: Training, steps: int, turns: int, ceiling: float) -> None:
    batches = training.loader.batches(0, 10**6)
    bare = bare_step(training)
    sides: dict[str, Callable[[], object]] = {
        "bare": bare,
        "byol": lambda: training.step(0, [next(batches)]),
        "views alone": lambda: next(batches),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    flops = step_flops(training) / training.run.images_per_step
    for turn in range(turns + 1):
        for side, step in sides.items():
            for _ in range(5):  # what was made ahead while others had their turn
                step()
            took = seconds(lambda s=step: [s() for _ in range(steps)])
            if turn:
                rates[side].append(steps * training.run.batch_size / took)
    found = {side: statistics.median(each) for side, each in rates.items()}
    share = statistics.median(a / b for a, b in zip(rates["byol"], rates["bare"], strict=True))
    print(
        f"{name}: bare {found['bare']:.0f} images/s, byol {found['byol']:.0f} ({share:.1%}), views alone "
        f"{found['views alone']:.0f}; byol reaches {found['byol'] * flops / ceiling:.1%} of the matrix product's rate"
    )


def lightly_sides(folder: Path, batch_size: int, workers: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """(a training step, a batch of its loader)."""
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform

    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1], nn.Flatten())
    online = nn.Sequential(backbone, BYOLProjectionHead(512, 1024, 256))
    predictor = BYOLPredictionHead(256, 1024, 256)
    target = copy.deepcopy(online)
    deactivate_requires_grad(target)
    networks = nn.ModuleList([online, predictor, target]).to("cuda", memory_format=torch.channels_last).train()
    data = LightlyDataset(str(folder), transform=BYOLTransform())
    # Without ends of epochs, at which its workers would stand still.
    order = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**8)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size, sampler=order, num_workers=workers)
    batches = (views for views, *_ in loader)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD([p for p in networks.parameters() if p.requires_grad], lr=0.06)

    def step() -> None:
        x0, x1 = (x.to("cuda", memory_format=torch.channels_last) for x in next(batches))
        update_momentum(online, target, m=0.996)
        with torch.autocast("cuda", torch.bfloat16):
            p0, p1 = predictor(online(x0)), predictor(online(x1))
            with torch.no_grad():
                z0, z1 = target(x0), target(x1)
            loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda: next(batches)


def beside_lightly(folder: Path, options: Options, workers: int, steps: int, turns: int, out: Path) -> None:
    training = training_of(folder, options, out)
    batches = training.loader.batches(0, 10**6)
    step, batch = lightly_sides(folder, training.run.batch_size, workers)
    sides: dict[str, Callable[[], object]] = {
        "byol": lambda: training.step(0, [next(batches)]),
        "byol, loader alone": lambda: next(batches),
        "lightly": step,
        "lightly, loader alone": batch,
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(turns + 1):
        for side, call in sides.items():
            for _ in range(2 * workers + 5):  # lightly's workers hold two batches each
                call()
            took = seconds(lambda c=call: [c() for _ in range(steps)])
            if turn:
                rates[side].append(steps * training.run.batch_size / took)
    for side, each in rates.items():
        print(f"{side}: {statistics.median(each):.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("large", "small", "lightly"))
    parser.add_argument("--compile", choices=("default", "reduce-overhead"))
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--images", type=int, default=4096, help="JPEGs to make")
    parser.add_argument("--steps", type=int, default=20, help="a turn")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    ceiling = matrix_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {ceiling / 1e12:.0f} TFLOP/s")
    common: dict[str, Any] = {"device": "cuda", "precision": "bf16", "hold_out": 0.0, "steps": 10**6}
    common |= {"compile": arguments.compile, "workers": arguments.workers}
    with tempfile.TemporaryDirectory() as place:
        out, folder = Path(place) / "run", Path(place) / "jpeg"
        out.mkdir()
        if arguments.part in (None, "small"):
            np.save(Path(place) / "images.npy", np.random.default_rng(0).integers(0, 256, (16384, 32, 32, 3), np.uint8))
            options = Options(backbone="resnet18", batch_size=512, **common)
            training = training_of(Path(place) / "images.npy", options, out)
            beside_bare("ResNet-18, 32 px", training, arguments.steps, arguments.turns, ceiling)
        if arguments.part in (None, "large", "lightly"):
            write(folder, 375, 500, arguments.images, 75)
        if arguments.part in (None, "large"):
            training = training_of(folder, Options(backbone="resnet50", batch_size=256, image_size=224, **common), out)
            beside_bare("ResNet-50, 224 px", training, arguments.steps, arguments.turns, ceiling)
        if arguments.part in (None, "lightly"):
            options = Options(backbone="resnet18", batch_size=256, image_size=224, **common)
            beside_lightly(folder, options, arguments.workers, arguments.steps, arguments.turns, out)


if __name__ == "__main__":
    main()
