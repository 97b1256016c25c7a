"""What data were when a run began, file by file, so that it can be said what changed since."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from byol.data.source import Listing, Source, digest, shown
from byol.data.tiles import Tiles
from byol.files import replacing
from byol.kinds import fits
from byol.run import Run

MANIFEST = "data.jsonl.gz"
NAMED = 3
"""Changed files that a line names."""
Entry = tuple[str, int, int]
"""(name, bytes, a number that changes when the file does: its time of change, or of its contents)"""


MOST_LINE_BYTES = 1 << 17
"""Of a name of 4,096 characters, each written as an escape, it is a fifth."""
SAMPLED, MOST_SAMPLED_BYTES = 64, 1 << 26
"""Files whose contents are kept too, and how large they are at most: where all files have other times they tell a copy
from other files."""


@runtime_checkable
class OfFiles(Listing, Protocol):
    """A listing that knows the files it is of."""

    def entries(self) -> Iterator[Entry]: ...


@runtime_checkable
class OfImages(OfFiles, Protocol):
    """One of which each position is a file."""

    def digests(self, positions: np.ndarray) -> Iterator[bytes]: ...


def write(directory: Path, source: Source) -> None:
    """Beside a run, what `changes` compares with; nothing where the data are not files."""
    found = _entries(source)
    if found is None:
        return
    sampled = {name: contents.hex() for name, contents in _contents(source)}
    with replacing(directory / MANIFEST) as path, gzip.open(path, "wt", encoding="ascii", compresslevel=1) as file:
        for entry in found:
            file.write(json.dumps([*entry, *([sampled[entry[0]]] if entry[0] in sampled else [])]) + "\n")


def changes(directory: Path, source: Source, run: Run) -> str | None:
    """What is different from when the run in `directory` began, in words, or None. ValueError where the list of its
    files is damaged.

    A file is changed if its size is; if all sizes are as they were, if some files, and not all, have another time of
    change, or if those of which contents are kept have others: all times are others after a copy.
    """
    same = source.fingerprint == run.fact("data_fingerprint", str)
    labels = run.facts.get("labels_fingerprint"), run.facts.get("classes")
    now_labels = digest(source.labels, source.targets), list(source.classes) if source.classes else None
    if labels[0] is not None and same and labels != now_labels:
        return "images have other labels"
    found, path = _entries(source), directory / MANIFEST
    if found is None or not path.exists():
        return None if same else "its images or labels"
    now = {name: (size, mark) for name, size, mark in found}
    words, written_again, sampled = list[str](), list[str](), dict[str, str]()
    seen, gone = set[str](), 0
    # Line by line: what is kept of it is bounded by what is here now.
    for name, size, mark, *contents in _lines(path):
        if name not in now:
            gone += 1
            words += [f"{shown(name)} is gone"] if gone <= NAMED else []
            continue
        if name in seen:
            raise ValueError(f"{path} is damaged: it names {shown(name)} twice; restore it from a copy")
        seen.add(name)
        if now[name][0] != size:
            words.append(f"{shown(name)} has {now[name][0]:,} bytes, not {size:,}")
        if now[name][1] != mark:
            written_again.append(name)
        if contents:
            sampled[name] = contents[0]
    words += [f"{shown(name)} is new" for name in now if name not in seen]
    if not words and (not same or len(written_again) < len(seen)):
        words = [f"{shown(name)} was written again" for name in written_again]
    elif not words and written_again:
        here = {name: contents.hex() for name, contents in _contents(source)}
        words = [f"{shown(name)} holds something else" for name, was in sampled.items() if here.get(name) != was]
    if not words:
        return None if same else "its images or labels"
    number = len(words) + max(0, gone - NAMED)
    more = f" and {number - NAMED:,} more" if number > NAMED else ""
    return "; ".join(words[:NAMED]) + more


def _lines(path: Path) -> Iterator[tuple[Any, ...]]:
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(MOST_LINE_BYTES):
                name, size, mark, *contents = json.loads(line)
                if not fits((name, size, mark, *contents), tuple[str, int, int] | tuple[str, int, int, str]):
                    raise ValueError("of another kind")
                yield name, size, mark, *contents
    except (EOFError, zlib.error, gzip.BadGzipFile, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged; restore it from a copy") from error


def _entries(source: Source) -> Iterator[Entry] | None:
    listing = _listing(source)
    return listing.entries() if isinstance(listing, OfFiles) else None


def _contents(source: Source) -> Iterator[tuple[str, bytes]]:
    """(name, SHA-256) of some files, always the same ones of the same list."""
    listing = _listing(source)
    if not isinstance(listing, OfImages):
        return
    small = np.flatnonzero([num_bytes <= MOST_SAMPLED_BYTES for _, num_bytes, _ in listing.entries()])
    positions = small[np.unique(np.linspace(0, len(small) - 1, SAMPLED).round().astype(int))] if small.size else small
    yield from zip(map(listing.name, positions.tolist()), listing.digests(positions), strict=True)


def _listing(source: Source) -> Listing:
    return source.listing.listing if isinstance(source.listing, Tiles) else source.listing
