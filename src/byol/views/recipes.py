"""The random parameters of views, drawn from keys, and their application to batches of images.

`draw` samples, `crop_batch` (or `crop_one`, in a worker) cuts, `photometry` does the rest: geometry happens where the
pixels are, everything else batched on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from byol import rng
from byol.views import ops
from byol.views.view import View

Operation = Callable[..., Tensor]
_OPERATIONS = ("crop", "affine", "flip", "jitter", "order", "gray", "blur", "solarize")
_TRIES = len(_OPERATIONS)  # torchvision's crop draws from a key of its own
_CHANNELS = _TRIES + 1  # and so do the channels of a channelwise view
_ORDERS = torch.tensor(list(permutations(range(4))))


@dataclass(frozen=True)
class Parameters:
    """What was drawn for one view of B images; all on the CPU.

    box: [B, 4] float64, whole numbers (top, left, height, width), px. theta: [B, 2, 3] float32 or None.
    flip, jitter, gray, blur, solarize: [B] bool. order: [B, 4] int64, which change comes when (0 brightness,
    1 contrast, 2 saturation, 3 hue). brightness, contrast, saturation, hue: [B] float32, as the
    style's arithmetic takes them; of a channelwise view brightness and contrast are [B, C]. taps: [B, width] float32.
    """

    box: Tensor
    theta: Tensor | None
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    blur: Tensor
    taps: Tensor
    solarize: Tensor


def view_keys(seed: int, epochs: Tensor, ids: Tensor, num_views: int) -> Tensor:
    """The key of each view of each image: [B] int64 epochs and ids -> [num_views, B, 2]."""
    image = rng.fold(rng.fold(rng.key(seed, rng.Purpose.VIEWS), epochs), ids)
    return rng.fold(image, torch.arange(num_views)[:, None])


def draw(view: View, keys: Tensor, heights: Tensor, widths: Tensor, size: int, channels: int = 3) -> Parameters:
    """The parameters of one view of B images.

    keys: [B, 2], from `view_keys`. heights, widths: [B] int64, the source images' sizes, px. size: of the view, px.
    Derived numbers are computed in float64 on the CPU, so that they are the same wherever the pixels are.
    channels: of the images.
    """
    u = rng.uniform(rng.fold(keys[:, None], torch.arange(len(_OPERATIONS))), 4)
    of = dict(zip(_OPERATIONS, u.unbind(1), strict=True))  # each [B, 4]
    box = place(view, crop_numbers(view, keys), heights, widths)
    jitter = of["jitter"]
    to_brightness, to_contrast = jitter[:, 0], jitter[:, 1]
    if view.channelwise:
        own = rng.uniform(rng.fold(keys, _CHANNELS), 2 * channels)
        to_brightness, to_contrast = own[:, :channels], own[:, channels:]
    brightness = _spread(to_brightness, view.brightness)
    if view.style == "torchvision":
        brightness = 1 + brightness
    sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * of["blur"][:, 1]
    return Parameters(
        box=box,
        theta=_theta(view, of["affine"]),
        flip=of["flip"][:, 0] < view.flip,
        jitter=of["order"][:, 1] < view.jitter,
        order=_ORDERS[(of["order"][:, 0] * len(_ORDERS)).long()],
        brightness=brightness.float(),
        contrast=(1 + _spread(to_contrast, view.contrast)).float(),
        saturation=(1 + _spread(jitter[:, 2], view.saturation)).float(),
        hue=_spread(jitter[:, 3], view.hue).float(),
        gray=of["gray"][:, 0] < view.gray,
        blur=of["blur"][:, 0] < view.blur,
        taps=ops.gaussian_taps(sigma, ops.blur_width(size)).float(),
        solarize=of["solarize"][:, 0] < view.solarize,
    )


def crop_numbers(view: View, keys: Tensor) -> Tensor:
    """The uniform numbers that `place` makes crops of, whatever the images' sizes: keys [B, 2] -> [B, ...] float64."""
    if view.style == "authors":
        return rng.uniform(rng.fold(keys, _OPERATIONS.index("crop")), 4)
    return rng.uniform(rng.fold(keys, _TRIES), 40).view(-1, 10, 4)


