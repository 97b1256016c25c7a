"""Images/s of a whole BYOL training step, views included, beside lightly's own building blocks and transform.

    .venv/bin/python -m pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python benchmarks/throughput.py

ResNet-18 with a 3x3 stem, 32 px, heads 1024-256. The contestants take turns in one run, each in a process of its own
so that no allocator or thread setting of one helps another; medians are reported. "lightly" is wired as its BYOL
example: its transform in a DataLoader, its heads, momentum update, loss and cosine schedule, SGD; its blur is off, as
usual at 32 px. "lightly, bf16 + channels_last" is the same with precision and memory format switched by hand.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

FLOPS_PER_IMAGE = 8.9e9
"""Both views through both networks, and two backward passes at twice a forward: 8 x 0.556 GMAC x 2."""


def random_pixels(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)


def byol_steps(batch_size: int, device: str, precision: str) -> Iterator[dict[str, float]]:
    import tempfile
    from pathlib import Path

    from byol.data.loader import load_pixels
    from byol.data.open import open_source
    from byol.metrics import Metrics
    from byol.options import Options
    from byol.plan import plan
    from byol.train import Training

    outside = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal outside
            _wait(device)
            started = time.perf_counter()
            result = call(*arguments)
            _wait(device)
            outside += time.perf_counter() - started
            return result

        return wrapped

    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", random_pixels(4 * batch_size))
        source, pixels, _ = load_pixels(open_source(Path(folder) / "images.npy"))
        options = Options(backbone="resnet18", batch_size=batch_size, steps=10**6, precision=precision, device=device,
                          hold_out=0.0, method_args={"hidden": 1024, "out": 256})  # fmt: skip
        training = Training(plan(options, source, pixels), source, pixels, Path(folder))
        training.module.train()
        batches = timed(training.loader.batches(0, 10**6).__next__)
        training._optimizer.step = timed(training._optimizer.step)  # type: ignore[method-assign]
        training.method.after_step = timed(training.method.after_step)  # type: ignore[method-assign]
        log = timed(Metrics(Path(folder), 0).write)
        step = 0
        while True:
            outside = 0.0
            started = time.perf_counter()
            batch = batches()
            views = outside
            losses = training.step(step, [batch])
            log(step, {name: float(value) for name, value in losses.items()})
            _wait(device)
            yield {"seconds": time.perf_counter() - started, "views": views, "outside": outside}
            step += 1


def lightly_steps(batch_size: int, device: str, precision: str) -> Iterator[dict[str, float]]:
    import torchvision
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule
    from PIL import Image

    class BYOL(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            resnet = torchvision.models.resnet18()
            resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            resnet.maxpool = nn.Identity()
            self.backbone = nn.Sequential(*list(resnet.children())[:-1])
            self.projection_head = BYOLProjectionHead(512, 1024, 256)
            self.prediction_head = BYOLPredictionHead(256, 1024, 256)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

        def forward_momentum(self, x: torch.Tensor) -> torch.Tensor:
            return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

    switched = precision == "bf16"
    layout = {"memory_format": torch.channels_last} if switched else {}
    model = BYOL().to(device, **layout)
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=32, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=32, gaussian_blur=0.0),
    )
    images = [Image.fromarray(p) for p in random_pixels(4 * batch_size)]

    class Data(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10**7

        def __getitem__(self, i: int) -> Any:
            return transform(images[i % len(images)])

    workers = 0 if device == "cpu" else 8
    loader = torch.utils.data.DataLoader(Data(), batch_size=batch_size, num_workers=workers)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    batches = iter(loader)
    while True:
        started = time.perf_counter()
        x0, x1 = (x.to(device, **layout) for x in next(batches))
        made = time.perf_counter()
        momentum = cosine_schedule(0, 10, 0.996, 1)
        update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=switched):
            p0, z0 = model(x0), model.forward_momentum(x0)
            p1, z1 = model(x1), model.forward_momentum(x1)
            loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        float(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        yield {"seconds": time.perf_counter() - started, "views": made - started}


CONTESTANTS: dict[str, tuple[Callable[..., Iterator[dict[str, float]]], str]] = {
    "byol": (byol_steps, "bf16"),
    "byol, float32": (byol_steps, "32"),
    "lightly": (lightly_steps, "32"),
    "lightly, bf16 + channels_last": (lightly_steps, "bf16"),
}


def matrix_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a square matrix product, best of 5."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(10):
            a @ a
        _wait(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def contest(name: str, batch_size: int, device: str, steps: int) -> None:
    """Run one contestant in this process and print its steps as JSON."""
    make, precision = CONTESTANTS[name]
    found = make(batch_size, device, precision)
    next(found), next(found)
    print(json.dumps([next(found) for _ in range(steps)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, help="one contestant, in this process")
    arguments = parser.parse_args()
    if arguments.only:
        contest(arguments.only, arguments.batch_size, arguments.device, arguments.steps)
        return
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    rates: list[tuple[float, float]] = []
    for turn in range(arguments.turns):
        rates.append(tuple(matrix_rate(arguments.device, d) for d in (torch.float32, torch.bfloat16)))  # type: ignore[arg-type]
        for name in CONTESTANTS:
            own = [sys.executable, __file__, "--only", name, "--batch-size", str(arguments.batch_size)]
            own += ["--device", arguments.device, "--steps", str(arguments.steps)]
            found = subprocess.run(own, capture_output=True, text=True, check=True)
            taken[name] += json.loads(found.stdout.strip().splitlines()[-1])
            print(f"turn {turn + 1}: {name}", file=sys.stderr)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.device}, "
        f"batch {arguments.batch_size}"
    )
    float32, bfloat16 = (statistics.median(r[i] for r in rates) for i in range(2))
    ceiling = bfloat16 / FLOPS_PER_IMAGE
    print(
        f"matrix product: {float32 / 1e9:.0f} GFLOP/s float32, {bfloat16 / 1e9:.0f} bfloat16 -> {ceiling:.0f} images/s"
    )
    speed = {}
    for name, steps in taken.items():
        seconds = statistics.median(s["seconds"] for s in steps)
        speed[name] = arguments.batch_size / seconds
        share = statistics.median(s["views"] for s in steps) / seconds
        line = (
            f"{name:32} {speed[name]:8.1f} images/s   {speed[name] / ceiling:4.0%} of the ceiling   views {share:.1%}"
        )
        if "outside" in steps[0]:
            everything = statistics.median(s["outside"] for s in steps) / seconds
            line += f", with EMA, optimizer and logging {everything:.1%} of the step"
        print(line)
    print(f"byol / lightly: {speed['byol'] / speed['lightly']:.2f}")
    print(f"byol / lightly at equal precision: {speed['byol'] / speed['lightly, bf16 + channels_last']:.2f}")


if __name__ == "__main__":
    main()
