"""The order in which images are seen: functions of a position in an endless sequence, so that training starts anywhere.

Positions [b B, (b + 1) B) are batch b. An epoch belongs to an image, and nothing is dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from byol import rng


class Order:
    """perm(seed, epoch 0), perm(seed, epoch 1), ... of `num` images."""

    def __init__(self, num: int, seed: int) -> None:
        self.num = num
        self._key = rng.key(seed, rng.Purpose.ORDER)
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(row, epoch) of each position of the sequence, each [B] int64; rows are in [0, num)."""
        epochs = positions // self.num
        rows = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            rows[here] = self._permutation(epoch)[positions[here] % self.num]
        return rows, epochs

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = rng.permutation(rng.fold(self._key, epoch), self.num)
        return self._epochs[epoch]


class StreamOrder:
    """Rows that lie in units, each read at once, as V streams that take turns: position p is number p // V of stream
    p % V.

    In each epoch the units are dealt to the streams in a random order, and each unit's rows are seen in a random order,
    one after the other. So a process holds one unit a stream, and its place in each is one integer that follows from
    the step. A stream with fewer rows begins its next epoch sooner.

    bounds: [U + 1], the first row of each unit and the end of the last; units may be empty.
    """

    def __init__(self, bounds: np.ndarray, streams: int, seed: int) -> None:
        self.streams = streams
        self._first = bounds[:-1]
        self._lengths = np.diff(bounds)
        self._key = rng.key(seed, rng.Purpose.ORDER)
        self._dealt: list[Tensor] = []  # of each epoch, the units in their order
        self._begins: list[list[int]] = [[0] for _ in range(streams)]  # of each stream, where each epoch begins in it
        self._ends: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._rows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        if (self._lengths > 0).sum() < streams:
            raise ValueError(f"{(self._lengths > 0).sum()} units cannot be read in {streams} streams")

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        found = [self._at(position % self.streams, position // self.streams) for position in positions.tolist()]
        rows, epochs = torch.tensor(found, dtype=torch.int64).view(-1, 2).unbind(1)
        return rows, epochs

    def following(self, positions: Tensor) -> Tensor:
        """[B] int64: of each position, a row of the unit that its stream reads after this position's."""
        found = []
        for position in positions.tolist():
            stream = position % self.streams
            *_, end = self._unit(stream, position // self.streams)
            found.append(self._at(stream, end)[0])
        return torch.tensor(found, dtype=torch.int64)

    def _at(self, stream: int, index: int) -> tuple[int, int]:
        """(row, epoch) of a stream's image of that number."""
        epoch, unit, offset, _ = self._unit(stream, index)

        def shuffled() -> np.ndarray:
            key = rng.fold(rng.fold(self._key, epoch), unit + 1)  # 0 dealt the units
            return rng.permutation(key, int(self._lengths[unit])).numpy()

        order = self._kept(self._rows, (epoch, unit), shuffled)
        return int(self._first[unit]) + int(order[offset]), epoch

    def _unit(self, stream: int, index: int) -> tuple[int, int, int, int]:
        """(epoch, unit, number in the unit, the stream's number of the first image after the unit) of a stream's image
        of that number."""
        begins = self._begins[stream]
        while begins[-1] <= index:
            self._deal()
        epoch = bisect_right(begins, index) - 1
        units = self._dealt[epoch][stream :: self.streams]
        ends = self._kept(self._ends, (epoch, stream), lambda: np.cumsum(self._lengths[units.numpy()]))
        within = index - begins[epoch]
        place = int(np.searchsorted(ends, within, side="right"))
        offset = within - (int(ends[place - 1]) if place else 0)
        return epoch, int(units[place]), offset, begins[epoch] + int(ends[place])

    def _deal(self) -> None:
        """One more epoch."""
        order = rng.permutation(rng.fold(rng.fold(self._key, len(self._dealt)), 0), len(self._lengths))
        self._dealt.append(order)
        for stream, begins in enumerate(self._begins):
            begins.append(begins[-1] + int(self._lengths[order[stream :: self.streams].numpy()].sum()))

    def _kept(
        self, cache: OrderedDict[tuple[int, int], np.ndarray], key: tuple[int, int], make: Callable[[], np.ndarray]
    ) -> np.ndarray:
        if key not in cache:
            cache[key] = make()
            while len(cache) > 3 * self.streams:
                cache.popitem(last=False)
        return cache[key]
