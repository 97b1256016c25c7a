"""Batches of views of a source's images: a batch is a function of its number, so that training can start anywhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from byol import cores, rng, signals
from byol.data.decode import Unusable
from byol.data.order import Order, StreamOrder
from byol.data.source import DataError, Source
from byol.data.units import some_rows
from byol.encoder import SMALL_IMAGE_PX
from byol.views import ops, recipes
from byol.views.view import View, without_color

MEMORY_LIMIT_BYTES = 4 << 30
"""Uniform images of at most SMALL_PX that take no more than this live in memory."""
SMALL_PX = 128
HELD_OUT_OF_A_UNIT = 64
HELD_OUT_UNITS = 8
LOOKED_AT_OF_A_UNIT = 16
CPU = torch.device("cpu")
HOLD_OUT_EPOCH = 1 << 40
"""Views of held-out images are drawn as of this epoch, which no training reaches."""


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        return self.in_place(images.clone())

    def in_place(self, images: Tensor) -> Tensor:
        return ops.normalize_(images, *self._on(images.device, images.dtype))

    @lru_cache(maxsize=8)  # noqa: B019 (few there are, and small)
    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean, dtype=dtype, device=device), torch.tensor(self.std, dtype=dtype, device=device)


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


def split_hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source | None]:
    """(training images, held-out images): `share` of the images, at most 1,024; None where that makes fewer than 8.

    Of tiles, those of some images, whose other tiles are in neither part. Which images, follows from the seed, their
    number, and of those that are read in units how many are in each.
    """
    most = round(share * len(source))
    num = min(most, 1024)
    if num < 8:
        return source, None
    key = rng.key(seed, rng.Purpose.HOLD_OUT)
    if source.unit_starts is None:
        order = rng.permutation(key, len(source)).numpy()
    else:
        bounds = source.unit_bounds()
        units = rng.permutation(rng.fold(key, 0), len(bounds) - 1).tolist()
        if source.groups is not None and len(rows := _whole(units, bounds, num, most)) >= 8:
            held = np.sort(rows)[np.linspace(0, len(rows) - 1, min(len(rows), 1024)).astype(int)]
            others = np.ones(len(source), bool)
            others[rows] = False
            return source.subset(others), source.subset(held)
        chosen = list[int]()
        for unit in units:  # a few from each of a few units, which are read whole
            inside = rng.permutation(rng.fold(key, unit + 1), int(bounds[unit + 1] - bounds[unit])).numpy()
            few = inside[: min(num - len(chosen), HELD_OUT_OF_A_UNIT, len(inside) // 2)]
            chosen += (bounds[unit] + few).tolist()
            if len(chosen) == num:
                break
        num = len(chosen)
        others = np.ones(len(source), bool)
        others[chosen] = False
        order = np.concatenate([chosen, np.flatnonzero(others)])
    return source.subset(np.sort(order[num:])), source.subset(np.sort(order[:num]))


def _whole(units: list[int], bounds: np.ndarray, wanted: int, most: int) -> np.ndarray:
    """All rows of some units, as many as are wanted and of several units, but not more than `most`: tiles of one image
    lie side by side, and some overlap."""
    found, num = [np.zeros(0, np.int64)], 0
    for unit in units:
        if (num < wanted or len(found) <= HELD_OUT_UNITS) and num + bounds[unit + 1] - bounds[unit] <= most:
            found.append(np.arange(bounds[unit], bounds[unit + 1]))
            num += len(found[-1])
    return np.concatenate(found)


def looked_at(source: Source, most: int) -> np.ndarray:
    """At most `most` rows of a source, evenly over it, for looks that read images out of their order."""
    bounds = np.arange(len(source) + 1) if source.unit_starts is None else source.unit_bounds()
    return some_rows(bounds, most, 1 if source.unit_starts is None else LOOKED_AT_OF_A_UNIT)


def fits_memory(source: Source) -> bool:
    """Whether the images live in memory and are cropped in batches on the device."""
    size = len(source) * source.height * source.width * source.channels * (4 if source.deep else 1)
    return source.uniform and max(source.height, source.width) <= SMALL_PX and size <= MEMORY_LIMIT_BYTES


def load_pixels(
    source: Source, progress: Callable[[int, int], None] | None = None
) -> tuple[Source, Tensor, tuple[tuple[int, str, str], ...]]:
    """All images of a uniform source: (it without what turned out unusable, [N, C, H, W] uint8, of deep ones float32,
    the skipped)."""
    pixels, kept, skipped = source.pixels(progress)
    rows = np.flatnonzero(np.isin(source.ids, kept))
    return source.subset(rows), torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), skipped


class Loader:
    """Batches of views of a source's images, by batch number.

    pixels: [N, C, H, W] uint8 or float32 where the images live in memory (see `load_pixels`), else None: they are
    decoded once an epoch and crops cut. workers: processes that do so, meanwhile; with none, threads of this one do
    when a batch is wanted, as many as PyTorch has. batch_size: of all processes together. share: (rank, world): the
    process's part of each batch is every world-th image of it, from the rank-th on. streams: for sources in units, see
    `StreamOrder`; the processes must divide it. reduced: whether JPEGs are decoded at a fraction of their size where
    all their crops stay as large as the views. arithmetic: see `recipes.compiled`.
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
        share: tuple[int, int] = (0, 1),
        streams: int = 0,
        reduced: bool = True,
        arithmetic: recipes.Arithmetic = recipes.EAGER,
    ) -> None:
        self.source = source
        self.views = views
        self.size = size
        self.batch_size = batch_size
        self.normalization = normalization
        self.seed = seed
        self.workers = workers
        self.device = torch.device(device)
        self.share = share
        self.reduced = reduced
        self.arithmetic = arithmetic
        self.order: Order | StreamOrder = Order(len(source), seed)
        if streams:
            self.order = StreamOrder(source.unit_bounds(), streams, seed)
        self.streams = streams // share[1]
        self.pixels = None if pixels is None else pixels.to(self.device)
        labels = source.labels if source.labels is not None else np.full(len(source), -1)
        self.ids = torch.from_numpy(source.ids.astype(np.int64))
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.sizes = None if source.sizes is None else torch.from_numpy(source.sizes)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches start .. stop - 1. On a GPU each is made while the device works on the one before."""
        made = self._batches(start, stop)
        return _beside(made, self.device) if self.device.type == "cuda" else made

    def _batches(self, start: int, stop: int) -> Iterator[Batch]:
        if self.pixels is not None or self.workers == 0:
            self._hold(self.streams, torch.get_num_threads())
            try:
                for number in range(start, stop):
                    yield self.batch_of(*self.seen_at(self.positions(number)))
            finally:
                self.source.rest()
            return
        # All workers make each batch together: the first one comes sooner, and fewer of them wait in memory. A stream
        # is always read by the same one.
        parts = self.workers_used()
        self._hold(self.streams // parts, 1)
        pieces = iter(
            DataLoader(
                _Crops(self),
                batch_sampler=(
                    self._for_worker(p[(p // self.share[1]) % parts == k])
                    for p in map(self.positions, range(start, stop))
                    for k in range(parts)
                ),
                num_workers=parts,
                collate_fn=_as_it_is,
                worker_init_fn=signals.of_a_worker,
                generator=torch.Generator(),  # else it draws from torch's own
            )
        )
        signals.of_workers()
        for number in range(start, stop):
            made = [self._made(pieces) for _ in range(parts)]
            for piece in made:
                if isinstance(piece, Exception):
                    raise piece
            first = int(self.positions(number)[0]) // self.share[1] % parts
            yield self._finish(made[first:] + made[:first])

    @staticmethod
    def _made(pieces: Iterator[Any]) -> Any:
        try:
            return next(pieces)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            raise DataError(
                "a process that decodes images died, of an image that broke its decoder or for want of memory; with "
                "--workers 0 the run itself would have"
            ) from error

    def workers_used(self) -> int:
        """As many of `workers` as have something to do: a stream is always read by the same one."""
        parts = max(1, min(self.workers, len(self.positions(0))))
        return max(n for n in range(1, parts + 1) if self.streams % n == 0)

    def positions(self, number: int) -> Tensor:
        """This process's positions of a batch, in the endless sequence of images."""
        rank, world = self.share
        return torch.arange(number * self.batch_size + rank, (number + 1) * self.batch_size, world)

    def batch_of(self, rows: Tensor, epochs: Tensor, ahead: Tensor | None = None) -> Batch:
        """Views of chosen images, in this process. rows: [B] int64 in [0, N). epochs: [B] int64. ahead: see `crops`."""
        if self.pixels is None:
            with self._full_precision():
                return self._finish([self.crops(rows, epochs, ahead)])
        images = self.pixels[ops.there(rows, self.device)]
        parameters = self._draw(epochs, self.ids[rows], *images.shape[-2:])
        with self._full_precision():
            made = tuple(
                self.normalization.in_place(
                    recipes.photometry(view, recipes.crop_batch(view, images, p, self.size), p, self.arithmetic)
                )
                for view, p in zip(self.views, parameters, strict=True)
            )
        return Batch(self.ids[rows], self.labels[rows], made)

    def _full_precision(self) -> torch.autocast:
        """Views are float32 also where the caller computes in less."""
        return torch.autocast(self.device.type, enabled=False)

    def crops(self, rows: Tensor, epochs: Tensor, ahead: Tensor | None = None) -> Crops:
        """Images decoded once each, and their crops cut. rows, epochs: [B] int64. ahead: [B] int64, of images that are
        read in units and streams, a row of the unit that is read next; see `seen_at`.

        An unusable image is replaced by one that follows from (seed, epoch, id); its views are drawn as its own.
        """
        drawn_as = self.ids[rows]
        keys = recipes.view_keys(self.seed, epochs, drawn_as, len(self.views))
        numbers = [recipes.crop_numbers(view, k) for view, k in zip(self.views, keys, strict=True)]
        boxes = None if self.sizes is None else self._boxes(numbers, self.sizes[rows])
        shape, dtype = (len(rows), self.source.channels, self.size, self.size), self.source.dtype
        made = [np.empty(shape, dtype) for _ in keys]

        def expect(i: int) -> object:
            if ahead is None:
                return None
            own = self.source.expect(int(self.ids[rows[i]]))
            self.source.expect(int(self.ids[ahead[i]]))
            return own

        def cut_one(i: int) -> tuple[int, list[tuple[int, str]]]:
            """(the row used, what was unusable)"""
            replaced = list[tuple[int, str]]()
            for tried in self._candidates(int(rows[i]), int(epochs[i])):
                try:
                    size = self._size(tried)
                    if boxes is not None and tried == rows[i]:
                        own = boxes[:, i]
                    else:
                        own = self._boxes([n[i : i + 1] for n in numbers], size[None])[:, 0]
                    cut = self._cut(tried, size, own)
                except Unusable as reason:
                    replaced.append((int(self.ids[tried]), str(reason)))
                    continue
                for crops, crop in zip(made, cut, strict=True):
                    crops[i] = crop.numpy()
                return tried, replaced
            raise DataError(f"more than 64 images in a row are unusable; the last: {replaced[-1][1]}")

        found = cores.each(cut_one, len(rows), expect)
        used = torch.tensor([row for row, _ in found], dtype=torch.int64)
        replaced = [each for _, some in found for each in some]
        return Crops(used, epochs, drawn_as, [torch.from_numpy(crops) for crops in made], replaced)

    def _size(self, row: int) -> Tensor:
        """[2]: height and width as an image's header says."""
        return self.sizes[row] if self.sizes is not None else torch.tensor(self.source.header(int(self.ids[row]))[:2])

    def _boxes(self, numbers: list[Tensor], sizes: Tensor) -> Tensor:
        """Where the crops of images of those sizes [B, 2] lie, for each view: [V, B, 4]."""
        heights, widths = sizes.unbind(-1)
        return torch.stack(
            [recipes.place(view, n, heights, widths) for view, n in zip(self.views, numbers, strict=True)]
        )

    def _candidates(self, row: int, epoch: int) -> Iterator[int]:
        yield row
        key = rng.fold(rng.fold(rng.key(self.seed, rng.Purpose.REPLACEMENT), epoch), int(self.ids[row]))
        yield from (rng.bits(key, 64) % len(self.ids)).tolist()

    def _cut(self, row: int, size: Tensor, boxes: Tensor) -> list[Tensor]:
        """[C, S, S] for each view of one image. boxes: [V, 4]."""
        smallest = float(boxes[:, 2:].min())
        reduce = next((k for k in (8, 4, 2) if smallest >= k * self.size), 1) if self.reduced else 1
        image = self.source.read(int(self.ids[row]), reduce)
        full = tuple(size.tolist())
        if image.shape[:2] == tuple(-(-side // reduce) for side in full):
            boxes = boxes / reduce
        elif image.shape[:2] != full:
            raise Unusable(f"its pixels are {image.shape[0]}x{image.shape[1]}, unlike its header")
        return [recipes.crop_one(view, image, box, self.size) for view, box in zip(self.views, boxes, strict=True)]

    def _draw(self, epochs: Tensor, ids: Tensor, height: int, width: int) -> list[recipes.Parameters]:
        heights, widths = torch.full_like(ids, height), torch.full_like(ids, width)
        keys = recipes.view_keys(self.seed, epochs, ids, len(self.views))
        channels = self.source.channels
        return [
            recipes.draw(view, k, heights, widths, self.size, channels)
            for view, k in zip(self.views, keys, strict=True)
        ]

    def _finish(self, pieces: list[Crops]) -> Batch:
        """pieces: of each worker, in turn an image of each."""
        rows = _in_turn([piece.rows for piece in pieces])
        epochs, drawn_as = _in_turn([piece.epochs for piece in pieces]), _in_turn([piece.drawn_as for piece in pieces])
        # The boxes were drawn in the worker for each image's own size; nothing else depends on it.
        parameters = self._draw(epochs, drawn_as, self.size, self.size)
        with self._full_precision():
            made = tuple(
                self._photometry(view, _in_turn([piece.crops[number] for piece in pieces], self.device), p)
                for number, (view, p) in enumerate(zip(self.views, parameters, strict=True))
            )
        replaced = [each for piece in pieces for each in piece.replaced]
        return Batch(self.ids[rows], self.labels[rows], made, replaced)

    def _photometry(self, view: View, crops: Tensor, p: recipes.Parameters) -> Tensor:
        if self.device.type == "cpu" and self.size > SMALL_IMAGE_PX:
            return recipes.photometry_each(view, crops, p, self.arithmetic, self.normalization.in_place)
        images = ops.there(crops, self.device).float() / 255
        return self.normalization.in_place(recipes.photometry(view, images, p, self.arithmetic))

    def _hold(self, streams: int, threads: int) -> None:
        """Of each stream the unit that is read and the next one; more where one core's image is units before that of
        another."""
        if streams:
            images_of_a_unit = len(self.source) / np.count_nonzero(np.diff(self.source.unit_bounds()))
            self.source.hold_units(2 + 2 * streams + math.ceil(cores.AHEAD * threads / images_of_a_unit))

    def seen_at(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `crops` is given for those positions; of streams, their first images begin to be read, all at once."""
        rows, epochs = self.order(positions)
        if not isinstance(self.order, StreamOrder):
            return rows, epochs, None
        for row in rows[: len((positions % self.order.streams).unique())].tolist():
            self.source.expect(int(self.ids[row]))
        return rows, epochs, self.order.following(positions)

    def _for_worker(self, positions: Tensor) -> list[list[int]]:
        """Positions in streams; else rows and epochs, for the order of all images takes memory and time once here."""
        if self.streams:
            return [positions.tolist()]
        return [each.tolist() for each in self.order(positions)]


@dataclass(frozen=True)
class Crops:
    """What a worker makes of B images. crops: [B, C, S, S] uint8 for each view, of deep images
    float32 in 0-255.

    rows: [B] int64, the images used; drawn_as: [B] int64, the ids of those whose places they have, and whose views are
    drawn; replaced: (id, reason) of those that turned out unusable.
    """

    rows: Tensor
    epochs: Tensor
    drawn_as: Tensor
    crops: list[Tensor]
    replaced: list[tuple[int, str]]


def _beside(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same, made on a stream of their own."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # images in memory may still be on their way
    while True:
        with torch.cuda.stream(side):
            batch = next(batches, None)
        if batch is None:
            return
        own = torch.cuda.current_stream(device)
        own.wait_stream(side)
        for view in batch.views:
            view.record_stream(own)
        yield batch


def _in_turn(pieces: list[Tensor], device: torch.device = CPU) -> Tensor:
    """Rows dealt to several pieces, together again: row i is of piece i modulo their number. device: where they go
    next; for a GPU they are put into memory that it can read."""
    if len(pieces) == 1:
        return pieces[0]
    shape = sum(map(len, pieces)), *pieces[0].shape[1:]
    whole = torch.empty(shape, dtype=pieces[0].dtype, pin_memory=device.type == "cuda")
    for number, piece in enumerate(pieces):
        whole[number :: len(pieces)] = piece
    return whole


def _as_it_is(made: Any) -> Any:
    return made


class _Crops(Dataset[Any]):
    def __init__(self, loader: Loader) -> None:
        self.loader = copy.copy(loader)
        self.loader.arithmetic = recipes.EAGER  # what is compiled cannot be sent to a process, and is not used there

    def __getitems__(self, given: list[list[int]]) -> Crops | Exception:
        at = [torch.tensor(each) for each in given]
        try:
            return self.loader.crops(*(self.loader.seen_at(*at) if self.loader.streams else at))
        except (DataError, OSError) as error:  # raised in the worker it would come with its traceback as its text
            return error


def data_statistics(source: Source, pixels: Tensor | None, num: int = 2000) -> Normalization:
    """Per-channel mean and standard deviation over at most `num` images, evenly over the listing."""
    rows = looked_at(source, num)
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


def views_for(views: tuple[View, ...], source: Source) -> tuple[View, ...]:
    """The method's views, without what only makes sense for RGB where the images are not; several channels then change
    their brightness and contrast one by one."""
    if source.is_rgb:
        return views
    return tuple(replace(without_color(view), channelwise=source.channels > 1) for view in views)
