"""Class by class: which are confused, and how well each is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from byol.pictures.figure import _COLOURS, _FAINT, _INK, _LINE, _figure, _headline, _plain, _quiet, _wrapped

NUMBERS_UP_TO = 20
"""Classes with numbers in the cells of the matrix; with more, the pairs confused most stand beside it."""
PAIRS = 10
LABELS = 30
"""At most about so many classes are named along a side of the matrix."""
ENDS = 20
"""Of more than twice as many classes, so many of the worst and of the best are drawn."""
GAP = 2
"""Rows of space between these."""


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], path: Path, *, title: str) -> None:
    """What each class is taken for: errors stand out, the diagonal stays pale.

    counts: [K, K] int, test images by true class (rows) and predicted class (columns). A cell's colour is its share of
    its row, in [0, 1], on a square-root scale, which shows an error of 1 % as well as one of 50 %.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"counts are {list(counts.shape)} for {len(classes)} classes; give [K, K] and K names")
    numbered = len(classes) <= NUMBERS_UP_TO
    # Two pixels a class where they are many, up to 1,000 of them.
    side = max(1.8, min(0.45 * len(classes), 6.5), min(len(classes), 1000) / 60)
    names = [_plain(name, 22) for name in classes]
    rows = [name if total else f"{name} (no images)" for name, total in zip(names, counts.sum(axis=1), strict=True)]
    left, bottom = (0.068 * max(map(len, texts)) + 0.3 for texts in (rows, names))
    width = max(side + left + 0.85, 3.6)
    figure = _figure(width if numbered else width + 3.8, side + bottom + 0.3)
    # Of axes with a fixed aspect, the constrained layout that is not compressed may leave the names half outside.
    figure.set_layout_engine("compressed")
    _headline(figure, title)
    if numbered:
        axis = figure.subplots()
    else:
        axis, beside = figure.subplots(1, 2, width_ratios=[side, 3.5])
        _confused_pairs(beside, counts, classes, inches=side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _cells(figure, axis, shares, side=side)
    _class_ticks(axis, rows, names)
    if numbered:
        _numbers(axis, counts, shares, inches=side / len(classes))
    figure.savefig(path)


def _cells(figure: Any, axis: Any, shares: np.ndarray, *, side: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    diagonal = np.eye(len(shares), dtype=bool)
    blank = "#f4f6f7"
    errors = LinearSegmentedColormap.from_list("errors", [blank, "#f3c9a0", "#d4622f", "#7c1d0c"])
    right = LinearSegmentedColormap.from_list("right", [blank, "#c4dfdc"])
    axis.imshow(np.ma.array(shares, mask=~diagonal), cmap=right, vmin=0, vmax=1, interpolation="nearest")
    wrong = np.ma.array(shares, mask=diagonal)
    image = axis.imshow(wrong, cmap=errors, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    bar = figure.colorbar(image, ax=axis, shrink=min(0.6, 4 / side), aspect=18, pad=0.02)
    ticks = [0, 0.01, 0.05, 0.2, 0.5, 1]
    bar.set_ticks(ticks, labels=[f"{tick:.0%}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7, colors=_FAINT, length=2)
    bar.set_label("share of the true class", fontsize=7.5, color=_FAINT)
    bar.outline.set_visible(False)
    if len(shares) <= LABELS:
        axis.set_xticks(np.arange(len(shares) + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(len(shares) + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
    axis.tick_params(which="both", length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _class_ticks(axis: Any, rows: list[str], columns: list[str]) -> None:
    step = -(-len(rows) // LABELS)
    named = range(0, len(rows), step)
    size = 8 if len(rows) <= NUMBERS_UP_TO else 7
    turned = 90 if max(map(len, columns)) > 2 else 0
    axis.set_xticks(named, columns[::step], rotation=turned, fontsize=size, color=_INK)
    axis.set_yticks(named, rows[::step], fontsize=size, color=_INK)
    every = "" if step == 1 else f" (1 in {step} named)"
    axis.set_xlabel(f"predicted{every}", fontsize=8, color=_FAINT)
    axis.set_ylabel(f"true{every}", fontsize=8, color=_FAINT)


def _numbers(axis: Any, counts: np.ndarray, shares: np.ndarray, *, inches: float) -> None:
    """The counts, but for zeros, which blank cells say better."""
    size = min(8.0, 0.85 * 72 * inches / (0.64 * len(str(counts.max()))))
    for true, predicted in np.argwhere(counts):
        if true == predicted:
            colour = "#5f8f8b"
        else:
            colour = "white" if shares[true, predicted] > 0.35 else _INK
        text = str(counts[true, predicted])
        axis.text(predicted, true, text, ha="center", va="center", fontsize=size, color=colour)


def _confused_pairs(axis: Any, counts: np.ndarray, classes: Sequence[str], *, inches: float) -> None:
    axis.axis("off")
    axis.set_xlim(0, 1)
    axis.set_ylim(inches, 0)
    errors = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-errors, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(cell), len(counts)) for cell in order if errors.flat[cell]]
    axis.text(0, 0.1, "confused most often" if pairs else "no image is confused", fontsize=8.5, color=_FAINT)
    for i, (true, predicted) in enumerate(pairs):
        words = f"{_plain(classes[true], 34)}\ntaken for {_plain(classes[predicted], 34)}"
        share = f"{errors[true, predicted]:,} of {counts[true].sum():,}"
        axis.text(0, 0.3 + 0.45 * i, words, va="top", fontsize=8, color=_INK)
        axis.text(1, 0.3 + 0.45 * i, share, va="top", ha="right", fontsize=8, color=_FAINT)


Row = tuple[str, float, float, float, int]
"""(class, accuracy, lower and upper end of its 95 % interval, test images); all but the images in [0, 1]."""


def per_class(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str,
    beside: str = "untrained",
    baseline: Mapping[str, float] | None = None,
) -> None:
    """The accuracy of each class with its interval, from the worst to the best, beside that of all images.

    baseline: class -> accuracy of what the classifier stands beside, which is called `beside`. Of more than 40 classes,
    the 20 worst and the 20 best are drawn. Classes without test images (whose accuracy is not looked at) are named
    below.
    """
    tested = sorted((row for row in rows if row[4]), key=lambda row: row[1])
    if not tested:
        raise ValueError("no class has a test image; test on images with labels of these classes")
    between = max(0, len(tested) - 2 * ENDS)
    drawn = tested[:ENDS] + tested[ENDS + between :]
    y = np.arange(len(drawn)) + (GAP * (np.arange(len(drawn)) >= ENDS) if between else 0)
    figure = _figure(7.2, 0.2 * (y[-1] + 1) + 1.3)
    _headline(figure, title)
    axis = figure.subplots()
    total = sum(n for *_, n in tested)
    overall = sum(accuracy * n for _, accuracy, _, _, n in tested) / total
    words = f"all {total:,} images: {overall:.3f}"
    axis.axvline(overall, color=_FAINT, linewidth=1, linestyle=(0, (4, 2)), label=words)
    _dots(axis, drawn, y, baseline or {}, beside)
    if between:
        _gap(axis, f"{between} classes between")
    axis.set_ylim(y[-1] + 0.8, -0.8)
    axis.set_xlabel(_below([name for name, *_, n in rows if not n]), fontsize=8, color=_FAINT)
    _quiet(axis)
    axis.grid(axis="x", color=_LINE, linewidth=0.5)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path)


def _dots(axis: Any, drawn: list[Row], y: np.ndarray, baseline: Mapping[str, float], beside: str) -> None:
    from matplotlib.ticker import MaxNLocator

    names, accuracies, lows, highs, images = zip(*drawn, strict=True)
    others = [(baseline[name], at) for name, at in zip(names, y, strict=True) if name in baseline]
    if others:
        axis.plot(*zip(*others, strict=True), "D", color=_FAINT, markerfacecolor="white", markersize=4, label=beside)
    axis.hlines(y, lows, highs, color=_COLOURS["backbone"], linewidth=1.4, alpha=0.5)
    axis.plot(accuracies, y, "o", color=_COLOURS["backbone"], markersize=5, label="accuracy and 95 % interval")
    axis.set_yticks(y, [_plain(name, 30) for name in names], fontsize=8)
    for accuracy, n, at in zip(accuracies, images, y, strict=True):
        words = f"{accuracy:.3f}  n={n:,}"
        axis.text(1.02, at, words, transform=axis.get_yaxis_transform(), va="center", fontsize=7.5, color=_FAINT)
    least = min([*lows, *(accuracy for accuracy, _ in others)])
    axis.set_xlim(max(-0.02, np.floor(10 * least - 0.01) / 10), 1.02)
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _gap(axis: Any, words: str) -> None:
    middle = ENDS + (GAP - 1) / 2
    axis.axhspan(middle - GAP / 3, middle + GAP / 3, facecolor="white", zorder=2)
    transform = axis.get_yaxis_transform()
    axis.text(0.5, middle, words, transform=transform, ha="center", va="center", fontsize=8, color=_FAINT)


def _below(missing: list[str]) -> str:
    words = "accuracy on test images of the class"
    if not missing:
        return words
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"{words}\n{_wrapped('no test images: ' + ', '.join(missing[:5]) + more, 90)}"
