"""A folder of images, in any nesting; of Parquet files where it holds no images."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from byol.data import deep
from byol.data.decode import Unusable, check_machine, decode, is_image_name, look, reason, to_channels
from byol.data.parquet import from_parquet
from byol.data.source import NUM_THREADS, DataError, Part, Source, no_test_part, shown, verified

NOT_AN_IMAGE = "not an image file name"
KEEP_FROM_FILES = 10_000
"""A folder's headers are read once, where it has as many files and none of them is changed."""


def from_folder(name: str, root: Path, part: Part, channels: int | None) -> Source:
    """Files in order of their path below `root`; labels are sub-folders if no image lies outside one."""
    found = walk(root)
    images = [file for file, *_ in found if _is_image(file)]
    tables = [file for file, *_ in found if file.lower().endswith(".parquet")]
    if tables and not images:
        return from_parquet(name, [(file, root / file) for file in tables], part, channels)
    tops = {file.split("/")[0] for file in images if "/" in file}
    held_out = "test" if "test" in tops else "val"
    is_split = "train" in tops and held_out in tops
    depth = 1 if is_split else 0
    if is_split:
        images = [file for file in images if file.startswith(("train/", "test/", "val/"))]
        wanted = {"train": ("train/",), "test": (f"{held_out}/",), "all": ("train/", "test/", "val/")}[part]
        found = [entry for entry in found if entry[0].startswith(wanted)]
    elif part == "test":
        raise no_test_part(name, "put images into sub-folders train/ and test/")
    # Over both parts: a class that one of them lacks must not shift the labels of the others.
    classes = tuple(sorted({file.split("/")[depth] for file in images if file.count("/") > depth}))
    label_of: dict[str | None, int] = {folder: label for label, folder in enumerate(classes)}
    files = [file for file, *_ in found]
    folders = [file.split("/")[depth] if file.count("/") > depth else None for file in files]
    labels = np.array([label_of.get(folder, -1) for folder in folders], np.int64)
    digest, now = hashlib.sha256(), hashlib.sha256(os.fsencode(root.resolve()))
    for file, num_bytes, changed in found:
        digest.update(os.fsencode(f"{file}\0{num_bytes}\0"))
        now.update(changed.to_bytes(8, "little", signed=True))
    # What the headers say follows from these too.
    now.update(digest.digest() + f"{channels} {importlib.util.find_spec('tifffile') is not None}".encode())
    kept_as = now.hexdigest()[:32] if len(files) >= KEEP_FROM_FILES else None
    status = np.array([entry[1:] for entry in found], np.int64).reshape(-1, 2)
    listing = Files(root, files, status, channels)
    source = verified(name, listing, len(files), digest.hexdigest(), labels, channels, kept_as=kept_as)
    if len(classes) < 2 or source.labels is None or (source.labels < 0).any():
        return replace(source, labels=None, has_test_part=is_split)
    return replace(source, classes=classes, has_test_part=is_split)


@dataclass(frozen=True, eq=False)
class Files:
    """files: POSIX paths below root, images or not. status: [N, 2] int64, bytes and time of change of each, ns.
    channels: that are wanted, None if nobody said."""

    root: Path
    files: list[str]
    status: np.ndarray
    channels: int | None = None

    def header(self, position: int) -> tuple[int, int, int]:
        return self.look(position)[:3]

    def look(self, position: int) -> tuple[int, int, int, int]:
        file = self.files[position]
        path = f"{self.root}/{file}"
        if not _is_image(file):
            try:
                os.stat(path)  # noqa: PTH116
            except OSError as error:
                raise Unusable(reason(error)) from error
            raise Unusable(NOT_AN_IMAGE)
        return look_at(path, self.channels)

    def values(self, position: int, channels: int) -> np.ndarray:
        return values_at(f"{self.root}/{self.files[position]}", channels)

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        return pixels_at(f"{self.root}/{self.files[position]}", channels, reduce)

    def name(self, position: int) -> str:
        return self.files[position]

    def entries(self) -> Iterator[tuple[str, int, int]]:
        for file, (size, changed) in zip(self.files, self.status.tolist(), strict=True):
            yield file, size, changed

    def digests(self, positions: np.ndarray) -> Iterator[bytes]:
        """SHA-256 of each file's bytes; of one that cannot be read, no bytes."""

        def digest(position: int) -> bytes:
            try:
                with (self.root / self.files[position]).open("rb") as stream:
                    return hashlib.file_digest(stream, "sha256").digest()
            except OSError as error:
                check_machine(error, self.root / self.files[position])
                return b""

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            yield from pool.map(digest, positions.tolist(), chunksize=64)


def look_at(path: str, channels: int | None) -> tuple[int, int, int, int]:
    """What `Deep.look` gives of a file. channels: that are wanted, None if nobody said."""
    return deep.look(path, channels) if deep.is_deep_name(path) else look(path)


def values_at(path: str, channels: int) -> np.ndarray:
    """[H, W, C] of the numbers in a file."""
    return deep.values(path, channels) if deep.is_deep_name(path) else deep.pillow_values(path)


def pixels_at(path: str, channels: int | None = None, reduce: int = 1) -> np.ndarray:
    """[H, W, C] uint8 of a file. channels, reduce: see `decode`."""
    if path.lower().endswith(deep.ARRAY):
        return to_channels(deep.pixels(path), channels)
    return decode(Path(path), channels, reduce)


def _is_image(file: str) -> bool:
    return is_image_name(file) or file.lower().endswith(deep.ARRAY)


def walk(root: Path) -> list[tuple[str, int, int]]:
    """(POSIX path below root, bytes, when it was changed) of every file that is not hidden, sorted.

    Links are followed, also those that lead out of the folder. Folders that are links come last and each folder is
    entered once: loops end, and a link to a folder that is already inside adds nothing. What is neither file nor folder
    is passed over; a folder that cannot be opened, for its path is too long, is listed, and skipped with that reason.
    """
    found, entered = [], set()
    real, linked = [""], list[str]()
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        try:
            path = f"{root}/{folder}"  # of a folder that is very deep a Path takes long to make
            here = os.stat(path)  # noqa: PTH116
            if (here.st_dev, here.st_ino) in entered:
                continue
            entered.add((here.st_dev, here.st_ino))
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    file = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name.startswith("."):
                        continue
                    try:
                        status = entry.stat()
                    except OSError as error:  # a link that leads nowhere: listed, and skipped with that reason
                        check_machine(error, entry.path)
                        found.append((file, 0, 0))
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        (linked if entry.is_symlink() else real).append(file)
                    elif stat.S_ISREG(status.st_mode):
                        found.append((file, status.st_size, status.st_mtime_ns))
        except PermissionError as error:
            raise DataError(f"no permission to list {shown(str(error.filename))}; allow it or move it") from error
        except OSError as error:
            check_machine(error, path)
            if not folder:
                raise DataError(f"{shown(str(root))} cannot be listed: {reason(error)}; name another folder") from error
            found.append((folder, 0, 0))
    return sorted(found)
