"""Views: what is drawn, how often, and that it depends on nothing but (seed, epoch, image, view)."""

from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from byol import rng
from byol.methods.byol import BYOL
from byol.views import ops, recipes
from byol.views.view import BYOL_T, BYOL_T_PRIME, View, without_color

N = 10_000


def draws(view, num=N, height=100, width=130, size=32, view_index=0, seed=0):
    keys = recipes.view_keys(seed, torch.zeros(num, dtype=torch.int64), torch.arange(num), 2)[view_index]
    return recipes.draw(view, keys, torch.full((num,), height), torch.full((num,), width), size)


def same(a, b):
    return all(
        (x is None and y is None) or torch.equal(x, y)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    )


def check_byol_pair():
    """Table 6 of Grill et al. 2020, written out."""
    shared = {
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "gray": 0.2,
    }
    shared |= {
        "channelwise": False,
        "crop_area": (0.08, 1.0),
        "crop_aspect": (3 / 4, 4 / 3),
        "sigma": (0.1, 2.0),
        "rotate_degrees": 0.0,
    }
    for view, own in zip(BYOL.views, ({"blur": 1.0, "solarize": 0.0}, {"blur": 0.1, "solarize": 0.2}), strict=True):
        assert vars(view) == {**shared, "shear": 0.0, "style": "authors", **own}


