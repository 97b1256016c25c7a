"""What is exported: an encoder, and what its images are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from byol.encoder import Encoder
from byol.evaluate.features import extract
from byol.export import DESCRIPTION, load, range_of, read_description

MOST_PX = 4096
"""Side of the images of a backbone that is exported: it is run on a few."""


class NoSuchArchitecture(Exception):
    """The format has no architecture for this backbone; the message says which."""


@dataclass(frozen=True, eq=False)
class Form:
    """A backbone that was written in a format."""

    code: str
    """Python that loads it, run in its directory, and makes `features` [N, D] of `images` [N, S, S, C]."""
    features: Callable[[Tensor], Tensor]
    """The same, of what was written: images [N, S, S, C] as `Backbone.some_images` -> [N, D] float32."""
    library: str
    """As the Hugging Face hub calls what loads it."""
    needs: tuple[str, ...]
    """Packages that the code imports."""
    note: str = ""
    """What else a person should know who loads it."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """An encoder in evaluation mode, and the images that it takes."""

    encoder: Encoder
    description: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[tuple[float, float], ...] | None
    """Of deep images, whose values are read as they are; None for uint8."""

    @property
    def size(self) -> int:
        return self.encoder.spec.image_size

    @property
    def channels(self) -> int:
        return self.encoder.spec.channels

    def some_images(self, count: int, seed: int) -> Tensor:
        """Random images [count, S, S, C]: uint8, or float32 of deep images, some of whose values are out of range."""
        generator = torch.Generator().manual_seed(seed)
        shape = (count, self.size, self.size, self.channels)
        if self.value_range is None:
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        low, high = torch.tensor(self.value_range, dtype=torch.float32).T
        return low + (high - low) * (1.2 * torch.rand(shape, generator=generator) - 0.1)

    def features(self, images: Tensor) -> Tensor:
        """As an evaluation makes them: images [N, S, S, C] as `some_images` -> [N, D] float32."""
        if self.value_range is not None:
            low, high = torch.tensor(self.value_range, dtype=torch.float64).T
            images = ((images - low) * (255 / (high - low))).clamp(0, 255).float()
        return extract(self.encoder, images.permute(0, 3, 1, 2), mean=self.mean, std=self.std, size=None)


class OfImages(nn.Module):
    """Images as they are -> features: [N, S, S, C] uint8, 0-255, or float32 of deep images -> [N, D] float32."""

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = encoder
        low, high = zip(*(backbone.value_range or ((0.0, 255.0),) * backbone.channels), strict=True)
        for name, values in (("low", low), ("high", high), ("mean", backbone.mean), ("std", backbone.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = (images.permute(0, 3, 1, 2).float() - self.low) / (self.high - self.low)
        return self.encoder((x.clamp(0, 1) - self.mean) / self.std)


def images_in_code(backbone: Backbone) -> str:
    """Python that makes images x [N, C, S, S] as the encoder takes them of `images` [N, S, S, C]."""
    shape = (8, backbone.size, backbone.size, backbone.channels)
    mean, std = list(backbone.mean), list(backbone.std)
    if backbone.value_range is None:
        lines = [f"images = torch.randint(0, 256, {shape}, dtype=torch.uint8)  # yours"]
        lines.append("x = images.permute(0, 3, 1, 2).float() / 255")
    else:
        lines = [f"low, high = torch.tensor({[list(each) for each in backbone.value_range]}).T"]
        lines.append(f"images = low + (high - low) * torch.rand({shape})  # yours, value for value")
        lines.append("x = ((images - low) / (high - low)).clamp(0, 1).permute(0, 3, 1, 2)")
    lines.append(f"mean, std = torch.tensor({mean}), torch.tensor({std})")
    lines.append("x = (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)")
    lines.append("with torch.no_grad():")
    lines.append(f"    features = model(x)  # [8, {backbone.encoder.dim}]")
    return "\n".join(lines) + "\n"


def read(run_directory: Path) -> Backbone:
    """The backbone of a run. ValueError, in one line, where one of its files is damaged."""
    description = read_description(run_directory)
    encoder = load(run_directory)
    spec = encoder.spec
    about = description.get("normalization")
    mean, std = (about.get(name, []) for name in ("mean", "std")) if isinstance(about, dict) else ([], [])
    ranges = description.get("value_range")
    for right, name in (
        (0 < spec.image_size <= MOST_PX, "image_size"),
        (_numbers(mean, spec.channels) and _numbers(std, spec.channels) and min(std) > 0, "normalization"),
        (ranges is None or _ranges(ranges, spec.channels), "value_range"),
    ):
        if not right:
            raise ValueError(f"{run_directory / DESCRIPTION} is damaged: its {name} is no such thing; copy it anew")
    return Backbone(encoder, description, tuple(mean), tuple(std), range_of(description))


def _numbers(found: Any, count: int) -> bool:
    return (
        isinstance(found, Sequence)
        and len(found) == count
        and all(type(each) in (int, float) and math.isfinite(each) for each in found)
    )


def _ranges(found: Any, channels: int) -> bool:
    right = isinstance(found, list) and len(found) == channels
    return right and all(_numbers(each, 2) and each[0] < each[1] for each in found)
