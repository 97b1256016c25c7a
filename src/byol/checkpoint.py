"""Checkpoints: safetensors for tensors, JSON for the rest, so that loading one cannot run code.

A checkpoint has its name only once all of it is on the disk, and holds a checksum of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from byol.files import naming, replacing, sweep

_NAME = re.compile(r"step-(\d{9,})\.safetensors")


class Damaged(ValueError):
    """A file that is not, or no longer, what was saved."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, under its name once it is whole. OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
            temporary.chmod(mode)  # safetensors lets nobody else read what it writes
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save(
    directory: Path,
    step: int,
    module: nn.Module,
    optimizer: Optimizer,
    *,
    keep: int = 2,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the state after `step` optimizer steps, and forget all but the last `keep`. notes: what else is to be known
    then, as JSON holds it. OSError where it cannot be written: what was there is whole."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"optimizer.{index}.{name}"] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = {"step": step, "scalars": scalars, "notes": dict(notes or {})}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:09d}.safetensors"
    # One entry: several would lie in another order each time, and equal states are equal files.
    write_tensors(path, tensors, {"about": json.dumps({**about, "sha256": _digest(tensors, about)})})
    prune(directory, keep)
    return path


def prune(directory: Path, keep: int) -> None:
    """Forget all but the last `keep` checkpoints, and what killed writers left."""
    for old in all_of(directory)[:-keep]:
        old.unlink(missing_ok=True)
    sweep(directory, "step-*")


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and values, and of what else is known. tensors: on the CPU."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def all_of(directory: Path) -> list[Path]:
    """Every checkpoint in a directory, the one with the most steps last."""
    return sorted((p for p in directory.glob("step-*.safetensors") if _NAME.fullmatch(p.name)), key=step_of)


def step_of(path: Path) -> int:
    """How many optimizer steps were done, as the name of a checkpoint says."""
    found = _NAME.fullmatch(path.name)
    assert found is not None, "a checkpoint's name"
    return int(found[1])


def latest(directory: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = all_of(directory)
    return found[-1] if found else None


def newest_whole(directory: Path) -> tuple[Path | None, list[Path]]:
    """(the whole checkpoint with the most steps, the damaged ones that have more); Damaged where all are."""
    damaged = list[Path]()
    whole = None
    for path in reversed(all_of(directory)):
        try:
            _read(path)
        except Damaged:
            damaged.append(path)
        else:
            whole = path
            break
    if damaged and whole is None:
        raise Damaged(f"none of the {len(damaged)} checkpoints in {directory} is whole; start a new run elsewhere")
    return whole, damaged


def set_aside(damaged: Path) -> Path:
    """Take its name from a checkpoint, so that it is not one of the last that are kept; the new one."""
    return damaged.rename(f"{damaged}.damaged")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, what else is known) of a checkpoint that is what was saved, else Damaged."""
    from safetensors import SafetensorError, safe_open

    with naming(path), path.open("rb"):  # storage that does not answer, or may not, is no damage
        pass
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = about.pop("sha256")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} is no checkpoint, or a damaged one: {error}") from error
    if checksum != _digest(tensors, about):
        raise Damaged(f"{path} is not what was saved: its checksum differs")
    return tensors, about


def tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with `prefix`, without it; Damaged where it is not what was saved.
    The networks' are below "module."."""
    return {name.removeprefix(prefix): value for name, value in _read(path)[0].items() if name.startswith(prefix)}


def load(path: Path, module: nn.Module, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
    """Restore what `save` wrote; returns the number of optimizer steps done, and its notes. Damaged, with nothing
    changed, where the file is not what was saved."""
    tensors, about = _read(path)
    prefix = "module."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Any]] = {}
    entries = {
        **{k: v for k, v in tensors.items() if not k.startswith(prefix)},
        **about["scalars"],
    }
    for key, value in entries.items():
        _, index, name = key.split(".", 2)
        state.setdefault(int(index), {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                # In the parameter's memory format: fused optimizers read both as they lie.
                values[name] = torch.empty_like(parameters[index], dtype=value.dtype, device="cpu").copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return about["step"], about["notes"]
