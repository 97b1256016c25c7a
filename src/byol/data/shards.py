"""Shards: Parquet files and WebDataset archives, here or elsewhere, read unit by unit.

A unit is what one read brings: a row group of a Parquet file, or a run of an archive's samples of about UNIT_BYTES.
Rows are numbered through all files in order of their names. What is elsewhere is opened by fsspec.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import tarfile
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any, Self
from uuid import uuid4

import numpy as np

from byol.data import plain
from byol.data.decode import MOST_ENCODED_BYTES, Unusable, decode, header, is_image_name
from byol.data.parquet import check_rows, encoded_images, has_parts, image_column, of_part, read_some
from byol.data.places import cache_directory
from byol.data.source import DataError, Part, Source, shown
from byol.data.units import UnitCache, some_rows

UNIT_BYTES = 16 << 20
"""Of an archive, read at once: 64 streams then hold a gigabyte."""
TRIES = 3
MOST_PADDING = 8 << 20
"""Zeros after the last member of an archive: writers fill up their last record, of 10 KiB unless said. More are what a
download has not filled."""
MOST_HEADER_BYTES = 1 << 16
"""Of a name or the like before a member of an archive."""
SAMPLE, SAMPLE_OF_A_UNIT = 64, 8
"""Images whose headers say what the others are like."""
ENDINGS = (".parquet", ".tar")


def is_elsewhere(spec: str) -> bool:
    return spec.startswith("hf:") or re.match(r"[a-z][a-z0-9+.-]+://", spec) is not None


def from_shards(
    name: str, part: Part, channels: int | None, progress: Callable[[int, int], None] | None = None
) -> Source:
    """Shards by a URL, a path with * or {000..127}, a folder, or hf:OWNER/NAME; see docs/data.md.

    Their footers or member lists are read, and no image but a few. progress: (done, total) files.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"{shown(name)} holds 8-bit gray and RGB images; channels={channels} is for folders and arrays")
    urls = _urls(name)
    # Below what all of them share: there a folder may be the word that names a part.
    paths = [url.partition("://")[2] for url in urls]
    shared = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    every = [(posixpath.relpath(path, shared or "."), url) for path, url in zip(paths, urls, strict=True)]
    files = of_part(name, every, part)
    opened = list[_File]()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda file: _opened(*file), files):
            opened.append(found)
            if progress is not None:
                progress(len(opened), len(files))
    listing = Shards(opened)
    classes = next((file.classes for file in opened if file.classes), None)
    labels = np.concatenate([file.labels for file in opened])
    digest = hashlib.sha256()
    for file in opened:
        digest.update(os.fsencode(f"{file.name}\0{file.num_bytes}\0{len(file.labels)}\0"))
    num = len(listing)
    if num < 2:
        raise DataError(f"{shown(name)} holds {num} image(s), at least 2 are needed")
    if classes is not None and labels.max() >= len(classes):
        raise DataError(f"{shown(name)}: label {labels.max()} has no name in its metadata; correct one")
    shapes, skipped = list[tuple[int, int, int]](), list[tuple[int, str, str]]()
    sample = some_rows(np.append(listing.starts, num), SAMPLE, SAMPLE_OF_A_UNIT).tolist()
    for position in sample:
        try:
            shapes.append(listing.header(position))
        except Unusable as error:
            skipped.append((position, listing.name(position), str(error)))
    if not shapes:
        raise DataError(f"{shown(name)}: none of {len(sample)} images tried is usable, the first: {skipped[0][2]}")
    sizes = np.array(shapes)
    height, width = (int(side) for side in np.median(sizes[:, :2], axis=0))
    return Source(
        name=name,
        num_listed=num,
        fingerprint=digest.hexdigest(),
        ids=np.arange(num),
        labels=None if (labels < 0).all() else labels,
        channels=channels or int(sizes[:, 2].max()),
        height=height,
        width=width,
        uniform=False,
        sizes=None,
        skipped=(),
        listing=listing,
        classes=classes,
        has_test_part=has_parts([file for file, _ in every]),
        unit_starts=listing.starts,
        unit_bytes=max(file.unit_bytes for file in opened),
    )


