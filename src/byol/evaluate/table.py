"""The protocols side by side for a backbone and what it must beat, each number with what it takes to trust it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.source import DataError
from byol.diagnose import effective_rank
from byol.encoder import EncoderSpec
from byol.evaluate import duplicates, scores
from byol.evaluate.cache import FeatureCache, cached_features, feature_key
from byol.evaluate.columns import BACKBONE, UNTRAINED, Column, untrained
from byol.evaluate.features import stream_features
from byol.evaluate.fewshot import mean_interval
from byol.evaluate.images import evaluation_batches
from byol.evaluate.knn import weighted_knn
from byol.evaluate.labelled import Labelled, Parts
from byol.evaluate.protocols import METRICS, Row, Settings, Training, Working, fit_rows, idle
from byol.evaluate.splits import split

FORMAT = 2
"""Of evaluation.json."""
CHOICE_IMAGES = 50_000
"""Training images, evenly spaced, on which the stronger untrained network is chosen, at most."""
FROM_FEATURES = {"knn", "linear", "fewshot"}
"""Protocols that read features of the images as they are."""
RANK_IMAGES = 2048
"""Test images, the first ones, whose features' effective rank is taken."""
NEAR_IMAGES = 1000
"""Test images, evenly spaced, that are compared with every training image."""
MANY_NEAR = 0.02
"""Share of near-duplicates above which it is said: among unrelated images some are alike (docs/evaluation.md)."""
SKEWED = 1.5
"""Above this ratio of the largest class to the smallest, balanced accuracy and macro-F1 stand beside accuracy."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """found: plain values for JSON. predictions: (row, column) -> what it said of the test images. lists: of training
    images that a row used, where not all: a name -> rows. failed: the errors of protocols, whose rows are missing."""

    found: dict[str, Any]
    train: Labelled
    test: Labelled
    predictions: dict[tuple[str, str], np.ndarray]
    features: dict[str, tuple[np.ndarray, np.ndarray]]
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)

    def whole(self) -> Evaluated:
        """This, where no protocol failed; else the first one's error is raised."""
        for error in self.failed.values():
            raise error
        return self


def evaluate(
    columns: Sequence[Column],
    parts: Parts,
    settings: Settings,
    *,
    scratch: Column | None = None,
    supervised: bool = False,
    cache: FeatureCache | None = None,
    look_for_duplicates: bool = True,
    say: Callable[[str], None] = lambda line: None,
    note: Callable[[str], None] = lambda line: None,
    working: Working = idle,
) -> Evaluated:
    """Every protocol of the settings for every column; of each row the differences of the first column to the others.

    Test images are opened after the last fit, and choose nothing: no function that chooses can reach them. Where a
    protocol fails, the others go on; its error is raised where it was the only one. scratch:
    the network that training from scratch starts with; supervised: see `Training`. say, note, working: who is told
    what a person should read, what begins, and how far it is.
    """
    settings = _possible(settings, parts.train, say)
    for column in (*columns, *([] if scratch is None else [scratch])):
        column.network.to(settings.device or "cpu")
    # The others train on images; the first column's features show which images are alike.
    read = columns if set(settings.protocols) & FROM_FEATURES else columns[:1]
    train, train_features = all_features(read, parts.train, settings, cache, working)
    if gone := len(parts.train) - len(train):
        say(f"{gone:,} of {len(parts.train):,} training images cannot be read: they are left out")
    training = Training(
        train, settings, lambda c: train_features[c.name], columns, scratch, supervised, say, note, working
    )
    rows, failed = fit_rows(training)
    if failed and not rows:
        raise next(iter(failed.values()))

    note("test images")
    tested = parts.open_test()
    test, test_features = all_features(read, tested, settings, cache, working)
    if gone := len(tested) - len(test):
        say(f"{gone:,} test images cannot be read: they are left out")
    found: dict[str, Any] = {
        "format": FORMAT,
        "train_images": len(train),
        "test_images": len(test),
        "classes": list(train.classes),
        "metric": settings.metric,
        "seed": settings.seed,
        "hashes": {
            "columns": {column.name: column.content() for column in columns},
            "train": train.content,
            "test": test.content,
            "labels": [train.labels_content, test.labels_content],
        },
        "groups": None if test.source.groups is None else len(np.unique(test.source.groups)),
        "skewed": _skewed(train) or _skewed(test),
        "warnings": _warnings(train, test, settings.workers, say) if look_for_duplicates else [],
        "rows": [],
    }
    predictions: dict[tuple[str, str], np.ndarray] = {}
    for row in rows:
        note(f"test: {row.name}")
        try:
            said = {name: fit.predict(test, test_features.get(name)) for name, fit in row.fitted.items()}
            found["rows"].append(_scored(row, said, test, settings))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            failed[row.protocol] = error
            say(f"{row.name} failed: {error or type(error).__name__}")
            continue
        predictions |= {(row.name, name): values for name, values in said.items()}
    if failed and not found["rows"]:
        raise next(iter(failed.values()))
    found["failed"] = {protocol: str(error) or type(error).__name__ for protocol, error in failed.items()}
    if BACKBONE in test_features:
        found["effective_rank"] = effective_rank(torch.from_numpy(np.array(test_features[BACKBONE][:RANK_IMAGES])))
    features = {name: (train_features[name], test_features[name]) for name in test_features}
    lists = {name: rows for row in rows for name, rows in row.lists.items()}
    return Evaluated(found, train, test, predictions, features, lists, failed)


