"""Checkpoints: safetensors for tensors, JSON for the rest, so that loading one cannot run code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

KEEP = 2


def save(directory: Path, step: int, module: nn.Module, optimizer: Optimizer) -> Path:
    """Write the state after `step` optimizer steps under a temporary name, then rename; keep the last two."""
    from safetensors.torch import save_file

    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"optimizer.{index}.{name}"] = value
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:09d}.safetensors"
    temporary = path.with_suffix(f".{uuid4().hex}.tmp")  # several processes may save one state
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        temporary,
        metadata={"step": str(step), "scalars": json.dumps(scalars)},
    )
    temporary.replace(path)
    for old in _all(directory)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def latest(directory: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = _all(directory)
    return found[-1] if found else None


def _all(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob("step-*.safetensors") if re.fullmatch(r"step-\d{9}", p.stem))


def tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with `prefix`, without it. The networks' are below "module."."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {n.removeprefix(prefix): file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118


def load(path: Path, module: nn.Module, optimizer: Optimizer) -> int:
    """Restore what `save` wrote; returns the number of optimizer steps done."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    prefix = "module."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Any]] = {}
    entries = {
        **{k: v for k, v in tensors.items() if not k.startswith(prefix)},
        **json.loads(metadata["scalars"]),
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
    return int(metadata["step"])
