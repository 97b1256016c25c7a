"""Whether a probability of 0.9 is right nine times in ten: the temperature that makes it so, and how far it is not.

Guo, Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax

BINS = 15
"""Of the expected calibration error: the paper's number."""

HOTTEST = 100.0
"""The temperature of logits that know nothing of the classes: at it, probabilities are equal but for a hundredth."""


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 at which softmax(logits / T) is likeliest, section 4.2; in (0, HOTTEST].

    One departure: as few labels may all be predicted right, and the likeliest temperature then is 0 and every
    probability 1, one image more is taken to have been seen, of all classes in equal parts. Of N images each has its
    label with weight N / (N + 1) and every class with 1 / ((N + 1) K). For K = 2 and margins all equal, the probability
    is then (right + 1/2) / (N + 1), the rule of Krichevsky & Trofimov 1981; with many labels it is the paper's.

    logits: [N, K] floating, N >= 1, of images that the classifier was not fitted to. labels: [N] integer in 0..K-1.
    """
    check(logits, labels)
    num, logits = len(logits), logits - logits.mean(axis=1, keepdims=True)
    wanted = num / (num + 1) * logits[np.arange(num), labels]  # of all classes in equal parts the mean is 0

    def slope(inverse: float) -> float:
        """Of the mean loss, which is convex, by 1 / T."""
        return float(((probabilities(logits, 1 / inverse) * logits).sum(axis=1) - wanted).mean())

    low, high = 1 / HOTTEST, 1.0
    if slope(low) >= 0:
        return HOTTEST
    while slope(high) < 0:
        high *= 2
    return float(1 / brentq(slope, low, high, xtol=1e-12, rtol=1e-12))


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature): [N, K] float64."""
    return np.exp(log_softmax(np.asarray(logits, np.float64) / temperature, axis=1))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """The mean distance, 0 to 1, of the largest probability from the share that is right, bin by bin; section 2.

    The bins ((b - 1) / bins, b / bins] are of equal width, and weigh as many images as they have. Of few images it is
    above 0 also where the probabilities are right, for each bin's share is a chance result.

    probabilities: [N, K], 0 to 1. labels: [N] integer in 0..K-1.
    """
    total = sum(
        images * abs(share - confidence) for confidence, share, images in reliability(probabilities, labels, bins)
    )
    return total / len(labels)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean largest probability, share of right predictions, images) of each bin that has images, in order."""
    check(probabilities, labels)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    of_image = np.clip(np.ceil(confidence * bins).astype(int), 1, bins)
    members = [of_image == b for b in range(1, bins + 1)]
    return [(float(confidence[m].mean()), float(right[m].mean()), int(m.sum())) for m in members if m.any()]


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log of the true class's probability, in nats; infinite where one is 0."""
    check(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over images of the sum over classes of (p - [it is the class])^2, 0 to 2: Brier 1950."""
    check(probabilities, labels)
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1).mean())


def check(values: np.ndarray, labels: np.ndarray) -> None:
    """ValueError unless values are [N, K] finite floats, and labels [N] integers in 0..K-1, N >= 1."""
    if values.ndim != 2 or not len(values) or labels.shape != values.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"values are {list(values.shape)} and labels {labels.dtype} {list(labels.shape)}; use [N, K], [N]"
        )
    if not np.isfinite(values).all():
        raise ValueError("values are not all finite; look at the classifier that made them")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}; use 0 to {values.shape[1] - 1}")
