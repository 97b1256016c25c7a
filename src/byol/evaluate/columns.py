"""The networks that stand side by side in an evaluation: a backbone, and what it must beat."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from byol.data.loader import Normalization
from byol.encoder import Encoder, EncoderSpec, initialize

BACKBONE, RAW_PIXELS, UNTRAINED, SUPERVISED = "backbone", "raw pixels", "untrained", "supervised"
RAW_SIDE_PX = 32
"""Largest side at which pixels are features: 3,072 of an RGB image; a linear fit on more takes minutes."""


@dataclass(frozen=True, eq=False)
class Column:
    """network: images [B, C, size, size], normalised -> features [B, D]. size: px."""

    name: str
    network: nn.Module
    normalization: Normalization
    size: int

    @property
    def trainable(self) -> bool:
        """Whether it has weights that fine-tuning can move."""
        return any(True for _ in self.network.parameters())

    def content(self) -> str:
        """Hex SHA-256 of all that determines the features of an image."""
        digest = hashlib.sha256()
        spec = self.network.spec.to_dict() if isinstance(self.network, Encoder) else repr(self.network)
        about = [spec, self.normalization.mean, self.normalization.std, self.size]
        digest.update(json.dumps(about, sort_keys=True).encode())
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


class Pixels(nn.Module):
    """Pixels as features: [B, C, S, S] -> [B, C s s], s = min(S, RAW_SIDE_PX), by areas where S is larger."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > RAW_SIDE_PX:
            x = F.interpolate(x, size=(RAW_SIDE_PX, RAW_SIDE_PX), mode="area")
        return x.flatten(1)


class Gray(nn.Module):
    """A network for colour images, on gray ones: three equal channels, normalised as it was trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(normalization.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(normalization.std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def on_gray(column: Column) -> Column:
    """A column for images of one channel, of one for three."""
    return replace(
        column, network=Gray(column.network, column.normalization), normalization=Normalization((0.0,), (1.0,))
    )


def raw_pixels(size: int, channels: int) -> Column:
    return Column(RAW_PIXELS, Pixels(), Normalization((0.0,) * channels, (1.0,) * channels), size)


def backbone(encoder: Encoder, mean: Sequence[float], std: Sequence[float], name: str = BACKBONE) -> Column:
    return Column(name, encoder, Normalization(tuple(mean), tuple(std)), encoder.spec.image_size)


def untrained(spec: EncoderSpec, seed: int, *, last_scale: int) -> Encoder:
    """The encoder before training. last_scale: of each residual block's last batch norm, 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(spec)
        initialize(encoder)
    if last_scale == 0:
        for part in encoder.modules():
            zero = getattr(part, "zero_init_last", None)  # of timm's residual blocks
            if callable(zero):
                zero()
    return encoder.eval()
