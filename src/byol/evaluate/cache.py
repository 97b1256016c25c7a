"""Features once per backbone and data: on disk, in the same bits whether they were there before or not.

Peak memory is that of a batch, on disk six bytes a number while they are made and two after.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from byol.data.source import DataError

FORMAT = 1
"""Of the files, and of everything between a stored image and a backbone's input; a change makes all files stale."""

LIMIT_BYTES = 20 << 30
"""Of all files of a cache together; above it, those that were read longest ago are deleted."""

ROUNDING = 0.01
"""Features are stored in float16 where its error's std is at most this share of each feature's own, else in float32.

Of nine ResNets and ViTs, trained and untrained, the share was 0.005 at most. It is more where values leave float16's
range, and where a collapsed backbone's features hardly vary around a large mean.
"""

VALUES_AT_ONCE = 2**20
"""Copied at a time: 4 MiB in float32."""


def feature_key(
    weights: str,
    description: Mapping[str, Any],
    *,
    fingerprint: str,
    ids: np.ndarray,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> str:
    """Hex SHA-256 of all that features follow from, but for the device and the versions of libraries.

    weights: a hash of them, or other words that determine them. description: the architecture, plain
    values. fingerprint: of the images' content. ids: of the source. size, mean, std: of the evaluation's input.
    """
    images = hashlib.sha256(np.asarray(ids, "<i8").tobytes()).hexdigest()
    parts = [
        FORMAT,
        weights,
        dict(description),
        fingerprint,
        images,
        size,
        list(map(float, mean)),
        list(map(float, std)),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FeatureCache:
    """Files KEY.npy in a folder, which may be deleted at any time."""

    directory: Path
    limit_bytes: int = LIMIT_BYTES

    def read(self, key: str, count: int) -> np.ndarray | None:
        """[count, D] float16 or float32, mapped read-only; None where there is no such file, or it is damaged."""
        try:
            found = _mapped(self._path(key))
        except (OSError, ValueError):
            return None
        with suppress(OSError):  # somebody else's file
            os.utime(self._path(key))
        return found if len(found) == count else None

    def write(self, key: str, shape: tuple[int, int], dtype: np.dtype, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """What `read` gives afterwards. chunks: the rows, in order. An interrupted write leaves the old state."""
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix=f"{key}.npy.", delete=False) as stream:
            temporary = Path(stream.name)
            try:
                _write(stream, shape, dtype, chunks)
                stream.flush()
                os.fsync(stream.fileno())
                found = _mapped(temporary)  # before another process can delete it
                temporary.replace(self._path(key))
            except BaseException:
                temporary.unlink()
                raise
        self._evict(keep=self._path(key))
        return found

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.npy"

    def _evict(self, keep: Path) -> None:
        files = []
        for path in self.directory.glob("[0-9a-f]" * 64 + ".npy*"):
            with suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(num_bytes for _, num_bytes, _ in files)
        for _, num_bytes, path in sorted(files):
            if total > self.limit_bytes and path != keep:
                path.unlink(missing_ok=True)
                total -= num_bytes


def cached_features(cache: FeatureCache | None, key: str, count: int, batches: Iterable[Tensor]) -> np.ndarray:
    """Features by `key`: from the cache, or from batches, which are then stored there.

    batches: [B, D] floating, `count` rows in all; not touched where the cache has them. Returns [count, D] float16, or
    float32 as ROUNDING says: mapped read-only from the cache's file, or without a cache from one that nobody else sees
    and that goes with the array, with the same bits.
    """
    if cache is not None and (found := cache.read(key, count)) is not None:
        return found
    directory = cache.directory if cache is not None else Path(tempfile.gettempdir())
    with _on_disk(directory):
        directory.mkdir(parents=True, exist_ok=True)
        spool = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
    try:
        rounding = _Rounding()
        for batch in batches:
            values = batch.detach().float().cpu().numpy()
            rounding.add(values)
            with _on_disk(directory):
                spool.write(np.ascontiguousarray(values))
        if rounding.count != count:
            raise ValueError(
                f"features of {rounding.count} images came where {count} were to come; give each image one"
            )
        shape, dtype = (count, rounding.dim), rounding.dtype()
        with _on_disk(directory):
            chunks = (chunk.astype(dtype) for chunk in _chunks(spool, rounding.dim))
            if cache is not None:
                return cache.write(key, shape, dtype, chunks)
            with tempfile.TemporaryFile(dir=directory) as kept:
                for chunk in chunks:
                    kept.write(chunk)
                kept.flush()
                return np.memmap(kept, dtype, "r", shape=shape)
    finally:
        with suppress(OSError):  # of a full disk, which the exception on its way already says
            spool.close()


class _Rounding:
    """What rounding to float16 does to features, batch by batch: its error's variance beside their own."""

    def __init__(self) -> None:
        self.count, self.dim = 0, 0

    def add(self, values: np.ndarray) -> None:
        """values: [B, D] float32."""
        if values.ndim != 2 or (self.count and values.shape[1] != self.dim):
            raise ValueError(
                f"features are {list(values.shape)} after [{self.count}, {self.dim}]; use [B, D] throughout"
            )
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            both = np.stack([values, values - values.astype(np.float16)]).astype(np.float64)
            if not self.count:
                self.dim = values.shape[1]
                # Sums are of differences from the first row: exact where a feature is constant.
                self._first = both[:, :1].copy()
                self._sums, self._squares = np.zeros((2, self.dim)), np.zeros((2, self.dim))
            both -= self._first
            self._sums += both.sum(axis=1)
            self._squares += (both**2).sum(axis=1)
        self.count += len(values)

    def dtype(self) -> np.dtype:
        with np.errstate(over="ignore", invalid="ignore"):
            values, errors = self._squares / self.count - (self._sums / self.count) ** 2
            # Not a number, where a value became infinite, compares as false.
            return np.dtype(np.float16 if (errors <= ROUNDING**2 * values).all() else np.float32)


def _chunks(stream: IO[bytes], dim: int) -> Iterator[np.ndarray]:
    """The rows of float32 [., dim] in a file, some at a time."""
    stream.seek(0)
    row_bytes = 4 * dim
    while data := stream.read(max(1, VALUES_AT_ONCE // dim) * row_bytes):
        yield np.frombuffer(data, np.float32).reshape(-1, dim)


def _write(stream: IO[bytes], shape: tuple[int, int], dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    """A .npy file, and after it the CRC-32 of its numbers."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    checksum = 0
    for chunk in chunks:
        checksum = zlib.crc32(chunk, checksum)
        stream.write(chunk)
    stream.write(checksum.to_bytes(4, "little"))


def _mapped(path: Path) -> np.ndarray:
    """The array in a file of `_write`. OSError or ValueError where the file is not whole."""
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
        raise ValueError(f"{path} holds no features")
    with path.open("rb") as stream:
        stream.seek(array.offset + array.nbytes)
        ending = stream.read()
    checksum, step = 0, max(1, VALUES_AT_ONCE // max(1, array.shape[1]))
    for start in range(0, len(array), step):
        checksum = zlib.crc32(np.ascontiguousarray(array[start : start + step]), checksum)
    if ending != checksum.to_bytes(4, "little"):
        raise ValueError(f"{path} is damaged")
    return array


@contextmanager
def _on_disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"features cannot be written to {directory}: {reason}; make room there or choose another folder"
        ) from error
