"""Numbers from predictions, and their intervals over test images.

Every metric here is called as metric(y, predictions, weight=None). A weight counts an image that many times, as if it
were repeated, and drawing images with replacement is nothing but weights: that is how `interval` resamples without
copying data. Leading axes of a weight are resamples, and the result has them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest

Metric = Callable[..., "float | np.ndarray"]

Score = Callable[[np.ndarray, np.ndarray], Any]
"""A metric by which something is chosen: (y [N], predictions [N]) -> a number, the higher the better."""

RESAMPLES = 2000
"""For an interval. Its ends then vary with the seed by 0.06 standard errors: sqrt(0.025 * 0.975 / 2000) / phi(1.96)."""

WEIGHTS_AT_ONCE = 2**21
"""Weights held in memory at a time: 16 MiB in float64."""


@dataclass(frozen=True)
class Difference:
    """Of two classifiers on the same images: metric(a) - metric(b)."""

    mean: float
    """On the images as they are."""
    low: float
    """Of the 95 % interval over images."""
    high: float


def accuracy(y: np.ndarray, predictions: np.ndarray, weight: np.ndarray | None = None) -> float | np.ndarray:
    """The share, 0 to 1, of images whose predicted class is their own.

    y, predictions: [N] integer, 0 or more. weight: [..., N] whole numbers, 1 each if None. Returns [...].
    """
    y, predictions, weight = _classes(y, predictions, weight)
    return weight @ (y == predictions) / weight.sum(axis=-1)


def mean_per_class(y: np.ndarray, predictions: np.ndarray, weight: np.ndarray | None = None) -> float | np.ndarray:
    """The mean of the classes' recalls, 0 to 1: balanced accuracy, the "mean per class" of Kornblith et al. 2019.

    The mean is over the classes that y has: in a resample, over those drawn. Arguments as in `accuracy`.
    """
    y, predictions, weight = _classes(y, predictions, weight)
    right = _per_class(y, weight * (y == predictions))
    return _mean_where(right, _per_class(y, weight))


def macro_f1(y: np.ndarray, predictions: np.ndarray, weight: np.ndarray | None = None) -> float | np.ndarray:
    """The mean of the classes' F1 = 2 TP / (2 TP + FP + FN), 0 to 1.

    The mean is over the classes that y or the predictions have, in a resample over those drawn or predicted there.
    Arguments as in `accuracy`.
    """
    y, predictions, weight = _classes(y, predictions, weight)
    num_classes = int(max(y.max(), predictions.max())) + 1
    right = _per_class(y, weight * (y == predictions), num_classes)
    return _mean_where(2 * right, _per_class(y, weight, num_classes) + _per_class(predictions, weight, num_classes))


def confusion(y: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """[num_classes, num_classes] int64: how many images of class (row) were predicted as class (column)."""
    y, predictions, _ = _classes(y, predictions, None)
    if max(y.max(), predictions.max()) >= num_classes:
        raise ValueError(f"a class is {max(y.max(), predictions.max())}; num_classes={num_classes} must be above it")
    return np.bincount(y * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, num_classes)


def average_precision_11(
    target: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None
) -> float | np.ndarray:
    """Interpolated average precision of one class, 0 to 1: VOC 2007's, Everingham et al. 2010.

    The mean over recalls t = 0, 0.1, ..., 1 of the highest precision at a recall of at least t, 0 where t is not
    reached; NaN without a positive image. Images of equal score are retrieved together: their order does not count.

    target: [N] integer, 1 present, 0 absent, -1 left out ("difficult", or unknown). scores: [N], the higher the
    likelier. weight: as in `accuracy`.
    """
    target, scores = np.asarray(target), np.asarray(scores)
    if target.ndim != 1 or target.shape != scores.shape or target.dtype.kind not in "iu":
        raise ValueError(
            f"targets are {target.dtype} {list(target.shape)}; use integers like scores {list(scores.shape)}"
        )
    if not np.isin(target, (-1, 0, 1)).all():
        raise ValueError("targets hold other numbers than 1, 0 and -1; use 1 present, 0 absent, -1 left out")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN; look at the classifier that made them")
    weight = _weight(weight, len(target))
    order = np.argsort(-scores, kind="stable")
    order = order[target[order] >= 0]
    descending, positive = -scores[order], target[order] == 1
    weight = weight[..., order]
    # Precision is highest, at each recall, right after a positive image and those that tie with it.
    ends = np.unique(np.searchsorted(descending, descending[positive], side="right") - 1)
    retrieved = weight.cumsum(axis=-1)[..., ends]
    found = (weight * positive).cumsum(axis=-1)[..., ends]
    total = weight @ positive
    precision = np.divide(found, retrieved, out=np.zeros_like(found), where=retrieved > 0)
    # found / total >= tenth / 10 in whole numbers: as a float, 3 of 10 is less than 3 * 0.1.
    reached = (np.where(10 * found >= tenth * total[..., None], precision, 0) for tenth in range(11))
    value = np.mean([at_least.max(axis=-1, initial=0) for at_least in reached], axis=0)
    return np.where(total > 0, value, np.nan)[()]


def map_11(targets: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> float | np.ndarray:
    """The mean of `average_precision_11` over classes with at least one positive image, in a resample over those drawn.

    targets: [N, K] integer in {1, 0, -1}. scores: [N, K]. weight: as in `accuracy`. NaN where no class has a positive.
    """
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.ndim != 2 or targets.shape != scores.shape:
        raise ValueError(f"targets are {list(targets.shape)} and scores {list(scores.shape)}; use [N, K] for both")
    values = np.stack([average_precision_11(t, s, weight) for t, s in zip(targets.T, scores.T, strict=True)])
    return _mean_where(np.nan_to_num(values), (~np.isnan(values)).astype(np.float64))


def interval(
    metric: Metric, y: np.ndarray, predictions: np.ndarray, *, groups: np.ndarray | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a metric over the choice of test images: percentiles of RESAMPLES resamples.

    Images are drawn with replacement, as many as there are; with groups ([N] integer) whole groups are, as many as
    there are groups, each with all its images. The classifier stays the same: that it would be another one on other
    training data is not in the interval. Resamples where the metric is NaN are left out.
    """
    return _percentiles(np.concatenate([np.atleast_1d(metric(y, predictions, w)) for w in _resamples(y, groups, seed)]))


