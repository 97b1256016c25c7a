"""The table: a backbone beside what it must beat, with nothing chosen on test images, and what numbers come with."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from byol.data.arrays import from_arrays
from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.data.source import DataError
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate import protocols, table
from byol.evaluate.cache import FeatureCache
from byol.evaluate.columns import BACKBONE, RAW_PIXELS, SUPERVISED, UNTRAINED, backbone, raw_pixels, untrained
from byol.evaluate.fewshot import mean_interval
from byol.evaluate.labelled import Labelled, Parts, apart, labelled_of, load, with_classes_of
from byol.evaluate.protocols import Settings, score_of
from byol.evaluate.table import all_features, evaluate, stronger_untrained
from byol.networks import build
from byol.options import Options
from byol.plan import plan

SPEC = EncoderSpec("resnet18", 12, 1, "3x3", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]})
QUICK = Settings(protocols=("knn", "linear", "fewshot"), draws=4)


def part(num, seed, *, groups=None, targets=None):
    """Images of three classes that differ in brightness, with noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    pixels = generator.integers(0, 120, (num, 12, 12, 1)) + labels[:, None, None, None] * 30
    source = from_arrays("test", pixels.astype(np.uint8), labels.astype(np.int64), None, has_test_part=False)
    source = replace(source, classes=("a", "b", "c"), groups=groups)
    if targets is not None:
        source = replace(source, labels=None, targets=targets)
    return load(source)


def columns(seed=3):
    own = backbone(untrained(SPEC, seed, last_scale=1), (0.4,), (0.2,))
    return [own, raw_pixels(12, 1), replace(own, name=UNTRAINED, network=untrained(SPEC, 0, last_scale=1))]


def measured(train=None, test=None, settings=QUICK, **more):
    train, test = train or part(90, 0), test or part(30, 1)
    return evaluate(columns(), Parts(train, lambda: test, "test"), settings, **more)


@pytest.fixture(scope="module")
def evaluated():
    return measured()


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


def test_the_stronger_untrained_network_is_chosen_on_training_images(monkeypatch):
    own = columns()[0]
    scores = {0: 0.9, 1: 0.4}
    order = iter((0, 1))
    monkeypatch.setattr(table, "_validation_knn", lambda *_: scores[next(order)])
    found = stronger_untrained(SPEC, 0, own, part(90, 0), QUICK, None)
    assert dict(found.network.named_parameters())["model.layer1.0.bn2.weight"].abs().max() == 0


def test_every_protocol_measures_every_column(evaluated):
    rows = evaluated.found["rows"]
    assert [row["protocol"] for row in rows] == ["knn", "knn", "linear", "fewshot"]
    for row in rows:
        assert set(row["columns"]) == {BACKBONE, RAW_PIXELS, UNTRAINED}
        assert set(row["differences"]) == {RAW_PIXELS, UNTRAINED}
        for name, difference in row["differences"].items():
            gain = row["columns"][BACKBONE]["score"] - row["columns"][name]["score"]
            assert difference["difference"] == pytest.approx(gain)
            assert difference["interval_95"][0] <= gain <= difference["interval_95"][1]
    # The backbone here is untrained too, of another seed: alike, and far from chance, as brightness tells the classes.
    assert score_of(evaluated.found, "linear", BACKBONE) > 0.6


def test_each_number_comes_with_what_it_takes_to_trust_it(evaluated):
    found = evaluated.found
    for row in found["rows"]:
        assert row["about"] and row["labels"] > 0
        for numbers in row["columns"].values():
            low, high = numbers["interval_95"]
            assert low <= numbers["score"] <= high
            assert numbers["n"] == 30
    few = next(row for row in found["rows"] if row["protocol"] == "fewshot")["columns"][BACKBONE]
    assert few["over"] == "4 fits"
    assert few["interval_95"] == pytest.approx(mean_interval(few["values"]))
    contents = found["hashes"]["columns"]
    assert len(set(contents.values())) == 3 and all(len(digest) == 64 for digest in contents.values())
    assert found["hashes"]["train"] != found["hashes"]["test"]
    other = replace(columns()[0], network=untrained(SPEC, 4, last_scale=1))
    assert other.content() != contents[BACKBONE] == columns()[0].content()


def test_scores_are_the_predictions_own(evaluated):
    y = evaluated.test.labels
    for (row, name), said in evaluated.predictions.items():
        numbers = next(r for r in evaluated.found["rows"] if r["name"] == row)["columns"][name]
        assert numbers["score"] == pytest.approx((said == y).mean())


class Guarded:
    """Images that raise when they are read before `open`."""

    def __init__(self, listing):
        self.listing, self.open = listing, False

    def read(self, position, channels, reduce=1):
        assert self.open, "a test image was read too early"
        return self.listing.read(position, channels, reduce)

    def header(self, position):
        return self.listing.header(position)

    def name(self, position):
        return self.listing.name(position)


