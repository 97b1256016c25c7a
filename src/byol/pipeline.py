"""From a folder of images to a run directory with a trained backbone."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from byol import checkpoint, cluster, pictures
from byol.capacity import largest_batch
from byol.dashboard import Dashboard, check_login, check_project
from byol.data import manifest
from byol.data.decode import Unusable
from byol.data.folder import NOT_AN_IMAGE
from byol.data.labels import with_labels
from byol.data.loader import Loader, Normalization, fits_memory, load_pixels, looked_at
from byol.data.open import Images, open_source
from byol.data.source import DataError, Range, Skipped, Source, measured
from byol.data.tiles import tiled
from byol.export import DESCRIPTION, WEIGHTS
from byol.files import is_free, json_lines, only_one, sweep, write_text
from byol.journal import Progress
from byol.launch import launched, launched_job, restarted
from byol.methods import uses_labels
from byol.metrics import METRICS, SKIPPED
from byol.names import PRETRAINED
from byol.networks import refusal
from byol.options import Options
from byol.parallel import agreed, everywhere, lost, rank, together, world_size
from byol.plan import chosen_views, continued, device_of, image_size, plan
from byol.repeat import Repeat
from byol.run import RUN, Run
from byol.signals import Asked, at_once, ignored
from byol.train import CHECKPOINTS, Budget, Interrupted, Training
from byol.views import recipes
from byol.views.view import View, describe

TRIAL_SECONDS = 1.0
"""Of steps on a copy, before the first one: they say how long a run takes."""


class Observer(Protocol):
    """Who is told what happens while it happens. warn: what a person should read, even one who wants to see little.
    begun: the run's directory is there, and its first step is next."""

    def say(self, line: str) -> None: ...
    def warn(self, line: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def working(self, what: str, done: int, total: int) -> None: ...
    def planned(self, run: Run, lines: list[tuple[str, str]]) -> None: ...
    def begun(self, run: Run, source: Source, pixels: Tensor | None) -> None: ...
    def progress(self, progress: Progress) -> None: ...


class Silent:
    """An observer for programs."""

    def say(self, line: str) -> None: ...
    def warn(self, line: str) -> None:
        self.say(line)

    def loading(self, done: int, total: int) -> None: ...
    def working(self, what: str, done: int, total: int) -> None: ...
    def planned(self, run: Run, lines: list[tuple[str, str]]) -> None: ...
    def begun(self, run: Run, source: Source, pixels: Tensor | None) -> None: ...
    def progress(self, progress: Progress) -> None: ...


def open_for_training(
    data: Images,
    observer: Observer,
    labels: str | None = None,
    *,
    channels: int | None = None,
    value_range: Range | tuple[float, float] | None = None,
    streams: bool = False,
    tile: int = 0,
    max_bad: float = 1.0,
) -> tuple[Source, Tensor | None]:
    """The usable images of a source, and their pixels where they fit in memory. labels: a file that names them.
    channels, streams: see `open_source`. value_range: of deep images, for each channel or one for all; measured by
    default. tile: see `tiled`, 0 for whole images. max_bad: the share of unusable images above which it is a DataError;
    files that do not say they are images are none."""
    source = open_source(data, part="train", channels=channels, streams=streams)
    if source.deep and value_range is None:
        source = measured(source, partial(observer.working, "measuring values"))
    elif source.deep and value_range is not None:
        each = value_range if isinstance(value_range[0], tuple) else (value_range,) * source.channels
        source = source.with_range(each)
    elif value_range is not None:
        raise ValueError(
            f"value_range is of images that are not 8-bit gray or RGB, and those of {source.name} are; leave it out"
        )
    if labels is not None:
        source = with_labels(source, labels, say=observer.warn)
    if tile:
        source = tiled(source, tile)
    _check_bad(source, source.skipped, max_bad)
    if not fits_memory(source):
        return source, None
    source, pixels, skipped = load_pixels(source, observer.loading)
    source = replace(source, skipped=source.skipped + skipped)
    _check_bad(source, source.skipped, max_bad)
    return source, pixels


def _check_bad(source: Source, skipped: tuple[Skipped, ...], most: float) -> None:
    bad = [each for each in skipped if each[2] != NOT_AN_IMAGE]
    if len(bad) > most * (len(source) + len(bad)):
        _, name, reason = bad[0]
        raise DataError(
            f"{len(bad):,} of {len(source) + len(bad):,} images are unusable, more than --max-bad {most:g} allows; the "
            f"first: {name}: {reason}. Mend them, or allow more"
        )


def pretrain(
    data: Images,
    out: str | Path,
    options: Options | None = None,
    *,
    resume: bool = False,
    repeat: Repeat | None = None,
    wandb: str | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> Run:
    """Train on the images of `data` and write a run directory at `out`. Returns the run.

    data: what `open_source` opens: a folder, a file, or images in memory, [N, H, W], [N, H, W, C] or [N, C, H, W].
    options: what to decide by hand; the rest follows from the data. settings: fields of `Options`, in place of what
    `options` says: pretrain("folder", "run", method="vicreg", epochs=5), see `Options.changed`. resume: go on from the
    last checkpoint in `out`, on the same data, with the settings written there; `epochs` or `steps` make it longer, see
    `continued`. So does a run that its launcher starts again. repeat: the run that `options` are of; on other data than
    its own it is begun only where it says so, and what differs from it is told. wandb: a project of W&B, or
    ENTITY/PROJECT, that gets the numbers too. observer: is told how it goes; a `byol.console.Terminal` shows it.
    ValueError, before anything is written, for what a person can set right.
    """
    options = (options or Options()).changed(settings).checked()
    directory = Path(out)
    if launched()[0] > 1:
        cluster.fabric(device_of(options), timeout=options.timeout)  # the processes meet
    observer = observer if observer is not None and rank() == 0 else Silent()
    resume = agreed(resume or (restarted() and (directory / RUN).is_file()))
    with at_once(), ExitStack() as held:
        try:
            together(lambda: _check_place(data, directory, resume))
            if wandb is not None:
                check_project(wandb)
                together(lambda: check_login() if rank() == 0 else None)
            if resume:
                together(lambda: held.enter_context(_held(directory, observer)))
            return _pretrain(data, directory, options, resume, repeat, wandb, observer, held)
        except Asked as asked:
            if rank() > 0:
                raise SystemExit(128 + asked.number) from None
            how = "--resume goes on" if (directory / RUN).is_file() else "the same command starts it again"
            ended = Interrupted(f"{asked} while nothing was trained; {how}", asked.number)
        except Interrupted as interrupted:
            ended = interrupted
        with ignored():
            if launched_job() is not None:
                observer.say(str(ended))  # what puts a job back ends it before another line
            done = cluster.requeue(ended.number)
        raise ended if done is None else Interrupted(f"{ended}; {done}", ended.number)


def _pretrain(
    data: Images,
    directory: Path,
    options: Options,
    resume: bool,
    repeat: Repeat | None,
    wandb: str | None,
    observer: Observer,
    held: ExitStack,
) -> Run:
    resumed = together(lambda: Run.read(directory / RUN)) if resume else None
    how = how_to_open(options if resumed is None else resumed)
    max_bad = options.max_bad if resumed is None else resumed.max_bad
    source, pixels = together(lambda: open_for_training(data, observer, **how, max_bad=max_bad))
    _check_alike(source)
    begin: Path | None = None
    asked = options if repeat is None or not repeat.exactly else repeat.asked()
    if resumed is not None:
        found = together(lambda: checkpoint.newest_whole(directory / CHECKPOINTS) if rank() == 0 else (None, []))
        begin = agreed(found[0])
        step = 0 if begin is None else checkpoint.step_of(begin)
        run = agreed(together(lambda: _continued(directory, resumed, options, source, step)))
        for aside in agreed(together(lambda: [checkpoint.set_aside(path) for path in found[1]])):
            observer.warn(f"{aside}: a checkpoint that is damaged; going on from the one before it")
    else:
        if repeat is not None and not repeat.elsewhere:
            together(lambda: _check_same(data, source, repeat))
        if options.auto_batch:
            options = largest_batch(options, source, pixels, observer.say)
        # A budget of time becomes steps once the rate is known; until then one a second stands for them.
        run = _planned(asked, options, math.ceil(options.budget) if options.budget else None, source, pixels)
    budget = None if resume or options.budget is None else Budget(options.budget, time.perf_counter())
    # How many steps fit is worth a twentieth of the time to find out.
    trial = TRIAL_SECONDS if budget is None else min(10.0, max(TRIAL_SECONDS, budget.seconds / 20))
    training, rate = ready(run, source, pixels, directory, trial)
    if budget is not None:
        left = budget.seconds * (1 - budget.spent())
        steps = agreed(max(1, int(left * rate / run.images_per_step)))
        run = _planned(asked, options, steps, source, pixels)
        del training  # before the next one takes as much memory again
        training, _ = ready(run, source, pixels, directory, 0.0)
    lines = summary(run, source, training, rate)
    observer.planned(run, lines)
    if repeat is not None:
        for line in repeat.differs(run) or [f"nothing differs from {repeat.path}"]:
            observer.say(line)
    if not resume:
        together(lambda: held.enter_context(_held(directory, observer)))
        together(lambda: _check_place(data, directory, resume))  # another run may have been quicker
    together(lambda: _write_start(directory, run, source, lines))
    observer.begun(run, source, pixels)
    board = together(lambda: Dashboard(wandb, directory, run, observer.warn) if wandb and rank() == 0 else None)
    training.fit(observer.progress, begin=begin, budget=budget, say=observer.warn, dashboard=board)
    if training.run.replan is not None and budget is not None and rank() == 0:
        begun, first = training.run.replan
        again = f"--steps {training.run.total_steps} --set replan={begun},{first}"
        with (directory / "plan.txt").open("a", encoding="utf-8") as file:
            file.write(f"planned again: after {begun:,} of {first:,} steps; {again} in place of --budget repeats it\n")
        observer.say(f"The budget made {training.run.total_steps:,} steps; {again} in place of --budget repeats them.")
    return training.run


def how_to_open(given: Options | Run) -> dict[str, Any]:
    """The arguments of `open_for_training` that options ask for, or that a run had."""
    return {
        "labels": given.labels,
        "channels": given.channels,
        "value_range": given.value_range,
        "streams": bool(given.streams) and not given.tile,
        "tile": given.tile or 0,
    }


def _planned(asked: Options, options: Options, steps: int | None, source: Source, pixels: Tensor | None) -> Run:
    """The run, in all processes. asked: what a person decided, options: with what followed from it. steps: in place of
    a budget."""
    planned = replace(options, steps=steps, budget=None) if steps else options
    return agreed(together(lambda: replace(plan(planned, source, pixels), options=asked.given())))


def _held(directory: Path, observer: Observer) -> AbstractContextManager[None]:
    """The directory is this run's, in all its processes, until it ends. ValueError where it is another's."""
    return only_one(directory, "another run", observer.warn) if rank() == 0 else nullcontext()


def _check_place(data: Images, directory: Path, resume: bool) -> None:
    """ValueError where a run cannot begin, or go on, in a directory."""
    place = None if isinstance(data, np.ndarray) else Path(data)
    if place is not None and place.is_dir() and directory.resolve().is_relative_to(place.resolve()):
        raise ValueError(f"{directory} lies inside {data}, where all files count as data; choose an --out elsewhere")
    if resume and not (directory / RUN).is_file():
        raise ValueError(f"{directory} holds no {RUN} to resume from; leave out --resume to start a run there")
    if not resume and not is_free(directory):
        raise ValueError(f"{directory} exists already; choose another --out, or add --resume to go on with it")
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} cannot be written to; choose another --out, or allow it")


def _continued(directory: Path, run: Run, options: Options, source: Source, step: int) -> Run:
    """The run that goes on after `step` steps: as it was, or with more of them. ValueError where the data or what the
    options ask for is not what it was."""
    changed = manifest.changes(directory, source, run)
    if changed is not None:
        raise ValueError(
            f"{source.name} is not what this run began with ({run.data}): {changed}; put that back, or start a new run "
            "with another --out"
        )
    return continued(run, options, step)


def _check_same(data: Images, source: Source, repeat: Repeat) -> None:
    """ValueError where the data are not those of a run that is to be repeated on them."""
    changed = manifest.changes(repeat.path.parent, source, repeat.run)
    if changed is not None:
        raise ValueError(
            f"{data} is not what the run of {repeat.path} was trained on: {changed}; put that back, or name DATA to "
            "train on what there is"
        )


def _write_start(directory: Path, run: Run, source: Source, lines: list[tuple[str, str]]) -> None:
    """What a run's directory holds before its first step; where a run goes on, what it lacks of it."""
    if rank() > 0:
        return
    sweep(directory, RUN, WEIGHTS, DESCRIPTION, "plan.txt", manifest.MANIFEST)
    known = Run.read(directory / RUN) if (directory / RUN).exists() else None
    plan_file = directory / "plan.txt"
    if known != run:
        plan_file.unlink(missing_ok=True)
        run.write(directory / RUN)
    if not plan_file.exists():
        write_text(plan_file, "".join(f"{k}: {v}\n" for k, v in lines))
    if not (directory / SKIPPED).exists():
        _write_skipped(directory, source)
    if not (directory / manifest.MANIFEST).exists():
        manifest.write(directory, source)


def _check_alike(source: Source) -> None:
    """ValueError where the processes of a run do not find the same data."""
    first = agreed((source.fingerprint, len(source)))

    def check() -> None:
        if first != (source.fingerprint, len(source)):
            raise ValueError(
                f"{source.name} has {len(source):,} images here, not the {first[1]:,} that the first process found"
            )

    together(check)


def _write_skipped(directory: Path, source: Source) -> None:
    lines = ({"step": 0, "id": image, "name": name, "reason": reason} for image, name, reason in source.skipped)
    write_text(directory / SKIPPED, "".join(json.dumps(line) + "\n" for line in lines))


def ready(run: Run, source: Source, pixels: Tensor | None, directory: Path, seconds: float) -> tuple[Training, float]:
    """The training, and the images/s a copy of it reached in about `seconds`. ValueError where the networks do not suit
    the images."""
    try:
        training = together(lambda: Training(run, source, pixels, directory))
        return training, training.measure_rate(seconds) if seconds else 0.0
    except torch.OutOfMemoryError:
        raise ValueError(
            f"{run.batch_size} images of {run.image_size} px at a time do not fit in the memory of {run.device}; use a "
            "smaller --batch-size, and --accumulate to make up for it"
        ) from None
    except (TypeError, RuntimeError, AssertionError, IndexError, ArithmeticError) as error:
        if lost(error):
            raise everywhere(ValueError("another process of this run ended, as its own line says")) from None
        if ":" in run.method:  # a method of one's own: its author needs the traceback
            raise
        raise everywhere(ValueError(refusal(run, error))) from error


def summary(run: Run, source: Source, training: Training, rate: float) -> list[tuple[str, str]]:
    """What the run will do, for people: printed, and kept as plan.txt. rate: images/s."""
    seconds = run.total_steps * run.images_per_step / rate
    epochs = run.total_steps * run.images_per_step / training.num_train
    skipped = f", {len(source.skipped):,} skipped" if source.skipped else ""
    held = f"; {training.num_held:,} held out for diagnosis" if training.num_held else "; none held out"
    arguments = ", ".join(f"{k}={v}" for k, v in run.method_args.items())
    structure = ", ".join(f"{k}={v}" for k, v in run.backbone_args.items())
    stem = "3x3 stem without max-pool (small images)" if run.stem != "original" else "its own stem"
    lines = [
        (
            "data",
            f"{source.name}: {len(source):,} images of {source.height} x {source.width} px{skipped}{held}",
        ),
        ("method", run.method + (f" ({arguments})" if arguments else "")),
        ("backbone", f"{run.backbone}{f' ({structure})' if structure else ''}, {stem}"),
        ("parameters", f"{training.parameters():,} trained"),
        ("views", f"{run.image_size} px, {run.channels} channel{'s' if run.channels > 1 else ''}"),
        *((("values", _values(run.value_range)),) if run.value_range else ()),
        *((f"view {i}", describe(View(**fields))) for i, fields in enumerate(run.views, start=1)),
        ("steps", f"{run.total_steps:,} of {run.images_per_step} images = {epochs:.1f} epochs"),
        ("warm-up", f"{run.warmup_steps:,} steps"),
        *((("batch rule", ", ".join(run.facts["moved"])),) if run.facts.get("moved") else ()),
        (
            "optimizer",
            f"{run.optimizer}, learning rate {run.peak_lr:.4g} (= {run.base_lr:g} x {run.images_per_step}/256), "
            f"weight decay {run.weight_decay:g}"
            + (f"; {' and '.join(run.constant_lr)} at a constant rate" if run.constant_lr else "")
            + "".join(f"; {part} at {scale:g} times the rate" for part, scale in run.lr_scales.items())
            + (f"; biases and norms at {run.bias_lr:g} of the rate" if run.bias_lr != 1 else ""),
        ),
        (
            "precision",
            f"{run.precision} on {run.device}"
            + ("" if training.arithmetic is recipes.EAGER else ", views compiled")
            + (f", networks compiled ({run.compile})" if run.compile else "")
            + (f", in {world_size()} processes" if world_size() > 1 else ""),
        ),
        ("expected", f"{rate:,.0f} images/s, about {duration(seconds)}"),
    ]
    if training.no_compiler:
        lines.append(
            ("note", f"no working C++ compiler ({training.no_compiler}): the views are the same, and slower to make")
        )
    if (used := training.loader.workers_used()) < run.workers and training.loader.streams:
        lines.append(
            (
                "note",
                f"{used} of {run.workers} workers read: they share the {training.loader.streams} streams of a process "
                f"evenly; --workers {used}, or --set streams=N with a multiple of {run.workers * world_size()}",
            )
        )
    stem_is_new = run.stem != "original" and isinstance(training.method.encoder.model.conv1, nn.Conv2d)
    if run.init is not None and run.init.startswith(PRETRAINED) and stem_is_new:
        lines.append(("note", "the 3x3 stem is new: of the pretrained weights all but the first layer are used"))
    if run.accumulate > 1 and training.method.across_batch:
        lines.append(
            (
                "note",
                f"{run.method} compares the images of one forward pass: it sees batches of {run.batch_size}, and "
                f"{run.accumulate} of them a step are not one of {run.images_per_step}",
            )
        )
    if uses_labels(type(training.method)):
        lines.append(("note", "this method learns from the labels: its results are not self-supervised ones"))
    if not source.is_rgb:
        instead = "; brightness and contrast change channel by channel" if run.channels > 1 else ""
        lines.append(
            (
                "note",
                f"the images are not RGB: hue, saturation and grayscale changes are left out of the views{instead}",
            )
        )
    return lines


def _values(value_range: Range) -> str:
    """Which values are black and white, for people."""
    shown = ", ".join(f"{low:.5g} to {high:.5g}" for low, high in value_range[:6])
    return f"0 to 1 are {shown}" + (f" and so on, of {len(value_range)} channels" if len(value_range) > 6 else "")


def duration(seconds: float) -> str:
    """A time span for people: 45 s, 12 min, 3.4 h, 2.1 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if name != "h" else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} days"


def facts_for_json(run: Run, directory: Path) -> dict[str, Any]:
    """What `pretrain --json` prints."""
    last: dict[str, Any] = {}
    for line in json_lines(directory / METRICS):
        last |= line
    return {
        "run": str(directory),
        "backbone": str(directory / "backbone.safetensors"),
        "steps": run.total_steps,
        "last_metrics": last,
    }


def sample_views(
    source: Source,
    pixels: Tensor | None,
    views: tuple[View, ...],
    size: int,
    *,
    seed: int,
    num_images: int = 8,
    epochs: int = 3,
) -> tuple[list[int], list[np.ndarray], list[Tensor]]:
    """(ids of images evenly spaced over a source, the images [H, W, C] uint8, and for each epoch and view [N, C, S, S]
    float in [0, 1], S being `size`). An image that cannot be read is left out for the next one."""
    loader = Loader(
        source,
        views,
        pixels=pixels,
        size=size,
        batch_size=num_images,
        normalization=Normalization((0.0,) * source.channels, (1.0,) * source.channels),
        seed=seed,
    )
    originals: dict[int, np.ndarray] = {}
    for start in looked_at(source, num_images).tolist():
        for row in range(start, len(source)):  # the next one where an image cannot be read
            with contextlib.suppress(Unusable):
                originals.setdefault(row, source.picture(int(source.ids[row])))
                break
    rows = torch.tensor(list(originals))
    drawn = [view for epoch in range(epochs) for view in loader.batch_of(rows, torch.full_like(rows, epoch)).views]
    return [int(source.ids[row]) for row in originals], list(originals.values()), drawn


def views_sheet(data: str, path: Path, options: Options, *, num_images: int = 8, epochs: int = 3) -> Path:
    """Draw what the network will see: images, and pairs of their views over some epochs."""
    options = options.checked()
    source, pixels = open_for_training(data, Silent(), **how_to_open(options))
    chosen = chosen_views(options, source)
    size = image_size(options, source)
    _, originals, views = sample_views(
        source, pixels, chosen, size, seed=options.seed, num_images=num_images, epochs=epochs
    )
    name = f"{source.name}: what {options.method} sees at {size} px in {epochs} epochs"
    if source.channels not in (1, 3):
        name += f"; the first {min(3, source.channels)} of {source.channels} channels as red, green and blue"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.views_grid(originals, views, path, title=name, views_per_epoch=len(chosen))
    return path
