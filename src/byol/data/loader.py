"""The order in which images are seen, and the batches of views made of them.

Batch b is positions [b B, (b + 1) B) of the endless sequence perm(seed, epoch 0), perm(seed, epoch 1), ...: nothing
is dropped, an epoch belongs to an image, and a batch is a function of its number, so that training can start anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from byol import rng
from byol.data.decode import Unusable
from byol.data.source import DataError, Source
from byol.views import ops, recipes
from byol.views.view import View, without_color

MEMORY_LIMIT_BYTES = 4 << 30
"""Uniform images of at most SMALL_PX that take no more than this live in memory."""
SMALL_PX = 128
HOLD_OUT_EPOCH = 1 << 40
"""Views of held-out images are drawn as of this epoch, which no training reaches."""


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        return ops.normalize(images, images.new_tensor(self.mean), images.new_tensor(self.std))


@dataclass(frozen=True)
class Batch:
    """Views of B images. ids: [B] int64, the images' stable ids. labels: [B] int64, -1 for unknown.

    views: one [B, C, S, S] float32 per view, normalised, on the device. replaced: (id, reason) of images that turned
    out unusable, each replaced by another.
    """

    ids: Tensor
    labels: Tensor
    views: tuple[Tensor, ...]
    replaced: list[tuple[int, str]] = field(default_factory=list)


class Order:
    """The endless sequence of images. num: how many images an epoch has."""

    def __init__(self, num: int, seed: int) -> None:
        self.num = num
        self._key = rng.key(seed, rng.Purpose.ORDER)
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Positions [start, start + count) as (row, epoch), each [count] int64; rows are in [0, num)."""
        position = torch.arange(start, start + count)
        epochs = position // self.num
        rows = torch.empty_like(position)
        for epoch in range(start // self.num, (start + count - 1) // self.num + 1):
            here = epochs == epoch
            rows[here] = self._permutation(epoch)[position[here] % self.num]
        return rows, epochs

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = rng.permutation(rng.fold(self._key, epoch), self.num)
        return self._epochs[epoch]


def split_hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source | None]:
    """(training images, held-out images): `share` of the images, at most 1,024; None where that makes fewer than 8.

    Which images, follows from the seed and their number alone.
    """
    num = min(round(share * len(source)), 1024)
    if num < 8:
        return source, None
    order = rng.permutation(rng.key(seed, rng.Purpose.HOLD_OUT), len(source)).numpy()
    return source.subset(np.sort(order[num:])), source.subset(np.sort(order[:num]))


def fits_memory(source: Source) -> bool:
    """Whether the images live in memory as uint8 and are cropped in batches on the device."""
    size = len(source) * source.height * source.width * source.channels
    return source.uniform and max(source.height, source.width) <= SMALL_PX and size <= MEMORY_LIMIT_BYTES


def load_pixels(
    source: Source, progress: Callable[[int, int], None] | None = None
) -> tuple[Source, Tensor, tuple[tuple[int, str, str], ...]]:
    """All images of a uniform source: (it without what turned out unusable, [N, C, H, W] uint8, the skipped)."""
    pixels, kept, skipped = source.pixels(progress)
    rows = np.flatnonzero(np.isin(source.ids, kept))
    return source.subset(rows), torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), skipped


