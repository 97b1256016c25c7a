"""What a run would cost on this machine, before it is begun: measured, but for what can be counted."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from byol.capacity import disk_bytes, estimated_memory, largest_batch, step_flops
from byol.options import Options
from byol.pipeline import Observer, duration, how_to_open, open_for_training, ready, summary
from byol.plan import plan

TRIAL_SECONDS = 10.0
"""How long steps are tried; the machine's own ups and downs are longer than that."""


def estimate(data: str, options: Options, observer: Observer) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Parameters, FLOPs of a step, peak memory and disk in bytes, images/s, and seconds of a run with these options;
    and the same for people, with the rest of the plan.

    The steps that are tried are real ones, on the data, but on a copy of the networks; nothing is written. ValueError
    as in `pretrain`.
    """
    began = time.perf_counter()
    options = options.checked()
    source, pixels = open_for_training(data, observer, **how_to_open(options))
    if options.auto_batch:
        options = largest_batch(options, source, pixels, observer.say)
    run = plan(options, source, pixels)
    with tempfile.TemporaryDirectory() as nothing:
        training, _ = ready(run, source, pixels, Path(nothing), 1.0)
        opened = time.perf_counter() - began
        rate = training.measure_rate(TRIAL_SECONDS)
    look = 0.0
    if training.hold_out is not None:
        before = time.perf_counter()
        training.look(0)
        look = time.perf_counter() - before
    memory = estimated_memory(training)
    looks = 1 + math.ceil(run.total_steps / run.evaluate_every_steps)
    flops = step_flops(training)
    images = run.total_steps * run.images_per_step
    found = {
        "parameters": training.parameters(),
        "batch_size": run.batch_size,
        "images_per_step": run.images_per_step,
        "steps": run.total_steps,
        "epochs": images / training.num_train,
        "flops_per_step": flops,
        "images_per_second": rate,
        "memory_bytes": memory,
        "disk_bytes": disk_bytes(run, training),
        "seconds": opened + images / rate + looks * look,
        "device": run.facts["device_name"],
    }
    plain = [line for line in summary(run, source, training, rate) if line[0] not in ("steps", "expected")]
    return found, [*plain, *_lines(found)]


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    flops, images, rate = found["flops_per_step"], found["images_per_step"], found["images_per_second"]
    memory = found["memory_bytes"]
    return [
        ("FLOPs", f"{_scaled(flops)}FLOP a step of {images:,} images: {_scaled(flops / images)}FLOP an image"),
        ("speed", f"{rate:,.0f} images/s on {found['device']}: {_scaled(flops / images * rate)}FLOP/s"),
        *((("memory", f"{memory / 2**30:.2f} GiB at most"),) if memory else ()),
        ("disk", f"{found['disk_bytes'] / 1e6:,.0f} MB at most"),
        ("time", f"{duration(found['seconds'])} for {found['steps']:,} steps = {found['epochs']:.1f} epochs"),
    ]


def _scaled(value: float) -> str:
    """With three digits and its prefix: 1.23 T."""
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}"
    return f"{value:.0f} "
