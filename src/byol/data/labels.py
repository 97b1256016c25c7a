"""Labels and groups of images from a file that a person wrote, for any kind of data."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np

from byol.data.folder import Files
from byol.data.parquet import Rows
from byol.data.source import DataError, Source, shown

V = TypeVar("V", bound=Hashable)

IMAGE_COLUMNS = ("file", "path", "image", "name", "filename", "id")
LABEL_COLUMNS = ("label", "class", "target")
MOST_LINE = 1 << 24
UNKNOWN = 255
"""-1 as int8, in a row of marks: one byte a class, 1 present, 0 absent."""
MARKS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": UNKNOWN, "-1.0": UNKNOWN, "": UNKNOWN}
"""What the cells of one column a class may hold."""


def with_labels(source: Source, path: str | Path, *, say: Callable[[str], None] = lambda line: None) -> Source:
    """The source with the labels of a file, whatever labels it had. docs/data.md describes the file.

    Sets labels, or, where images have several, targets; and classes: those of the whole file, so that the parts of a
    data set agree. say: gets a line each on rows without an image, images without a row, and columns left out.
    """
    table = _read(Path(path))
    positions = _positions(table, source, say)
    column = table.label_column()
    if column is not None and not any(re.search("[;|]", cell) for cell in table.cells(column)):
        return _one_class_each(source, table, column, positions, say)
    if column is not None:
        parts = [re.split("[;|]", cell) for cell in table.cells(column)]
        sets = [frozenset(part.strip() for part in several) - {""} for several in parts]
        classes = _classes(set().union(*sets), table, column)
        number = {name: i for i, name in enumerate(classes)}
        marks = [_marks({number[name] for name in several}, len(classes)) for several in sets]
    else:
        classes, marks = _columns_of_marks(table, say)
    of_image = _by_image(table, positions, marks, "labels", source)
    unknown = bytes([UNKNOWN]) * len(classes)
    rows = bytearray().join(of_image.get(i, unknown) for i in source.ids.tolist())
    targets = np.frombuffer(rows, np.int8).reshape(len(source), len(classes))
    _say_missing(sum(i not in of_image for i in source.ids.tolist()), source, table, say)
    return replace(source, labels=None, targets=targets, classes=classes)


def with_groups(source: Source, by: str, labels_file: str | Path | None = None) -> Source:
    """The source with groups: images whose value is the same belong together.

    by: a column of the labels file, or of the Parquet files that the images are in; else a regular expression, searched
    in each image's name, whose first group (or else whole match) is the value. Every labelled image needs one, every
    image where there are no labels.
    """
    columns = list[str]()
    values: list[str | None] | None = None
    if labels_file is not None:
        table = _read(Path(labels_file))
        columns += table.header
        if by in table.header:
            positions = _positions(table, source, lambda line: None)
            of_image = _by_image(table, positions, table.cells(table.header.index(by)), f"values of `{by}`", source)
            values = [of_image.get(i) for i in source.ids.tolist()]
    if values is None and isinstance(source.listing, Rows):
        columns += source.listing.columns()
        if by in source.listing.columns():
            of_row = source.listing.column(by)
            values = [of_row[i] for i in source.ids.tolist()]
    if values is None:
        values = _searched(source, by, columns)
    grouped = np.array([bool(value) for value in values])
    needed = _labelled(source) if _labelled(source).any() else np.ones(len(source), bool)
    if (needed & ~grouped).any():
        first = source.name_of(int(source.ids[needed & ~grouped][0]))
        count = f"{(needed & ~grouped).sum()} of {needed.sum()}"
        raise DataError(f"{count} images have no group by {shown(by)}, the first {first}; give every image one")
    # Numbers that depend on the value alone: the same in another part of the data.
    number = {value: _number(value) for value in set(values) - {None, ""} if value}
    groups = np.array([number[value] if value else -1 for value in values], np.int64)
    return replace(source, groups=groups)


def _number(value: str) -> int:
    """63 bits of the value's hash: of a million values two are the same once in 18 million data sets."""
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class _Table:
    """A labels file: cells as text, without white space around them. image: the column that names images."""

    name: str
    header: list[str]
    rows: list[list[str]]
    image: int

    def cells(self, column: int) -> list[str]:
        return [row[column] for row in self.rows]

    def label_column(self) -> int | None:
        others = [i for i in range(len(self.header)) if i != self.image]
        lower = [name.lower() for name in self.header]
        named = [lower.index(name) for name in LABEL_COLUMNS if name in lower and lower.index(name) != self.image]
        return named[0] if named else others[0] if len(others) == 1 else None


def _read(path: Path) -> _Table:
    name = shown(str(path))
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline(MOST_LINE)
            stream.seek(0)
            delimiter = next((mark for mark in "\t,;" if mark in first), ",")
            reader = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
            rows, lines = list[list[str]](), list[int]()
            for row in reader:
                if row:
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num} is not CSV: {shown(str(error))}; correct it") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {(error.strerror or str(error)).lower()}; name a CSV file") from error
    header = rows[0] if rows else []
    if len(header) < 2 or len(rows) < 2 or len(set(header)) < len(header):
        raise DataError(f"{name} needs a first line that names two or more columns, each once, and rows below it")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise DataError(f"{name} line {line} has {len(row)} cells, the first line {len(header)}; correct it")
    lower = [column.lower() for column in header]
    first_other = next((i for i, column in enumerate(lower) if column not in LABEL_COLUMNS), 0)
    image = next((lower.index(column) for column in IMAGE_COLUMNS if column in lower), first_other)
    return _Table(name, header, rows[1:], image)


