"""The methods, and the small contract that each of them keeps."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from byol.encoder import Encoder
from byol.run import Optimizer

if TYPE_CHECKING:
    from byol.views.view import View


@dataclass(frozen=True)
class Out:
    """What a method's forward gives.

    loss: scalar, full precision. features: [B, D], the encoder's output for the first view, row i = image i.
    embedding: [B, d], the online projection of the first view.
    """

    loss: Tensor
    features: Tensor
    embedding: Tensor

    def detach(self) -> Out:
        return Out(self.loss.detach(), self.features.detach(), self.embedding.detach())


@dataclass(frozen=True)
class Situation:
    """What a method's defaults may depend on. total_steps: optimizer steps. image_size: px."""

    num_images: int
    image_size: int
    channels: int
    images_per_step: int
    total_steps: int


@dataclass(frozen=True)
class Defaults:
    """How a method trains on a person's own data, where the person did not say. base_lr is for 256 images a step;
    warmup is a share of the steps."""

    optimizer: Optimizer
    base_lr: float
    weight_decay: float
    warmup: float
    method_args: dict[str, Any]


class Method(nn.Module):
    """A self-supervised method: views in, loss out, and what changes once per optimizer step.

    `forward` changes nothing but batch-norm statistics. `after_step` is called once after each optimizer step with
    progress = k/K (k optimizer steps completed before this one) and the step's detached outs, one per micro-batch.
    """

    views: ClassVar[tuple[View, ...]]
    encoder: Encoder

    @staticmethod
    @abstractmethod
    def defaults(situation: Situation) -> Defaults: ...

    @abstractmethod
    def forward(self, *views: Tensor) -> Out: ...

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """The online projection [B, d] of images [B, C, H, W]; diagnostics read it."""

    def after_step(self, progress: float, outs: list[Out]) -> None:
        """Nothing, for methods without state of their own."""

    def status(self, progress: float) -> dict[str, float]:
        """Numbers worth logging that only the method knows."""
        return {}


def get(name: str) -> type[Method]:
    """The method of that name."""
    from byol.methods.byol import BYOL

    methods: dict[str, type[Method]] = {"byol": BYOL}
    return methods[name]
