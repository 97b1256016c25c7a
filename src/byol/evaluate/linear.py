"""Linear evaluation: L2-regularised multinomial logistic regression on frozen features.

The protocol of BYOL's transfer experiments (Grill et al. 2020, after Kornblith et al. 2019): L-BFGS, no
augmentation, the penalty chosen on a validation part of the training data, then a fit on all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeResult, minimize
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

SMALL_FIT = 10_000_000
"""Values in a feature matrix below which a fit runs on one thread."""

PENALTIES = tuple(10.0**e for e in range(-5, 2))
"""Penalties tried by default, 1e-5 to 10."""

MAX_ITERATIONS = 2000
"""L-BFGS iterations after which a fit stops with converged=False."""

TOLERANCE = 1e-6
"""A fit has converged when the norm of the objective's gradient is at most this share of its norm at zero weights."""


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A fitted classifier: logits = ((x - mean) / std) @ weight.T + bias."""

    classes: np.ndarray
    """[K] int64, ascending: the labels of the training data."""
    weight: np.ndarray
    """[K, D] float64."""
    bias: np.ndarray
    """[K] float64."""
    mean: np.ndarray
    """[D] float64."""
    std: np.ndarray
    """[D] float64, 1 for constant features."""
    converged: bool
    """Whether L-BFGS reached TOLERANCE."""

    def predict(self, x: np.ndarray | Tensor) -> np.ndarray:
        """The most probable class of each row of x: [N, D]; int64 [N]."""
        logits = (_features(x) - self.mean) / self.std @ self.weight.T + self.bias
        return self.classes[logits.argmax(axis=1)]

    def accuracy(self, x: np.ndarray | Tensor, y: np.ndarray | Tensor) -> float:
        """The share, 0 to 1, of the rows of x: [N, D] whose predicted class is that of y: [N]."""
        x, y = labelled(x, y)
        return float((self.predict(x) == y).mean())


@dataclass(frozen=True, eq=False)
class LinearResult:
    """What `linear_evaluation` measured. Accuracies are shares, 0 to 1."""

    accuracy: float
    """On the test data, of the one classifier that was fitted to all training data."""
    penalty: float
    """The chosen one."""
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
    """Test accuracy of logistic regression whose penalty was chosen on a part of the training data.

    The training data are split at random, class by class; each penalty is fitted to one part and scored on
    the other, of share `validation_share`. The best (on a tie the largest) is fitted to all training data,
    and only then are the test data read, and scored once. The split depends on train_y and seed alone, so
    encoders compare on the same one.

    train_x: [N, D], test_x: [N_test, D], floating. train_y: [N], test_y: [N_test], integer.
    """
    x, y = labelled(train_x, train_y)
    fit, validation = stratified_split(y, validation_share, np.random.default_rng(seed))
    path = logistic_path(x[fit], y[fit], penalties)
    validation_x, validation_y = x[validation], y[validation]
    accuracies = {penalty: model.accuracy(validation_x, validation_y) for penalty, model in path.items()}
    penalty = best_penalty(accuracies)
    final = logistic_regression(x, y, penalty)

    test_x, test_y = labelled(test_x, test_y)
    predictions = final.predict(test_x)
    return LinearResult(
        accuracy=float((predictions == test_y).mean()),
        penalty=penalty,
        validation_accuracies=accuracies,
        converged=final.converged and all(model.converged for model in path.values()),
        predictions=predictions,
    )


def logistic_regression(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    penalty: float,
    *,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
) -> LinearClassifier:
    """The classifier that minimises

        mean_i -log softmax(W x_i + b)[y_i]  +  penalty / 2 * |W|^2

    over W: [K, D] and b: [K], x_i the standardised features. The bias is not penalised, and the penalty does
    not depend on the number of images. It is scikit-learn's C = 1 / (penalty * N) for K > 2.

    train_x: [N, D] floating, train_y: [N] integer, of K >= 2 classes. statistics: mean and std, each [D], to
    standardise by; by default those of train_x (divisor N, and 1 for constant features). Computed in float64.
    """
    return logistic_path(train_x, train_y, [penalty], statistics=statistics)[penalty]


def logistic_path(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    penalties: Sequence[float],
    *,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[float, LinearClassifier]:
    """`logistic_regression` for each penalty, largest first, each fit starting where the last ended."""
    penalties = sorted(set(penalties), reverse=True)
    if not penalties or not all(0 < p < float("inf") for p in penalties):
        raise ValueError(f"penalties={penalties} is not allowed; use one or more positive finite numbers")
    x, y = labelled(train_x, train_y)
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"the training labels hold {len(classes)} class; a classifier needs at least 2")
    mean, std = standardisation(x) if statistics is None else statistics
    x, rows = (x - mean) / std, np.searchsorted(classes, y)
    # Small fits lose more to waiting threads than they win: 1.8 s against 0.5 s for 4,000 x 256.
    with threadpool_limits(1 if x.size < SMALL_FIT else None, user_api="blas"):
        x, basis = _principal_axes(x)
        columns = np.vstack([x.T, np.ones(len(x))])
        weight, path = np.zeros((len(classes), len(columns))), {}
        for penalty in penalties:
            weight, converged = _fit(columns, rows, weight, penalty)
            path[penalty] = LinearClassifier(classes, weight[:, :-1] @ basis.T, weight[:, -1], mean, std, converged)
    return path


def _principal_axes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x in the axes of its second moments, those axes as columns), for x: [N, D]; of axes there are min(N, D).

    The penalised optimum lies in the span of the images, and a turn of the axes changes no weight's length: the same
    problem, in as few dimensions as it has, and with features whose products with each other vanish in the mean.
    """
    basis = None
    if len(x) < x.shape[1]:
        basis, coordinates = np.linalg.qr(x.T)
        x = coordinates.T
    _, axes = np.linalg.eigh(x.T @ x)
    return x @ axes, axes if basis is None else basis @ axes