def _urls(spec: str) -> list[str]:
    """Every shard that a person named, in order."""
    import fsspec

    if spec.startswith("hf:"):
        return _hub_urls(spec.removeprefix("hf:"))
    try:
        found = set[str]()
        for pattern in _braces(spec):
            system, path = fsspec.core.url_to_fs(pattern)
            if "*" in path:
                paths = system.glob(path)
            elif path.endswith(ENDINGS):
                paths = [path]
            else:
                paths = system.find(path)
            found.update(system.unstrip_protocol(each) for each in paths if each.endswith(ENDINGS))
    except Exception as error:  # every kind of storage has its own
        raise _unreachable(spec, error) from error
    if not found:
        raise DataError(f"{shown(spec)} names no .parquet or .tar file; check the address")
    return sorted(found)


def _hub_urls(name: str) -> list[str]:
    """The Parquet files of a data set on the Hugging Face Hub: its own, or those that the Hub made of it."""
    import fsspec

    for place in (f"hf://datasets/{name}", f"hf://datasets/{name}@refs%2Fconvert%2Fparquet"):
        try:
            system, path = fsspec.core.url_to_fs(place)
            found = [each for each in system.find(path) if each.endswith(".parquet")]
        except Exception as error:
            raise _unreachable(f"hf:{name}", error) from error
        if found:
            return sorted(f"hf://{each}" for each in found)
    raise DataError(f"hf:{name} has no Parquet files; download it, and name the folder")


