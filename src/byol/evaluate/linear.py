"""Linear evaluation: L2-regularised multinomial logistic regression on frozen features.

The protocol of BYOL's transfer experiments (Grill et al. 2020, Appendix D.3, after Kornblith et al. 2019): L-BFGS, no
augmentation, one of 45 penalties chosen on a validation part of the training data, then a fit on all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from byol.evaluate.logistic import CHOICE, FINAL, Effort, LinearClassifier, labelled, logistic_path
from byol.evaluate.scores import Score, accuracy

PENALTIES = tuple(np.logspace(-6, 5, 45).tolist())
"""Penalties tried by default, 1e-6 to 1e5: the published ones."""

Split = tuple[np.ndarray, np.ndarray]
"""Indices of a fit part and of a validation part of the training data."""

Fits = Callable[[np.ndarray | None, list[float], Effort], Iterator[tuple[float, LinearClassifier]]]
"""(rows, penalties in mean form, effort) -> the fits to these rows (None: to all), from the largest penalty down."""


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A classifier whose penalty was chosen on a part of the training data. It has seen no other."""

    classifier: LinearClassifier
    """Fitted to all training data."""
    penalty: float
    """The chosen one, in the sum form of `mean_penalty`."""
    validation_scores: dict[float, float]
    """Penalty -> score on the validation part."""
    converged: bool
    """Whether every fit converged, those of the choice included."""


@dataclass(frozen=True, eq=False)
class LinearResult:
    """What `linear_evaluation` measured. Accuracies are shares, 0 to 1."""

    accuracy: float
    """On the test data, of the one classifier that was fitted to all training data."""
    penalty: float
    """The chosen one, in the sum form of `mean_penalty`."""
    validation_accuracies: dict[float, float]
    """Penalty -> accuracy on the validation part."""
    converged: bool
    """Whether every fit converged, those of the choice included."""
    predictions: np.ndarray
    """[N_test] int64."""


def linear_evaluation(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    test_x: np.ndarray | Tensor,
    test_y: np.ndarray | Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    validation_share: float = 0.2,
    seed: int = 0,
) -> LinearResult:
    """Test accuracy of `fit_linear`. Only once that is done are the test data read, and scored once.

    train_x: [N, D], test_x: [N_test, D], floating. train_y: [N], test_y: [N_test], integer.
    """
    fit = fit_linear(train_x, train_y, penalties=penalties, validation_share=validation_share, seed=seed)
    test_x, test_y = labelled(test_x, test_y)
    predictions = fit.classifier.predict(test_x)
    return LinearResult(
        accuracy=float(accuracy(test_y, predictions)),
        penalty=fit.penalty,
        validation_accuracies=fit.validation_scores,
        converged=fit.converged,
        predictions=predictions,
    )


def fit_linear(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    validation_share: float = 0.2,
    seed: int = 0,
    split: Split | None = None,
    score: Score = accuracy,
) -> LinearFit:
    """Logistic regression whose penalty was chosen on a part of the training data.

    The training data are split at random, class by class, or as `split` says; each penalty is fitted to one part and
    scored on the other, of share `validation_share`. The best (on a tie the largest) is fitted to all training data.
    The split depends on train_y and seed alone, so encoders compare on the same one.

    train_x: [N, D] floating, which may be a memmap: `byol.evaluate.logistic` says what is held of it. train_y: [N]
    integer. split: two arrays of indices that share none, such as keep groups of images together.
    """
    x, y = labelled(train_x, train_y)
    if split is None:
        split = stratified_split(y, validation_share, np.random.default_rng(seed))

    def fits(rows: np.ndarray | None, mean_penalties: list[float], effort: Effort) -> Iterator:
        return logistic_path(x, y, mean_penalties, rows=rows, effort=effort)

    return fit_chosen(fits, lambda model, rows: score(y[rows], model.predict(x, rows)), penalties, split, len(y))


def fit_chosen(
    fits: Fits,
    judge: Callable[[LinearClassifier, np.ndarray], float],
    penalties: Sequence[float],
    split: Split,
    images: int,
) -> LinearFit:
    """The fit to all `images` at the penalty whose fit to the fit part scores highest on the validation part.

    judge: (classifier, rows) -> its score on them.
    """
    fit, validation = split
    if len(fit) == 0 or len(validation) == 0 or np.intersect1d(fit, validation).size:
        raise ValueError("the fit and the validation part are empty or share images; give two parts with images apart")
    scores, converged = {}, True
    largest_first = sorted(set(penalties), reverse=True)
    path = fits(fit, [mean_penalty(p, len(fit)) for p in largest_first], CHOICE)
    for penalty, (_, model) in zip(largest_first, path, strict=True):
        scores[penalty] = judge(model, validation)
        converged &= model.converged
    best = best_penalty(scores)
    _, final = next(fits(None, [mean_penalty(best, images)], FINAL))
    return LinearFit(final, best, scores, converged and final.converged)


def mean_penalty(penalty: float, images: int) -> float:
    """The penalty of `logistic_regression` that is `penalty` in a fit to so many images, to minimise

        sum_i loss_i  +  penalty / 2 * |W|^2   =   images * (mean_i loss_i  +  (penalty / images) / 2 * |W|^2).

    The papers give the penalties' range and do not say whether it weighs against the sum of the images' losses or
    their mean. We read it as the sum: one penalty is then weaker the more images there are. It is scikit-learn's
    C = 1 / penalty, for more than two classes; of two, it has one weight vector for the difference of ours, and
    C = 2 / penalty.
    """
    return penalty / images


def best_penalty(scores: Mapping[float, float]) -> float:
    """The penalty of highest score; on a tie the largest."""
    if not np.isfinite(list(scores.values())).all():
        raise ValueError("a validation score is not finite; give a validation part on which the score is defined")
    return max(scores, key=lambda penalty: (scores[penalty], penalty))


def stratified_split(
    y: np.ndarray, share: float, generator: np.random.Generator, *, keep: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a fit part and of a validation part with `share` of each class, both ascending int64.

    y: [N] integer. Of each class at least `keep` images stay in the fit part, whatever the share.
    """
    check_share(share)
    held_out = []
    for label in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == label))
        held_out.append(members[: max(0, min(round(share * len(members)), len(members) - keep))])
    validation = np.sort(np.concatenate(held_out))
    if len(validation) == 0:
        raise ValueError(
            f"no class has images to spare for validation at validation_share={share}; "
            "give more training images per class, or fix the penalty"
        )
    return np.setdiff1d(np.arange(len(y)), validation), validation


def check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"validation_share={share} is not allowed; use a number between 0 and 1")
