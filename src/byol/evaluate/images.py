"""Images as evaluation sees them: whole where they have the encoder's size, else its centre square, resized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from byol import cores
from byol.data.decode import Unusable
from byol.data.source import Source
from byol.evaluate.features import evaluation_view

T = TypeVar("T")


def evaluation_images(source: Source, pixels: Tensor | None, rows: Tensor, size: int) -> Tensor:
    """[B, C, size, size] in 0-255 of a source's rows [B], uint8, or float32 of deep images. pixels: [N, C, H, W] where
    they are in memory. An image that turns out unusable is gray.
    """
    if pixels is not None:
        return _view(pixels[rows.to(pixels.device)], size)
    gray = torch.from_numpy(np.full((source.channels, size, size), 127, source.dtype))
    return torch.stack([gray if item is None else item[1] for item in _Rows(source, size).__getitems__(rows.tolist())])


def evaluation_batches(
    source: Source, pixels: Tensor | None, size: int, *, batch_size: int = 256, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows [B] int64, images [B, C, size, size], see `evaluation_images`) over a source, in order, without unusable
    images."""
    if pixels is not None:
        for rows in torch.arange(len(source)).split(batch_size):
            yield rows, _view(pixels[rows], size)
        return
    for rows, images, _ in batches_and(source, size, _nothing, batch_size=batch_size, workers=workers):
        yield rows, images


def batches_and(
    source: Source, size: int, also: Callable[[np.ndarray], T], *, batch_size: int = 256, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor, list[T]]]:
    """`evaluation_batches` with what `also` makes of each image [H, W, C] as it was read, 0-255, where it was read. By
    name, for workers in processes that are spawned."""
    dataset = _Rows(source, size, also)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=_as_they_are)
    for items in loader:
        usable = [item for item in items if item is not None]
        if usable:
            rows, images, made = zip(*usable, strict=True)
            yield torch.tensor(rows), torch.stack(images), list(made)


def _nothing(image: np.ndarray) -> None:
    return None


def _as_they_are(items: list[Any]) -> list[Any]:  # by name, for workers in processes that are spawned
    return items


def _view(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    view = evaluation_view(images.float() / 255, size) * 255
    return view if images.is_floating_point() else view.round().to(torch.uint8)


class _Rows(Dataset[Any]):
    """(row, its evaluation view, what `also` made of it), or None of an image that turns out unusable."""

    def __init__(self, source: Source, size: int, also: Callable[[np.ndarray], Any] = _nothing) -> None:
        self.source = source
        self.size = size
        self.also = also

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: list[int]) -> list[tuple[int, Tensor, Any] | None]:
        return cores.each(lambda i: self[rows[i]], len(rows))

    def __getitem__(self, row: int) -> tuple[int, Tensor, Any] | None:
        try:
            image = self.source.read(int(self.source.ids[row]))
        except Unusable:
            return None
        view = _view(torch.from_numpy(image).permute(2, 0, 1)[None], self.size)[0]
        return row, view, self.also(image)