def difference(
    metric: Metric,
    y: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Difference:
    """metric(a) - metric(b) of two classifiers' predictions, both measured on the same resamples as in `interval`.

    What makes an image hard for both cancels out, so this is narrower than the two intervals suggest.
    """
    found = [np.atleast_1d(metric(y, a, w) - metric(y, b, w)) for w in _resamples(y, groups, seed)]
    return Difference(float(metric(y, a) - metric(y, b)), *_percentiles(np.concatenate(found)))


def share_interval(right: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of a share, such as a class's accuracy: Wilson's over images, or over groups, of which one says
    nothing. It is right for few images too, and where all are right, where resamples would never differ.

    right: [N] bool, N >= 1. groups: [N] integer.
    """
    if groups is None:
        found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)
    if len(np.unique(groups)) < 2:
        return 0.0, 1.0
    return interval(accuracy, np.ones(len(right), np.int64), right.astype(np.int64), groups=groups)


def _resamples(y: np.ndarray, groups: np.ndarray | None, seed: int) -> Iterator[np.ndarray]:
    """RESAMPLES weights in all, [R, N] float64 at a time."""
    num = len(y)
    if groups is not None and np.shape(groups) != (num,):
        raise ValueError(f"groups have shape {list(np.shape(groups))}; give each of the {num} images one")
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
    units = num if codes is None else int(codes.max(initial=-1)) + 1
    generator = np.random.default_rng(seed)
    if units < 2:
        raise ValueError(f"there is {units} test {'image' if codes is None else 'group'}; an interval needs 2 or more")
    at_once = max(1, WEIGHTS_AT_ONCE // num)
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        drawn = generator.integers(units, size=(rows, units)) + np.arange(rows)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
        yield counts if codes is None else counts[:, codes]


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not values.size:
        raise ValueError("the metric has no value on these images; give test images of every class")
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _classes(
    y: np.ndarray, predictions: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, predictions = np.asarray(y), np.asarray(predictions)
    for what, given in (("labels", y), ("predictions", predictions)):
        if given.ndim != 1 or given.dtype.kind not in "iu" or given.shape != y.shape or not given.size:
            raise ValueError(f"{what} are {given.dtype} {list(given.shape)}; use integers [N], one per image")
        if given.min() < 0:
            raise ValueError(f"{what} hold {given.min()}: unknown; leave images without a label out")
    return y.astype(np.int64), predictions.astype(np.int64), _weight(weight, len(y))


def _weight(weight: np.ndarray | None, num: int) -> np.ndarray:
    """[..., N] float64, exact for whole numbers."""
    if weight is None:
        return np.ones(num)
    if np.shape(weight)[-1:] != (num,):
        raise ValueError(f"weight has shape {list(np.shape(weight))}; its last axis must be the {num} images")
    return np.asarray(weight, dtype=np.float64)


def _per_class(classes: np.ndarray, values: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Sums of values: [..., N] over each class's images: [K, ...]."""
    num_classes = num_classes or int(classes.max()) + 1
    member = csr_array((np.ones(len(classes)), (classes, np.arange(len(classes)))), shape=(num_classes, len(classes)))
    return (member @ values.reshape(-1, len(classes)).T).reshape(num_classes, *values.shape[:-1])


def _mean_where(numerator: np.ndarray, denominator: np.ndarray) -> float | np.ndarray:
    """The mean of numerator / denominator: [K, ...] over those k with a denominator above 0; NaN without any."""
    ratio = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    present = (denominator > 0).sum(axis=0)
    return np.divide(ratio.sum(axis=0), present, out=np.full(ratio.shape[1:], np.nan), where=present > 0)[()]
