"""Sheets of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.pictures.figure import _FAINT, _INK, _LINE, _figure, _headline, _wrapped

_RIGHT, _WRONG = "#2b8a57", "#c8402f"
_CHECK, _CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"
_FILLED = 0.92  # of a cell's side, by the longer side of its image


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
            axis.imshow(
                _shown(image),
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


def neighbour_sheet(
    queries: list[np.ndarray],
    neighbours: list[list[np.ndarray]],
    correct: list[list[bool]] | None,
    captions: list[str],
    path: Path,
    *,
    title: str,
) -> None:
    """A row a query: what it is, the query, and its nearest training images by cosine similarity, nearest first.

    queries: [H, W, C] uint8, of any sizes; neighbours: of each query, the same. correct: whether a neighbour is of the
    query's class: framed green with a check mark, or dashed red with a cross; None where labels are unknown.
    """
    most = max(len(found) for found in neighbours)
    gap = 0.25
    texts = [_wrapped(caption, 24) for caption in captions]
    margin = 0.068 * max(len(line) for text in texts for line in text.split("\n")) + 0.15
    figure = _figure(1 + gap + most + margin, len(queries) + (0.55 if correct is None else 0.75))
    _headline(figure, title)
    axis = figure.subplots()
    axis.text(0.5, -0.06, "query", ha="center", fontsize=8, color=_INK)
    for column in range(most):
        words = "nearest" if column == 0 else str(column + 1)
        axis.text(1.5 + gap + column, -0.06, words, ha="center", fontsize=8, color=_FAINT)
    for row, (query, found, text) in enumerate(zip(queries, neighbours, texts, strict=True)):
        axis.text(-0.08, row + 0.5, text, ha="right", va="center", fontsize=8, color=_INK)
        _frame(axis, _place(axis, query, 0, row), _INK)
        for column, image in enumerate(found):
            box = _place(axis, image, 1 + gap + column, row)
            if correct is None:
                _frame(axis, box, _LINE)
            else:
                _judge(axis, box, correct[row][column])
    if correct is not None:
        for x, words, colour in ((0.04, f"{_CHECK} same class", _RIGHT), (1.15, f"{_CROSS} another class", _WRONG)):
            axis.text(x, len(queries) + 0.06, words, va="top", fontsize=8, color=colour)
    _bounds(axis, 1 + gap + most, len(queries))
    figure.savefig(path)


def suggested_sheet(images: list[np.ndarray], captions: list[str], path: Path, *, title: str) -> None:
    """The images worth labelling first, in that order, row by row, with their names.

    images: [H, W, C] uint8, of any sizes.
    """
    names = [_wrapped(caption, 19) for caption in captions]
    pitch = 1.08 + 0.115 * (1 + max(name.count("\n") for name in names))
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(max(columns, 3) + 0.2, pitch * rows + 0.5)
    _headline(figure, title)
    axis = figure.subplots()
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        row, column = divmod(i, columns)
        box = _place(axis, image, column, pitch * row)
        _frame(axis, box, _LINE)
        _badge(axis, box, str(i + 1), _INK)
        axis.text(column + 0.5, pitch * row + 1, name, ha="center", va="top", fontsize=6.5, color=_INK)
    _bounds(axis, columns, pitch * rows)
    figure.savefig(path)


def _shown(image: np.ndarray) -> np.ndarray:
    """Gray, or what the first three channels are as red, green and blue."""
    if image.shape[-1] == 2:
        image = np.concatenate([image, np.zeros_like(image[..., :1])], axis=-1)
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _place(axis: Any, image: np.ndarray, x: float, y: float) -> tuple[float, float, float, float]:
    """Draw an image in the middle of the cell [x, x + 1] x [y, y + 1]; its left, top, width and height there."""
    height, width = (_FILLED * side / max(image.shape[:2]) for side in image.shape[:2])
    left, top = x + (1 - width) / 2, y + (1 - height) / 2
    axis.imshow(_shown(image), cmap="gray", vmin=0, vmax=255, extent=(left, left + width, top + height, top))
    return left, top, width, height


def _frame(
    axis: Any, box: tuple[float, float, float, float], colour: str, width: float = 0.8, style: Any = "-"
) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor=colour, linewidth=width, linestyle=style))


def _judge(axis: Any, box: tuple[float, float, float, float], right: bool) -> None:
    # Mark and line tell the two apart for those who do not see red and green.
    colour = _RIGHT if right else _WRONG
    _frame(axis, box, colour, 2.2, "-" if right else (0, (2, 1)))
    _badge(axis, box, _CHECK if right else _CROSS, colour)


def _badge(axis: Any, box: tuple[float, float, float, float], text: str, colour: str) -> None:
    left, top, width, _ = box
    patch = {"boxstyle": "square,pad=0.2", "facecolor": colour, "edgecolor": "none"}
    axis.text(left + width, top, text, ha="right", va="top", fontsize=7, color="white", bbox=patch)


def _bounds(axis: Any, width: float, height: float) -> None:
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_aspect("equal", anchor="NW")
    axis.axis("off")


def sample_rows(num: int, total: int) -> Tensor:
    """`num` rows evenly spaced over 0 .. total - 1."""
    return torch.linspace(0, total - 1, min(num, total), dtype=torch.float64).long().unique()
