"""The default settings beside their neighbours: short runs on real images that differ in one setting each.

    .venv/bin/python benchmarks/defaults.py digits
    .venv/bin/python benchmarks/defaults.py CIFAR10 --steps 800 --only "learning rate" tau

Network and views are those of the demo, for other data those of the CIFAR-10 recipe; all else follows the rules of
docs/defaults.md. A quarter of the training images, at most 1,024, is never trained on and gives the scores. The test
part is not touched. Two to four minutes a row on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol.data.loader import load_pixels, split_hold_out
from byol.data.open import open_source
from byol.data.source import Source
from byol.evaluate.features import extract
from byol.evaluate.fewshot import fewshot_evaluation
from byol.evaluate.images import evaluation_batches
from byol.evaluate.labelled import labelled_of
from byol.evaluate.labelled import load as load_part
from byol.evaluate.linear import linear_evaluation
from byol.experiments import cifar10_two_cores, digits_demo
from byol.export import load
from byol.options import Options
from byol.pipeline import Silent, pretrain

SHARE = 0.25
MOST_FITTED = 4_000
"""Images the classifiers are fitted to."""


def rows(base: Options, steps: int) -> Iterator[tuple[str, Options]]:
    def changed(**changes: Any) -> Options:
        return replace(base, **changes)

    yield "the rules", base
    yield "learning rate halved", changed(base_lr=0.002 / 2 * 2**0.5)
    yield "learning rate doubled", changed(base_lr=0.002 * 2 * 2**0.5)
    yield "tau 0.8", changed(method_args={"tau": 0.8})
    yield "tau 0.97", changed(method_args={"tau": 0.97})
    yield "tau 0.99", changed(method_args={"tau": 0.99})
    yield "warm-up 2 % of the steps", changed(warmup_steps=round(0.02 * steps))
    yield "warm-up 30 % of the steps", changed(warmup_steps=round(0.3 * steps))
    yield "batch 64, twice the steps", changed(batch_size=64, steps=2 * steps)
    yield "batch 256, half the steps", changed(batch_size=256, steps=steps // 2)
    yield "weight decay 0.05", changed(weight_decay=0.05)
    yield "heads 2,048-256", changed(method_args={"hidden": 2048, "out": 256})
    yield "heads 512-64", changed(method_args={"hidden": 512, "out": 64})
    yield "SGD, learning rate 0.2", changed(optimizer="sgd", base_lr=0.2)
    yield "LARS, learning rate 2, weight decay 1e-6", changed(optimizer="lars", base_lr=2.0, weight_decay=1e-6)


def scores(directory: Path, source: Source) -> dict[str, float]:
    encoder = load(directory)
    normalisation = json.loads((directory / "backbone.json").read_text("utf-8"))["normalization"]
    features, labels = [], []
    for part in split_hold_out(source, SHARE, 0):
        assert part is not None and part.labels is not None
        part = part.subset(np.random.default_rng(0).permutation(len(part))[:MOST_FITTED])
        images = load_part(labelled_of(part))
        mean, std = normalisation["mean"], normalisation["std"]
        batches = list(evaluation_batches(images.source, images.pixels, encoder.spec.image_size))
        features.append(extract(encoder, (batch for _, batch in batches), mean=mean, std=std, size=None))
        labels.append(torch.from_numpy(images.labels)[torch.cat([rows for rows, _ in batches])])
    (train_x, test_x), (train_y, test_y) = features, labels
    return {
        "few-shot": fewshot_evaluation(train_x, train_y, test_x, test_y).accuracy,
        "linear": linear_evaluation(train_x, train_y, test_x, test_y).accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="`digits`, or labelled images that `byol pretrain` takes")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="rows whose names hold one of these")
    arguments = parser.parse_args()
    recipe = digits_demo() if arguments.data == "digits" else cifar10_two_cores()
    base = Options(
        backbone=recipe.backbone,
        backbone_args=recipe.backbone_args,
        stem=recipe.stem,
        image_size=recipe.image_size,
        views=recipe.views,
        batch_size=128,
        steps=arguments.steps,
        hold_out=SHARE,
        device="cpu",
    )
    source, _, _ = load_pixels(open_source(arguments.data))
    print("| change | ms a step | rank | kNN | few-shot | linear |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for name, options in rows(base, arguments.steps):
        if arguments.only and not any(words in name for words in arguments.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = pretrain(arguments.data, Path(folder) / "run", options, observer=Silent())
            milliseconds = (time.perf_counter() - started) / run.total_steps * 1e3
            lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
            last = next(line for line in reversed(lines) if "held_out/knn" in line)
            found = scores(Path(folder) / "run", source)
        rank, knn = last["held_out/effective_rank"], last["held_out/knn"]
        figures = " | ".join(f"{value:.3f}" for value in (knn, *found.values()))
        print(f"| {name} | {milliseconds:.0f} | {rank:.0f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
