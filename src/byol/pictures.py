"""The pictures: what the network sees, how training went, how good the result is."""

from __future__ import annotations

import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INK, _FAINT = "#22303c", "#8a97a3"
_COLOURS = {"backbone": "#0b7a75", "raw pixels": "#c9ced3", "untrained": "#e3a857"}


def _figure(width: float, height: float) -> Any:
    # The object interface with the Agg canvas: no global backend, no window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def views_grid(
    originals: list[np.ndarray], views: list[Tensor], path: Path, *, title: str, views_per_epoch: int = 2
) -> None:
    """A row an image: the original, then its views, epoch by epoch.

    originals: [H, W, C] uint8. views: per epoch and view, [N, C, S, S] float in [0, 1].
    """
    rows, columns = len(originals), len(views) + 1
    figure = _figure(1.05 * columns + 0.2, 1.05 * rows + 0.75)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    for r in range(rows):
        for c in range(columns):
            image = originals[r] if c == 0 else views[c - 1][r].permute(1, 2, 0).clamp(0, 1).numpy()
            axis = axes[r][c]
            shown = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
            axis.imshow(
                shown,
                cmap="gray",
                vmin=0,
                vmax=255 if image.dtype == np.uint8 else 1,
                interpolation="nearest",
            )
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(c == 0)
                spine.set_color(_INK)
            if r == 0:
                name = "image" if c == 0 else f"view {(c - 1) % views_per_epoch + 1}"
                axis.set_title(name, fontsize=8, color=_INK if c == 0 else _FAINT)
    figure.savefig(path)


def training_curves(run_directory: Path, path: Path) -> None:
    """Loss, spread and rank of the embedding, and kNN where there are labels, against the step."""
    lines = [json.loads(x) for x in (run_directory / "metrics.jsonl").read_text("utf-8").splitlines()]
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


def results_chart(rows: list[tuple[str, dict[str, float]]], path: Path, *, title: str) -> None:
    """Bars per protocol: the backbone beside raw pixels and the untrained network. Accuracies in [0, 1]."""
    figure = _figure(7.2, 0.75 * len(rows) + 1.1)
    axis = figure.subplots()
    names = list(rows[0][1])
    for i, (_, values) in enumerate(rows):
        for j, name in enumerate(names):
            y = i + (j - (len(names) - 1) / 2) * 0.27
            axis.barh(y, values[name], height=0.24, color=_COLOURS[name], label=name if i == 0 else None)
            axis.text(values[name] + 0.008, y, f"{values[name]:.3f}", va="center", fontsize=8, color=_INK)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9, color=_INK)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.09)
    axis.set_xlabel("top-1 accuracy on test images", fontsize=8, color=_FAINT)
    axis.set_title(title, fontsize=10.5, color=_INK, loc="left")
    _quiet(axis)
    figure.legend(loc="outside lower center", ncols=len(names), frameon=False, fontsize=8.5)
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


def result_rows(found: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """The accuracies of `evaluate.table.evaluate` as rows of the chart."""
    rows = []
    for protocol, columns in found["results"].items():
        if protocol == "knn":
            rows += [(f"kNN, {k}", {n: r[k] for n, r in columns.items()}) for k in ("k=20", "k=200")]
        else:
            label = {"linear": "linear, all labels", "fewshot": "5 labels a class"}[protocol]
            rows.append((label, {n: r["accuracy"] for n, r in columns.items()}))
    return rows


def _quiet(axis: Any) -> None:
    axis.tick_params(labelsize=8, colors=_FAINT, length=2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#d5dade")
    for label in axis.get_yticklabels():
        label.set_color(_INK)


def sample_rows(num: int, total: int) -> Tensor:
    """`num` rows evenly spaced over 0 .. total - 1."""
    return torch.linspace(0, total - 1, min(num, total)).long().unique()
