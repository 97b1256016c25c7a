"""Two 224 px BYOL views from large JPEGs: file bytes to normalised tensors, beside lightly's transform, on one core.

    .venv/bin/python -m pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python benchmarks/views224.py

The photographs are made here: noise with the spectrum of natural images, chroma weaker than luma, saved as JPEG. Both
sides take turns in one process with one thread; the median of the turns is reported. Then the loader feeds a step that
does nothing, and a training step, on all cores.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from byol.data.loader import Loader, Normalization
from byol.data.open import open_source
from byol.options import Options
from byol.plan import plan
from byol.train import Training, keep_memory
from byol.views import recipes
from byol.views.view import BYOL_T, BYOL_T_PRIME, IMAGENET_MEAN, IMAGENET_STD

CHANNEL_WEIGHTS = np.array([[1.0, 0.12, 0.06], [1.0, -0.04, 0.1], [1.0, -0.1, -0.12]])
"""R, G and B of three fields: one of luma, two of chroma."""


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Three noise fields whose amplitude falls as 1 / frequency, mixed to R, G and B."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    falling = 1 / np.maximum(frequency, 1 / max(height, width))
    fields = []
    for _ in range(3):
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falling, s=(height, width))
        fields.append((field - field.mean()) / field.std())
    pixels = 128 + 55 * np.stack(fields, -1) @ CHANNEL_WEIGHTS.T
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write(folder: Path, height: int, width: int, num: int, quality: int) -> float:
    """`num` JPEGs in a folder; returns their mean size in KB."""
    folder.mkdir()
    for i in range(num):
        photograph(height, width, i).save(folder / f"{i:04}.jpg", quality=quality)
    return statistics.mean(file.stat().st_size for file in folder.iterdir()) / 1000


def loader_of(folder: Path, batch_size: int, arithmetic: recipes.Arithmetic, *, workers: int = 0) -> Loader:
    return Loader(
        open_source(folder),
        (BYOL_T, BYOL_T_PRIME),
        pixels=None,
        size=224,
        batch_size=batch_size,
        normalization=Normalization(IMAGENET_MEAN, IMAGENET_STD),
        seed=0,
        workers=workers,
        arithmetic=arithmetic,
    )


def lightly_views(folder: Path) -> Callable[[], list[list[Tensor]]]:
    from lightly.transforms.byol_transform import BYOLTransform

    transform = BYOLTransform()
    encoded = [file.read_bytes() for file in sorted(folder.iterdir())]
    return lambda: [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def one_core(folder: Path, num: int, arithmetic: recipes.Arithmetic, turns: int) -> None:
    """Both sides, from bytes to tensors, and the part of ours that workers do."""
    torch.set_num_threads(1)
    loader = loader_of(folder, num, arithmetic)
    eager = loader_of(folder, num, recipes.EAGER)
    rows, epochs = torch.arange(num), torch.zeros(num, dtype=torch.int64)
    contestants: dict[str, Callable[[], object]] = {
        "lightly": lightly_views(folder),
        "byol": lambda: loader.batch_of(rows, epochs),
        "byol, no compiler": lambda: eager.batch_of(rows, epochs),
        "byol, the workers' part": lambda: loader.crops(rows, epochs),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, call in contestants.items():
            took = seconds(call)
            if turn:  # the first one warms up
                taken[name].append(took / num)
    lightly = statistics.median(taken["lightly"])
    for name, each in taken.items():
        per_image = statistics.median(each)
        print(f"  {name:26} {1e3 * per_image:7.2f} ms an image {1 / per_image:7.0f}/s {lightly / per_image:6.2f} x")


def null_step(folder: Path, arithmetic: recipes.Arithmetic, workers: int, batches: int = 12) -> None:
    """The loader's own rate: a step that takes no time."""
    made = loader_of(folder, 64, arithmetic, workers=workers).batches(0, batches)
    next(made)
    took = seconds(lambda: [None for _ in made])
    print(f"loader into a step that does nothing, {workers} workers: {64 * (batches - 1) / took:.0f} images/s")


def beside_training(folder: Path, options: Options, steps: int, turns: int) -> None:
    """A training step with data, as a share of the same step on one batch that is there already."""
    source = open_source(folder)
    with tempfile.TemporaryDirectory() as out:
        training = Training(plan(options, source, None), source, None, Path(out))
        training.module.train()
        rates: dict[str, list[float]] = {"bare": [], "with data": []}
        number = 0
        rows = torch.arange(training.run.batch_size)
        batch = training.loader.batch_of(rows, torch.zeros_like(rows))
        for turn in range(turns + 1):
            bare = seconds(lambda: [training.step(0, [batch]) for _ in range(steps)])
            made = training.loader.batches(number, number + 3 * steps)
            for _ in range(steps):  # until batches come as fast as they are made, none of them made beforehand
                training.step(0, [next(made)])
            full = seconds(lambda w=made: [training.step(0, [next(w)]) for _ in range(steps)])
            del made  # and with it the workers
            number += 3 * steps
            if turn:
                rates["bare"].append(steps * training.run.batch_size / bare)
                rates["with data"].append(steps * training.run.batch_size / full)
    bare, full = (statistics.median(rates[name]) for name in rates)
    shares = [b / a for a, b in zip(*rates.values(), strict=True)]
    structure = f"{training.run.backbone} {training.run.backbone_args or ''}, {options.workers} workers"
    print(f"{structure}: bare {bare:.1f} images/s, with data {full:.1f}, {statistics.median(shares):.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="of 500 x 375 px")
    parser.add_argument("--quality", type=int, default=75, help="of the JPEGs; Pillow's own default is 75")
    parser.add_argument("--part", choices=("views", "loader", "training"), help="one part alone")
    arguments = parser.parse_args()
    keep_memory()
    threads = torch.get_num_threads()
    arithmetic = recipes.compiled((BYOL_T, BYOL_T_PRIME), 3, 224, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place) / "small", Path(place) / "large"
        if arguments.part in (None, "views"):
            for folder, (height, width, num) in ((small, (375, 500, arguments.images)), (large, (3000, 4000, 4))):
                print(
                    f"{width} x {height} px, {write(folder, height, width, num, arguments.quality):.0f} KB, one core:"
                )
                one_core(folder, num, arithmetic, arguments.turns)
        torch.set_num_threads(threads)
        many = Path(place) / "many"
        write(many, 375, 500, 512, arguments.quality)
        if arguments.part in (None, "loader"):
            for workers in (0, 1):
                null_step(many, arithmetic, workers)
        if arguments.part in (None, "training"):
            base = Options(backbone="resnet18", batch_size=32, steps=10**5, hold_out=0.0, image_size=224)
            for channels in ([8, 16, 32, 64], [16, 32, 64, 128], [32, 64, 128, 256]):
                structure = {"layers": [1, 1, 1, 1], "channels": channels}
                for workers in (0, 1):
                    beside_training(many, replace(base, backbone_args=structure, workers=workers), 8, arguments.turns)


if __name__ == "__main__":
    main()
