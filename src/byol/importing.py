"""Weights from elsewhere become a run directory: files of other projects, and timm's names."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from byol.encoder import Encoder, EncoderSpec
from byol.export import check_fit, read_description, start_from, write_backbone
from byol.files import only_one
from byol.layouts import Layout, read
from byol.names import PRETRAINED, backbones, unknown
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD

METHODS = {"deepmind": "byol", "vicreg": "vicreg", "barlow-twins": "barlow_twins", "simsiam": "simsiam"}
"""Of the layouts that are one method's."""
SMALL_PX, USUAL_PX = 32, 224
"""Image size of networks with a 3x3 stem, and of all others, where nothing else is said."""
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
    ("bottleneck", (3, 24, 36, 3)): "resnet200",
}
"""timm's names by kind of block and blocks of each group."""


class Imported(NamedTuple):
    """mean, std: with which its images are normalised. about: see `write_backbone`."""

    encoder: Encoder
    mean: Sequence[float]
    std: Sequence[float]
    about: dict[str, Any]


def import_weights(
    source: str,
    out: str | Path,
    *,
    layout: Layout | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    prefix: str | None = None,
    used_labels: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write OUT/backbone.safetensors and OUT/backbone.json from a file of weights or a name of timm; returns what the
    latter says.

    source: a file, NAME, NAME.TAG, or either behind `timm:`; a name without a tag is timm's first choice of weights.
    layout: whose file it is, where that cannot be seen. backbone: a timm name, where it cannot. image_size: px, of the
    evaluation's input. channels: of a timm name's images. mean, std: per channel, with which images were normalised;
    ImageNet's, or what timm says. prefix: of the names that are the backbone's. used_labels: the weights learned from
    labels, also where nothing in the file shows it. ValueError, in one line, where the file is damaged, holds more than
    tensors and plain values, or does not fit.
    """
    place = Path(source)
    if source.startswith(PRETRAINED) or (not place.exists() and layout in (None, "timm")):
        found = _of_timm(source.removeprefix(PRETRAINED), image_size, channels, say)
    else:
        found = _of_file(place, layout, backbone, image_size, prefix, say)
    spec, about = found.encoder.spec, found.about
    if channels not in (None, spec.channels):
        raise ValueError(f"{source} takes images of {spec.channels} channels; leave out --channels {channels}")
    mean, std = tuple(mean or found.mean), tuple(std or found.std)
    if not len(mean) == len(std) == spec.channels:
        raise ValueError(f"{source} takes images of {spec.channels} channels; give --mean and --std as many numbers")
    about["used_labels"] = used_labels or about["used_labels"]
    about["imported"]["by"] = f"byol {metadata.version('byol')}"
    directory = Path(out)
    with only_one(directory, "another command", say):
        write_backbone(found.encoder, directory, mean, std, about)
    return {"out": str(directory), **read_description(directory)}


def _of_timm(named: str, image_size: int | None, channels: int | None, say: Callable[[str], None]) -> Imported:
    import timm

    name, _, tag = named.partition(".")
    if name not in backbones():
        raise ValueError(unknown("backbone", name[:80], backbones()))
    try:
        known = timm.get_pretrained_cfg(named, allow_unregistered=False)
    except RuntimeError as error:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{name}.*")]
        raise ValueError(unknown(f"tag of {name}", tag, tags)) from error
    if known is None or not known.has_weights:
        raise ValueError(f"timm has no weights for {named}; import a file, or another name")
    full = f"{name}.{known.tag}"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its attempts
    say(f"timm's {full}")
    width, size = channels or int(known.input_size[0]), image_size or int(known.input_size[-1])
    encoder = start_from(Encoder(EncoderSpec(name, size, width)), f"{PRETRAINED}{full}")
    about = {
        "method": "unknown",
        "used_labels": known.num_classes > 0,  # a classifier came with them
        "steps": None,
        "seed": 0,
        "imported": {"layout": "timm", "source": full},
    }
    mean, std = known.mean, known.std
    if width != len(mean):  # timm sums or repeats the first layer's colours
        mean, std = [sum(mean) / len(mean)] * width, [sum(std) / len(std)] * width
    return Imported(encoder.eval(), mean, std, about)


def _of_file(
    path: Path,
    layout: Layout | None,
    backbone: str | None,
    image_size: int | None,
    prefix: str | None,
    say: Callable[[str], None],
) -> Imported:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; name a file of weights, or NAME.TAG of timm")
    with path.open("rb") as file:
        contents = hashlib.file_digest(file, "sha256").hexdigest()
    found = read(path, layout, prefix, backbone)
    name, args = (backbone, {}) if backbone else resnet_of(found.tensors, path)
    if name not in backbones():
        raise ValueError(unknown("backbone", name, backbones()))
    first = found.tensors.get("conv1.weight")
    size = image_size or (USUAL_PX if found.stem == "original" else SMALL_PX)
    channels = 3 if first is None or first.ndim != 4 else first.shape[1]
    spec = EncoderSpec(name, size, channels, found.stem, args, found.padding)
    try:
        encoder = Encoder(spec)
    except Exception as error:  # timm's models raise nearly anything
        raise ValueError(f"{path}: timm cannot make {name}: {(str(error).splitlines() or ['?'])[0]}") from error
    left = _fill(encoder, found.tensors, str(path))
    dropped = tuple(sorted({*found.dropped, *left}))
    classifier = found.layout == "torchvision" and "fc.weight" in found.tensors
    what = f"{name}, its first convolution 3x3" if spec.stem != "original" else name
    say(f"{path.name}: {what}, as {found.layout} names it{f' ({found.network!a})' if found.network else ''}")
    if dropped:
        say(f"left out: {ascii(', '.join(dropped))[1:-1][:200]}")
    about = {
        "method": METHODS.get(found.layout, "unknown"),
        "used_labels": classifier,
        "steps": found.steps,
        "seed": 0,
        "imported": {
            "layout": found.layout,
            "source": path.name,
            "sha256": contents,
            "network": found.network,
            "left_out": dropped,
        },
    }
    return Imported(encoder, IMAGENET_MEAN, IMAGENET_STD, about)


def _fill(encoder: Encoder, tensors: Mapping[str, Tensor], what: str) -> list[str]:
    """Give an encoder its weights; returns the first names of what was left over. ValueError where they do not fit, or
    are no numbers."""
    own = encoder.model.state_dict()
    parts = {name.split(".")[0] for name in own}
    mine = {name: value for name, value in tensors.items() if name.split(".")[0] in parts}
    counts = {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in mine}
    mine |= counts  # files of before PyTorch 0.4.1 have none, and nothing depends on them
    check_fit(mine, own, what)
    for name, value in mine.items():
        if value.is_floating_point() != own[name].is_floating_point() or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{what}: {name[:80]!a} holds what is no finite number of its kind; the file is damaged")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"{what}: {name[:80]!a} holds negative variances; the file is damaged")
    encoder.model.load_state_dict(mine)
    encoder.eval()
    return sorted({name.split(".")[0][:40] for name in tensors if name.split(".")[0] not in parts})


def resnet_of(tensors: Mapping[str, Tensor], what: Path) -> tuple[str, dict[str, Any]]:
    """(timm's name, arguments) of the ResNet that a state dict is of, by its names and shapes."""
    blocks = [{name.split(".")[1] for name in tensors if name.startswith(f"layer{n}.")} for n in (1, 2, 3, 4)]
    counts = tuple(map(len, blocks))
    first = tensors.get("layer1.0.conv1.weight")
    if first is None or not all(counts):
        raise ValueError(
            f"{what} holds no ResNet that is known by its names; say which timm model it is, --backbone NAME"
        )
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    if (kind, counts) in RESNETS:
        return RESNETS[kind, counts], {}
    if kind == "basic" and max(counts) <= 3:  # lightly's resnet-9
        return "resnet18", {"layers": list(counts)}
    raise ValueError(f"{what} holds a ResNet of {counts} {kind} blocks; say which timm model it is, --backbone NAME")
