"""Few-shot evaluation: the linear classifier on a handful of labels per class, over many draws of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from byol.evaluate.linear import Split, best_penalty, stratified_split
from byol.evaluate.logistic import LinearClassifier, labelled, logistic_path, logistic_regression, standardisation
from byol.evaluate.scores import Score, accuracy

PENALTIES = tuple(10.0**e for e in range(-5, 2))
"""Penalties tried by default, 1e-5 to 10: those of `logistic_regression`, against the mean of the images' losses."""

VALIDATION_SHARE = 0.2
"""Share of each class's training images on which the penalty is chosen."""

VALIDATION_DRAWS = 5
"""Draws of labels over which a penalty's validation accuracy is averaged."""


@dataclass(frozen=True, eq=False)
class FewshotFit:
    """What `fit_fewshot` found."""

    models: tuple[LinearClassifier, ...]
    """Of each draw."""
    penalty: float
    """The same for all draws."""
    validation_accuracies: dict[float, float]
    """Penalty -> mean accuracy on the validation part; empty where the penalty was given."""
    converged: bool
    """Whether every fit converged."""


@dataclass(frozen=True)
class FewshotResult:
    """What `fewshot_evaluation` measured. Accuracies are shares, 0 to 1."""

    accuracy: float
    """On the test data, mean over the draws."""
    interval: tuple[float, float]
    """95 % interval of that mean: over the choice of labels, not of encoders or test images."""
    accuracies: tuple[float, ...]
    """Of each draw."""
    shots: int
    """Labels per class."""
    penalty: float
    """The same for all draws."""
    validation_accuracies: dict[float, float]
    """Penalty -> mean accuracy on the validation part; empty where the penalty was given."""
    converged: bool
    """Whether every fit converged."""


def fewshot_evaluation(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    test_x: np.ndarray | Tensor,
    test_y: np.ndarray | Tensor,
    *,
    shots: int = 5,
    draws: int = 20,
    seed: int = 0,
    penalty: float | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> FewshotResult:
    """Mean test accuracy of `fit_fewshot`'s classifiers. The test data are read after all fits.

    train_x: [N, D], test_x: [N_test, D], floating. train_y: [N], test_y: [N_test], integer.
    """
    if draws < 2:
        raise ValueError(f"draws={draws} is not allowed; an interval needs 2 or more")
    fit = fit_fewshot(train_x, train_y, shots=shots, draws=draws, seed=seed, penalty=penalty, penalties=penalties)
    test_x, test_y = labelled(test_x, test_y)
    accuracies = tuple(model.accuracy(test_x, test_y) for model in fit.models)
    return FewshotResult(
        accuracy=float(np.mean(accuracies)),
        interval=mean_interval(accuracies),
        accuracies=accuracies,
        shots=shots,
        penalty=fit.penalty,
        validation_accuracies=fit.validation_accuracies,
        converged=fit.converged,
    )


def fit_fewshot(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    *,
    shots: int = 5,
    draws: int = 20,
    seed: int = 0,
    penalty: float | None = None,
    penalties: Sequence[float] = PENALTIES,
    split: Split | None = None,
    score: Score = accuracy,
) -> FewshotFit:
    """Logistic regression on `shots` labelled images per class, for each of `draws` draws of them.

    Features are standardised by the mean and std of all of train_x: labels are few, images are not. The
    penalty is chosen once, before the draws: the training data are split class by class, classifiers are
    fitted to VALIDATION_DRAWS draws from the larger part and scored on the other; on a tie the largest
    penalty wins. That reads more labels than a draw holds: the result compares encoders and is not what
    `shots` labels alone would give, unless `penalty` is given. Draws depend on train_y, shots and seed alone,
    so encoders compare on the same ones.

    train_x: [N, D] floating. train_y: [N] integer. split: the two parts' rows, such as keep groups of images together.
    score: by which the penalty is chosen.
    """
    x, y = labelled(train_x, train_y)
    samples = draw_shots(y, shots, draws, np.random.default_rng([seed, 0]))
    statistics = standardisation(x)

    converged = True
    validation_accuracies: dict[float, float] = {}
    if penalty is None:
        generator = np.random.default_rng([seed, 1])
        pool, validation = split or stratified_split(y, VALIDATION_SHARE, generator, keep=shots)
        scores: dict[float, list[float]] = {}
        for sample in draw_shots(y[pool], shots, VALIDATION_DRAWS, generator):
            chosen = pool[sample]
            for p, model in logistic_path(x[chosen], y[chosen], penalties, statistics=statistics):
                scores.setdefault(p, []).append(float(score(y[validation], model.predict(x, validation))))
                converged &= model.converged
        validation_accuracies = {p: float(np.mean(s)) for p, s in scores.items()}
        penalty = best_penalty(validation_accuracies)
    models = tuple(logistic_regression(x[s], y[s], penalty, statistics=statistics) for s in samples)
    return FewshotFit(models, penalty, validation_accuracies, converged and all(model.converged for model in models))


def draw_shots(y: np.ndarray, shots: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Indices into y: [N] of `shots` images of each of its K classes, no repeats; int64 [draws, K * shots].

    Draws are independent of each other; with the same generator state, fewer draws are a prefix of more.
    """
    if shots < 1:
        raise ValueError(f"shots={shots} is not allowed; use 1 or more")
    classes, counts = np.unique(y, return_counts=True)
    for label, count in zip(classes, counts, strict=True):
        if count < shots:
            raise ValueError(f"class {label} has {count} training images; shots={shots} needs {shots} of each class")
    members = [np.flatnonzero(y == label) for label in classes]
    return np.stack(
        [np.concatenate([generator.choice(m, size=shots, replace=False) for m in members]) for _ in range(draws)]
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of n >= 2 values: mean -+ t_{0.975, n-1} s / sqrt(n), s of divisor n - 1."""
    sample = np.array(values, dtype=np.float64)
    mean, error = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample))
    margin = float(stdtrit(len(sample) - 1, 0.975)) * error
    return mean - margin, mean + margin
