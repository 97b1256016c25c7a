"""The files that other tools load: backbone.safetensors, a timm state dict, and backbone.json, what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byol.checkpoint import write_tensors
from byol.data.loader import Normalization
from byol.encoder import Encoder, EncoderSpec
from byol.files import read_json, write_json
from byol.kinds import fits
from byol.methods import get, uses_labels
from byol.names import PRETRAINED, split_tag
from byol.run import Padding, Run
from byol.trained import TrainedEncoder

WEIGHTS = "backbone.safetensors"
DESCRIPTION = "backbone.json"
MOST_DESCRIPTION_BYTES = 1 << 20
FORMAT = 2
"""Of backbone.json: raised when what it says changes its meaning. 2: with another padding than timm's; all else is
still written as 1, which earlier versions read."""
PADDINGS: dict[Padding, str] = {
    "symmetric": "symmetric (PyTorch), not TensorFlow's SAME",
    "SAME": "SAME (TensorFlow): with a stride, what is odd comes after; not symmetric (PyTorch)",
}


def save_backbone(encoder: Encoder, run: Run, directory: Path, *, step: int) -> None:
    """Write the encoder's timm state dict and its description, each by way of a temporary name."""
    about = {
        **({"value_range": run.value_range} if run.value_range else {}),
        "method": run.method,
        "used_labels": uses_labels(get(run.method)),
        "steps": step,
        "seed": run.seed,
    }
    write_backbone(encoder, directory, run.mean, run.std, about)


def write_backbone(
    encoder: Encoder, directory: Path, mean: Sequence[float], std: Sequence[float], about: dict[str, Any]
) -> None:
    """Write the two files of a backbone. mean, std: per channel, with which its images are normalised. about: what else
    its description says; `method`, `used_labels`, `steps` and `seed` are read by others."""
    write_tensors(
        directory / WEIGHTS, {k: v.detach().cpu().contiguous() for k, v in encoder.model.state_dict().items()}
    )
    spec = encoder.spec
    description = {
        "format": 1 if spec == replace(spec, padding="symmetric") and spec.stem in ("original", "3x3") else FORMAT,
        **spec.to_dict(),
        "feature_dim": encoder.dim,
        "padding": PADDINGS[spec.padding],
        "normalization": {"mean": mean, "std": std, "of": "images in [0, 1], channels first"},
        "evaluation_input": f"centre square of 0.875 x the shorter side, bicubic to {spec.image_size} px; "
        "smaller ones are enlarged whole, and those of this size taken as they are",
        **about,
    }
    write_json(directory / DESCRIPTION, description)


def read_description(run_directory: Path) -> dict[str, Any]:
    """backbone.json of a run. FileNotFoundError, in one line, where there is none; ValueError where a newer version of
    this package wrote it."""
    path = run_directory / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{run_directory} holds no {DESCRIPTION}; is it the --out of a finished pretrain?")
    if path.stat().st_size > MOST_DESCRIPTION_BYTES:
        raise ValueError(f"{path} is {path.stat().st_size:,} bytes, and no description of a backbone; copy it anew")
    try:
        description = read_json(path)
        newer = description.get("format", FORMAT) > FORMAT
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no description of a backbone; copy it anew") from error
    if newer:
        raise ValueError(
            f"{path} has format {description['format']} and this version reads up to {FORMAT}; install a newer byol"
        )
    return description


def range_of(description: dict[str, Any]) -> tuple[tuple[float, float], ...] | None:
    """The range of values a backbone was trained with, of images that are not 8-bit gray or RGB; else None. ValueError
    where that is damaged."""
    found = description.get("value_range")
    if found is None:
        return None
    try:
        ranges = tuple((float(low), float(high)) for low, high in found)
    except (TypeError, ValueError):
        ranges = ()
    if len(ranges) != description.get("channels") or not all(low < high for low, high in ranges):
        raise ValueError(f"{DESCRIPTION} says no value_range of each channel; copy it anew")
    return ranges


def spec_of(description: dict[str, Any]) -> EncoderSpec:
    kinds = {"name": str, "image_size": int, "channels": int, "stem": str, "args": dict}
    if wrong := [key for key, kind in kinds.items() if type(description.get(key)) is not kind]:
        raise ValueError(f"{DESCRIPTION} says no {wrong[0]}; copy it anew")
    return EncoderSpec(**{key: description[key] for key in kinds}, padding=padding_of(description))


