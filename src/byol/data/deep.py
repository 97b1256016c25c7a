"""Images whose numbers are not 8-bit gray or RGB: 16 bits, floats, any number of channels; TIFF and .npy files.

They are read value for value, and a range for each channel, measured once, says which values are 0 and 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from byol.data import decode
from byol.data.decode import Unusable

TIFF = (".tif", ".tiff")
ARRAY = ".npy"
INSTALL = "pip install 'byol[tiff]' reads more kinds of TIFF"


def is_deep_name(file: str) -> bool:
    """Whether a file of that name is looked at here."""
    return file.lower().endswith((*TIFF, ARRAY))


def look(path: str, channels: int | None) -> tuple[int, int, int, int]:
    """(height, width, channels, bits) of a TIFF or .npy file by its header, or `Unusable`. bits: 8, 16, or 32 for
    floats and longer integers. channels: how many are wanted; pages without a meaning are channels where they are so
    many, else the first one counts."""
    with _array_of(path, channels) as (shape, dtype, _):
        return (*shape, bits(dtype))


def values(path: str, channels: int | None) -> np.ndarray:
    """[H, W, C] of the file's own numbers, or `Unusable`."""
    with _array_of(path, channels) as (_, _, load):
        return np.ascontiguousarray(load())


def bits(dtype: np.dtype) -> int:
    """Of a value, 32 for floats; `Unusable` of what is no number."""
    if dtype.kind not in "uif":
        raise Unusable(f"its values are {dtype}")
    return min(8 * dtype.itemsize, 32) if dtype.kind in "ui" else 32


@contextlib.contextmanager
def _array_of(path: str, channels: int | None) -> Iterator[tuple[tuple[int, int, int], np.dtype, Any]]:
    """(its shape [H, W, C], its dtype, a function that reads it); whatever goes wrong becomes `Unusable`."""
    try:
        if path.lower().endswith(ARRAY):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.ndim not in (2, 3) or 0 in array.shape:
                raise Unusable(f"an array of shape {array.shape}, not of [H, W], [H, W, C] or [C, H, W]")
            array = channels_last(array, channels) if array.ndim == 3 else array[..., None]
            yield array.shape, array.dtype, lambda: np.array(array)
            return
        try:
            import tifffile
        except ImportError:
            yield from _by_pillow(path)
            return
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            order = _axes(series.axes, series.shape, channels)

            def arranged(whole: np.ndarray) -> np.ndarray:
                picked = whole[tuple(slice(None) if keep else 0 for keep in order[0])]
                return picked.transpose(order[1]).reshape(order[2])

            yield order[2], np.dtype(series.dtype), lambda: arranged(series.asarray())
    except Unusable:
        raise
    except Exception as error:  # decoders raise nearly anything on bytes made to break them
        raise Unusable(decode.reason(error)) from error


def _by_pillow(path: str) -> Iterator[tuple[tuple[int, int, int], np.dtype, Any]]:
    """The same of what Pillow reads: one channel of 16 bits or floats, and 8-bit images."""
    try:
        *shape, depth = decode.look(path)
    except Unusable as error:
        raise Unusable(f"{error}; {INSTALL}") from error
    yield (shape[0], shape[1], shape[2]), np.dtype({8: "u1", 16: "u2", 32: "f4"}[depth]), lambda: pillow_values(path)


def _axes(
    axes: str, shape: tuple[int, ...], channels: int | None
) -> tuple[list[bool], list[int], tuple[int, int, int]]:
    """(which axes are kept, their order, height, width and channels) of a TIFF whose axes have these letters."""
    if "Y" not in axes or "X" not in axes:
        raise Unusable(f"axes {axes} of shape {shape}")
    of_channels = [i for i, name in enumerate(axes) if name in "CS"]
    if not of_channels:  # pages that nothing is said of
        of_channels = [i for i, name in enumerate(axes) if name in "QI" and shape[i] == channels]
    kept = [axes.index("Y"), axes.index("X"), *of_channels]
    count = int(np.prod([shape[i] for i in of_channels], dtype=int))
    places = sorted(kept)
    order = [places.index(i) for i in kept]
    return [i in kept for i in range(len(axes))], order, (shape[kept[0]], shape[kept[1]], count)


def channels_last(array: np.ndarray, channels: int | None) -> np.ndarray:
    """[..., H, W, C] of that or of [..., C, H, W]: channels are the axis of the wanted length, or the shorter one."""
    first, last = array.shape[-3], array.shape[-1]
    if channels in (first, last) and first != last:
        is_last = last == channels
    else:
        is_last = last in (1, 3) or last <= first
    return array if is_last else np.moveaxis(array, -3, -1)


def pillow_values(path: str) -> np.ndarray:
    """[H, W, C] of the numbers in a file that Pillow reads: 16 bits or floats where it keeps them, else `decode`'s."""
    with decode.opened(Path(path)) as (image, _):
        if image.mode.startswith("I") or image.mode == "F":
            return np.array(image)[..., None]
    return decode.decode(Path(path))
