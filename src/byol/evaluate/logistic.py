"""L2-regularised logistic regression on standardised features, of one label per image or of several, by L-BFGS.

Features are read in blocks of BLOCK_IMAGES, as float16 or float32 and from disk where that is how they come. Up to
STREAM_IMAGES a fit keeps them standardised, in one float64 copy. Beyond, every pass reads and standardises them anew,
and a fit of [N, D] features to K classes holds at most 1 GiB, for D up to 4,096 and K up to 10,000, besides the labels
and its arrays of K x (D + 1) float64: about twenty, and the 2 * maxcor of L-BFGS's memory, which are 256 MiB or ten
arrays, whichever is more. A ResNet-50's features of 1,000 classes take 0.6 GiB in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from scipy.special import expit
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController
from torch import Tensor

SMALL_FIT = 10_000_000
"""Values in a feature matrix below which a fit runs on one thread."""

STREAM_IMAGES = 200_000
"""Rows of a feature matrix above which a fit keeps no copy of it."""

BLOCK_IMAGES = 1024
"""Images read at a time: few enough that what a pass makes of them stays in the processor's caches."""

STEPS_PER_ESTIMATE = 50
"""L-BFGS steps between estimates of the curvature."""

MEMORY_VALUES = 2**24
"""Float64 values of the last steps, and as many of gradients, that L-BFGS keeps: 20 steps or as many as fit, but 5."""


@dataclass(frozen=True)
class Effort:
    """How exact a fit is to be. Blocks are float64 where features are kept; sums over blocks are float64 always."""

    tolerance: float
    """Converged means: the norm of the objective's gradient is at most this share of its norm at zero weights."""
    iterations: int
    """L-BFGS steps after which it stops with converged=False."""
    streamed: type[np.floating]
    """Of blocks and products where features are not kept."""


FINAL = Effort(tolerance=1e-6, iterations=2000, streamed=np.float64)
"""Float32 products would not do: they round the objective by more than it changes near the end, and line searches fail
with the gradient at 1e-5 to 1e-4 of what it was."""

CHOICE = Effort(tolerance=1e-4, iterations=500, streamed=np.float32)
"""Of fits that are only compared with each other. At 1e-3, penalties below the best one can no longer be told apart
where features are correlated."""

