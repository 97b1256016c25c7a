"""The pictures of an experiment: this machine's numbers beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from byol.pictures.figure import _FAINT, _INK, _figure, _quiet

_LINES = {"BYOL": "#0b7a75", "SimCLR": "#c8553d"}


def experiment(result: dict[str, Any], path: Path) -> None:
    """The plot of an experiment of `byol.ablate`: this machine's numbers beside the paper's."""
    kinds = {"bars": _bars, "lines": _lines, "horizon": _horizon, "curves": _collapse}
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


def _bars(result: dict[str, Any], path: Path) -> None:
    """A bar an arm; the paper's in a panel of their own, for its scale is another."""
    arms = result["arms"]
    figure = _titled(9.6, 0.3 * len(arms) + 1.2, result)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.4, 1))
    ours = [_ours(arm) for arm in arms]
    heights = [each[0] if each else 0.0 for each in ours]
    margins = [each[1] if each else 0.0 for each in ours]
    rows = range(len(arms))
    left.barh(rows, heights, xerr=margins, color=_LINES["BYOL"], height=0.62, ecolor=_INK)
    known = [arm["paper"] if arm["paper"] is not None else 0.0 for arm in arms]
    right.barh(rows, known, color="#c9ced3", height=0.62)
    for row, arm in enumerate(arms):
        if ours[row]:
            left.text(
                heights[row] + margins[row] + 0.6, row, f"{heights[row]:.1f}", va="center", fontsize=8, color=_INK
            )
        text = "not in the paper" if arm["paper"] is None else f"{arm['paper']:.1f}"
        right.text(known[row] + 0.6, row, text, va="center", fontsize=8, color=_FAINT if arm["paper"] is None else _INK)
    left.set_yticks(rows, [arm["name"] for arm in arms], fontsize=8.5)
    left.invert_yaxis()
    lowest = min((h for h in heights if h), default=0.0)
    left.set_xlim(max(0.0, 10 * ((lowest - 8) // 10)), 103)
    right.set_xlim(0, 90)
    left.set_xlabel("here: linear top-1, %", fontsize=8, color=_FAINT)
    right.set_xlabel(f"the paper: {result['source']}, ImageNet, %", fontsize=8, color=_FAINT)
    for axis in (left, right):
        _quiet(axis)
    figure.savefig(path)


def _lines(result: dict[str, Any], path: Path) -> None:
    """A line for each method over the axis, and the paper's beside it."""
    figure = _titled(9.6, 4.0, result)
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    places = sorted({arm["x"] for arm in result["arms"]}, reverse=result["name"] == "batch-size")
    for number, line in enumerate(dict.fromkeys(arm["line"] for arm in result["arms"])):
        arms = [arm for arm in result["arms"] if arm["line"] == line]
        # A little apart, so that intervals do not hide each other.
        ours = [(places.index(arm["x"]) + 0.12 * number, *found) for arm in arms if (found := _ours(arm))]
        theirs = [(places.index(arm["x"]), arm["paper"]) for arm in arms if arm["paper"] is not None]
        colour = _LINES.get(line, _INK)
        if ours:
            x, y, margin = zip(*ours, strict=True)
            left.errorbar(x, y, yerr=margin, color=colour, marker="o", markersize=4, capsize=2.5, label=line)
        if theirs:
            right.plot(*zip(*theirs, strict=True), color=colour, marker="o", markersize=4, label=line)
    named = {arm["x"]: arm["name"].partition(", ")[2] or arm["name"] for arm in result["arms"]}
    for axis, title in ((left, "here: linear top-1, %"), (right, f"the paper: {result['source']}, ImageNet, %")):
        wide = max(map(len, named.values())) > 5
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
    """Against tau, and against the target's horizon 1 / (1 - tau) as a share of the run, with the paper's points."""
    figure = _titled(9.6, 3.8, result)
    left, right = figure.subplots(1, 2)
    arms = result["arms"]
    ours = [(i, *found) for i, arm in enumerate(arms) if (found := _ours(arm))]
    moving = [arm for arm in arms if 0 < arm["x"] < 1]
    points = [(1 / (1 - arm["x"]) / result["steps"], *found) for arm in moving if (found := _ours(arm))]
    for axis, shown, label in ((left, ours, "here"), (right, points, None)):
        if shown:
            x, y, margin = zip(*shown, strict=True)
            axis.errorbar(x, y, yerr=margin, color=_LINES["BYOL"], marker="o", markersize=4, capsize=2.5, label=label)
    left.set_xticks(range(len(arms)), [f"{arm['x']:g}" for arm in arms])
    left.set_xlabel(result["axis"], fontsize=8, color=_FAINT)
    right.set_xscale("log")
    right.set_xlabel("horizon 1/(1 - tau) as a share of the run", fontsize=8, color=_FAINT)
    known = [(i, arm["x"], arm["paper"]) for i, arm in enumerate(arms) if arm["paper"] is not None]
    for axis in (left, right):
        axis.set_ylabel("here: linear top-1, %", fontsize=8, color=_LINES["BYOL"])
        _quiet(axis)
        other = axis.twinx()
        steps = result["paper_steps"]
        paper = [(i if axis is left else 1 / (1 - t) / steps, p) for i, t, p in known if axis is left or 0 < t < 1]
        other.plot(*zip(*paper, strict=True), color=_FAINT, marker="s", markersize=4, linestyle="--", label="the paper")
        other.set_ylim(0, 80)
        if axis is left:
            ours, theirs = axis.get_legend_handles_labels(), other.get_legend_handles_labels()
            axis.legend(
                ours[0] + theirs[0],
                ours[1] + theirs[1],
                frameon=False,
                fontsize=8.5,
                loc="lower left",
                bbox_to_anchor=(0.12, 0.0),
            )
        other.set_ylabel("the paper (ImageNet), %", fontsize=8, color=_FAINT)
        _quiet(other)
    figure.savefig(path)


def _collapse(result: dict[str, Any], path: Path) -> None:
    """Loss, spread and rank over the run, an arm a colour; each run faintly, their mean in full."""
    from matplotlib import colormaps

    figure = _titled(11.0, 3.6, result, shown="and each of them")
    panels = {
        "loss": "loss (0 to 8; 4 = unrelated)",
        "held_out_std_ratio": "spread of the embedding, std x sqrt(d)\n(1 = fully spread, 0 = one point)",
        "held_out_effective_rank": "effective rank of the embedding\n(directions in use)",
    }
    axes = figure.subplots(1, len(panels))
    for number, arm in enumerate(result["arms"]):
        colour = _LINES["BYOL"] if number == 0 else colormaps["tab10"]((1, 3, 4, 5)[(number - 1) % 4])
        for axis, key in zip(axes, panels, strict=True):
            runs = [np.array(run) for run in arm["curves"][key] if run]
            for run in runs:
                axis.plot(run[:, 0], run[:, 1], color=colour, linewidth=0.6, alpha=0.25)
            if runs:
                mean = np.mean([run[: min(map(len, runs))] for run in runs], axis=0)
                axis.plot(mean[:, 0], mean[:, 1], color=colour, linewidth=2, label=arm["name"])
    for axis, title in zip(axes, panels.values(), strict=True):
        axis.set_title(title, fontsize=8.5, color=_INK)
        axis.set_xlabel("step", fontsize=8, color=_FAINT)
        axis.set_ylim(bottom=0)
        _quiet(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8.5)
    figure.savefig(path)
