"""The pictures of an experiment: this machine's numbers beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from byol.pictures.figure import _FAINT, _INK, _LINE, _figure, _quiet

_LINES = {"BYOL": "#0b7a75", "SimCLR": "#c8553d"}
_COLLAPSED = "#a02c2c"


def experiment(result: dict[str, Any], path: Path) -> None:
    """The plot of an experiment of `byol.ablate`: this machine's numbers beside the paper's."""
    kinds = {"points": _points, "lines": _lines, "horizon": _horizon, "curves": _collapse}
    kinds[result["picture"]](result, path)


def _titled(width: float, height: float, result: dict[str, Any], shown: str = "and 95 % interval") -> Any:
    figure = _figure(width, height)
    seeds = f"mean of {result['seeds']} seeds {shown}" if result["seeds"] > 1 else "1 seed"
    text = f"{result['question']}  ({result['data']}, {result['steps']:,} steps, {seeds})"
    figure.suptitle(text, color=_INK, fontsize=10.5, x=0.01, ha="left")
    return figure


def _ours(arm: dict[str, Any]) -> tuple[float, float] | None:
    """(linear top-1 in %, half of its 95 % interval)."""
    found = arm["measures"].get("linear")
    if found is None:
        return None
    low, high = found["interval_95"] or (found["mean"],) * 2
    return 100 * found["mean"], 50 * (high - low)


def _points(result: dict[str, Any], path: Path) -> None:
    """A point an arm, with its interval; the paper's in a panel of their own, for its scale is another."""
    arms = result["arms"]
    figure = _titled(9.6, 0.3 * len(arms) + 1.2, result)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.4, 1))
    for row, arm in enumerate(arms):
        collapsed = arm["seeds"] and arm["collapsed"] == arm["seeds"]
        colour = _COLLAPSED if collapsed else _LINES["BYOL"]
        if found := _ours(arm):
            left.errorbar(found[0], row, xerr=found[1], fmt="o", markersize=5, color=colour, ecolor=colour, capsize=3)
            _beside(left, found[0] + found[1], row, f"{found[0]:.1f}" + (", collapsed" if collapsed else ""), _INK)
        if arm["paper"] is None:
            _beside(right, 0.0, row, "not in the paper", _FAINT)
        else:
            right.plot(arm["paper"], row, "s", markersize=5, color=_FAINT)
            _beside(right, arm["paper"], row, f"{arm['paper']:.1f}", _INK)
    left.set_yticks(range(len(arms)), [arm["name"] for arm in arms], fontsize=8.5)
    left.set_ylim(len(arms) - 0.4, -0.6)
    left.margins(x=0.18)
    right.set_xlim(-2, 84)
    left.set_xlabel("here: linear top-1, % (mind the scale)", fontsize=8, color=_FAINT)
    right.set_xlabel(f"the paper: {result['source']}, ImageNet, %", fontsize=8, color=_FAINT)
    for axis in (left, right):
        axis.grid(axis="y", color=_LINE, linewidth=0.6)
        axis.set_axisbelow(True)
        _quiet(axis)
    figure.savefig(path)


def _beside(axis: Any, x: float, y: float, text: str, colour: str) -> None:
    axis.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour)


def _lines(result: dict[str, Any], path: Path) -> None:
    """A line for each method over the axis, and the paper's beside it."""
    figure = _titled(9.6, 4.0, result)
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    places = sorted({arm["x"] for arm in result["arms"]}, reverse=result["name"] == "batch-size")
    named = {arm["x"]: arm["name"].partition(", ")[2] or arm["name"] for arm in result["arms"]}
    wide = max(map(len, named.values())) > 5
    # Names have no order that a line could follow.
    joined = "none" if wide else "-"
    for number, line in enumerate(dict.fromkeys(arm["line"] for arm in result["arms"])):
        arms = [arm for arm in result["arms"] if arm["line"] == line]
        # A little apart, so that intervals do not hide each other.
        ours = [(places.index(arm["x"]) + 0.12 * number, *found) for arm in arms if (found := _ours(arm))]
        theirs = [(places.index(arm["x"]), arm["paper"]) for arm in arms if arm["paper"] is not None]
        colour = _LINES.get(line, _INK)
        if ours:
            x, y, margin = zip(*ours, strict=True)
            style = {"color": colour, "marker": "o", "markersize": 4, "linestyle": joined, "label": line}
            left.errorbar(x, y, yerr=margin, capsize=2.5, **style)
        if theirs:
            right.plot(*zip(*theirs, strict=True), color=colour, marker="o", markersize=4, linestyle=joined, label=line)
    for axis, title in (
        (left, "here: linear top-1, % (mind the scales)"),
        (right, f"the paper: {result['source']}, ImageNet, %"),
    ):
        axis.set_xticks(
            range(len(places)), [named[x] for x in places], rotation=40 if wide else 0, ha="right" if wide else "center"
        )
        axis.set_xlim(-0.4, len(places) - 0.6)
        axis.set_title(title, fontsize=8.5, color=_FAINT, loc="left")
        axis.set_xlabel(result["axis"], fontsize=8, color=_FAINT)
        _quiet(axis)
    left.legend(frameon=False, fontsize=8.5)
    figure.savefig(path)


