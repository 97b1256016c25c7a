"""Arrays of .npy and .npz files: numbers alone, no pickle, and no memory for more of them than a file holds."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from byol.machine import available_memory

MOST_BYTES = 1 << 30
"""Of an array that is more than RATIO times what it takes in its .npz file: zeros and little else."""
RATIO = 100


def is_npy(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(6) == b"\x93NUMPY"


def mapped(path: str | Path) -> np.ndarray:
    """The array of a .npy file, read as it is used. OSError where it cannot be read, ValueError of anything else."""
    with _only_value_errors():
        return np.load(path, mmap_mode="r", allow_pickle=False)


def zipped(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> tuple[list[str], dict[str, np.ndarray]]:
    """(the names of all arrays in a .npz file, those of them that are wanted). OSError, and ValueError of anything
    else.

    What an array takes is in the archive's directory and in its own header; memory is taken after both were read.
    """
    with _only_value_errors(), path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
        chosen = {name: each for name, each in members.items() if wanted(name)}
        for name, each in chosen.items():
            if each.file_size > max(MOST_BYTES, RATIO * each.compress_size):
                raise ValueError(f"{name} is {each.file_size:,} bytes in {each.compress_size:,}")
        total, left = sum(each.file_size for each in chosen.values()), available_memory()
        if left is not None and total > left:
            raise ValueError(f"its arrays take {total / 2**30:.1f} GiB of memory, of which {left / 2**30:.1f} are left")
        return list(members), {name: _read(archive, each) for name, each in chosen.items()}


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} says {shape} of {dtype}, and ends before")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@contextmanager
def _only_value_errors() -> Iterator[None]:
    """Readers of damaged zip files and headers raise nearly anything."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
