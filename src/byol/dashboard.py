"""A run's numbers on Weights & Biases too, through Lightning's logger: where a person asks, and no run ends for it."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from byol.files import read_json, write_json
from byol.run import Run

IDENTITY = "wandb.json"
"""Beside a run: under which id it is known there, so that a resumed one goes on as the same."""
NEEDED = {"wandb": "wandb", "pytorch_lightning": "pytorch-lightning"}
"""Module -> package."""
FINISH_SECONDS = 300.0
"""How long the end of a run waits for what is not uploaded yet."""


def check_project(project: str) -> None:
    """ValueError, in one line, where PROJECT or ENTITY/PROJECT is no name, or what it takes is not installed."""
    if not re.fullmatch(r"([\w.-]+/)?[^/\\#?%:\s][^/\\#?%:]{0,127}", project) or not project.isprintable():
        raise ValueError(f"--wandb {project!a} is no project; give PROJECT or ENTITY/PROJECT, without / \\ # ? % :")
    if any(importlib.util.find_spec(module) is None for module in NEEDED):
        raise ValueError(
            f"--wandb needs packages that are not installed; run `pip install {' '.join(NEEDED.values())}`"
        )


def check_login() -> None:
    """ValueError, in one line, where numbers could not be sent: no key is known here, and it is not offline."""
    # Its own lines would stand between ours, and a question would wait for an answer.
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ValueError(
            "--wandb knows no API key here; run `wandb login` once, or set WANDB_API_KEY, or WANDB_MODE=offline"
        )


class Dashboard:
    """Of one run, in its first process. What goes wrong is said once, and from then on it is left out."""

    def __init__(self, project: str, directory: Path, run: Run, say: Callable[[str], None]) -> None:
        self._say = say
        self._logger: Any = None
        entity, _, name = project.rpartition("/")
        identity = _identity(directory)
        self._try(lambda: self._begin(entity or None, name, identity, directory, run))

    def _begin(self, entity: str | None, project: str, identity: str, directory: Path, run: Run) -> None:
        import wandb
        from pytorch_lightning.loggers import WandbLogger

        quiet = wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS)
        self._logger = WandbLogger(
            project=project, entity=entity, id=identity, name=directory.name, save_dir=directory, settings=quiet
        )
        self._logger.log_hyperparams(asdict(run))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._try(lambda: self._logger.log_metrics(numbers, step))

    def close(self) -> None:
        """Send what is left, and let go."""
        self._try(lambda: self._logger.experiment.finish())
        self._logger = None

    def _try(self, call: Callable[[], Any]) -> None:
        if self._say is _said:
            return
        try:
            call()
        except Exception as error:  # a network, a server, a full disk: each in its own way
            self._say(f"W&B gets no more of this run: {' '.join(str(error).split())[:200] or type(error).__name__}")
            self._say = _said


def _said(line: str) -> None: ...


def _identity(directory: Path) -> str:
    """The id under which a run is known there, a new one where there is none."""
    path = directory / IDENTITY
    if path.exists():
        found = read_json(path).get("id")
        if not isinstance(found, str) or not re.fullmatch(r"[a-z0-9]{1,64}", found):
            raise ValueError(f"{path} is damaged: its id is none; remove it, and the run gets a new one")
        return found
    new = secrets.token_hex(4)
    write_json(path, {"id": new})
    return new
