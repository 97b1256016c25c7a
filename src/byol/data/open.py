"""Where images come from: `open_source` makes a `Source` of whatever a person names."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from byol import names
from byol.data.arrays import digits, from_array, from_array_file, from_arrays
from byol.data.decode import is_image_name
from byol.data.folder import from_folder, walk
from byol.data.parquet import from_parquet
from byol.data.shards import ENDINGS, from_shards, is_elsewhere
from byol.data.source import DataError, Part, Source, shown

Images = str | Path | np.ndarray
"""What a person names, or a program holds."""
STREAM_FROM_BYTES = 4 << 30
PARTS = ("train", "test", "all")
KINDS = "`digits`, a folder, a .parquet, .tar, .npy or .npz file, or a URL of shards"


def open_source(spec: Images, *, part: Part = "train", channels: int | None = None, streams: bool = False) -> Source:
    """Open what a person named; every entry's header is read, its pixels are not.

    spec: "digits" (5,000 MNIST digits; a folder of that name is "./digits"), a folder of images or of Parquet
        files, or a .parquet, .npy or .npz file; or images in memory, as such a file would hold them.
    part: "train" is everything where the data have no parts; "test" is an error there. Parts are: a folder's
        train/ and test/ (else val/); Parquet files with train and test (else validation) as a word of their
        path; an .npz file's `images` and `test_images`. Each part has its own listing, hence its own ids from
        0; only the digits have one listing for all parts.
    channels: 1 or 3 converts every image; None takes 3 if any image has colour, else 1. Any other number takes images
        of so many channels, value for value (see `Source.deep`).
    streams: read Parquet files unit by unit; above STREAM_FROM_BYTES, and elsewhere than here, they always are.
    """
    if part not in PARTS:
        raise DataError(names.unknown("part", part, PARTS))
    if channels is not None and channels < 1:
        raise DataError(f"channels={channels!r} is not possible; use 1 or more, or leave it out")
    if isinstance(spec, np.ndarray):
        return from_array(spec, part, channels)
    name = str(spec)
    if spec == "digits":
        images, labels = digits()
        source = from_arrays(name, images, labels, channels, has_test_part=True)
        source = replace(source, classes=tuple("0123456789"))
        # The fixed split: the digits come class by class, 500 each; the last 100 of each are the test part.
        is_test = np.arange(5000) % 500 >= 400
        return source if part == "all" else source.subset(is_test if part == "test" else ~is_test)
    if is_elsewhere(name) or re.search(r"\*|\{\d+\.\.\d+\}", name):
        return from_shards(name, part, channels)
    path = Path(spec).expanduser()
    if path.is_dir() and (streams or _is_of_shards(path)):
        return from_shards(name, part, channels)
    if path.is_dir():
        return from_folder(name, path, part, channels)
    if not path.exists():
        raise DataError(_missing(name, path))
    if not path.is_file():
        raise DataError(f"{shown(name)} is neither a file nor a folder; use {KINDS}")
    if path.suffix.lower() == ".tar" or (
        path.suffix.lower() == ".parquet" and (streams or path.stat().st_size > STREAM_FROM_BYTES)
    ):
        return from_shards(name, part, channels)
    if path.suffix.lower() == ".parquet":
        return from_parquet(name, [(path.name, path)], part, channels)
    if path.suffix.lower() in (".npy", ".npz"):
        return from_array_file(name, path, part, channels)
    raise DataError(f"unknown kind of data {shown(name)}; use {KINDS}")


def _is_of_shards(path: Path) -> bool:
    """Whether a folder holds archives, or more bytes of Parquet files than memory should."""
    with os.scandir(path) as entries:
        if not any(entry.name.lower().endswith(ENDINGS) for entry in entries):
            return False
    files = [(file.lower(), num_bytes) for file, num_bytes, _ in walk(path)]
    sizes = {suffix: [num_bytes for file, num_bytes in files if file.endswith(suffix)] for suffix in ENDINGS}
    if sizes[".tar"] and any(is_image_name(file) for file, _ in files):
        raise DataError(
            f"{shown(str(path))} holds images and .tar archives; name '{shown(str(path))}/*.tar', or move them"
        )
    return bool(sizes[".tar"]) or sum(sizes[".parquet"]) > STREAM_FROM_BYTES


def _missing(name: str, path: Path) -> str:
    if re.fullmatch(r"[a-z]{2,}:.*", name):
        return f"unknown kind of data {shown(name)}; use {KINDS}"
    path = path.absolute()
    while not path.parent.is_dir():
        path = path.parent
    siblings = [sibling.name for sibling in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, [*siblings, "digits"], n=1)
    hint = f"did you mean {shown(near[0])}?" if near else f"use {KINDS}"
    return f"no such file or folder: {shown(name)}; {hint}"
