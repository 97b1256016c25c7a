"""Test images that are also training images: the same bytes, or another copy of the same picture.

A number on such test images measures memory. All functions take images as evaluation sees them, in batches, and keep a
hash or a thumbnail of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

SIDE_PX = 16
"""Of the thumbnails that are compared: 256 bytes an image."""

SIMILARITY = 0.993
"""Normalised cross-correlation above which two images count as near-duplicates.

Measured: above it lie 0.1 % of 1,000 MNIST digits against 4,000 others and 0.2 % of 2,000 CIFAR-10 test images against
the 50,000 training images. So do, of 600 training images (digits, CIFAR-10), these copies: moved by 1 px 100 %, 97 %;
moved by 1 px both ways and darkened by a fifth 98 %, 94 %; 20 levels of 255 brighter, clipped 100 %, 99.8 %; as JPEG of
quality 30 99.8 %, 96 %, of 75 all. Of those moved by 2 px 0 %, 1 %.
"""

THUMBNAILS_AT_ONCE = 2**14
"""Training images compared at a time."""


def overlap(train_images: Iterable[Tensor], test_images: Iterable[Tensor]) -> int:
    """How many test images have the very pixels of a training image.

    Both: batches [B, C, H, W] uint8.
    """
    known = set(_hashes(train_images))
    return sum(hashed in known for hashed in _hashes(test_images))


@torch.no_grad()
def near_duplicates(
    train_images: Iterable[Tensor],
    test_images: Iterable[Tensor],
    *,
    device: str | torch.device = "cpu",
) -> int:
    """How many test images are a training image again, perhaps brighter, of more contrast, compressed, or moved a bit.

    Images are compared as gray thumbnails of SIDE_PX px by their normalised cross-correlation (that of the two
    thumbnails' pixels), the test image also moved by 1/32 of its side in all eight directions; the highest counts. An
    image of one colour equals none. Both: batches [B, C, H, W] in 0-255, any C, H and W. The work is 9 * 2 * 256 *
    N * N_test operations: five seconds for 10,000 and 2,000 images on one CPU core.
    """
    known = [_compact(_thumbnails(batch.to(device))) for batch in train_images]
    if not known:
        return 0
    bank, found = torch.cat(known), 0
    for batch in test_images:
        moved = torch.cat([_thumbnails(each) for each in _moved(batch.to(device))])
        highest = torch.full((len(moved),), -1.0, device=moved.device)
        for part in bank.split(THUMBNAILS_AT_ONCE):
            highest = torch.maximum(highest, (moved @ F.normalize(part.float(), dim=1).T).amax(dim=1))
        found += int((highest.view(-1, len(batch)).amax(dim=0) > SIMILARITY).sum())
    return found


@torch.no_grad()
def duplicate_groups(images: Iterable[Tensor], candidates: np.ndarray) -> list[list[int]]:
    """Groups of images that are the same picture again, see `near_duplicates`; each group ascending, the largest first.

    images: batches [B, C, H, W] in 0-255, N in all. candidates: [N, k] int64, the rows that each is compared with, such
    as its nearest neighbours; a group of more than k + 1 images is found where they are linked to each other.
    """
    known, moved = [], []
    for batch in images:
        known.append(_compact(_thumbnails(batch)))
        moved.append(torch.stack([_compact(_thumbnails(each)) for each in _moved(batch)], dim=1))
    bank, pairs = torch.cat(known), []
    for rows, each in zip(torch.arange(len(bank)).split([len(batch) for batch in moved]), moved, strict=True):
        others = torch.from_numpy(candidates)[rows]
        against = F.normalize(bank[others].float(), dim=2)
        highest = (F.normalize(each.float(), dim=2) @ against.transpose(1, 2)).amax(dim=1)
        at, which = torch.nonzero(highest > SIMILARITY, as_tuple=True)
        pairs.append(torch.stack([rows[at], others[at, which]]))
    first, second = torch.cat(pairs, dim=1).numpy()
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(len(bank), len(bank)))
    _, group_of = connected_components(links, directed=False)
    order = np.argsort(group_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)
    return sorted((group.tolist() for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def _hashes(images: Iterable[Tensor]) -> Iterator[bytes]:
    for batch in images:
        for image in batch.cpu().numpy():
            yield hashlib.blake2b(image.tobytes(), digest_size=16, key=str(image.shape).encode()).digest()


def _moved(images: Tensor) -> Iterator[Tensor]:
    """The images, and moved by 1/32 of their sides, at least 1 px, in eight directions; edges are repeated."""
    height, width = images.shape[-2:]
    down, right = max(1, round(height / 32)), max(1, round(width / 32))
    wider = F.pad(images.float(), (right, right, down, down), mode="replicate")
    for top in (0, down, 2 * down):
        for left in (0, right, 2 * right):
            yield wider[..., top : top + height, left : left + width]


def _thumbnails(images: Tensor) -> Tensor:
    """[B, SIDE_PX**2] float32: gray (ITU-R 601 of three channels, else their mean), small, mean 0, length 1; all 0
    where the image is of one colour."""
    channels = images.shape[1]
    weights = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    luma = images.new_tensor(weights, dtype=torch.float32)
    gray = (images.float() * luma.view(-1, 1, 1)).sum(dim=1, keepdim=True)
    small = F.interpolate(gray, size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True).flatten(1)
    # Half a level of 255: what is flatter is rounding.
    flat = small.amax(dim=1) - small.amin(dim=1) < 0.5
    small = F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)
    return small.masked_fill_(flat[:, None], 0)


def _compact(thumbnails: Tensor) -> Tensor:
    """int8, each scaled to its own largest value."""
    return (thumbnails * (127 / thumbnails.abs().amax(dim=1, keepdim=True).clamp(min=1e-12))).round().to(torch.int8)
