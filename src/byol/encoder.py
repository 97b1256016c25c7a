"""Encoders: any timm model's pooled features, with a stem that suits the image size."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from byol.run import Padding, Stem

SMALL_IMAGE_PX = 64
"""Images up to this size get the 3x3 stem where the backbone has a ResNet stem: at 32 px the usual stem leaves a
1x1 feature map."""


NO_ARGS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments of timm.create_model that say where weights come from, also as pickles."""


@dataclass(frozen=True)
class EncoderSpec:
    """All that determines an encoder's structure; `backbone.json` holds it."""

    name: str
    """timm model name."""
    image_size: int
    """Input height and width, px."""
    channels: int = 3
    """Input channels."""
    stem: Stem = "original"
    """"3x3": the first convolution is 3x3 with stride 1 and there is no max-pool; "3x3-pad2": the same, padded by 2, as
    in solo-learn."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model."""
    padding: Padding = "symmetric"
    """"SAME": of layers with a stride as in TensorFlow and JAX, where what is odd comes after."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields, without a padding that is the usual one: what did not exist yet is known by the same hash."""
        fields = asdict(self)
        return fields if self.padding != "symmetric" else {k: v for k, v in fields.items() if k != "padding"}


def stem_for(name: str, image_size: int) -> Stem:
    """The stem this package chooses: 3x3 for ResNets of timm on images up to SMALL_IMAGE_PX, else timm's own."""
    import timm

    has_resnet_stem = timm.models.is_model_in_modules(name, {"resnet"})
    return "3x3" if has_resnet_stem and image_size <= SMALL_IMAGE_PX else "original"


class Encoder(nn.Module):
    """A timm model without its classifier: images [B, C, H, W] float -> features [B, dim].

    `model` is the timm module, whose state dict loads strictly into timm's own model after the stem change.
    """

    def __init__(self, spec: EncoderSpec, *, pretrained_tag: str | None = None) -> None:
        import timm

        super().__init__()
        args = dict(spec.args)
        # Both come from files that somebody else may have written, and timm reads weights from wherever they say.
        if not timm.is_model(spec.name):
            raise ValueError(f"{spec.name!a} is no model of timm")
        if named := sorted(args.keys() & NO_ARGS):
            raise ValueError(f"a backbone's arguments may not name {named[0]}; leave it out")
        name = spec.name if pretrained_tag is None else f"{spec.name}.{pretrained_tag}"
        if getattr(timm.get_pretrained_cfg(spec.name), "fixed_input_size", False):
            args.setdefault("img_size", spec.image_size)
        self.spec = replace(spec, args=args)
        self.model = timm.create_model(
            name, pretrained=pretrained_tag is not None, num_classes=0, in_chans=spec.channels, **args
        )
        if spec.stem != "original":
            use_small_stem(self.model, spec.channels, padding=1 if spec.stem == "3x3" else 2)
        if spec.padding == "SAME":
            use_same_padding(self.model)
        # Where a layer stands between pooling and classifier, timm's num_features is the width before it.
        self.dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def use_small_stem(model: nn.Module, channels: int, *, padding: int = 1) -> None:
    """Replace a timm ResNet's stem by a 3x3 convolution of stride 1 without max-pool, the usual one at 32 px."""
    first = getattr(model, "conv1", None)
    if first is None or not hasattr(model, "maxpool"):
        raise ValueError(f"{type(model).__name__} has no ResNet stem to replace; use stem='original'")
    if isinstance(first, nn.Sequential):  # deep stems: three 3x3 convolutions, the first with stride 2
        first[0].stride = (1, 1)  # type: ignore[assignment]
    else:
        model.conv1 = nn.Conv2d(channels, first.out_channels, 3, stride=1, padding=padding, bias=False)
        initialize(model.conv1)
    model.maxpool = nn.Identity()


def use_same_padding(model: nn.Module) -> None:
    """Pad as TensorFlow and JAX do where a convolution or a max-pool has a stride: as little as gives
    ceil(size / stride) outputs, and of an odd number of pixels the larger half after. Names and parameters stay."""
    from timm.layers import Conv2dSame, create_pool2d

    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and max(child.kernel_size) > 1:
                child.__class__, child.padding = Conv2dSame, (0, 0)
            elif isinstance(child, nn.MaxPool2d):
                setattr(part, name, create_pool2d("max", child.kernel_size, child.stride, padding="same"))


def initialize(module: nn.Module) -> None:
    """Draw weights as the authors' code does (Haiku's defaults), in place, from torch's global generator.

    Convolutions and Linears: truncated normal, cut at two sigma, sigma = 1/sqrt(fan_in), not corrected for the cut
    (true standard deviation 0.8796 sigma); biases 0. Normalisation layers: scale 1, offset 0, also the last of each
    residual block (the paper's results used 1 everywhere).
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            fan_in = part.weight[0].numel()
            sigma = 1 / math.sqrt(fan_in)
            with torch.no_grad():
                nn.init.trunc_normal_(part.weight, std=sigma, a=-2 * sigma, b=2 * sigma)
                if part.bias is not None:
                    part.bias.zero_()
        elif isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            part.reset_parameters()
