"""torchvision: its architectures that timm has too, with their names for the weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from byol.checkpoint import write_tensors
from byol.formats.backbone import Backbone, Form, NoSuchArchitecture, OfImages, images_in_code

WEIGHTS = "model.safetensors"
SAME = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
"""ResNets: both call them, and their weights, alike."""


@dataclass(frozen=True)
class Twin:
    """An architecture of torchvision that computes what one of timm does."""

    name: str
    head: str
    """Its classifier, in place of which features come out."""
    renamed: Callable[[str], str] = str
    """timm's name of a weight -> torchvision's."""
    takes_size: bool = False
    """Whether it is made for images of one size, its argument image_size."""


def vit_name(name: str) -> str:
    """timm's name of a weight of a vision transformer -> torchvision's."""
    whole = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    parts = {
        r"^patch_embed\.proj\.": "conv_proj.",
        r"^norm\.": "encoder.ln.",
        r"^blocks\.(\d+)\.norm([12])\.": r"encoder.layers.encoder_layer_\1.ln_\2.",
        r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.encoder_layer_\1.self_attention.in_proj_",
        r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.encoder_layer_\1.self_attention.out_proj.",
        r"^blocks\.(\d+)\.mlp\.fc1\.": r"encoder.layers.encoder_layer_\1.mlp.0.",
        r"^blocks\.(\d+)\.mlp\.fc2\.": r"encoder.layers.encoder_layer_\1.mlp.3.",
    }
    return whole.get(name) or _replaced(name, parts)


def convnext_name(name: str) -> str:
    """timm's name of a weight of a ConvNeXt -> torchvision's, whose stages and downsamplings are numbered in turn."""
    if found := re.match(r"^stages\.(\d+)\.(downsample|blocks)\.(.*)$", name):
        stage, kind, rest = int(found[1]), found[2], found[3]
        if kind == "downsample":
            return f"features.{2 * stage}.{rest}"
        block, _, part = rest.partition(".")
        numbers = {"conv_dw.": "block.0.", "norm.": "block.2.", "mlp.fc1.": "block.3.", "mlp.fc2.": "block.5."}
        patterns = {f"^{re.escape(old)}": new for old, new in numbers.items()} | {"^gamma$": "layer_scale"}
        return f"features.{2 * stage + 1}.{block}.{_replaced(part, patterns)}"
    return _replaced(name, {r"^stem\.": "features.0.", r"^head\.norm\.": "classifier.0."})


def _replaced(name: str, patterns: dict[str, str]) -> str:
    return next((re.sub(old, new, name) for old, new in patterns.items() if re.match(old, name)), name)


TWINS = {
    **{name: Twin(name, "fc") for name in SAME},
    **{f"densenet{depth}": Twin(f"densenet{depth}", "classifier") for depth in (121, 161, 169, 201)},
    **{
        f"vit_{size}_patch{patch}_224": Twin(f"vit_{size[0]}_{patch}", "heads", vit_name, takes_size=True)
        for size, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14))
    },
    **{
        f"convnext_{s}": Twin(f"convnext_{s}", "classifier.2", convnext_name)
        for s in ("tiny", "small", "base", "large")
    },
}
"""timm's name -> torchvision's."""


def write_torchvision(backbone: Backbone, directory: Path) -> Form:
    """model.safetensors, a state dict for a model of torchvision without its classifier. NoSuchArchitecture where it
    has none that takes these weights strictly."""
    import torchvision

    spec = backbone.encoder.spec
    twin = TWINS.get(spec.name)
    what = f"torchvision has no {spec.name}"
    if twin is None:
        raise NoSuchArchitecture(what)
    if spec.stem != "original":
        raise NoSuchArchitecture(f"{what} with a {spec.stem} stem")
    args = {"image_size": spec.image_size} if twin.takes_size else {}
    weights = {}
    for name, value in backbone.encoder.model.state_dict().items():
        new = twin.renamed(name)
        weights[new] = value.view(-1, 1, 1) if new.endswith(".layer_scale") else value
    model = torchvision.models.get_model(twin.name, weights=None, **args)
    model.set_submodule(twin.head, nn.Identity())
    write_tensors(directory / WEIGHTS, weights)
    try:
        model.load_state_dict(load_file(directory / WEIGHTS), strict=True)
    except RuntimeError:
        given = {"image_size": spec.image_size, "in_chans": spec.channels, **spec.args}
        said = ", ".join(f"{key}={value}" for key, value in given.items())
        raise NoSuchArchitecture(f"{what} with {said}") from None
    lines = [
        "import torch",
        "import torchvision",
        "from safetensors.torch import load_file",
        "",
        f"model = torchvision.models.{twin.name}(weights=None{''.join(f', {k}={v}' for k, v in args.items())})",
        f"model.set_submodule({twin.head!r}, torch.nn.Identity())",
        f"model.load_state_dict(load_file({WEIGHTS!r}), strict=True)",
        "model.eval()",
    ]
    code = "\n".join(lines) + "\n\n" + images_in_code(backbone)
    return Form(code, OfImages(model.eval(), backbone), "torchvision", ("torchvision", "safetensors"))
