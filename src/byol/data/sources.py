"""Where images come from: one `Source` for every kind of data a person can name."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from byol import names
from byol.data.decode import Unusable, decode, header, to_channels

Part = Literal["train", "test", "all"]
Skipped = tuple[int, str, str]
T = TypeVar("T")

PARTS = ("train", "test", "all")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
KINDS = "`digits`, a folder, or a .parquet, .npy or .npz file"
NUM_THREADS = 8


class DataError(ValueError):
    """A person's mistake about data: one line that says what to do."""


class _Listing(Protocol):
    """Where the bytes are; positions count from 0 in the sorted listing."""

    def header(self, position: int) -> tuple[int, int, int]: ...
    def read(self, position: int, channels: int) -> np.ndarray: ...
    def name(self, position: int) -> str: ...


@dataclass(frozen=True, eq=False)
class Source:
    """Images by id. An id is a position in the sorted listing, before unusable entries are dropped.

    name: what the person typed. num_listed: length of the listing. fingerprint: hex SHA-256 of the listing.
    ids: [N] int64, ascending, the usable images. labels: [N] int64 aligned with ids, -1 where unknown, or None.
    classes: the names of labels 0, 1, ... or None. channels: 1 or 3, of every image that `read` returns.
    height, width: of all images if uniform, else their medians. skipped: (id, name, reason) of each entry dropped.
    """

    name: str
    num_listed: int
    fingerprint: str
    ids: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    channels: int
    height: int
    width: int
    uniform: bool
    skipped: tuple[Skipped, ...]
    listing: _Listing = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, image_id: int) -> np.ndarray:
        """[H, W, channels] uint8; raises `Unusable` for a file that turns out broken."""
        return self.listing.read(self._position(image_id), self.channels)

    def name_of(self, image_id: int) -> str:
        """The entry's name, on one printable line."""
        return _shown(self.listing.name(self._position(image_id)))

    def _position(self, image_id: int) -> int:
        if not 0 <= image_id < self.num_listed:
            raise IndexError(f"id={image_id} is not in 0..{self.num_listed - 1}, the listing of {self.name}")
        return int(image_id)

    def subset(self, chosen: np.ndarray | Sequence[int]) -> Source:
        """The same listing with fewer ids. chosen: [N] bool, or distinct integer positions in `ids`, any order."""
        chosen = np.asarray(chosen)
        if chosen.dtype == bool:
            if chosen.shape != self.ids.shape:
                raise ValueError(f"a mask of shape {chosen.shape} does not fit {len(self)} images")
            rows = np.flatnonzero(chosen)
        else:
            rows = np.unique(chosen.astype(np.int64))
            if len(rows) != chosen.size or (rows.size and not 0 <= rows[0] <= rows[-1] < len(self)):
                raise ValueError(f"positions must be distinct and in 0..{len(self) - 1}")
        return replace(self, ids=self.ids[rows], labels=None if self.labels is None else self.labels[rows])

    def pixels(
        self, progress: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray, tuple[Skipped, ...]]:
        """All images of a uniform source: ([M, H, W, C] uint8, their [M] int64 ids, the newly skipped).

        M < N when files turn out broken, or of another size than their header says. progress: (done, total).
        """
        if not self.uniform:
            raise ValueError(f"the images of {self.name} differ in size; read them one by one")
        out = np.empty((len(self), self.height, self.width, self.channels), np.uint8)

        def fill(rows: np.ndarray) -> list[tuple[int, str]]:
            broken = []
            for row in rows.tolist():
                try:
                    image = self.read(int(self.ids[row]))
                    if image.shape != out.shape[1:]:
                        raise Unusable(f"its pixels are {image.shape[0]}x{image.shape[1]}, unlike its header")
                    out[row] = image
                except Unusable as error:
                    broken.append((row, str(error)))
            return broken

        kept, skipped, done = np.ones(len(self), bool), [], 0
        for rows, broken in _in_threads(fill, np.arange(len(self))):
            for row, reason in broken:
                kept[row] = False
                skipped.append((int(self.ids[row]), self.name_of(int(self.ids[row])), reason))
            done += len(rows)
            if progress is not None:
                progress(done, len(self))
        return (out[kept] if skipped else out), self.ids[kept], tuple(skipped)