def test_test_images_are_read_after_the_last_choice(monkeypatch):
    whole = part(30, 1)
    guard = Guarded(whole.source.listing)
    test = replace(whole, pixels=None, source=replace(whole.source, listing=guard))
    everything = replace(
        QUICK, protocols=("knn", "linear", "fewshot", "linear-sgd", "semi", "finetune"), epochs=1, amounts=(4,)
    )
    for grid in ("SEMI_SMALL", "TRANSFER_SMALL"):
        short = getattr(protocols, grid)
        short = replace(short, base_lrs=short.base_lrs[:2], weight_decays=(0.0,), lengths=(1,), unit="epochs")
        monkeypatch.setattr(protocols, grid, short)
    fits = protocols.fit_rows

    def then_open(training):
        found = fits(training)
        guard.open = True
        return found

    scratch = replace(columns()[2], name=SUPERVISED)
    with pytest.raises(AssertionError, match="read too early"):  # the guard guards
        evaluate(columns(), Parts(part(90, 0), lambda: test, "test"), QUICK)
    monkeypatch.setattr(table, "fit_rows", then_open)
    parts = Parts(part(90, 0), lambda: test, "test")
    found = evaluate(columns(), parts, everything, scratch=scratch, supervised=True).found
    assert {row["protocol"] for row in found["rows"]} == set(everything.protocols)
    by = {row["protocol"]: set(row["columns"]) for row in found["rows"]}
    assert by["linear-sgd"] == by["linear"] == {BACKBONE, RAW_PIXELS, UNTRAINED, SUPERVISED}
    assert by["semi"] == by["finetune"] == {BACKBONE, SUPERVISED}


def test_wrong_test_labels_change_no_choice(evaluated):
    wrong = part(30, 1)
    wrong = replace(wrong, source=replace(wrong.source, labels=(wrong.labels + 1) % 3))
    again = measured(test=wrong)
    for of in ("columns", "train", "test"):
        assert again.found["hashes"][of] == evaluated.found["hashes"][of]
    assert again.found["hashes"]["labels"][0] == evaluated.found["hashes"]["labels"][0]
    assert again.found["hashes"]["labels"][1] != evaluated.found["hashes"]["labels"][1]
    for before, after in zip(evaluated.found["rows"], again.found["rows"], strict=True):
        for name in before["columns"]:
            for fact in ("penalty", "validation", "converged"):
                assert before["columns"][name].get(fact) == after["columns"][name].get(fact)
    assert score_of(again.found, "linear", BACKBONE) != score_of(evaluated.found, "linear", BACKBONE)


def test_the_same_evaluation_twice_gives_the_same_bits_with_a_cache_and_without(evaluated, tmp_path):
    assert measured().found == evaluated.found
    first = measured(cache=FeatureCache(tmp_path)).found
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 6  # three columns, two parts
    assert first == measured(cache=FeatureCache(tmp_path)).found == evaluated.found
    assert sorted(tmp_path.iterdir()) == kept


def test_features_that_are_not_finite_are_no_unusable_images():
    class Overflows(torch.nn.Module):
        def forward(self, x):
            features = x.flatten(1).clone()
            features[3] = torch.inf
            return features

    column = replace(columns()[0], network=Overflows(), name="broken")
    with pytest.raises(DataError, match=r"broken: the network's features are not finite"):
        all_features([column], part(12, 0), QUICK)