def stronger_untrained(
    spec: EncoderSpec, seed: int, like: Column, train: Labelled, settings: Settings, cache: FeatureCache | None
) -> Column:
    """The untrained network with the last scale of its residual blocks, 0 or 1, that kNN finds better on a part of the
    training images. like: whose normalisation and size it has. seed: of its weights; a run's own makes them that run's
    before its first step."""
    found = []
    for last_scale in (0, 1):
        column = replace(like, name=UNTRAINED, network=untrained(spec, seed, last_scale=last_scale))
        found.append((_validation_knn(column, train, settings, cache), last_scale, column))
    return max(found, key=lambda each: each[:2])[2]


def _validation_knn(column: Column, train: Labelled, settings: Settings, cache: FeatureCache | None) -> float:
    x = _features(column, train, settings, cache)
    rows = np.flatnonzero(~np.isnan(x[:, 0]))
    if train.targets is not None:  # of several labels an image, how far apart images are has to do
        return effective_rank(torch.from_numpy(np.array(x[rows[:RANK_IMAGES]])))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), CHOICE_IMAGES)).astype(int)]
    labels, groups = train.labels[rows], train.source.groups
    fit, held = split(labels, 0.2, seed=settings.seed, groups=None if groups is None else groups[rows])
    said = weighted_knn(x[rows[fit]], torch.from_numpy(labels[fit]), x[rows[held]], k=20).numpy()
    return float((said == labels[held]).mean())


def _possible(settings: Settings, train: Labelled, say: Callable[[str], None]) -> Settings:
    """The settings without protocols that these labels cannot feed. DataError where none is left."""
    if train.targets is not None:
        left = tuple(p for p in settings.protocols if p == "linear")
        if not left:
            raise DataError("images with several labels are evaluated by --protocol linear alone")
        for name, column in zip(train.classes, train.targets.T, strict=True):
            if not ((column == 1).any() and (column == 0).any()):
                raise DataError(
                    f"class {name!r} is in no training image, or absent from none; leave it out of the labels"
                )
        return replace(settings, protocols=left, metric="map")
    if settings.metric == "map":
        raise DataError(f"{train.source.name} has one label an image; --metric map is for several, use top1")
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if (counts > 0).sum() < 2:
        raise DataError(f"{train.source.name} has labels of one class; a classifier needs at least 2")
    least = int(counts[counts > 0].min())
    # One class at least has an image to spare, on which the penalty is chosen.
    enough = min(least, int(counts.max()) - 1)
    if "fewshot" in settings.protocols and enough < settings.shots:
        name = train.classes[int(np.flatnonzero(counts == least)[0])]
        text = f"class {name!r} has {least} training images; few-shot needs {settings.shots}"
        text += ", and one more of some class to choose on" if least >= settings.shots else ""
        text += f": use --shots {enough}" if enough else ": label more images"
        left = tuple(p for p in settings.protocols if p != "fewshot")
        if not left:
            raise DataError(text)
        say(f"few-shot is left out: {text}")
        return replace(settings, protocols=left)
    return settings


