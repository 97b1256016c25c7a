"""BYOL against time: kNN on CIFAR-10's test images after so many minutes of training, beside lightly, on one machine.

    .venv/bin/python -m pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python benchmarks/race.py CIFAR10 --out DIR

CIFAR10 is a folder with train.parquet and test.parquet. One small ResNet for all; four sides, each a process:

- lightly: its BYOL example for CIFAR-10 (its transform, heads, loss, momentum update and schedule; SGD at 0.06);
- lightly, bf16 + channels_last: the same with precision and memory format switched by hand;
- byol: `byol pretrain CIFAR10 --recipe cifar10_two_cores --budget 20m`;
- byol, lightly's recipe: the same command with the settings of that example, so that speed and recipe can be told
  apart (heads and first convolution are drawn as BYOL's code does).

The sides take turns of half a minute, in a new order each round, so that what else the machine does meets all alike;
those that wait are stopped. The clock of a side runs while it is its turn, from the reading of the data on; looks at
the test images are off the clock. While DIR/pause exists nobody's turn begins. A seed that is done is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIDES = ("lightly", "lightly, bf16 + channels_last", "byol", "byol, lightly's recipe")
COLOURS = ("#c8553d", "#e0a08f", "#0b7a75", "#7fb8b4")
BANK = 20_000
"""Training images that the test images are compared with."""
LIGHTLY_RECIPE = {
    "optimizer": "sgd",
    "base_lr": 0.015,  # its loss is a quarter of BYOL's, which adds both directions of 2 - 2 cos
    "weight_decay": 0,
    "final_lr": 1.0,
    "warmup_steps": 0,
    "tau": 0.996,
    "target_init": "copy",
    "hidden": 1024,
    "out": 256,
    "encoder_init": "timm",
    "batch_size": 256,
    "hold_out": 0.0,
    "view.style": "torchvision",
    "view.crop_area": (0.08, 1.0),
}


def _answer(found: dict[str, float]) -> None:
    print(json.dumps(found), file=sys.__stdout__, flush=True)


class Turns:
    """The clock of a side, which stands still between its turns; also what `byol` is given for the module `time`."""

    def __init__(self) -> None:
        self.allowed = 0.0
        self._stood = 0.0
        self.look: Callable[[], float] = float
        self.wait()

    def perf_counter(self) -> float:
        return time.perf_counter() - self._stood

    def wait(self) -> None:
        """Until the next turn; meanwhile answers."""
        began = time.perf_counter()
        if self.allowed:
            _answer({"seconds": self.perf_counter() - self.began})
        for line in sys.stdin:
            word, _, amount = line.strip().partition(" ")
            if word == "go":
                self.allowed += float(amount)
                break
            _answer({"knn": self.look()})
        else:
            sys.exit()
        self._stood += time.perf_counter() - began
        if not hasattr(self, "began"):
            self.began = self.perf_counter()

    def between_steps(self) -> None:
        if self.perf_counter() - self.began >= self.allowed:
            self.wait()


class Judge:
    """Weighted kNN (k=200, as in lightly's benchmark) on plain images, in float32, the same for all."""

    def __init__(self, folder: Path) -> None:
        from byol.data.loader import Normalization, load_pixels
        from byol.data.open import open_source
        from byol.views.view import IMAGENET_MEAN, IMAGENET_STD

        def read(name: str) -> tuple[Tensor, Tensor]:
            source, pixels, _ = load_pixels(open_source(folder / name))
            return pixels, torch.from_numpy(source.labels)  # type: ignore[return-value, arg-type]

        normalize = Normalization(IMAGENET_MEAN, IMAGENET_STD)
        self._plain = lambda pixels: normalize.in_place(pixels.float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        (bank, bank_labels), self.test = read("train.parquet"), read("test.parquet")
        rows = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:BANK]
        self.bank = bank[rows], bank_labels[rows]

    @torch.no_grad()
    def look(self, encoder: nn.Module) -> float:
        from byol.evaluate.knn import weighted_knn

        training = encoder.training
        encoder.eval()
        features = [
            torch.cat([encoder(self._plain(part)) for part in images.split(500)])
            for images, _ in (self.bank, self.test)
        ]
        encoder.train(training)
        found = weighted_knn(features[0], self.bank[1], features[1], k=200, temperature=0.1)
        return float((found == self.test[1]).float().mean())


def byol(side: str, folder: Path, seed: int, minutes: float, out: Path, workers: int) -> None:
    from byol import cli, journal, pipeline, train
    from byol.experiments import cifar10_two_cores
    from byol.step import Gradients

    judge = Judge(folder)
    turns = Turns()
    train.time = journal.time = pipeline.time = turns  # type: ignore[attr-defined, assignment]
    own_passes = train.Training.passes

    def passes(training: train.Training, number: int, micro: list[Any]) -> Gradients:
        turns.look = lambda: judge.look(training.method.encoder)
        if side != "byol":
            for group in training.optimizer.param_groups:
                group["momentum"] = 0.0
        turns.between_steps()
        return own_passes(training, number, micro)

    train.Training.passes = passes  # type: ignore[method-assign]
    blocks = (cifar10_two_cores().backbone_args or {}) | {"zero_init_last": False}
    recipe = {} if side == "byol" else LIGHTLY_RECIPE | {"backbone_args": blocks}
    settings = [part for name, value in recipe.items() for part in ("--set", f"{name}={value}")]
    command = ["pretrain", str(folder), "--out", str(out), "--recipe", "cifar10_two_cores", "--budget", f"{minutes}m"]
    with contextlib.redirect_stdout(sys.stderr):
        cli.app([*command, "--seed", str(seed), *settings], standalone_mode=False)
    seconds = turns.perf_counter() - turns.began
    run = json.loads((out / "run.json").read_text("utf-8"))
    _answer({"seconds": seconds, "images": run["total_steps"] * run["batch_size"], "knn": turns.look()})


def lightly(side: str, folder: Path, seed: int, minutes: float, out: Path, workers: int) -> None:
    import timm
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule
    from PIL import Image

    from byol.data.loader import load_pixels
    from byol.data.open import open_source
    from byol.experiments import cifar10_two_cores

    torch.manual_seed(seed)
    backbone = cifar10_two_cores().backbone_args or {}

    class BYOL(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("resnet18", num_classes=0, zero_init_last=False, **backbone)
            self.projection_head = BYOLProjectionHead(self.backbone.num_features, 1024, 256)
            self.prediction_head = BYOLPredictionHead(256, 1024, 256)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)

        def forward(self, x: Tensor) -> Tensor:
            return self.prediction_head(self.projection_head(self.backbone(x)))

        def forward_momentum(self, x: Tensor) -> Tensor:
            return self.projection_head_momentum(self.backbone_momentum(x)).detach()

    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=32, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=32, gaussian_blur=0.0),
    )

    class Data(torch.utils.data.Dataset):
        def __init__(self, pixels: Tensor) -> None:
            self.images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, i: int) -> Any:
            return transform(self.images[i])

    judge = Judge(folder)
    turns = Turns()
    pixels = load_pixels(open_source(folder / "train.parquet"))[1]
    assert pixels is not None
    switched = side != "lightly"
    layout = {"memory_format": torch.channels_last} if switched else {}
    model = BYOL().to(**layout)
    turns.look = lambda: judge.look(model.backbone)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    loader = torch.utils.data.DataLoader(
        Data(pixels), batch_size=256, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )

    def batches() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    images = 0
    for x0, x1 in batches():
        share = (turns.perf_counter() - turns.began) / (60 * minutes)
        if share >= 1:
            break
        turns.between_steps()
        x0, x1 = x0.to(**layout), x1.to(**layout)
        # Its example counts epochs; in a race of few epochs the same cosine goes by the share of the time.
        momentum = cosine_schedule(int(1000 * share), 1001, 0.996, 1)
        update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
        with torch.autocast("cpu", torch.bfloat16, enabled=switched):
            p0, z0 = model(x0), model.forward_momentum(x0)
            p1, z1 = model(x1), model.forward_momentum(x1)
            loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        images += len(x0)
    seconds = turns.perf_counter() - turns.began
    _answer({"seconds": seconds, "images": images, "knn": turns.look()})


