"""The rules of docs/defaults.md, worked by hand."""

from dataclasses import replace

import pytest

from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.experiments import RECIPES
from byol.methods import Situation
from byol.methods.byol import BYOL
from byol.options import Options
from byol.plan import plan


@pytest.fixture(scope="module")
def digits():
    source, pixels, _ = load_pixels(open_source("digits"))
    return source, pixels


@pytest.mark.parametrize(
    ("steps", "tau"), [(100, 0.9), (3750, 0.9), (5000, 0.925), (12_500, 0.97), (37_500, 0.99), (400_000, 0.996)]
)
def test_tau_lies_on_the_line_of_the_paper_s_presets(steps, tau):
    defaults = BYOL.defaults(Situation(10_000, 32, 3, 128, steps))
    assert defaults.method_args["tau"] == pytest.approx(tau)


def test_the_learning_rate_grows_with_the_root_of_the_batch():
    small, large = (
        BYOL.defaults(Situation(10_000, 32, 3, images, 5000)).base_lr * images / 256 for images in (64, 256)
    )
    assert large == pytest.approx(0.002)
    assert small == pytest.approx(0.001)


def test_digits_on_a_cpu(digits):
    run = plan(Options(device="cpu"), *digits)
    assert (run.image_size, run.channels, run.stem, run.backbone) == (28, 1, "3x3", "resnet18")
    assert run.batch_size == 128
    # 3,800 images are not held out; 100 epochs would be 2,968 steps, so 5,000 it is.
    assert run.total_steps == 5000
    assert run.warmup_steps == 500
    assert run.method_args == {"hidden": 1024, "out": 256, "tau": 0.925, "target_init": "independent"}
    assert all((view["hue"], view["saturation"], view["gray"]) == (0, 0, 0) for view in run.views)


def test_what_is_said_goes_before_the_rules(digits):
    run = plan(
        Options(device="cpu", batch_size=64, accumulate=2, epochs=2, base_lr=0.1, method_args={"tau": 0.5}), *digits
    )
    assert (run.images_per_step, run.total_steps) == (128, 59)
    assert run.peak_lr == pytest.approx(0.05)
    assert run.method_args["tau"] == 0.5
    run = plan(Options(device="cpu", steps=3, view_changes={"flip": 0.25}), *digits)
    assert [view["flip"] for view in run.views] == [0.25, 0.25]


def test_a_target_starts_as_a_copy_of_given_weights(digits, tmp_path):
    (tmp_path / "weights.safetensors").touch()
    run = plan(Options(device="cpu", steps=3, init=str(tmp_path / "weights.safetensors")), *digits)
    assert run.method_args["target_init"] == "copy"


@pytest.mark.parametrize(
    ("name", "peak_lr", "warmup", "weight_decay", "tau"),
    [  # the authors' presets: base rate x 4096 / 256, 10 epochs of 1,281,167 images
        ("byol_imagenet_40", 7.2, 3127, 1e-6, 0.97),
        ("byol_imagenet_100", 7.2, 3127, 1e-6, 0.99),
        ("byol_imagenet_300", 4.8, 3127, 1e-6, 0.99),
        ("byol_imagenet_1000", 3.2, 3127, 1.5e-6, 0.996),
    ],
)
def test_the_published_recipes_are_the_authors_presets(digits, name, peak_lr, warmup, weight_decay, tau):
    source, pixels = digits
    options = RECIPES[name]()
    assert options.base_lr * options.batch_size / 256 == pytest.approx(peak_lr)
    assert int(options.warmup_epochs * 1_281_167 / options.batch_size) == warmup
    assert options.weight_decay == weight_decay
    run = plan(replace(options, batch_size=64, epochs=1, device="cpu", precision="32"), source, pixels)
    assert run.optimizer == "lars"
    assert run.method_args == {"hidden": 4096, "out": 256, "tau": tau, "target_init": "independent"}
