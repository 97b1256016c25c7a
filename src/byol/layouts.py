"""The network in a file of weights, by the names that others gave its layers, which become timm's.

Every file is read as data: pickles by `torch.load(weights_only=True)` or by `byol.pickled`, safetensors as they are.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from byol import pickled
from byol.export import read_weights
from byol.names import backbones, unknown
from byol.run import Padding, Stem

Layout = Literal[
    "deepmind", "solo-learn", "lightly", "vicreg", "barlow-twins", "moco", "simsiam", "torchvision", "timm"
]
"""Whose names a file's weights have."""
MOST_TENSORS = 100_000
FOLLOWERS = re.compile(r"(^|\.|_)(momentum|target|teacher|ema|encoder_k|key)(_|\.|$)")
"""In names: networks that only follow the one that is trained."""


@dataclass(frozen=True)
class Found:
    """A state dict in a file. tensors: of one network, by the names of timm's ResNets, or by the file's own where it is
    none. network: which one of the file's. dropped: what else there is, by its first name."""

    layout: str
    tensors: dict[str, Tensor]
    network: str
    dropped: tuple[str, ...] = ()
    stem: Stem = "original"
    padding: Padding = "symmetric"
    steps: int | None = None


def read(path: Path, layout: Layout | None = None, prefix: str | None = None, backbone: str | None = None) -> Found:
    """The network in a file. ValueError, in one line, where there is none, several, or none that may be read."""
    with path.open("rb") as file:
        head = file.read(16)
    is_pickle = head[:1] == b"\x80" and not head.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9")
    if layout == "deepmind" or (layout is None and is_pickle):
        if not is_pickle:
            raise ValueError(f"{path} is no pickle, as DeepMind's checkpoints are; leave out --from deepmind")
        return _of_deepmind(path)
    if head[8:9] == b"{":
        return _of_state(read_weights(path, str(path)), {}, path, layout, prefix, backbone)
    loaded = _load(path)
    return _of_state(*_state_dict(loaded, path), path, layout, prefix, backbone)


_CONTAINERS = ("state_dict", "model", "model_state_dict", "network")
_INERT_MODULES = (
    "omegaconf",
    "argparse",
    "pathlib",
    "typing",
    "collections",
    "lightning",
    "pytorch_lightning",
    "__main__",
)
_INERT_BUILTINS = {
    f"builtins.{kind}" for kind in ("dict", "list", "tuple", "set", "int", "float", "str", "bool", "object")
}