Link = Callable[[np.ndarray, np.ndarray], float]
"""(logits [K, n], targets of the n images) -> the sum of their losses; leaves its gradient where the logits were."""


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A fitted classifier: logits = ((x - mean) / std) @ weight.T + bias."""

    classes: np.ndarray
    """[K] int64, ascending: the labels of the training data, or 0..K-1 for the columns of multi-label targets."""
    weight: np.ndarray
    """[K, D] float64."""
    bias: np.ndarray
    """[K] float64."""
    mean: np.ndarray
    """[D] float64."""
    std: np.ndarray
    """[D] float64, 1 for constant features."""
    converged: bool
    """Whether the fit did."""

    def scores(self, x: np.ndarray | Tensor, rows: np.ndarray | None = None) -> np.ndarray:
        """The logits of the rows of x: [N, D], or of those in rows: [n] int; float64 [N, K] or [n, K]."""
        return np.concatenate(list(self._logits(x, rows)))

    def predict(self, x: np.ndarray | Tensor, rows: np.ndarray | None = None) -> np.ndarray:
        """The most probable class of the rows of x: [N, D], or of those in rows: [n] int; int64 [N] or [n]."""
        return self.classes[np.concatenate([logits.argmax(axis=1) for logits in self._logits(x, rows)])]

    def accuracy(self, x: np.ndarray | Tensor, y: np.ndarray | Tensor) -> float:
        """The share, 0 to 1, of the rows of x: [N, D] whose predicted class is that of y: [N]."""
        x, y = labelled(x, y)
        return float((self.predict(x) == y).mean())

    def _logits(self, x: np.ndarray | Tensor, rows: np.ndarray | None) -> Iterator[np.ndarray]:
        images = Standardised(features(x), rows, self.mean, self.std)
        for _, block in images.blocks(np.float64):
            yield block @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class Standardised:
    """Rows of a feature matrix, standardised block by block as they are read."""

    x: np.ndarray
    """[*, D], floating; a memmap stays on disk."""
    rows: np.ndarray | None
    """[N] int; None for all."""
    mean: np.ndarray
    """[D]."""
    std: np.ndarray
    """[D]."""

    def __len__(self) -> int:
        return len(self.x) if self.rows is None else len(self.rows)

    @property
    def dim(self) -> int:
        return self.x.shape[1]

    @property
    def streamed(self) -> bool:
        """By the whole matrix, so that no part of a large one is copied either."""
        return len(self.x) > STREAM_IMAGES

    def blocks(self, dtype: type[np.floating]) -> Iterator[tuple[slice, np.ndarray]]:
        """(which of the N, those standardised), BLOCK_IMAGES at a time, in order."""
        mean, std = self.mean.astype(dtype), self.std.astype(dtype)
        for start in range(0, len(self), BLOCK_IMAGES):
            part = slice(start, start + BLOCK_IMAGES)
            block = self.x[part if self.rows is None else self.rows[part]].astype(dtype)
            if not np.isfinite(block).all():
                raise ValueError("features hold values that are not finite; look at the encoder that made them")
            block -= mean
            block /= std
            yield part, block


def logistic_regression(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    penalty: float,
    *,
    rows: np.ndarray | None = None,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
    effort: Effort = FINAL,
) -> LinearClassifier:
    """The classifier that minimises

        mean_i -log softmax(W x_i + b)[y_i]  +  penalty / 2 * |W|^2

    over W: [K, D] and b: [K], x_i the standardised features. The bias is not penalised, and the penalty does
    not depend on the number of images. It is scikit-learn's C = 1 / (penalty * N) for K > 2.

    train_x: [N, D] floating, train_y: [N] integer. rows: [n] int, the images to fit to, of K >= 2 classes; all by
    default. statistics: mean and std, each [D], to standardise by; by default those of the images fitted to (divisor
    N, and 1 for constant features).
    """
    return next(logistic_path(train_x, train_y, [penalty], rows=rows, statistics=statistics, effort=effort))[1]


def logistic_path(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    penalties: Sequence[float],
    *,
    rows: np.ndarray | None = None,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
    effort: Effort = FINAL,
) -> Iterator[tuple[float, LinearClassifier]]:
    """(penalty, `logistic_regression`) for each penalty, largest first, each fit starting where the last ended."""
    x, y = labelled(train_x, train_y)
    y = y if rows is None else y[rows]
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"the training labels hold {len(classes)} class; a classifier needs at least 2")
    images = Standardised(x, rows, *(statistics or standardisation(x, rows)))
    return descend(images, classes, np.searchsorted(classes, y), softmax, penalties, effort)


def descend(
    images: Standardised,
    classes: np.ndarray,
    targets: np.ndarray,
    link: Link,
    penalties: Sequence[float],
    effort: Effort,
) -> Iterator[tuple[float, LinearClassifier]]:
    """(penalty, the minimum of the link's mean loss + penalty / 2 * |W|^2) for each, largest first, warm-started."""
    if len(penalties) == 0 or not all(0 < p < float("inf") for p in penalties):
        raise ValueError("penalties are not allowed to be none, infinite, 0 or below; use one or more positive numbers")
    # Small fits lose more to waiting threads than they win: 1.8 s against 0.5 s for 4,000 x 256.
    threads = 1 if len(images) * images.dim < SMALL_FIT else None
    with _libraries().limit(limits=threads, user_api="blas"):
        objective = Objective(images, targets, link, effort.streamed if images.streamed else np.float64)
        weight = np.zeros((len(classes), len(objective.squares)))
        goal = effort.tolerance * float(np.linalg.norm(objective(weight)[1]))
    for penalty in sorted(penalties, reverse=True):
        with _libraries().limit(limits=threads, user_api="blas"):
            weight, converged = _fit(objective, weight, penalty, goal, effort.iterations)
            turned = weight[:, :-1] @ objective.axes.T
        yield penalty, LinearClassifier(classes, turned, weight[:, -1], images.mean, images.std, converged)


@cache
def _libraries() -> ThreadpoolController:
    """What counts threads, found once: looking for it takes longer than a small fit."""
    return ThreadpoolController()


def softmax(logits: np.ndarray, targets: np.ndarray) -> float:
    """The link of one label per image: cross-entropy. targets: [n] in 0..K-1."""
    every = np.arange(len(targets))
    logits -= logits.max(axis=0)
    own = logits[targets, every].sum(dtype=np.float64)
    np.exp(logits, out=logits)
    total = logits.sum(axis=0)
    logits /= total
    logits[targets, every] -= 1
    return float(np.log(total).sum(dtype=np.float64) - own)


def sigmoid(logits: np.ndarray, targets: np.ndarray) -> float:
    """The link of K labels per image: binary cross-entropy. targets: [n, K], 1 present, 0 absent, -1 left out."""
    present, known = targets.T == 1, targets.T >= 0
    losses = np.logaddexp(0, logits)
    losses -= logits * present
    expit(logits, out=logits)
    logits -= present
    logits *= known
    return float(losses.sum(where=known, dtype=np.float64))


class Objective:
    """The mean loss and its gradient as functions of weights: [K, R + 1] float64, the last column the bias.

    Weights are in the axes of the images' second moments, R = min(N, D) of them (D where features are not kept). The
    penalised optimum lies in the span of the images, and a turn of the axes changes no weight's length: the same
    problem, in as few dimensions as it has, and with features whose products with each other vanish in the mean.
    """

    axes: np.ndarray
    """[D, R] float64, in columns."""
    squares: np.ndarray
    """[R + 1] float64: the mean square of the images along each axis, and of the bias's 1."""

    def __init__(self, images: Standardised, targets: np.ndarray, link: Link, dtype: type[np.floating]) -> None:
        self._images, self._targets, self._link, self._dtype = images, targets, link, dtype
        self._kept: list[tuple[slice, np.ndarray]] | None = None
        if images.streamed:
            squares, self.axes = self._principal_axes()
        elif len(images) < images.dim:
            whole = np.concatenate([block for _, block in images.blocks(dtype)])
            left, lengths, right = np.linalg.svd(whole, full_matrices=False)
            squares, self.axes, self._kept = lengths**2, right.T, [(slice(None), left * lengths)]
        else:
            squares, self.axes = self._principal_axes()
            self._kept = [(part, block @ self.axes) for part, block in images.blocks(dtype)]
        self.squares = np.append(squares.clip(0) / len(images), 1.0)

    def __call__(self, weight: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, np.zeros((len(weight), len(self.axes) + 1 if self._kept is None else weight.shape[1]))
        for x, loss, errors in self._blocks(weight):
            value += loss
            gradient[:, :-1] += errors @ x
            gradient[:, -1] += errors.sum(axis=1, dtype=np.float64)
        if self._kept is None:
            gradient[:, :-1] = gradient[:, :-1] @ self.axes
        return value / len(self._images), gradient / len(self._images)

    def curvature(self, weight: np.ndarray) -> np.ndarray:
        """An estimate of the second derivative by each weight, [K, R + 1]."""
        by_logit = np.zeros((len(weight), 1))
        for _, _, errors in self._blocks(weight):
            shares = np.abs(errors)  # a class's, or 1 less it, which is the same in the product
            by_logit += (shares * (1 - shares)).sum(axis=1, keepdims=True, dtype=np.float64)
        return by_logit * self.squares / len(self._images)

    def _blocks(self, weight: np.ndarray) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        """(features [n, R], the sum of their losses, its gradient by the logits [K, n]), block by block."""
        matrix = weight[:, :-1] @ self.axes.T if self._kept is None else weight[:, :-1]
        matrix, bias = matrix.astype(self._dtype), weight[:, -1:].astype(self._dtype)
        for part, x in self._kept or self._images.blocks(self._dtype):
            logits = matrix @ x.T
            logits += bias
            yield x, self._link(logits, self._targets[part]), logits

    def _principal_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum of squares along each axis, [D], and the axes, [D, D]."""
        moments = np.zeros((self._images.dim, self._images.dim))
        for _, block in self._images.blocks(self._dtype):
            moments += block.T @ block
        return np.linalg.eigh(moments)


def _fit(
    objective: Objective, weight: np.ndarray, penalty: float, goal: float, iterations: int
) -> tuple[np.ndarray, bool]:
    """(the optimum [K, R + 1], found from `weight`, and whether the norm of the gradient came down to `goal`).

    L-BFGS sees steps in units of 1 / sqrt(curvature), estimated anew every STEPS_PER_ESTIMATE steps: features are as
    correlated as pixels are, and without this it takes thousands of steps where now it takes tens.
    """
    penalties = np.append(np.full(weight.shape[1] - 1, penalty), 0.0)

    def penalised(weight: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(weight)
        return value + float((penalties * weight**2).sum()) / 2, gradient + penalties * weight

    converged = bool(np.linalg.norm(penalised(weight)[1]) <= goal)
    while iterations > 0 and not converged:
        unit = 1 / np.sqrt(np.maximum(objective.curvature(weight) + penalties, np.finfo(float).eps))
        weight, converged, steps = _descend(penalised, weight, unit, goal, min(iterations, STEPS_PER_ESTIMATE))
        if steps == 0:  # rounding has hidden the way down
            break
        iterations -= steps
    return weight, converged


def _descend(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    unit: np.ndarray,
    goal: float,
    iterations: int,
) -> tuple[np.ndarray, bool, int]:
    """(where L-BFGS came to, whether the norm of the gradient is at most `goal` there, the steps it took)."""
    gradient = np.zeros_like(start)

    def scaled(steps: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal gradient
        value, gradient = function(start + steps.reshape(start.shape) * unit)
        return value, (gradient * unit).ravel()

    def stop_when_converged(intermediate_result: OptimizeResult) -> None:
        if np.linalg.norm(gradient) <= goal:
            raise StopIteration

    found = minimize(
        scaled,
        np.zeros(start.size),
        jac=True,
        method="L-BFGS-B",
        callback=stop_when_converged,
        options={"maxiter": iterations, "gtol": 0, "ftol": 0, "maxcor": max(5, min(20, MEMORY_VALUES // start.size))},
    )
    gradient = found.jac.reshape(start.shape) / unit
    return start + found.x.reshape(start.shape) * unit, bool(np.linalg.norm(gradient) <= goal), found.nit


def standardisation(x: np.ndarray | Tensor, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of each feature of x: [N, D], or of its rows: [n] int; float64 [D] each, std 1 where constant."""
    scaler = StandardScaler()
    for _, block in Standardised(features(x), rows, np.zeros(1), np.ones(1)).blocks(np.float64):
        scaler.partial_fit(block)
    return scaler.mean_, scaler.scale_


def labelled(x: np.ndarray | Tensor, y: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features as they are, [N, D] floating, and their labels as int64 [N], checked."""
    array = features(x)
    labels = np.asarray(y.detach().cpu().numpy() if isinstance(y, Tensor) else y)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}; use integers [N]")
    if len(array) != len(labels):
        raise ValueError(f"there are {len(array)} feature rows and {len(labels)} labels; use one per row")
    return array, labels.astype(np.int64)


def features(x: np.ndarray | Tensor) -> np.ndarray:
    """x as a floating array [N, D], not copied where NumPy has its type; checked, but for values not finite."""
    if isinstance(x, Tensor):
        x = (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
    array = np.asarray(x)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"features have shape {list(array.shape)}; use [N, D] with N >= 1 and D >= 1")
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)
