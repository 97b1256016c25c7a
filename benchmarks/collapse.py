"""How good is the collapse alarm? Runs with and without a collapse, and when the alarm heard of it.

    .venv/bin/python benchmarks/collapse.py --make PHOTOGRAPHS    # trains what benchmarks/results/collapse.jsonl lacks
    .venv/bin/python benchmarks/collapse.py --fix                 # thresholds, on the first half of the runs
    .venv/bin/python benchmarks/collapse.py --score 0             # the table, on the second half; 1, 2: on fresh runs
    .venv/bin/python benchmarks/collapse.py --instead             # other rules on all runs but those
    .venv/bin/python benchmarks/collapse.py --picture FILE.png

PHOTOGRAPHS is a data set with labels, CIFAR-10 say, of which 4,000 images are used; the digits are byol's own. Stated
before anything was scored:

- A look counts from the end of the warm-up on, and not before `byol.diagnose.SETTLED_STEPS`, for what follows and for
  the alarm alike. Before that a healthy network without batch norm on its output has next to no std, and the rank of a
  random network, by which no later one should be judged.
- A run collapses at the first look that counts where std < 0.3 / sqrt(d), or where the effective rank or the kNN
  accuracy is below half of its highest value at the looks that count so far. kNN needs labels and is for this alone:
  the alarm sees none. By std the collapse is complete, by rank dimensional, by kNN alone one of the features.
- The alarm is the first look whose verdict is "collapsed".
- A miss is a spoiled run that collapses and has no alarm to its end. A false alarm is one in a run of a method as it
  is, whatever it reads; in a spoiled run before it was spoiled; or in a spoiled run that does not collapse. Delay is
  the step of the alarm less that of the collapse, below 0 where the alarm came first.
- A method as it is that collapses by the letter is listed, and no miss. This was decided on the first half, which has
  two, on photographs: their rank goes on coming down from that of random weights, while kNN does not fall.
- Halves: of the runs of seed 0, those of one method that are as they are, and those that are spoiled, are each put in
  the order of the SHA-256 of their names; every other one belongs to the first half, from the first or the second on as
  the SHA-256 of what they share is even or odd. The alarm was changed twice after it had been scored, on the other half
  and on the runs of seed 1, each time by what the first half says. The runs of seed 2 were made after that, and scored
  once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from byol import diagnose, methods
from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.diagnose import SETTLED_STEPS, Health, verdict
from byol.experiments.small import digits_minute
from byol.names import METHODS
from byol.options import Options
from byol.pictures.figure import _FAINT, _INK, _figure, _quiet
from byol.pipeline import pretrain
from byol.run import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from collapses import CAUSES, spoiled

RECORDS = Path(__file__).parent / "results" / "collapse.jsonl"
STEPS, MID_RUN, SIDE, BATCH = 240, 100, 20, 64
NUMBERS = [field.name for field in fields(Health)]

FROM_START = (
    "no predictor",
    "grey views",
    "no stop-gradient",
    "redundancy alone",
    "no variance",
    "no covariance",
    "no negatives",
    "tau 0",
    "nothing to contrast",
    "own memory alone",
)
LEFT_OUT = ("invariance alone", "no invariance")  # as "no variance", and in tests/test_collapse.py
PICTURED = {
    "digits, byol, seed 0": "BYOL as it is",
    "digits, byol, no predictor from 100, seed 0": "BYOL, no predictor",
    "digits, moco, tau 0 from 100, seed 0": "MoCo, tau 0",
    "digits, simclr, dead units from 100, seed 0": "SimCLR, dead units",
    "digits, vicreg, seed 0": "VICReg as it is",
    "digits, vicreg, no covariance from 100, seed 0": "VICReg, no covariance",
    "digits, simsiam, no stop-gradient from 100, seed 0": "SimSiam, no stop-gradient",
    "digits, byol, learning rate x 300 from 100, seed 0": "BYOL, learning rate x 300",
}
ON_PHOTOGRAPHS = ("no predictor", "no stop-gradient", "no covariance", "tau 0")
FRESH = ("BYOL, dead units", "SimSiam, grey views", "VICReg, learning rate x 300", "InstDisc, offset", "wrong pairs")
"""Causes of the fresh runs, of seeds 1 and 2, alone."""


@dataclass(frozen=True)
class Spec:
    data: str
    method: str
    cause: str | None
    switch: int | None
    """The step from which the cause acts; None without one."""
    seed: int

    @property
    def name(self) -> str:
        cause = f", {self.cause} from {self.switch}" if self.cause else ""
        return f"{self.data}, {self.method}{cause}, seed {self.seed}"


def planned() -> list[Spec]:
    runs = []
    for seed in (0, 1, 2):
        runs += [Spec(data, method, None, None, seed) for data in ("digits", "photographs") for method in METHODS]
        middle = [cause for cause in CAUSES if cause not in LEFT_OUT and (seed or cause not in FRESH)]
        for data, causes, switch in (
            ("digits", FROM_START, 0),
            ("photographs", ON_PHOTOGRAPHS, MID_RUN),
            ("digits", middle, MID_RUN),
        ):
            runs += [Spec(data, CAUSES[cause][0], cause, switch, seed) for cause in causes]
    return runs


def options(spec: Spec) -> Options:
    base = digits_minute()
    # The learning rate stays, as it nearly does in the middle of a long run: a cosine this short would end a collapse
    # by itself.
    common = {"image_size": SIDE, "batch_size": BATCH, "steps": STEPS, "seed": spec.seed, "final_lr": 1.0}
    if spec.data == "digits":
        views = base.views[: len(methods.get(spec.method).views)]
        return replace(base.for_method(spec.method), views=views, **common)
    network = {"backbone": base.backbone, "backbone_args": base.backbone_args, "stem": base.stem}
    return Options(method=spec.method, **network, **common)


def photographs(path: str, folder: Path) -> Path:
    """The first 4,000 images of a data set and their labels, as a file of their own."""
    source = open_source(path)
    source, pixels, _ = load_pixels(source.subset(np.arange(4000)))
    images = pixels.permute(0, 2, 3, 1).numpy()
    np.savez(folder / "photographs.npz", images=images, labels=source.labels)
    return folder / "photographs.npz"


def make(path: str, only: str) -> None:
    torch.set_num_threads(1)
    done = {record["run"] for record in read()}
    with tempfile.TemporaryDirectory() as folder:
        data = {"digits": "digits", "photographs": str(photographs(path, Path(folder)))}
        for spec in planned():
            if spec.name in done or only not in spec.name:
                continue
            out = Path(folder, "run", spec.name)
            with spoiled(CAUSES[spec.cause][1], spec.switch) if spec.cause else nullcontext():
                pretrain(data[spec.data], out, options(spec))
            warmup_steps = Run.read(out / "run.json").warmup_steps
            record = {"run": spec.name} | asdict(spec) | {"warmup_steps": warmup_steps}
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | looks(out / "metrics.jsonl")) + "\n")
            print(spec.name, flush=True)


def looks(metrics: Path) -> dict[str, list[Any]]:
    """name -> its value at each look, the first one at step 0."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    lines = [line for line in lines if "held_out/verdict" in line]
    found: dict[str, list[Any]] = {"step": [line["step"] for line in lines]}
    for name in (*NUMBERS, "knn"):
        found[name] = [float(f"{line[f'held_out/{name}']:.5g}") for line in lines]
    return found | {"verdict": [line["held_out/verdict"] for line in lines]}


