"""Fixed splits of labelled images, in two or in folds, that keep groups of images (of one patient, one video)
together."""

from __future__ import annotations

import numpy as np

from byol.data.source import DataError
from byol.evaluate.linear import stratified_split


def split(
    labels: np.ndarray, share: float, *, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a large part and of a small part with about `share` of each class, both ascending int64.

    labels: [N] integer. groups: [N] integer; no group is cut. Groups are moved, in a random order, while that brings
    the small part nearer to `share` of each class: with one class, to within half a group. Every class keeps a group
    in the large part. Without groups it is `stratified_split`.
    """
    if groups is None:
        return stratified_split(labels, share, np.random.default_rng(seed))
    if not 0 < share < 1:
        raise ValueError(f"share={share} is not allowed; use a number between 0 and 1")
    codes, of_row = np.unique(groups, return_inverse=True)
    if len(codes) < 2:
        raise DataError(f"the images are of {len(codes)} group, and a split needs 2 or more; name another grouping")
    held = _held_groups(np.unique(labels, return_inverse=True)[1], of_row, share, np.random.default_rng(seed))
    return np.flatnonzero(~held[of_row]), np.flatnonzero(held[of_row])


def folds(labels: np.ndarray, number: int, *, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The fold of each image, [N] int64 in 0..number - 1, or -1 of those that no fold may hold out.

    Each class is dealt out evenly. No fold holds the whole of a class, so that what is trained on the others knows all
    of them: images of a class of one image stay out of all folds. groups: [N] integer; no group is cut, and a class of
    one group stays out of all folds, with its group. Folds may be empty.

    The largest groups go first, in a random order where they are equal, each to the fold that has least of its classes:
    the one where the squared distance from an even share, relative to each class, grows least.
    """
    if number < 2:
        raise ValueError(f"number={number} is not allowed; use 2 folds or more")
    classes = np.unique(labels, return_inverse=True)[1]
    of_row = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)[1]
    total = np.bincount(classes)
    sizes = np.bincount(of_row)
    order = np.random.default_rng(seed).permutation(len(sizes))
    rows = np.split(np.argsort(of_row, kind="stable"), np.cumsum(sizes)[:-1])
    of_group, held = np.full(len(sizes), -1), np.zeros((number, len(total)), np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        mine, counts = np.unique(classes[rows[group]], return_counts=True)
        growth = (counts * (2 * held[:, mine] + counts) / total[mine]).sum(axis=1)
        growth[(held[:, mine] + counts == total[mine]).any(axis=1)] = np.inf
        fold = np.lexsort((held.sum(axis=1), growth))[0]
        if np.isfinite(growth[fold]):
            of_group[group] = fold
            held[fold, mine] += counts
    return of_group[of_row]


def _held_groups(labels: np.ndarray, groups: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Which groups the small part takes, [G] bool. labels, groups: [N], codes from 0.

    scikit-learn's StratifiedGroupKFold makes parts of 1/k alone, ten times slower, and draws otherwise from version to
    version.
    """
    total = np.bincount(labels).astype(np.float64)
    rows = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    held, taken = np.zeros(len(rows), bool), np.zeros_like(total)

    def step(group: int) -> tuple[np.ndarray, float]:
        """The counts that moving the group adds, and to the squared distance from the share, relative to each class."""
        counts = np.bincount(labels[rows[group]], minlength=len(total)) * (-1 if held[group] else 1)
        if ((taken + counts == total) & (counts > 0)).any():
            return counts, np.inf
        return counts, float((counts * (counts + 2 * (taken - share * total)) / total).sum())

    changed = True
    while changed:
        changed = False
        for group in generator.permutation(len(rows)):
            counts, change = step(group)
            if change < -1e-9:  # every step brings the parts nearer to the share, so this ends
                held[group], taken, changed = not held[group], taken + counts, True
    if not held.any():
        changes = [step(group)[1] for group in range(len(rows))]
        if np.isinf(changes).all():
            raise DataError("every group holds all images of a class, so none can be set aside; name another grouping")
        held[np.argmin(changes)] = True
    return held
