"""timm's own formats: a state dict, and the folder of the Hugging Face hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from byol.checkpoint import write_tensors
from byol.evaluate.features import CROP_SHARE
from byol.export import DESCRIPTION, WEIGHTS
from byol.files import write_json
from byol.formats import small_stem
from byol.formats.backbone import Backbone, Form, OfImages, images_in_code

HUB_WEIGHTS = "model.safetensors"
HUB_CONFIG = "config.json"
SMALL_STEM = Path(small_stem.__file__)


def write_timm(backbone: Backbone, directory: Path) -> Form:
    """backbone.safetensors, a state dict for timm.create_model, and backbone.json, what this package reads."""
    import timm

    write_tensors(directory / WEIGHTS, backbone.encoder.model.state_dict())
    write_json(directory / DESCRIPTION, backbone.description)
    name, lines = _named(backbone, directory)
    args = _args(backbone)
    lines.append(f"model = timm.create_model(\n    {name!r},\n    checkpoint_path={WEIGHTS!r},\n    num_classes=0,")
    lines.append(f"    **{args!a},\n).eval()")
    model = timm.create_model(name, checkpoint_path=str(directory / WEIGHTS), num_classes=0, **args)
    return _form(backbone, model, lines)


def write_hub(backbone: Backbone, directory: Path) -> Form:
    """model.safetensors and config.json, which timm reads from the hub (hf-hub:) and from a folder (local-dir:)."""
    import timm

    write_tensors(directory / HUB_WEIGHTS, backbone.encoder.model.state_dict())
    name, lines = _named(backbone, directory)
    write_json(directory / HUB_CONFIG, _config(backbone, name))
    lines.append('model = timm.create_model("local-dir:.", pretrained=True, num_classes=0).eval()')
    model = timm.create_model(f"local-dir:{directory}", pretrained=True, num_classes=0)
    more = (
        "timm's own transform (`timm.data.create_transform`) does for larger images what this network was evaluated "
        f"with; images that have {backbone.size} px already it enlarges and crops: give those as they are, as above."
    )
    return _form(backbone, model, lines, more)


def _form(backbone: Backbone, model: nn.Module, lines: list[str], more: str = "") -> Form:
    code = "\n".join(lines) + "\n\n" + images_in_code(backbone)
    note = ""
    if backbone.encoder.spec.stem == "3x3":
        note = (
            "For small images the first convolution is 3x3 with stride 1, and there is no max-pool. timm has no name "
            f"for that: `{SMALL_STEM.name}` beside this card gives it one, and where it was not imported timm says "
            f"`Unknown model ({backbone.encoder.spec.name}_3x3)`. "
        )
    return Form(code, OfImages(model.eval(), backbone), "timm", ("timm",), note + more)


def _named(backbone: Backbone, directory: Path) -> tuple[str, list[str]]:
    """(the name that timm.create_model is to make, the code up to there)"""
    spec = backbone.encoder.spec
    if spec.stem != "3x3":
        return spec.name, ["import timm", "import torch", ""]
    shutil.copyfile(SMALL_STEM, directory / SMALL_STEM.name)
    lines = ["import timm", "import torch", "", "import small_stem  # beside this card", ""]
    return small_stem.register(spec.name), [*lines, f"small_stem.register({spec.name!r})"]


def _args(backbone: Backbone) -> dict[str, Any]:
    return {**backbone.encoder.spec.args, "in_chans": backbone.channels}


def _config(backbone: Backbone, name: str) -> dict[str, Any]:
    """What timm's `save_config_for_hf` would write, of these weights alone: of timm's own it would keep the source, the
    licence and the papers."""
    model, size = backbone.encoder.model, backbone.size
    known = model.pretrained_cfg
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": _args(backbone),
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [backbone.channels, size, size],
            "fixed_input_size": bool(known.get("fixed_input_size")),
            "pool_size": None,
            "crop_pct": CROP_SHARE,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": backbone.mean,
            "std": backbone.std,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
            "custom_load": False,
        },
    }
