"""Fine-tuning: all weights are trained on labelled images. Semi-supervised evaluation, and transfer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol.data.loader import Loader, Normalization
from byol.data.source import Source
from byol.evaluate.scores import Score, accuracy
from byol.evaluate.sgd import (
    CROP_FLIP,
    MOMENTUM,
    Input,
    Split,
    best,
    check,
    chosen,
    finite,
    learning_rate,
    new_head,
    seeded,
    ticker,
    validation_score,
)
from byol.optim import parameter_groups
from byol.views.view import View


@dataclass(frozen=True, order=True)
class Point:
    """One setting of a grid. The order decides ties: the smaller learning rate, then decay, then length wins."""

    base_lr: float
    """The learning rate starts at base_lr * B / 256."""
    weight_decay: float
    """Before it is divided by the starting learning rate, which makes it torch's weight_decay."""
    length: int
    """Epochs or steps, as the grid says."""


@dataclass(frozen=True)
class Grid:
    """What fine-tuning tries: every learning rate with every weight decay and length."""

    base_lrs: tuple[float, ...]
    weight_decays: tuple[float, ...]
    lengths: tuple[int, ...]
    unit: Literal["epochs", "steps"]
    """Of the lengths."""
    batch_size: int
    """Images; never more than there are in the fit part."""
    slow_batch_norm: bool
    """Batch norm's statistics decay by max(1 - 10/s, 0.9) a step, s the steps per epoch; else as the network has it."""

    def __post_init__(self) -> None:
        if not self.base_lrs or not all(0 < lr < math.inf for lr in self.base_lrs):
            raise ValueError(f"base_lrs={list(self.base_lrs)} is not allowed; use one or more positive finite numbers")
        if not self.weight_decays or not all(0 <= decay < math.inf for decay in self.weight_decays):
            raise ValueError(f"weight_decays={list(self.weight_decays)} is not allowed; use 0 or finite numbers above")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths={list(self.lengths)} is not allowed; use one or more, each at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size} is not allowed; batch norm needs 2 or more")

    def points(self) -> list[Point]:
        return sorted({Point(*values) for values in product(self.base_lrs, self.weight_decays, self.lengths)})

    def middle(self) -> Grid:
        """Of the learning rates, decays and lengths each the middle one: where nothing can be chosen."""
        points = [sorted(each)[len(each) // 2] for each in (self.base_lrs, self.weight_decays)]
        length = sorted(self.lengths)[len(self.lengths) // 2]
        return replace(self, base_lrs=(points[0],), weight_decays=(points[1],), lengths=(length,))

    def about(self) -> str:
        """The protocol, for people."""
        return (
            f"all weights, crop + flip views, SGD with Nesterov momentum 0.9, cosine, batches of {self.batch_size}; "
            f"the best on the validation images of base rates {_listed(self.base_lrs)} (x batch/256), decays "
            f"{_listed(self.weight_decays)} and {_listed(self.lengths)} {self.unit}, then trained on all; "
            "the middle of these where no validation images can be set aside"
        )


SEMI = Grid(
    base_lrs=(0.005, 0.01, 0.02, 0.05, 0.1),
    weight_decays=(0.0,),
    lengths=(30, 50),
    unit="epochs",
    batch_size=1024,
    slow_batch_norm=False,
)
"""Semi-supervised evaluation on 1 % and 10 % of ImageNet's labels. Grill et al. 2020."""
SEMI_SMALL = Grid(
    base_lrs=SEMI.base_lrs[2:],
    weight_decays=(0.0,),
    lengths=SEMI.lengths[1:],
    unit="epochs",
    batch_size=64,
    slow_batch_norm=False,
)
"""For a few hundred labels on two CPU cores: SEMI's three largest rates and its longer training, three trainings in
place of ten, with as many steps an epoch at 800 images as SEMI has at 1 % of ImageNet's 1,281,167."""
TRANSFER = Grid(
    base_lrs=tuple(10.0 ** (-4 + i / 2) for i in range(7)),
    weight_decays=(0.0, *(10.0 ** (-6 + i / 2) for i in range(7))),
    lengths=(20_000,),
    unit="steps",
    batch_size=256,
    slow_batch_norm=True,
)
"""Fine-tuning on another data set: seven rates from 1e-4 to 0.1, no decay or seven from 1e-6 to 1e-3, 20,000 steps.
Grill et al. 2020 (after Kornblith et al. 2019 and Chen et al. 2020)."""
TRANSFER_SMALL = Grid(
    base_lrs=TRANSFER.base_lrs[2::2],
    weight_decays=(TRANSFER.weight_decays[0], TRANSFER.weight_decays[5]),
    lengths=(30,),
    unit="epochs",
    batch_size=64,
    slow_batch_norm=True,
)
"""For two CPU cores: TRANSFER's rates 1e-3, 1e-2 and 0.1, no decay or 1e-4, and 30 epochs in place of 20,000 steps; six
trainings in place of 56."""


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


@dataclass(frozen=True, eq=False)
class FinetuneFit:
    """What `finetune` found."""

    model: nn.Sequential
    """The network's copy and the head, trained at the chosen point on both parts."""
    point: Point
    """The chosen one."""
    validation_scores: dict[Point, float]
    """Every point of the grid -> score on the validation part, nan if it diverged; empty without such a part."""
    batch_size: int
    steps: int
    """Of the model's training."""
    input: Input

    def scores(self, source: Source, pixels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """(rows [M] int64, logits [M, K] float32) of a source's images, as `SGDFit.scores`."""
        rows, found = self.input.outputs(self.model, source, pixels)
        return rows, found.numpy()


def finetune(
    network: nn.Module,
    source: Source,
    pixels: Tensor | None,
    *,
    grid: Grid,
    split: Split,
    normalization: Normalization,
    size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    view: View = CROP_FLIP,
    workers: int = 0,
    score: Score = accuracy,
    progress: Callable[[int, int], None] | None = None,
) -> FinetuneFit:
    """Train a copy of the network and a new linear head on labelled images, settings chosen on a validation part.

    Grill et al. 2020: crops and flips, batch norm in training mode, SGD with Nesterov momentum 0.9, mean
    cross-entropy. Every point of the grid starts from the same weights and sees the same batches of the fit part. That
    of the highest score on the validation part (on a tie the smallest rate, then decay, then length) is trained anew
    on both parts. A batch has grid.batch_size images, but never more than the fit part. Training on the same labels
    from scratch, the usual baseline, is the same call with an untrained network.

    What the paper does not say is done as in linear evaluation: the rate is base_lr * B / 256 (at the transfer grid's
    256 images base_lr itself) and falls by a half cosine to 0, step by step, without warm-up; the head starts from
    truncated normal weights and zero biases. Biases and normalisation parameters are not decayed. Computed in the
    network's own precision; on a CPU the same call gives the same bits.

    network: images [B, C, size, size] float32, normalised -> features [B, D]; it is not changed. Its parameters with
    requires_grad=False stay as they are. source: every image labelled. pixels: [N, C, H, W] uint8, row i the source's
    image i, or None: workers decode. split: what is in neither part is not used; the validation part may be empty
    where the grid has one point. progress: (steps done, steps in all, at most).
    """
    points = grid.points()
    num_classes = check(source, pixels, split, len(points))
    own = Input(size, normalization, device, workers)
    batch_size = min(grid.batch_size, len(split[0]))
    whole = np.concatenate(split)

    def steps(rows: np.ndarray, length: int) -> int:
        return length if grid.unit == "steps" else length * len(rows) // batch_size

    validating = len(split[1]) > 0
    total = sum(steps(split[0], p.length) for p in points) * validating + steps(whole, max(grid.lengths))
    tick = ticker(progress, lambda: total)

    def train(rows: np.ndarray, point: Point) -> nn.Sequential:
        loader = own.loader(*chosen(source, pixels, rows), view=view, batch_size=batch_size, seed=seed)
        with seeded(seed):
            start = copy.deepcopy(network).to(device)
            model = nn.Sequential(start, new_head(own.example(start, source.channels), num_classes))
            if grid.slow_batch_norm:
                set_batch_norm_momentum(model, len(rows) / batch_size)
            train_all(model, loader, point, steps(rows, point.length), tick)
        return model

    validation_scores: dict[Point, float] = {}
    if validating:
        held, held_pixels = chosen(source, pixels, split[1])
        for point in points:
            model = train(split[0], point)
            rows, found = own.outputs(model, held, held_pixels)
            validation_scores[point] = validation_score(score, held, rows, found, model)
    point = best(validation_scores) if validating else points[0]
    total += steps(whole, point.length) - steps(whole, max(grid.lengths))
    model = train(whole, point)
    if not finite(model):
        raise ValueError(f"training diverged at base_lr={point.base_lr:g}; use smaller ones")
    return FinetuneFit(model, point, validation_scores, batch_size, steps(whole, point.length), own)


def train_all(model: nn.Module, loader: Loader, point: Point, steps: int, tick: Callable[[], None]) -> None:
    """Train all of a model [B, C, S, S] -> logits [B, K], in place, and leave it in training mode."""
    # Not channels_last, an eighth faster at best: oneDNN 3.13 then writes outside its memory for the weight gradient of
    # strided 1x1 convolutions of fewer than 16 input channels, in batches that the threads do not divide.
    model.to(memory_format=torch.contiguous_format).train()
    decay = point.weight_decay / learning_rate(point.base_lr, loader.batch_size, 0, steps)
    groups = parameter_groups([model], weight_decay=decay)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True, fused=True)
    for step, batch in enumerate(loader.batches(0, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(point.base_lr, loader.batch_size, step, steps)
        found = model(batch.views[0])
        F.cross_entropy(found, batch.labels.to(found.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        tick()


def set_batch_norm_momentum(model: nn.Module, steps_per_epoch: float) -> None:
    """Let running statistics decay by max(1 - 10/s, 0.9) a step. Grill et al. 2020.

    torch's momentum is 1 - that: at most the usual 0.1, which it is up to 100 steps per epoch.
    """
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.momentum = min(10 / steps_per_epoch, 0.1)