class Racer:
    """A side in a process of its own, stopped between its turns."""

    def __init__(self, side: str, arguments: argparse.Namespace, seed: int) -> None:
        own = [
            sys.executable,
            __file__,
            str(arguments.data),
            "--out",
            str(arguments.out / f"seed-{seed}" / side),
            "--side",
            side,
        ]
        own += ["--seed", str(seed), "--minutes", str(arguments.minutes), "--workers", str(arguments.workers)]
        pipe = subprocess.PIPE
        errors = (arguments.out / f"seed-{seed}" / f"{side}.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(own, stdin=pipe, stdout=pipe, stderr=errors, text=True, start_new_session=True)
        self.curve: list[dict[str, float]] = []
        self.done = False

    def turn(self, seconds: float, every: float) -> bool:
        """A turn, and a look at each `every` seconds of training; returns whether there was one."""
        self._signal(signal.SIGCONT)
        found = self._ask(f"go {seconds}")
        self.done = "images" in found
        if not self.done and found["seconds"] // every > (self.curve[-1]["seconds"] // every if self.curve else 0):
            found |= self._ask("look")
        if "knn" in found:
            self.curve.append(found)
        if not self.done:
            self._signal(signal.SIGSTOP)
        return "knn" in found

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self._process.wait()

    def _ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a side ended; see its .log: {self._process.args}")
        return dict(json.loads(answer))

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)


