"""Linear evaluation by gradient descent, as in BYOL's released code: a Linear on a frozen network's features of crops.

What it shares with `finetune`, the other protocol that trains on labelled images, stands here too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from byol import rng
from byol.data.loader import Loader, Normalization, views_for
from byol.data.source import HOW_TO_LABEL, DataError, Source
from byol.encoder import initialize
from byol.evaluate.features import extract
from byol.evaluate.images import evaluation_batches
from byol.evaluate.scores import Score, accuracy
from byol.schedules import warmup_cosine
from byol.views.view import View

Candidate = TypeVar("Candidate")
Split = tuple[np.ndarray, np.ndarray]
"""Rows of a source to fit to and rows to choose on, each int64, without a row in common."""

CROP_FLIP = View(jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)
"""Crop, as the first step of BYOL's views, and flip: all that classifiers are trained on."""
BASE_LRS = (0.4, 0.3, 0.2, 0.1, 0.05)
"""Learning rates per 256 images. Grill et al. 2020; the released code has 0.2 alone."""
EPOCHS = 80
BATCH_SIZE = 1024
MOMENTUM = 0.9


@dataclass(frozen=True)
class Input:
    """How images reach a network."""

    size: int
    """Height and width, px."""
    normalization: Normalization
    device: torch.device | str = "cpu"
    workers: int = 0

    def loader(self, source: Source, pixels: Tensor | None, *, view: View, batch_size: int, seed: int) -> Loader:
        """Batches of one view of each image, to train on."""
        return Loader(
            source,
            views_for((view,), source),
            pixels=pixels,
            size=self.size,
            batch_size=batch_size,
            normalization=self.normalization,
            seed=seed,
            workers=self.workers,
            device=self.device,
        )

    def outputs(self, network: nn.Module, source: Source, pixels: Tensor | None) -> tuple[np.ndarray, Tensor]:
        """(rows [M] int64, what the network gives for each [M, D] float32) in inference mode, in evaluation views.

        M < N where images turn out unusable.
        """
        rows = []

        def images() -> Iterator[Tensor]:
            for part, batch in evaluation_batches(source, pixels, self.size, workers=self.workers):
                rows.append(part)
                yield batch

        found = extract(
            network,
            images(),
            mean=self.normalization.mean,
            std=self.normalization.std,
            size=None,
            device=self.device,
        )
        return torch.cat(rows).numpy(), found

    def example(self, network: nn.Module, channels: int) -> Tensor:
        """Features [1, D] of one image, on the device, for their number and dtype."""
        with inference_mode(network):
            features = network(torch.zeros(1, channels, self.size, self.size, device=self.device))
        if features.ndim != 2:
            raise ValueError(f"the network gives {list(features.shape)}; use one that pools its features to [B, D]")
        return features


