"""A step of a run once more: its batch, what the passes give, and where numbers go wrong."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from byol import checkpoint, pictures
from byol.data import manifest
from byol.data.decode import Unusable
from byol.data.loader import Batch
from byol.files import read_json, write_json
from byol.options import Options
from byol.pipeline import Observer, how_to_open, open_for_training, ready
from byol.plan import device_of
from byol.repeat import check_trusted
from byol.run import RUN, Run
from byol.train import CHECKPOINTS, Training, failure

PICTURED = 8
"""Images of the batch that are drawn."""


def replay(
    directory: Path, step: int, data: str | None, observer: Observer, method: str | None = None
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Draw the batch of a step again and pass it through the networks as they were before it; no weight of the run is
    changed. Returns what was found, and the same in lines for people; both are also written, with a picture of the
    batch's views, to `replays/step-NNNNNNNNN` in the run's directory.

    step: the number of steps done before it. The networks are those that a step that failed kept, or those of the
    newest checkpoint before it, trained on from there. data: where the images lie now, if no longer where they did.
    method: the run's, where it is a module of its own.
    ValueError where there is no such step, or where the data are not what the run began with.
    """
    run = Run.read(directory / RUN)
    if not 0 <= step < run.total_steps:
        raise ValueError(f"step {step} is none of {directory}, whose steps are 0 to {run.total_steps - 1:,}")
    check_trusted(run, method)
    if run.device == "cuda" and not torch.cuda.is_available():
        run = replace(run, device=device_of(Options()))
    source, pixels = open_for_training(data or run.data, observer, **how_to_open(run))
    if (changed := manifest.changes(directory, source, run)) is not None:
        raise ValueError(f"{data or run.data} is not what this run began with: {changed}; put that back")
    training, _ = ready(run, source, pixels, directory, 0.0)
    failed = failure(directory, step)
    start = _restored(training, checkpoint.all_of(failed) + checkpoint.all_of(directory / CHECKPOINTS), step)
    training.module.train()
    batches = training.loader.batches(start * run.accumulate, (step + 1) * run.accumulate)
    for number in range(start, step):
        training.step(number, [next(batches) for _ in range(run.accumulate)])
        observer.working("steps before it", number + 1 - start, step - start)
    micro = [next(batches) for _ in range(run.accumulate)]
    ids = [image for batch in micro for image in batch.ids.tolist()]
    recorded = failed / "batch.json"
    if recorded.exists() and sorted(read_json(recorded)["ids"]) != sorted(ids):
        raise ValueError(f"{recorded} names other images than are drawn now; was it made by another version?")
    with _watched(training.networks) as first:
        taken = training.passes(step, micro)
    losses = {name: float(value) for name, value in taken.losses.items()}
    largest = {
        name: max((float(p.grad.abs().max()) for p in part.parameters() if p.grad is not None), default=0.0)
        for name, part in training.method.named_children()
    }
    wrong = training.wrong()
    found = {
        "run": str(directory),
        "step": step,
        **losses,
        "gradient_max": largest,
        "gradients_not_finite": wrong,
        "views_finite": all(bool(view.isfinite().all()) for batch in micro for view in batch.views),
        "first_not_finite": first[0] if first else None,
        "finite": not wrong and not first and all(map(math.isfinite, losses.values())),
        "ids": ids,
        "names": [source.name_of(image) for image in ids],
        "state_of_step": start,
    }
    place = directory / "replays" / failed.name
    place.mkdir(parents=True, exist_ok=True)
    picture = _picture(training, micro[0], place / "views.png", f"step {step} of {directory.name}")
    write_json(place / "replay.json", found | {"picture": str(picture)})
    return found | {"picture": str(picture)}, _lines(found, picture)


def _restored(training: Training, kept: list[Path], step: int) -> int:
    """Take the state of the last of them that is whole and has no more than `step` steps, if there is one; how many it
    has."""
    for path in sorted(kept, key=checkpoint.step_of, reverse=True):
        # A run that goes on forgets its older ones meanwhile.
        if checkpoint.step_of(path) <= step:
            with contextlib.suppress(checkpoint.Damaged, FileNotFoundError):
                return training.restore(path)
    return 0


class _watched:  # noqa: N801 (a context, named as one)
    """Within it, the list it gives gets the name of the first part whose output is not finite though its inputs are."""

    def __init__(self, networks: nn.Module) -> None:
        self._networks = networks
        self._found = list[str]()

    def __enter__(self) -> list[str]:
        named = [(name, part) for name, part in self._networks.named_modules() if not any(part.children())]
        self._hooks = [part.register_forward_hook(partial(self._look, name)) for name, part in named]
        return self._found

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, name: str, part: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if not self._found and isinstance(output, Tensor) and not output.isfinite().all():
            self._found.append(name)


def _picture(training: Training, batch: Batch, path: Path, title: str) -> Path:
    mean, std = (torch.tensor(each)[:, None, None] for each in (training.run.mean, training.run.std))
    source, originals, rows = training.loader.source, [], []
    for row, image in enumerate(batch.ids.tolist()):
        try:
            originals.append(source.picture(image))
        except Unusable:
            continue
        rows.append(row)
        if len(rows) == PICTURED:
            break
    views = [(view[rows].float().cpu() * std + mean).clamp(0, 1).nan_to_num() for view in batch.views]
    pictures.views_grid(originals, views, path, title=title, views_per_epoch=len(views))
    return path


def _lines(found: dict[str, Any], picture: Path) -> list[tuple[str, str]]:
    names = found["names"]
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    wrong = found["gradients_not_finite"]
    return [
        ("step", f"{found['step']:,}, with the networks as they were before it"),
        ("images", ", ".join(names[:5]) + more),
        ("views", "finite" if found["views_finite"] else "NOT FINITE: the images themselves hold such values"),
        ("loss", f"{found['loss']:.6g}"),
        ("largest gradient", ", ".join(f"{part} {value:.4g}" for part, value in found["gradient_max"].items())),
        (
            "not finite",
            "nothing"
            if found["finite"]
            else f"first after {found['first_not_finite'] or 'the forward pass'}; "
            f"{len(wrong):,} gradients{', first ' + wrong[0] if wrong else ''}",
        ),
        ("picture", str(picture)),
    ]
