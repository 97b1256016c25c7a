"""A classifier on frozen features whose probabilities can be believed, and how good it is by cross-validation.

The linear evaluation's logistic regression, with its penalties; penalty and temperature are chosen on images that the
classifier at hand was not fitted to. Cross-validation repeats all of it in every fold, standardisation and choices too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from byol.evaluate.calibration import log_loss, probabilities, temperature
from byol.evaluate.linear import PENALTIES, mean_penalty
from byol.evaluate.logistic import CHOICE, FINAL, LinearClassifier, labelled, logistic_path, logistic_regression
from byol.evaluate.splits import folds

FOLDS = 5
ONE_FOLD_FROM = 5_000
"""Images from which on a choice is made on one fold in place of all: they are enough, and the time is a fifth."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """softmax(logits / temperature) of a linear classifier."""

    classifier: LinearClassifier
    """Fitted to all images that were given."""
    temperature: float
    penalty: float
    """In the sum form of `mean_penalty`."""
    chosen: bool
    """Whether penalty and temperature were chosen; not where each class had one image, and none could be held out."""

    def logits(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Of x: [N, D], or of its rows: [n] int; float64 [N, K] or [n, K], before the temperature."""
        return self.classifier.scores(x, rows)

    def probabilities(self, x: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """The same, as probabilities: rows that sum to 1."""
        return probabilities(self.logits(x, rows), self.temperature)


@dataclass(frozen=True, eq=False)
class CrossValidated:
    """What classifiers said of images that neither they nor any choice for them had seen."""

    rows: np.ndarray
    """[M] int64, ascending: the images that were held out once. M < N only where groups could not be dealt out."""
    probabilities: np.ndarray
    """[M, K] float64."""
    uncalibrated: np.ndarray
    """[M, K] float64: without temperatures."""
    fold: np.ndarray
    """[M] int64: of each image."""
    temperatures: tuple[float, ...]
    """Of each fold."""
    penalties: tuple[float, ...]


def fit_calibrated(
    x: np.ndarray,
    y: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    seed: int = 0,
    groups: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> Calibrated:
    """Logistic regression with the penalty and temperature that are best on folds held out.

    Each penalty is fitted to the images outside a fold, and its logits of the fold are kept. Of all folds' together the
    accuracy chooses the penalty, as in `fit_linear`; of those that tie, as many do with few labels, the log loss. The
    temperature is the likeliest of the same logits.

    x: [N, D] floating, perhaps a memmap. y: [N] integer. rows: [n] int, the images to fit to, of K >= 2 classes; all by
    default. groups: [N] integer; no fold cuts one.
    """
    x, y = labelled(x, y)
    rows = np.arange(len(y)) if rows is None else np.asarray(rows)
    classes, targets = np.unique(y[rows], return_inverse=True)
    of_row = folds(targets, FOLDS, seed=seed, groups=None if groups is None else groups[rows])
    numbers = [fold for fold in range(FOLDS) if (of_row == fold).any()]
    held = [of_row == fold for fold in numbers[: 1 if len(rows) >= ONE_FOLD_FROM else None]]
    logits: dict[float, list[np.ndarray]] = {penalty: [] for penalty in sorted(set(penalties), reverse=True)}
    for mask in held:
        fit = rows[~mask]
        path = logistic_path(x, y, [mean_penalty(p, len(fit)) for p in logits], rows=fit, effort=CHOICE)
        for said, (_, model) in zip(logits.values(), path, strict=True):
            said.append(model.scores(x, rows[mask]))
    penalty, heat = sorted(logits)[len(logits) // 2], 1.0
    if held:
        truth = np.concatenate([targets[mask] for mask in held])
        penalty, heat = _chosen({p: np.concatenate(said) for p, said in logits.items()}, truth)
    classifier = logistic_regression(x, y, mean_penalty(penalty, len(rows)), rows=rows, effort=FINAL)
    assert np.array_equal(classifier.classes, classes)
    return Calibrated(classifier, heat, penalty, bool(held))


def cross_validated(
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int = 0,
    groups: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CrossValidated:
    """`fit_calibrated` on the images outside each fold, and what it says of the fold. Arguments as there; y: 0..K-1,
    each class with images in two groups or more. progress: (done, total) folds."""
    x, y = labelled(x, y)
    of_row = folds(y, FOLDS, seed=seed, groups=groups)
    numbers = [fold for fold in range(FOLDS) if (of_row == fold).any()]
    num_classes = int(y.max()) + 1
    calibrated, before = np.full((2, len(y), num_classes), np.nan)
    fits = list[Calibrated]()
    for done, fold in enumerate(numbers):
        progress(done, len(numbers))
        held = np.flatnonzero(of_row == fold)
        fit = fit_calibrated(x, y, rows=np.flatnonzero(of_row != fold), seed=seed, groups=groups, penalties=penalties)
        logits = fit.logits(x, held)
        calibrated[held], before[held] = probabilities(logits, fit.temperature), probabilities(logits, 1.0)
        fits.append(fit)
    progress(len(numbers), len(numbers))
    rows = np.flatnonzero(of_row >= 0)
    heats, chosen = tuple(fit.temperature for fit in fits), tuple(fit.penalty for fit in fits)
    return CrossValidated(rows, calibrated[rows], before[rows], of_row[rows], heats, chosen)


def _chosen(logits: dict[float, np.ndarray], truth: np.ndarray) -> tuple[float, float]:
    """(penalty, temperature) of the highest accuracy, and among equals of the lowest log loss."""
    right = {penalty: int((said.argmax(axis=1) == truth).sum()) for penalty, said in logits.items()}
    heats = {p: temperature(logits[p], truth) for p in logits if right[p] == max(right.values())}
    losses = {p: log_loss(probabilities(logits[p], heat), truth) for p, heat in heats.items()}
    penalty = min(losses, key=lambda p: (losses[p], -p))
    return penalty, heats[penalty]
