"""When a classifier should rather say nothing: the confidence from which on few of its answers are wrong.

Selective classification with a promised risk: Geifman & El-Yaniv 2017, arXiv:1705.08500.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import binom

CONFIDENCE = 0.95
"""Probability with which a promise is kept."""

SIZES = 100
"""Thresholds that are tried, at most: of 1 %, 2 %, ... of the images answered."""

HALVINGS = 20
"""Of the interval in which a level is looked for."""


def promised_threshold(confidence: np.ndarray, right: np.ndarray, error_rate: float) -> float | None:
    """The lowest confidence from which on at most `error_rate` of answers are wrong; None where none can promise it.

    The promise: with probability CONFIDENCE over the choice of these images, None is returned or the share of wrong
    answers among all images like these whose confidence reaches the threshold is at most error_rate. It is kept exactly
    by a classifier that has not seen these images, if they are drawn independently and the share of wrong answers does
    not fall as the threshold falls; what the confidences are worth otherwise does not matter.

    As in the paper (Lemma 3.1) a threshold passes where so few wrong answers among so many are unlikely at error_rate,
    by the binomial distribution. Of several thresholds one passes by chance more easily: the paper shares 1 -
    CONFIDENCE among the steps of a binary search; here `boundary` says exactly how unlikely is enough. On 200 images of
    which 95 % are predicted right that answers twice as many.

    confidence: [N] floating. right: [N] bool. error_rate: in (0, 1).
    """
    check_rate(error_rate)
    order = np.argsort(-confidence, kind="stable")
    ordered, wrong, sizes = np.append(confidence[order], -np.inf), np.cumsum(~right[order]), _sizes(len(order))
    # Equal confidences are answered together or not at all. Between two sizes what may be wrong is as at the first:
    # who passes there passes at the first too.
    ends = np.flatnonzero(ordered[1:] < ordered[:-1]) + 1
    most = np.append(boundary(sizes, error_rate), -1)[np.searchsorted(sizes, ends, side="right") - 1]
    passing = ends[wrong[ends - 1] <= most]
    if not len(passing):
        return None
    return 0.0 if passing[-1] == len(order) else float(np.nextafter(ordered[passing[-1]], np.inf))


def boundary(sizes: np.ndarray, error_rate: float, failure: float = 1 - CONFIDENCE) -> np.ndarray:
    """How many of so many answers may be wrong, int64 aligned with sizes, -1 where not even none.

    Answers that are wrong independently with probability error_rate each, counted at all sizes one after the other,
    come to so few at any of them with probability `failure` at most: the largest level is taken that, used at every
    size alike (as Pocock 1977 does in sequential trials), keeps this.

    It bounds the chance of a false promise: of the thresholds that break it the highest has its answers wrong at
    error_rate, those that lower thresholds add are wrong at least as often, and so all of them have at least as many
    wrong answers as this sequence.

    sizes: [S] integer, ascending, 1 or more.
    """
    low, high = 0.0, failure
    best = np.full(len(sizes), -1)
    for _ in range(HALVINGS):
        level = (low + high) / 2
        most = _most(sizes, error_rate, level)
        if _crossing(sizes, most, error_rate) <= failure:
            low, best = level, most
        else:
            high = level
    return best


def fewest(error_rate: float) -> int:
    """Answers, all of them right, that can promise error_rate: with one fewer no threshold can."""
    check_rate(error_rate)
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log1p(-error_rate) - 1e-9))


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, error), each [M] in 0 to 1, M <= N, coverage ascending: the share of images answered from a threshold
    on, and of these the share that is wrong, at each threshold there is. Images of equal confidence come together.

    confidence: [N] floating. right: [N] bool.
    """
    order = np.argsort(-confidence, kind="stable")
    number = np.arange(1, len(order) + 1)
    last = np.append(np.diff(confidence[order]) < 0, True)
    return number[last] / len(order), (np.cumsum(~right[order]) / number)[last]


def check_rate(error_rate: float) -> None:
    if not 0 < error_rate < 1:
        raise ValueError(f"error_rate={error_rate:g} is not possible; use a number between 0 and 1, such as 0.05")


def _sizes(images: int) -> np.ndarray:
    return np.unique(np.ceil(np.linspace(0, images, min(images, SIZES) + 1)[1:]).astype(int))


def _most(sizes: np.ndarray, error_rate: float, level: float) -> np.ndarray:
    """The most wrong answers whose probability, or that of fewer, is at most `level`; -1 for none."""
    found = binom.ppf(level, sizes, error_rate).astype(int)  # the fewest whose probability reaches the level
    return np.where(binom.cdf(found, sizes, error_rate) <= level, found, found - 1)


def _crossing(sizes: np.ndarray, most: np.ndarray, error_rate: float) -> float:
    """The probability that at any of the sizes the wrong answers are at most as many as `most` says there."""
    # Sequences that have crossed leave; those with more wrong answers than may ever be need not be counted.
    left, crossed, size = np.ones(1), 0.0, 0
    for following, few in zip(sizes, most, strict=True):
        step = following - size
        added = binom.pmf(np.arange(min(step, max(most.max(), 0)) + 1), step, error_rate)
        left, size = np.convolve(left, added)[: max(most.max(), 0) + 1], following
        crossed += float(left[: few + 1].sum())
        left[: few + 1] = 0
    return crossed