def place(view: View, numbers: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """The crops [B, 4] float64 (top, left, height, width) in images of those sizes, px."""
    box_of = _authors_box if view.style == "authors" else _torchvision_box
    return box_of(view, numbers, heights.double(), widths.double())


def _spread(u: Tensor, amount: float) -> Tensor:
    return (2 * u - 1) * amount


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _authors_box(view: View, u: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    area = heights * widths * _between(u[:, 0], *view.crop_area)
    aspect = torch.exp(_between(u[:, 1], math.log(view.crop_aspect[0]), math.log(view.crop_aspect[1])))
    h = torch.minimum(torch.round(torch.sqrt(area / aspect)).clamp_min(1), heights)
    w = torch.minimum(torch.round(torch.sqrt(area * aspect)).clamp_min(1), widths)
    top = torch.floor(u[:, 2] * (heights - h + 1))
    left = torch.floor(u[:, 3] * (widths - w + 1))
    return torch.stack([top, left, h, w], dim=1)


def _torchvision_box(view: View, u: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    H, W = heights[:, None], widths[:, None]
    area = H * W * _between(u[..., 0], *view.crop_area)
    aspect = torch.exp(_between(u[..., 1], math.log(view.crop_aspect[0]), math.log(view.crop_aspect[1])))
    h, w = torch.round(torch.sqrt(area / aspect)), torch.round(torch.sqrt(area * aspect))
    fits = (h > 0) & (h <= H) & (w > 0) & (w <= W)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    h, w, top, left = (x.gather(1, first)[:, 0] for x in (h, w, u[..., 2], u[..., 3]))
    top = torch.floor(top * (heights - h + 1))
    left = torch.floor(left * (widths - w + 1))
    # After ten misses: the largest central crop whose aspect is within the range.
    low, high = view.crop_aspect
    ratio = widths / heights
    central_h = torch.where(ratio < low, torch.round(widths / low), heights)
    central_w = torch.where(ratio > high, torch.round(heights * high), widths)
    none = ~fits.any(1)
    h, w = torch.where(none, central_h, h), torch.where(none, central_w, w)
    top = torch.where(none, torch.floor((heights - h) / 2), top)
    left = torch.where(none, torch.floor((widths - w) / 2), left)
    return torch.stack([top, left, h, w], dim=1)


def _theta(view: View, u: Tensor) -> Tensor | None:
    if view.rotate_degrees == 0 and view.shear == 0:
        return None
    angle = _spread(u[:, 0], math.radians(view.rotate_degrees))
    shear = _spread(u[:, 1], view.shear)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    rows = (torch.stack([cos, cos * shear - sin, zero], 1), torch.stack([sin, sin * shear + cos, zero], 1))
    return torch.stack(rows, dim=1).float()


def crop_batch(view: View, images: Tensor, parameters: Parameters, size: int) -> Tensor:
    """The crops of a batch held on the device. images: [B, C, H, W] in 0-255. Returns [B, C, size, size]
    float32 in [0, 1]."""
    rows, columns = _crop_matrices(view, parameters.box, images.shape[-2], images.shape[-1], size)
    pixels = images.float()
    cut = ops.crop_resize(pixels, ops.there(rows, pixels.device), ops.there(columns, pixels.device))
    return cut.div_(255).clamp_(0, 1)


def crop_one(view: View, image: np.ndarray, box: Tensor, size: int) -> Tensor:
    """The crop of one decoded image, in a worker. image: [H, W, C] uint8, or float32 in 0-255. box: [4] float64 (top,
    left, height, width), px. Returns [C, size, size] of the same type: of uint8 the exact crop rounded to the nearest
    grey level, so that a quarter of the bytes travels."""
    top, left, h, w = box.tolist()
    region = image[math.floor(top) : math.ceil(top + h), math.floor(left) : math.ceil(left + w)]
    antialias = view.style == "torchvision"
    rows = _taps(top % 1, h, region.shape[0], size, antialias)
    columns = _taps(left % 1, w, region.shape[1], size, antialias)
    cut = ops.crop_by_taps(torch.from_numpy(region).float(), rows, columns)
    if image.dtype == np.float32:
        return cut.clamp_(0, 255)
    # By way of int16: the conversion of floats to bytes is four times as slow.
    return cut.round_().clamp_(0, 255).to(torch.int16).to(torch.uint8)


@lru_cache(maxsize=1024)  # crops at whole pixels have few lengths, and the taps take as long as the crop
def _taps(start: float, length: float, in_size: int, size: int, antialias: bool) -> tuple[Tensor, Tensor]:
    first, extent = torch.tensor([[start], [length]], dtype=torch.float64)
    pixels, weights = ops.crop_taps(first, extent, in_size, size, antialias=antialias)
    return pixels[0], weights[0].float()


def _crop_matrices(view: View, box: Tensor, height: int, width: int, size: int) -> tuple[Tensor, Tensor]:
    antialias = view.style == "torchvision"
    rows = _at_whole_pixels(box[:, 0], box[:, 2], height, size, antialias)
    columns = _at_whole_pixels(box[:, 1], box[:, 3], width, size, antialias)
    return rows, columns


def _at_whole_pixels(start: Tensor, length: Tensor, in_size: int, size: int, antialias: bool) -> Tensor:
    """`ops.crop_weights` as float32, of starts and lengths that are whole numbers: [B, size, in_size]."""
    # A crop's weights are those of its length, moved to its start; what wraps around is zero.
    moved = (torch.arange(in_size) - start.long()[:, None]) % in_size
    return _of_all_lengths(in_size, size, antialias)[length.long() - 1].gather(2, moved[:, None].expand(-1, size, -1))


@lru_cache(maxsize=8)
def _of_all_lengths(in_size: int, size: int, antialias: bool) -> Tensor:
    lengths = torch.arange(1, in_size + 1, dtype=torch.float64)
    return ops.crop_weights(torch.zeros_like(lengths), lengths, in_size, size, antialias=antialias).float()


@dataclass(frozen=True)
class Arithmetic:
    """The operations that take most of the time, as they are, or compiled (`compiled`); the numbers are the same."""

    saturation: Operation = ops.tf_saturation
    hue: Operation = ops.hue
    convolve: Operation = ops.shifted_sums
    solarize: Operation = ops.solarize


EAGER = Arithmetic()


def compiled(views: tuple[View, ...], channels: int, size: int, device: torch.device) -> Arithmetic:
    """The arithmetic of those views as torch.compile makes it. Whatever its compilers raise where they are missing or
    fail, it raises here, before the first batch."""
    # On a CPU images come one by one (`photometry_each`), elsewhere in every number.
    one_by_one = device.type == "cpu"
    num = 1 if one_by_one else 2
    found = Arithmetic(*(torch.compile(getattr(EAGER, f.name), dynamic=not one_by_one) for f in fields(Arithmetic)))
    images, sizes = torch.rand(num, channels, size, size, device=device), torch.full((num,), size)
    always = torch.ones(num, dtype=torch.bool)
    for view in views:
        drawn = draw(view, rng.fold(rng.key(0), torch.arange(num)), sizes, sizes, size, channels)
        every = replace(drawn, flip=always, jitter=always, gray=always, blur=always, solarize=always)
        photometry(view, images.clone(), every, found)
    return found


def photometry(view: View, images: Tensor, parameters: Parameters, arithmetic: Arithmetic = EAGER) -> Tensor:
    """Everything after the crop but normalisation. images: [B, C, S, S] float32 in [0, 1], changed in place.

    Returns [B, C, S, S] float32 in [0, 1].
    """
    for chosen, operation, values in _stages(view, parameters, images.shape[1], arithmetic):
        images = _where(images, chosen, operation, *values)
    return images.clamp_(0, 1)


def photometry_each(
    view: View, crops: Tensor, parameters: Parameters, arithmetic: Arithmetic, finish: Callable[[Tensor], object]
) -> Tensor:
    """`photometry` of crops [B, C, S, S] in 0-255 on the CPU, then `finish`, which works in place, image by image: one
    large image stays in the processor's cache through all of it, a batch does not. Returns [B, C, S, S] float32."""
    made = torch.empty(crops.shape)
    stages = [
        (chosen.tolist(), operation, values)
        for chosen, operation, values in _stages(view, parameters, crops.shape[1], arithmetic)
    ]
    for row in range(len(crops)):
        one = slice(row, row + 1)
        image = crops[one] / 255
        for chosen, operation, values in stages:
            if chosen[row]:
                image = operation(image, *(value[one] for value in values))
        finish(torch.clamp(image, 0, 1, out=made[one]))
    return made


Stage = tuple[Tensor, Operation, tuple[Tensor, ...]]


def _stages(view: View, p: Parameters, channels: int, arithmetic: Arithmetic) -> Iterator[Stage]:
    """(which images [B] bool, the operation, its values [B, ...]) of each change in turn."""
    authors = view.style == "authors"
    if p.theta is not None:
        yield torch.ones_like(p.flip), ops.affine, (p.theta,)
    yield p.flip, ops.flip, ()
    changes: list[tuple[float, Operation, Tensor]] = [
        (view.brightness, ops.tf_brightness if authors else ops.tv_brightness, p.brightness),
        # torchvision's contrast is about the mean of the gray image, which channels that are no colours have not.
        (view.contrast, ops.tf_contrast if authors or view.channelwise else ops.tv_contrast, p.contrast),
        (view.saturation, arithmetic.saturation if authors else ops.tv_saturation, p.saturation),
        (view.hue, arithmetic.hue, p.hue),
    ]
    for place in range(4):
        for change, (amount, operation, value) in enumerate(changes):
            if amount and view.jitter:
                yield p.jitter & (p.order[:, place] == change), operation, (value,)
    if view.gray and channels == 3:
        yield p.gray, ops.gray, ()
    if view.blur and p.taps.shape[1] > 1:
        padding = "constant" if authors else "reflect"
        blur = partial(ops.blur, padding=padding, convolve=arithmetic.convolve)
        yield p.blur, blur, (p.taps,)
    if view.solarize:
        yield p.solarize, arithmetic.solarize, ()


def _where(images: Tensor, chosen: Tensor, operation: Operation, *values: Tensor) -> Tensor:
    """The operation applied to the chosen images only, in place. `chosen` and `values` are on the CPU: the device never
    has to say how many there are."""
    index = chosen.nonzero()[:, 0]
    if len(index) == 0:
        return images
    there = [ops.there(value[index], images.device) for value in values]
    if len(index) == len(images):
        return images.copy_(operation(images, *there))
    index = ops.there(index, images.device)
    return images.index_copy_(0, index, operation(images.index_select(0, index), *there).contiguous())
