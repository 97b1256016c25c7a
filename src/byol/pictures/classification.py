"""What a classifier's probabilities are worth, and what it costs to answer all or some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from byol.pictures.figure import _FAINT, _INK, _LINE, _figure, _headline, _quiet

_AFTER = "#0b7a75"


def probabilities_chart(
    after: Sequence[tuple[float, float, int]],
    before: Sequence[tuple[float, float, int]],
    curve: tuple[np.ndarray, np.ndarray],
    path: Path,
    *,
    title: str,
    chosen: tuple[float, float] | None,
    error_rate: float | None,
) -> None:
    """Left, the share of right predictions against their probability, which lie on the diagonal where it can be
    believed; right, the share of wrong answers against the share of images answered, most probable first.

    after, before: of each bin, (mean probability, share right, images), with temperature and without. curve: (coverage,
    error), each [M] in 0 to 1. chosen: the (coverage, error) of the threshold in use, None where nothing is answered.
    error_rate: that was allowed, if one was given.
    """
    figure = _figure(8.4, 4.1)
    _headline(figure, title)
    left, right = figure.subplots(1, 2)
    _reliability(left, after, before)
    _risk(right, *curve, chosen, error_rate)
    figure.savefig(path)


def _reliability(
    axis: Any, after: Sequence[tuple[float, float, int]], before: Sequence[tuple[float, float, int]]
) -> None:
    axis.plot([0, 1], [0, 1], color=_LINE, linewidth=1, zorder=1)
    most = max(images for *_, images in (*after, *before))
    for bins, style, name in (
        (before, {"facecolors": "none", "edgecolors": _FAINT, "linewidths": 0.9}, "as fitted"),
        (after, {"color": _AFTER, "edgecolors": "white", "linewidths": 0.5}, "with temperature"),
    ):
        confidence, share, images = (np.array(values) for values in zip(*bins, strict=True))
        axis.scatter(confidence, share, 14 + 130 * images / most, zorder=3, label=name, **style)
    axis.set_xlim(-0.02, 1.05)
    axis.set_ylim(-0.04, 1.07)
    axis.set_xlabel("probability of the predicted class (size: images)", fontsize=8, color=_FAINT)
    axis.set_ylabel("share that is right", fontsize=8, color=_FAINT)
    legend = axis.legend(loc="upper left", frameon=False, fontsize=8, handletextpad=0.4)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    _quiet(axis)


def _risk(
    axis: Any,
    coverage: np.ndarray,
    error: np.ndarray,
    chosen: tuple[float, float] | None,
    error_rate: float | None,
) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.plot(coverage, error, color=_AFTER, linewidth=1.8, drawstyle="steps-post" if len(coverage) < 60 else "default")
    top = max(float(error.max()), error_rate or 0, 0.02) * 1.15
    if error_rate is not None:
        axis.axhline(error_rate, color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        words = f"allowed: {error_rate:.1%}"
        axis.text(0, error_rate + 0.012 * top, words, fontsize=8, color=_FAINT, va="bottom")
    if chosen is not None:
        axis.plot(*chosen, "o", color=_INK, markersize=6, zorder=4)
        words = f"{chosen[0]:.0%} answered, {chosen[1]:.1%} of them wrong"
        side = "right" if chosen[0] > 0.5 else "left"
        axis.text(chosen[0], -0.07 * top, words, ha=side, va="center", fontsize=8, color=_INK)
    axis.set_xlim(-0.02, 1.03)
    axis.set_ylim(-0.12 * top, top)
    axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= top])
    axis.set_xlabel("share of images answered, most probable first", fontsize=8, color=_FAINT)
    axis.set_ylabel("share of the answers that is wrong", fontsize=8, color=_FAINT)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(PercentFormatter(1))
    _quiet(axis)
