"""Images that a program names or holds: paths, arrays, and Pillow's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from byol.data import deep
from byol.data.decode import Unusable, depth_of, from_pillow, num_channels, to_channels
from byol.data.folder import look_at, pixels_at, values_at
from byol.data.source import DataError, Range, Source, shown

ONE_IMAGE = "images is a single image; give a list, [image]"
MOST_TRAILING = 4
"""An array of three axes whose last one is no longer than that is an image, and not gray ones with so few columns."""


def given(images: Iterable[Any], channels: int, value_range: Range | None) -> Source:
    """Images in their order, as a backbone takes them; reading one that it cannot take is a DataError that names it.

    images: paths, arrays [H, W], [H, W, C] or [C, H, W], and images of Pillow, of any sizes and mixed; or one array
    [N, H, W], [N, H, W, C] or [N, C, H, W]. What is encoded is decoded as in a folder. channels, value_range: of the
    backbone, which without a range takes 8-bit gray and RGB, each as the other where it has to.
    """
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
        raise DataError(ONE_IMAGE)
    if not isinstance(images, np.ndarray):
        images = list(images)
    elif images.ndim == 2 or (images.ndim == 3 and images.shape[-1] <= MOST_TRAILING):
        raise DataError(ONE_IMAGE)
    elif images.ndim not in (3, 4):
        raise DataError(f"images have shape {list(images.shape)}; use [N, H, W], [N, H, W, C] or [N, C, H, W]")
    for i, image in enumerate(images):
        if not isinstance(image, (str, os.PathLike, np.ndarray, Image.Image)):
            kind = type(image).__name__
            raise DataError(f"images[{i}] is of type {kind}; give a path, a NumPy array or an image of Pillow")
    if value_range is None and channels not in (1, 3):
        raise DataError(f"which values of {channels} channels are black and white is not known of this backbone")
    return Source(
        name="images",
        num_listed=len(images),
        fingerprint="",
        ids=np.arange(len(images)),
        labels=None,
        channels=channels,
        height=0,
        width=0,
        uniform=False,
        skipped=(),
        sizes=None,
        listing=Given(images, channels),
        deep=value_range is not None,
        value_range=value_range,
    )


@dataclass(frozen=True, eq=False)
class Given:
    """A listing whose images are all wanted: in place of `Unusable` it raises a DataError that names one."""

    images: Sequence[Any] | np.ndarray
    channels: int

    def header(self, position: int) -> tuple[int, int, int]:
        with self._named(position) as image:
            return image.look()[:3]

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        with self._named(position) as image:
            _, _, found, depth = image.look()
            # Formats say what gray of more bits means in 8, see `decode`; arrays do not.
            if depth and (found != 1 or isinstance(image, _Array)):
                raise Unusable(f"{found} channels of {depth} bits, and the backbone was trained on 8-bit gray or RGB")
            return to_channels(image.pixels(), channels)

    def values(self, position: int, channels: int) -> np.ndarray:
        with self._named(position) as image:
            _, _, found, depth = image.look()
            if found != channels or not (depth or channels not in (1, 3)):
                what = f"{found} channels of {depth or 8} bits"
                raise Unusable(f"{what}, and the backbone was trained on {channels} channels of other values")
            values = image.values()
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise Unusable("values that are not finite")
            return values

    def name(self, position: int) -> str:
        image = self.images[position]
        return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"images[{position}]"

    @contextmanager
    def _named(self, position: int) -> Iterator[_Image]:
        image = self.images[position]
        kind = _Array if isinstance(image, np.ndarray) else _Pillow if isinstance(image, Image.Image) else _File
        try:
            yield kind(image, self.channels)
        except Unusable as error:
            raise DataError(f"{shown(self.name(position))}: {error}") from error


class _Image(Protocol):
    """look: (height, width, channels, depth), see `Deep`. pixels: [H, W, 1 or 3] uint8. values: [H, W, C], deep."""

    def look(self) -> tuple[int, int, int, int]: ...
    def pixels(self) -> np.ndarray: ...
    def values(self) -> np.ndarray: ...


class _File:
    def __init__(self, path: str | os.PathLike[str], channels: int) -> None:
        self.path = os.fspath(path)
        self.channels = channels

    def look(self) -> tuple[int, int, int, int]:
        return look_at(self.path, self.channels)

    def pixels(self) -> np.ndarray:
        return pixels_at(self.path)

    def values(self) -> np.ndarray:
        return values_at(self.path, self.channels)


class _Pillow:
    loading = threading.Lock()  # of an image that stands in a list twice, say

    def __init__(self, image: Image.Image, channels: int) -> None:
        self.image = image

    def look(self) -> tuple[int, int, int, int]:
        return self.image.height, self.image.width, num_channels(self.image.mode), depth_of(self.image.mode)

    def pixels(self) -> np.ndarray:
        with self.loading:
            return from_pillow(self.image)

    def values(self) -> np.ndarray:
        with self.loading:
            return np.array(self.image)[..., None]


class _Array:
    def __init__(self, array: np.ndarray, channels: int) -> None:
        self.array = array[..., None] if array.ndim == 2 else array
        if self.array.ndim == 3:
            self.array = deep.channels_last(self.array, channels)

    def look(self) -> tuple[int, int, int, int]:
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise Unusable(f"an array of shape {list(self.array.shape)}, not [H, W], [H, W, C] or [C, H, W]")
        height, width, channels = self.array.shape
        plain = self.array.dtype == np.uint8 and channels in (1, 3)
        return height, width, channels, 0 if plain else deep.bits(self.array.dtype)

    def pixels(self) -> np.ndarray:
        return np.array(self.array)

    def values(self) -> np.ndarray:
        return np.array(self.array)
