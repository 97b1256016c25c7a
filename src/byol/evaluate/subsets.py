"""Which labelled images semi-supervised evaluation uses: drawn from a seed, or read from a published list."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from byol.data.source import DataError, shown

MOST_LIST_BYTES = 1 << 30
"""A hundred bytes for each of ten million names."""

Amount = str | int
"""A share of each class such as "1%" or "12.5%", or a number of images of each class."""


def parse_amounts(text: str) -> tuple[Amount, ...]:
    """The amounts in a list such as "1%,10%,5" or "1percent.txt", in its order, each once."""
    found: dict[Amount, None] = {}
    for item in (each.strip() for each in text.split(",")):
        amount = int(item) if re.fullmatch(r"[0-9]+", item) else item
        if not Path(item).is_file():
            _check(amount)
        found[amount] = None
    return tuple(found)


def choose(
    labels: np.ndarray,
    amount: Amount,
    *,
    seed: int,
    groups: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Rows of the labelled images to use, int64 ascending: the amount of each class, drawn at random.

    A share is rounded to the nearest number of images, halves up, but is at least one of each class. With the same
    seed a smaller amount is a part of any larger one, and what is drawn of a class depends on no other class.

    labels: [N] integer; images with a negative label are not used. groups: [N], of each image, where images come in
    groups (of a patient, a film): within a class whole groups are drawn until they hold the amount or more. classes:
    names of labels. DataError where a class has fewer images than an amount that is a number.
    """
    _check(amount)
    labels = np.asarray(labels)
    taken = [np.empty(0, np.int64)]
    for label in np.unique(labels[labels >= 0]).tolist():
        members = np.flatnonzero(labels == label)
        num = _number(amount, len(members))
        if num > len(members):
            name = str(label) if classes is None else shown(classes[label])
            raise DataError(
                f"class {name} has {len(members)} labelled images and {num} of each class are wanted; "
                f"use {len(members)} or fewer, or a share such as 10%"
            )
        of = (
            np.arange(len(members))
            if groups is None
            else np.unique(np.asarray(groups)[members], return_inverse=True)[1]
        )
        order = np.random.default_rng([seed, label]).permutation(of.max() + 1)
        enough = np.searchsorted(np.bincount(of)[order].cumsum(), num) + 1
        taken.append(members[np.isin(of, order[:enough])])
    return np.sort(np.concatenate(taken))


def words(amount: Amount) -> str:
    """For people."""
    if isinstance(amount, int):
        return f"{amount} labels a class"
    return f"{amount} of the labels" if amount.endswith("%") else f"the labels of {Path(amount).name}"


def _check(amount: Amount) -> None:
    if isinstance(amount, int):
        fits = amount >= 1
    else:
        fits = re.fullmatch(r"[0-9]+(\.[0-9]+)?%", amount) is not None and 0 < Fraction(amount[:-1]) <= 100
    if not fits:
        raise ValueError(
            f"{str(amount)!r} is no amount of labels; use a share of each class such as 1%, above 0% and at most 100%, "
            "or a number of images of each class such as 5"
        )


def _number(amount: Amount, size: int) -> int:
    """How many images of a class of `size`."""
    if isinstance(amount, int):
        return amount
    return max(1, math.floor(Fraction(amount[:-1]) * size / 100 + Fraction(1, 2)))


def read_list(path: str | Path, names: Sequence[str]) -> np.ndarray:
    """Rows of the images that a text file lists, one a line: int64 ascending.

    names: [N], of the source's images (`Source.name_of`), in the order of its rows. A line is an image's whole name, or
    the end of one image's name from a folder's name on, or a path that has a name as such an end: SimCLR's published
    lists of 1 % and 10 % of ImageNet hold n01440764_10183.JPEG for train/n01440764/n01440764_10183.JPEG. Blank lines,
    and those that start with # and are no name, are skipped. DataError for a line that names no image, several, or one
    that was named before.
    """
    try:
        if Path(path).stat().st_size > MOST_LIST_BYTES:
            raise DataError(f"{path} is too large for a list of images; give a text file with a name on each line")
        lines = Path(path).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); give a text file with an image's name on each line"
        ) from None
    exact, alike = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for row, name in enumerate(names):
        exact[name].append(row)
        alike[_last(name)].append(row)

    line_of: dict[int, int] = {}
    missing, several, again = list[str](), list[str](), list[str]()
    for number, line in enumerate(lines, start=1):
        text = line if line in exact else line.strip()
        if not text or (text.startswith("#") and text not in exact):
            continue
        rows = exact.get(text) or _alike(text, names, alike.get(_last(text), []))
        where = f"line {number} of {path} ({shown(text)})"
        if not rows:
            missing.append(f"{where} names no image of the data, whose first is {names[0]}")
        elif len(rows) > 1:
            several.append(f"{where} names {len(rows)} images, {names[rows[0]]} and {names[rows[1]]} among them")
        elif rows[0] in line_of:
            again.append(f"{where} names the image of line {line_of[rows[0]]} again")
        else:
            line_of[rows[0]] = number
    _refuse(missing, "correct or delete them, or give the data that the list was made for")
    _refuse(several, "write the whole names")
    _refuse(again, "list each image once")
    if not line_of:
        raise DataError(f"{path} names no image; write one name a line, such as {names[0]}")
    return np.array(sorted(line_of), np.int64)


def write_list(path: str | Path, names: Sequence[str]) -> None:
    """One name a line, as `read_list` reads it. names: of the images used, each as `Source.name_of` gives it."""
    Path(path).write_text("".join(f"{name}\n" for name in names), "utf-8", newline="\n")


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _alike(path: str, names: Sequence[str], rows: list[int]) -> list[int]:
    """Those of the rows whose names end as the path does from a folder's name on; else those the path ends as."""
    found = [row for row in rows if names[row].endswith(f"/{path}")]
    return found or [row for row in rows if path.endswith(f"/{names[row]}")]


def _refuse(mistakes: list[str], what_to_do: str) -> None:
    if mistakes:
        raise DataError(f"{mistakes[0]}; such lines in all: {len(mistakes)}; {what_to_do}")