def read() -> list[dict[str, Any]]:
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text("utf-8").splitlines()]


def halves(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    strata: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        shared = f"{record['method']}, {'spoiled' if record['cause'] else 'as it is'}, seed {record['seed']}"
        strata.setdefault(shared, []).append(record)
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for stratum, own in sorted(strata.items()):
        for i, record in enumerate(sorted(own, key=lambda each: digest(each["run"]))):
            parts[(i + int(digest(stratum), 16)) % 2].append(record)
    return parts


def counting(record: dict[str, Any]) -> list[int]:
    """Which looks count."""
    settled = max(SETTLED_STEPS, record["warmup_steps"])
    return [i for i, step in enumerate(record["step"]) if step >= settled]


def collapse(record: dict[str, Any]) -> tuple[int, str] | None:
    """(step, kind) of the first look at which the run has collapsed."""
    rank = knn = 0.0
    for i in counting(record):
        rank, knn = max(rank, record["effective_rank"][i]), max(knn, record["knn"][i])
        for fallen, kind in (
            (record["std_ratio"][i] < 0.3, "complete"),
            (record["effective_rank"][i] < rank / 2, "dimensional"),
            (record["knn"][i] < knn / 2, "features"),
        ):
            if fallen:
                return record["step"][i], kind
    return None


Rule = Callable[[Sequence[Health]], bool]


def called(looks: Sequence[Health]) -> bool:
    """Whether the verdict is "collapsed", by the thresholds as they are now."""
    return verdict(looks) == "collapsed"


def alarm(record: dict[str, Any], rule: Rule) -> int | None:
    """The step of the first look at which the rule says so."""
    healths: list[Health] = []
    for i in counting(record):
        healths.append(Health(**{name: record[name][i] for name in NUMBERS}))
        if rule(healths):
            return record["step"][i]
    return None


@dataclass(frozen=True)
class Outcome:
    record: dict[str, Any]
    collapse: tuple[int, str] | None
    alarm: int | None

    @property
    def too_soon(self) -> bool:
        return self.alarm is not None and self.record["switch"] is not None and self.alarm <= self.record["switch"] > 0

    @property
    def miss(self) -> bool:
        return self.record["cause"] is not None and self.collapse is not None and self.alarm is None

    @property
    def false_alarm(self) -> bool:
        right = self.record["cause"] is not None and self.collapse is not None and not self.too_soon
        return self.alarm is not None and not right

    @property
    def after_the_switch(self) -> int | None:
        """The alarm's delay by a reading that knows no threshold: from the step on which the cause began to act."""
        return None if self.alarm is None or self.record["switch"] is None else self.alarm - self.record["switch"]

    @property
    def delay(self) -> int | None:
        known = self.collapse is not None and self.alarm is not None and not self.false_alarm
        return self.alarm - self.collapse[0] if known else None


def outcomes(records: list[dict[str, Any]], rule: Rule = called) -> list[Outcome]:
    return [Outcome(record, collapse(record), alarm(record, rule)) for record in records]


def fix(records: list[dict[str, Any]]) -> None:
    """For each threshold, the others as they are: what each value would do, on the first half."""
    grids = {
        "COLLAPSED_STD_RATIO": np.arange(0.1, 0.62, 0.04),
        "FALLEN_SHARE": np.arange(0.3, 0.82, 0.04),
        "COLLAPSED_RANK": np.arange(1.0, 9.1, 1.0),
        "COLLAPSED_VIEW_RATIO": np.arange(0.5, 1.21, 0.05),
    }
    for name, values in grids.items():
        print(f"{name}, now {getattr(diagnose, name)}: value, misses, false alarms, median delay")
        for value in map(float, values):
            with mock.patch.object(diagnose, name, value):
                found = outcomes(records)
            delays = [each.delay for each in found if each.delay is not None]
            misses, false = sum(each.miss for each in found), sum(each.false_alarm for each in found)
            print(f"  {value:5.2f} {misses:3} {false:3} {statistics.median(delays) if delays else '-'}")


def score(records: list[dict[str, Any]]) -> None:
    found = outcomes(records)
    kinds = {
        "all": lambda each: True,
        "as they are": lambda each: each.record["cause"] is None,
        "spoiled": lambda each: each.record["cause"] is not None,
        "complete": lambda each: each.collapse and each.collapse[1] == "complete",
        "dimensional": lambda each: each.collapse and each.collapse[1] == "dimensional",
        "of the features": lambda each: each.collapse and each.collapse[1] == "features",
        "from the start": lambda each: each.record["switch"] == 0,
        "in mid-run": lambda each: each.record["switch"] == MID_RUN,
        "digits": lambda each: each.record["data"] == "digits",
        "photographs": lambda each: each.record["data"] == "photographs",
    }
    causes = list(dict.fromkeys(each.record["cause"] for each in found if each.record["cause"]))
    kinds |= {cause: lambda each, cause=cause: each.record["cause"] == cause for cause in causes}
    heads = (
        "number",
        "collapse",
        "misses",
        "false alarms",
        "delay: median [quartiles], least to most",
        "from the cause on",
    )
    print(f"| runs | {' | '.join(heads)} |\n| --- |" + " --- |" * len(heads))
    for name, belongs in kinds.items():
        own = [each for each in found if belongs(each)]
        delays = [each.delay for each in own if each.delay is not None]
        since = [each.after_the_switch for each in own if each.after_the_switch is not None]
        counts = (
            len(own),
            sum(each.collapse is not None for each in own),
            sum(each.miss for each in own),
            sum(each.false_alarm for each in own),
        )
        print(f"| {name} | {' | '.join(map(str, counts))} | {spread(delays)} | {spread(since)} |")
    for each in found:
        if each.miss or each.false_alarm or (each.collapse and each.record["cause"] is None):
            word = "miss" if each.miss else "false alarm" if each.false_alarm else "collapse of a method as it is"
            print(f"{word}: {each.record['run']}: collapse {each.collapse}, alarm {each.alarm}")
    said = [alarm_said(each.record) == each.alarm for each in found]
    print(f"{sum(said)} of {len(said)} runs said so themselves, at the same look")


def instead(records: list[dict[str, Any]]) -> None:
    """What other alarms would have done: it shows what fewer false ones cost, and is not to choose by."""

    def point_or_line(now: Health) -> bool:
        return now.std_ratio < diagnose.COLLAPSED_STD_RATIO or now.effective_rank < diagnose.COLLAPSED_RANK

    def rank_against_peak(looks: Sequence[Health]) -> bool:
        return point_or_line(looks[-1]) or looks[-1].effective_rank < max(look.effective_rank for look in looks) / 2

    def each_of_late(looks: Sequence[Health]) -> bool:
        late, now = looks[len(looks) // 3 :], looks[-1]
        spread, rank = max(look.std_ratio for look in late), max(look.effective_rank for look in late)
        return point_or_line(now) or now.std_ratio < spread / 2 or now.effective_rank < rank / 2

    def product_of_all(looks: Sequence[Health]) -> bool:
        values = [look.std_ratio * look.effective_rank for look in looks]
        return point_or_line(looks[-1]) or values[-1] < diagnose.FALLEN_SHARE * max(values)

    def two_in_a_row(looks: Sequence[Health]) -> bool:
        return len(looks) > 1 and called(looks) and called(looks[:-1])

    changed = partial(mock.patch.object, diagnose)
    rules: dict[str, tuple[AbstractContextManager[Any], Rule]] = {
        "as it is": (nullcontext(), called),
        "no look at the views": (changed("COLLAPSED_VIEW_RATIO", math.inf), called),
        "a fall to 0.4 in place of 0.45": (changed("FALLEN_SHARE", 0.4), called),
        "a fall to 0.35": (changed("FALLEN_SHARE", 0.35), called),
        "a fall to 0.5": (changed("FALLEN_SHARE", 0.5), called),
        "a spread below 0.25 in place of 0.3": (changed("COLLAPSED_STD_RATIO", 0.25), called),
        "two looks in a row": (nullcontext(), two_in_a_row),
        "no views; rank against half of its peak": (nullcontext(), rank_against_peak),
        "no views; rank and spread, each against half of its highest of late": (nullcontext(), each_of_late),
        "no views; the product against its highest of all": (nullcontext(), product_of_all),
    }
    print("| alarm | runs | misses | false alarms | of them as they are | median delay |\n" + "| --- " * 6 + "|")
    for name, (change, rule) in rules.items():
        with change:
            found = outcomes(records, rule)
        delays = [each.delay for each in found if each.delay is not None]
        false = [each for each in found if each.false_alarm]
        own = sum(each.record["cause"] is None for each in false)
        misses = sum(each.miss for each in found)
        print(f"| {name} | {len(found)} | {misses} | {len(false)} | {own} | {statistics.median(delays):g} |")


def alarm_said(record: dict[str, Any]) -> int | None:
    """The alarm as the run itself wrote it down."""
    return next((s for s, word in zip(record["step"], record["verdict"], strict=True) if word == "collapsed"), None)


def picture(records: list[dict[str, Any]], path: Path) -> None:
    """Std and rank over the steps of some runs, with the step from which each was spoiled and the alarm."""
    figure = _figure(9.6, 4.6)
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    for axis, (name, title) in zip(axes.flat, PICTURED.items(), strict=True):
        record = next(each for each in records if each["run"] == name)
        ranks = [record["effective_rank"][i] / record["effective_rank"][counting(record)[0]] for i in counting(record)]
        steps = [record["step"][i] for i in counting(record)]
        axis.plot(record["step"], record["std_ratio"], color="#0b7a75", linewidth=1.6, label="std x sqrt(d)")
        axis.plot(steps, ranks, color="#c5593c", linewidth=1.6, label="effective rank, as a share of its first")
        if record["switch"]:
            axis.axvline(record["switch"], color=_FAINT, linewidth=0.9, linestyle=":", label="spoiled from here on")
        if (heard := alarm(record, called)) is not None:
            axis.plot(heard, 1.15, "v", color=_INK, markersize=7, linestyle="none", label="alarm")
        axis.set_title(title, fontsize=8.5, color=_INK)
        axis.set_ylim(0, 1.25)
        _quiet(axis)
    for axis in axes[1]:
        axis.set_xlabel("step", fontsize=8, color=_FAINT)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    figure.savefig(path, dpi=160)


def spread(delays: list[int]) -> str:
    if not delays:
        return "-"
    low, middle, high = np.percentile(delays, (25, 50, 75))
    return f"{middle:g} [{low:g}, {high:g}], {min(delays)} to {max(delays)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", metavar="PHOTOGRAPHS")
    parser.add_argument("--only", default="", help="runs with this in their name")
    parser.add_argument("--fix", action="store_true")
    parser.add_argument("--score", type=int, metavar="SEED", help="0: the second half of its runs; 1, 2: all of them")
    parser.add_argument("--instead", action="store_true")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.only)
    records = read()
    first, second = halves([record for record in records if record["seed"] == 0])
    if arguments.fix:
        fix(first)
    if arguments.score is not None:
        score([record for record in records if record["seed"] == arguments.score] if arguments.score else second)
    if arguments.instead:
        instead(second + [record for record in records if record["seed"] > 0])
    if arguments.picture:
        picture(records, arguments.picture)


if __name__ == "__main__":
    main()
