"""What `byol classify` says of itself, against the truth: labels drawn at random from the digits, many times.

    .venv/bin/byol pretrain digits --recipe digits_demo --steps 300 --out RUN
    .venv/bin/python benchmarks/few_labels.py RUN

Prints a table for docs/classify.md, a row a number of labels: the mean cross-validated accuracy, the mean accuracy on
all images that were not labelled, how often it lies in the 95 % interval, the calibration error there, how often a
threshold was promised, what it then answered and which share of that was wrong, and in how many of all draws that was
more than promised. Minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from byol.data.open import open_source
from byol.evaluate.calibrated import cross_validated, fit_calibrated
from byol.evaluate.calibration import expected_calibration_error
from byol.evaluate.labelled import load
from byol.evaluate.linear import PENALTIES
from byol.evaluate.protocols import Settings
from byol.evaluate.scores import share_interval
from byol.evaluate.selective import promised_threshold
from byol.evaluate.suggest import suggest
from byol.evaluate.table import all_features
from byol.subject import read_backbone

ERROR_RATE = 0.05


def row(x: np.ndarray, y: np.ndarray, labelled: np.ndarray) -> tuple[float, ...]:
    """x: [N, D], y: [N], labelled: [n] int -> what is in the table, NaN where nothing was promised."""
    crossed = cross_validated(x[labelled], y[labelled], penalties=PENALTIES[::4])
    fit = fit_calibrated(x[labelled], y[labelled], penalties=PENALTIES[::4])
    rest = np.setdiff1d(np.arange(len(y)), labelled)
    said = fit.probabilities(x, rest)
    right = crossed.probabilities.argmax(axis=1) == y[labelled][crossed.rows]
    low, high = share_interval(right)
    truth = said.argmax(axis=1) == y[rest]
    threshold = promised_threshold(crossed.probabilities.max(axis=1), right, ERROR_RATE)
    answered = said.max(axis=1) >= (2 if threshold is None else threshold)
    wrong = np.nan if threshold is None else (~truth[answered]).mean()
    coverage = np.nan if threshold is None else answered.mean()
    calibration = expected_calibration_error(said, y[rest])
    return right.mean(), truth.mean(), low <= truth.mean() <= high, calibration, coverage, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=40)
    arguments = parser.parse_args()
    _, _, own = read_backbone(arguments.run)
    part, features = all_features([own], load(open_source("digits", part="all")), Settings(device="cpu"))
    x, y = features[own.name], part.labels
    heads = (
        "cross-validated",
        "true",
        "in the interval",
        "calibration error",
        "promised",
        "answered",
        "wrong",
        "broken",
    )
    print("| labels | " + " | ".join(heads) + " |")
    print("| --- " * 9 + "|")
    for how, count in (("random", 50), ("random", 100), ("random", 200), ("random", 500), ("suggested", 50)):
        found = []
        for seed in range(arguments.draws if how == "random" else 5):
            drawn = np.random.default_rng([count, seed]).choice(len(y), count, replace=False)
            labelled = np.sort(drawn if how == "random" else suggest(x, count, seed=seed))
            if np.bincount(y[labelled], minlength=10).min() >= 2:
                found.append(row(x, y, labelled))
        crossed, true, inside, calibration, coverage, wrong = np.array(found).T
        given = ~np.isnan(coverage)
        promised = f"{given.sum()} of {len(found)}"
        some = f"{coverage[given].mean():.2f} | {wrong[given].mean():.3f}" if given.any() else "- | -"
        print(
            f"| {count} {how} | {crossed.mean():.3f} | {true.mean():.3f} | {inside.sum():.0f} of {len(found)} | "
            f"{calibration.mean():.3f} | {promised} | {some} | "
            f"{(wrong > ERROR_RATE).sum()} of {len(found)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
