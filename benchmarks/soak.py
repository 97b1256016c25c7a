"""An hour of training with looks, checkpoints and logs all the time: do memory, file handles and threads stay?

    python benchmarks/soak.py --minutes 60 [--images FOLDER] [--workers 1] --json soak.json

Trains on JPEG files, decoded anew for each step (its own by default: 800 of the digits, enlarged), looks at held-out
images and saves a checkpoint every 10 steps, and samples the process and its workers twice a minute: resident memory,
open files and threads, from /proc (Linux). Prints the samples' course and the slope of each, in a straight line fitted
to all but the first tenth.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("memory_mb", "files", "threads", "processes")


def make_images(folder: Path, num: int = 800) -> None:
    from PIL import Image

    from byol.data.arrays import digits

    images, _ = digits()
    generator = np.random.default_rng(0)
    for i, row in enumerate(generator.permutation(len(images))[:num]):
        side = int(generator.integers(150, 300))
        Image.fromarray(images[row][..., 0]).convert("RGB").resize((side, side + 20)).save(folder / f"{i:04}.jpg")


def train(images: str, out: str, workers: int, minutes: float) -> None:
    from byol import pipeline
    from byol.options import Options
    from byol.train import LOG_EVERY_STEPS

    plan = pipeline.plan

    def often(*arguments: Any) -> Any:
        run = plan(*arguments)
        return replace(run, evaluate_every_steps=LOG_EVERY_STEPS, checkpoint_every_steps=LOG_EVERY_STEPS)

    pipeline.plan = often
    options = Options(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]},
        image_size=64,
        batch_size=32,
        workers=workers,
        method_args={"hidden": 128, "out": 32},
        budget=minutes * 60,
    )
    pipeline.pretrain(images, out, options)


def sample(process: int) -> dict[str, float]:
    """Of a process and those that it started."""
    found = dict.fromkeys(NAMES, 0.0)
    for number in (process, *_children(process)):
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{number}/status").read_text().splitlines())
            found["memory_mb"] += int(status["VmRSS"].split()[0]) / 1024
            found["threads"] += int(status["Threads"])
            found["files"] += len(os.listdir(f"/proc/{number}/fd"))  # noqa: PTH208
            found["processes"] += 1
        except (OSError, KeyError):  # it has just ended
            continue
    return found


def _children(process: int) -> list[int]:
    try:
        direct = [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return direct + [each for child in direct for each in _children(child)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--images", help="a folder of images, in place of the digits")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        if given.images is None:
            (place / "images").mkdir()
            make_images(place / "images")
        out = place / "run"
        arguments = (given.images or str(place / "images"), str(out), given.workers, given.minutes)
        process = multiprocessing.get_context("spawn").Process(target=train, args=arguments)
        process.start()
        assert process.pid is not None
        samples = []
        began = time.monotonic()
        while process.is_alive():
            if (out / "metrics.jsonl").exists() and not (out / "backbone.safetensors").exists():
                samples.append({"minutes": (time.monotonic() - began) / 60, **sample(process.pid)})
            process.join(30 if given.minutes > 5 else 2)
        if process.exitcode:
            raise SystemExit(process.exitcode)
        steps = json.loads((out / "run.json").read_text())["total_steps"]
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    finally:
        shutil.rmtree(place)
    samples = [each for each in samples if each["processes"]]
    looks = sum("held_out/std" in line for line in lines)
    print(f"{steps:,} steps, {looks:,} looks, {steps // 10:,} checkpoints in {samples[-1]['minutes']:.0f} minutes")
    kept = samples[len(samples) // 10 :]
    table = np.array([[each[name] for name in ("minutes", *NAMES)] for each in kept])
    print("| | " + " | ".join(NAMES) + " |\n|" + " --- |" * (len(NAMES) + 1))
    for share in (0, 0.25, 0.5, 0.75, 1):
        row = table[round(share * (len(table) - 1))]
        print(f"| after {row[0]:.0f} min | " + " | ".join(f"{value:.0f}" for value in row[1:]) + " |")
    slopes = np.polyfit(table[:, 0] / 60, table[:, 1:], 1)[0]
    print("| slope, an hour | " + " | ".join(f"{value:+.2f}" for value in slopes) + " |")
    if given.json is not None:
        found = {"steps": steps, "looks": looks, "slopes": dict(zip(NAMES, slopes.tolist(), strict=True))}
        given.json.write_text(json.dumps({**found, "samples": samples}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