def _braces(pattern: str) -> Iterator[str]:
    """a{00..11}b stands for a00b to a11b, as in a shell."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    ranges = [
        [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    for chosen in product(*ranges):
        yield "".join(text for pair in zip(parts[::3], [*chosen, ""], strict=True) for text in pair)


def _unreachable(what: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, ImportError):
        return DataError(f"{shown(what)} needs another package: {reason}")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{shown(what)} does not exist, or cannot be reached")
    return DataError(f"{shown(what)} cannot be read: {shown(reason)}")


class _Storage:
    """One file system in each process: their connections do not survive a fork."""

    def __init__(self) -> None:
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin(self) -> None:
        self._systems: dict[str, Any] = {}
        self._lock = Lock()

    def _begin_anew(self) -> None:
        if self._systems:
            from fsspec.asyn import reset_lock

            reset_lock()
        self._begin()

    def open(self, url: str) -> Any:
        return self.of(url)[0].open(self.of(url)[1], "rb")

    def of(self, url: str) -> tuple[Any, str]:
        import fsspec

        protocol = url.split("://")[0]
        with self._lock:
            if protocol not in self._systems:
                self._systems[protocol] = fsspec.core.url_to_fs(url, skip_instance_cache=True)[0]
            system = self._systems[protocol]
        return system, system._strip_protocol(url)


_STORAGE = _Storage()


@dataclass(frozen=True, eq=False)
class _File:
    """A shard. labels: [rows] int64, -1 for unknown. units: the first row of each. unit_bytes: of the largest."""

    name: str
    url: str
    num_bytes: int
    labels: np.ndarray
    units: np.ndarray
    unit_bytes: int
    classes: tuple[str, ...] | None

    @abstractmethod
    def read(self, unit: int) -> list[bytes | None]:
        """The encoded images of one unit."""


def _opened(name: str, url: str) -> _File:
    system, path = _STORAGE.of(url)
    try:
        if system.info(path)["type"] == "other":  # a pipe would never answer
            raise DataError(f"{shown(name)} is not a file; take it out of the folder")
        return _ParquetFile.of(name, url) if url.endswith(".parquet") else _Archive.of(name, url)
    except DataError:
        raise
    except Exception as error:
        raise _unreachable(url, error) from error


@dataclass(frozen=True, eq=False)
class _ParquetFile(_File):
    column: str

    @classmethod
    def of(cls, name: str, url: str) -> _ParquetFile:
        import pyarrow.parquet as pq

        with _STORAGE.open(url) as stream, pq.ParquetFile(stream) as parquet:
            schema = parquet.schema_arrow
            column, labelled, classes = image_column(name, schema)
            size = stream.seek(0, 2)
            check_rows(name, parquet.metadata.num_rows, size)
            labels = np.full(parquet.metadata.num_rows, -1, np.int64)
            if labelled:
                labels = parquet.read(["label"])["label"].fill_null(-1).to_numpy().astype(np.int64)
            groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        starts = np.cumsum([0, *(group.num_rows for group in groups[:-1])])
        largest = max((group.total_byte_size for group in groups), default=0)
        return cls(name, url, size, labels, starts, largest, classes, column)

    def read(self, unit: int) -> list[bytes | None]:
        import pyarrow.parquet as pq

        with _STORAGE.open(self.url) as stream, pq.ParquetFile(stream) as parquet:
            table = read_some(self.name, parquet, [self.column], self.num_bytes, unit)
        return encoded_images(self.name, self.column, table[self.column]).to_pylist()


@dataclass(frozen=True, eq=False)
class _Archive(_File):
    """A WebDataset archive. starts, lengths: [rows] int64, where each image lies, in bytes."""

    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, name: str, url: str) -> _Archive:
        system, path = _STORAGE.of(url)
        about = system.info(path)
        key = [url, about["size"], *(str(about.get(k)) for k in ("mtime", "ETag", "LastModified", "last_commit"))]
        kept = cache_directory() / "archives" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npz"
        members = _read_members(kept, about["size"])
        if members is None:
            members = _members(name, url)
            with contextlib.suppress(OSError):  # a full disk costs time, the next time
                kept.parent.mkdir(parents=True, exist_ok=True)
                temporary = kept.with_suffix(f".{uuid4().hex}.tmp")
                with temporary.open("wb") as stream:
                    np.savez(stream, starts=members[0], lengths=members[1], labels=members[2])
                temporary.replace(kept)
        starts, lengths, labels = members
        units, first = list[int](), 0
        ends = starts + lengths
        while first < len(starts):  # at least one image, else as many as fit
            units.append(first)
            first = max(first + 1, int(np.searchsorted(ends, starts[first] + UNIT_BYTES, side="right")))
        lasts = np.append(units[1:], len(starts)).astype(np.int64) - 1
        largest = int((ends[lasts] - starts[units]).max(initial=0)) if units else 0
        return cls(name, url, about["size"], labels, np.array(units, np.int64), largest, None, starts, lengths)

    def read(self, unit: int) -> list[bytes | None]:
        first = int(self.units[unit])
        last = int(self.units[unit + 1]) if unit + 1 < len(self.units) else len(self.starts)
        begin, end = int(self.starts[first]), int(self.starts[last - 1] + self.lengths[last - 1])
        system, path = _STORAGE.of(self.url)
        if system.info(path)["size"] != self.num_bytes:
            raise OSError("it has changed since the run began")
        held = system.cat_file(path, start=begin, end=end)
        rows = zip((self.starts[first:last] - begin).tolist(), self.lengths[first:last].tolist(), strict=True)
        return [held[start : start + length] or None for start, length in rows]


def _read_members(kept: Path, num_bytes: int) -> tuple[np.ndarray, ...] | None:
    """What `_members` gave once; None where it was not kept, or is no members of an archive of so many bytes."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = plain.zipped(kept)[1]
        starts, lengths, labels = members = found["starts"], found["lengths"], found["labels"]
        if {each.shape for each in members} == {starts.shape} and {each.dtype for each in members} == {labels.dtype}:
            ordered = (np.diff(starts) > 0).all() and ((lengths >= 0) & (starts >= 0)).all()
            if ordered and labels.dtype == np.int64 and (starts + lengths).max(initial=0) <= num_bytes:
                return members
    return None