class _Inert:
    """What stands in a checkpoint for values that are no weights, such as settings: nothing is kept of them."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _inert_mapping(*_: Any) -> dict[Any, Any]:
    return {}


def _load(path: Path) -> Any:
    """What torch reads of a file without unpickling objects; settings in a Lightning checkpoint are passed over."""
    stand_ins: list[Any] = []
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            allowed = [n for n in names if n.split(".")[0] in _INERT_MODULES or n in _INERT_BUILTINS]
            stand_ins = [(_inert_mapping if n == "collections.defaultdict" else _Inert, n) for n in allowed]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is wrong with it, one line is said
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on a damaged file
        told = str(error)
        foreign = re.search(r"GLOBAL (\S+)|unrecognized function (\S+)", told)
        if isinstance(error, pickle.UnpicklingError) and foreign:
            what = (foreign[1] or foreign[2])[:80]
            raise ValueError(
                f"{path} holds more than weights ({ascii(what)[1:-1]}), which is not read; save its state_dict alone"
            ) from error
        reason = (told.splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} is damaged, or no file of weights: {ascii(reason)[1:-1]}") from error


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in parts):
        raise ValueError("its parts are compressed, which torch's are not")
    if sum(each.file_size for each in parts) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")


def _state_dict(loaded: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the tensors by name, the rest of the checkpoint)."""
    rest: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(loaded, dict):
            break
        inner = next((loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded, rest = inner, loaded
    tensors = {k: v for k, v in loaded.items() if _is_plain(k, v)} if isinstance(loaded, dict) else {}
    if not tensors or len(tensors) > MOST_TENSORS:
        raise ValueError(f"{path} holds no state dict; save the network's state_dict()")
    return tensors, rest


def _is_plain(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Of a ResNet made an nn.Sequential, as lightly's users do: relu and maxpool, 2 and 3, have no weights."""


def _of_state(
    state: dict[str, Tensor],
    rest: Mapping[str, Any],
    path: Path,
    layout: Layout | None,
    prefix: str | None,
    backbone: str | None,
) -> Found:
    anchors = ["layer4.0.conv1.weight", "7.0.conv1.weight"]
    if backbone is not None:
        import timm

        if backbone not in backbones():
            raise ValueError(unknown("backbone", backbone, backbones()))
        with torch.device("meta"):
            anchors.insert(1, next(iter(timm.create_model(backbone, num_classes=0).state_dict())))
    for anchor in anchors:
        prefixes = sorted({name.removesuffix(anchor) for name in state if _ends(name, anchor)})
        if prefix is not None:
            prefixes = [each for each in prefixes if each.rstrip(".") == prefix.rstrip(".")]
        if prefixes:
            break
    else:
        if any(_ends(name, "5.0.conv1.weight") for name in state):
            raise ValueError(
                f"{path} holds lightly's own ResNet as an nn.Sequential, which loses the ReLU after its first batch "
                "norm; timm has no such network"
            )
        named = "" if prefix is None else f" below {prefix!a}"
        raise ValueError(
            f"{path} holds no ResNet{named} that is known by its names; say which timm model it is, --backbone NAME"
        )
    chosen = [each for each in prefixes if not FOLLOWERS.search(each)] or prefixes
    if len(chosen) > 1:
        several = ", ".join(repr(each.rstrip(".")) for each in chosen[:4])
        raise ValueError(f"{path} holds several networks, {several[:160]}; name one with --prefix")
    own = chosen[0]
    tensors = {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}
    dropped = {
        name.split(".")[0 if not name.startswith("module.") else 1][:40] for name in state if not name.startswith(own)
    }
    sequential = anchor == "7.0.conv1.weight"
    own_resnet = "layer4.0.shortcut.0.weight" in tensors
    if sequential:
        parts = {name: name.split(".", 1) for name in tensors}
        tensors = {".".join([_CHILDREN.get(parts[k][0], parts[k][0]), *parts[k][1:]]): v for k, v in tensors.items()}
    if own_resnet:
        tensors = {name.replace(".shortcut.", ".downsample."): value for name, value in tensors.items()}
    given = layout or _guessed(own, state, rest, sequential or own_resnet)
    return Found(given, tensors, own.rstrip("."), tuple(sorted(dropped)), _stem(tensors, given))


def _ends(name: str, anchor: str) -> bool:
    return name == anchor or name.endswith(f".{anchor}")


def _guessed(own: str, state: Mapping[str, Tensor], rest: Mapping[str, Any], of_lightly: bool) -> str:
    """Whose file it is, by the names of its networks."""
    if of_lightly:
        return "lightly"
    if own == "module.backbone.":
        return "barlow-twins" if "module.bn.running_mean" in state else "vicreg"
    if own in ("module.encoder_q.", "module.base_encoder."):
        return "moco"
    if own == "module.encoder.":
        return "simsiam"
    if own in ("backbone.", "encoder.") and "pytorch-lightning_version" in rest:
        return "solo-learn" if "classifier.weight" in state else "lightly"
    return "torchvision"


def _stem(tensors: Mapping[str, Tensor], layout: str) -> Stem:
    first = tensors.get("conv1.weight")
    if first is None or first.shape[-1] != 3 or "layer1.0.conv1.weight" not in tensors:
        return "original"
    return "3x3-pad2" if layout == "solo-learn" else "3x3"


_BLOCK = re.compile(r"block_group_([0-3])/~/block_(\d{1,3})/~/(shortcut_)?(conv|batchnorm)(?:_([0-2]))?")
_VALUES = {"w": "weight", "scale": "weight", "offset": "bias", "mean_ema": "running_mean", "var_ema": "running_var"}


def _of_deepmind(path: Path) -> Found:
    """The online network of a BYOL checkpoint, {experiment_state, step, rng}, by the names of timm's ResNets.

    Source: deepmind-research/byol, byol_experiment.py, utils/checkpointing.py and utils/networks.py; Haiku's ResNet.
    Weights of convolutions are HWIO there, and the running statistics are the zero-debiased averages.
    """
    loaded = pickled.read(path)
    state = loaded.get("experiment_state") if isinstance(loaded, dict) else None
    if (
        not isinstance(state, pickled.Record)
        or not state.name.endswith("_ByolExperimentState")
        or len(state.values) != 5
    ):
        raise ValueError(f"{path} is no checkpoint of DeepMind's BYOL: it has no experiment_state of its pre-training")
    params, averages = state.values[0], state.values[2]
    if not isinstance(params, dict) or not isinstance(averages, dict):
        raise ValueError(f"{path} is no checkpoint of DeepMind's BYOL: its online network has no parameters")
    roots = [name.removesuffix("/~/initial_conv") for name in params if name.endswith("/~/initial_conv")]
    if len(roots) != 1:
        raise ValueError(f"{path} holds {len(roots)} ResNets in its online network, not one")
    root, tensors = roots[0], dict[str, Tensor]()
    for module, values in [*params.items(), *averages.items()]:
        if module.startswith(f"{root}/~/"):
            tensors |= _from_haiku(module.removeprefix(f"{root}/~/"), values, path)
    first = tensors.get("conv1.weight")
    if first is None or first.shape[2:] != (7, 7):
        raise ValueError(f"{path}: its first convolution is not 7x7, as those of DeepMind's BYOL are")
    dropped = {name.split("/")[0][:40] for name in params if not name.startswith(f"{root}/~/")}
    step = loaded.get("step")
    if isinstance(step, pickled.Array) and step.value is not None and step.value.size == 1:
        step = step.value.item()
    return Found(
        "deepmind",
        tensors,
        f"online, {root}"[:80],
        (*sorted(dropped), "target network", "optimizer"),
        padding="SAME",
        steps=step if type(step) is int else None,
    )


def _from_haiku(module: str, values: Any, path: Path) -> dict[str, Tensor]:
    """A module's parameters or averages by timm's names. module: below the ResNet's own name."""
    layer, average = module.removesuffix("/~/mean_ema").removesuffix("/~/var_ema"), module.rpartition("/")[2]
    block = _BLOCK.fullmatch(layer)
    if layer in ("initial_conv", "initial_batchnorm"):
        name = "conv1" if layer == "initial_conv" else "bn1"
    elif block and block[3]:
        name = f"layer{int(block[1]) + 1}.{int(block[2])}.downsample.{0 if block[4] == 'conv' else 1}"
    elif block and block[5]:
        name = f"layer{int(block[1]) + 1}.{int(block[2])}.{'conv' if block[4] == 'conv' else 'bn'}{int(block[5]) + 1}"
    else:
        raise ValueError(f"{path}: {module[:80]!a} is no part of a ResNet of version 1")
    arrays = {k: v.value for k, v in values.items() if isinstance(v, pickled.Array)} if isinstance(values, dict) else {}
    if (
        layer != module
    ):  # beside the zero-debiased average, which evaluation uses, there is the sum that it is made from
        arrays = {average: arrays.get("average")}
    found = {}
    for key, array in arrays.items():
        if key not in _VALUES or array is None or array.dtype.kind != "f":
            raise ValueError(f"{path}: {module[:80]!a} holds no {key[:40]!a} that is known")
        value = torch.from_numpy(np.array(array, np.float32))
        if key == "w" and value.ndim != 4:
            raise ValueError(f"{path}: {module[:80]!a} is no convolution")
        found[f"{name}.{_VALUES[key]}"] = value.permute(3, 2, 0, 1).contiguous() if key == "w" else value.flatten()
    return found
