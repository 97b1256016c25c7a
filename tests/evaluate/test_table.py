"""The table: a backbone beside raw pixels and itself untrained, with nothing chosen on test images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.data.source import DataError
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate.table import Labelled, evaluate, load_labelled, split_labelled, untrained, with_classes_of
from byol.options import Options
from byol.plan import plan
from byol.train import build

SPEC = EncoderSpec("resnet18", 12, 1, "3x3", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]})


def part(num, seed):
    """Images of three classes that differ in brightness, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    images = torch.randint(0, 120, (num, 1, 12, 12), generator=generator) + labels[:, None, None, None] * 30
    return Labelled(images.to(torch.uint8), labels, ("a", "b", "c"))


@pytest.fixture(scope="module")
def found():
    return evaluate(untrained(SPEC, 3, last_scale=1), part(90, 0), part(30, 1), mean=(0.4,), std=(0.2,))


def test_the_untrained_network_is_the_run_s_own_before_its_first_step():
    source, pixels, _ = load_pixels(open_source("digits"))
    options = Options(backbone="resnet18", backbone_args=SPEC.args, image_size=12, steps=10, seed=5)
    run = plan(options, source, pixels)
    own = build(run, num_classes=10).method.encoder
    again = untrained(own.spec, 5, last_scale=1)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), again.parameters(), strict=True))
    other = untrained(own.spec, 6, last_scale=1)
    assert not all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


def test_the_other_untrained_network_differs_in_the_last_scale_of_its_blocks_alone():
    one, zero = (dict(untrained(SPEC, 0, last_scale=s).named_parameters()) for s in (1, 0))
    different = {name for name in one if not torch.equal(one[name], zero[name])}
    assert different == {f"model.layer{i}.0.bn2.weight" for i in (1, 2, 3, 4)}
    assert all(zero[name].abs().max() == 0 for name in different)


def test_every_protocol_measures_the_backbone_and_both_baselines(found):
    assert set(found["results"]) == {"knn", "linear", "fewshot"}
    for columns in found["results"].values():
        assert set(columns) == {"backbone", "raw pixels", "untrained"}
    # The backbone here is untrained too, of another seed: alike, and far from chance, as brightness tells the classes.
    assert found["results"]["linear"]["backbone"]["accuracy"] > 0.6


def test_test_images_choose_nothing(found):
    test = part(30, 1)
    wrong = replace(test, labels=(test.labels + 1) % 3)
    again = evaluate(untrained(SPEC, 3, last_scale=1), part(90, 0), wrong, mean=(0.4,), std=(0.2,))
    assert again["untrained_last_bn_scale"] == found["untrained_last_bn_scale"]
    for name, result in again["results"]["linear"].items():
        before = found["results"]["linear"][name]
        assert result["accuracy"] != before["accuracy"]
        assert {k: v for k, v in result.items() if k != "accuracy"} == {
            k: v for k, v in before.items() if k != "accuracy"
        }


def test_the_same_evaluation_twice_gives_the_same_numbers(found):
    assert evaluate(untrained(SPEC, 3, last_scale=1), part(90, 0), part(30, 1), mean=(0.4,), std=(0.2,)) == found


def test_a_split_for_data_without_a_test_part_holds_a_fifth_of_each_class():
    train, test = split_labelled(part(90, 0))
    assert test.labels.bincount().tolist() == [6, 6, 6]
    assert train.labels.bincount().tolist() == [24, 24, 24]


def test_data_without_labels_cannot_be_evaluated(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((4, 12, 12, 3), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        load_labelled(open_source(tmp_path / "images.npy"), 12)


def test_test_labels_are_matched_by_their_classes_names():
    train = part(90, 0)
    other = Labelled(train.images[:3], torch.tensor([0, 1, 0]), ("c", "a"))
    assert with_classes_of(train, other, "other").labels.tolist() == [2, 0, 2]
    with pytest.raises(DataError, match="'d'"):
        with_classes_of(train, replace(other, classes=("a", "d")), "other")


def test_few_shot_is_left_out_where_a_class_is_too_small():
    train, said = part(90, 0), []
    few = Labelled(train.images[:11], train.labels[:11], train.classes)
    found = evaluate(
        Encoder(SPEC).eval(), few, part(30, 1), mean=(0.4,), std=(0.2,), protocols=("knn", "fewshot"), say=said.append
    )
    assert set(found["results"]) == {"knn"}
    assert "left out" in said[0]
    with pytest.raises(DataError, match="few-shot needs 5"):
        evaluate(Encoder(SPEC).eval(), few, part(30, 1), mean=(0.4,), std=(0.2,), protocols=("fewshot",))


def test_the_encoder_under_evaluation_is_left_as_it_was():
    encoder = Encoder(SPEC).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    evaluate(encoder, part(90, 0), part(30, 1), mean=(0.4,), std=(0.2,), protocols=("knn",))
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