def _horizon(result: dict[str, Any], path: Path) -> None:
    """Against tau, and against the target's horizon 1 / (1 - tau) as a share of the run; the paper's points below."""
    figure = _titled(9.6, 5.2, result)
    axes = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(1.25, 1))
    arms = result["arms"]
    ours = [(i, arm["x"], *found) for i, arm in enumerate(arms) if (found := _ours(arm))]
    theirs = [(i, arm["x"], arm["paper"], 0.0) for i, arm in enumerate(arms) if arm["paper"] is not None]
    rows = ((ours, result["steps"], _LINES["BYOL"], "o"), (theirs, result["paper_steps"], _FAINT, "s"))
    for (left, right), (points, steps, colour, marker) in zip(axes, rows, strict=True):
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "capsize": 2.5}
        # A target that never moves has no horizon.
        moving = [(1 / (1 - tau) / steps, *found) for _, tau, *found in points if tau < 1]
        if points:
            x, _, y, margin = zip(*points, strict=True)
            left.errorbar(x, y, yerr=margin, **style)
        if moving:
            x, y, margin = zip(*moving, strict=True)
            right.errorbar(x, y, yerr=margin, **style)
        measured = "here: linear top-1, %" if points is ours else f"the paper ({result['source']}), %"
        left.set_ylabel(measured, fontsize=8, color=colour)
        for axis in (left, right):
            axis.grid(axis="x", color=_LINE, linewidth=0.6)
            _quiet(axis)
    axes[1, 0].set_xticks(range(len(arms)), [f"{arm['x']:g}" for arm in arms])
    axes[1, 0].set_xlabel(result["axis"], fontsize=8, color=_FAINT)
    axes[1, 1].set_xscale("log")
    axes[1, 1].set_xlabel("horizon 1/(1 - tau) as a share of the run (tau 0: one step)", fontsize=8, color=_FAINT)
    figure.savefig(path)


def _collapse(result: dict[str, Any], path: Path) -> None:
    """Loss, spread and rank over the run, an arm a colour; each run faintly, their mean in full."""
    from matplotlib import colormaps

    figure = _titled(11.0, 3.6, result, shown="and each of them")
    panels = {
        "loss": "loss, logarithmic\n(4 = unrelated, 0 = equal)",
        "held_out_std_ratio": "spread of the embedding\n(1 = in all directions, 0 = one point)",
        "held_out_effective_rank": "effective rank of the embedding\n(directions in use)",
    }
    axes = figure.subplots(1, len(panels))
    for number, arm in enumerate(result["arms"]):
        colour = _LINES["BYOL"] if number == 0 else colormaps["tab10"]((1, 3, 4, 5)[(number - 1) % 4])
        dashed = "--" if number and number % 2 == 0 else "-"
        for axis, key in zip(axes, panels, strict=True):
            runs = [np.array(run) for run in arm["curves"][key] if run]
            for run in runs:
                axis.plot(run[:, 0], run[:, 1], color=colour, linewidth=0.7, alpha=0.35)
            if runs:
                mean = np.mean([run[: min(map(len, runs))] for run in runs], axis=0)
                axis.plot(mean[:, 0], mean[:, 1], color=colour, linewidth=2, linestyle=dashed, label=arm["name"])
    for axis, title in zip(axes, panels.values(), strict=True):
        axis.set_title(title, fontsize=8.5, color=_INK)
        axis.set_xlabel("step", fontsize=8, color=_FAINT)
        if axis is axes[0]:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        _quiet(axis)
    below = result["collapsed_below"]
    axes[1].axhline(below, color=_FAINT, linewidth=0.9, linestyle=":")
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "fontsize": 7.5}
    axes[1].annotate("below: collapsed", (1, below), (-2, 3), color=_FAINT, **place)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8.5)
    figure.savefig(path)
