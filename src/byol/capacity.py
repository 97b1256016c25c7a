"""What a step costs, and the largest batch that fits: counted and measured, never guessed.

Memory is measured in a process of its own, `python -m byol.capacity RUN.json`, so that nothing else is in it and
one that takes too much ends alone.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from byol import cluster
from byol.convolution import without_matrix_products
from byol.data.loader import Batch, split_hold_out
from byol.data.source import Source
from byol.launch import LAUNCHERS, launched
from byol.machine import available_memory, process_memory, resident_memory
from byol.networks import build, compile_networks, make_optimizer, refusal
from byol.options import Options
from byol.parallel import agreed, rank, together
from byol.plan import device_of, plan
from byol.run import Run
from byol.step import train_step
from byol.train import Training, keep_memory

LARGEST_BATCH = 4096
"""The largest that the methods' authors use, and that the rules of learning rates are known to hold for."""
FIRST_BATCH, MULTIPLE = 16, 16
"""The smallest batch that every method's default arguments take, and what larger ones are multiples of."""
MISSES = 3
"""How often a batch may turn out too large before the largest that did fit is taken."""
SHARE_OF_MEMORY = 0.9
"""Of the memory that is free, how much a step may take: workers, files and fragments want some too."""


def step_flops(training: Training) -> int:
    """Floating-point operations of an optimizer step's matrix products and convolutions, forward and backward, of all
    views and networks; a multiplication and an addition are two. Everything else of a step is left out, as usual."""
    run = training.run
    networks = copy.deepcopy(training.networks)
    without_matrix_products(networks)  # which leave out what falls on the padding
    module, optimizer = training.fabric.setup(networks, make_optimizer(run, networks))
    batch = next(iter(training.loader.batches(0, 1)))
    with FlopCounterMode(display=False) as counter:
        train_step(run, 0, module, networks.method, optimizer, [batch], training.fabric.backward)
    return counter.get_total_flops() * run.accumulate


def checkpoint_bytes(run: Run, training: Training) -> int:
    """Size of a checkpoint: the networks, and what the optimizer keeps of each weight that is trained."""
    kept = {"lars": 1, "sgd": 1, "adamw": 2}[run.optimizer]
    trained = sum(p.numel() * p.element_size() for p in training.networks.parameters() if p.requires_grad)
    state = sum(t.numel() * t.element_size() for t in training.networks.state_dict().values())
    return state + kept * trained


def disk_bytes(run: Run, training: Training) -> int:
    """The most a run's directory takes: its checkpoints, with one more while it is written, and the backbone."""
    encoder = sum(t.numel() * t.element_size() for t in training.method.encoder.state_dict().values())
    return (run.keep + 1) * checkpoint_bytes(run, training) + encoder


def step_memory(run: Run, *, num_classes: int, num_images: int) -> int | None:
    """Bytes that building a run's networks and two of its steps take at most, of the device's own memory or of a
    process's, on random images; None where they do not fit. num_classes, num_images: see `build`."""
    with tempfile.TemporaryDirectory() as folder:
        run.write(Path(folder) / "run.json")
        own = [sys.executable, "-m", "byol.capacity", str(Path(folder) / "run.json"), str(num_classes), str(num_images)]
        alone = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        found = subprocess.run(own, capture_output=True, text=True, check=False, env=alone)
    if found.returncode in (-9, 137):  # the kernel's way to say that there is no memory
        return None
    if found.returncode:
        raise RuntimeError(f"a step of {run.batch_size} images failed:\n{found.stderr}")
    answer = json.loads(found.stdout.splitlines()[-1])
    if isinstance(answer, str):
        raise ValueError(answer)
    return None if answer is None else int(answer)


def estimated_memory(training: Training) -> int | None:
    """The most memory that a run will take, bytes, where its trial steps have been."""
    run, found = training.run, training.peak_memory()
    if found is None:
        return None
    if run.device == "cuda":  # which forgets the trial's own copy before the first step
        found -= sum(t.numel() * t.element_size() for t in training.networks.state_dict().values())
    view = run.batch_size * run.channels * run.image_size**2 * (8 if run.precision == "64" else 4)
    return found + (run.accumulate - 1) * len(run.views) * view  # of the trial's steps each had one batch


def _measure(run: Run, num_classes: int, num_images: int) -> int | str | None:
    """What `step_memory` gives, or the line to say where it cannot be had."""
    with contextlib.suppress(OSError):  # where memory ends, this process shall, and no other
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    if run.device == "cpu":
        keep_memory()
    fabric = cluster.fabric(run.device, run.precision)
    before = resident_memory() or 0
    try:
        networks = build(run, num_classes=num_classes, num_images=num_images)
        trial = compile_networks(run, copy.deepcopy(networks))  # as before a run's first step
        module, optimizer = fabric.setup(trial, make_optimizer(run, trial))
        shape = (run.batch_size, run.channels, run.image_size, run.image_size)
        ids = torch.arange(run.batch_size) % max(num_images, 1)
        dtype, device = next(trial.parameters()).dtype, fabric.device
        batches = [
            Batch(
                ids, ids % max(num_classes, 1), tuple(torch.rand(shape, dtype=dtype, device=device) for _ in run.views)
            )
            for _ in range(run.accumulate)
        ]
        for step in range(2):  # the optimizer's state comes with the first
            train_step(run, step, module, trial.method, optimizer, batches, fabric.backward)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    except (TypeError, RuntimeError, AssertionError, IndexError, ArithmeticError) as error:
        if "can't allocate memory" in str(error):
            return None
        if ":" in run.method:  # a method of one's own: its author needs the traceback
            raise
        return refusal(run, error)
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_reserved(fabric.device)
    return (process_memory() or 0) - before


