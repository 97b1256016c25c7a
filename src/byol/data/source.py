"""`Source`: images by id, whatever kind of data they lie in."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable
from uuid import uuid4

import numpy as np

from byol.data import plain
from byol.data.decode import Unusable
from byol.data.places import cache_directory
from byol.data.units import UnitCache

Part = Literal["train", "test", "all"]
Skipped = tuple[int, str, str]
T = TypeVar("T")

NUM_THREADS = 8
MEASURED_IMAGES, MEASURED_PIXELS = 2000, 4096
"""Images whose range is measured, and pixels of each: so many that a thousandth of them is thousands."""
MEASURED_VALUES = 2**25
"""Of all channels together, held in memory."""
MEASURED_SHARE = 0.001
KEPT_LISTINGS = 20
MOST_SHOWN = 400
"""Characters."""


HOW_TO_LABEL = "put the images in one sub-folder a class, or use a Parquet file with a `label` column"


class DataError(ValueError):
    """A person's mistake about data: one line that says what to do."""


Range = tuple[tuple[float, float], ...]
"""(low, high) of each channel: the values that become 0 and 1."""


class Listing(Protocol):
    """Where images lie, by position in a sorted listing. `read` returns [H, W, channels] uint8; see `decode` for
    `reduce`."""

    def header(self, position: int) -> tuple[int, int, int]: ...
    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray: ...
    def name(self, position: int) -> str: ...


@runtime_checkable
class Deep(Listing, Protocol):
    """A listing that also knows images value for value. `look`: `header`, and 0 of 8-bit gray and RGB, else the bits of
    a value."""

    def look(self, position: int) -> tuple[int, int, int, int]: ...
    def values(self, position: int, channels: int) -> np.ndarray: ...


@runtime_checkable
class Units(Listing, Protocol):
    """A listing that is read unit by unit."""

    units: UnitCache[Any]

    def unit_of(self, position: int) -> int: ...


