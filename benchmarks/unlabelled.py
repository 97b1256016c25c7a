"""What numbers without labels are worth: their rank correlation with kNN accuracy over all runs of our tables.

    .venv/bin/python benchmarks/unlabelled.py docs/experiments/*/runs.jsonl

Reads the records of `byol ablate`, prints a table for docs/evaluation.md, and writes what `byol evaluate` shows beside
the numbers (src/byol/evaluate/worth.json).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from byol.evaluate import unlabelled

NUMBERS = ("view_retrieval", "effective_rank", "alignment", "uniformity")


def rows(path: Path) -> list[dict[str, float]]:
    """The numbers and the kNN accuracy of each run of a record that has both."""
    runs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{**{n: r["unlabelled"][n] for n in NUMBERS}, "knn": r["knn"]} for r in runs if "unlabelled" in r]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    arguments = parser.parse_args()
    found = {path.parent.name: unlabelled.correlations(rows(path)) for path in arguments.records}
    print(
        "| number | "
        + " | ".join(f"{data}, {len(rows(p))} runs" for data, p in zip(found, arguments.records, strict=True))
        + " |"
    )
    print("| --- |" + " --- |" * len(found))
    for name in NUMBERS:
        cells = [
            "-" if (c := each[name]) is None else f"{c[0]:+.2f} [{c[1]:+.2f}, {c[2]:+.2f}]" for each in found.values()
        ]
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    unlabelled.WORTH.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
