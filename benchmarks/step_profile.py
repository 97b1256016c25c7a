"""Where the milliseconds of a BYOL training step go, before and after what makes it fast, by PyTorch's profiler.

    .venv/bin/python benchmarks/step_profile.py [--small] [--only VARIANT]

ResNet-18 with a 3x3 stem, 32 px, heads 1024-256 (--small: the network of `cifar10_two_cores`), on the CPU. "plain" is
the same step without any of it: float32, PyTorch's own memory format and convolutions, AdamW and the target's average
tensor by tensor, C's own allocator. The other variants add one thing each. Every variant runs in a process of its own,
in turns; milliseconds are an operation's own time, the median turn's. "step" is the clock's, without the profiler.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from byol import metrics, networks, train
from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.experiments import cifar10_two_cores
from byol.options import Options
from byol.plan import plan
from byol.run import Precision

VARIANTS = {  # what each adds to the one before
    "plain": "",
    "+ channels_last": "channels_last",
    "+ allocator": "allocator",
    "+ fused optimizer and average": "fused",
    "+ bf16": "bf16",
    "+ matrix products (byol)": "products",
    "+ torch.compile": "compile",
}
SCOPES = ("views", "optimizer", "target's average", "log")
KINDS = {  # by the outermost of these that an operation is inside
    "convolution": ("aten::conv2d", "_MatrixConvolution", "ConvolutionBackward", "aten::convolution"),
    "batch norm": ("aten::batch_norm", "BatchNormBackward"),
    "activation": ("aten::relu", "ReluBackward", "aten::clamp_min", "aten::threshold"),
    "linear": ("aten::linear", "AddmmBackward", "MmBackward", "TBackward", "one_output"),
    "compiled": ("CompiledFunction", "Torch-Compiled Region", "graph_", "cpp_fused", "inductor"),
    "casts and copies": ("aten::to", "ToCopyBackward", "aten::contiguous", "aten::copy_", "AccumulateGrad"),
}


def without(wanted: set[str]) -> None:
    """Take away what the variant does not have. In a process of its own, so nothing is put back."""
    if "channels_last" not in wanted:
        torch.channels_last = torch.contiguous_format
    if "allocator" not in wanted:
        train.keep_memory = lambda: None
    if "fused" not in wanted:
        adamw = torch.optim.AdamW
        torch.optim.AdamW = lambda *a, **k: adamw(*a, **(k | {"fused": False, "foreach": False}))  # type: ignore[assignment, misc]
        torch._foreach_lerp_ = lambda own, other, share: [a.lerp_(b, share) for a, b in zip(own, other, strict=True)]
    if "products" not in wanted:
        networks.use_matrix_products = lambda module: None


def named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        with record_function(name):
            return call(*arguments, **named)

    return wrapped


def prepared(wanted: set[str], batch_size: int, *, small: bool, folder: Path) -> Callable[[], None]:
    """A call that does one step."""
    without(wanted)
    pixels = np.random.default_rng(0).integers(0, 256, (4 * batch_size, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    source, loaded, _ = load_pixels(open_source(folder / "images.npy"))
    options = cifar10_two_cores() if small else Options(backbone="resnet18", method_args={"hidden": 1024, "out": 256})
    precision: Precision = "bf16" if "bf16" in wanted else "32"
    changes = {"batch_size": batch_size, "steps": 10**6, "warmup_steps": 0, "hold_out": 0.0, "device": "cpu"}
    options = replace(options, epochs=None, precision=precision, **changes)
    training = train.Training(plan(options, source, loaded), source, loaded, folder)
    training.module.train()
    method: Any = training.method
    if "compile" in wanted:
        for part in (method.encoder, method.projector, method.predictor, method.target.module):
            part.compile()
    make = named("views", training.loader.batches(0, 10**6).__next__)
    training._optimizer.step = named("optimizer", training._optimizer.step)  # type: ignore[method-assign]
    method.after_step = named("target's average", method.after_step)
    method.target.forward = named("target", method.target.forward)
    log = named("log", metrics.Metrics(folder, 0).write)

    def step() -> None:
        losses = training.step(0, [make()])
        log(0, {name: float(value) for name, value in losses.items()})

    return step


def place_of(event: Any) -> tuple[str, str]:
    """(row, column) of the table that an operation's own time belongs to."""
    chain = [event.name]
    while event.cpu_parent is not None:
        event = event.cpu_parent
        chain.append(event.name)
    chain.reverse()
    for scope in SCOPES:
        if scope in chain:
            return scope, "all"
    backward = any("evaluate_function" in name or name.endswith("Backward") for name in chain)
    column = "backward" if backward else "target" if "target" in chain else "online"
    for name in chain:
        for kind, starts in KINDS.items():
            if any(start in name for start in starts):
                return kind, column
    return "rest", column


def measure(variant: str, batch_size: int, steps: int, *, small: bool) -> dict[str, Any]:
    names = list(VARIANTS)
    wanted = {VARIANTS[name] for name in names[: names.index(variant) + 1]}
    with tempfile.TemporaryDirectory() as folder:
        step = prepared(wanted, batch_size, small=small, folder=Path(folder))
        for _ in range(3):
            step()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = (time.perf_counter() - began) / steps
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(steps):
                step()
    found: dict[str, float] = defaultdict(float)
    for event in seen.events():
        row, column = place_of(event)
        found[f"{row}|{column}"] += event.self_cpu_time_total / 1e3 / steps
    return {"step": 1e3 * seconds, "parts": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--small", action="store_true", help="the network of cifar10_two_cores")
    parser.add_argument("--steps", type=int, default=3, help="a turn, with the profiler and without")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=VARIANTS, help="one variant, in this process")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.batch_size, arguments.steps, small=arguments.small)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for turn in range(arguments.turns):
        for name in VARIANTS:
            own = [sys.executable, __file__, "--only", name, "--batch-size", str(arguments.batch_size)]
            own += ["--steps", str(arguments.steps)] + ["--small"] * arguments.small
            ran = subprocess.run(own, capture_output=True, text=True, check=True)
            found[name].append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"turn {turn + 1}: {name}: {found[name][-1]['step']:.0f} ms", file=sys.stderr)
    rows = [f"{kind}|{column}" for kind in (*KINDS, "rest") for column in ("online", "target", "backward")]
    rows += [f"{scope}|all" for scope in SCOPES]
    print("| ms | | " + " | ".join(VARIANTS) + " |\n| --- | --- |" + " --- |" * len(VARIANTS))
    for row in rows:
        values = [statistics.median(turn["parts"].get(row, 0.0) for turn in turns) for turns in found.values()]
        if max(values) >= 0.5:
            cells = " | ".join(f"{value:.0f}" for value in values)
            print(f"| {row.replace('|all', '|').replace('|', ' | ')} | {cells} |")
    steps = [statistics.median(turn["step"] for turn in turns) for turns in found.values()]
    print("| step | | " + " | ".join(f"{value:.0f}" for value in steps) + " |")
    print("| images/s | | " + " | ".join(f"{1e3 * arguments.batch_size / value:.1f}" for value in steps) + " |")


if __name__ == "__main__":
    main()