def padding_of(description: dict[str, Any]) -> Padding:
    """How the layers of a backbone that have a stride are padded. ValueError where its description does not say it."""
    said = str(description.get("padding", "symmetric"))
    for kind in PADDINGS:
        if said.startswith(kind):
            return kind
    raise ValueError(f"{DESCRIPTION} says of its padding {said[:40]!a}; install a newer byol, or copy it anew")


def check_plain_timm(description: dict[str, Any]) -> None:
    """ValueError, in one line, where timm's own model with these weights would give other features: what is exported
    for timm alone, or under its names, must not be of such a backbone."""
    if padding_of(description) == "SAME":
        raise ValueError(
            f"the backbone pads as TensorFlow does (SAME), and timm's {description['name']} symmetrically: with timm "
            "alone its features would be others; use byol.load"
        )
    if description["stem"] not in ("original", "3x3"):
        raise ValueError(
            f"the backbone's first convolution is padded by 2 ({description['stem']}), and timm has no such stem: with "
            "timm alone its features would be others; use byol.load"
        )


def normalization_of(description: dict[str, Any]) -> Normalization | None:
    """What a backbone's images are normalised with, where its description says so. ValueError where that is damaged."""
    found = description.get("normalization")
    if found is None:
        return None
    try:
        mean, std = (tuple(found[name]) for name in ("mean", "std"))
    except (TypeError, KeyError):
        mean, std = (), ()
    each = description["channels"]
    if not (fits((mean, std), tuple[tuple[float, ...], ...]) and len(mean) == len(std) == each and min(std) > 0):
        raise ValueError(f"{DESCRIPTION} says no mean and std for each of {each} channels; copy it anew")
    return Normalization(mean, std)


def load(run_directory: str | Path) -> TrainedEncoder:
    """The encoder of a run, in evaluation mode: images [B, C, S, S], normalised as backbone.json says -> [B, dim].

    Its `embed` takes paths, arrays and images of Pillow as they are, see `TrainedEncoder`.

    The weights are read from safetensors, which cannot run code. ValueError where one of the two files is damaged, or
    they do not belong together.
    """
    directory = Path(run_directory)
    description = read_description(directory)
    spec = spec_of(description)
    normalization, value_range = normalization_of(description), range_of(description)
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"{directory} holds no {WEIGHTS}; copy it there beside {DESCRIPTION}")
    found = read_weights(directory / WEIGHTS, str(directory / WEIGHTS))
    try:
        encoder = TrainedEncoder(spec, normalization, value_range)
    except Exception as error:  # timm's models raise nearly anything on arguments that they do not know
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{directory / DESCRIPTION} describes no backbone of timm: {reason}; copy it anew") from error
    check_fit(found, encoder.model.state_dict(), str(directory / WEIGHTS))
    encoder.model.load_state_dict(found)
    return encoder.eval()


def digest(run_directory: Path) -> str:
    """SHA-256 of a run's weights, in hexadecimal."""
    with (run_directory / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or a ValueError that begins with `what`."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{what} is not a safetensors file: {ascii(reason)[1:-1]}") from error


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
    path = Path(init)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"init={init!r} is neither a run nor a safetensors file; or use timm:NAME.TAG")
    found = read_weights(path, f"init={init!r}")
    own = encoder.model.state_dict()
    found = {k: v for k, v in found.items() if k.split(".")[0] not in ("fc", "classifier", "head") or k in own}
    check_fit(found, own, f"init={init!r}")
    encoder.model.load_state_dict(found)
    return encoder


def check_fit(found: dict[str, Tensor], own: dict[str, Tensor], what: str) -> None:
    """ValueError, in one line that begins with `what`, where names or shapes differ."""
    wrong = [f"{k} is missing" for k in own if k not in found]
    wrong += [f"{k[:80]!a} is unknown" for k in found if k not in own]
    wrong += [
        f"{k} has shape {tuple(v.shape)}, not {tuple(own[k].shape)}"
        for k, v in found.items()
        if k in own and v.shape != own[k].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{what} does not fit the backbone: {wrong[0]}{more}")


def parameter_count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