def test_unusable_images_count_for_nobody(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(12):
            pixels = generator.integers(0, 120, (160, 160, 3)) + (120 if label == "b" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / label / f"{i:02}.jpg")
    source = labelled_of(open_source(str(tmp_path)))
    fit, held = apart(source, 0.25, seed=0)
    spec = replace(SPEC, channels=3, image_size=32)
    own = backbone(untrained(spec, 0, last_scale=1), (0.4,) * 3, (0.2,) * 3)
    both = [own, raw_pixels(32, 3)]
    # Read when they are asked for, as images of a large folder are.
    train = Labelled(source.subset(fit), None, source.classes)
    whole, clean = all_features(both, train, QUICK)
    broken = train.source.name_of(int(train.source.ids[4]))
    bytes_ = (tmp_path / broken).read_bytes()
    (tmp_path / broken).write_bytes(bytes_[: len(bytes_) // 2])  # its header is whole
    left, features = all_features(both, train, QUICK)
    rows = np.delete(np.arange(len(whole)), 4)
    assert left.source.ids.tolist() == whole.source.ids[rows].tolist()
    for name, x in features.items():
        assert x.dtype == clean[name].dtype
        assert np.array_equal(x, clean[name][rows])
    parts = Parts(train, lambda: Labelled(source.subset(held), None, source.classes), "test")
    found = evaluate(both, parts, replace(QUICK, protocols=("knn",))).found
    assert found["train_images"] + found["test_images"] == 23


def test_several_labels_an_image_are_scored_by_mean_average_precision():
    def targets(num):
        labels = np.arange(num) % 3
        return np.stack([labels == 0, labels == 1, labels >= 1], axis=1).astype(np.int8)

    train, test = part(90, 0, targets=targets(90)), part(30, 1, targets=targets(30))
    found = measured(train, test).found
    assert found["metric"] == "map"
    assert [row["protocol"] for row in found["rows"]] == ["linear"]
    assert score_of(found, "linear", RAW_PIXELS) > 0.6
    with pytest.raises(DataError, match="several labels"):
        measured(train, test, replace(QUICK, protocols=("knn",)))
    rare = targets(90)
    rare[:, 1] = 0
    with pytest.raises(DataError, match="class 'b' is in no training image"):
        measured(part(90, 0, targets=rare), test)


def test_groups_are_never_cut_and_widen_the_intervals(evaluated):
    groups = np.arange(30) // 6
    grouped = part(30, 1)
    grouped = replace(grouped, source=replace(grouped.source, groups=groups))
    fit, held = apart(grouped.source, 0.4, seed=0)
    assert not set(groups[fit]) & set(groups[held]) and len(fit) + len(held) == 30
    found = measured(test=grouped).found
    assert found["groups"] == 5
    assert found["rows"][0]["columns"][BACKBONE]["over"] == "groups"
    assert (
        found["rows"][0]["columns"][BACKBONE]["interval_95"]
        != (evaluated.found["rows"][0]["columns"][BACKBONE]["interval_95"])
    )


def test_test_images_that_are_training_images_are_counted():
    train = part(90, 0)
    both = train.subset(np.arange(30))
    found = measured(train, both).found
    assert found["warnings"][0].startswith("30 of 30 test images are training images")
    assert "nearly training images" in found["warnings"][1]
    assert measured().found["warnings"] == []


def test_images_are_compared_at_one_size_whatever_their_parts():
    train, test = part(90, 0), part(30, 0)
    # The same images, of a part whose median side is said to be another.
    larger = replace(train, source=replace(train.source, height=40, width=40))
    assert measured(larger, test).found["warnings"][0].startswith("30 of 30 test images")


def test_groups_with_images_on_both_sides_are_counted():
    def grouped(whole, groups):
        return replace(whole, source=replace(whole.source, groups=groups))

    train, test = grouped(part(90, 0), np.arange(90) // 6), grouped(part(30, 1), 13 + np.arange(30) // 6)
    assert measured(train, test).found["warnings"][0].startswith("2 groups have training images and test images")


def test_training_from_scratch_stands_once_beside_linear_whatever_the_seeds(monkeypatch):
    short = replace(protocols.TRANSFER_SMALL, base_lrs=(0.1,), weight_decays=(0.0,), lengths=(1,))
    monkeypatch.setattr(protocols, "TRANSFER_SMALL", short)
    settings = replace(QUICK, protocols=("linear",), seeds=2)
    found = measured(settings=settings, scratch=replace(columns()[2], name=SUPERVISED), supervised=True).found
    assert set(found["rows"][0]["differences"]) == {RAW_PIXELS, UNTRAINED, SUPERVISED}


def test_semi_supervision_on_one_group_a_class_chooses_nothing(monkeypatch):
    short = replace(protocols.SEMI_SMALL, lengths=(1,))
    monkeypatch.setattr(protocols, "SEMI_SMALL", short)
    train = part(90, 0)
    train = replace(train, source=replace(train.source, groups=train.labels * 2 + (np.arange(90) >= 45)))
    found = measured(train, settings=replace(QUICK, protocols=("semi",), amounts=(5,))).found
    numbers = found["rows"][0]["columns"][BACKBONE]
    assert numbers["chosen_on_validation"] == [False]
    assert numbers["point"][0]["base_lr"] == sorted(short.base_lrs)[1]


def test_the_penalty_of_few_shots_is_chosen_without_cutting_a_group(monkeypatch):
    train = part(90, 0)
    train = replace(train, source=replace(train.source, groups=np.arange(90) // 9))
    seen = []
    original = protocols.fit_fewshot
    monkeypatch.setattr(protocols, "fit_fewshot", lambda *a, **k: seen.append(k["split"]) or original(*a, **k))
    measured(train, settings=replace(QUICK, protocols=("fewshot",)))
    for fit, held in seen:
        assert not set(train.source.groups[fit]) & set(train.source.groups[held])


def test_few_shots_need_an_image_to_choose_on():
    train = part(90, 0).subset(np.arange(15))
    with pytest.raises(DataError, match=r"few-shot needs 5, and one more of some class to choose on: use --shots 4"):
        measured(train, settings=replace(QUICK, protocols=("fewshot",)))
    assert measured(train, settings=replace(QUICK, protocols=("fewshot",), shots=4)).found["rows"]


def test_average_precision_of_one_label_an_image_is_refused_before_anything_is_fitted():
    with pytest.raises(DataError, match="use top1"):
        measured(settings=replace(QUICK, metric="map"))


def test_features_that_no_protocol_reads_are_not_made(tmp_path):
    cache = FeatureCache(tmp_path)
    found = measured(settings=replace(QUICK, protocols=("linear-sgd",), epochs=1), cache=cache).found
    assert set(found["rows"][0]["columns"]) == {BACKBONE, RAW_PIXELS, UNTRAINED}
    assert len(list(tmp_path.iterdir())) == 2  # the backbone's, of training and test images


def test_a_part_is_known_by_its_bytes(tmp_path):
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.new("L", (12, 12), 40 * i).save(tmp_path / label / f"{i}.bmp")

    def content():
        return load(labelled_of(open_source(str(tmp_path)))).content

    before = content()
    assert content() == before
    Image.new("L", (12, 12), 200).save(tmp_path / "b" / "2.bmp")  # as large as it was
    assert content() != before


def test_skewed_classes_are_noticed():
    train = part(90, 0)
    few = train.subset(np.concatenate([np.flatnonzero(train.labels != 2), np.flatnonzero(train.labels == 2)[:8]]))
    found = measured(few).found
    assert found["skewed"] and not measured().found["skewed"]
    numbers = found["rows"][0]["columns"][BACKBONE]
    assert {"accuracy", "balanced_accuracy", "macro_f1"} <= set(numbers)


def test_labels_that_cannot_feed_a_protocol_are_one_clear_line():
    train, said = part(90, 0), []
    few = train.subset(np.arange(11))
    settings = replace(QUICK, protocols=("knn", "fewshot"))
    found = measured(few, settings=settings, say=said.append).found
    assert {row["protocol"] for row in found["rows"]} == {"knn"}
    assert "few-shot is left out: class 'c' has 3 training images" in said[0]
    with pytest.raises(DataError, match="use --shots 3"):
        measured(few, settings=replace(QUICK, protocols=("fewshot",)))
    with pytest.raises(DataError, match="one class"):
        measured(train.subset(np.flatnonzero(train.labels == 1)))


def test_data_without_labels_cannot_be_evaluated(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((4, 12, 12, 3), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        labelled_of(open_source(tmp_path / "images.npy"))


def test_test_labels_are_matched_by_their_classes_names():
    train = part(90, 0).source
    other = replace(train.subset(np.arange(3)), labels=np.array([0, 1, 0]), classes=("c", "a"))
    assert with_classes_of(train, other, "other").labels.tolist() == [2, 0, 2]
    with pytest.raises(DataError, match="'d'"):
        with_classes_of(train, replace(other, classes=("a", "d")), "other")


def test_the_networks_under_evaluation_are_left_as_they_were():
    own = backbone(Encoder(SPEC).eval(), (0.4,), (0.2,))
    before = {name: value.clone() for name, value in own.network.state_dict().items()}
    test = cache(lambda: part(30, 1))
    evaluate([own], Parts(part(90, 0), test, "test"), replace(QUICK, protocols=("knn", "linear-sgd"), epochs=1))
    assert all(torch.equal(before[name], value) for name, value in own.network.state_dict().items())


def test_a_part_keeps_rows_and_pixels_together():
    whole = part(9, 0)
    some = whole.subset(np.array([7, 2, 4]))
    assert isinstance(some, Labelled) and len(some) == 3
    assert torch.equal(some.pixels, whole.pixels[[2, 4, 7]])
    assert some.labels.tolist() == [2, 1, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_measures_what_a_cpu_does(evaluated):
    found = measured(settings=replace(QUICK, device="cuda")).found
    for ours, theirs in zip(found["rows"], evaluated.found["rows"], strict=True):
        for name, numbers in ours["columns"].items():
            assert numbers["score"] == pytest.approx(theirs["columns"][name]["score"], abs=0.04)


def test_an_amount_that_cannot_be_drawn_is_refused_before_anything_trains(monkeypatch):
    monkeypatch.setattr(protocols, "finetune", lambda *_, **__: pytest.fail("trained"))
    settings = replace(QUICK, protocols=("semi",), amounts=(4, 500))
    with pytest.raises(DataError, match="500 of each class"):
        measured(settings=settings, scratch=replace(columns()[2], name=SUPERVISED))
