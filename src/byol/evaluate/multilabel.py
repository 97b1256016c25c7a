"""Linear evaluation where an image has any number of labels (VOC 2007): a logistic regression for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from byol.evaluate.linear import PENALTIES, LinearFit, Split, check_share, fit_chosen
from byol.evaluate.logistic import Effort, Standardised, descend, features, sigmoid, standardisation
from byol.evaluate.scores import Score


def fit_multilabel(
    train_x: np.ndarray | Tensor,
    targets: np.ndarray | Tensor,
    *,
    score: Score,
    penalties: Sequence[float] = PENALTIES,
    validation_share: float = 0.2,
    seed: int = 0,
    split: Split | None = None,
) -> LinearFit:
    """The K binary classifiers, of one penalty chosen on a part of the training data, that minimise for each class k

        sum_i log(1 + exp(-s_ik (w_k x_i + b_k)))  +  penalty / 2 * |w_k|^2,   s_ik = 1 for present, -1 for absent,

    over the images i whose target for k is known; x_i are the features standardised over all images fitted to. It is
    scikit-learn's C = 1 / penalty. The classifier's `scores` are w_k x_i + b_k; its `predict` has no use here.

    train_x: [N, D] floating, as `fit_linear` takes it. targets: [N, K] integer, 1 present, 0 absent, -1 not known.
    score: (targets [n, K], scores [n, K] float64) -> what the chosen penalty makes greatest, such as mean average
    precision. split: as for `fit_linear`; by default images are held out at random.
    """
    x, targets = features(train_x), _checked(targets)
    if len(x) != len(targets):
        raise ValueError(f"there are {len(x)} feature rows and {len(targets)} rows of targets; use one per row")
    if split is None:
        split = random_split(len(x), validation_share, np.random.default_rng(seed))
    classes = np.arange(targets.shape[1])

    def fits(rows: np.ndarray | None, mean_penalties: list[float], effort: Effort) -> Iterator:
        images = Standardised(x, rows, *standardisation(x, rows))
        return descend(images, classes, targets if rows is None else targets[rows], sigmoid, mean_penalties, effort)

    return fit_chosen(fits, lambda model, rows: score(targets[rows], model.scores(x, rows)), penalties, split, len(x))


def random_split(images: int, share: float, generator: np.random.Generator) -> Split:
    """Indices of a fit part and of a validation part with `share` of the images, both ascending int64, none empty."""
    check_share(share)
    if images < 2:
        raise ValueError("one image cannot be split; give more training images")
    order = generator.permutation(images)
    held_out = min(max(round(share * images), 1), images - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _checked(targets: np.ndarray | Tensor) -> np.ndarray:
    """Targets as int8 [N, K]. ValueError unless every class is present in an image and absent from one."""
    array = np.asarray(targets.detach().cpu().numpy() if isinstance(targets, Tensor) else targets)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not np.isin(array, (-1, 0, 1)).all():
        raise ValueError(f"targets are {array.dtype} {list(array.shape)}; use integers [N, K] of -1, 0 and 1")
    for k, column in enumerate(array.T):
        if not (column == 1).any() or not (column == 0).any():
            raise ValueError(f"class {k} is present in no training image or absent from none; leave it out")
    return array.astype(np.int8)
