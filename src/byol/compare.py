"""Methods side by side: trained alike, evaluated alike, over seeds, in one table and one plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from byol import pictures
from byol.apart import Apart
from byol.evaluate.columns import BACKBONE, RAW_PIXELS, UNTRAINED
from byol.evaluate.fewshot import mean_interval
from byol.evaluate.labelled import Parts
from byol.evaluate.protocols import score_of
from byol.evaluation import evaluate_run
from byol.experiments import RECIPES
from byol.export import DESCRIPTION
from byol.files import is_free, json_lines, only_one, read_json, write_json, write_text
from byol.methods import get, uses_labels
from byol.metrics import METRICS
from byol.options import Options
from byol.pipeline import Observer, Silent, how_to_open, open_for_training, pretrain
from byol.plan import plan
from byol.subject import open_parts
from byol.train import TrainingStopped
from byol.views.view import BYOL_T, BYOL_T_PRIME, View

MEASURES = {
    "knn": "kNN",
    "linear": "linear",
    "fewshot": "few-shot",
    "images_per_second": "img/s",
    "seconds": "s",
    "peak_memory_gib": "GiB",
    "effective_rank": "rank",
}
"""What the table shows of each run, and its heading: top-1 accuracies, training's images/s, seconds and peak memory,
and the effective rank of the features."""
ACCURACIES = ("knn", "linear", "fewshot")


@dataclass(frozen=True)
class Length:
    """How long each run trains: steps, or seconds."""

    steps: int | None = None
    budget: float | None = None


@dataclass(frozen=True)
class Contender:
    """A method, or a recipe that is a method with other arguments. name: as typed. used_labels: while it trained."""

    name: str
    options: Options
    used_labels: bool


def contender(name: str, common: Options, settings: Sequence[str] = (), *, own_views: bool = False) -> Contender:
    """A method by name, module:Class, or recipe (of which only the method and its arguments count), under the common
    options and further `name=value` settings. own_views: the method's; else all have the common ones, BYOL's where
    nothing else was said, and a method that takes one view the first of them."""
    recipe = RECIPES[name]() if name in RECIPES else Options(method=name)
    method = get(recipe.method)
    views: tuple[View, ...] | None = None
    if not own_views:
        views = tuple(islice(cycle(common.views or (BYOL_T, BYOL_T_PRIME)), len(method.views)))
    options = replace(common.for_method(recipe.method), method_args=recipe.method_args, views=views)
    # The presets of the papers hold nothing out; without a look while training there is no curve, and no alarm.
    options = replace(options, hold_out=common.hold_out or Options.hold_out)
    return Contender(name, options.with_settings(settings).checked(), uses_labels(method))


def compare(
    data: str,
    out: Path,
    contenders: Sequence[Contender],
    lengths: dict[str, Length],
    *,
    seeds: int,
    labelled: str | None = None,
    test: str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Train and evaluate each contender with each seed for each length; writes OUT/compare.json, compare.md and plots.

    lengths: by name; each makes a table of its own. labelled, test: what to evaluate on; `data` itself by default.
    resume: keep the finished runs of the same comparison, and go on with the others. Every run trains in a process of
    its own, one after the other, so that time and memory are its alone. A run that stops early is named in the table,
    and the others go on; TrainingStopped where all do. ValueError, before the first one trains, where one could not be
    trained or evaluated.
    """
    observer = observer or Silent()
    settings = {
        "data": data,
        "labelled": labelled,
        "test": test,
        "contenders": {c.name: asdict(c.options) for c in contenders},
        "lengths": {name: asdict(length) for name, length in lengths.items()},
        "seeds": seeds,
    }
    images = _prepared(data, labelled or data, test, contenders, observer)
    _keep_settings(out, json.loads(json.dumps(settings)), resume=resume)
    with only_one(out, "another comparison", observer.warn):
        tables: dict[str, Any] = {}
        baselines: dict[int, dict[str, dict[str, float]]] = {}
        total = len(lengths) * seeds * len(contenders)
        done = 0
        for length, how_long in lengths.items():
            rows: dict[str, list[dict[str, float]]] = {c.name: [] for c in contenders}
            failed: dict[str, list[str]] = {}
            for seed in range(seeds):
                for each in contenders:
                    done += 1
                    run = _place(out, length, each.name, seed)
                    observer.say(f"{done} of {total}: {each.name}, seed {seed}, {length}")
                    options = replace(
                        each.options, seed=seed, epochs=None, steps=how_long.steps, budget=how_long.budget
                    )
                    try:
                        _train(data, run, options)
                    except (TrainingStopped, BrokenProcessPool, ValueError) as error:
                        failed.setdefault(each.name, []).append(f"seed {seed}: {error}")
                        observer.warn(f"{each.name}, seed {seed}: {error}")
                        continue
                    found = _evaluation(run, labelled or data, test, images, (BACKBONE,))
                    rows[each.name].append(_measures(found, run))
                    # The same for all methods of a seed: the images, and the network that they all start from.
                    if seed not in baselines:
                        columns = (UNTRAINED,) if baselines else (RAW_PIXELS, UNTRAINED)
                        path = out / f"baselines-seed{seed}.json"
                        baselines[seed] = _baselines(run, labelled or data, test, images, columns, path)
            tables[length] = {"rows": {name: _summary(runs) for name, runs in rows.items()}, "failed": failed}
            places = {c.name: [_place(out, length, c.name, seed) for seed in range(seeds)] for c in contenders}
            marked = {c.name: f"{c.name} (labels)" if c.used_labels else c.name for c in contenders}
            curves = {marked[n]: [_curve(r) for r in runs if (r / DESCRIPTION).is_file()] for n, runs in places.items()}
            what = "held-out" if any(len(curve) > 1 for runs in curves.values() for curve in runs) else "the test"
            words = f"{data}: {_words(asdict(how_long))}; kNN accuracy on {what} images"
            pictures.comparison(curves, out / f"{length}.png", title=words)
        result = {
            **settings,
            "used_labels": [c.name for c in contenders if c.used_labels],
            "trained_on_test_labels": labelled in (None, data)
            and test is None
            and not images.train.source.has_test_part,
            "train_images": len(images.train),
            "test_images": len(images.open_test()),
            "baselines": {
                name: _summary([scores[name] for scores in baselines.values() if name in scores])
                for name in (RAW_PIXELS, UNTRAINED)
            },
            "tables": tables,
        }
        write_json(out / "compare.json", result)
        write_text(out / "compare.md", markdown(result))
        if not baselines:
            name, reasons = next(iter(next(iter(tables.values()))["failed"].items()))
            raise TrainingStopped(f"none of the {total} runs finished: {name}: {reasons[0]}")
        return result