def all_features(
    columns: Sequence[Column],
    part: Labelled,
    settings: Settings,
    cache: FeatureCache | None = None,
    working: Working = idle,
) -> tuple[Labelled, dict[str, np.ndarray]]:
    """(the part without images that turned out unusable, features [N, D] of each column)."""
    found = {column.name: _features(column, part, settings, cache, working) for column in columns}
    unusable = [np.isnan(x[:, 0]) for x in found.values()]
    rows = np.flatnonzero(~np.any(unusable, axis=0)) if unusable else np.arange(len(part))
    if len(rows) == len(part):
        return part, found
    if not len(rows):
        raise DataError(f"{part.source.name}: none of its {len(part):,} images can be read")
    fewer = part.subset(rows)
    for column in columns:
        chosen = (torch.from_numpy(found[column.name][some]) for some in np.split(rows, range(4096, len(rows), 4096)))
        found[column.name] = cached_features(cache, _key(column, fewer), len(rows), chosen)
    return fewer, found


def _features(
    column: Column, part: Labelled, settings: Settings, cache: FeatureCache | None, working: Working = idle
) -> np.ndarray:
    """[N, D] float16 (float32 where that is too narrow), row i = image i of the part; NaN where it is unusable."""
    column.network.to(settings.device or "cpu")

    def images() -> Iterator[Tensor]:
        following = 0
        batches = evaluation_batches(part.source, part.pixels, column.size, workers=settings.workers)
        for rows, batch in batches:
            whole = torch.zeros(int(rows[-1]) + 1 - following, *batch.shape[1:], dtype=batch.dtype)
            whole[rows - following] = batch
            unusable.update(set(range(following, int(rows[-1]) + 1)) - set(rows.tolist()))
            following = int(rows[-1]) + 1
            yield whole
        if following < len(part):
            unusable.update(range(following, len(part)))
            shape = (len(part) - following, part.source.channels, column.size, column.size)
            yield torch.from_numpy(np.zeros(shape, part.source.dtype))

    def features() -> Iterator[Tensor]:
        start = 0
        mean, std = column.normalization.mean, column.normalization.std
        for y in stream_features(
            column.network, images(), mean=mean, std=std, size=None, device=settings.device or "cpu"
        ):
            gone = [row - start for row in unusable if start <= row < start + len(y)]
            y[gone] = 0
            if not y.isfinite().all():
                raise DataError(f"{column.name}: the network's features are not finite; look at how it was trained")
            y[gone] = torch.nan
            start += len(y)
            working(f"features: {column.name}", start, len(part))
            yield y

    unusable: set[int] = set()
    return cached_features(cache, _key(column, part), len(part), features())


def _key(column: Column, part: Labelled) -> str:
    return feature_key(
        column.content(),
        {"channels": part.source.channels} | ({"range": part.source.value_range} if part.source.deep else {}),
        fingerprint=part.content,
        ids=part.source.ids,
        size=column.size,
        mean=column.normalization.mean,
        std=column.normalization.std,
    )