def largest_batch(options: Options, source: Source, pixels: Tensor | None, tell: Callable[[str], None]) -> Options:
    """The options with the largest batch that fits this machine, all else moved with it by the rules of
    docs/defaults.md. Of several processes the first one measures. tell: what is tried, and what limits the batch.

    ValueError where not even the smallest fits, or nobody knows how much memory there is.
    """
    found = agreed(together(lambda: _largest(options, source, pixels, tell) if rank() == 0 else None))
    assert found is not None, "the first process measured"
    batch_size, why = found
    options = replace(options.at_batch(batch_size * launched()[0], options.accumulate), auto_batch=False)
    tell(f"batch: {options.batch_size:,}; {why}")
    return options


def _largest(options: Options, source: Source, pixels: Tensor | None, tell: Callable[[str], None]) -> tuple[int, str]:
    """(images of one process in a forward pass, what limits them)."""
    num_train = len(split_hold_out(source, options.hold_out, options.seed)[0])
    world, local = launched()
    parts = world * options.accumulate
    most = max(2, num_train // (8 * parts))
    why = f"an eighth of {num_train:,} training images is the most"
    if most * parts > LARGEST_BATCH:
        most, why = LARGEST_BATCH // parts, f"{LARGEST_BATCH:,} images a step are the most that the rules are known for"
    most = most // MULTIPLE * MULTIPLE or most
    free = _free_memory(device_of(options), local)
    held = 0 if pixels is None else pixels.nbytes  # again, without those held out, or on the device
    limit = int(SHARE_OF_MEMORY * free) - held
    measured: list[tuple[int, int]] = []
    too_large: list[tuple[int, int | None]] = []
    batch_size = min(FIRST_BATCH, most)
    while len(too_large) <= MISSES:
        planned = _planned(options, batch_size, measured[-1][0] if measured else 0, source, pixels)
        if planned is None:
            break
        tell(f"trying batches of {planned.batch_size:,}")
        run = replace(planned, batch_size=planned.batch_size // world)
        batch_size = run.batch_size
        taken = step_memory(run, num_classes=source.num_classes, num_images=source.num_listed)
        if taken is None or taken > limit:
            too_large.append((batch_size, taken))
        else:
            measured.append((batch_size, taken))
        if not measured:
            break
        batch_size = min(most, 4 * measured[-1][0], _fitting(measured, too_large, limit))
        if batch_size <= measured[-1][0]:
            break
    if not measured:
        size = options.image_size or source.height
        raise ValueError(
            f"not even {batch_size} images of {size} px fit in the {free / 2**30:.1f} GiB that are free; use a smaller "
            "--backbone or --image-size"
        )
    batch_size, taken = measured[-1]
    if batch_size < most:
        why = f"a step takes {taken / 2**30:.1f} GiB of the {free / 2**30:.1f} that are free"
    return batch_size, why


def _planned(options: Options, batch_size: int, above: int, source: Source, pixels: Tensor | None) -> Run | None:
    """The plan of a batch, or of the next smaller one that the method's arguments allow (a queue must be a multiple of
    it); None where there is none above one that is known to fit."""
    world = launched()[0]
    refused: ValueError | None = None
    while batch_size > above:
        try:
            return plan(options.at_batch(batch_size * world, options.accumulate), source, pixels)
        except ValueError as error:
            refused = refused or error
            batch_size -= MULTIPLE
    if above == 0 and refused is not None:
        raise refused
    return None


def _fitting(measured: list[tuple[int, int]], too_large: list[tuple[int, int | None]], limit: int) -> int:
    """The largest multiple that fits by the line through the two measurements nearest to it; halfway where what is too
    large could not be measured."""
    if too_large:
        (b0, m0), (b1, m1) = measured[-1], too_large[-1]
        share = 0.5 if m1 is None else (limit - m0) / (m1 - m0)
        return min(int(b0 + (b1 - b0) * share), b1 - 1) // MULTIPLE * MULTIPLE
    if len(measured) == 1:  # what does not grow with the batch is not known yet
        return 4 * measured[0][0] if 4 * measured[0][1] <= limit else 2 * measured[0][0]
    (b0, m0), (b1, m1) = measured[-2:]
    per_image = max((m1 - m0) / (b1 - b0), 1.0)
    return int(b1 + (limit - m1) / per_image) // MULTIPLE * MULTIPLE


def _free_memory(device: str, local: int) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    free = available_memory()
    if free is None:
        raise ValueError("nobody knows how much memory this machine has; give --batch-size in place of --auto-batch")
    return free // local


if __name__ == "__main__":
    where, classes, images = sys.argv[1:]
    print(json.dumps(_measure(Run.read(Path(where)), int(classes), int(images))))
