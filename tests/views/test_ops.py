"""Each operation against the authors' recorded values, torchvision with the same parameters, or a naive loop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from byol.views import ops

ORACLE = Path(__file__).parents[1] / "oracles/deepmind_ops.npz"


def random_images(b=4, c=3, h=12, w=12, seed=0):
    return torch.rand(b, c, h, w, generator=torch.Generator().manual_seed(seed))


def full(value, b):
    return torch.full((b,), value)


def check_recorded_colour():
    with np.load(ORACLE) as oracle:
        images = torch.from_numpy(oracle["aug|images_nhwc"]).permute(0, 3, 1, 2)
        b = len(images)
        operations = {
            "brightness": lambda v: ops.tf_brightness(images, full(v, b)),
            "contrast": lambda v: ops.tf_contrast(images, full(v, b)),
            "saturation": lambda v: ops.tf_saturation(images, full(v, b)),
            "hue": lambda v: ops.hue(images, full(v, b)),
            "grayscale": lambda _: ops.gray(images),
            "solarize": lambda _: ops.solarize(images),
        }
        seen = set()
        for key in oracle.files:
            _, name, *rest = key.split("|")
            if not key.startswith("aug|") or name not in operations:
                continue
            value = float(rest[0].split("=")[1]) if rest else 0.0
            expected = torch.from_numpy(oracle[key]).permute(0, 3, 1, 2)
            gap = (operations[name](value) - expected).abs().max().item()
            assert gap < 1e-5, (key, gap)
            seen.add(name)
        assert seen == set(operations)


def check_recorded_blur():
    with np.load(ORACLE) as oracle:
        images = torch.from_numpy(oracle["aug|blur_images_uint8"]).permute(0, 3, 1, 2).float() / 255
        for sigma in (0.1, 0.7, 2.0):
            taps = ops.gaussian_taps(torch.full((len(images),), sigma, dtype=torch.float64), 23).float()
            expected = torch.from_numpy(oracle[f"aug|blur|sigma={sigma}|kernel=23"]).permute(0, 3, 1, 2).float()
            assert (ops.blur(images, taps) - expected).abs().max() < 3e-4, sigma


def check_golden_pixel():
    pixel = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1)
    h, s, v = (x.item() for x in ops.rgb_to_hsv(pixel))
    assert (h, s, v) == pytest.approx((0.5952380952, 0.7777777778, 0.9), abs=1e-6)
    one = lambda x: x.flatten().tolist()  # noqa: E731
    assert one(ops.hue(pixel, full(0.1, 1))) == pytest.approx((0.32, 0.2, 0.9), abs=1e-6)
    assert one(ops.hue(pixel, full(-0.1, 1))) == pytest.approx((0.2, 0.9, 0.88), abs=1e-6)
    assert one(ops.tf_saturation(pixel, full(1.2, 1))) == pytest.approx((0.06, 0.42, 0.9), abs=1e-6)
    assert one(ops.tf_saturation(pixel, full(0.8, 1))) == pytest.approx((0.34, 0.58, 0.9), abs=1e-6)
    assert one(ops.gray(pixel)) == pytest.approx([0.45588] * 3, abs=1e-6)
    assert one(ops.tf_brightness(pixel, full(0.3, 1))) == pytest.approx((0.5, 0.8, 1.0), abs=1e-6)
    assert one(ops.solarize(pixel)) == pytest.approx((0.2, 0.5, 0.1), abs=1e-6)


def check_golden_contrast():
    image = torch.tensor([[[0.2, 0.5, 0.9], [0.1, 0.1, 0.1]], [[0.8, 0.3, 0.6], [1, 0, 0.4]]]).permute(2, 0, 1)[None]
    found = ops.tf_contrast(image, full(1.4, 1))[0].permute(1, 2, 0).flatten().tolist()
    expected = [0.07, 0.61, 1, 0, 0.05, 0, 0.91, 0.33, 0.64, 1, 0, 0.36]
    assert found == pytest.approx(expected, abs=1e-6)


def check_golden_blur():
    def corner(size, sigma):
        taps = ops.gaussian_taps(torch.tensor([sigma], dtype=torch.float64), ops.blur_width(size))
        return ops.blur(torch.ones(1, 1, size, size, dtype=torch.float64), taps)[0, 0, 0, 0].item()

    assert corner(32, 1.0) == pytest.approx(0.5269763698, abs=1e-9)
    assert corner(224, 2.0) == pytest.approx(0.3596827548, abs=1e-9)
    taps = ops.gaussian_taps(torch.tensor([1.0, 2.0], dtype=torch.float64), 23)
    golden = [
        [0.3989422783, 0.2419707232, 0.0539909662, 0.0044318484],
        [0.1994711415, 0.1760326645, 0.1209853630, 0.0647587982],
    ]
    for row, expected in zip(taps, golden, strict=True):
        assert row[11:15].tolist() == pytest.approx(expected, abs=1e-9)
        assert row[8:12].flip(0).tolist() == pytest.approx(expected, abs=1e-9)


def test_recorded_colour_operations():
    check_recorded_colour()


def test_recorded_blur():
    check_recorded_blur()


def test_golden_pixel():
    check_golden_pixel()


def test_golden_contrast():
    check_golden_contrast()


def test_golden_blur():
    check_golden_blur()


def test_blur_widths_of_common_sizes():
    sizes = {28: 3, 32: 3, 64: 7, 96: 9, 128: 13, 160: 17, 224: 23}
    assert {size: ops.blur_width(size) for size in sizes} == sizes


def test_hsv_of_gray_black_and_ties_round_trips():
    colours = torch.tensor(
        [
            [0, 0, 0],
            [1, 1, 1],
            [0.5, 0.5, 0.5],
            [0.7, 0.7, 0.2],
            [0.2, 0.7, 0.7],
            [0.7, 0.2, 0.7],
            [1, 0, 0],
            [0, 0, 1],
        ]
    )
    images = colours.view(-1, 3, 1, 1)
    assert torch.allclose(ops.hsv_to_rgb(*ops.rgb_to_hsv(images)), images, atol=1e-6)


def naive_cubic(d):
    d = abs(d)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def naive_crop(image, top, left, h, w, size):
    """TF bicubic of one channel [H, W], float64, by loops: four taps an axis, those outside the crop dropped."""

    def taps(i, length):
        x = (i + 0.5) * length / size - 0.5
        first = math.floor(x) - 1
        pairs = [(j, naive_cubic(x - j)) for j in range(first, first + 4) if 0 <= j < length]
        total = sum(weight for _, weight in pairs)
        return [(j, weight / total) for j, weight in pairs]

    return np.array(
        [
            [
                sum(wy * wx * image[top + y, left + x] for y, wy in taps(i, h) for x, wx in taps(j, w))
                for j in range(size)
            ]
            for i in range(size)
        ]
    )


BOXES = [(0, 0, 12, 15), (3, 2, 5, 7), (11, 14, 1, 1), (0, 5, 12, 3), (2, 0, 9, 15)]


@pytest.mark.parametrize("size", [4, 9, 24])
def test_crops_are_tensorflow_s_bicubic(size):
    image = random_images(1, 1, 12, 15, seed=3)
    box = torch.tensor(BOXES, dtype=torch.float64)
    rows = ops.crop_weights(box[:, 0], box[:, 2], 12, size, antialias=False)
    columns = ops.crop_weights(box[:, 1], box[:, 3], 15, size, antialias=False)
    found = ops.crop_resize(image.expand(len(BOXES), -1, -1, -1), rows.float(), columns.float())
    for one, b in zip(found, BOXES, strict=True):
        assert np.abs(one[0].numpy() - naive_crop(image[0, 0].double().numpy(), *b, size)).max() < 1e-6


def test_the_midpoint_weight_is_keys_with_a_half_not_pytorch_s():
    # Halfway between two pixels of a long row, a = -0.5 gives 0.5625 to each neighbour; a = -0.75 gives 0.59375.
    weights = ops.crop_weights(torch.tensor([0.0]).double(), torch.tensor([8.0]).double(), 8, 4, antialias=False)
    assert weights[0, 1].tolist() == pytest.approx([0, -0.0625, 0.5625, 0.5625, -0.0625, 0, 0, 0][:8], abs=1e-12) or (
        weights[0, 1, 2:4].tolist() == pytest.approx([0.5625, 0.5625], abs=1e-12)
    )


@pytest.mark.parametrize("size", [5, 12, 30])
def test_antialiased_crops_are_torchvision_s(size):
    images = random_images(2, 3, 12, 15, seed=4)
    for top, left, h, w in BOXES:
        expected = tv.resized_crop(
            images, top, left, h, w, [size, size], interpolation=tv.InterpolationMode.BICUBIC, antialias=True
        )
        box = torch.tensor([[top, left, h, w]], dtype=torch.float64).expand(2, -1)
        rows = ops.crop_weights(box[:, 0], box[:, 2], 12, size, antialias=True)
        columns = ops.crop_weights(box[:, 1], box[:, 3], 15, size, antialias=True)
        assert torch.allclose(ops.crop_resize(images, rows.float(), columns.float()), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (ops.tv_brightness, tv.adjust_brightness, (0.6, 1.0, 1.4)),
        (ops.tv_contrast, tv.adjust_contrast, (0.6, 1.0, 1.4)),
        (ops.tv_saturation, tv.adjust_saturation, (0.8, 1.0, 1.2)),
        (ops.hue, tv.adjust_hue, (-0.1, 0.05, 0.1)),
    ],
)
def test_torchvision_style_colour(ours, theirs, values):
    images = random_images()
    for value in values:
        assert torch.allclose(ours(images, full(value, 4)), theirs(images, value), atol=2e-6), value


def test_torchvision_style_blur_and_gray_and_flip():
    images = random_images(h=32, w=32)
    taps = ops.gaussian_taps(torch.full((4,), 0.8, dtype=torch.float64), 5).float()
    assert torch.allclose(
        ops.blur(images, taps, padding="reflect"), tv.gaussian_blur(images, [5, 5], [0.8, 0.8]), atol=1e-6
    )
    assert torch.allclose(ops.gray(images), tv.rgb_to_grayscale(images, 3), atol=2e-4)  # its weights have 4 digits too
    assert torch.equal(ops.flip(images), tv.horizontal_flip(images))


@pytest.mark.parametrize("degrees", [17.0, -8.0])
def test_rotation_agrees_with_torchvision(degrees):
    images, a = random_images(h=29, w=29), math.radians(degrees)
    theta = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]]).expand(4, 2, 3)
    # torchvision's angle says where a pixel goes, theta where it comes from.
    expected = tv.affine(images, -degrees, [0, 0], 1.0, [0.0, 0.0], tv.InterpolationMode.BILINEAR)
    assert torch.allclose(ops.affine(images, theta), expected, atol=1e-4)


@pytest.mark.parametrize("shear", [0.2, -0.13])
def test_shear_agrees_with_torchvision(shear):
    images = random_images(h=29, w=29)
    theta = torch.tensor([[1.0, shear, 0.0], [0.0, 1.0, 0.0]]).expand(4, 2, 3)
    degrees = [math.degrees(math.atan(shear)), 0.0]
    expected = tv.affine(images, 0.0, [0, 0], 1.0, degrees, tv.InterpolationMode.BILINEAR)
    assert torch.allclose(ops.affine(images, theta), expected, atol=1e-4)


def test_affine_is_a_rotation_about_the_centre():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 7] = 1.0
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    turned = ops.affine(image, quarter)
    assert turned[0, 0].argmax().item() in (1 * 9 + 4, 7 * 9 + 4)
    identity = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert torch.allclose(ops.affine(image, identity), image, atol=1e-6)


def test_parameters_are_per_image():
    images = random_images()
    values = torch.tensor([0.6, 0.9, 1.1, 1.4])
    together = ops.tf_contrast(images, values)
    alone = torch.cat([ops.tf_contrast(images[i : i + 1], values[i : i + 1]) for i in range(4)])
    assert torch.equal(together, alone)
