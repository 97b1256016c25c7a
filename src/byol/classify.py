"""From a run's backbone and few labels to predictions: how good they are first, then what they are."""

from __future__ import annotations

import csv
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from byol import pictures
from byol.data.folder import NOT_AN_IMAGE, Files
from byol.data.source import HOW_TO_LABEL, DataError, Source, printable, shown
from byol.evaluate import scores
from byol.evaluate.cache import FeatureCache
from byol.evaluate.calibrated import Calibrated, CrossValidated, cross_validated, fit_calibrated
from byol.evaluate.calibration import brier_score, expected_calibration_error, log_loss, reliability
from byol.evaluate.columns import Column, raw_pixels
from byol.evaluate.labelled import labelled_of
from byol.evaluate.labelled import load as load_part
from byol.evaluate.protocols import Settings
from byol.evaluate.selective import (
    CONFIDENCE,
    check_rate,
    fewest,
    promised_threshold,
    risk_coverage,
)
from byol.evaluate.table import SKEWED, all_features
from byol.export import range_of
from byol.files import replacing, write_json
from byol.pipeline import Observer, Silent
from byol.subject import device_of, open_images, read_backbone

UNSURE, UNUSABLE = "unsure", "unusable"
COLUMNS = ("name", "decision", "predicted", "probability", "abstained", "labelled")
"""Of the table, before one column a class."""
RAW_PIXELS_UP_TO = 1000
"""Labelled images beside whose accuracy that of raw pixels is measured: of more it would take longer than the rest."""
ROWS = 4096
"""Classified at a time."""
REASONS = 100
"""Unusable images whose names and reasons are in the summary, at most."""


HARDER = 0.01
"""Below this p-value of Mann and Whitney's test it is said that the new images are harder than the labelled ones."""


MANY_SUGGESTED = 0.1
"""Share of the labelled images from which on it is said that --suggest named them: of random ones it names some too."""


@dataclass(frozen=True, eq=False)
class Task:
    """A backbone, labelled images of two classes and more (numbered by source.classes), and images to classify.

    Opened and checked, and no pixel read.
    """

    run_directory: Path
    column: Column
    labelled: Source
    new: Source
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Learned:
    """classifier: fitted to all labelled images. threshold: answers are given from this probability on.
    found: plain values for JSON. crossed: what cross-validation said."""

    task: Task
    settings: Settings
    classifier: Calibrated
    threshold: float
    found: dict[str, Any]
    crossed: CrossValidated
    labels: np.ndarray
    """[M] int64: of the images of `crossed`."""


