"""From what a person said, and what the data is, to a complete Run: the rules of docs/defaults.md."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import platform
import subprocess
import time
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.loader import Normalization, data_statistics, split_hold_out, views_for
from byol.data.source import HOW_TO_LABEL, Source, digest
from byol.data.tiles import HELD_BYTES
from byol.encoder import stem_for
from byol.export import DESCRIPTION, padding_of, read_description, spec_of
from byol.launch import launched
from byol.methods import Method, Situation, get, uses_labels
from byol.names import PRETRAINED, split_tag
from byol.options import Options
from byol.repeat import check_trusted
from byol.run import Optimization, Padding, Run, Stem
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD, View

LARGEST_DEFAULT_PX = 224


def plan(options: Options, source: Source, pixels: Tensor | None) -> Run:
    """The run that `options` ask for on this data. ValueError, in one line, where they cannot be had."""
    options = options.checked()
    device = device_of(options)
    num_train = len(split_hold_out(source, options.hold_out, options.seed)[0])
    size = image_size(options, source)
    backbone, backbone_args, stem = _structure(options, size, device)
    batch_size = options.batch_size or _batch_size(num_train, device)
    if options.batch_size is None:  # the same for any number of processes that divides it
        batch_size = max(batch_size // launched()[0], 1) * launched()[0]
    images_per_step = batch_size * options.accumulate
    if images_per_step > num_train:
        raise ValueError(
            f"batch_size={batch_size} x accumulate={options.accumulate} is more than the {num_train} training images; "
            f"use at most --batch-size {num_train // options.accumulate}"
        )
    if batch_size < 2:
        raise ValueError("batch_size=1 leaves nothing to normalise over; use at least 2")
    steps = options.steps
    if steps is None:
        steps = steps_of(options.epochs or _epochs(num_train, images_per_step), num_train, images_per_step)
    if steps < 1:
        raise ValueError(f"epochs={options.epochs} of {num_train} images are less than one step; use more epochs")
    # What follows from a run's length follows from the first that it had.
    planned = options.replan[1] if options.replan else options.extended[0][1] if options.extended else steps
    situation = Situation(num_train, size, source.channels, images_per_step, planned, options.accumulate)
    method = get(options.method)
    _check_labels(options.method, method, source)
    defaults = method.defaults(situation)
    # A target that starts from given weights starts as a copy of them: two networks that disagree is no start.
    started = {"target_init": "copy"} if options.init and "target_init" in defaults.method_args else {}
    method_args = {**defaults.method_args, **started, **options.method_args}
    method.check(situation, **method_args)
    rules = {f.name: getattr(options, f.name) for f in dataclasses.fields(Optimization)}
    rules = {name: getattr(defaults, name) if value is None else value for name, value in rules.items()}
    if not options.normalize:
        statistics = Normalization((0.0,) * source.channels, (1.0,) * source.channels)
    elif source.is_rgb:
        statistics = Normalization(IMAGENET_MEAN, IMAGENET_STD)
    elif source.statistics is not None:
        statistics = Normalization(*source.statistics)
    else:
        statistics = data_statistics(source, pixels)
    return Run(
        data=source.name,
        method=options.method,
        method_args=method_args,
        backbone=backbone,
        backbone_args=backbone_args,
        stem=options.stem or stem or stem_for(backbone, size),
        padding=_padding(options),
        image_size=size,
        channels=source.channels,
        value_range=source.value_range,
        mean=statistics.mean,
        std=statistics.std,
        views=tuple(map(dataclasses.asdict, chosen_views(options, source))),
        batch_size=batch_size,
        accumulate=options.accumulate,
        total_steps=steps,
        warmup_steps=_warmup(options, defaults.warmup, planned, num_train, images_per_step),
        extended=options.extended,
        replan=options.replan,
        lr_every_steps=max(1, num_train // images_per_step) if options.lr_by_epoch else 1,
        encoder_init=options.encoder_init,
        **rules,
        precision=options.precision or ("bf16" if has_bf16(device) else "32"),
        compile=options.compile,
        device=device,
        workers=_workers(device) if options.workers is None else options.workers,
        seed=options.seed,
        hold_out=options.hold_out,
        # Not sooner: running batch-norm statistics need some steps before they say anything.
        evaluate_every_steps=max(20, min(500, planned // 20)),
        checkpoint_every_steps=max(1, min(1000, planned // 10)),
        keep=options.keep,
        max_bad=options.max_bad,
        stop_on_collapse=options.stop_on_collapse,
        reduced_decoding=options.reduced_decoding,
        streams=_streams(options, source),
        tile=options.tile or 0,
        init=options.init,
        labels=options.labels,
        options=options.given(),
        facts=_facts(source, device, num_train) | ({"moved": moved} if (moved := options.moved()) else {}),
    )


MAY_CHANGE = ("steps", "epochs", "workers", "keep", "stop_on_collapse", "max_bad", "timeout")
"""Options that a resumed run may be given anew: none of them changes what a step computes."""


def continued(run: Run, options: Options, step: int) -> Run:
    """The run that goes on after `step` steps of it. What the options leave out stays as it is, and so does what they
    ask for as it was asked for when the run began. Other `steps` and `epochs` make it longer: from that step on it is
    the run of so many steps, whose schedules stand where that step is in them.

    ValueError, in one line, where something else is asked for than the run has.
    """
    check_trusted(run, options.method)
    given = options.given()
    now = json.loads(json.dumps(dataclasses.asdict(run)))

    def known(name: str) -> Any:
        return run.options.get(name, now.get(name))

    differing = []
    for name, value in given.items():
        if name == "method_args":
            asked, own = known(name), now["method_args"]
            differing += [
                f"{k} is {own.get(k)!r}, not {v!r}" for k, v in value.items() if v not in (asked.get(k), own.get(k))
            ]
        elif name not in MAY_CHANGE and value not in (known(name), now.get(name)):
            differing.append(f"{name} is {known(name)!r}, not {value!r}")
    if differing:
        raise ValueError(
            f"--resume goes on with the settings that the run has: {'; '.join(differing)}. Leave them out, or start a "
            "new run with another --out"
        )
    changed = {
        name: value for name, value in given.items() if name in ("workers", "keep", "stop_on_collapse", "max_bad")
    }
    # A job that begins again gives the same command, whose batch, or its rule, may have moved the steps.
    steps = None if options.steps == run.options.get("steps") else options.steps
    if options.epochs is not None and options.epochs != run.options.get("epochs"):
        steps = steps_of(options.epochs, run.fact("images_trained_on", int), run.images_per_step)
    if steps in (None, run.total_steps):
        return replace(run, **changed)
    if steps < run.total_steps:
        raise ValueError(
            f"--resume makes a run longer, not shorter: it has {run.total_steps:,} steps, and {steps:,} were asked for"
        )
    extended = (*run.extended, (step, run.total_steps))
    own = {name: value for name, value in run.options.items() if name not in ("steps", "epochs")}
    asked = own | {name: given[name] for name in ("steps", "epochs") if name in given}
    return replace(run, total_steps=steps, extended=extended, options=asked, **changed)


def steps_of(epochs: float, num_train: int, images_per_step: int) -> int:
    """The whole steps in so many passes over the training images."""
    return int(epochs * num_train / images_per_step)


def device_of(options: Options) -> str:
    """The device that was asked for, or the best there is."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is not available here; use --device cpu")
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def image_size(options: Options, source: Source) -> int:
    """The side of a view, px."""
    return options.image_size or min(LARGEST_DEFAULT_PX, source.height, source.width)


