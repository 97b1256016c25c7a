"""Labelled images as evaluation takes them: one part of a source, opened no sooner than it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from byol.data.folder import Files
from byol.data.loader import fits_memory, load_pixels
from byol.data.source import HOW_TO_LABEL, DataError, Source, digest
from byol.evaluate.splits import split


@dataclass(frozen=True, eq=False)
class Labelled:
    """source: of labelled images alone. pixels: [N, C, H, W] uint8 where they fit in memory, row i = image i of it.

    classes: the names of labels 0, 1, ..., which are all there are.
    """

    source: Source
    pixels: Tensor | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> np.ndarray:
        """[N] int64, indices of classes."""
        assert self.source.labels is not None, "checked where it was opened"
        return self.source.labels

    @cached_property
    def content(self) -> str:
        """Hex SHA-256 of the images: of arrays and Parquet files, and of a folder's files, byte by byte."""
        found = hashlib.sha256(self.source.fingerprint.encode() + np.asarray(self.source.ids, "<i8").tobytes())
        if isinstance(self.source.listing, Files):  # whose fingerprint covers names and sizes
            for part in self.source.listing.digests(self.source.ids):
                found.update(part)
        return found.hexdigest()

    @cached_property
    def labels_content(self) -> str:
        """Hex SHA-256 of labels, classes and groups."""
        return digest(np.array(self.classes), self.source.labels, self.source.targets, self.source.groups)

    @property
    def square(self) -> int:
        """The side, px, at which its images are compared with others."""
        return min(self.source.height, self.source.width, 64)

    @property
    def targets(self) -> np.ndarray | None:
        """[N, K] int8 where an image may have several labels: 1 present, 0 absent, -1 unknown."""
        return self.source.targets

    def subset(self, rows: np.ndarray) -> Labelled:
        """The images of those rows, in ascending order."""
        rows = np.sort(rows)
        return replace(self, source=self.source.subset(rows), pixels=None if self.pixels is None else self.pixels[rows])


@dataclass(frozen=True, eq=False)
class Parts:
    """Training images, and test images that are read when they are asked for."""

    train: Labelled
    open_test: Callable[[], Labelled]
    test_name: str


def labelled_of(source: Source) -> Source:
    """Its labelled images, labels numbered 0, 1, ... by `classes`. DataError where there are none."""
    if source.targets is not None:
        return source.subset(np.flatnonzero((source.targets >= 0).any(axis=1)))
    if source.labels is None or not (source.labels >= 0).any():
        raise DataError(f"{source.name} has no labels to evaluate against; {HOW_TO_LABEL}, or give --labels FILE.csv")
    source = source.subset(np.flatnonzero(source.labels >= 0))
    assert source.labels is not None
    if source.classes is not None:
        return source
    values, labels = np.unique(source.labels, return_inverse=True)
    return replace(source, labels=labels.astype(np.int64), classes=tuple(map(str, values.tolist())))


def apart(source: Source, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of labelled images (most, `share` of them), both ascending: class by class, and whole groups where there are
    groups; of several labels an image at random."""
    if source.targets is not None:
        groups = np.arange(len(source)) if source.groups is None else source.groups
        order = np.random.default_rng(seed).permutation(np.unique(groups))
        is_held = np.isin(groups, order[: max(1, round(share * len(order)))])
        return np.flatnonzero(~is_held), np.flatnonzero(is_held)
    assert source.labels is not None
    return split(source.labels, share, seed=seed, groups=source.groups)


def load(source: Source) -> Labelled:
    """A source of labelled images, with its pixels where they fit in memory."""
    pixels = None
    if fits_memory(source):
        source, pixels, _ = load_pixels(source)
    assert source.classes is not None
    return Labelled(source, pixels, source.classes)


def with_classes_of(train: Source, test: Source, name: str) -> Source:
    """The test images with the training classes' numbers. DataError where a test class is not among them."""
    if train.classes == test.classes:
        return test
    assert train.classes is not None and test.classes is not None
    if unknown := [c for c in test.classes if c not in train.classes]:
        raise DataError(f"{name} has a class {unknown[0]!r} that the training labels lack; name the classes alike")
    number = np.array([train.classes.index(c) for c in test.classes])
    if test.targets is not None:
        targets = np.full((len(test), len(train.classes)), -1, np.int8)
        targets[:, number] = test.targets
        return replace(test, targets=targets, classes=train.classes)
    assert test.labels is not None
    return replace(test, labels=number[test.labels], classes=train.classes)
