"""What all pictures share: the figure, its colours, its axes, its words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import cycle
from typing import Any

_INK, _FAINT, _LINE = "#22303c", "#8a97a3", "#d5dade"
_COLOURS = {
    "backbone": "#0b7a75",
    "raw pixels": "#c9ced3",
    "untrained": "#e3a857",
    "supervised": "#44619d",
    "supervised from scratch": "#44619d",
}
_OTHER_COLOURS = ("#a0527f", "#7d9a3c", "#c5593c", "#62a8cf", "#76624f", "#8c7fc4")


def _figure(width: float, height: float) -> Any:
    # The object interface with the Agg canvas: no global backend, no window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _headline(figure: Any, title: str) -> None:
    """Over the whole figure from its left edge; the figure grows by the lines it takes beyond one."""
    width, height = figure.get_size_inches()
    lines = _wrapped(title, max(20, int(width * 11)))
    figure.set_size_inches(width, height + 0.19 * lines.count("\n"))
    figure.suptitle(lines, color=_INK, fontsize=10.5, x=0.01, ha="left")


def _quiet(axis: Any) -> None:
    axis.tick_params(labelsize=8, colors=_FAINT, length=2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(_LINE)
    for label in axis.get_yticklabels():
        label.set_color(_INK)


def _colours(names: Iterable[str]) -> dict[str, str]:
    """Columns seen everywhere keep one colour; the others get what is left, in order."""
    others = cycle(_OTHER_COLOURS)
    return {name: _COLOURS.get(name) or next(others) for name in names}


def _plain(text: str, limit: int = 200) -> str:
    """A name for matplotlib to draw as it is: on one line, shortened in its middle to `limit` characters."""
    return _no_formula(_shortened(" ".join(text.split()), limit))


def _wrapped(text: str, width: int) -> str:
    """A text for matplotlib to draw in lines of at most `width` characters, broken at spaces and slashes."""
    lines = [""]
    for piece in re.split(r"(?<=[ /])", " ".join(text.split())):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += _shortened(piece, width)
    return _no_formula("\n".join(line.rstrip() for line in lines))


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    start = (limit - 3) // 2
    return f"{text[:start]}...{text[start + 3 - limit :]}"


def _no_formula(text: str) -> str:
    return text.replace("$", r"\$")
