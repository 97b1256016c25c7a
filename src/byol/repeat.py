"""A run once more, from its run.json: its settings as options again, and what differs where something was overridden.

Nothing overridden, every setting of the run is given to `plan`, also those that followed from data or machine. Else
what was decided for the run stays decided, what the machine chose stays chosen, and the rest follows anew.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from byol.options import Options
from byol.run import Run
from byol.views.view import View

MACHINE = ("device", "precision", "workers")
"""What a machine chooses where a person does not."""
COMPARED = ("images_usable", "data_fingerprint", "processes", "threads", "device_name", "python", "git_commit")
"""Facts on which the last bits of a result may depend; so do the versions."""


@dataclass(frozen=True)
class Repeat:
    """A run to do again. path: of its run.json. exactly: nothing was given beside it. elsewhere: other data, or another
    place of them, were given."""

    path: Path
    run: Run
    exactly: bool
    elsewhere: bool = False

    def options(self) -> Options:
        """What to start from. ValueError, in one line, where the file does not say it."""
        try:
            whole = pinned(self.run)  # says what is damaged, also where it is not needed
            return whole if self.exactly else decided(self.run)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def differs(self, run: Run) -> list[str]:
        """What another run has otherwise, a line each."""
        return differences(self.run, run)

    def asked(self) -> Options:
        """What its own run.json says was decided by hand."""
        return replace(Options.of(self.run.options), fixed=tuple(self.run.options))


def check_trusted(run: Run, method: str | None) -> None:
    """ValueError where a run's file names a module as its method that `method` does not: its code would run."""
    if ":" in run.method and method != run.method:
        raise ValueError(
            f"this run's method is a module, whose code would run; if you trust it, add --method {run.method}"
        )


def decided(run: Run) -> Options:
    """What was decided for a run by hand or by its recipe, with the numbers that it came to: of a budget its steps, of
    --auto-batch its batch. ValueError where its file does not say it."""
    asked = Options.of(run.options)
    values = _settings(run)
    own = {name: values[name] for name in (*run.options, *MACHINE) if name in values and name != "views"}
    if asked.budget is not None or asked.steps is not None:
        own["steps"] = run.total_steps
    if asked.auto_batch:
        own |= {"batch_size": run.batch_size, "accumulate": run.accumulate}
    if asked.method_args:
        own["method_args"] = {name: run.method_args.get(name, value) for name, value in asked.method_args.items()}
    if asked.warmup_epochs is not None:
        own.pop("warmup_steps", None)
    again: dict[str, Any] = {"method": run.method, "extended": run.extended, "replan": run.replan}
    return replace(asked, **{**again, **own, "budget": None, "auto_batch": False})


def pinned(run: Run) -> Options:
    """Options that leave nothing to the rules of docs/defaults.md."""
    try:
        views = tuple(View(**fields) for fields in run.views)
    except TypeError as error:
        raise ValueError("the views are damaged, or of another version") from error
    length: dict[str, Any] = {"epochs": None, "budget": None, "steps": run.total_steps}
    batch: dict[str, Any] = {"auto_batch": False, "warmup_epochs": None, "view_changes": {}}
    return replace(Options.of(run.options), **_settings(run), **length, **batch, views=views)


def _settings(run: Run) -> dict[str, Any]:
    """The fields of a run that options have too. What the images are follows from them, and is left out."""
    names = {field.name for field in dataclasses.fields(Options)} - {"options", "views", "channels", "value_range"}
    found = {field.name: getattr(run, field.name) for field in dataclasses.fields(Run) if field.name in names}
    return found | {"tile": run.tile or None, "streams": run.streams or None}


def differences(before: Run, after: Run) -> list[str]:
    """What a run has otherwise than another, a line each: `name: was -> is`; last what their machines have."""
    lines = []
    epochs = [_epochs(run) for run in (before, after)]
    if epochs[0] != epochs[1]:
        lines.append(_line("epochs", *epochs))
    for field in dataclasses.fields(Run):
        if field.name not in ("options", "facts"):
            lines += _compared(field.name, getattr(before, field.name), getattr(after, field.name))
    known, now = before.facts, after.facts
    for name in COMPARED:
        if known.get(name) is not None and now.get(name) is not None:
            lines += _compared(name, known[name], now[name])
    if isinstance(known.get("versions"), dict):
        lines += _compared("version of", known["versions"], now["versions"])
    return lines


def _compared(name: str, before: Any, after: Any) -> list[str]:
    """The lines for one value; of dictionaries and of views one for each part that differs."""
    before, after = (json.loads(json.dumps(value)) for value in (before, after))
    if before == after:
        return []
    if name == "views" and len(before) == len(after):
        return [
            line for i, both in enumerate(zip(before, after, strict=True), 1) for line in _compared(f"view {i}", *both)
        ]
    if isinstance(before, dict) and isinstance(after, dict):
        own = "" if name == "method_args" else f"{name} "
        return [line for key in {**before, **after} for line in _compared(own + key, before.get(key), after.get(key))]
    return [_line(name, before, after)]


def _line(name: str, before: Any, after: Any) -> str:
    text = f"{name}: {_shown(before)} -> {_shown(after)}"
    return text if text.isprintable() else ascii(text)


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _epochs(run: Run) -> float | None:
    images = run.facts.get("images_trained_on")
    if not isinstance(images, int) or images < 1:
        return None
    return float(f"{run.total_steps * run.images_per_step / images:.3g}")
