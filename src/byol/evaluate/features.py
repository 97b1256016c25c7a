"""Features of images: a frozen encoder's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CROP_SHARE = 0.875
"""Side of the evaluation crop over the image's shorter side: 224/256, as in BYOL's released code."""


def extract(
    encoder: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """All of `stream_features` at once: [N, D] float32 on the CPU."""
    features = list(
        stream_features(
            encoder,
            images,
            mean=mean,
            std=std,
            size=size,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    )
    if not features:
        raise ValueError("there are no images to extract features from")
    return torch.cat(features)


@torch.no_grad()
def stream_features(
    encoder: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Iterator[Tensor]:
    """The encoder's features of each image, [B, D] float32 on the CPU at a time, in inference mode, in the given order.

    images: [N, C, H, W] uint8 or float32, 0-255, or an iterable of such batches. Each goes through `evaluation_view`
    (unless size is None), then (x - mean) / std per channel, mean and std on the scale 0 to 1.
    encoder: on `device`; gives [B, D]. Each of its modules has its training mode back after the last batch.
    size: input height and width, px; None takes images as they are. batch_size: most images per forward pass.
    progress: called after each forward pass with its number of images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not allowed; use 1 or more")
    shift = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
    if not (scale > 0).all():
        raise ValueError(f"std={list(std)} is not allowed; use positive numbers")
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        for batch in _batches(images, batch_size):
            if not batch.shape[1] == len(shift) == len(scale):
                raise ValueError(
                    f"images have {batch.shape[1]} channels, mean has {len(shift)} values and std "
                    f"{len(scale)}; give one of each per channel"
                )
            x = batch.to(device).float() / 255
            if size is not None:
                x = evaluation_view(x, size)
            y = encoder((x - shift) / scale)
            if y.ndim != 2:
                raise ValueError(f"the encoder gives {list(y.shape)}; use one that pools its features to [B, D]")
            features = y.float().cpu()
            if progress is not None:
                progress(len(batch))
            yield features
    finally:
        for module, training in modes:
            module.training = training


def evaluation_view(images: Tensor, size: int) -> Tensor:
    """The centre of each image at size x size. BYOL's released code, `_decode_and_center_crop`.

    images: [B, C, H, W] float, 0 to 1; the result has the same range. Of images larger than `size` on both
    sides the centre square of CROP_SHARE times the shorter side is taken, of others that of the whole shorter
    side. It is resized, where it has another size, by bicubic interpolation. Two departures from the released
    code: there is antialiasing, and no crop of images that already have the encoder's size.
    """
    shorter = min(images.shape[-2:])
    square = _centre_square(images, round(CROP_SHARE * shorter) if shorter > size else shorter)
    if square.shape[-1] == size:
        return square
    # Bicubic interpolation overshoots at edges.
    return F.interpolate(square, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _centre_square(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[-2:]
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def _batches(images: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """The images in order, at most batch_size at a time, checked."""
    for given in [images] if isinstance(images, Tensor) else images:
        if given.dtype not in (torch.uint8, torch.float32) or given.ndim != 4:
            raise ValueError(f"images are {given.dtype} {list(given.shape)}; use torch.uint8 or float32 [N, C, H, W]")
        if len(given):
            yield from given.split(batch_size)