def opened(
    run_directory: Path,
    labelled: str,
    new: str,
    *,
    labels: str | None = None,
    groups: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Task:
    """What is to be classified and by what. DataError, in one line, where it cannot be.

    labelled: data with labels of some images at least: the training part, as `evaluate` names its images. labels: a
    file that gives them. groups: what images belong together, see `with_groups`. new: any data, all parts.
    """
    description, spec, own = read_backbone(run_directory)
    like: dict[str, Any] = {"channels": spec.channels, "value_range": range_of(description), "say": say}
    source = open_images(labelled, labels=labels, groups=groups, **like)
    to_classify = replace(open_images(new, part="all", **like), labels=None, targets=None, classes=())
    for name, each in ((labelled, source), (new, to_classify)):
        if each.channels != spec.channels:
            raise DataError(
                f"{shown(name)} has images of {each.channels} channels, and the backbone was trained on {spec.channels}"
            )
    if source.targets is not None:
        raise DataError(
            f"{shown(labels or labelled)} gives several labels to an image, and one is predicted; leave one an image"
        )
    if source.labels is None or not (source.labels >= 0).any():
        raise DataError(f"{shown(labelled)} has no labels to learn from; {HOW_TO_LABEL}, or give --labels FILE.csv")
    about = {"run": str(run_directory), "labelled": labelled, "new": new, "labels_file": labels, "grouped_by": groups}
    return Task(run_directory, own, _with_some(labelled_of(source), say), to_classify, about)


def learn(
    task: Task,
    *,
    threshold: float | None = None,
    error_rate: float = 0.05,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
    features: FeatureCache | None = None,
    observer: Observer | None = None,
) -> Learned:
    """A calibrated classifier of the labelled images, and what it is worth by cross-validation.

    threshold: the least probability of an answer, 0 to 1, in place of one that keeps the share of wrong answers at
    error_rate or below, see `promised_threshold`; where none can promise that, it is 1 - error_rate, and `found` says
    so. features: where they are kept.
    """
    check_rate(error_rate)
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold:g} is no probability; use a number from 0 to 1")
    observer = observer or Silent()
    settings = Settings(seed=seed, workers=workers, device=device)
    settings = replace(settings, device=device_of(settings))
    part = load_part(task.labelled)
    columns = [task.column]
    if len(part) <= RAW_PIXELS_UP_TO:
        columns.append(raw_pixels(task.column.size, part.source.channels))
    readable, x = all_features(columns, part, settings, features, observer.working)
    if gone := len(part) - len(readable):
        observer.say(f"{gone:,} of {len(part):,} labelled images cannot be read: they are left out")
        readable = replace(readable, source=_with_some(readable.source, observer.say))
    source = readable.source
    assert source.labels is not None and source.classes is not None
    y, groups = source.labels, source.groups
    given: dict[str, Any] = {"seed": seed, "groups": groups}
    accuracies = {}
    for column in columns[::-1]:  # the backbone last
        progress = partial(observer.working, f"cross-validation: {column.name}")
        crossed = cross_validated(x[column.name], y, **given, progress=progress)
        accuracies[column.name] = _accuracy(crossed, y, groups)
    observer.say("the classifier of all labelled images")
    classifier = fit_calibrated(x[task.column.name], y, **given)
    truth, of_held = y[crossed.rows], None if groups is None else groups[crossed.rows]
    confidence, right = crossed.probabilities.max(axis=1), crossed.probabilities.argmax(axis=1) == truth
    value, how = _threshold(confidence, right, of_held, threshold, error_rate, seed)
    counts = np.bincount(y)
    found = {
        **task.about,
        **accuracies[task.column.name],
        "majority": float(counts.max() / len(y)),
        "raw_pixels": accuracies[columns[1].name] if len(columns) > 1 else None,
        "balanced_accuracy": float(scores.mean_per_class(truth, crossed.probabilities.argmax(axis=1))),
        "skewed": bool(counts.max() > SKEWED * counts.min()),
        "labelled_images": len(y),
        "held_out_images": len(truth),
        "groups": None if groups is None else len(np.unique(groups)),
        "folds": len(np.unique(crossed.fold)),
        "classes": {
            printable(name): {"labelled": int(counts[i]), "accuracy": _mean(right[truth == i])}
            for i, name in enumerate(source.classes)
        },
        "calibration": {
            "after": _calibration(crossed.probabilities, truth),
            "before": _calibration(crossed.uncalibrated, truth),
        },
        "temperature": classifier.temperature,
        "penalty": classifier.penalty,
        "converged": classifier.classifier.converged,
        "threshold": {"value": value, **how, **_answered(confidence >= value, right)},
        "seed": seed,
    }
    found["warnings"] = _suggested(task.run_directory, source)
    return Learned(replace(task, labelled=source), settings, classifier, value, found, crossed, truth)