def chosen_views(options: Options, source: Source) -> tuple[View, ...]:
    """The views to make: those asked for, or the method's, without what only makes sense for RGB where the images are
    not."""
    wanted = get(options.method).views
    views = tuple(replace(view, **options.view_changes) for view in options.views or wanted)
    if len(views) != len(wanted):
        raise ValueError(f"{options.method} takes {len(wanted)} views, not {len(views)}")
    return views_for(views, source)


def _check_labels(name: str, method: type[Method], source: Source) -> None:
    """ValueError where a method learns from labels and there are none to learn from."""
    if not uses_labels(method) and "num_classes" not in inspect.signature(method).parameters:
        return
    if source.labels is None or not (source.labels >= 0).any():
        raise ValueError(f"{name} learns from labels and {source.name} has none; {HOW_TO_LABEL}")
    if source.num_classes < 2 or len(np.unique(source.labels[source.labels >= 0])) < 2:
        raise ValueError(
            f"{name} learns to tell classes apart, and the labels of {source.name} are not two classes or more, "
            f"numbered from 0; {HOW_TO_LABEL}"
        )


def _structure(options: Options, size: int, device: str) -> tuple[str, dict[str, Any], Stem | None]:
    """Backbone, its arguments, and its stem where that is not free: what was named, what the weights to start from
    are of, or the rule."""
    if options.backbone is not None:
        return options.backbone, options.backbone_args or {}, None
    name, args = "resnet18" if size <= 64 else "resnet50", dict[str, Any]()
    if options.init is not None and options.backbone_args is None:
        if (Path(options.init) / DESCRIPTION).is_file():
            spec = spec_of(read_description(Path(options.init)))
            return spec.name, {k: v for k, v in spec.args.items() if k != "img_size"}, spec.stem
        if options.init.startswith(PRETRAINED):
            return split_tag(options.init)[0] or name, args, None
    if device == "cpu":
        name, args = "resnet18", {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}
    return name, args if options.backbone_args is None else options.backbone_args, None


