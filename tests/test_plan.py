"""The rules of docs/defaults.md, worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.encoder import Encoder, EncoderSpec
from byol.experiments import RECIPES
from byol.methods import Situation, get
from byol.methods.byol import BYOL
from byol.names import METHODS, method_arguments
from byol.options import Options
from byol.plan import plan


@pytest.fixture(scope="module")
def digits():
    source, pixels, _ = load_pixels(open_source("digits"))
    return source, pixels


@pytest.mark.parametrize(
    ("steps", "tau"),
    [(100, 0.6), (1500, 0.75), (3750, 0.9), (5000, 0.925), (12_500, 0.97), (37_500, 0.99), (400_000, 0.996)],
)
def test_tau_lies_on_the_line_of_the_paper_s_presets(steps, tau):
    defaults = BYOL.defaults(Situation(10_000, 32, 3, 128, steps))
    assert defaults.method_args["tau"] == pytest.approx(tau)


@pytest.mark.parametrize(("steps", "tau"), [(380, 0.99), (20_000, 0.99), (50_000, 0.996), (1_000_000, 0.999)])
def test_moco_s_keys_never_change_faster_than_its_paper_says_works(steps, tau):
    defaults = get("moco").defaults(Situation(10_000, 32, 3, 128, steps))
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


def test_another_batch_moves_the_whole_recipe(digits):
    recipe = RECIPES["byol_imagenet_1000"]()
    moved = recipe.at_batch(512, accumulate=2)
    assert moved.images_per_step == 1024
    # LARS and SGD: linear (Goyal et al. 2017); base_lr is for 256 images, so it stays and the peak falls to a quarter.
    assert moved.base_lr == recipe.base_lr
    assert moved.weight_decay == recipe.weight_decay
    # tau to the power of the batch's ratio (Busbridge et al. 2023): as much is forgotten an image.
    assert moved.method_args["tau"] == pytest.approx(0.996**0.25, abs=1e-6)
    assert (moved.epochs, moved.warmup_epochs) == (1000, 10)
    assert moved.moved() == ["batch 4096 -> 1024", "learning rate 3.2 -> 0.8 (linear rule)", "tau 0.996 -> 0.998998"]
    assert recipe.at_batch(1024, accumulate=4) == replace(recipe, batch_size=1024, accumulate=4)


def test_adamw_moves_by_square_roots_and_steps_by_the_ratio(digits):
    recipe = RECIPES["digits_demo"]()
    moved = recipe.at_batch(32)
    ratio = 32 / 128
    # Malladi et al. 2022; the decay so that its share of a weight in an epoch stays.
    assert moved.base_lr * 32 / 256 == pytest.approx(recipe.base_lr * 128 / 256 * ratio**0.5, rel=1e-3)
    assert moved.weight_decay == pytest.approx(recipe.weight_decay * ratio**0.5, rel=1e-3)
    assert (moved.steps, moved.warmup_steps) == (4400, 800)
    assert moved.method_args["tau"] == pytest.approx(0.9**ratio, abs=1e-6)
    run = plan(replace(moved, device="cpu"), *digits)
    assert run.facts["moved"] == moved.moved()
    assert run.facts["moved"][0] == "batch 128 -> 32"
    assert run.facts["moved"][-2:] == ["1,100 -> 4,400 steps", "warm-up 200 -> 800 steps"]


def test_a_batch_set_any_way_moves_a_recipe():
    recipe = RECIPES["digits_demo"]()
    assert recipe.with_settings(["batch_size=64"]) == recipe.at_batch(64)
    assert recipe.with_settings(["accumulate=2"]) == recipe.at_batch(128, 2)
    assert Options().with_settings(["batch_size=64"]) == Options(batch_size=64)


def test_batches_set_one_after_the_other_are_said_as_one():
    recipe = RECIPES["digits_demo"]()
    assert recipe.with_settings(["batch_size=64", "accumulate=4"]).moved() == recipe.at_batch(64, 4).moved()
    assert recipe.with_settings(["batch_size=64", "accumulate=2"]).moved() == []


def test_a_move_is_said_however_small_it_looks():
    assert "tau 0.999 -> 0.9995" in RECIPES["moco_v2_imagenet_200"]().at_batch(128).moved()


def test_what_was_set_over_another_batch_is_not_said_to_be_moved():
    moved = RECIPES["digits_demo"]().at_batch(64)
    names = ["batch", "learning", "weight", "tau", "1,100", "warm-up"]
    assert [said.partition(" ")[0] for said in moved.moved()] == names
    settings = ["base_lr=0.1", "weight_decay=0.2", "tau=0.7", "steps=5", "warmup_steps=1"]
    for i in range(len(settings) + 1):
        found = moved.with_settings(settings[:i]).moved()
        assert [said.partition(" ")[0] for said in found] == ["batch", *names[i + 1 :]]
    # Another method brings its own optimizer and arguments; data and length stay.
    assert [said.partition(" ")[0] for said in moved.for_method("vicreg").moved()] == ["batch", "1,100"]


def test_a_batch_of_nothing_is_refused_in_words():
    with pytest.raises(ValueError, match="batch_size=0 must be greater than 0"):
        RECIPES["digits_demo"]().with_settings(["batch_size=0"]).checked()


def test_the_defaults_follow_the_batch_by_the_same_rules():
    small, large = (BYOL.defaults(Situation(10_000, 32, 3, images, 640_000 // images)) for images in (64, 256))
    assert large.base_lr * 256 == pytest.approx(2 * small.base_lr * 64)
    assert large.weight_decay == pytest.approx(2 * small.weight_decay)
    # To first order the power rule: 1 - tau grows with the batch.
    assert 1 - large.method_args["tau"] == pytest.approx(375 / 2_500, abs=1e-4)
    assert 1 - small.method_args["tau"] == pytest.approx(375 / 10_000, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("num", "size", "images"),
    [(6, 12, 2), (20, 12, 3), (30, 12, 4), (60, 12, 8), (60, 12, 16), (4_000, 28, 128), (1_281_167, 224, 256)],
)
def test_defaults_suit_every_situation(method, num, size, images):
    kind = get(method)
    situation = Situation(num, size, 3, images, 1000)
    defaults = kind.defaults(situation)
    assert set(defaults.method_args) <= set(method_arguments(method))
    kind.check(situation, **defaults.method_args)


def test_a_queue_holds_an_eighth_of_the_images_at_most():
    def queue(num, images):
        return get("moco").defaults(Situation(num, 32, 3, images, 1000)).method_args["queue"]

    assert queue(1_281_167, 256) == 65536
    assert queue(50_000, 128) == 6144
    assert queue(4_000, 128) == 384
    assert queue(200, 128) == 128


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete_and_sound(name):
    options = RECIPES[name]().checked()
    method = get(options.method)
    assert options.views is None or len(options.views) == len(method.views)
    assert RECIPES[name].__doc__
    if options.batch_size is not None:
        situation = Situation(50_000, options.image_size, 3, options.images_per_step, 1000)
        defaults = method.defaults(situation)
        method.check(situation, **{**defaults.method_args, **options.method_args})


@pytest.mark.parametrize(
    ("name", "peak_lr", "rules"),
    [  # the peak learning rate of the paper's batch, and what sets the recipe apart; fidelity of the published code
        ("simsiam_imagenet_100", 0.1, {"decay_all": True, "constant_lr": ("predictor",), "weight_decay": 1e-4}),
        ("barlow_twins_imagenet_1000", 1.6, {"weight_decay": 1e-6, "final_lr": 0.001}),
        ("vicreg_imagenet_100", 2.4, {"weight_decay": 1e-6, "final_lr": 0.001}),
        ("simclr_imagenet_1000", 4.8, {"lr_in_momentum": True, "normalize": False}),
        ("simclr_v2_imagenet_800", 6.4, {"weight_decay": 1e-4, "warmup_epochs": 40}),
        ("moco_v1_imagenet_200", 0.03, {"lr_drops": (0.6, 0.8), "decay_all": True}),
        ("moco_v2_imagenet_200", 0.03, {"lr_drops": None, "lr_by_epoch": True}),
        ("moco_v3_imagenet_100", 9.6, {"weight_decay": 1e-6}),
        ("moco_v3_imagenet_1000", 4.8, {"weight_decay": 1.5e-6}),
        ("byol_cifar10", 2.0, {"weight_decay": 1e-5, "bias_lr": 0.5}),
        ("simsiam_cifar100", 0.5, {"weight_decay": 1e-5, "lr_by_epoch": False, "warmup_epochs": 10}),
        ("moco_cifar100", 0.3, {"weight_decay": 1e-4, "lr_by_epoch": False, "warmup_epochs": 10}),
        ("moco_cifar10", 0.06, {"weight_decay": 5e-4}),
        ("instdisc_cifar10", 0.03, {"lr_drops": (0.6, 0.8)}),
        ("simsiam_cifar10", 0.06, {"weight_decay": 5e-4}),
    ],
)
def test_the_kin_s_recipes_are_their_papers(name, peak_lr, rules):
    options = RECIPES[name]()
    assert options.base_lr * options.images_per_step / 256 == pytest.approx(peak_lr)
    assert {rule: getattr(options, rule) for rule in rules} == rules


@pytest.mark.parametrize(
    ("name", "rate"),
    # Barlow's code; solo-learn's table, whose loss is a tenth.
    [("barlow_twins_imagenet_1000", 0.0048), ("barlow_twins_cifar100", 0.03), ("vicreg_cifar10", 0.3)],
)
def test_biases_have_a_rate_of_their_own(name, rate):
    options = RECIPES[name]()
    assert options.base_lr * options.bias_lr == pytest.approx(rate)


def test_moco_v3_s_momentum_is_the_reference_commands():
    taus = [RECIPES[f"moco_v3_imagenet_{epochs}"]().method_args["tau"] for epochs in (100, 300, 1000)]
    assert taus == [0.99, 0.99, 0.996]


@pytest.mark.parametrize(
    ("name", "scale"), [("moco_v2_imagenet_200", 1), ("instdisc_cifar10", 1), ("simsiam_cifar10", 0)]
)
def test_the_last_norm_of_a_block_starts_as_in_the_authors_code(name, scale):
    options = RECIPES[name]()
    encoder = Encoder(EncoderSpec(options.backbone, 32, 3, "3x3", options.backbone_args or {}))
    block = encoder.model.layer1[0]
    last = block.bn2 if options.backbone == "resnet18" else block.bn3
    assert set(last.weight.tolist()) == {scale}


@pytest.mark.parametrize("method", ["barlow_twins", "vicreg", "moco_v3", "moco", "simsiam", "instdisc"])
def test_methods_written_in_torch_see_what_torchvision_makes(method):
    assert {view.style for view in get(method).views} == {"torchvision"}


def test_a_method_that_needs_labels_is_refused_without(digits):
    source, pixels = digits
    with pytest.raises(ValueError, match="supervised learns from labels"):
        plan(Options(method="supervised", device="cpu", steps=3), replace(source, labels=None), pixels)
    one = replace(source, labels=np.full(len(source), 3), classes=None)
    with pytest.raises(ValueError, match="not two classes"):
        plan(Options(method="supervised", device="cpu", steps=3), one, pixels)
