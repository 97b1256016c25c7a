"""What numbers without labels are worth: their rank correlation with kNN accuracy over all runs of our tables.

    .venv/bin/python benchmarks/unlabelled.py docs/experiments/*/runs.jsonl
    .venv/bin/python benchmarks/unlabelled.py docs/experiments/cifar10/runs.jsonl --list batch-size

Reads the records of `byol ablate`, prints a table for docs/evaluation.md, and writes what `byol evaluate` shows beside
the numbers (src/byol/evaluate/worth.json). With --list the table alone, over the runs of one list.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from byol.evaluate import unlabelled
from byol.experiments.paper import EXPERIMENTS
from byol.experiments.small import cifar10_minutes

NUMBERS = ("view_retrieval", "effective_rank", "alignment", "uniformity")


def rows(path: Path, arms: set[str] | None) -> list[dict[str, float]]:
    """The numbers and the kNN accuracy of each run of a record that has both. arms: which, where not all."""
    runs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    runs = [run for run in runs if arms is None or run["arm"] in arms]
    return [{**{n: r["unlabelled"][n] for n in NUMBERS}, "knn": r["knn"]} for r in runs if "unlabelled" in r]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--list", choices=EXPERIMENTS, help="over its runs alone")
    arguments = parser.parse_args()
    arms = {arm.name for arm in EXPERIMENTS[arguments.list](cifar10_minutes()).arms} if arguments.list else None
    found = {path.parent.name: unlabelled.correlations(rows(path, arms)) for path in arguments.records}
    print(
        "| number | "
        + " | ".join(f"{data}, {len(rows(p, arms))} runs" for data, p in zip(found, arguments.records, strict=True))
        + " |"
    )
    print("| --- |" + " --- |" * len(found))
    for name in NUMBERS:
        cells = [
            "-" if (c := each[name]) is None else f"{c[0]:+.2f} [{c[1]:+.2f}, {c[2]:+.2f}]" for each in found.values()
        ]
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    if arms is None:
        unlabelled.WORTH.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