def _padding(options: Options) -> Padding:
    """That of the weights to start from, whatever else was named."""
    if options.init is not None and (Path(options.init) / DESCRIPTION).is_file():
        return padding_of(read_description(Path(options.init)))
    return "symmetric"


def _batch_size(num_train: int, device: str) -> int:
    largest = 128 if device == "cpu" else 256
    return max(2, min(largest, num_train // 8))


def _epochs(num_train: int, images_per_step: int) -> float:
    """100 epochs, and more where that makes fewer than 5,000 steps; at most 1,000."""
    return min(1000.0, max(100.0, 5000 * images_per_step / num_train))


def _warmup(options: Options, share: float, steps: int, num_train: int, images_per_step: int) -> int:
    if options.warmup_steps is not None:
        return min(options.warmup_steps, steps)
    if options.warmup_epochs is not None:
        return min(int(options.warmup_epochs * num_train / images_per_step), steps)
    return round(share * steps)


def _streams(options: Options, source: Source) -> int:
    """64 for data in shards or tiles, or the largest power of two that there are units and memory for."""
    if source.unit_starts is None:
        if options.streams is not None:
            source.unit_bounds()  # says that there are none
        return 0
    training, _ = split_hold_out(source, options.hold_out, options.seed)
    units = int((np.diff(training.unit_bounds()) > 0).sum())
    held = max(1, HELD_BYTES // (2 * max(1, source.unit_bytes)))
    streams = options.streams or min(64, 1 << (min(units, held).bit_length() - 1))
    if streams > units:
        raise ValueError(
            f"streams={streams} are more than the {units} row groups, parts of archives or tiled images; use fewer"
        )
    if streams % launched()[0]:
        raise ValueError(
            f"streams={streams} cannot be dealt to {launched()[0]} processes; use a number of processes that divides "
            "it, or --set streams=N"
        )
    return streams


def _workers(device: str) -> int:
    # torchrun sets one thread where nothing else is said.
    threads = torch.get_num_threads()
    cores = threads if launched()[1] == 1 else (os.cpu_count() or 1) // launched()[1]
    # On a CPU a worker would take its time from a thread of the step, for which the others wait.
    return max(0, min(16, cores - threads)) if device == "cpu" else min(16, cores)


@lru_cache
def has_bf16(device: str) -> bool:
    """Whether bfloat16 matrix products are clearly faster than float32 ones, on a CPU by trying both.

    The instruction set does not decide it: AMX tiles are three to four times as fast as float32, AVX-512 bfloat16 is
    2.4 times as fast on one processor and half as fast on another.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # In turns, for a tenth of a second and more, so that what else the machine does meets both; the least time counts.
    both = torch.float32, torch.bfloat16
    squares = {dtype: torch.ones(512, 512, dtype=dtype) for dtype in both}
    taken: dict[torch.dtype, list[float]] = {dtype: [] for dtype in both}
    began = time.perf_counter()
    while len(taken[torch.bfloat16]) < 6 or time.perf_counter() - began < 0.1:
        for dtype, square in squares.items():
            before = time.perf_counter()
            square @ square
            taken[dtype].append(time.perf_counter() - before)
    return min(taken[torch.float32][1:]) > 1.5 * min(taken[torch.bfloat16][1:])


def _facts(source: Source, device: str, num_train: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "images_listed": source.num_listed,
        "images_usable": len(source),
        "images_trained_on": num_train,
        "data_fingerprint": source.fingerprint,
        "labels_fingerprint": digest(source.labels, source.targets),
        "classes": list(source.classes) if source.classes else None,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "processes": launched()[0],
        "versions": {
            n: metadata.version(n) for n in ("byol", "torch", "torchvision", "timm", "lightning-fabric", "numpy")
        },
        "python": platform.python_version(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this package's own checkout, or None where it was installed from a wheel."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
