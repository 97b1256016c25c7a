"""What the runs of an experiment say: a table, and a verdict on each claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from byol.diagnose import COLLAPSED_STD_RATIO
from byol.evaluate.fewshot import mean_interval
from byol.experiments.paper import PAPER_STEPS, Experiment

MEASURES = {"linear": "linear", "knn": "kNN", "fewshot": "few-shot"}
"""What is measured of each run, top-1 on test images as a share, and its heading; verdicts are on the first."""


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim. difference: in points of top-1; interval: 95 % over seeds, paired; None with fewer
    than two seeds."""

    words: str
    paper: float | None
    difference: float | None
    interval: tuple[float, float] | None
    verdict: str


def verdict(differences: Sequence[float]) -> tuple[tuple[float, float] | None, str]:
    """(95 % interval of the mean, "held" where it lies above 0, "reversed" below, else "too small to tell").

    differences: of each seed, claimed to be positive. Paired by seed: both arms see the same images in the same order,
    and start from the same weights where their networks are the same.
    """
    if len(differences) < 2:
        return None, "one seed tells nothing"
    low, high = mean_interval(differences)
    return (low, high), "held" if low > 0 else "reversed" if high < 0 else "too small to tell"


def summary(
    experiment: Experiment, runs: dict[tuple[str, int], dict[str, Any]], *, seeds: int, data: str, steps: int
) -> dict[str, Any]:
    """The experiment's result, as plain values for JSON. runs: (arm, seed) -> what was measured."""
    arms = []
    for arm in experiment.arms:
        own = [runs[arm.name, seed] for seed in range(seeds) if (arm.name, seed) in runs]
        measures = {m: _mean([run[m] for run in own if m in run]) for m in MEASURES}
        curves = {
            name: [run[name] for run in own]
            for name in ("loss", "held_out_std_ratio", "held_out_effective_rank", "held_out_knn")
        }
        arms.append(
            {
                "name": arm.name,
                "line": arm.line,
                "x": arm.x,
                "paper": arm.paper,
                "seeds": len(own),
                "measures": {m: found for m, found in measures.items() if found},
                "collapsed": sum(run["verdict"] == "collapsed" for run in own),
                "curves": curves if experiment.picture == "curves" else {},
            }
        )
    paper = {arm.name: arm.paper for arm in experiment.arms}
    verdicts = []
    for claim in experiment.claims:
        pairs = [
            100 * sum(weight * runs[name, seed]["linear"] for name, weight in claim.weights.items())
            for seed in range(seeds)
            if all((name, seed) in runs for name in claim.weights)
        ]
        theirs = [paper[name] for name in claim.weights]
        known = None
        if None not in theirs:
            known = sum(w * (t or 0.0) for w, t in zip(claim.weights.values(), theirs, strict=True))
        interval, word = verdict(pairs) if pairs else (None, "not run")
        verdicts.append(asdict(Verdict(claim.words, known, statistics.fmean(pairs) if pairs else None, interval, word)))
    any_run = next(iter(runs.values()), {})
    return {
        "name": experiment.name,
        "question": experiment.question,
        "source": experiment.source,
        "axis": experiment.axis,
        "picture": experiment.picture,
        "notes": list(experiment.notes),
        "data": data,
        "seeds": seeds,
        "steps": steps,
        "paper_steps": PAPER_STEPS,
        "collapsed_below": COLLAPSED_STD_RATIO,
        "train_images": any_run.get("train_images"),
        "test_images": any_run.get("test_images"),
        "arms": arms,
        "verdicts": verdicts,
    }


def _mean(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    interval = list(mean_interval(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "interval_95": interval, "values": values}


def markdown(result: dict[str, Any]) -> str:
    """The tables as Markdown: arms, then verdicts."""
    counted = f"{result['seeds']} seeds" if result["seeds"] > 1 else "1 seed"
    lines = [
        f"{result['question']} {result['data']}, {result['steps']:,} steps, {counted}; top-1 in % on "
        f"{result['test_images']:,} test images after {result['train_images']:,} labelled ones.",
        "",
        f"| run | {' | '.join(MEASURES.values())} | collapsed | paper ({result['source']}) |",
        "| --- |" + " --- |" * (len(MEASURES) + 2),
    ]
    for arm in result["arms"]:
        cells = [percent(arm["measures"].get(m)) for m in MEASURES]
        theirs = "-" if arm["paper"] is None else f"{arm['paper']:.1f}"
        lines.append(f"| {arm['name']} | {' | '.join(cells)} | {arm['collapsed']} of {arm['seeds']} | {theirs} |")
    if result["verdicts"]:
        lines += ["", "| claim | ours, points [95 % interval] | paper | verdict |", "| --- | --- | --- | --- |"]
    for each in result["verdicts"]:
        theirs = "-" if each["paper"] is None else f"{each['paper']:+.1f}"
        lines.append(f"| {each['words']} | {points(each)} | {theirs} | {each['verdict']} |")
    lines += ["", *result["notes"]]
    lines += [f"Failed: {name}: {reason}." for name, reason in result.get("failed", {}).items()]
    lines.append(
        "+- is half the 95 % interval of the mean over seeds (Student's t). A claim is held where the paired 95 % "
        "interval over seeds of the difference in linear accuracy lies above 0, reversed where it lies below. "
        "collapsed: by the embedding of held-out images at the end."
    )
    return "\n".join(lines) + "\n"


def percent(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    text = f"{100 * found['mean']:.1f}"
    if found["interval_95"] is None:
        return text
    low, high = found["interval_95"]
    return f"{text} +- {50 * (high - low):.1f}"


def points(found: dict[str, Any]) -> str:
    if found["difference"] is None or not math.isfinite(found["difference"]):
        return "-"
    if found["interval"] is None:
        return f"{found['difference']:+.1f}"
    low, high = found["interval"]
    return f"{found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
