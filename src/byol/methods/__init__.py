"""The methods, and the small contract that each of them keeps."""

from __future__ import annotations

import importlib
import inspect
import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from byol.encoder import SMALL_IMAGE_PX, Encoder
from byol.names import METHODS, import_outside, unknown
from byol.run import Optimization

if TYPE_CHECKING:
    from byol.views.view import View


@dataclass(frozen=True)
class Out:
    """What a method's forward gives.

    loss: scalar, full precision, of the global batch. features: [B, D], the encoder's output for the first view, row i
    = image i. embedding: [B, d], the online projection of the first view. extras: further tensors [B, ...] that
    `after_step` wants, by name.
    """

    loss: Tensor
    features: Tensor
    embedding: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Out:
        extras = {name: value.detach() for name, value in self.extras.items()}
        return Out(self.loss.detach(), self.features.detach(), self.embedding.detach(), extras)


@dataclass(frozen=True)
class Situation:
    """What a method's defaults may depend on.

    num_images: that are trained on. image_size: px. images_per_step: in one optimizer step, in `accumulate` forward
    passes. total_steps: optimizer steps.
    """

    num_images: int
    image_size: int
    channels: int
    images_per_step: int
    total_steps: int
    accumulate: int = 1

    @property
    def batch_size(self) -> int:
        """Images in one forward pass."""
        return self.images_per_step // self.accumulate

    @property
    def small(self) -> bool:
        """Whether the images are small enough for smaller heads."""
        return self.image_size <= SMALL_IMAGE_PX

    def decay(self, steps: float, *, slowest: float, fastest: float) -> float:
        """A moving average's decay, 1 - steps / K: it remembers the same share of a run whatever the run's length."""
        return round(1 - min(max(steps / self.total_steps, 1 - slowest), 1 - fastest), 4)


@dataclass(frozen=True, kw_only=True)
class Defaults(Optimization):
    """How a method trains on a person's own data, where the person did not say. warmup: a share of the steps."""

    warmup: float = 0.1
    method_args: dict[str, Any] = field(default_factory=dict)


def adamw(situation: Situation, method_args: dict[str, Any], **changes: Any) -> Defaults:
    """The rules of docs/defaults.md: AdamW at 0.002 sqrt(images / 256), with a method's own arguments and changes."""
    # Adam's scaling rule (Malladi et al. 2022, arXiv:2205.10287); base_lr is multiplied by images / 256 for every
    # optimizer. Decay grows alike, so that the share of a weight that decays in an epoch stays.
    root = math.sqrt(situation.images_per_step / 256)
    rules = Defaults(
        optimizer="adamw",
        base_lr=round(0.002 / root, 6),
        weight_decay=round(1e-4 * root, 8),
        method_args=method_args,
    )
    return replace(rules, **changes)


class Method(nn.Module):
    """A self-supervised method: views in, loss out, and what changes once per optimizer step.

    `forward` takes one [B, C, H, W] tensor for each of `views`, and by keyword what its signature lists of `ids` ([B]
    int64, the images' stable ids), `labels` ([B] int64, -1 for unknown) and `key` ([2], the step's random key; a draw
    per image uses (key, id)). It changes nothing but batch-norm statistics. `after_step` is called once after each
    optimizer step with progress = k/K (k optimizer steps completed before this one) and the step's detached outs, one
    per micro-batch; what it changes lives in registered buffers. Where several processes train, each returns the loss
    of the global batch (see `byol.parallel`).

    Constructor arguments named `num_images` and `num_classes` are filled from the data: ids are below num_images.
    """

    views: ClassVar[tuple[View, ...]]
    across_batch: ClassVar[bool] = False
    """Whether the loss compares the images of one forward pass with each other: then gradient accumulation does not
    stand for a larger batch, and the batch is what one forward pass sees."""
    encoder: Encoder
    projector: nn.Module

    @classmethod
    def defaults(cls, situation: Situation) -> Defaults:
        return adamw(situation, {})

    @classmethod
    def check(cls, situation: Situation, **method_args: Any) -> None:
        """ValueError, in one line, for arguments that do not suit the data or the batch."""

    @abstractmethod
    def forward(self, *views: Tensor) -> Out: ...

    def online(self) -> nn.Sequential:
        """Encoder and projector in turn, sharing their parameters: what a target follows."""
        return nn.Sequential(self.encoder, self.projector)

    def embed(self, x: Tensor) -> Tensor:
        """The online projection [B, d] of images [B, C, H, W]; diagnostics read it."""
        return self.projector(self.encoder(x))

    def after_step(self, progress: float, outs: list[Out]) -> None:
        """Nothing, for methods without state of their own."""

    def status(self, progress: float) -> dict[str, float]:
        """Numbers worth logging that only the method knows."""
        return {}


def check_widths(**widths: int | None) -> None:
    """ValueError where a layer would have no units."""
    for name, width in widths.items():
        if width is not None and width < 1:
            raise ValueError(f"{name}={width} is a width: at least 1")


def check_decay(**decays: float) -> None:
    for name, decay in decays.items():
        if not 0 <= decay <= 1:
            raise ValueError(f"{name}={decay} is a decay: from 0 to 1")


def check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be greater than 0 and finite")


@cache
def get(name: str) -> type[Method]:
    """The method of that name: one of this package's, or module:Class. ValueError where module:Class is no method."""
    if ":" in name:
        found = import_outside(name)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise ValueError(f"{name} is not a subclass of byol.methods.Method")
        return found
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    module = importlib.import_module(f"byol.methods.{name}")
    own = (c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__)
    return next(c for c in own if issubclass(c, Method))


def uses_labels(method: type[Method]) -> bool:
    """Whether the method learns from labels; every table says so."""
    return "labels" in wanted(method)


def wanted(method: type[Method]) -> tuple[str, ...]:
    """Which of ids, labels and key a method's forward asks for."""
    parameters = inspect.signature(method.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
