"""The files that other tools load: backbone.safetensors, a timm state dict, and backbone.json, what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byol.checkpoint import write_tensors
from byol.encoder import Encoder, EncoderSpec
from byol.files import write_json
from byol.methods import get, uses_labels
from byol.names import PRETRAINED, split_tag
from byol.run import Run

WEIGHTS = "backbone.safetensors"
DESCRIPTION = "backbone.json"
FORMAT = 1
"""Of backbone.json: raised when what it says changes its meaning."""


def save_backbone(encoder: Encoder, run: Run, directory: Path, *, step: int) -> None:
    """Write the encoder's timm state dict and its description, each by way of a temporary name."""
    write_tensors(
        directory / WEIGHTS, {k: v.detach().cpu().contiguous() for k, v in encoder.model.state_dict().items()}
    )
    description = {
        "format": FORMAT,
        **encoder.spec.to_dict(),
        "feature_dim": encoder.dim,
        "padding": "symmetric (PyTorch), not TensorFlow's SAME",
        "normalization": {"mean": run.mean, "std": run.std, "of": "images in [0, 1], channels first"},
        **({"value_range": run.value_range} if run.value_range else {}),
        "evaluation_input": f"centre square of 0.875 x the shorter side, bicubic to {run.image_size} px; "
        "smaller ones are enlarged whole, and those of this size taken as they are",
        "method": run.method,
        "used_labels": uses_labels(get(run.method)),
        "steps": step,
        "seed": run.seed,
    }
    write_json(directory / DESCRIPTION, description)


def read_description(run_directory: Path) -> dict[str, Any]:
    """backbone.json of a run. FileNotFoundError, in one line, where there is none; ValueError where a newer version of
    this package wrote it."""
    path = run_directory / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{run_directory} holds no {DESCRIPTION}; is it the --out of a finished pretrain?")
    description = json.loads(path.read_text("utf-8"))
    if description.get("format", FORMAT) > FORMAT:
        raise ValueError(
            f"{path} has format {description['format']} and this version reads up to {FORMAT}; install a newer byol"
        )
    return description


def range_of(description: dict[str, Any]) -> tuple[tuple[float, float], ...] | None:
    """The range of values a backbone was trained with, of images that are not 8-bit gray or RGB; else None."""
    found = description.get("value_range")
    return None if found is None else tuple((low, high) for low, high in found)


def spec_of(description: dict[str, Any]) -> EncoderSpec:
    return EncoderSpec(**{k: description[k] for k in ("name", "image_size", "channels", "stem", "args")})


def load(run_directory: str | Path) -> Encoder:
    """The encoder of a run, in evaluation mode: images [B, C, S, S], normalised as backbone.json says -> [B, dim].

    The weights are read from safetensors, which cannot run code.
    """
    from safetensors.torch import load_file

    directory = Path(run_directory)
    encoder = Encoder(spec_of(read_description(directory)))
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"{directory} holds no {WEIGHTS}; copy it there beside {DESCRIPTION}")
    encoder.model.load_state_dict(load_file(directory / WEIGHTS))
    return encoder.eval()


def start_from(encoder: Encoder, init: str) -> Encoder:
    """The encoder with the weights that `init` names: a run, a .safetensors file, or timm:NAME.TAG, downloaded by timm.

    Classifier weights in a file are ignored; anything else that does not fit is a ValueError.
    """
    if init.startswith(PRETRAINED):
        try:
            return Encoder(encoder.spec, pretrained_tag=split_tag(init)[1])
        except Exception as error:  # timm and the hub raise many kinds; a person needs one line
            reason = str(error).splitlines()[0]
            raise ValueError(f"init={init!r}: timm cannot load {encoder.spec.name} with it: {reason}") from error
    from safetensors.torch import load_file

    path = Path(init)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"init={init!r} is neither a run nor a safetensors file; or use timm:NAME.TAG")
    try:
        found = load_file(path)
    except Exception as error:
        raise ValueError(f"init={init!r} is not a safetensors file: {error}") from error
    own = encoder.model.state_dict()
    found = {k: v for k, v in found.items() if k.split(".")[0] not in ("fc", "classifier", "head") or k in own}
    _check_fit(found, own, init)
    encoder.model.load_state_dict(found)
    return encoder


def _check_fit(found: dict[str, Tensor], own: dict[str, Tensor], init: str) -> None:
    wrong = [f"{k} is missing" for k in own if k not in found] + [f"{k} is unknown" for k in found if k not in own]
    wrong += [
        f"{k} has shape {tuple(v.shape)}, not {tuple(own[k].shape)}"
        for k, v in found.items()
        if k in own and v.shape != own[k].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"init={init!r} does not fit the backbone: {wrong[0]}{more}")


def parameter_count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
