"""How far `--budget` overshoots, and how far `byol estimate` is off: five runs of each, in turns.

    .venv/bin/python benchmarks/budgets.py [--data digits] [--budget 60] [--runs 5]

Each turn is `byol pretrain DATA --budget`, then `byol estimate DATA --steps N` and `byol pretrain DATA --steps N` with
the N of the first; the clock of a budget begins where the command's work does, so that the import of PyTorch is not in
it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = """
import json, sys, time
from pathlib import Path
import byol.estimate, byol.pipeline
from byol.options import Options
what, data, out, amount = sys.argv[1:]
began = time.perf_counter()
if what == "budget":
    run = byol.pipeline.pretrain(data, out, Options(budget=float(amount)))
    found = {"seconds": time.perf_counter() - began, "steps": run.total_steps, "replan": run.replan}
elif what == "estimate":
    found = byol.estimate.estimate(data, Options(steps=int(amount)), byol.pipeline.Silent())[0]
else:
    byol.pipeline.pretrain(data, out, Options(steps=int(amount)))
    found = {"seconds": time.perf_counter() - began}
    for line in (Path(out) / "metrics.jsonl").read_text().splitlines():
        found |= {k: v for k, v in json.loads(line).items() if k == "peak_memory_bytes"}
print(json.dumps(found))
"""


def call(what: str, data: str, out: Path, amount: float) -> dict[str, Any]:
    own = [sys.executable, "-c", PROGRAM, what, data, str(out), str(amount)]
    found = subprocess.run(own, capture_output=True, text=True, check=True)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--budget", type=float, default=60, help="seconds")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    over: list[float] = []
    errors: dict[str, list[float]] = {"time": [], "memory": []}
    for turn in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            budget = call("budget", arguments.data, Path(folder) / "budget", arguments.budget)
            said = call("estimate", arguments.data, Path(folder), budget["steps"])
            took = call("steps", arguments.data, Path(folder) / "steps", budget["steps"])
        over.append(budget["seconds"] / arguments.budget - 1)
        errors["time"].append(said["seconds"] / took["seconds"] - 1)
        errors["memory"].append(said["memory_bytes"] / took["peak_memory_bytes"] - 1)
        print(
            f"turn {turn + 1}: budget {over[-1]:+.1%} ({budget['steps']} steps, {budget['replan']}), estimate: "
            f"time {errors['time'][-1]:+.1%}, memory {errors['memory'][-1]:+.1%}",
            flush=True,
        )
    print(f"budget {arguments.budget:g} s: overshoot median {statistics.median(over):+.1%}, worst {max(over):+.1%}")
    for name, found in errors.items():
        sizes = sorted(map(abs, found))
        print(f"estimate, {name}: error median {statistics.median(sizes):.1%}, worst {sizes[-1]:.1%}")


if __name__ == "__main__":
    main()