def _keep_settings(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Write what is compared beside the runs. ValueError where a comparison to go on with was another one."""
    path = out / "settings.json"
    if resume and path.is_file():
        if (found := read_json(path)) != settings:
            other = ", ".join(name for name in settings if settings[name] != found.get(name))
            raise ValueError(f"{out} compares something else ({other} differ); choose another --out")
        return
    if not is_free(out):
        raise ValueError(f"{out} exists already; choose another --out, or add --resume to go on with it")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _train(data: str, run: Path, options: Options) -> None:
    """Train in a process of its own, unless that is done; go on where it was interrupted."""
    if (run / DESCRIPTION).is_file():
        return
    begun = (run / "run.json").is_file()
    run.parent.mkdir(parents=True, exist_ok=True)
    with Apart() as process:
        process.call(_train_here, data, run, options, begun)


def _train_here(data: str, run: Path, options: Options, resume: bool) -> None:
    from byol.console import Terminal

    with Terminal(plan=False) as terminal:
        pretrain(data, run, options, resume=resume, observer=terminal)


def _prepared(data: str, labelled: str, test: str | None, contenders: Sequence[Contender], observer: Observer) -> Parts:
    """(training, test) images to evaluate on. ValueError where a contender cannot be trained, or none be evaluated."""
    labels = contenders[0].options.labels
    source, pixels = open_for_training(data, observer, **how_to_open(contenders[0].options))
    for each in contenders:
        try:
            plan(replace(each.options, epochs=None, steps=1, budget=None), source, pixels)
        except ValueError as error:
            raise ValueError(f"{each.name} cannot be compared: {error}") from None
    parts = open_parts(labelled, test, channels=source.channels, value_range=source.value_range, labels=labels)
    if len(np.unique(parts.train.labels)) < 2:
        raise ValueError(f"{labelled} has labels of one class; comparing needs at least two")
    return parts


def _evaluation(run: Path, data: str, test: str | None, images: Parts, columns: tuple[str, ...]) -> dict[str, Any]:
    path = run / "evaluation.json"
    if path.is_file():
        found = read_json(path)
        # The last evaluation of the run may have been another one since.
        if (found["data"], found.get("test")) == (data, test) and "rows" in found and not found.get("failed"):
            return found
    return evaluate_run(run, data, test=test, parts=images, look_for_duplicates=False, columns=columns).whole().found


def _baselines(
    run: Path, data: str, test: str | None, images: Parts, columns: tuple[str, ...], path: Path
) -> dict[str, dict[str, float]]:
    """Scores of raw pixels and of the untrained network of a run, kept in `path`."""
    if path.is_file():
        return read_json(path)
    evaluated = evaluate_run(
        run, data, test=test, parts=images, look_for_duplicates=False, columns=columns, write=False
    )
    scores = {column: _scores(evaluated.whole().found, column) for column in columns}
    write_json(path, scores)
    return scores


def _scores(found: dict[str, Any], column: str) -> dict[str, float]:
    scores = {measure: score_of(found, measure, column) for measure in ACCURACIES}
    return {measure: score for measure, score in scores.items() if score is not None}


def _measures(found: dict[str, Any], run: Path) -> dict[str, float]:
    lines = _metrics(run)
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    measured = {
        **_scores(found, BACKBONE),
        "effective_rank": found["effective_rank"],
        "images_per_second": statistics.median(rates),
        "seconds": max(line["seconds"] for line in lines if "seconds" in line),
        "collapsed_looks": sum(
            line["held_out/verdict"] == "collapsed" and line["step"] > 0 for line in lines if "held_out/verdict" in line
        ),
    }
    memory = [line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line]
    return measured | ({"peak_memory_gib": memory[-1] / 2**30} if memory else {})


def _metrics(run: Path) -> list[dict[str, Any]]:
    return list(json_lines(run / METRICS))


def _place(out: Path, length: str, name: str, seed: int) -> Path:
    return out / length / f"{name.replace(':', '.')}-seed{seed}"


def _curve(run: Path) -> list[tuple[float, float]]:
    """(seconds of training, kNN on held-out images) over a run; its end on the test images where none were held out,
    or have no labels."""
    lines = _metrics(run)
    if looks := [(line["seconds"], line["held_out/knn"]) for line in lines if "held_out/knn" in line]:
        return looks
    found = _measures(read_json(run / "evaluation.json"), run)
    return [(found["seconds"], found["knn"])]


def _summary(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Measure -> mean, 95 % interval of the mean over seeds (none for one seed), and each run's value."""
    found: dict[str, dict[str, Any]] = {}
    for name in runs[0] if runs else ():
        values = [run[name] for run in runs if name in run]
        interval = list(mean_interval(values)) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "interval_95": interval, "values": values}
    return found