@dataclass(frozen=True, eq=False)
class SGDFit:
    """What `fit_sgd_linear` found."""

    network: nn.Module
    """The one given."""
    head: nn.Linear
    """Trained at the chosen learning rate on both parts."""
    base_lr: float
    """The chosen one; the learning rate starts at base_lr * batch_size / 256."""
    validation_scores: dict[float, float]
    """Base learning rate -> score on the validation part, nan if it diverged; empty without such a part."""
    batch_size: int
    epochs: int
    steps: int
    """Of the head's training."""
    input: Input

    def scores(self, source: Source, pixels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """(rows [M] int64 ascending, logits [M, K] float32) of a source's images in evaluation views.

        An image that turns out unusable has no row: logits[i] is of image rows[i], whose label is
        source.labels[rows[i]]. pixels: [N, C, H, W] uint8, or None where images are decoded.
        """
        rows, features = self.input.outputs(self.network, source, pixels)
        return rows, logits(self.head, features).numpy()


def fit_sgd_linear(
    network: nn.Module,
    source: Source,
    pixels: Tensor | None,
    *,
    split: Split,
    normalization: Normalization,
    size: int,
    base_lrs: Sequence[float] = BASE_LRS,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    view: View = CROP_FLIP,
    workers: int = 0,
    score: Score = accuracy,
    progress: Callable[[int, int], None] | None = None,
) -> SGDFit:
    """A linear classifier by SGD on a frozen network's features, its learning rate chosen on a validation part.

    Grill et al. 2020 and the released code: crops and flips, the network in inference mode, SGD with Nesterov momentum
    0.9 and no weight decay, cosine to 0 without warm-up, step by step, mean cross-entropy. Every learning rate has a
    head of its own, all start alike, and all see the same batches. That of the highest score on the validation part (on
    a tie the smallest) is trained anew on both parts, for as many epochs: floor(epochs N / B) steps. A batch has
    `batch_size` images, but never more than a quarter of the fit part: B = 1024 would leave a few hundred images less
    than a step an epoch. The learning rate starts at base_lr * B / 256.

    network: on `device`, images [B, C, size, size] float32, normalised -> features [B, D]. Each of its modules has its
    training mode back afterwards. source: every image labelled. pixels: [N, C, H, W] uint8, row i the source's image
    i, or None: workers decode. split: what is in neither part is not used; the validation part may be empty where
    there is one learning rate. progress: (steps done, steps in all).
    """
    if not base_lrs or not all(0 < lr < math.inf for lr in base_lrs):
        raise ValueError(f"base_lrs={list(base_lrs)} is not allowed; use one or more positive finite numbers")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size} is not allowed; use 1 or more")
    candidates = sorted(set(base_lrs))
    num_classes = check(source, pixels, split, len(candidates))
    own = Input(size, normalization, device, workers)
    batch_size = max(1, min(batch_size, len(split[0]) // 4))
    whole = np.concatenate(split)
    validating = len(split[1]) > 0
    total = epochs * len(split[0]) // batch_size * validating + epochs * len(whole) // batch_size
    tick = ticker(progress, lambda: total)

    def train(rows: np.ndarray, lrs: Sequence[float]) -> dict[float, nn.Linear]:
        loader = own.loader(*chosen(source, pixels, rows), view=view, batch_size=batch_size, seed=seed)
        with seeded(seed):
            start = new_head(own.example(network, source.channels), num_classes)
        return train_heads(network, loader, start, lrs, epochs * len(rows) // batch_size, tick)

    validation_scores: dict[float, float] = {}
    if validating:
        heads = train(split[0], candidates)
        held, held_pixels = chosen(source, pixels, split[1])
        rows, features = own.outputs(network, held, held_pixels)
        for lr, head in heads.items():
            validation_scores[lr] = validation_score(score, held, rows, logits(head, features), head)
    base_lr = best(validation_scores) if validating else candidates[0]
    head = train(whole, [base_lr])[base_lr]
    if not finite(head):
        raise ValueError(f"training diverged at base_lr={base_lr:g}; use smaller ones")
    return SGDFit(network, head, base_lr, validation_scores, batch_size, epochs, epochs * len(whole) // batch_size, own)


def train_heads(
    network: nn.Module,
    loader: Loader,
    start: nn.Linear,
    base_lrs: Sequence[float],
    steps: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[float, nn.Linear]:
    """A copy of `start` for each base learning rate, trained on the same features.

    Each is bit for bit what it is alone: its products are its own, and so is its gradient in the sum of the losses.
    """
    heads = {lr: copy.deepcopy(start) for lr in base_lrs}
    groups = [{"params": head.parameters()} for head in heads.values()]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True)
    with inference_mode(network):
        for step, batch in enumerate(loader.batches(0, steps)):
            for group, base_lr in zip(optimizer.param_groups, heads, strict=True):
                group["lr"] = learning_rate(base_lr, loader.batch_size, step, steps)
            features = network(batch.views[0])
            labels = batch.labels.to(features.device)
            with torch.enable_grad():
                losses = [F.cross_entropy(head(features), labels) for head in heads.values()]
                torch.stack(losses).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            tick()
    return heads


def learning_rate(base_lr: float, batch_size: int, step: int, steps: int) -> float:
    """base_lr * B / 256 at step 0, then a half cosine that would be 0 at `steps`."""
    return base_lr * batch_size / 256 * warmup_cosine(step, warmup_steps=0, total_steps=steps)


def new_head(example: Tensor, num_classes: int) -> nn.Linear:
    """For features like the example's [1, D]: truncated normal weights, from torch's global generator, and biases 0."""
    head = nn.Linear(example.shape[1], num_classes)
    initialize(head)
    return head.to(example)


@torch.no_grad()
def logits(head: nn.Linear, features: Tensor) -> Tensor:
    """[N, K] float32, on the CPU, of features [N, D]."""
    return head(features.to(head.weight)).float().cpu()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator seeded, and as it was afterwards: heads and dropout draw from it."""
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.bits(rng.key(seed, rng.Purpose.METHOD), 1)))
        yield


@contextmanager
def inference_mode(network: nn.Module) -> Iterator[None]:
    """Without gradients, the network in inference mode; each of its modules has its own mode back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def check(source: Source, pixels: Tensor | None, split: Split, num_candidates: int) -> int:
    """The number of classes. DataError or ValueError where these cannot be trained on."""
    if source.labels is None or (source.labels < 0).any():
        raise DataError(f"{source.name} has images without a label; {HOW_TO_LABEL}, or leave those out")
    if source.num_classes < 2:
        raise DataError(f"{source.name} has labels of {source.num_classes} class; a classifier needs 2 or more")
    if pixels is not None and len(pixels) != len(source):
        raise ValueError(f"there are {len(pixels)} images in memory and {len(source)} in the source; use the same")
    if len(split[0]) < 2:
        raise DataError(f"{len(split[0])} labelled image(s) to train on; at least 2 are needed, better 5 of each class")
    if len(np.intersect1d(*split)):
        raise ValueError("an image is in both the fit and the validation part; put each in one")
    if len(split[1]) == 0 and num_candidates > 1:
        raise DataError(
            f"no image is left to choose among {num_candidates} settings on; label more images, or give one setting"
        )
    return source.num_classes


def chosen(source: Source, pixels: Tensor | None, rows: np.ndarray) -> tuple[Source, Tensor | None]:
    """The source and the pixels of some rows, which come out ascending."""
    return source.subset(rows), None if pixels is None else pixels[torch.from_numpy(np.sort(rows))]


def validation_score(score: Score, part: Source, rows: np.ndarray, found: Tensor, trained: nn.Module) -> float:
    """Of logits [M, K] for rows [M] of a part; nan where training diverged."""
    assert part.labels is not None, "checked before training"
    return float(score(part.labels[rows], found.argmax(1).numpy())) if finite(trained) else math.nan


def finite(trained: nn.Module) -> bool:
    """Whether all weights and running statistics are finite: training did not diverge."""
    return all(bool(value.isfinite().all()) for value in trained.state_dict().values())


def best(scores: Mapping[Candidate, float]) -> Candidate:
    """The candidate of the highest score, on a tie the smallest; one that diverged never."""
    scored = {candidate: value for candidate, value in scores.items() if not math.isnan(value)}
    if not scored:
        raise ValueError("training diverged at every learning rate; use smaller ones")
    return min(scored, key=lambda candidate: (-scored[candidate], candidate))


def ticker(progress: Callable[[int, int], None] | None, total: Callable[[], int]) -> Callable[[], None]:
    """What to call after each step; it tells `progress` (steps done, steps in all)."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total())

    return tick