def open_source(spec: str | Path, *, part: Part = "train", channels: int | None = None) -> Source:
    """Open what a person named; every entry's header is read, its pixels are not.

    spec: "digits" (5,000 MNIST digits; a folder of that name is "./digits"), a folder of images or of Parquet files,
        or a .parquet, .npy or .npz file.
    part: "train" is everything where the data have no parts; "test" is an error there. Parts are: a folder's train/
        and test/ (else val/); Parquet files with train and test (else validation) as a word of their path; an .npz
        file's `images` and `test_images`. Each part has its own listing, except that the digits have one for all.
    channels: 1 or 3 converts every image; None takes 3 if any image has colour, else 1.
    """
    if part not in PARTS:
        raise DataError(names.unknown("part", part, PARTS))
    if channels not in (None, 1, 3):
        raise DataError(f"channels={channels!r} is not possible; use 1 (gray), 3 (colour), or leave it out")
    name = str(spec)
    if spec == "digits":
        source = _from_arrays(name, _digits()[0], _digits()[1], channels, tuple("0123456789"))
        # The fixed split: the digits come class by class, 500 each; of each class the last 100 are the test part.
        is_test = np.arange(5000) % 500 >= 400
        return source if part == "all" else source.subset(is_test if part == "test" else ~is_test)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(name, path, part, channels)
    if not path.exists():
        raise DataError(_missing(name, path))
    if path.suffix.lower() == ".parquet":
        return _from_parquet(name, [(path.name, path)], part, channels)
    if path.suffix.lower() in (".npy", ".npz"):
        return _from_array_file(name, path, part, channels)
    raise DataError(f"unknown kind of data {_shown(name)}; use {KINDS}")


def _missing(name: str, path: Path) -> str:
    if re.fullmatch(r"[a-z]{2,}:.*", name):
        return f"unknown kind of data {_shown(name)}; use {KINDS}"
    path = path.absolute()
    while not path.parent.is_dir():
        path = path.parent
    near = difflib.get_close_matches(path.name, [*os.listdir(path.parent), "digits"], n=1)
    hint = f"did you mean {_shown(near[0])}?" if near else f"use {KINDS}"
    return f"no such file or folder: {_shown(name)}; {hint}"


def _no_test_part(name: str, how: str) -> DataError:
    return DataError(f"{_shown(name)} has no test part; {how}, or hold images out of its train part")


@dataclass(frozen=True, eq=False)
class _Files:
    root: Path
    files: list[str]

    def header(self, position: int) -> tuple[int, int, int]:
        if not _is_image(self.files[position]):
            raise Unusable("not an image file name")
        return header(self.root / self.files[position])

    def read(self, position: int, channels: int) -> np.ndarray:
        return decode(self.root / self.files[position], channels)

    def name(self, position: int) -> str:
        return self.files[position]


def _from_folder(name: str, root: Path, part: Part, channels: int | None) -> Source:
    """Files in order of their POSIX path below `root`; labels are sub-folders if no image lies outside of one."""
    listed = _walk(root)
    images = [file for file, _ in listed if _is_image(file)]
    tables = [file for file, _ in listed if file.lower().endswith(".parquet")]
    if tables and not images:
        return _from_parquet(name, [(file, root / file) for file in tables], part, channels)
    tops = {file.split("/")[0] for file in images if "/" in file}
    held_out = "test" if "test" in tops else "val"
    depth = 0
    if "train" in tops and held_out in tops:
        depth = 1
        images = [file for file in images if file.startswith(("train/", "test/", "val/"))]
        wanted = {"train": "train/", "test": f"{held_out}/", "all": ("train/", "test/", "val/")}[part]
        listed = [entry for entry in listed if entry[0].startswith(wanted)]
    elif part == "test":
        raise _no_test_part(name, "put images into sub-folders train/ and test/")
    # Over both parts: a class that one of them lacks must not shift the labels of the others.
    classes = tuple(sorted({file.split("/")[depth] for file in images if file.count("/") > depth}))
    label_of = {name: label for label, name in enumerate(classes)}
    files = [file for file, _ in listed]
    labels = np.array([label_of.get(f.split("/")[depth], -1) if f.count("/") > depth else -1 for f in files], np.int64)
    digest = hashlib.sha256()
    for file, num_bytes in listed:
        digest.update(os.fsencode(f"{file}\0{num_bytes}\0"))
    source = _verified(name, _Files(root, files), len(files), digest.hexdigest(), labels, classes, channels)
    if len(classes) < 2 or source.labels is None or (source.labels < 0).any():
        return replace(source, labels=None, classes=None)
    return source


def _is_image(file: str) -> bool:
    return file.lower().endswith(EXTENSIONS)


