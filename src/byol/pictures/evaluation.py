"""How good the result is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from byol.pictures.figure import _FAINT, _INK, _colours, _figure, _headline, _plain, _quiet

Accuracy = float | tuple[float, float, float]
"""In [0, 1], or with the ends of its 95 % interval: (accuracy, low, high)."""


def results_chart(
    rows: Sequence[tuple[str, Mapping[str, Accuracy]]], path: Path, *, title: str, measured: str = "top-1 accuracy"
) -> None:
    """Bars per protocol: the backbone beside raw pixels and the untrained network, or whatever columns there are.

    rows: (protocol, column -> score). measured: what the scores are.
    """
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    edge = withStroke(linewidth=2.6, foreground="white")  # else the line is lost on a dark bar
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    colours = _colours(names)
    tops = np.cumsum([0.0, *(len(values) + 0.75 for _, values in rows)])
    per_line = max(1, min(len(names), int(7 / (0.075 * max(map(len, names)) + 0.6))))
    figure = _figure(7.2, 0.2 * tops[-1] + 0.9 + 0.2 * -(-len(names) // per_line))
    axis = figure.subplots()
    for top, (_, values) in zip(tops, rows, strict=False):
        for i, name in enumerate(name for name in names if name in values):
            y = top + i
            accuracy, low, high = _interval(values[name])
            axis.barh(y, accuracy, height=0.9, color=colours[name])
            axis.text(high + 0.008, y, f"{accuracy:.3f}", va="center", fontsize=8, color=_INK)
            if low < high:
                axis.hlines(y, low, high, color=_INK, linewidth=1, path_effects=[edge])
    middles = [top + (len(values) - 1) / 2 for top, (_, values) in zip(tops, rows, strict=False)]
    axis.set_yticks(middles, [_plain(label, 40) for label, _ in rows], fontsize=9, color=_INK)
    axis.set_ylim(tops[-1] - 0.75 - 0.25, -0.75)
    axis.set_xlim(0, 1.09)
    axis.set_xlabel(f"{measured} on test images", fontsize=8, color=_FAINT)
    _headline(figure, title)
    _quiet(axis)
    legend = [Patch(color=colour, label=_plain(name, 30)) for name, colour in colours.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=per_line, frameon=False, fontsize=8.5)
    figure.savefig(path)


def _interval(accuracy: Accuracy) -> tuple[float, float, float]:
    return accuracy if isinstance(accuracy, tuple) else (accuracy, accuracy, accuracy)


def result_rows(found: dict[str, Any]) -> list[tuple[str, dict[str, Accuracy]]]:
    """The rows of what `evaluate` found, each score with its 95 % interval."""
    return [
        (row["name"], {name: (numbers["score"], *numbers["interval_95"]) for name, numbers in row["columns"].items()})
        for row in found["rows"]
    ]


def label_efficiency(
    curves: dict[str, list[tuple[int, float, float, float]]],
    path: Path,
    *,
    title: str,
    measured: str = "top-1 accuracy",
) -> None:
    """The metric against the number of labels, on a logarithmic scale: a line a column, its 95 % interval a band.

    curves: of each column, (labelled training images, accuracy, lower end, upper end) in any order, accuracies in
    [0, 1].
    """
    figure = _figure(7.2, 4.2)
    axis = figure.subplots()
    _headline(figure, title)
    counts = np.unique([labels for points in curves.values() for labels, *_ in points])
    _label_axis(axis, counts)
    ends = []
    for (name, points), colour in zip(curves.items(), _colours(curves).values(), strict=True):
        labels, accuracies, lows, highs = (np.array(values) for values in zip(*sorted(points), strict=True))
        axis.fill_between(labels, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axis.vlines(labels, lows, highs, color=colour, linewidth=1, alpha=0.6)
        axis.plot(labels, accuracies, "o-", color=colour, linewidth=1.8, markersize=4)
        ends.append((labels[-1], accuracies[-1], f"{_plain(name, 30)}  {accuracies[-1]:.3f}", colour))
    _end_labels(axis, ends, inches=3.2)
    axis.set_xlabel("labelled training images", fontsize=8, color=_FAINT)
    axis.set_ylabel(f"{measured} on test images", fontsize=8, color=_FAINT)
    _quiet(axis)
    figure.savefig(path)


def _label_axis(axis: Any, counts: np.ndarray) -> None:
    """A tick at each number of labels that was tried, as far as their texts leave room, the largest always."""
    span = np.log(counts[-1] / counts[0])
    room = np.exp(0.04 * span or 1)
    axis.set_xscale("log")
    axis.set_xlim(counts[0] / room, counts[-1] * room)
    axis.minorticks_off()
    kept: list[int] = []
    for count in counts[::-1]:
        if not kept or np.log(kept[-1] / count) >= 0.1 * span:
            kept.append(int(count))
    axis.set_xticks(kept, [f"{count:,}" for count in kept])


def _end_labels(axis: Any, ends: list[tuple[float, float, str, str]], *, inches: float) -> None:
    """Texts beside the lines' ends (x, y, text, colour), moved apart where they would overlap on an axis so high."""
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top)
    heights = apart(np.array([y for _, y, _, _ in ends]), 0.17 / inches * (top - bottom))
    for (x, y, text, colour), height in zip(ends, heights, strict=True):
        axis.annotate(
            text,
            (x, y),
            (1.02, height),
            textcoords=axis.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
            color=_INK,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "relpos": (0, 0.5), "shrinkB": 3},
        )


def apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """[N]: the heights nearest to these in the sum of squares, in the same order, at least `gap` from one another."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    moved = np.empty(len(heights))
    moved[order] = isotonic_regression(heights[order] - steps).x + steps
    return moved