def predict(
    learned: Learned,
    out: Path,
    *,
    features: FeatureCache | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Classify the new images: writes OUT, a .csv with a row an image, and beside it the summary, which is returned, as
    .json, and a picture of the probabilities as .png. docs/classify.md says what each column means."""
    observer = observer or Silent()
    task = learned.task
    assert task.labelled.classes is not None
    classes = [printable(name) for name in task.labelled.classes]
    part, x = all_features([task.column], load_part(task.new), learned.settings, features, observer.working)
    usable, ids = part.source, part.source.ids
    known = _is_labelled(task, usable)
    predicted, answered = np.zeros((2, len(classes)), np.int64)
    confidence = np.empty(len(ids))

    def rows() -> Iterator[tuple[int, list[Any]]]:
        for start in range(0, len(ids), ROWS):
            some = slice(start, start + ROWS)
            found = learned.classifier.probabilities(x[task.column.name][some])
            best = found.argmax(axis=1)
            top = found[np.arange(len(best)), best]
            sure, of_labelled, confidence[some] = top >= learned.threshold, known[some], top
            predicted[:] += np.bincount(best[~of_labelled], minlength=len(classes))
            answered[:] += np.bincount(best[~of_labelled & sure], minlength=len(classes))
            for row, number in enumerate(ids[some].tolist()):
                name, is_sure = classes[best[row]], bool(sure[row])
                decision = name if is_sure else UNSURE
                about = [usable.name_of(number), decision, name, float(top[row]), int(not is_sure)]
                yield number, [*about, int(of_labelled[row]), *found[row].tolist()]
            observer.working("predictions", min(start + ROWS, len(ids)), len(ids))

    unusable = _unusable(task.new, ids)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(f"p_{name}" for name in classes)])
        gone = ((number, [name, UNUSABLE, "", "", 1, 0, *[""] * len(classes)]) for number, name, _ in unusable)
        writer.writerows(row for _, row in heapq.merge(rows(), gone, key=itemgetter(0)))
    confidence = confidence[~known]
    new = {
        "images": int(predicted.sum()),
        "answered": int(answered.sum()),
        "mean_probability": _mean(confidence),
        "warnings": _harder(learned.crossed.probabilities.max(axis=1), confidence),
        "labelled": int(known.sum()),
        "unusable": len(unusable),
        "unusable_first": [[name, reason] for _, name, reason in unusable[:REASONS]],
        "predicted": dict(zip(classes, predicted.tolist(), strict=True)),
        "decided": dict(zip(classes, answered.tolist(), strict=True)),
    }
    beside = {"summary": out.with_suffix(".json"), "picture": out.with_suffix(".png")}
    paths = {name: str(path) for name, path in beside.items()}
    found = {**learned.found, "new_images": new, "out": str(out), **paths}
    write_json(beside["summary"], found)
    _draw(learned, beside["picture"])
    return found


def _with_some(source: Source, say: Callable[[str], None]) -> Source:
    """The source without classes that have no image. DataError unless there are two, each of two images or groups."""
    assert source.labels is not None and source.classes is not None
    counts = np.bincount(source.labels, minlength=len(source.classes))
    kept = np.flatnonzero(counts)
    if len(kept) < len(counts):
        first = shown(source.classes[int(np.argmin(counts))])
        say(f"{len(counts) - len(kept)} classes have no labelled image, the first {first}: they are left out")
    if len(kept) < 2:
        raise DataError(
            f"all labelled images of {shown(source.name)} are of class {shown(source.classes[kept[0]])}; "
            "label images of another class too"
        )
    of_class = [source.labels == label for label in kept]
    groups = np.arange(len(source)) if source.groups is None else source.groups
    single = [shown(source.classes[i]) for i, m in zip(kept, of_class, strict=True) if len(np.unique(groups[m])) < 2]
    if single:
        what = "one labelled image" if source.groups is None else "labelled images of one group"
        more = f" and {len(single) - 5} more" if len(single) > 5 else ""
        raise DataError(
            f"too few labels to cross-validate: {what} of class {', '.join(single[:5])}{more}; label another, or leave "
            "out the labels of that class"
        )
    labels = np.searchsorted(kept, source.labels)
    return replace(source, labels=labels, classes=tuple(source.classes[i] for i in kept))


def _accuracy(crossed: CrossValidated, y: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    right = crossed.probabilities.argmax(axis=1) == y[crossed.rows]
    interval = scores.share_interval(right, None if groups is None else groups[crossed.rows])
    return {"accuracy": float(right.mean()), "interval_95": list(interval)}


def _calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "expected_calibration_error": expected_calibration_error(probabilities, labels),
        "log_loss": log_loss(probabilities, labels),
        "brier_score": brier_score(probabilities, labels),
    }


def _threshold(
    confidence: np.ndarray,
    right: np.ndarray,
    groups: np.ndarray | None,
    by_hand: float | None,
    error_rate: float,
    seed: int,
) -> tuple[float, dict[str, Any]]:
    """(the threshold, how it came about). Where nothing can be promised it is that of Chow 1970: what is answered is
    right with probability 1 - error_rate, if the probabilities are right."""
    if by_hand is not None:
        return by_hand, {"by": "hand", "error_rate": None, "confidence": None, "fewest": None}
    independent = np.random.default_rng(seed).permutation(len(right))
    if groups is not None:  # one image of each group
        independent = independent[np.unique(groups[independent], return_index=True)[1]]
    about = {"error_rate": error_rate, "chosen_on": len(independent), "fewest": fewest(error_rate)}
    value = promised_threshold(confidence[independent], right[independent], error_rate)
    if value is not None:
        return value, {"by": "promise", "confidence": CONFIDENCE, **about}
    return 1 - error_rate, {"by": "probability", "confidence": None, **about}


def _answered(answered: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Of the labelled images, out of fold."""
    number, wrong = int(answered.sum()), int((answered & ~right).sum())
    found: dict[str, Any] = {"coverage": float(answered.mean()), "answered": number, "wrong": wrong}
    low, high = scores.share_interval(~right[answered]) if number else (0.0, 1.0)
    return {**found, "error": wrong / number if number else None, "error_interval_95": [low, high]}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _suggested(run_directory: Path, labelled: Source) -> list[str]:
    """Where labels are of the images that `evaluate --suggest` named, which are the most typical ones."""
    names = set[str]()
    for pattern in ("suggested*.csv", "evaluations/*/suggested*.csv"):
        for table in run_directory.glob(pattern):
            with table.open(encoding="utf-8", errors="replace", newline="") as file:
                names.update(row[0] for row in csv.reader(file) if row)
    count = sum(labelled.name_of(i) in names for i in labelled.ids.tolist())
    if count < MANY_SUGGESTED * len(labelled):
        return []
    return [
        f"{count:,} of the labelled images were named by --suggest: typical ones, easier than most, so that accuracy "
        "and calibration come out too good; for numbers to rely on, label images picked at random"
    ]


def _harder(labelled: np.ndarray, new: np.ndarray) -> list[str]:
    """Where the labelled images are no sample of the new ones. labelled, new: probabilities of what was predicted."""
    if not len(new) or mannwhitneyu(labelled, new, alternative="greater").pvalue > HARDER:
        return []
    return [
        f"the new images are harder than the labelled ones: mean probability {new.mean():.3f} against "
        f"{labelled.mean():.3f} out of fold; expect a lower accuracy on them than the cross-validated one, and no "
        "promise to be kept; label some of them, picked at random"
    ]


def _is_labelled(task: Task, new: Source) -> np.ndarray:
    """Which of the new images are labelled ones, [N] bool: the same images of the same data, or equal files."""
    labelled = task.labelled
    if task.about["labelled"] == task.about["new"] or _same_place(task.about["labelled"], task.about["new"]):
        names = {labelled.listing.name(i) for i in labelled.ids.tolist()}
        return np.array([new.listing.name(i) in names for i in new.ids.tolist()], bool)
    found = np.zeros(len(new), bool)
    if isinstance(labelled.listing, Files) and isinstance(new.listing, Files):
        alike = np.isin(new.listing.status[new.ids, 0], labelled.listing.status[labelled.ids, 0])
        known = set(labelled.listing.digests(labelled.ids)) - {b""}
        found[alike] = [digest in known for digest in new.listing.digests(new.ids[alike])]
    return found


def _same_place(one: str, other: str) -> bool:
    places = Path(one).expanduser(), Path(other).expanduser()
    return all(place.exists() for place in places) and places[0].samefile(places[1])


def _unusable(new: Source, ids: np.ndarray) -> list[tuple[int, str, str]]:
    """(place in the listing, name, reason) of images that cannot be classified, in order. ids: of those that can."""
    found = [each for each in new.skipped if each[2] != NOT_AN_IMAGE]
    found += [(int(i), new.name_of(int(i)), "cannot be decoded") for i in np.setdiff1d(new.ids, ids)]
    return sorted(found)


def _draw(learned: Learned, path: Path) -> None:
    crossed, labels = learned.crossed, learned.labels
    chosen = learned.found["threshold"]
    confidence, right = crossed.probabilities.max(axis=1), crossed.probabilities.argmax(axis=1) == labels
    name = Path(learned.task.about["labelled"]).name
    pictures.probabilities_chart(
        reliability(crossed.probabilities, labels),
        reliability(crossed.uncalibrated, labels),
        risk_coverage(confidence, right),
        path,
        title=f"{learned.task.run_directory.name} on {name}: {len(labels):,} labelled images, out of fold",
        chosen=(chosen["coverage"], chosen["error"]) if chosen["answered"] else None,
        error_rate=chosen["error_rate"],
    )
