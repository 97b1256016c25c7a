"""ResNets of timm for small images: the first convolution is 3x3 with stride 1, and there is no max-pool.

timm has no name for them; `register("resnet18")` gives it one, "resnet18_3x3". From the byol package, Apache-2.0; this
file needs timm alone.
"""

from typing import Any

import timm
from timm.models import load_pretrained, register_model
from torch import nn


def register(name: str) -> str:
    """Make NAME_3x3 known to timm.create_model; returns that name."""
    new = f"{name}_3x3"

    def make(pretrained: bool = False, cache_dir: Any = None, **args: Any) -> nn.Module:
        model = timm.create_model(name, **args)
        old: Any = model.conv1
        if isinstance(old, nn.Sequential):  # a deep stem has its stride in its first layer
            first: Any = old[0]
            first.stride = (1, 1)
        else:
            model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        if pretrained:
            load_pretrained(model, num_classes=model.num_classes, in_chans=model.in_chans, cache_dir=cache_dir)
        return model

    if not timm.is_model(new):
        make.__name__ = new
        register_model(make)
    return new
