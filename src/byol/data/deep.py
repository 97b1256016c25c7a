"""Images whose numbers are not 8-bit gray or RGB: 16 bits, floats, any number of channels; TIFF and .npy files.

They are read value for value, and a range for each channel, measured once, says which values are 0 and 1.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from byol.data import decode, plain
from byol.data.decode import Unusable

TIFF = (".tif", ".tiff")
ARRAY = ".npy"
# What it has to say of damaged files is said here, in one line each.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
INSTALL = "pip install 'byol[tiff]' reads more kinds of TIFF"


class _Array(NamedTuple):
    """What a file holds. shape: [H, W, C]. named: whether it has channels that it does not call samples of a colour."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    named: bool
    load: Callable[[], np.ndarray]


def is_deep_name(file: str) -> bool:
    """Whether a file of that name is looked at here."""
    return file.lower().endswith((*TIFF, ARRAY))


def look(path: str, channels: int | None) -> tuple[int, int, int, int]:
    """(height, width, channels, depth) of a TIFF or .npy file by its header, or `Unusable`.

    depth: 0 of 8-bit gray and RGB; else the bits of a value, 32 for floats and longer integers. channels: how many are
    wanted; pages without a meaning are channels where they are so many, else the first one counts.
    """
    try:
        with _opened(path, channels) as found:
            seen = (*found.shape, bits(found.dtype))
            if found.named or seen[3] > 8:
                return seen
    except Unusable as error:
        return _by_pillow(path, error)
    if path.lower().endswith(ARRAY):
        return seen if seen[2] not in (1, 3) else (*seen[:3], 0)
    try:  # palettes, transparency and how an image is turned are Pillow's to know
        return decode.look(path)
    except Unusable:
        return seen


def values(path: str, channels: int | None) -> np.ndarray:
    """[H, W, C] of the numbers of what `look` finds, or `Unusable`."""
    is_array = path.lower().endswith(ARRAY)
    try:
        with _opened(path, channels) as found:
            if is_array or found.named or bits(found.dtype) > 8 or not _pillow_knows(path):
                return np.ascontiguousarray(found.load())
    except Unusable:
        if is_array:
            raise
    return pillow_values(path)


def pixels(path: str) -> np.ndarray:
    """[H, W, 1 or 3] uint8 of an 8-bit image, or of what `decode` makes one of."""
    if not path.lower().endswith(ARRAY):
        return decode.decode(Path(path))
    with _opened(path, None) as found:
        if found.dtype != np.uint8 or found.shape[2] not in (1, 3):
            raise Unusable(f"{found.dtype} of {found.shape[2]} channels, and most images are 8-bit gray or RGB")
        return np.ascontiguousarray(found.load())


def pillow_values(path: str) -> np.ndarray:
    """[H, W, C] of the numbers in a file that Pillow reads: 16 bits or floats where it keeps them, else `decode`'s."""
    with decode.opened(Path(path)) as (image, _):
        if decode.depth_of(image.mode):
            return np.array(image)[..., None]
    return decode.decode(Path(path))


def bits(dtype: np.dtype) -> int:
    """Of a value, 32 for floats; `Unusable` of what is no number."""
    if dtype.kind not in "uif":
        raise Unusable(f"its values are {dtype}")
    return min(8 * dtype.itemsize, 32) if dtype.kind in "ui" else 32


def check_size(num_bytes: int) -> None:
    """`Unusable` of what takes more memory than the largest image that `decode` reads would as float32."""
    if Image.MAX_IMAGE_PIXELS is not None and num_bytes > 2 * Image.MAX_IMAGE_PIXELS * 3 * 4:
        raise Unusable("too many pixels")


def channels_last(array: np.ndarray, channels: int | None) -> np.ndarray:
    """[..., H, W, C] of that or of [..., C, H, W]: channels are the axis of the wanted length, or the shorter one."""
    first, last = array.shape[-3], array.shape[-1]
    if channels in (first, last) and first != last:
        is_last = last == channels
    else:
        is_last = last in (1, 3) or last <= first
    return array if is_last else np.moveaxis(array, -3, -1)


def _pillow_knows(path: str) -> bool:
    try:
        decode.look(path)
    except Unusable:
        return False
    return True


def _by_pillow(path: str, why: Unusable) -> tuple[int, int, int, int]:
    """What `look` gives of a file that tifffile does not read, or of any TIFF where it is not installed."""
    if path.lower().endswith(ARRAY):
        raise why
    try:
        return decode.look(path)
    except Unusable as error:
        raise (Unusable(f"{error}; {INSTALL}") if isinstance(why.__cause__, ImportError) else why) from error


@contextlib.contextmanager
def _opened(path: str, channels: int | None) -> Iterator[_Array]:
    """An array, or a TIFF by tifffile; whatever goes wrong becomes `Unusable`."""
    try:
        if path.lower().endswith(ARRAY):
            array = plain.mapped(path)
            if array.ndim not in (2, 3) or 0 in array.shape:
                raise Unusable(f"an array of shape {array.shape}, not of [H, W], [H, W, C] or [C, H, W]")
            check_size(array.nbytes)
            array = channels_last(array, channels) if array.ndim == 3 else array[..., None]
            yield _Array(array.shape, array.dtype, False, lambda: np.array(array))
            return
        import tifffile

        with open(path, "rb") as stream:  # noqa: PTH123 (a Path takes longer to make than a header to read)
            decode.check_tiff(stream)
        # Only this file: what it says could name any other.
        with tifffile.TiffFile(path, _multifile=False) as file:
            yield _of_series(file.series[0], channels)
    except Unusable:
        raise
    except Exception as error:  # decoders raise nearly anything on bytes made to break them
        decode.check_machine(error, path)
        raise Unusable(decode.reason(error)) from error


def _of_series(series: object, channels: int | None) -> _Array:
    """tifffile's first series, arranged by the letters of its axes: S are samples, C channels, Q and I pages of which
    nothing is said."""
    axes, shape = series.axes, series.shape  # type: ignore[attr-defined]
    check_size(math.prod(shape) * np.dtype(series.dtype).itemsize)  # type: ignore[attr-defined]
    if "Y" not in axes or "X" not in axes:
        raise Unusable(f"axes {axes} of shape {shape}")
    of_channels = [i for i, name in enumerate(axes) if name in "CS"]
    if not of_channels:
        of_channels = [i for i, name in enumerate(axes) if name in "QI" and shape[i] == channels]
    kept = [axes.index("Y"), axes.index("X"), *of_channels]
    places = sorted(kept)
    arranged = shape[kept[0]], shape[kept[1]], int(np.prod([shape[i] for i in of_channels], dtype=int))

    def load() -> np.ndarray:
        whole = series.asarray()  # type: ignore[attr-defined]
        picked = whole[tuple(slice(None) if i in kept else 0 for i in range(whole.ndim))]
        return picked.transpose([places.index(i) for i in kept]).reshape(arranged)

    named = any(axes[i] != "S" and shape[i] > 1 for i in of_channels)
    return _Array(arranged, np.dtype(series.dtype), named, load)  # type: ignore[attr-defined]