def test_rotation_and_shear_are_uniform_and_nothing_else():
    theta = draws(View(rotate_degrees=20, shear=0.2)).theta.double()
    assert (theta[:, :, 2] == 0).all()
    angle = torch.atan2(theta[:, 1, 0], theta[:, 0, 0])
    # Rotation after shear: undone, an upper triangle with ones is left.
    cos, sin = torch.cos(angle), torch.sin(angle)
    back = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1) @ theta[:, :, :2]
    assert torch.allclose(back[:, [0, 1, 1], [0, 0, 1]], torch.tensor([1.0, 0.0, 1.0]).double(), atol=1e-6)
    for values, limit in ((torch.rad2deg(angle), 20.0), (back[:, 0, 1], 0.2)):
        assert stats.kstest(values.numpy(), stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3


def test_the_method_s_views_are_the_paper_s_pair():
    check_byol_pair()


def check_byol_rates():
    for index, (view, blur, solarize) in enumerate(((BYOL_T, 1.0, 0.0), (BYOL_T_PRIME, 0.1, 0.2))):
        p = draws(view, view_index=index)
        for name, rate in (
            ("flip", 0.5),
            ("jitter", 0.8),
            ("gray", 0.2),
            ("blur", blur),
            ("solarize", solarize),
        ):
            error = 3 * (rate * (1 - rate) / N) ** 0.5
            assert abs(getattr(p, name).double().mean().item() - rate) <= error, (index, name)


def check_byol_ranges():
    p = draws(BYOL_T)
    for name, low, high in (
        ("brightness", -0.4, 0.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        values = getattr(p, name).double().numpy()
        assert values.min() >= low - 1e-6, name
        assert values.max() <= high + 1e-6, name
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name


def test_application_rates_are_the_paper_s():
    check_byol_rates()


def test_strengths_are_uniform_over_the_paper_s_ranges():
    check_byol_ranges()


def test_all_24_orders_are_equally_likely():
    p = draws(BYOL_T)
    codes = (p.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.stack(
        [(codes == sum(v * 4 ** (3 - i) for i, v in enumerate(o))).sum() for o in permutations(range(4))]
    )
    assert counts.sum() == N
    assert (counts.double() - N / 24).abs().max() < 3 * (N / 24 * (23 / 24)) ** 0.5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_sigma_is_uniform():
    # Three taps of weight a, b, a with b / a = exp(1 / (2 sigma^2)).
    taps = draws(BYOL_T).taps.double()
    sigma = (1 / (2 * torch.log(taps[:, 1] / taps[:, 0]))).sqrt()
    sigma = sigma[sigma > 0.3]  # below, float32 taps hold too little of sigma
    assert stats.kstest(sigma.numpy(), stats.uniform(0.3, 1.7).cdf).pvalue > 1e-3
    assert sigma.max() <= 2.0001


def test_crops_have_the_stated_areas_and_aspects():
    p = draws(replace(BYOL_T, crop_area=(0.3, 0.6)), height=1000, width=1000)
    top, left, h, w = p.box.unbind(1)
    inside = (h < 1000) & (w < 1000)
    share = (h * w / 1e6)[inside]
    aspect = (w / h)[inside]
    assert share.min() > 0.298
    assert share.max() < 0.602
    assert stats.kstest(share.numpy(), stats.uniform(0.3, 0.3).cdf).pvalue > 1e-3
    log = torch.log(aspect).numpy()
    assert stats.kstest(log, stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf).pvalue > 1e-3
    assert (top >= 0).all()
    assert (top + h <= 1000).all()
    assert (left + w <= 1000).all()


def test_crops_too_large_for_the_image_are_clipped_not_redrawn():
    p = draws(BYOL_T, height=20, width=200)
    _, _, h, w = p.box.unbind(1)
    assert (h == 20).double().mean() > 0.5
    assert (p.box[:, 0][h == 20] == 0).all()
    assert (h <= 20).all()
    assert (w <= 200).all()


def test_torchvision_style_crops_fit_or_are_central():
    view = View(style="torchvision")
    p = draws(view, height=20, width=200)
    _, _, h, w = p.box.unbind(1)
    aspect = w / h
    assert (aspect > 0.7).all()
    assert (aspect < 1.45).all()
    p = draws(replace(view, crop_area=(0.95, 1.0)), num=50, height=10, width=200)
    assert (p.box == torch.tensor([0.0, 93.0, 10.0, 13.0])).all()


def test_whole_images_stay_as_they_are():
    view = View(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0, jitter=0, gray=0, blur=0)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    p = draws(view, num=5, height=16, width=16, size=16)
    found = recipes.photometry(view, recipes.crop_batch(view, images, p, 16), p)
    assert torch.allclose(found * 255, images.float(), atol=1e-3)


def make(view, images, ids, epoch=0, seed=0, size=24):
    keys = recipes.view_keys(seed, torch.full_like(ids, epoch), ids, 2)[0]
    h, w = images.shape[-2:]
    p = recipes.draw(view, keys, torch.full_like(ids, h), torch.full_like(ids, w), size)
    return p, recipes.photometry(view, recipes.crop_batch(view, images, p, size), p)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("style", ["authors", "torchvision"])
def test_views_do_not_depend_on_batch_or_order(channels, style):
    view = View(style=style, blur=0.5, solarize=0.2, rotate_degrees=10, shear=0.1)
    view = view if channels == 3 else without_color(view)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (256, channels, 28, 28), dtype=torch.uint8, generator=generator)
    ids = torch.randperm(10**6, generator=generator)[:256]
    parameters, together = make(view, images, ids)
    for i in range(0, 256, 17):
        alone_parameters, alone = make(view, images[i : i + 1], ids[i : i + 1])
        assert torch.equal(alone[0], together[i]), i
        for name, value in vars(parameters).items():
            assert torch.equal(getattr(alone_parameters, name)[0], value[i]), (i, name)
    order = torch.randperm(256, generator=generator)
    assert torch.equal(make(view, images[order], ids[order])[1], together[order])


def test_gray_and_colour_data_get_the_same_draws():
    assert torch.equal(draws(BYOL_T, num=100).box, draws(without_color(BYOL_T), num=100).box)
    assert torch.equal(draws(BYOL_T, num=100).contrast, draws(without_color(BYOL_T), num=100).contrast)


def test_epoch_image_view_and_seed_each_change_the_draw():
    ids = torch.arange(50)
    images = torch.randint(0, 256, (50, 3, 24, 24), dtype=torch.uint8)
    base = make(BYOL_T, images, ids)[0]
    assert same(base, make(BYOL_T, images, ids)[0])
    assert not same(base, make(BYOL_T, images, ids, epoch=1)[0])
    assert not same(base, make(BYOL_T, images, ids, seed=1)[0])
    assert not same(base, make(BYOL_T, images, ids + 50)[0])
    assert not torch.equal(draws(BYOL_T, num=50).box, draws(BYOL_T, num=50, view_index=1).box)


def test_a_worker_s_crop_is_within_half_a_grey_level():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (40, 3, 60, 45), dtype=torch.uint8, generator=generator)
    for view in (BYOL_T, View(style="torchvision")):
        ids = torch.arange(40)
        keys = recipes.view_keys(0, torch.zeros_like(ids), ids, 1)[0]
        p = recipes.draw(view, keys, torch.full_like(ids, 60), torch.full_like(ids, 45), 32)
        exact = recipes.crop_batch(view, images, p, 32) * 255
        for i in range(40):
            cut = recipes.crop_one(view, images[i].permute(1, 2, 0).numpy(), p.box[i], 32)
            assert (cut.double() - exact[i].double()).abs().max() <= 0.5 + 1e-3


def test_photometry_follows_the_drawn_order():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    view = View(gray=0, blur=0, flip=0)
    keys = recipes.view_keys(0, torch.zeros(3, dtype=torch.int64), torch.arange(3), 1)[0]
    p = recipes.draw(view, keys, torch.full((3,), 8), torch.full((3,), 8), 8)
    p = replace(p, jitter=torch.ones(3, dtype=torch.bool))
    found = recipes.photometry(view, images.clone(), p)
    changes = (ops.tf_brightness, ops.tf_contrast, ops.tf_saturation, ops.hue)
    values = (p.brightness, p.contrast, p.saturation, p.hue)
    for i in range(3):
        x = images[i : i + 1]
        for change in p.order[i].tolist():
            x = changes[change](x, values[change][i : i + 1])
        assert torch.allclose(found[i], x[0], atol=1e-6)


def test_the_byol_pair_is_the_paper_s_table():
    """Grill et al. 2020, Table 6."""
    shared = {
        "crop_area": (0.08, 1.0),
        "crop_aspect": (3 / 4, 4 / 3),
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
    }
    shared |= {
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "gray": 0.2,
        "sigma": (0.1, 2.0),
        "style": "authors",
    }
    for view, own in (
        (BYOL_T, {"blur": 1.0, "solarize": 0.0}),
        (BYOL_T_PRIME, {"blur": 0.1, "solarize": 0.2}),
    ):
        for name, value in (shared | own).items():
            assert getattr(view, name) == value, name


@pytest.mark.parametrize("antialias", [False, True])
def test_weights_of_crops_at_whole_pixels_are_those_of_each_crop(antialias):
    size = 21
    start, length = (x.flatten() for x in torch.meshgrid(torch.arange(size), torch.arange(1, size + 1), indexing="ij"))
    inside = start + length <= size
    start, length = start[inside].double(), length[inside].double()
    found = recipes._at_whole_pixels(start, length, size, 8, antialias)
    for i in range(len(start)):
        expected = ops.crop_weights(start[i : i + 1], length[i : i + 1], size, 8, antialias=antialias)[0]
        assert torch.allclose(found[i].double(), expected, rtol=0, atol=1e-7)


@pytest.mark.gpu
def test_pixels_agree_between_devices():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    ids = torch.arange(64)
    p, here = make(BYOL_T, images, ids)
    there = recipes.photometry(BYOL_T, recipes.crop_batch(BYOL_T, images.cuda(), p, 24), p)
    std = torch.tensor(recipes.IMAGENET_STD)[:, None, None]
    assert ((here - there.cpu()) / std).abs().max() < 1e-5


def test_threads_change_no_bit_of_a_large_view():
    """At 224 px PyTorch shares out an operation among threads."""
    num, size, own = 6, 224, torch.get_num_threads()
    crops = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((num,), size)
    for view in (replace(BYOL_T, solarize=0.5, gray=0.5), View(style="torchvision", rotate_degrees=10)):
        p = recipes.draw(view, rng.fold(rng.key(0), torch.arange(num)), sizes, sizes, size)
        found = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(recipes.photometry_each(view, crops, p, recipes.EAGER, lambda x: x))
        finally:
            torch.set_num_threads(own)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@pytest.mark.filterwarnings("ignore")  # compilers warn of what is theirs
def test_compiled_views_and_views_image_by_image_have_the_same_bits():
    views = (BYOL_T, replace(BYOL_T_PRIME, solarize=0.5, gray=0.5), View(style="torchvision", rotate_degrees=10))
    num, size = 12, 72
    crops = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    quick = recipes.compiled(views, 3, size, torch.device("cpu"))
    assert quick is not recipes.EAGER
    sizes = torch.full((num,), size)
    for number, view in enumerate(views):
        keys = recipes.view_keys(0, torch.zeros(num, dtype=torch.int64), torch.arange(num), 3)[number]
        p = recipes.draw(view, keys, sizes, sizes, size)
        whole = recipes.photometry(view, crops.float() / 255, p)
        for arithmetic in (recipes.EAGER, quick):
            each = recipes.photometry_each(view, crops, p, arithmetic, lambda x: x)
            assert torch.equal(each, whole)
        assert not torch.equal(whole, crops.float() / 255)
