"""How far two processes drift from one in 50 steps of the same batches, by precision.

    .venv/bin/python benchmarks/drift.py

`byol pretrain` on random images in one process, in one process with another number of threads, and in two
(`torchrun`, gloo), with LARS. A parameter's difference is a share of its largest value; those are printed by the median
and the largest over all parameters but biases before a batch norm, whose gradient is rounding alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.torch import load_file


def run(folder: Path, name: str, precision: str, steps: int, *, processes: int, threads: int) -> dict[str, float]:
    """Trains; the last loss is the directory's."""
    own = ["-m", "byol", "pretrain", str(folder / "images.npz"), "--out", str(folder / name), "--steps", str(steps)]
    own += ["--batch-size", "32", "--hold-out", "0", "--device", "cpu", "--precision", precision, "--backbone"]
    own += ["resnet18", "--set", "optimizer=lars", "--set", "base_lr=0.5"]
    own += ["--set", "backbone_args={'layers': [1, 1, 1, 1], 'channels': [8, 8, 16, 16]}"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ran = subprocess.run([sys.executable, *launcher, *own], capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    (last,) = (folder / name / "checkpoints").glob(f"step-{steps:09}.safetensors")
    return load_file(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    print("| precision | against one process | median | largest |\n| --- | --- | --- | --- |")
    for precision in ("64", "32", "bf16"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            images = np.random.default_rng(0).integers(0, 256, (256, 16, 16, 3), dtype=np.uint8)
            np.savez(folder / "images.npz", images=images)
            one = run(folder, "one", precision, arguments.steps, processes=1, threads=1)
            others = {
                "one process, two threads": run(folder, "threads", precision, arguments.steps, processes=1, threads=2),
                "two processes": run(folder, "two", precision, arguments.steps, processes=2, threads=1),
            }
            for name, other in others.items():
                found = [
                    float((value - other[key]).abs().max() / value.abs().max())
                    for key, value in one.items()
                    if key.startswith("module.") and value.is_floating_point() and not key.endswith(".0.bias")
                ]
                print(f"| {precision} | {name} | {statistics.median(found):.1e} | {max(found):.1e} |", flush=True)


if __name__ == "__main__":
    main()
