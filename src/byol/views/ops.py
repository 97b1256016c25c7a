"""The operations on batches of images, each with its parameters given.

Images are [B, C, H, W] float in [0, 1] unless said; parameters are [B], on the images' device. Nothing here is random.
The `tf_` operations are those of BYOL's released code, the `tv_` operations those of torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)


def there(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device, without waiting for it: a GPU reads by itself only what is pinned."""
    if device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def keys_cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5. (PyTorch's own bicubic without antialiasing uses -0.75.)"""
    # 1.5 d^3 - 2.5 d^2 + 1 up to 1, -0.5 d^3 + 2.5 d^2 - 4 d + 2 up to 2, both with their factor (1 - d) taken out.
    d = distance.abs()
    return (1 - d) * torch.where(d < 1, (1 - 1.5 * d) * d + 1, 0.5 * (2 - d).clamp_min(0).square())


def crop_taps(start: Tensor, length: Tensor, in_size: int, out_size: int, *, antialias: bool) -> tuple[Tensor, Tensor]:
    """The bicubic taps that crop [start, start + length) of an axis and resize it to `out_size`.

    start, length: [B] float64, px. Returns (pixels [B, out_size, K] int64 in [0, in_size), weights [B, out_size, K]
    float64, which sum to 1). Half-pixel centres; taps outside the crop are dropped and the rest renormalised.
    antialias=False is TensorFlow's resize (whose kernel rounds its offsets to 1/1024; this one does not), with K = 4;
    antialias=True widens the kernel when shrinking, as Pillow and torchvision do.
    """
    whole = torch.floor(start)
    offset = (start - whole)[:, None, None]
    scale = (length / out_size)[:, None, None]
    wide = scale.clamp_min(1.0) if antialias else torch.ones_like(scale)
    # In the crop's coordinates, where pixel j covers [j, j + 1).
    centre = (torch.arange(out_size, dtype=torch.float64)[:, None] + 0.5) * scale + offset
    pixel = torch.floor(centre - 0.5 - 2 * wide) + torch.arange(1, math.ceil(4 * float(wide.max())) + 1)
    inside = (pixel + 0.5 >= offset) & (pixel + 0.5 < length[:, None, None] + offset)
    weights = keys_cubic((pixel + 0.5 - centre) / wide) * inside
    weights = weights / weights.sum(-1, keepdim=True)
    return (pixel + whole[:, None, None]).long().clamp(0, in_size - 1), weights


def crop_weights(start: Tensor, length: Tensor, in_size: int, out_size: int, *, antialias: bool) -> Tensor:
    """`crop_taps` as a matrix: [B, out_size, in_size] float64."""
    pixels, weights = crop_taps(start, length, in_size, out_size, antialias=antialias)
    return weights.new_zeros(len(start), out_size, in_size).scatter_add_(-1, pixels, weights)


def crop_resize(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Crops as two matrix products. images: [B, C, H, W] float; rows: [B, S, H]; columns: [B, S, W].

    Returns [B, C, S, S], neither rounded nor clipped: bicubic overshoots.
    """
    return rows[:, None] @ (images @ columns[:, None].transpose(-1, -2))


def crop_by_taps(image: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """One crop from taps, where most of a matrix would be zeros. image: [H, W, C] float32; rows, columns: `crop_taps`
    of one image, [S, K] each.

    Returns [C, S, S], neither rounded nor clipped.
    """
    height, width, channels = image.shape
    size = len(rows[0])
    x = _transposed(_weighted(image.reshape(height, width * channels), *rows))
    x = _weighted(x.view(width, channels * size), *columns)
    return x.view(size, channels, size).permute(1, 2, 0)


def _weighted(rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Sums of K weighted rows each: [N, D], [S, K] int64, [S, K] float -> [S, D]."""
    starts = _multiples(*chosen.shape)
    return F.embedding_bag(chosen.flatten(), rows, starts, per_sample_weights=weights.to(rows).flatten(), mode="sum")


@lru_cache(maxsize=256)  # to make them took a fifth of the time of the sums
def _multiples(num: int, of: int) -> Tensor:
    return torch.arange(0, num * of, of)


def _transposed(x: Tensor, strip: int = 56) -> Tensor:
    """[N, M] -> [M, N]. A strip of rows at a time stays in the cache: a quarter faster than PyTorch's own way."""
    found, rows = np.empty((x.shape[1], x.shape[0]), np.float32), x.numpy()
    for start in range(0, len(rows), strip):
        found[:, start : start + strip] = rows[start : start + strip].T
    return torch.from_numpy(found)


def affine(images: Tensor, theta: Tensor) -> Tensor:
    """Rotation and shear about the centre, bilinear, zeros outside. theta: [B, 2, 3], output -> input, as in
    torch.nn.functional.affine_grid."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def flip(images: Tensor) -> Tensor:
    """Left and right exchanged."""
    return images.flip(-1)


def _each(parameter: Tensor) -> Tensor:
    """[B], or [B, C] of each channel, to be multiplied with [B, C, H, W]."""
    return parameter[..., None, None] if parameter.ndim == 2 else parameter[:, None, None, None]


def gray(images: Tensor) -> Tensor:
    """Luma copied to the three channels: 0.2989 R + 0.5870 G + 0.1140 B."""
    return _luma(images).expand_as(images)


def _luma(images: Tensor) -> Tensor:
    r, g, b = images.unbind(1)
    return (GRAY_WEIGHTS[0] * r + GRAY_WEIGHTS[1] * g + GRAY_WEIGHTS[2] * b)[:, None]


def _mean_hw(images: Tensor) -> Tensor:
    # Row by row: a flat mean over H x W gave other bits at one channel and batch 1.
    return images.mean(-1, keepdim=True).mean(-2, keepdim=True)


def tf_brightness(images: Tensor, delta: Tensor) -> Tensor:
    """images + delta, clipped to [0, 1]. delta: [B] or [B, C]."""
    return (images + _each(delta)).clamp_(0, 1)


def tf_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The deviation from each channel's mean over the image times `factor` ([B] or [B, C]), clipped to [0, 1]."""
    mean = _mean_hw(images)
    return (images - mean).mul_(_each(factor)).add_(mean).clamp_(0, 1)


def tf_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """HSV saturation times `factor`, clipped to [0, 1]."""
    # At a given hue and value, each channel's distance from the value is proportional to the saturation.
    v = images.amax(1, keepdim=True)
    spread = v - images.amin(1, keepdim=True)
    most = v / torch.where(spread > 0, spread, 1.0)
    return (v - (v - images).mul_(torch.minimum(_each(factor), most))).clamp_(0, 1)


def hue(images: Tensor, delta: Tensor) -> Tensor:
    """HSV hue plus `delta` turns, modulo 1. The same in both families."""
    h, s, v = rgb_to_hsv(images)
    h = h + delta[:, None, None]
    return hsv_to_rgb(h - h.floor(), s, v).clamp_(0, 1)


def tv_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images * factor, clipped to [0, 1]. factor: [B] or [B, C]."""
    return (images * _each(factor)).clamp_(0, 1)


def tv_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """A blend with the mean of the gray image: factor * images + (1 - factor) * mean, clipped to [0, 1]."""
    mean = _mean_hw(_luma(images) if images.shape[1] == 3 else images)
    return (images * _each(factor)).add_(mean * _each(1 - factor)).clamp_(0, 1)


def tv_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """A blend with the gray image: factor * images + (1 - factor) * gray, clipped to [0, 1]."""
    return (images * _each(factor)).add_(_luma(images) * _each(1 - factor)).clamp_(0, 1)


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """images: [B, 3, H, W] in [0, 1]. Returns hue, saturation and value, each [B, H, W] in [0, 1]."""
    r, g, b = images.unbind(1)
    v = images.amax(1)
    spread = v - images.amin(1)
    # Where there is no colour, spread and g - b are 0, and so are hue and saturation.
    safe = torch.where(spread > 0, spread, 1.0)
    s = spread / torch.where(v > 0, v, 1.0)
    h = torch.where(v == r, (g - b) / safe, torch.where(v == g, (b - r) / safe + 2, (r - g) / safe + 4)) / 6
    return torch.where(h < 0, h + 1, h), s, v


def hsv_to_rgb(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Each [B, H, W] in [0, 1]. Returns [B, 3, H, W] in [0, 1]."""
    h6, white = h * 6, 1 - s
    channels = (h6 - 3).abs_().sub_(1), 2 - (h6 - 2).abs_(), 2 - (h6 - 4).abs_()
    return torch.stack([c.clamp_(0, 1).mul_(s).add_(white).mul_(v) for c in channels], dim=1)


def blur_width(size: int) -> int:
    """Taps of the Gaussian blur at an image height of `size` px: a tenth, made odd (23 at 224 px, 3 at 32 px)."""
    return 2 * int(size / 10 / 2) + 1


def gaussian_taps(sigma: Tensor, width: int) -> Tensor:
    """Normalised Gaussian taps. sigma: [B] float64, px. Returns [B, width] float64, rows summing to 1."""
    x = torch.arange(width, dtype=torch.float64) - width // 2
    taps = torch.exp(-(x**2) / (2 * sigma[:, None] ** 2))
    return taps / taps.sum(-1, keepdim=True)


def shifted_sums(padded: Tensor, taps: Tensor) -> Tensor:
    """The separable convolution of images that were padded by half of the taps on each side. taps: the same forwards
    and backwards, so that pixels on both sides are added before one product."""
    # Rather than a grouped convolution, whose bits depend on the batch at one channel.
    return _along(_along(padded, taps, -2), taps, -1)


def _along(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    last = taps.shape[1] - 1
    length = x.shape[axis] - last
    found = _each(taps[:, last // 2]) * x.narrow(axis, last // 2, length)
    for i in range(last // 2):
        found = found + _each(taps[:, i]) * (x.narrow(axis, i, length) + x.narrow(axis, last - i, length))
    return found


def blur(
    images: Tensor,
    taps: Tensor,
    *,
    padding: str = "constant",
    convolve: Callable[[Tensor, Tensor], Tensor] = shifted_sums,
) -> Tensor:
    """Separable convolution with each image's own taps [B, width], the same forwards and backwards.

    padding: "constant" (zeros: borders darken, as in BYOL's released code) or "reflect" (torchvision).
    """
    half = taps.shape[1] // 2
    padded = F.pad(images, (half, half, half, half), mode=padding)
    return convolve(padded, taps)


def solarize(images: Tensor) -> Tensor:
    """Values of at least 0.5 inverted: x if x < 0.5 else 1 - x."""
    return torch.where(images < 0.5, images, 1 - images)


def normalize_(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images - mean) / std per channel, in place. mean, std: [C]."""
    return images.sub_(mean[:, None, None]).div_(std[:, None, None])
