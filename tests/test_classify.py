"""From few labels to predictions: calibration, folds, the threshold's promise, and the whole command."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from byol import classify, cli
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate import calibrated, selective
from byol.evaluate.calibrated import FOLDS, cross_validated, fit_calibrated
from byol.evaluate.calibration import (
    HOTTEST,
    brier_score,
    expected_calibration_error,
    log_loss,
    probabilities,
    temperature,
)
from byol.evaluate.features import extract
from byol.evaluate.linear import mean_penalty
from byol.evaluate.selective import boundary, fewest, promised_threshold, risk_coverage
from byol.evaluate.splits import folds
from byol.export import save_backbone

FEW = (0.1, 1.0, 10.0)


def clouds(count, classes=3, spread=1.5, dim=6, seed=0):
    generator = np.random.default_rng(seed)
    y = np.arange(count) % classes
    return (np.eye(classes, dim)[y] * 3 + generator.normal(0, spread, (count, dim))).astype(np.float32), y


# Calibration


@pytest.mark.parametrize("count", [7, 300])
def test_a_temperature_is_the_likeliest_with_one_image_more_of_all_classes(count):
    generator = np.random.default_rng(0)
    logits, y = generator.normal(0, 4, (count, 5)), generator.integers(0, 5, count)
    logits[np.arange(count), y] += 3

    def loss(log_heat, prior):
        p = torch.log_softmax(torch.from_numpy(logits / np.exp(log_heat)), dim=1).numpy()
        own = p[np.arange(count), y]
        return -(own.sum() + prior * p.mean()) / (count + prior)

    found = temperature(logits, y)
    best = minimize_scalar(loss, bounds=(-3, 5), method="bounded", args=(1,), options={"xatol": 1e-10})
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)
    papers = minimize_scalar(loss, bounds=(-3, 5), method="bounded", args=(0,), options={"xatol": 1e-10})
    assert papers.fun <= loss(np.log(found), 0) <= papers.fun + 5 / count**2
    # Neither a shift of an image's logits nor a scale of all changes what is said.
    assert temperature(logits + generator.normal(size=(count, 1)), y) == pytest.approx(found, rel=1e-9)
    assert temperature(2 * logits, y) == pytest.approx(2 * found, rel=1e-9)


def test_a_temperature_by_hand():
    # Nine images of margin 2, seven right: (7 + 1/2) / (9 + 1) = 3/4 = 1 / (1 + exp(-2 / T)), T = 2 / ln 3.
    y = np.array([0] * 7 + [1] * 2)
    assert temperature(np.tile([2.0, 0.0], (9, 1)), y) == pytest.approx(2 / np.log(3), rel=1e-9)
    # All right: 1 - 1/20, and not 1.
    assert probabilities(np.array([[2.0, 0.0]]), temperature(np.tile([2.0, 0.0], (9, 1)), np.zeros(9, int)))[
        0, 0
    ] == pytest.approx(0.95)


def test_logits_that_know_nothing_are_as_hot_as_can_be():
    y = np.arange(6) % 2
    assert temperature(np.zeros((6, 2)), y) == HOTTEST
    assert temperature(np.eye(2)[1 - y], y) == HOTTEST


def test_calibration_scores_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.75, 0.25], [0.3, 0.7]])
    y = np.array([0, 1, 0, 1])
    # Two bins (0, 0.5] and (0.5, 1]: one holds all, of mean 0.7875, of which 3/4 are right.
    assert expected_calibration_error(p, y, bins=2) == pytest.approx(0.0375)
    # Ten: (0.8, 0.9], (0.7, 0.8], (0.7, 0.8], (0.6, 0.7].
    assert expected_calibration_error(p, y, bins=10) == pytest.approx((0.1 + 2 * abs(0.775 - 0.5) + 0.3) / 4)
    assert brier_score(p, y) == pytest.approx((2 * 0.1**2 + 2 * 0.8**2 + 2 * 0.25**2 + 2 * 0.3**2) / 4)
    assert log_loss(p, y) == pytest.approx(-np.log([0.9, 0.2, 0.75, 0.7]).mean())
    assert log_loss(np.array([[1.0, 0.0]]), np.array([1])) == np.inf


# Folds


def test_folds_deal_each_class_evenly_and_leave_out_what_no_fold_may_hold():
    y = np.repeat([0, 1, 2, 3], [23, 10, 2, 1])
    found = folds(y, 5, seed=0)
    for label, counts in ((0, (4, 5)), (1, (2, 2)), (2, (0, 1))):
        of_fold = np.bincount(found[y == label], minlength=5)
        assert (of_fold.min(), of_fold.max()) == counts
    assert found[y == 3].tolist() == [-1]
    assert np.bincount(found[:-1]).max() - np.bincount(found[:-1]).min() <= 2
    assert np.array_equal(folds(y, 5, seed=0), found)
    assert not np.array_equal(folds(y, 5, seed=1), found)


def test_no_fold_cuts_a_group_or_holds_a_whole_class():
    generator = np.random.default_rng(0)
    for seed in range(20):
        groups = generator.integers(0, 12, 60)
        y = (groups + generator.integers(0, 2, 60)) % 4
        found = folds(y, 5, seed=seed, groups=groups)
        assert all(len(np.unique(found[groups == group])) == 1 for group in np.unique(groups))
        for fold in range(5):
            assert set(y[found != fold]) == set(y)
    alone = folds(np.array([0, 0, 1, 1, 2, 2]), 5, seed=0, groups=np.array([0, 1, 2, 3, 4, 4]))
    assert alone[4:].tolist() == [-1, -1]
    assert (alone[:4] >= 0).all()


# The threshold


def test_a_boundary_is_crossed_as_rarely_as_is_promised_and_no_rarer_than_it_must():
    sizes = np.array([3, 10, 40, 41])
    most = boundary(sizes, 0.3, failure=0.1)
    wrong = np.random.default_rng(0).random((200_000, 41)) < 0.3
    crossed = (wrong.cumsum(axis=1)[:, sizes - 1] <= most).any(axis=1).mean()
    assert crossed == pytest.approx(selective._crossing(sizes, most, 0.3), abs=0.003)
    assert crossed < 0.103
    looser = np.array([selective._most(sizes, 0.3, level) for level in np.linspace(0.001, 0.1, 400)])
    kept = [tuple(each) for each in looser if selective._crossing(sizes, each, 0.3) <= 0.1]
    assert tuple(most) == max(kept)
    # At one size it is the binomial's.
    (one,) = boundary(np.array([100]), 0.05)
    assert binom.cdf(one, 100, 0.05) <= 0.05 < binom.cdf(one + 1, 100, 0.05)


def test_fewest_answers_that_promise():
    assert fewest(0.05) == 59  # 0.95^59 = 0.0485, 0.95^58 = 0.0510
    confidence, right = np.linspace(0.5, 1, 59), np.ones(59, bool)
    assert promised_threshold(confidence, right, 0.05) == 0
    assert promised_threshold(confidence[1:], right[1:], 0.05) is None


@pytest.mark.parametrize("kind", ["calibrated", "overconfident", "hardest"])
def test_a_promise_is_broken_as_rarely_as_it_says(kind, monkeypatch):
    """Images whose chance of a right answer is known, so that the true error beyond any threshold is."""
    generator = np.random.default_rng(0)
    rate, count, draws = 0.1, 150, 2000
    same = boundary(selective._sizes(count), rate)
    monkeypatch.setattr(selective, "boundary", lambda sizes, error_rate: same)  # it follows from these alone

    def chance(confidence):
        if (
            kind == "hardest"
        ):  # beyond a confidence of 0.4 answers are wrong at just the rate, below it a bit more often
            return np.where(confidence > 0.4, 1 - rate, 1 - rate - 0.01)
        return confidence if kind == "calibrated" else 0.6 * confidence + 0.35

    grid = np.sort(generator.beta(8, 1, 200_000) if kind != "hardest" else generator.random(200_000))
    error = ((1 - chance(grid))[::-1].cumsum() / np.arange(1, len(grid) + 1))[::-1]
    broken, given = 0, 0
    for _ in range(draws):
        confidence = generator.choice(grid, count)
        right = generator.random(count) < chance(confidence)
        value = promised_threshold(confidence, right, rate)
        if value is not None:
            given += 1
            broken += error[min(np.searchsorted(grid, value), len(grid) - 1)] > rate + 5e-4
    assert broken <= binom.ppf(0.999, draws, 0.05)
    if kind == "calibrated":
        assert given > draws / 2  # a rule that never answers would keep any promise


def test_equal_confidences_are_answered_together():
    confidence = np.repeat([0.9, 0.6, 0.3], [100, 100, 100])
    right = np.repeat([True, False], [200, 100])
    value = promised_threshold(confidence, right, 0.05)
    assert 0.3 < value <= 0.6
    coverage, error = risk_coverage(confidence, right)
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert error == pytest.approx([0, 0, 1 / 3])


# The classifier


def test_the_classifier_is_scikit_learn_s_at_the_penalty_chosen():
    x, y = clouds(90)
    fit = fit_calibrated(x, y, penalties=FEW)
    scaler = StandardScaler().fit(x.astype(np.float64))
    theirs = LogisticRegression(C=1 / fit.penalty, tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(x.astype(np.float64)), y)
    logits = theirs.decision_function(scaler.transform(x.astype(np.float64)))
    assert fit.probabilities(x) == pytest.approx(probabilities(logits, fit.temperature), abs=1e-5)
    assert fit.probabilities(x).sum(axis=1) == pytest.approx(1)


def test_penalty_and_temperature_are_those_of_logits_out_of_fold():
    x, y = clouds(60, spread=3)
    fit = fit_calibrated(x, y, seed=3, penalties=FEW)
    of_row = folds(y, FOLDS, seed=3)
    said = {penalty: np.zeros((60, 3)) for penalty in FEW}
    for fold in range(FOLDS):
        inside = of_row != fold
        scaler = StandardScaler().fit(x[inside].astype(np.float64))
        for penalty, logits in said.items():
            model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
            model.fit(scaler.transform(x[inside].astype(np.float64)), y[inside])
            logits[~inside] = model.decision_function(scaler.transform(x[~inside].astype(np.float64)))

    def worth(penalty):
        logits = said[penalty]
        loss = log_loss(probabilities(logits, temperature(logits, y)), y)
        return (logits.argmax(axis=1) == y).mean(), -loss

    assert fit.penalty == max(FEW, key=worth)
    assert fit.temperature == pytest.approx(temperature(said[fit.penalty], y), rel=1e-2)


def test_nothing_about_an_image_reaches_what_is_said_of_it(monkeypatch):
    """Spoilt images of one fold, and wrong labels there, change what is said of the others and not of their own."""
    x, y = clouds(60, spread=3)
    whole = cross_validated(x, y, seed=1, penalties=FEW)
    held = whole.fold == 2
    assert held.any()
    labels = y.copy()
    labels[held] = (y[held] + 1) % 3
    # The folds follow from labels; these are as they were.
    of_row = folds(y, FOLDS, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(calibrated, "folds", lambda y, *rest, **more: of_row if len(y) == 60 else folds(y, *rest, **more))
        other = cross_validated(x, labels, seed=1, penalties=FEW)
    assert np.array_equal(other.probabilities[held], whole.probabilities[held])
    assert other.temperatures[2] == whole.temperatures[2]
    assert not np.allclose(other.probabilities[~held], whole.probabilities[~held], atol=1e-3)
    # Features too: of another scale they would move a scaler fitted to all images.
    spoilt = x.copy()
    spoilt[held] = 100 * spoilt[held] + 7
    far = cross_validated(spoilt, y, seed=1, penalties=FEW)
    assert far.temperatures[2] == whole.temperatures[2]
    fold = fit_calibrated(x, y, rows=np.flatnonzero(~held), seed=1, penalties=FEW)
    assert np.array_equal(far.probabilities[held], fold.probabilities(spoilt, np.flatnonzero(held)))


def test_with_one_image_a_class_nothing_is_chosen():
    x, y = clouds(3)
    fit = fit_calibrated(x, y, penalties=FEW)
    assert (fit.chosen, fit.penalty, fit.temperature) == (False, 1.0, 1.0)
    four = cross_validated(*clouds(4, classes=2), penalties=FEW)
    assert four.rows.tolist() == [0, 1, 2, 3]
    assert np.isfinite(four.probabilities).all()


def test_of_many_images_one_fold_chooses(monkeypatch):
    x, y = clouds(60, spread=3)
    monkeypatch.setattr(calibrated, "ONE_FOLD_FROM", 60)
    fit = fit_calibrated(x, y, penalties=(1.0,))
    inside = folds(y, FOLDS, seed=0) != 0
    model = calibrated.logistic_regression(x, y, mean_penalty(1.0, inside.sum()), rows=np.flatnonzero(inside))
    assert fit.temperature == pytest.approx(temperature(model.scores(x, np.flatnonzero(~inside)), y[~inside]), rel=1e-2)


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_run):
    """run: an untrained backbone. few/: 12 images each of two classes. all/: copies of these, 20 others, one broken."""
    root = tmp_path_factory.mktemp("classify")
    torch.manual_seed(0)
    spec = EncoderSpec("resnet18", 16, 3, "3x3", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]})
    (root / "run").mkdir()
    save_backbone(Encoder(spec).eval(), make_run(), root / "run", step=0)
    generator = np.random.default_rng(0)
    (root / "all").mkdir()
    for i in range(44):
        name = ("red", "=blue")[i % 2]
        pixels = generator.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[..., 0 if name == "red" else 2] += 100
        files = [root / "all" / f"{i:02}.png"] + ([root / "few" / name / f"{i:02}.png"] if i < 24 else [])
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    (root / "all" / "07b.png").write_bytes((root / "all" / "07.png").read_bytes()[:200])
    (root / "all" / "notes.txt").write_text("no image")
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "plate"])
        writer.writerows([f"{i:02}.png", ("red", "=blue")[i % 2] if i < 24 else "", i % 8] for i in range(44))
    return root


@pytest.fixture(autouse=True)
def kept_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("BYOL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def without_pixels(monkeypatch):
    """Raw pixels beside take most of the time."""
    monkeypatch.setattr(classify, "RAW_PIXELS_UP_TO", 0)


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["byol", "classify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return call


def test_every_image_has_a_row_and_the_labelled_ones_do_not_count(run, place, tmp_path):
    out = tmp_path / "sub" / "predictions.csv"
    code, stdout, stderr = run(place / "run", place / "few", place / "all", "--out", out, "--error-rate", 0.2)
    assert code == 0, stderr
    assert stdout.startswith("Cross-validated accuracy ")
    table = pd.read_csv(out)
    names = sorted(file.name for file in (place / "all").glob("*.png"))
    assert table.columns.tolist() == [*classify.COLUMNS, "p_=blue", "p_red"]
    assert table.name.tolist() == names
    broken = table[table.name == "07b.png"].iloc[0]
    assert (broken.decision, broken.abstained, broken.labelled) == ("unusable", 1, 0)
    assert pd.isna(broken.predicted) and pd.isna(broken.probability) and pd.isna(broken.p_red)
    rows = table[table.name != "07b.png"]
    assert rows.labelled.tolist() == [1] * 24 + [0] * 20
    p = rows[["p_=blue", "p_red"]].to_numpy()
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert rows.predicted.tolist() == [("=blue", "red")[i] for i in p.argmax(axis=1)]
    assert rows.probability.tolist() == p.max(axis=1).tolist()
    summary = json.loads(out.with_suffix(".json").read_text("utf-8"))
    sure = rows.probability >= summary["threshold"]["value"]
    assert (rows.abstained == ~sure).all()
    assert (rows.decision == rows.predicted.where(sure, "unsure")).all()
    new = summary["new_images"]
    assert (new["images"], new["labelled"], new["unusable"]) == (20, 24, 1)
    assert new["answered"] == (sure & (rows.labelled == 0)).sum() == sum(new["decided"].values())
    assert new["unusable_first"][0][0] == "07b.png"
    assert summary["classes"]["red"]["labelled"] == 12 and summary["majority"] == 0.5
    assert summary["accuracy"] > 0.9  # red and blue are told apart
    assert 0 < summary["raw_pixels"]["accuracy"] <= 1
    with Image.open(out.with_suffix(".png")) as image:
        image.load()


def test_probabilities_are_those_of_a_classifier_of_the_same_features(place, without_pixels, tmp_path):
    task = classify.opened(place / "run", str(place / "few"), str(place / "all"))
    learned = classify.learn(task, seed=5)
    classify.predict(learned, tmp_path / "p.csv")
    table = pd.read_csv(tmp_path / "p.csv").dropna(subset=["probability"])
    files = [place / "all" / name for name in table.name]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2)
    about = json.loads((place / "run" / "backbone.json").read_text())
    scale = {name: about["normalization"][name] for name in ("mean", "std")}
    x = extract(task.column.network, pixels, size=None, **scale).numpy().astype(np.float16).astype(np.float64)
    y = np.array([int(i % 2 == 0) for i in range(24)])  # "=blue", "red"
    scaler = StandardScaler().fit(x[:24])
    # Of two classes scikit-learn has one weight vector for the difference of ours, with half its penalty.
    theirs = LogisticRegression(C=2 / learned.classifier.penalty, tol=1e-10, max_iter=10_000)
    margin = theirs.fit(scaler.transform(x[:24]), y).decision_function(scaler.transform(x))
    expected = 1 / (1 + np.exp(-margin / learned.classifier.temperature))
    assert table.p_red.to_numpy() == pytest.approx(expected, abs=2e-3)


def test_labels_from_a_file_of_the_same_folder(run, place, without_pixels, tmp_path):
    asked = (place / "run", place / "all", place / "all", "--labels", place / "labels.csv", "--json")
    code, stdout, stderr = run(*asked, "--out", tmp_path / "p.csv", "--threshold", 0.6)
    assert code == 0, stderr
    found = json.loads(stdout)
    assert found == json.loads((tmp_path / "p.json").read_text())
    assert found["threshold"]["by"] == "hand" and found["threshold"]["value"] == 0.6
    assert (found["labelled_images"], found["new_images"]["labelled"], found["groups"]) == (24, 24, None)
    assert found["warnings"] == []
    code, stdout, _ = run(*asked, "--out", tmp_path / "g.csv", "--groups", "plate")
    assert code == 0
    found = json.loads(stdout)
    assert found["groups"] == 8
    assert found["threshold"]["chosen_on"] == 8  # one image of each
    assert found["threshold"]["by"] == "probability"
    assert found["threshold"]["value"] == 0.95


def test_labels_that_were_suggested_are_called_typical(run, place, without_pixels, tmp_path):
    suggested = place / "run" / "suggested.csv"
    suggested.write_text("file,label\n01.png,\n02.png,\n03.png,\n40.png,\n")
    try:
        asked = (place / "run", place / "all", place / "all", "--labels", place / "labels.csv")
        code, stdout, _ = run(*asked, "--out", tmp_path / "p.csv")
    finally:
        suggested.unlink()
    assert code == 0
    assert "3 of the labelled images were named by --suggest" in " ".join(stdout.split())


def test_new_images_that_are_harder_are_told():
    generator = np.random.default_rng(0)
    easy, hard = generator.beta(20, 1, 60), generator.beta(3, 2, 500)
    assert "harder" in classify._harder(easy, hard)[0]
    assert classify._harder(hard[:60], easy) == classify._harder(easy, easy.copy()) == []
    assert classify._harder(easy, np.empty(0)) == []


def one_image(folder: Path, name: str, shape=(16, 16, 3)):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, shape).astype(np.uint8 if len(shape) == 3 else np.uint16)
    Image.fromarray(pixels).save(folder / name)


WRONG = [
    (("LABELLED", "--threshold", "1.5"), "--threshold 1.5 is no probability"),
    (("LABELLED", "--error-rate", "0"), "--error-rate 0 is not possible"),
    (("LABELLED", "--threshold", "0.5", "--error-rate", "0.1"), "give one of them"),
    (("LABELLED", "--out", "predictions"), "does not end in .csv"),
    (("LABELLED", "--out", "taken.csv"), "taken.png exists already"),
    (("NEW",), "has no labels to learn from"),
    (("single",), "one labelled image of class b, c"),
    (("NEW", "--labels", "one.csv"), "names 1 class(es)"),
    (("NEW", "--labels", "unfilled.csv"), "names 0 class(es)"),
    (("NEW", "--labels", "several.csv"), "several.csv gives several labels to an image"),
    (("LABELLED", "--groups", "(0)"), "no group"),
    (("LABELLED", "--groups", "(red|blue)"), "labelled images of one group of class =blue, red"),
    (("nowhere",), "nowhere"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[says for _, says in WRONG])
def test_what_cannot_be_classified_is_one_line_and_writes_nothing(run, place, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/2.png", "b/33.png", "c/444.png"):
        one_image(tmp_path / "single", name)
    (tmp_path / "one.csv").write_text("file,label\n01.png,red\n02.png,red\n")
    (tmp_path / "unfilled.csv").write_text("file,label\n01.png,\n02.png,\n")
    (tmp_path / "several.csv").write_text("file,label\n01.png,red;blue\n02.png,red\n")
    (tmp_path / "taken.png").write_text("")
    before = sorted(file.name for file in tmp_path.iterdir())
    named = {"LABELLED": place / "few", "NEW": place / "all"}
    labelled, *more = (named.get(argument, argument) for argument in arguments)
    more = more if "--out" in more else [*more, "--out", "p.csv"]
    code, stdout, stderr = run(place / "run", labelled, place / "all", *more)
    assert (code, stdout) == (2, "")
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("byol: ")
    assert says in last
    assert set(before) >= {file.name for file in tmp_path.iterdir()} - {"cache"}


def test_new_images_of_other_channels_are_one_line(run, place, tmp_path):
    np.save(tmp_path / "deep.npy", np.random.default_rng(0).integers(0, 4000, (6, 16, 16, 5)).astype(np.uint16))
    code, _, stderr = run(place / "run", place / "few", tmp_path / "deep.npy", "--out", tmp_path / "p.csv")
    assert code == 2
    assert stderr.count("byol: ") == 1 and "channels" in stderr


def test_a_class_without_images_is_left_out(place, tmp_path):
    lines = (place / "labels.csv").read_text() + "gone.png,green,0\n"
    (tmp_path / "more.csv").write_text(lines)
    said = []
    task = classify.opened(
        place / "run", str(place / "all"), str(place / "few"), labels=str(tmp_path / "more.csv"), say=said.append
    )
    assert task.labelled.classes == ("=blue", "red")
    assert any("the first green: they are left out" in line for line in said)
