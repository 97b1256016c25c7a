"""The pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from byol import pictures
from byol.evaluate import scores
from byol.evaluate.columns import BACKBONE, UNTRAINED
from byol.evaluate.knn import nearest
from byol.evaluate.labelled import Labelled
from byol.evaluate.table import Evaluated
from byol.names import METRICS

MOST_CLASSES = 200
"""Of a confusion matrix that evaluation.json holds."""


def draw(evaluated: Evaluated, folder: Path) -> list[Path]:
    """The pictures of an evaluation, into a folder."""
    found, test = evaluated.found, evaluated.test
    title = f"{Path(found['run']).name} on {Path(found['data']).name}"
    title += " (trained with labels)" if found.get("used_labels") else ""
    pictures.results_chart(
        pictures.result_rows(found), folder / "results.png", title=title, measured=METRICS[found["metric"]]
    )
    drawn = [folder / "results.png"]
    best = best_predictions(evaluated)
    if best is not None:
        said, y = evaluated.predictions[best], test.labels
        counts = scores.confusion(y, said, len(test.classes))
        pictures.confusion_matrix(counts, test.classes, folder / "confusion.png", title=f"{title}: {best[0]}")
        rows = []
        for label, name in enumerate(test.classes):
            of_class = said[y == label] == label
            if len(of_class):
                groups = None if test.source.groups is None else test.source.groups[y == label]
                low, high = scores.share_interval(of_class, groups)
                rows.append((name, float(of_class.mean()), low, high, len(of_class)))
        other = evaluated.predictions.get((best[0], UNTRAINED))
        baseline_scores = None
        if other is not None:
            baseline_scores = {
                name: float((other[y == label] == label).mean())
                for label, name in enumerate(test.classes)
                if (y == label).any()
            }
        pictures.per_class(rows, folder / "per-class.png", title=f"{title}: {best[0]}", baseline=baseline_scores)
        drawn += [folder / "confusion.png", folder / "per-class.png"]
    if BACKBONE in evaluated.features:
        _draw_neighbours(evaluated, folder / "neighbours.png", title)
        drawn.append(folder / "neighbours.png")
    curves: dict[str, list[tuple[int, float, float, float]]] = {}
    for row in found["rows"]:
        if row["protocol"] == "semi":
            for name, numbers in row["columns"].items():
                curves.setdefault(name, []).append((row["labels"], numbers["score"], *numbers["interval_95"]))
    if any(len(points) > 1 for points in curves.values()):
        ordered = {name: sorted(points) for name, points in curves.items()}
        pictures.label_efficiency(
            ordered,
            folder / "labels.png",
            title=f"{title}: fine-tuned on few labels",
            measured=METRICS[found["metric"]],
        )
        drawn.append(folder / "labels.png")
    return drawn


def best_predictions(evaluated: Evaluated) -> tuple[str, str] | None:
    """Which of the predictions are looked at class by class: the backbone's by a linear classifier, else its first;
    None where there are none, or of several labels an image."""
    single = [(row, name) for row, name in evaluated.predictions if name == BACKBONE]
    best = next((key for key in single if key[0].startswith("linear")), single[0] if single else None)
    single_label = best is not None and evaluated.test.targets is None and evaluated.predictions[best].ndim == 1
    return best if single_label else None


def confusion(evaluated: Evaluated) -> dict[str, Any] | None:
    """{row: the protocol, classes, counts: [K, K], by true class and predicted class}, where there are at most
    MOST_CLASSES."""
    best, test = best_predictions(evaluated), evaluated.test
    if best is None or len(test.classes) > MOST_CLASSES:
        return None
    counts = scores.confusion(test.labels, evaluated.predictions[best], len(test.classes))
    return {"row": best[0], "classes": list(test.classes), "counts": counts.tolist()}


def _draw_neighbours(evaluated: Evaluated, path: Path, title: str) -> None:
    """Some test images, and the training images whose features are nearest."""
    train, test = evaluated.train, evaluated.test
    rows = pictures.sample_rows(8, len(test)).numpy()
    train_x, test_x = evaluated.features[BACKBONE]
    _, neighbours = nearest(train_x, np.asarray(test_x[rows]), 8)

    def image(part: Labelled, row: int) -> np.ndarray:
        return part.source.picture(int(part.source.ids[row]))

    known = test.targets is None
    pictures.neighbour_sheet(
        [image(test, row) for row in rows],
        [[image(train, int(n)) for n in near] for near in neighbours],
        [
            [bool(train.labels[int(n)] == test.labels[row]) for n in near]
            for row, near in zip(rows, neighbours, strict=True)
        ]
        if known
        else None,
        [test.classes[test.labels[row]] if known else "" for row in rows],
        path,
        title=f"{title}: nearest training images",
    )