@dataclass(frozen=True, eq=False)
class Source:
    """Images by id. An id is a position in the sorted listing, before unusable entries are dropped.

    name: what the person typed. num_listed: length of the listing. fingerprint: hex SHA-256 of the listing.
    ids: [N] int64, ascending, the usable images. labels: [N] int64 aligned with ids, -1 if unknown, or None.
    channels: of every image that `read` returns: 1 or 3, or any number if they are deep.
    height, width: of all if uniform, else medians.
    sizes: [N, 2] int32 aligned with ids, height and width as the headers say; None where they were not read.
    skipped: (id, name, reason) of each entry dropped. classes: the names of labels 0, 1, ... or None.
    has_test_part: whether `open_source(..., part="test")` finds something.
    targets: [N, K] int8 aligned with ids, of images that may have several of K classes: 1 present, 0 absent, -1 if
        unknown; or None. labels are None then. groups: [N] int64 aligned with ids: which images belong together (of
        one patient, one video), numbers without meaning, -1 if unknown; or None.
    unit_starts: [U] int64, the first id of each unit of a listing that is read unit by unit (`Units`), or None.
    unit_bytes: about what the largest unit takes in memory.
    deep: whether images are read value for value, for they are not 8-bit gray or RGB. value_range: of such images, see
        `with_range`. statistics: mean and standard deviation of each channel in [0, 1], where `measured` found them.
    """

    name: str
    num_listed: int
    fingerprint: str
    ids: np.ndarray
    labels: np.ndarray | None
    channels: int
    height: int
    width: int
    uniform: bool
    skipped: tuple[Skipped, ...]
    sizes: np.ndarray | None
    listing: Listing = field(repr=False)
    classes: tuple[str, ...] | None = None
    has_test_part: bool = False
    targets: np.ndarray | None = None
    groups: np.ndarray | None = None
    unit_starts: np.ndarray | None = None
    unit_bytes: int = 0
    deep: bool = False
    value_range: Range | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """How many classes the labels may name; 0 without labels, or with numbers that cannot be classes."""
        if self.labels is None:
            return 0
        if self.classes is not None:
            return len(self.classes)
        highest = int(self.labels.max(initial=-1)) + 1
        return highest if highest <= self.num_listed else 0

    def read(self, image_id: int, reduce: int = 1) -> np.ndarray:
        """[H, W, channels] in 0-255: uint8, of deep images float32; raises `Unusable` for a file that turns out broken.
        reduce: see `decode`."""
        if not self.deep:
            return self.listing.read(self._position(image_id), self.channels, reduce)
        assert self.value_range is not None, "given by whoever opened the source"
        low, high = np.array(self.value_range).T
        values = self.values(image_id)
        # What float32 cannot hold would be rounded before it is compared.
        exact: type[np.float32] | type[np.float64] = np.float32 if values.dtype.itemsize <= 2 else np.float64
        found = (values.astype(exact) - low.astype(exact)) * (255 / (high - low)).astype(exact)
        return found.clip(0, 255, out=found).astype(np.float32)

    def values(self, image_id: int) -> np.ndarray:
        """[H, W, channels] of a deep image's own numbers; `Unusable` where they are not that, or not finite."""
        found = cast(Deep, self.listing).values(self._position(image_id), self.channels)
        if found.ndim != 3 or found.shape[2] != self.channels:
            raise Unusable(f"its shape is {found.shape}, unlike its header")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise Unusable("values that are not finite")
        return found

    def picture(self, image_id: int) -> np.ndarray:
        """[H, W, channels] uint8, for people to look at."""
        found = self.read(image_id)
        return found if found.dtype == np.uint8 else found.round().astype(np.uint8)

    def with_range(self, value_range: Range) -> Source:
        """The same, its values read as (value - low) / (high - low) of their channel, clipped to [0, 1]."""
        if len(value_range) != self.channels or not all(low < high for low, high in value_range):
            raise DataError(
                f"a range of values is (low, high) for each of {self.channels} channels, low < high; not {value_range}"
            )
        return replace(self, value_range=value_range)

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """Of what `read` returns."""
        return np.float32 if self.deep else np.uint8

    @property
    def is_rgb(self) -> bool:
        """Whether the three channels are red, green and blue."""
        return self.channels == 3 and not self.deep

    def header(self, image_id: int) -> tuple[int, int, int]:
        """(height, width, channels) that `read` finds, but for its `channels`; `Unusable` where that can be told."""
        return self.listing.header(self._position(image_id))

    def unit_bounds(self) -> np.ndarray:
        """[U + 1]: the rows of `ids` at which each unit begins, and their end."""
        if self.unit_starts is None:
            raise DataError(f"{shown(self.name)} is not read in streams; leave out --set streams")
        return np.searchsorted(self.ids, [*self.unit_starts, self.num_listed])

    def hold_units(self, capacity: int) -> None:
        """How many units may be held in memory."""
        if isinstance(self.listing, Units):
            self.listing.units.capacity = capacity

    def expect(self, image_id: int) -> object:
        """Say that an image is wanted soon, so that its unit is read meanwhile. Who keeps what this returns keeps the
        unit."""
        if isinstance(self.listing, Units):
            return self.listing.units.expect(self.listing.unit_of(self._position(image_id)))
        return None

    def rest(self) -> None:
        """Forget what was expected and has not begun to be read."""
        if isinstance(self.listing, Units):
            self.listing.units.rest()

    def name_of(self, image_id: int) -> str:
        """The entry's name, on one printable line."""
        return printable(self.listing.name(self._position(image_id)))

    def _position(self, image_id: int) -> int:
        if not 0 <= image_id < self.num_listed:
            raise IndexError(f"id={image_id} is not in 0..{self.num_listed - 1}, the listing of {self.name}")
        return int(image_id)

    def subset(self, chosen: np.ndarray | Sequence[int]) -> Source:
        """The same listing with fewer ids. chosen: [N] bool, or distinct positions in `ids`, in any order."""
        chosen = np.asarray(chosen)
        if chosen.dtype == bool:
            if chosen.shape != self.ids.shape:
                raise ValueError(f"a mask of shape {chosen.shape} does not fit {len(self)} images")
            rows = np.flatnonzero(chosen)
        else:
            inside = chosen.size == 0 or (chosen.min() >= 0 and chosen.max() < len(self))
            is_chosen = np.zeros(len(self), bool)  # sorts in a twentieth of the time of np.unique
            is_chosen[chosen.astype(np.int64) if inside else []] = True
            rows = np.flatnonzero(is_chosen)
            if not inside or len(rows) != chosen.size:
                raise ValueError(f"positions must be distinct and in 0..{len(self) - 1}")

        def chosen_of(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        return replace(
            self,
            ids=self.ids[rows],
            labels=chosen_of(self.labels),
            targets=chosen_of(self.targets),
            groups=chosen_of(self.groups),
            sizes=chosen_of(self.sizes),
        )

    def pixels(
        self, progress: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray, tuple[Skipped, ...]]:
        """All images of a uniform source: ([M, H, W, C] as `read` gives them, their [M] int64 ids, the newly skipped).

        M < N when files turn out broken, or of another size than their header says. progress: (done, total).
        """
        if not self.uniform:
            raise ValueError(f"the images of {self.name} differ in size; read them one by one")
        out = np.empty((len(self), self.height, self.width, self.channels), self.dtype)

        def fill(rows: np.ndarray) -> list[tuple[int, str]]:
            broken = []
            for row in rows.tolist():
                try:
                    image = self.read(int(self.ids[row]))
                    if image.shape != out.shape[1:]:
                        raise Unusable(f"its pixels are {image.shape[0]}x{image.shape[1]}, unlike its header")
                    out[row] = image
                except Unusable as error:
                    broken.append((row, str(error)))
            return broken

        kept, skipped, done = np.ones(len(self), bool), [], 0
        for rows, broken in _in_threads(fill, np.arange(len(self))):
            for row, reason in broken:
                kept[row] = False
                skipped.append((int(self.ids[row]), self.name_of(int(self.ids[row])), reason))
            done += len(rows)
            if progress is not None:
                progress(done, len(self))
        return (out[kept] if skipped else out), self.ids[kept], tuple(skipped)


def verified(
    name: str,
    listing: Listing,
    num_listed: int,
    fingerprint: str,
    labels: np.ndarray,
    channels: int | None,
    *,
    kept_as: str | None = None,
) -> Source:
    """Read every header and drop what is unusable. labels: [num_listed] int64, negative where unknown.

    channels: that are wanted; None takes 3 if any image has colour, else 1; of images that are deep (more than half are
    not 8-bit gray or RGB) as many as most of them have, and the others, and those of other bits, are unusable.
    kept_as: what tells this listing, as it is now, from all others; then its headers are read once.
    """
    try:
        shapes, reasons = _headers(listing, num_listed, kept_as)
    except BrokenProcessPool as error:
        raise DataError(
            f"a process died while it read headers of {shown(name)}: out of memory, or a file that its reader does not "
            "survive; open parts of the folder to find it"
        ) from error
    usable = shapes[:, 0] > 0
    if channels not in (None, 1, 3) and not isinstance(listing, Deep):
        raise DataError(f"{shown(name)} holds 8-bit gray and RGB images; channels={channels} is for folders and arrays")
    kinds = np.stack([shapes[:, 2], np.where(shapes[:, 3] == 0, 8, shapes[:, 3])], axis=1)
    strange = usable & (shapes[:, 3] > 0)
    deep = isinstance(listing, Deep) and (channels not in (None, 1, 3) or strange.sum() > usable.sum() / 2)
    if deep:
        wanted = usable if channels is None else usable & (shapes[:, 2] == channels)
        if not wanted.any():
            found = " or ".join(map(str, np.unique(shapes[usable, 2]).tolist()))
            raise DataError(f"{shown(name)} has no image of channels={channels}; its images have {found or 'none'}")
        each, num_of = np.unique(kinds[wanted], axis=0, return_counts=True)
        channels, depth = each[num_of.argmax()].tolist()
        others, why = usable & (kinds != each[num_of.argmax()]).any(1), f", not {channels} channels of {depth}"
    else:
        # Gray of more bits has its 8-bit meaning, see `decode`.
        others, why = strange & (shapes[:, 2] != 1), ", and most images are 8-bit gray or RGB"
    found_else = ((int(i), f"{kinds[i, 0]} channels of {kinds[i, 1]} bits{why}") for i in np.flatnonzero(others))
    reasons = sorted([*reasons, *found_else])
    usable &= ~others
    ids = np.flatnonzero(usable)
    skipped = tuple((position, shown(listing.name(position)), reason) for position, reason in reasons)
    if len(ids) < 2:
        first = f"; {len(skipped)} skipped, the first: {skipped[0][1]}: {skipped[0][2]}" if skipped else ""
        raise DataError(f"{shown(name)} holds {len(ids)} usable image(s), at least 2 are needed{first}")
    sizes, kept = shapes[usable], labels[usable]
    height, width = (int(side) for side in np.median(sizes[:, :2], axis=0))
    return Source(
        name=name,
        num_listed=num_listed,
        fingerprint=fingerprint,
        ids=ids,
        labels=None if (kept < 0).all() else np.maximum(kept, -1),
        channels=channels or int(sizes[:, 2].max()),
        height=height,
        width=width,
        uniform=bool((sizes[:, :2] == sizes[0, :2]).all()),
        skipped=skipped,
        listing=listing,
        sizes=np.ascontiguousarray(sizes[:, :2]),
        deep=deep,
    )


def measured(source: Source, progress: Callable[[int, int], None] | None = None) -> Source:
    """A deep source with its range and statistics, of pixels drawn from images evenly spaced over it, read once.

    A thousandth of a channel's values lies below 0 and another above 1; not none, for one hot pixel would darken all
    else. 8-bit values keep their full range. progress: (done, total) images.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(MEASURED_IMAGES, len(source))).astype(np.int64))
    num = max(64, min(MEASURED_PIXELS, MEASURED_VALUES // (len(rows) * source.channels)))

    def drawn(chosen: np.ndarray) -> list[np.ndarray]:
        found = []
        for row in chosen.tolist():
            with contextlib.suppress(Unusable):
                pixels = source.values(int(source.ids[row])).reshape(-1, source.channels)
                found.append(pixels[np.random.default_rng(row).integers(0, len(pixels), num)])
        return found

    samples, done = list[np.ndarray](), 0
    for chosen, found in _in_threads(drawn, rows):
        samples += found
        done += len(chosen)
        if progress is not None:
            progress(done, len(rows))
    if not samples:
        raise DataError(f"none of the {len(rows)} images of {shown(source.name)} that were tried is usable")
    if all(sample.dtype == np.uint8 for sample in samples):
        ends = np.array([[0.0, 255.0]] * source.channels)
    else:
        every = np.concatenate(samples)
        low = np.quantile(every, MEASURED_SHARE, axis=0, method="lower").astype(np.float64)
        high = np.quantile(every, 1 - MEASURED_SHARE, axis=0, method="higher").astype(np.float64)
        # A channel of one value gets a range that its neighbours in float32 lie outside of.
        wide = np.maximum(1, 4 * np.abs(np.spacing(low.astype(np.float32)))).astype(np.float64)
        ends = np.stack([low, np.where(high > low, high, low + wide)], axis=1)
    values = (np.concatenate(samples) - ends[:, 0]) / (ends[:, 1] - ends[:, 0])
    values = values.clip(0, 1)
    mean, std = values.mean(axis=0), np.maximum(values.std(axis=0), 0.01)
    value_range = tuple((float(low), float(high)) for low, high in ends)
    statistics = tuple(tuple(round(float(v), 4) for v in each) for each in (mean, std))
    return replace(source.with_range(value_range), statistics=(statistics[0], statistics[1]))


def _headers(listing: Listing, num_listed: int, kept_as: str | None) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """([num_listed, 4] int32: height, width, channels, depth, zeros for what is unusable; position and reason of
    each)."""
    directory = cache_directory() / "listings"
    kept = directory / f"{kept_as}.npz"
    if kept_as is not None and kept.is_file():
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = plain.zipped(kept)[1]
            kinds = found["shapes"].dtype, found["positions"].dtype, found["reasons"].dtype.kind
            if found["shapes"].shape == (num_listed, 4) and kinds == (np.int32, np.int64, "U"):
                os.utime(kept)
                return found["shapes"], list(zip(found["positions"].tolist(), found["reasons"].tolist(), strict=True))
    look = partial(_look, listing)
    numbers = np.arange(num_listed)
    if kept_as is not None and "fork" in multiprocessing.get_all_start_methods():
        # Of very many files, threads would only hand Python's lock around.
        # The listing is there in each process from the beginning; sent along, it would be as often in memory.
        # Not multiprocessing's own pool, which waits without end for a process that died.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(NUM_THREADS, context, initializer=_hold, initargs=(look,)) as pool:
            looked = list(pool.map(_look_at, np.array_split(numbers, max(1, num_listed // 1000))))
    else:
        looked = [found for _, found in _in_threads(look, numbers)]
    shapes = np.concatenate([np.zeros((0, 4), np.int32), *(shape for shape, _ in looked)])
    reasons = [each for _, unusable in looked for each in unusable]
    if kept_as is not None:
        with contextlib.suppress(OSError):  # a full disk costs time, the next time
            directory.mkdir(parents=True, exist_ok=True)
            temporary = directory / f".{kept_as}.{uuid4().hex}.npz"
            positions, words = ([each[i] for each in reasons] for i in range(2))
            np.savez(temporary, shapes=shapes, positions=np.array(positions, np.int64), reasons=np.array(words, str))
            temporary.replace(kept)
            for old in sorted(directory.glob("*.npz"), key=lambda file: file.stat().st_mtime)[:-KEPT_LISTINGS]:
                old.unlink(missing_ok=True)
    return shapes, reasons


Looked = tuple[np.ndarray, list[tuple[int, str]]]
_looks: Callable[[np.ndarray], Looked]


def _hold(look: Callable[[np.ndarray], Looked]) -> None:
    global _looks
    _looks = look


def _look_at(positions: np.ndarray) -> Looked:
    return _looks(positions)


def _look(listing: Listing, positions: np.ndarray) -> Looked:
    """What `_headers` gives, of some positions."""
    look = listing.look if isinstance(listing, Deep) else lambda position: (*listing.header(position), 0)
    shapes, unusable = np.zeros((len(positions), 4), np.int32), list[tuple[int, str]]()
    for row, position in enumerate(positions.tolist()):
        try:
            shapes[row] = look(position)
        except Unusable as error:
            unusable.append((position, str(error)))
    return shapes, unusable


def _in_threads(task: Callable[[np.ndarray], T], numbers: np.ndarray) -> Iterator[tuple[np.ndarray, T]]:
    """Each (slice, task(slice)) of 64 numbers, in order; decoding and reading release Python's lock."""
    slices = [numbers[start : start + 64] for start in range(0, len(numbers), 64)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from zip(slices, pool.map(task, slices), strict=True)


def digest(*arrays: np.ndarray | None) -> str:
    """Hex SHA-256 of arrays, in order."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(b"none" if array is None else f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def no_test_part(name: str, how: str) -> DataError:
    return DataError(f"{shown(name)} has no test part; {how}, or hold images out of its train part")


def shown(name: str) -> str:
    """What is safe to print on one line: `printable`, and of more than MOST_SHOWN characters both ends."""
    text = printable(name)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]} ... {text[-MOST_SHOWN // 2 :]}"


def printable(name: str) -> str:
    """A name on one line: quoted and escaped if it holds newlines, control characters or undecodable bytes."""
    return name if name.isprintable() else repr(name)