def _walk(root: Path) -> list[tuple[str, int]]:
    """(POSIX path below root, bytes) of every file that is not hidden, sorted.

    Folders that are links come last and each folder is entered once, so loops end and a link to a folder that is
    already inside adds nothing.
    """
    found, entered = [], set()
    real, linked = [""], list[str]()
    try:
        while real or linked:
            folder = real.pop() if real else linked.pop(0)
            here = (root / folder).stat()
            if (here.st_dev, here.st_ino) in entered:
                continue
            entered.add((here.st_dev, here.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    file = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        (linked if entry.is_symlink() else real).append(file)
                    elif entry.is_file():
                        found.append((file, entry.stat().st_size))
                    elif entry.is_symlink():  # it leads nowhere: listed, and skipped with that reason
                        found.append((file, 0))
    except PermissionError as error:
        raise DataError(f"no permission to list {_shown(str(error.filename))}; allow reading it or move it away") from error
    return sorted(found)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Encoded images as Arrow: `encoded` of large_binary, `paths` of strings, `starts` the first row of each file."""

    encoded: Any
    paths: Any
    files: list[str]
    starts: np.ndarray

    def _bytes(self, position: int) -> bytes:
        data = self.encoded[position].as_py()
        if data is None:
            raise Unusable("the row holds no image bytes")
        return data

    def header(self, position: int) -> tuple[int, int, int]:
        return header(self._bytes(position))

    def read(self, position: int, channels: int) -> np.ndarray:
        return decode(self._bytes(position), channels)

    def name(self, position: int) -> str:
        file = int(np.searchsorted(self.starts, position, side="right")) - 1
        path = self.paths[position].as_py()
        return f"{self.files[file]} row {position - self.starts[file]}" + (f" ({path})" if path else "")


def _from_parquet(name: str, files: list[tuple[str, Path]], part: Part, channels: int | None) -> Source:
    """Rows of Parquet files in the Hugging Face layout, file by file; the encoded bytes stay in memory as Arrow."""
    import pyarrow as pa

    words = {file: set(re.split(r"[^a-z]+", file.lower())) for file, _ in files}
    held_out = "test" if any("test" in w for w in words.values()) else "validation"
    if all(any(word in w for w in words.values()) for word in ("train", held_out)):
        wanted = {"train": {"train"}, "test": {held_out}, "all": {"train", "test", "validation"}}[part]
        files = [(file, path) for file, path in files if words[file] & wanted]
    elif part == "test":
        raise _no_test_part(name, "name a folder whose .parquet files have `train` and `test` in their names")
    digest, tables, classes = hashlib.sha256(), [], None
    for file, path in files:
        try:
            table, class_names = _columns(file, path)
            with path.open("rb") as stream:
                digest.update(os.fsencode(f"{file}\0") + hashlib.file_digest(stream, "sha256").digest())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{_shown(file)} is not a readable Parquet file; fetch or write it again") from error
        tables.append(table)
        classes = classes or class_names
    rows = pa.concat_tables(tables)
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    listing = _Rows(rows["encoded"], rows["path"], [file for file, _ in files], starts)
    labels = rows["label"].to_numpy().astype(np.int64)
    if classes is not None and labels.size and labels.max() >= len(classes):
        raise DataError(f"{_shown(name)}: label {labels.max()} has no name among the {len(classes)} in its metadata")
    return _verified(name, listing, len(rows), digest.hexdigest(), labels, classes, channels)


def _columns(file: str, path: Path) -> tuple[Any, tuple[str, ...] | None]:
    """(a table of encoded: large_binary, path: string, label: int64 with -1 for none; class names or None)."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        column = next((c for c in ("image", "img") if c in schema.names), None)
        if column is None:
            raise DataError(f"{_shown(file)} has no column `image`, only {_shown(', '.join(schema.names))}; rename one")
        table = parquet.read([column, "label"] if "label" in schema.names else [column])
    images, paths = table[column], pa.nulls(len(table), pa.string())
    if pa.types.is_struct(images.type):
        fields = [images.type.field(i).name for i in range(images.type.num_fields)]
        paths = pc.struct_field(images, "path").cast(pa.string()) if "path" in fields else paths
        images = pc.struct_field(images, "bytes") if "bytes" in fields else images
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(f"{_shown(file)}: column `{column}` is {images.type}, not encoded image bytes; encode it first")
    labels, class_names = pa.nulls(len(table), pa.int64()), None
    if "label" in schema.names:
        if not pa.types.is_integer(table["label"].type):
            raise DataError(f"{_shown(file)}: column `label` is {table['label'].type}; make it int64 or drop it")
        labels = table["label"].cast(pa.int64())
        class_names = _class_names(schema.metadata or {})
    columns = {"encoded": images.cast(pa.large_binary()), "path": paths, "label": pc.fill_null(labels, -1)}
    return pa.table(columns), class_names


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, found)) if isinstance(found, list) and found else None
