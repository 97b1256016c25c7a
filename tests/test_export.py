"""Weights from elsewhere: what --init takes."""

import json

import pytest
import torch

from byol.checkpoint import write_tensors
from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.encoder import Encoder, EncoderSpec
from byol.export import start_from
from byol.options import Options
from byol.plan import plan


@pytest.fixture(scope="module")
def digits():
    source, pixels, _ = load_pixels(open_source("digits"))
    return source, pixels


@pytest.mark.parametrize("init", ["timm:a1_in1k", "timm:resnet18.a1_in1k"])
def test_a_pretrained_tag_gives_all_weights_but_the_classifier(published, init):
    encoder = start_from(Encoder(EncoderSpec("resnet18", 96)), init)
    own = encoder.model.state_dict()
    assert set(own) == {name for name in published if not name.startswith("fc.")}
    assert all(torch.equal(value, published[name]) for name, value in own.items())


def test_with_a_small_stem_a_pretrained_tag_gives_all_but_the_first_layer(published):
    own = start_from(Encoder(EncoderSpec("resnet18", 32, stem="3x3")), "timm:a1_in1k").model.state_dict()
    assert own["conv1.weight"].shape == (64, 3, 3, 3)
    sigma = 0.8796 / 27**0.5  # drawn as the authors draw: 1,728 values, so within 4 standard errors
    assert float(own["conv1.weight"].std()) == pytest.approx(sigma, rel=4 / (2 * 1728) ** 0.5)
    assert all(torch.equal(value, published[name]) for name, value in own.items() if name != "conv1.weight")


def test_gray_images_take_the_sum_of_a_pretrained_first_layer_over_its_colours(published):
    own = start_from(Encoder(EncoderSpec("resnet18", 96, channels=1)), "timm:a1_in1k").model.state_dict()
    torch.testing.assert_close(own["conv1.weight"], published["conv1.weight"].sum(1, keepdim=True))


def test_a_tag_that_timm_does_not_have_is_one_line(published):
    with pytest.raises(ValueError, match="timm cannot load resnet18 with it") as error:
        start_from(Encoder(EncoderSpec("resnet18", 96)), "timm:no_such_tag")
    assert "\n" not in str(error.value)


def test_the_structure_follows_from_the_weights_unless_it_is_named(digits, tmp_path):
    assert plan(Options(device="cpu", steps=3, init="timm:resnet34.a1_in1k"), *digits).backbone == "resnet34"
    run = plan(Options(device="cpu", steps=3, init="timm:a1_in1k"), *digits)
    assert (run.backbone, run.backbone_args) == ("resnet18", {})
    description = EncoderSpec("resnet26", 64, 1, "original", {"layers": [1, 1, 1, 1], "img_size": 64}).to_dict()
    (tmp_path / "backbone.json").write_text(json.dumps(description))
    run = plan(Options(device="cpu", steps=3, init=str(tmp_path)), *digits)
    assert (run.backbone, run.backbone_args, run.stem) == ("resnet26", {"layers": [1, 1, 1, 1]}, "original")
    run = plan(Options(device="cpu", steps=3, init=str(tmp_path), backbone="resnet18", stem="3x3"), *digits)
    assert (run.backbone, run.backbone_args, run.stem) == ("resnet18", {}, "3x3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "timm:resnet81.a1_in1k"}, "did you mean resnet18"),
        ({"init": "timm:resnet18.a1_in1k", "backbone": "resnet50"}, "not for backbone=resnet50"),
        ({"init": "no/such/run"}, "does not exist"),
    ],
)
def test_bad_weights_are_told_before_anything_is_loaded(options, words):
    with pytest.raises(ValueError, match=words):
        Options(**options).checked()


def test_others_may_read_the_weights_as_they_may_read_other_files(tmp_path):
    (tmp_path / "other").write_text("")
    write_tensors(tmp_path / "weights.safetensors", {"a": torch.ones(2)})
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