def race(arguments: argparse.Namespace, seed: int) -> dict[str, list[dict[str, float]]]:
    (arguments.out / f"seed-{seed}").mkdir(parents=True, exist_ok=True)
    racers = {side: Racer(side, arguments, seed) for side in SIDES}
    order = random.Random(seed)
    every = 60 * arguments.minutes / arguments.looks
    try:
        while running := [side for side in SIDES if not racers[side].done]:
            order.shuffle(running)
            for side in running:
                while (arguments.out / "pause").exists():
                    time.sleep(1)
                if racers[side].turn(arguments.turn, every):
                    last = racers[side].curve[-1]
                    print(
                        f"seed {seed}: {side}: {last['seconds'] / 60:.1f} min, kNN {last['knn']:.4f}", file=sys.stderr
                    )
        return {side: racer.curve for side, racer in racers.items()}
    finally:
        for racer in racers.values():
            racer.end()


def raw_pixels(folder: Path) -> float:
    judge = Judge(folder)
    return judge.look(nn.Flatten())


def report(
    found: list[dict[str, list[dict[str, float]]]], pixels: float, minutes: float, looks: int, out: Path
) -> None:
    """The table, the two claims, and the plot."""
    from byol.pictures.figure import _FAINT, _INK, _figure, _quiet

    marks = [minutes * (i + 1) / looks for i in range(looks)]

    def at(curve: list[dict[str, float]], mark: float) -> float:
        """The look nearest to a time."""
        return min(curve, key=lambda point: abs(point["seconds"] / 60 - mark))["knn"]

    means = {side: [statistics.mean(at(seed[side], m) for seed in found) for m in marks] for side in SIDES}
    print("| minutes | " + " | ".join(SIDES) + " |")
    print("| --- |" + " --- |" * len(SIDES))
    for i, mark in enumerate(marks):
        print(f"| {mark:g} | " + " | ".join(f"{means[side][i]:.3f}" for side in SIDES) + " |")
    for side in SIDES:
        last = [seed[side][-1] for seed in found]
        rates = ", ".join(f"{p['images'] / p['seconds']:.0f}" for p in last)
        print(f"{side}: {rates} images/s; ended after " + ", ".join(f"{p['seconds'] / 60:.2f}" for p in last) + " min")
    for rival in SIDES[:2]:
        ahead = all(
            a > b for mark, a, b in zip(marks, means["byol"], means[rival], strict=True) if mark > 0.1 * minutes
        )
        when = next((m for m, value in zip(marks, means["byol"], strict=True) if value >= means[rival][-1]), None)
        print(
            f"byol ahead of {rival} at every look after the first tenth: {ahead}; has its last value after {when} min"
        )
    figure = _figure(7.2, 3.6)
    axes = figure.subplots()
    for side, colour in zip(SIDES, COLOURS, strict=True):
        for seed in found:
            axes.plot(
                [p["seconds"] / 60 for p in seed[side]], [p["knn"] for p in seed[side]], color=colour, lw=0.7, alpha=0.5
            )
        axes.plot(marks, means[side], color=colour, lw=2)
    axes.axhline(pixels, color=_FAINT, lw=1, ls=":")
    axes.set_xlim(0, minutes)
    axes.set_xticks([mark for mark in (0.0, *marks) if mark % (minutes / 5) == 0])
    low, high = axes.get_ylim()
    ends = [(means[side][-1], side, colour) for side, colour in zip(SIDES, COLOURS, strict=True)]
    at_least = low
    for value, name, colour in sorted([*ends, (pixels, "raw pixels", _FAINT)]):
        at_least = max(value, at_least + 0.055 * (high - low))  # else the names hide each other
        where = {"xytext": (minutes * 1.01, at_least), "annotation_clip": False, "va": "center", "fontsize": 9}
        axes.annotate(name, (minutes, value), color=colour, **where)
    axes.set_xlabel("minutes of training on two CPU cores", color=_INK)
    axes.set_ylabel("kNN top-1 on CIFAR-10", color=_INK)
    _quiet(axes)
    figure.savefig(out / "race.png", dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20, help="of training, each side")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--turn", type=float, default=30, help="seconds")
    parser.add_argument("--looks", type=int, default=10)
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes of lightly's DataLoader; 1, 2 and 4 were not faster on 2 cores",
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = byol if arguments.side.startswith("byol") else lightly
        run(arguments.side, arguments.data, arguments.seed, arguments.minutes, arguments.out, arguments.workers)
        return
    found = []
    for seed in range(arguments.seeds):
        kept = arguments.out / f"seed-{seed}.json"
        how = {name: getattr(arguments, name) for name in ("minutes", "turn", "looks", "workers")}
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            curves = race(arguments, seed)
            kept.write_text(json.dumps({"how": how, "curves": curves}, indent=1) + "\n", "utf-8")
        known = json.loads(kept.read_text("utf-8"))
        if known["how"] != how:
            parser.error(f"{kept} is of a race with {known['how']}; choose another --out")
        found.append(known["curves"])
    report(found, raw_pixels(arguments.data), arguments.minutes, arguments.looks, arguments.out)


if __name__ == "__main__":
    main()
