"""What `byol evaluate --suggest` is worth: accuracy with the labels of suggested images, against images at random.

    .venv/bin/byol pretrain digits --recipe digits_demo --steps 300 --out RUN
    .venv/bin/python benchmarks/suggestions.py RUN digits

Prints a table for docs/evaluation.md: the mean of `--seeds` suggestions and of 20 random picks for each, +- one
standard deviation, on the features of the run's backbone and on raw pixels. Minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from byol.evaluate.columns import raw_pixels
from byol.evaluate.protocols import Settings, idle
from byol.evaluate.suggest import suggestion_value
from byol.evaluate.table import all_features
from byol.subject import open_parts, read_backbone

COUNTS = (10, 20, 50, 100)


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    _, spec, own = read_backbone(arguments.run)
    parts = open_parts(arguments.data, None, channels=spec.channels)
    columns = [own, raw_pixels(spec.image_size, spec.channels)]
    train, train_x = all_features(columns, parts.train, Settings(device="cpu"), None, idle)
    test, test_x = all_features(columns, parts.open_test(), Settings(device="cpu"), None, idle)
    print("| labels | " + " | ".join(f"{column.name}: suggested | random" for column in columns) + " |")
    print("| --- |" + " --- | --- |" * len(columns))
    for count in COUNTS:
        cells = []
        for column in columns:
            images = train_x[column.name], train.labels, test_x[column.name], test.labels
            found = [suggestion_value(*images, count, seed=seed) for seed in range(arguments.seeds)]
            cells.append(cell([each.suggested for each in found]))
            cells.append(cell([accuracy for each in found for accuracy in each.random_accuracies]))
        print(f"| {count} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
