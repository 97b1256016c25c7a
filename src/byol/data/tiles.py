"""Tiles of images much larger than a crop: each image is decoded once, and its tiles are images of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from byol.data.decode import Unusable
from byol.data.source import DataError, Deep, Listing, Source, shown
from byol.data.units import UnitCache

HELD_BYTES = 2 << 30
"""Of units, in all processes: one of each stream, and the next one."""


def tiled(source: Source, side: int) -> Source:
    """The tiles of side x side px of every image, in order of images, rows and columns; docs/data.md.

    The last tile of a row or column is moved back to end with the image; an image smaller than a tile is one, as it is.
    A tile has its image's label, and `groups` say which image it is of.
    """
    if source.sizes is None:
        raise DataError(f"the images of {shown(source.name)} are in shards, whose sizes are not known; cut tiles first")
    if source.targets is not None:
        raise DataError("tiles of images that have several labels each have labels that nobody knows; leave out --tile")
    counts = -(-source.sizes // side)
    num = counts.prod(1)
    starts = np.cumsum([0, *num[:-1]])
    of = np.repeat(np.arange(len(source)), num)
    sizes = np.minimum(source.sizes, side)[of]
    sides = source.sizes.astype(np.int64)
    listing = Tiles(source.listing, source.channels, source.ids, sides, starts, side, deep=source.deep)
    height, width = (int(each) for each in np.median(sizes, axis=0))
    return replace(
        source,
        num_listed=int(num.sum()),
        fingerprint=f"{source.fingerprint} in tiles of {side}",
        ids=np.arange(int(num.sum())),
        labels=None if source.labels is None else source.labels[of],
        groups=source.ids[of],
        sizes=sizes,
        height=height,
        width=width,
        uniform=False,
        listing=listing,
        unit_starts=starts,
        unit_bytes=int(sides.prod(1).max()) * source.channels * (4 if source.deep else 1),
    )


class Tiles:
    """The tiles of some images of a listing. images: [N], their positions in it. sizes: [N, 2], theirs. starts: [N],
    the first tile of each. deep: whether they are read value for value."""

    def __init__(
        self,
        listing: Listing,
        channels: int,
        images: np.ndarray,
        sizes: np.ndarray,
        starts: np.ndarray,
        side: int,
        *,
        deep: bool = False,
    ) -> None:
        self.listing = listing
        self.channels = channels
        self.images = images
        self.sizes = sizes
        self.starts = starts
        self.side = side
        self.deep = deep
        self.units = UnitCache(self._decoded)

    def header(self, position: int) -> tuple[int, int, int]:
        image, _, _ = self._place(position)
        height, width = np.minimum(self.sizes[image], self.side).tolist()
        return height, width, self.channels

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        image, top, left = self._place(position)
        pixels = self.units[image]
        if pixels.shape[:2] != tuple(self.sizes[image]):
            raise Unusable(f"its pixels are {pixels.shape[0]}x{pixels.shape[1]}, unlike its header")
        return np.ascontiguousarray(pixels[top : top + self.side, left : left + self.side])

    def values(self, position: int, channels: int) -> np.ndarray:
        return self.read(position, channels)

    def name(self, position: int) -> str:
        image, top, left = self._place(position)
        return f"{self.listing.name(int(self.images[image]))} at {top},{left}"

    def unit_of(self, position: int) -> int:
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def _place(self, position: int) -> tuple[int, int, int]:
        """(image, top, left) of a tile."""
        image = self.unit_of(position)
        row, column = divmod(position - int(self.starts[image]), -(-int(self.sizes[image][1]) // self.side))
        top, left = (
            max(0, min(number * self.side, int(size) - self.side))
            for number, size in zip((row, column), self.sizes[image], strict=True)
        )
        return image, top, left

    def _decoded(self, image: int) -> np.ndarray:
        position = int(self.images[image])
        if self.deep:
            return cast(Deep, self.listing).values(position, self.channels)
        return self.listing.read(position, self.channels)
