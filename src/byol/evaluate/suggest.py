"""Which images to label first, from their features alone; and what that is worth against picking at random.

TypiClust (Hacohen, Dekel & Weinshall 2022, arXiv:2202.02794): of each of `count` clusters of the images, the most
typical one. With few labels typical images teach more than unusual ones.

Measured on the features of a small BYOL backbone of MNIST digits (4,000 images; test accuracy, mean of 5 suggestions
against 100 random picks): 10 labels 0.68 against 0.46, 20 labels 0.78 against 0.62, 50 labels 0.84 against 0.79, and
100 labels 0.87 against 0.86. The more labels, the less it matters which.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from torch import Tensor

from byol.evaluate.fewshot import mean_interval
from byol.evaluate.logistic import features as _features
from byol.evaluate.logistic import labelled, logistic_regression, standardisation

MOST_CLUSTERS = 500
"""The paper's cap. Beyond it, each cluster gives several images."""

NEIGHBOURS = 20
"""Nearest neighbours within its cluster, at most, by which an image is typical: the paper's number."""

MOST_EXACT = 20_000
"""Images up to which clusters are k-means', and above which mini-batch k-means'."""

MOST_IMAGES = 100_000
"""Images that are compared, at most: 0.8 GB of 2,048 features each. Of more, so many stand for all."""

PENALTY = 0.01
"""Of the classifiers that `suggestion_value` fits. Fixed: a choice would read labels that nobody has yet."""


@dataclass(frozen=True)
class Value:
    """What `suggestion_value` measured. Accuracies are shares, 0 to 1, on the test images."""

    suggested: float
    """With the labels of the suggested images."""
    random: float
    """With as many labels of images picked at random, mean over the draws."""
    interval_95: tuple[float, float]
    """Of that mean, over draws; not over encoders, test images or the seed of the suggestion."""
    random_accuracies: tuple[float, ...]
    """Of each draw."""
    beaten: float
    """Share of the draws with a lower accuracy than the suggestion."""


def suggest(features: np.ndarray | Tensor, count: int, *, seed: int) -> np.ndarray:
    """`count` distinct rows worth labelling first, int64 [count], those of the largest clusters first. TypiClust.

    The L2-normalised features are cut into min(count, MOST_CLUSTERS) clusters by k-means. The most typical image of a
    cluster is the one with the smallest mean distance to its NEIGHBOURS nearest neighbours there (to all of the
    cluster where there are fewer). Each cluster gives its most typical image, the largest first, then in further
    rounds its next. Features are not standardised first: of a backbone for MNIST digits, ten labels then gave 0.64
    instead of 0.69, and fifty or a hundred the same.

    features: [N, D] floating, of any scale, which may be a memmap: of more than MOST_IMAGES rows so many, drawn with
    the seed, are read. count: 1 to N, or to MOST_IMAGES. The same seed gives the same rows, whatever the threads.
    """
    x = _features(features)
    if not 1 <= count <= min(len(x), MOST_IMAGES):
        raise ValueError(f"count={count} is not allowed; use 1 to {min(len(x), MOST_IMAGES)}")
    if len(x) > MOST_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), MOST_IMAGES, replace=False))
        return rows[suggest(x[rows], count, seed=seed)]
    if not np.isfinite(x).all():
        raise ValueError("features hold values that are not finite; look at the encoder that made them")
    x = normalize(x.astype(np.float32) if x.dtype == np.float16 else x)
    # Threads add up a centre's images in an order of their own, and a rounding can move an image.
    with threadpool_limits(1):
        clusters = _clusters(x, min(count, MOST_CLUSTERS), seed)
        ranked = [_most_typical_first(x, np.flatnonzero(clusters == c)) for c in np.unique(clusters)]
    ranked.sort(key=len, reverse=True)
    places = np.concatenate([np.arange(len(rows)) for rows in ranked])
    return np.concatenate(ranked)[np.argsort(places, kind="stable")][:count]


def _clusters(x: np.ndarray, num: int, seed: int) -> np.ndarray:
    """The cluster of each row of x: [N, D]; [N] integers in 0..num-1, not all of them where rows are equal."""
    kind = KMeans if len(x) <= MOST_EXACT else MiniBatchKMeans
    random = np.random.RandomState(np.random.MT19937(seed))
    with warnings.catch_warnings():
        # Said where there are fewer different rows than clusters; further rounds then fill up the count.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kind(num, n_init=1, random_state=random).fit(x).labels_


def _most_typical_first(x: np.ndarray, members: np.ndarray) -> np.ndarray:
    """members: rows of x in one cluster, ascending; equally typical ones keep that order."""
    if len(members) == 1:
        return members
    neighbours = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(members) - 1), algorithm="brute").fit(x[members])
    # Without an argument: of each fitted row, itself not among its neighbours.
    distances, _ = neighbours.kneighbors()
    return members[np.argsort(distances.mean(axis=1), kind="stable")]


def suggestion_value(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    test_x: np.ndarray | Tensor,
    test_y: np.ndarray | Tensor,
    count: int,
    *,
    seed: int,
    draws: int = 20,
) -> Value:
    """Test accuracy with the labels of `count` suggested images, against as many picked at random, `draws` times.

    Each time logistic regression with PENALTY is fitted to the picked images, all features standardised by the mean
    and std of all of train_x: labels are few, images are not. A random pick may miss classes: that is what it
    costs. Where a pick holds one class alone, that class is predicted for every image. The suggestion reads no
    label, and draws depend on N, count and seed alone.

    train_x: [N, D], test_x: [N_test, D], floating. train_y: [N], test_y: [N_test], integer. count: 1 to N.
    """
    if draws < 2:
        raise ValueError(f"draws={draws} is not allowed; an interval needs 2 or more")
    x, y = labelled(train_x, train_y)
    test_x, test_y = labelled(test_x, test_y)
    statistics = standardisation(x)

    def accuracy(rows: np.ndarray) -> float:
        if (y[rows] == y[rows[0]]).all():
            return float((test_y == y[rows[0]]).mean())
        return logistic_regression(x[rows], y[rows], PENALTY, statistics=statistics).accuracy(test_x, test_y)

    suggested = accuracy(suggest(x, count, seed=seed))
    generator = np.random.default_rng([seed, 0])
    by_chance = tuple(accuracy(generator.choice(len(x), size=count, replace=False)) for _ in range(draws))
    return Value(
        suggested=suggested,
        random=float(np.mean(by_chance)),
        interval_95=mean_interval(by_chance),
        random_accuracies=by_chance,
        beaten=float(np.mean([each < suggested for each in by_chance])),
    )