def _lines(stream: TextIO) -> Iterator[str]:
    # Not by the stream: of a file without lines the first would be all of it.
    while line := stream.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise csv.Error(f"a line is longer than {MOST_LINE:,} characters")
        yield line


def _positions(table: _Table, source: Source, say: Callable[[str], None]) -> list[int]:
    """The position in the listing that each row names; -1 for none."""
    names = {source.listing.name(i): i for i in range(source.num_listed)}
    of_file: dict[str, int] = {}
    for name, i in names.items():
        file = name.rpartition("/")[2]
        of_file[file] = -1 if file in of_file else i

    def position(cell: str) -> int:
        if cell in names:
            return names[cell]
        path = cell.replace("\\", "/").removeprefix("./")
        parts = path.split("/")
        for start in range(len(parts)):
            if (tail := "/".join(parts[start:])) in names:
                return names[tail]
        found = of_file.get(parts[-1], -1)
        if found >= 0 and source.listing.name(found).endswith(f"/{path}"):
            return found
        if (
            not isinstance(source.listing, Files)
            and re.fullmatch("[0-9]{1,18}", cell)
            and int(cell) < source.num_listed
        ):
            return int(cell)
        return -1

    cells = table.cells(table.image)
    positions = [position(cell) for cell in cells]
    if not set(positions) & set(source.ids.tolist()):
        theirs, ours = shown(cells[0]), source.name_of(int(source.ids[0]))
        how = "" if isinstance(source.listing, Files) else " or its number, from 0"
        raise DataError(
            f"{table.name} names no image of {source.name}: its first is {theirs}, the first image is {ours}"
            f"; write the path below the folder{how}"
        )
    unmatched = [cell for cell, found in zip(cells, positions, strict=True) if found < 0]
    if unmatched:
        say(f"{len(unmatched)} of {len(cells)} rows of {table.name} name no image, the first: {shown(unmatched[0])}")
    return positions


def _by_image(table: _Table, positions: list[int], values: Sequence[V], what: str, source: Source) -> dict[int, V]:
    """Position -> its row's value. A DataError where rows of one image differ."""
    found: dict[int, V] = {}
    for position, value in zip(positions, values, strict=True):
        if position >= 0 and found.setdefault(position, value) != value:
            raise DataError(f"{table.name} has two {what} for {source.name_of(position)}; leave one")
    return found


def _one_class_each(
    source: Source, table: _Table, column: int, positions: list[int], say: Callable[[str], None]
) -> Source:
    cells = table.cells(column)
    classes = _classes(set(cells) - {"", "-1"}, table, column)  # -1 is no class, as in arrays
    of_image = _by_image(table, positions, cells, "labels", source)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number.get(of_image.get(i, ""), -1) for i in source.ids.tolist()], np.int64)
    _say_missing(int((labels < 0).sum()), source, table, say)
    return replace(source, labels=labels, targets=None, classes=classes)


def _columns_of_marks(table: _Table, say: Callable[[str], None]) -> tuple[tuple[str, ...], list[bytes]]:
    """Classes that have a column each, and the row's mark in each of them."""
    others = [i for i in range(len(table.header)) if i != table.image]
    chosen = [
        i for i in others if set(table.cells(i)) <= MARKS.keys() and {"0", "1", "0.0", "1.0"} & set(table.cells(i))
    ]
    if len(chosen) < 2:
        names = shown(", ".join(table.header))
        raise DataError(
            f"{table.name} has no column `label`, only {names}, nor one column of 0 and 1 a class; rename one"
        )
    if left_out := [table.header[i] for i in others if i not in chosen]:
        say(f"columns of {table.name} that hold more than 1, 0 and -1 are no classes: {shown(', '.join(left_out))}")
    return tuple(table.header[i] for i in chosen), [bytes(MARKS[row[i]] for i in chosen) for row in table.rows]


def _marks(present: set[int], num_classes: int) -> bytes:
    return bytes(number in present for number in range(num_classes))


def _classes(names: set[str], table: _Table, column: int) -> tuple[str, ...]:
    """In order: of numbers, if all are."""
    if len(names) < 2:
        raise DataError(
            f"{table.name}: column {shown(table.header[column])} names {len(names)} class(es), at least 2 are needed; "
            "empty cells and -1 mean unknown"
        )
    if all(re.fullmatch("-?[0-9]{1,18}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _say_missing(num: int, source: Source, table: _Table, say: Callable[[str], None]) -> None:
    if num:
        say(f"{num} of {len(source)} images of {source.name} have no label in {table.name}")


def _labelled(source: Source) -> np.ndarray:
    """[N] bool."""
    if source.targets is not None:
        return source.targets.max(axis=1) >= 0
    if source.labels is not None:
        return source.labels >= 0
    return np.zeros(len(source), bool)


def _searched(source: Source, pattern: str, columns: list[str]) -> list[str | None]:
    """What a regular expression finds in each image's name."""
    known = f"; the columns are {shown(', '.join(columns))}" if columns else ""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"{shown(pattern)} is neither a column nor a regular expression ({shown(str(error))}){known}"
        ) from error
    found = [expression.search(source.listing.name(i)) for i in source.ids.tolist()]
    if not any(found):
        first = source.name_of(int(source.ids[0]))
        raise DataError(
            f"{shown(pattern)} is neither a column nor found in any image's name, such as {first}; name one"
            f" or write another regular expression{known}"
        )
    return [None if match is None else (match[1] or match[0] if expression.groups else match[0]) for match in found]
