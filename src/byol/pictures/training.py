"""How training went: of one run, and of methods side by side."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import numpy as np

from byol.files import json_lines
from byol.pictures.figure import _COLOURS, _FAINT, _INK, _figure, _quiet


def training_curves(run_directory: Path, path: Path) -> None:
    """Loss, spread and rank of the embedding, and kNN where there are labels, against the step."""
    lines = list(json_lines(run_directory / "metrics.jsonl"))
    panels = [
        ("loss", "loss (0 to 8)"),
        ("held_out/std_ratio", "std of the embedding x sqrt(d)\n(1 = fully spread, 0 = collapsed)"),
        ("held_out/effective_rank", "effective rank of the embedding"),
        ("held_out/knn", "kNN accuracy on held-out images"),
    ]
    panels = [(key, name) for key, name in panels if any(key in line for line in lines)]
    figure = _figure(3.3 * len(panels), 2.7)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (key, name) in zip(axes, panels, strict=True):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), color=_COLOURS["backbone"], linewidth=1.6)
        axis.set_title(name, fontsize=8.5, color=_INK)
        axis.set_xlabel("step", fontsize=8, color=_FAINT)
        axis.set_ylim(bottom=0)
        _quiet(axis)
    figure.savefig(path)


def comparison(curves: dict[str, list[list[tuple[float, float]]]], path: Path, *, title: str) -> None:
    """Quality against time: for each method the mean over its runs, and the runs faintly. curves: of each run,
    (seconds of training, accuracy), or its end alone."""
    from matplotlib import colormaps

    def marker(points: Sized, dashed: bool = False) -> str:
        return "o" if len(points) == 1 else "--" if dashed else "-"

    figure = _figure(8.2, 4.6)
    axis = figure.subplots()
    drawn = []
    for i, (name, runs) in enumerate((n, r) for n, r in curves.items() if any(r)):
        colour = colormaps["tab10"](i % 10)
        for run in runs:
            axis.plot(*zip(*run, strict=True), marker(run), color=colour, linewidth=0.7, alpha=0.3)
        mean = mean_curve(runs) if len(runs[0]) > 1 else np.mean(runs, axis=0)
        (line,) = axis.plot(mean[:, 0], mean[:, 1], marker(mean, dashed=i >= 10), color=colour, linewidth=2)
        drawn.append((float(mean[-1, 1]), name, line))
    axis.set_xlabel("seconds of training", fontsize=8, color=_FAINT)
    axis.set_title(title, fontsize=10.5, color=_INK, loc="left")
    _quiet(axis)
    drawn.sort(key=lambda each: -each[0])
    labels = [f"{name}  {accuracy:.3f}" for accuracy, name, _ in drawn]
    figure.legend([line for *_, line in drawn], labels, loc="outside right center", frameon=False, fontsize=8.5)
    figure.savefig(path)


def mean_curve(runs: list[list[tuple[float, float]]], points: int = 21) -> np.ndarray:
    """[points + 1, 2]: the mean over runs at equal times until the first of them ends, and at last the mean of their
    ends."""
    curves = [np.array(run) for run in runs]
    times = np.linspace(0, min(curve[-1, 0] for curve in curves), points)
    heights = np.mean([np.interp(times, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
    end = np.mean([curve[-1] for curve in curves], axis=0)
    return np.vstack([np.column_stack([times, heights]), end])
