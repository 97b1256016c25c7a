"""What data were when a run began, file by file, so that it can be said what changed since."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from byol.data.source import Listing, Source, shown
from byol.data.tiles import Tiles
from byol.files import replacing

MANIFEST = "data.jsonl.gz"
NAMED = 3
"""Changed files that a line names."""
Entry = tuple[str, int, int]
"""(name, bytes, a number that changes when the file does: its time of change, or of its contents)"""


@runtime_checkable
class OfFiles(Listing, Protocol):
    """A listing that knows the files it is of."""

    def entries(self) -> Iterator[Entry]: ...


def write(directory: Path, source: Source) -> None:
    """Beside a run, what `changes` compares with; nothing where the data are not files."""
    found = _entries(source)
    if found is not None:
        with replacing(directory / MANIFEST) as path, gzip.open(path, "wt", encoding="ascii", compresslevel=1) as file:
            file.writelines(json.dumps(entry) + "\n" for entry in found)


def changes(directory: Path, source: Source, fingerprint: str) -> str | None:
    """What is different from when the run in `directory` began, in words, or None. fingerprint: of the data then.

    A file is changed if its size is; if all sizes are as they were, if some files, and not all, have another time of
    change: all of them have after a copy.
    """
    same = source.fingerprint == fingerprint
    found, path = _entries(source), directory / MANIFEST
    if found is None or not path.exists():
        return None if same else "its images or labels"
    with gzip.open(path, "rt", encoding="ascii") as file:
        before = {name: (size, mark) for name, size, mark in map(json.loads, file)}
    now = {name: (size, mark) for name, size, mark in found}
    words = [f"{shown(name)} is gone" for name in before if name not in now]
    words += [f"{shown(name)} is new" for name in now if name not in before]
    both = [name for name in before if name in now]
    words += [
        f"{shown(name)} has {now[name][0]:,} bytes, not {before[name][0]:,}"
        for name in both
        if now[name][0] != before[name][0]
    ]
    if not words:
        marked = [name for name in both if now[name][1] != before[name][1]]
        if not same or len(marked) < len(both):
            words = [f"{shown(name)} was written again" for name in marked]
    if not words:
        return None if same else "its images or labels"
    more = f" and {len(words) - NAMED:,} more" if len(words) > NAMED else ""
    return "; ".join(words[:NAMED]) + more


def _entries(source: Source) -> Iterator[Entry] | None:
    listing = source.listing.listing if isinstance(source.listing, Tiles) else source.listing
    return listing.entries() if isinstance(listing, OfFiles) else None