def _fit(x: np.ndarray, y: np.ndarray, start: np.ndarray, penalty: float) -> tuple[np.ndarray, bool]:
    """(the optimum [K, D], whether L-BFGS converged). x: [D, N], its last row of ones. y: [N] in 0..K-1.

    L-BFGS sees weights in units of 1 / sqrt(curvature), the curvature estimated for each axis at the start: features
    are as correlated as pixels are, and without this it takes thousands of steps where now it takes tens.
    """
    penalties = np.append(np.full(len(x) - 1, penalty), 0.0)
    every = np.arange(len(y))

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        logits = weight @ x
        logits -= logits.max(axis=0)
        shares = np.exp(logits)
        total = shares.sum(axis=0)
        value = (penalties * weight**2).sum() / 2 + (np.log(total) - logits[y, every]).mean()
        shares /= total
        errors = shares.copy()
        errors[y, every] -= 1
        return value, errors @ x.T / len(y) + penalties * weight, shares

    tolerance = TOLERANCE * np.linalg.norm(objective(np.zeros_like(start))[1])
    shares = objective(start)[2]
    curvature = (shares * (1 - shares)).mean() * (x**2).mean(axis=1)
    unit = 1 / np.sqrt(np.maximum(curvature + penalties, np.finfo(float).eps))
    gradient = np.zeros_like(start)

    def scaled(weight: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal gradient
        value, gradient, _ = objective(weight.reshape(start.shape) * unit)
        return value, (gradient * unit).ravel()

    def stop_when_converged(intermediate_result: OptimizeResult) -> None:
        if np.linalg.norm(gradient) <= tolerance:
            raise StopIteration

    found = minimize(
        scaled,
        (start / unit).ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=stop_when_converged,
        options={"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": 0, "ftol": 0, "maxcor": 20},
    )
    weight = found.x.reshape(start.shape) * unit
    return weight, bool(np.linalg.norm(objective(weight)[1]) <= tolerance)


def standardisation(x: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of each feature of x: [N, D]; float64 [D] each, std 1 for constant features."""
    scaler = StandardScaler().fit(_features(x))
    return scaler.mean_, scaler.scale_


def stratified_split(
    y: np.ndarray, share: float, generator: np.random.Generator, *, keep: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a fit part and of a validation part with `share` of each class, both ascending int64.

    y: [N] integer. Of each class at least `keep` images stay in the fit part, whatever the share.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share={share} is not allowed; use a number between 0 and 1")
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


def best_penalty(accuracies: Mapping[float, float]) -> float:
    """The penalty of highest accuracy; on a tie the largest."""
    return max(accuracies, key=lambda penalty: (accuracies[penalty], penalty))


def labelled(x: np.ndarray | Tensor, y: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features as float64 [N, D] and their labels as int64 [N], checked."""
    features = _features(x)
    labels = np.asarray(y.detach().cpu().numpy() if isinstance(y, Tensor) else y)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}; use integers [N]")
    if len(features) != len(labels):
        raise ValueError(f"there are {len(features)} feature rows and {len(labels)} labels; use one per row")
    return features, labels.astype(np.int64)


def _features(x: np.ndarray | Tensor) -> np.ndarray:
    """x as float64 [N, D], checked."""
    array = np.asarray(x.detach().double().cpu().numpy() if isinstance(x, Tensor) else x, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"features have shape {list(array.shape)}; use [N, D] with N >= 1 and D >= 1")
    if not np.isfinite(array).all():
        raise ValueError("features hold values that are not finite; look at the encoder that made them")
    return array