def _words(length: dict[str, Any]) -> str:
    return f"{length['steps']:,} steps each" if length["steps"] else f"about {length['budget']:g} s each"


def rows(
    result: dict[str, Any], length: str, intervals: Collection[str] = tuple(MEASURES)
) -> list[tuple[str, dict[str, str]]]:
    """(name, {measure: text}) of one table, the best few-shot mean first, the baselines last. intervals: the measures
    to show with theirs."""
    table = result["tables"][length]["rows"]

    def score(name: str) -> float:
        summary = table[name].get("fewshot") or table[name].get("knn")
        return summary["mean"] if summary else -1.0

    found = []
    for name in sorted(table, key=score, reverse=True):
        label = f"{name} (labels)" if name in result["used_labels"] else name
        missing = len(result["tables"][length]["failed"].get(name, ()))
        label += f" ({missing} of {result['seeds']} failed)" if missing else ""
        found.append((label, _cells(table[name], intervals)))
    return found + [(name, _cells(summary, intervals)) for name, summary in result["baselines"].items()]


def _cells(summary: dict[str, Any], intervals: Collection[str]) -> dict[str, str]:
    return {m: _cell(summary[m], m, interval=m in intervals) if m in summary else "-" for m in MEASURES}


def _cell(found: dict[str, Any], measure: str, *, interval: bool) -> str:
    digits = 3 if measure in ACCURACIES else 2 if measure == "peak_memory_gib" else 0
    text = f"{found['mean']:.{digits}f}"
    if found["interval_95"] is None or not interval:
        return text
    low, high = found["interval_95"]
    return f"{text} +- {(high - low) / 2:.{digits}f}"


def title(result: dict[str, Any], length: str) -> str:
    seeds = f"{result['seeds']} seeds" if result["seeds"] > 1 else "1 seed"
    return (
        f"{result['data']}, {_words(result['lengths'][length])}, {seeds}; {result['train_images']:,} labelled training "
        f"images, {result['test_images']:,} test images"
    )


def markdown(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = []
    for length in result["lengths"]:
        lines = [title(result, length) + ":", "", "| method | " + " | ".join(MEASURES.values()) + " |"]
        lines.append("| --- |" + " --- |" * len(MEASURES))
        lines += [f"| {name} | " + " | ".join(cells.values()) + " |" for name, cells in rows(result, length)]
        failed = result["tables"][length]["failed"]
        lines += [f"\n{name} failed: {'; '.join(why)}" for name, why in failed.items()]
        parts.append("\n".join(lines) + "\n")
    notes = ["+- is half the 95 % interval of the mean over seeds (Student's t)."] if result["seeds"] > 1 else []
    if result["used_labels"]:
        seen = ", those of the test images too, for the data have no test part (give --test)"
        notes.append(f"(labels): it used them while it trained{seen if result['trained_on_test_labels'] else ''}.")
    return "\n".join([*parts, " ".join(notes) + "\n"])
