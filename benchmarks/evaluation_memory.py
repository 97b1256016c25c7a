"""Memory that evaluation takes beyond files, with as many features as a large data set has.

    .venv/bin/python benchmarks/evaluation_memory.py --images 1000000 --features 2048

Features of clusters with noise go through the cache, as an encoder's would, and then through the protocols that read
features. Printed is, of each step, the most memory that the process held that is not backed by a file: pages of the
mapped features are given back when others need them. Needs 14 bytes of disk a value while the features are written.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from byol.diagnose import effective_rank
from byol.evaluate.cache import FeatureCache, cached_features
from byol.evaluate.fewshot import fit_fewshot
from byol.evaluate.knn import weighted_knn
from byol.evaluate.linear import fit_linear
from byol.evaluate.suggest import suggest

QUERIES = 1000
"""Test images of kNN: it reads them in blocks, so that more take time and no memory."""
STATUS = Path("/proc/self/status")


def held_bytes() -> int:
    """Of this process, without pages of files. Linux."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))


def most_held(work: Callable[[], object]) -> tuple[int, float]:
    """(most bytes held while it works, looked at every 20 ms; seconds)."""
    most, over = held_bytes(), threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, held_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    start = time.perf_counter()
    try:
        work()
    finally:
        over.set()
        looking.join()
    return most, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument(
        "--penalties", type=float, nargs="+", default=[1e5, 1e4], help="Of the linear fit: each takes time."
    )
    arguments = parser.parse_args()
    num, dim = arguments.images, arguments.features
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(arguments.classes, dim, generator=generator)
    labels = torch.randint(arguments.classes, (num,), generator=generator).numpy()

    def batches() -> Iterator[Tensor]:
        for rows in np.array_split(labels, max(1, num // 1024)):
            yield (centres[rows] + 4 * torch.randn(len(rows), dim, generator=generator)).relu()

    with tempfile.TemporaryDirectory() as folder:
        cache, found = FeatureCache(Path(folder), limit_bytes=1 << 50), {}

        def write() -> None:
            found["x"] = cached_features(cache, "0" * 64, num, batches())

        def knn() -> None:
            weighted_knn(found["x"], torch.from_numpy(labels), found["x"][:QUERIES])

        steps: dict[str, Callable[[], object]] = {
            "features, written and mapped": write,
            f"kNN, {QUERIES:,} queries": knn,
            "few-shot": lambda: fit_fewshot(found["x"], labels),
            "images worth labelling first": lambda: suggest(found["x"], 50, seed=0),
            "effective rank": lambda: effective_rank(torch.from_numpy(np.array(found["x"][:2048]))),
            f"linear, {len(arguments.penalties)} penalties": lambda: fit_linear(
                found["x"], labels, penalties=arguments.penalties
            ),
        }
        print(f"{num:,} x {dim:,} features, {arguments.classes} classes; {held_bytes() / 2**30:.2f} GiB at the start")
        print("| step | most memory, GiB | seconds |\n| --- | --- | --- |")
        for name, work in steps.items():
            held, seconds = most_held(work)
            print(f"| {name} | {held / 2**30:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
