"""Overlap of training and test images: real digits, and copies of them as other frames and other files have them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from byol.data.open import open_source
from byol.evaluate.duplicates import SIDE_PX, _compact, _thumbnails, near_duplicates, overlap


@pytest.fixture(scope="module")
def digits():
    """800 training digits and 500 test digits, [N, 1, 28, 28] uint8."""
    train, test = (open_source("digits", part=part).pixels()[0] for part in ("train", "test"))
    return tuple(torch.from_numpy(p[::step]).permute(0, 3, 1, 2).contiguous() for p, step in ((train, 5), (test, 2)))


def moved(images, down, right):
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    return torch.from_numpy(padded[..., 2 + down : 30 + down, 2 + right : 30 + right].copy())


def encoded(images, quality):
    copies = []
    for image in images.numpy():
        stream = io.BytesIO()
        Image.fromarray(image[0]).save(stream, "JPEG", quality=quality)
        copies.append(np.asarray(Image.open(stream))[None])
    return torch.from_numpy(np.stack(copies))


def brighter(images):
    return (images.float() * 0.8 + 30).round().to(torch.uint8)


def test_images_of_the_same_bytes_are_counted(digits):
    train, test = digits
    mixed = torch.cat([test[:5], train[7:10], train[7:8]])
    assert overlap(train.split(64), test.split(64)) == 0
    assert overlap(train.split(64), mixed.split(2)) == 4
    changed = train[:3].clone()
    changed[:, 0, 27, 27] ^= 1
    assert overlap(iter([train]), [changed]) == 0
    # The same bytes of another shape are another image.
    assert overlap([train[:4]], [train[:4].reshape(4, 1, 14, 56)]) == 0
    assert overlap([train[:4]], [train[:4].repeat(1, 3, 1, 1)]) == 0


def test_distinct_digits_are_hardly_ever_near_duplicates(digits):
    train, test = digits
    assert near_duplicates(train.split(300), test.split(100)) <= 0.01 * len(test)


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x,
        brighter,
        lambda x: encoded(x, 75),
        lambda x: encoded(x, 40),
        lambda x: moved(x, 0, 1),
        lambda x: moved(x, -1, 1),
        lambda x: encoded(brighter(moved(x, 1, 0)), 75),
    ],
)
def test_copies_are_found_among_other_images(copy, digits):
    train, test = digits
    copies = copy(train[::8])
    found = near_duplicates(train.split(300), torch.cat([copies, test[:100]]).split(130))
    assert 95 <= found <= 101  # a few digits touch the edge that moving cuts off


def test_colour_and_size_of_the_two_may_differ(digits):
    train, _ = digits
    larger = torch.nn.functional.interpolate(train[:50].float(), scale_factor=3, mode="bicubic").clamp(0, 255)
    colour = larger.to(torch.uint8).repeat(1, 3, 1, 1)
    assert near_duplicates([train], [colour]) >= 49
    for axis in (2, 3):  # by 1/28 of 84 px, and moved back by as much
        assert near_duplicates([train], [colour.roll(3, dims=axis)]) >= 49


def test_gray_is_the_luma():
    image = torch.zeros(1, 3, 16, 24, dtype=torch.uint8)
    for channel in range(3):
        image[0, channel, :, 8 * channel : 8 * channel + 8] = 100
    stripes = _thumbnails(image).view(16, 16)[0, [2, 8, 13]]  # red, green, blue
    gaps = (stripes[1] - stripes[0]) / (stripes[0] - stripes[2])
    assert gaps == pytest.approx((0.587 - 0.299) / (0.299 - 0.114), rel=1e-4)


def test_images_of_one_colour_equal_none():
    plain = torch.full((3, 1, 28, 28), 7, dtype=torch.uint8)
    assert near_duplicates([plain], [plain]) == 0
    assert overlap([plain], [plain]) == 3


def test_nothing_to_compare_with(digits):
    assert near_duplicates([], [digits[1]]) == overlap([], [digits[1]]) == 0
    assert near_duplicates([digits[0]], []) == 0


def test_a_thumbnail_keeps_256_bytes_also_of_faint_images(digits):
    faint = (digits[0][:20].float() / 64).round().to(torch.uint8)
    kept = _compact(_thumbnails(faint))
    assert kept.dtype == torch.int8 and kept.shape == (20, SIDE_PX**2)
    restored = torch.nn.functional.normalize(kept.float(), dim=1)
    assert (restored * _thumbnails(faint)).sum(dim=1).min() > 0.9995
