"""How time and memory grow with the batch, the image's side, the number of images, and processes.

    .venv/bin/python benchmarks/growth.py [--part batch|size|ids|processes]

A network of four blocks (byol's own choice on a CPU), random images. Each row is measured in a process of its own. Ids
are synthetic: a listing of arrays that are not there, up to ten million.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def random_source(folder: Path, num: int, side: int) -> Path:
    path = folder / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8))
    return path


def step(batch_size: int, side: int) -> dict[str, float]:
    """Seconds of a step with its views, and what it adds to the process's memory."""
    from byol.data.loader import load_pixels
    from byol.data.open import open_source
    from byol.machine import process_memory
    from byol.options import Options
    from byol.plan import plan
    from byol.train import Training

    with tempfile.TemporaryDirectory() as folder:
        path = random_source(Path(folder), max(2 * batch_size, 64), side)
        source, pixels = open_source(path), None
        if side <= 64:
            source, pixels, _ = load_pixels(source)
        options = Options(image_size=side, batch_size=batch_size, steps=100, hold_out=0.0, workers=0)
        training = Training(plan(options, source, pixels), source, pixels, Path(folder))
        before = process_memory() or 0
        training.module.train()
        batches, taken = training.loader.batches(0, 100), list[float]()
        while len(taken) < 4 or (sum(taken[1:]) < 5 and len(taken) < 20):
            began = time.perf_counter()
            training.step(len(taken), [next(batches)])
            taken.append(time.perf_counter() - began)
        seconds = statistics.median(taken[1:])
        return {"seconds": seconds, "images/s": batch_size / seconds, "MiB": ((process_memory() or 0) - before) / 2**20}


class Nowhere:
    """A listing of images that nobody reads."""

    def header(self, position: int) -> tuple[int, int, int]:
        return 256, 256, 3

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        raise NotImplementedError

    def name(self, position: int) -> str:
        return f"image {position}"


def ids(num: int, streams: int) -> dict[str, float]:
    """Seconds to the first positions of an epoch and to those of a later batch, and what that adds to memory."""
    from byol.data.loader import Loader, Normalization, split_hold_out
    from byol.data.source import Source
    from byol.machine import process_memory
    from byol.views.view import BYOL_T

    before, began = process_memory() or 0, time.perf_counter()
    source = Source(
        name="nowhere",
        num_listed=num,
        fingerprint="",
        ids=np.arange(num),
        labels=np.arange(num) % 1000,
        channels=3,
        height=256,
        width=256,
        uniform=True,
        skipped=(),
        sizes=np.full((num, 2), 256, np.int32),
        listing=Nowhere(),
        unit_starts=np.arange(0, num, 100) if streams else None,
    )
    training, _ = split_hold_out(source, 0.05, 0)
    loader = Loader(training, (BYOL_T, BYOL_T), pixels=None, size=224, batch_size=256, seed=0, streams=streams,
                    normalization=Normalization((0.5,) * 3, (0.2,) * 3))  # fmt: skip
    opened = time.perf_counter() - began
    began = time.perf_counter()
    loader.order(loader.positions(0))
    first = time.perf_counter() - began
    taken = []
    for number in range(1, 101):
        began = time.perf_counter()
        loader.order(loader.positions(number))
        taken.append(time.perf_counter() - began)
    found = {"opened, s": opened, "first batch, s": first, "later batch, ms": 1000 * statistics.median(taken)}
    return found | {"MiB": ((process_memory() or 0) - before) / 2**20}


def processes(world: int) -> dict[str, float]:
    """Images/s of a run by so many processes of one thread each, all together, and the memory of the first."""
    with tempfile.TemporaryDirectory() as folder:
        path = random_source(Path(folder), 512, 32)
        own = ["-m", "byol", "pretrain", str(path), "--out", f"{folder}/run", "--steps", "20", "--batch-size", "128"]
        own += ["--hold-out", "0", "--device", "cpu"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world))}
        subprocess.run([*launcher, *own], check=True, capture_output=True, env=environment)
        last = json.loads(Path(folder, "run", "metrics.jsonl").read_text().splitlines()[-1])
        return {"images/s": last["images_per_second"], "MiB": last["peak_memory_bytes"] / 2**20}


PARTS: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "batch": (step, [(n, 32) for n in (16, 64, 256, 1024)]),
    "size": (step, [(32, side) for side in (32, 64, 128, 224)]),
    "ids": (ids, [(10**k, streams) for streams in (0, 64) for k in (4, 5, 6, 7)]),
    "processes": (processes, [(1,), (2,)]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(PARTS[arguments.part][0](*json.loads(arguments.row))))
        return
    for part in [arguments.part] if arguments.part else PARTS:
        for row in PARTS[part][1]:
            own = [sys.executable, __file__, "--part", part, "--row", json.dumps(row)]
            found = subprocess.run(own, capture_output=True, text=True, check=True)
            numbers = json.loads(found.stdout.splitlines()[-1])
            print(part, *row, ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()), flush=True)


if __name__ == "__main__":
    main()