class _Member(tarfile.TarInfo):
    """Of which a header that is followed by another one, with a long name, may not be as long as an archive, and no
    size below zero: tarfile would go back, and come again."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in (b"x", b"g", b"X", b"K", b"L") and found.size > MOST_HEADER_BYTES):
            raise tarfile.ReadError("a header without measure")
        return found


def _members(name: str, url: str) -> tuple[np.ndarray, ...]:
    """(where the image of each sample begins, its bytes, its label) in order; a sample's files share their name up to
    the first dot. DataError where the archive ends before its end."""
    samples: OrderedDict[str, list[int]] = OrderedDict()
    labels: dict[str, int] = {}
    damaged = "is damaged, or was never closed, after {:,} samples; fetch or write it anew"
    with _STORAGE.open(url) as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as archive:
        for member in archive:
            if archive.offset <= member.offset:  # a pax header can say a size too
                raise DataError(f"{shown(name)} {damaged.format(len(samples))}")
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            key = f"{folder}/{stem}"
            if not member.isfile() or member.issparse() or not stem:
                continue
            if is_image_name("." + ending):
                size = member.size if member.size <= MOST_ENCODED_BYTES else 0
                samples.setdefault(key, [member.offset_data, size])
            elif ending == "cls" and (text := archive.extractfile(member)) is not None:
                value = text.read(32).strip()
                if value.isdigit() and len(value) <= 18:
                    labels[key] = int(value)
        # tarfile takes a damaged header, zeros of a download, or nothing at all for the zeros that end an archive.
        rest = stream.seek(0, 2) - archive.offset
        stream.seek(archive.offset)
        if not tarfile.BLOCKSIZE <= rest <= MOST_PADDING or any(stream.read(rest)):
            raise DataError(f"{shown(name)} {damaged.format(len(samples))}")
    places = np.array(list(samples.values()), np.int64).reshape(-1, 2)
    return places[:, 0], places[:, 1], np.array([labels.get(key, -1) for key in samples], np.int64)


class Shards:
    """A listing of rows in units. starts: the first row of each."""

    def __init__(self, files: list[_File]) -> None:
        self.files = files
        self._first_row = np.cumsum([0, *(len(file.labels) for file in files)])
        self.starts = np.concatenate([first + file.units for first, file in zip(self._first_row, files, strict=False)])
        self._units = [(f, unit) for f, file in enumerate(files) for unit in range(len(file.units))]
        self.units = UnitCache(self._read)

    def __len__(self) -> int:
        return int(self._first_row[-1])

    def entries(self) -> Iterator[tuple[str, int, int]]:
        for file in self.files:
            system, path = _STORAGE.of(file.url)
            # Elsewhere each would be a request.
            changed = Path(path).stat().st_mtime_ns if "file" in system.protocol else 0
            yield file.name, file.num_bytes, changed

    def unit_of(self, position: int) -> int:
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def header(self, position: int) -> tuple[int, int, int]:
        return header(self._bytes(position))

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        return decode(self._bytes(position), channels, reduce)

    def name(self, position: int) -> str:
        file = int(np.searchsorted(self._first_row, position, side="right")) - 1
        return f"{self.files[file].name} row {position - int(self._first_row[file])}"

    def _bytes(self, position: int) -> bytes:
        unit = self.unit_of(position)
        # Of a damaged file a row group may be shorter than it says.
        data = next(iter(self.units[unit][position - int(self.starts[unit]) :]), None)
        if data is None:
            raise Unusable("the row holds no image bytes, or too many")
        return data

    def _read(self, number: int) -> list[bytes | None]:
        file_number, unit = self._units[number]
        file = self.files[file_number]
        for tried in range(TRIES):
            try:
                return file.read(unit)
            except FileNotFoundError:
                raise DataError(f"{shown(file.name)} is gone; put it back") from None
            except DataError:  # it would say the same again
                raise
            except Exception as error:  # every kind of storage has its own
                if tried + 1 == TRIES:
                    reason = shown((str(error).splitlines() or [""])[0] or type(error).__name__)
                    raise DataError(f"{shown(file.name)} cannot be read, row group or part {unit}: {reason}") from None
                time.sleep(2**tried)
        raise AssertionError("returned or raised")