def _scored(row: Row, said: dict[str, np.ndarray], test: Labelled, settings: Settings) -> dict[str, Any]:
    """A row's numbers, as plain values."""
    columns = {name: {**_numbers(values, test, settings), **row.fitted[name].facts} for name, values in said.items()}
    first = next(iter(said))
    return {
        "protocol": row.protocol,
        "name": row.name,
        "about": row.about,
        "labels": row.labels,
        "seeds": settings.seeds,
        "lists": sorted(row.lists),
        "columns": columns,
        "differences": {
            name: _difference(said[first], values, test, settings) for name, values in said.items() if name != first
        },
    }


def _truth(test: Labelled) -> np.ndarray:
    return test.labels if test.targets is None else test.targets


def _numbers(said: np.ndarray, test: Labelled, settings: Settings) -> dict[str, Any]:
    """The score and its 95 % interval: over test images, or, of repeated fits, over these."""
    metric, y = METRICS[settings.metric], _truth(test)
    repeated = said.ndim == 2 and test.targets is None
    fits = list(said) if repeated else [said]
    values = [float(metric(y, each)) for each in fits]
    if repeated:
        low, high = mean_interval(values)
    else:
        low, high = scores.interval(metric, y, said, groups=test.source.groups, seed=settings.seed)
    found: dict[str, Any] = {"score": float(np.mean(values)), "interval_95": [low, high], "n": len(test)}
    found["over"] = f"{len(values)} fits" if repeated else "test images" if test.source.groups is None else "groups"
    if repeated:
        found["values"] = values
    if test.targets is None:
        for name, other in _OTHERS.items():
            found[name] = float(np.mean([other(y, each) for each in fits]))
    return found


_OTHERS: dict[str, Callable[..., Any]] = {
    "accuracy": scores.accuracy,
    "balanced_accuracy": scores.mean_per_class,
    "macro_f1": scores.macro_f1,
}


def _difference(ours: np.ndarray, theirs: np.ndarray, test: Labelled, settings: Settings) -> dict[str, Any]:
    """Of two columns' scores, paired: by test images, or, of repeated fits, by these."""
    metric, y = METRICS[settings.metric], _truth(test)
    if ours.ndim == 2 and test.targets is None:
        values = [float(metric(y, a)) - float(metric(y, b)) for a, b in zip(ours, theirs, strict=True)]
        return {"difference": float(np.mean(values)), "interval_95": list(mean_interval(values))}
    found = scores.difference(metric, y, ours, theirs, groups=test.source.groups, seed=settings.seed)
    return {"difference": found.mean, "interval_95": [found.low, found.high]}


def _skewed(part: Labelled) -> bool:
    if part.targets is not None:
        return False
    counts = np.bincount(part.labels, minlength=len(part.classes))
    return bool(counts.max() > SKEWED * max(1, counts.min()))


def _warnings(train: Labelled, test: Labelled, workers: int, say: Callable[[str], None]) -> list[str]:
    """What makes the numbers look better than they are: test images that are training images, or nearly."""
    side = min(train.square, test.square)

    def images(part: Labelled) -> Iterator[Tensor]:
        return (batch for _, batch in evaluation_batches(part.source, part.pixels, side, workers=workers))

    found = []
    if train.source.groups is not None and test.source.groups is not None:
        both = np.intersect1d(train.source.groups, test.source.groups)
        if len(both):
            found.append(
                f"{len(both):,} groups have training images and test images: the numbers are too good; part them"
            )
    if same := duplicates.overlap(images(train), images(test)):
        found.append(f"{same:,} of {len(test):,} test images are training images too, pixel by pixel; take them out")
    if train.source.groups is None and test.source.groups is None:
        looked_at = test.subset(np.linspace(0, len(test) - 1, min(len(test), NEAR_IMAGES)).astype(int))
        near = duplicates.near_duplicates(images(train), images(looked_at))
        if near > MANY_NEAR * len(looked_at):
            found.append(
                f"{near:,} of {len(looked_at):,} test images looked at are nearly training images, as frames of a film "
                "or tiles that overlap are: the numbers are too good; say what belongs together with --groups"
            )
    for line in found:
        say(line)
    return found