class Loader:
    """Batches of views of a source's images, by batch number.

    pixels: [N, C, H, W] uint8 where the images live in memory (see `load_pixels`), else None: workers decode them once
    an epoch and cut uint8 crops.
    """

    def __init__(
        self,
        source: Source,
        views: tuple[View, ...],
        *,
        pixels: Tensor | None,
        size: int,
        batch_size: int,
        normalization: Normalization,
        seed: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source = source
        self.views = views
        self.size = size
        self.batch_size = batch_size
        self.normalization = normalization
        self.seed = seed
        self.workers = workers
        self.device = torch.device(device)
        self.order = Order(len(source), seed)
        self.pixels = None if pixels is None else pixels.to(self.device)
        labels = source.labels if source.labels is not None else np.full(len(source), -1)
        self.ids = torch.from_numpy(source.ids.astype(np.int64))
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches start .. stop - 1."""
        if self.pixels is not None:
            for number in range(start, stop):
                rows, epochs = self.order(number * self.batch_size, self.batch_size)
                yield self.batch_of(rows, epochs)
            return
        loader = DataLoader(
            _Crops(self),
            sampler=range(start * self.batch_size, stop * self.batch_size),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            persistent_workers=False,
            generator=torch.Generator(),  # else it draws from torch's own
        )
        for rows, epochs, ids, crops, replaced in loader:
            yield self._finish(rows, epochs, ids, crops, replaced)

    def batch_of(self, rows: Tensor, epochs: Tensor) -> Batch:
        """Views of chosen images, in this process. rows: [B] int64 in [0, N). epochs: [B] int64."""
        if self.pixels is None:
            with self._full_precision():
                items = [self.crops(int(row), int(epoch)) for row, epoch in zip(rows, epochs, strict=True)]
            return self._finish(*_collate(items))
        images = self.pixels[rows.to(self.device)]
        parameters = self._draw(epochs, self.ids[rows], *images.shape[-2:])
        with self._full_precision():
            made = tuple(
                self.normalization(recipes.photometry(view, recipes.crop_batch(view, images, p, self.size), p))
                for view, p in zip(self.views, parameters, strict=True)
            )
        return Batch(self.ids[rows], self.labels[rows], made)

    def _full_precision(self) -> torch.autocast:
        """Views are float32 also where the caller computes in less."""
        return torch.autocast(self.device.type, enabled=False)

    def crops(self, row: int, epoch: int) -> tuple[int, int, int, list[np.ndarray], list[tuple[int, str]]]:
        """One image decoded, its crops cut: (row used, epoch, id drawn with, [C, S, S] uint8 per view, replaced).

        An unusable image is replaced by one that follows from (seed, epoch, id); its views are drawn as its own.
        """
        wanted = int(self.ids[row])
        replaced: list[tuple[int, str]] = []
        key = rng.fold(rng.fold(rng.key(self.seed, rng.Purpose.REPLACEMENT), epoch), wanted)
        for candidate in [row, *(rng.bits(key, 64) % len(self.ids)).tolist()]:
            try:
                image = self.source.read(int(self.ids[candidate]))
            except Unusable as reason:
                replaced.append((int(self.ids[candidate]), str(reason)))
                continue
            parameters = self._draw(torch.tensor([epoch]), torch.tensor([wanted]), *image.shape[:2])
            cut = [recipes.crop_one(view, image, p, self.size) for view, p in zip(self.views, parameters, strict=True)]
            return candidate, epoch, wanted, cut, replaced
        raise DataError(f"more than 64 images in a row are unusable; the last: {replaced[-1][1]}")

    def _draw(self, epochs: Tensor, ids: Tensor, height: int, width: int) -> list[recipes.Parameters]:
        heights, widths = torch.full_like(ids, height), torch.full_like(ids, width)
        keys = recipes.view_keys(self.seed, epochs, ids, len(self.views))
        return [recipes.draw(view, k, heights, widths, self.size) for view, k in zip(self.views, keys, strict=True)]

    def _finish(
        self, rows: Tensor, epochs: Tensor, ids: Tensor, crops: list[Tensor], replaced: list[tuple[int, str]]
    ) -> Batch:
        # The boxes were drawn in the worker for each image's own size; nothing else depends on it.
        parameters = self._draw(epochs, ids, self.size, self.size)
        with self._full_precision():
            made = tuple(
                self.normalization(recipes.photometry(view, cut.to(self.device, non_blocking=True).float() / 255, p))
                for view, cut, p in zip(self.views, crops, parameters, strict=True)
            )
        return Batch(self.ids[rows], self.labels[rows], made, replaced)


class _Crops(Dataset[Any]):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getitem__(self, position: int) -> Any:
        row, epoch = self.loader.order(position, 1)
        return self.loader.crops(int(row), int(epoch))


def _collate(items: list[Any]) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[tuple[int, str]]]:
    rows, epochs, ids, cuts, replaced = zip(*items, strict=True)
    views = [torch.from_numpy(np.stack(cut)) for cut in zip(*cuts, strict=True)]
    return (
        torch.tensor(rows),
        torch.tensor(epochs),
        torch.tensor(ids),
        views,
        [each for several in replaced for each in several],
    )


def data_statistics(source: Source, pixels: Tensor | None, num: int = 2000) -> Normalization:
    """Per-channel mean and standard deviation over at most `num` images, evenly spaced in the listing."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(num, len(source))).astype(int))
    count, total, squares = 0, np.zeros(source.channels), np.zeros(source.channels)
    for row in rows:
        if pixels is not None:
            image = pixels[row].permute(1, 2, 0).numpy()
        else:
            try:
                image = source.read(int(source.ids[row]))
            except Unusable:
                continue
        flat = image.reshape(-1, source.channels) / 255.0
        count += len(flat)
        total += flat.sum(0)
        squares += (flat**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    return Normalization(tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std))


def views_for(views: tuple[View, ...], channels: int) -> tuple[View, ...]:
    """The method's views, without what only makes sense for RGB where the images are not."""
    return views if channels == 3 else tuple(without_color(view) for view in views)
