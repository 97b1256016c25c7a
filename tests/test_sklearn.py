"""Embedder keeps scikit-learn's rules, by scikit-learn's own checks, and does what it is for."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import byol
import byol.sklearn
from byol.console import Terminal
from byol.options import Options
from byol.sklearn import Embedder

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
SETTINGS = {"backbone_args": SMALL, "method_args": {"hidden": 8, "out": 4}}
TINY = {"backbone": "resnet18", "steps": 1, "batch_size": 8, "settings": SETTINGS, "device": "cpu"}


@parametrize_with_checks([Embedder(**TINY)])
def test_scikit_learns_own_check(estimator, check):
    """All of them: none is expected to fail."""
    check(estimator)


@pytest.fixture(scope="module")
def rows():
    """120 digits as rows of 64 values from 0 to 16, and which they are."""
    x, y = load_digits(return_X_y=True)
    return x[:120], y[:120]


def test_it_takes_the_steps_of_pretrain(tmp_path):
    """The same weights, and the features of `Encoder.embed`."""
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), dtype=np.uint8)
    embedder = Embedder((12, 10, 3), **{**TINY, "steps": 3}, random_state=7)
    features = embedder.fit_transform(images.reshape(40, -1))
    options = Options(seed=7, hold_out=0.0, precision="32", steps=3, batch_size=8, backbone="resnet18", device="cpu")
    run = byol.pretrain(images, tmp_path / "run", replace(options, **SETTINGS))
    assert run == embedder.run_
    encoder = byol.load(tmp_path / "run")
    own = embedder.encoder_.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in encoder.state_dict().items())
    assert np.array_equal(features, encoder.embed(images))
    assert features.dtype == np.float32
    assert len(np.unique(features.round(4), axis=0)) == 40, "rows differ in their features"


def test_it_works_in_a_pipeline_with_a_grid_search(rows):
    x, y = rows
    wider = {**SETTINGS, "backbone_args": {"layers": [1, 1, 1, 0], "channels": [16, 32, 64, 64]}}
    embedder = Embedder((8, 8), **{**TINY, "settings": wider})
    pipeline = Pipeline([("embed", embedder), ("scale", StandardScaler()), ("classify", LogisticRegression())])
    search = GridSearchCV(pipeline, {"embed__steps": [1, 10], "classify__C": [0.1]}, cv=2).fit(x, y)
    assert search.best_params_["embed__steps"] in (1, 10)
    assert search.best_score_ > 0.3, "three times what guessing gives"
    assert search.predict(x).shape == y.shape
    assert search.best_estimator_[:-1].get_feature_names_out()[:2].tolist() == ["embedder0", "embedder1"]
    frame = search.best_estimator_[0].set_output(transform="pandas").transform(x)
    assert frame.columns.tolist() == [f"embedder{i}" for i in range(64)]


@pytest.mark.slow
def test_processes_side_by_side_find_what_one_does(rows):
    x, y = rows
    found = []
    for jobs in (1, 2):
        pipeline = Pipeline([("embed", Embedder((8, 8), **TINY)), ("classify", LogisticRegression(max_iter=200))])
        search = GridSearchCV(pipeline, {"embed__steps": [1, 5]}, cv=2, n_jobs=jobs).fit(x, y)
        found.append(search.cv_results_["mean_test_score"])
    assert np.allclose(*found, atol=0.05)


def test_values_become_the_same_grey_levels_whatever_their_type_and_scale(rows):
    x, _ = rows
    eight = np.rint(255 * x / 16)
    expected = Embedder((8, 8), **TINY).fit_transform(eight.astype(np.uint8))
    given = (x, x.astype(np.float32), x / 16, 3 * x - 7, eight.astype(np.int64))
    for values in given:
        assert np.array_equal(Embedder((8, 8), **TINY).fit_transform(values), expected)
    fitted = Embedder((8, 8), value_range=(0, 16), **TINY).fit(x[:, ::-1])
    assert fitted.value_range_ == (0.0, 16.0)
    beyond = np.where(x == 16, 99, x)
    assert np.array_equal(fitted.transform(beyond), fitted.transform(x)), "clipped to the range of the fit"
    dark = Embedder((8, 8), **TINY).fit((x / 2).astype(np.uint8))
    assert dark.value_range_ == (0.0, 255.0), "uint8 keeps its own"
    assert Embedder((8, 8), **TINY).fit(np.ones((9, 64))).value_range_ == (1.0, 2.0)


def test_rows_are_images_in_c_order_and_without_a_shape_squares():
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (16, 9, 7, 3), dtype=np.uint8)
    embedder = Embedder((9, 7, 3), **TINY).fit(images.reshape(16, -1))
    assert np.array_equal(embedder.transform(images.reshape(16, -1)), embedder.encoder_.embed(images))
    assert (embedder.run_.channels, embedder.run_.image_size) == (3, 7)
    assert embedder.run_.views[0]["gray"] > 0, "of RGB the colours change too"
    rows = images.reshape(16, -1)[:, :14]
    embedder = Embedder(**TINY).fit(rows)
    assert embedder.image_shape_ == (4, 4, 1)
    squares = np.pad(rows, [(0, 0), (0, 2)]).reshape(16, 4, 4)
    assert np.array_equal(embedder.transform(rows), embedder.encoder_.embed(squares.reshape(16, 4, 4, 1)))


def test_of_four_channels_each_is_kept():
    images = np.random.default_rng(2).integers(0, 256, (16, 8, 8, 4), dtype=np.uint8)
    embedder = Embedder((8, 8, 4), **TINY)
    features = embedder.fit_transform(images.reshape(16, -1))
    assert embedder.encoder_.spec.channels == 4
    assert np.array_equal(features, embedder.encoder_.embed(images))


def test_the_random_state_alone_decides_and_no_other_is_used_up(rows):
    x, _ = rows
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (Embedder((8, 8), random_state=state, **TINY).fit_transform(x) for state in (0, 0, 1))
    drawn = [Embedder((8, 8), random_state=np.random.RandomState(5), **TINY).fit_transform(x) for _ in range(2)]
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.array_equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert not np.array_equal(Embedder((8, 8), random_state=None, **TINY).fit_transform(x), first)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_shape": (8, 9)}, r"image_shape=\(8, 9\) does not fit rows of 64 features"),
        ({"image_shape": (64,)}, "use \\(H, W\\) or \\(H, W, C\\)"),
        ({"value_range": (1, 1)}, "low < high"),
        ({"method": "byoll"}, "unknown method 'byoll'; did you mean byol"),
        ({"method": "supervised", "settings": {"backbone_args": SMALL}}, "learns from labels"),
        ({"settings": {"epoch": 1}}, "unknown setting 'epoch'; did you mean epochs"),
        ({"epochs": 1}, "each say how long to train"),
        ({"settings": {**SETTINGS, "optimizer": "sgd", "base_lr": 1e30, "warmup_steps": 0}, "steps": 9}, "not finite"),
    ],
    ids=("product", "one side", "range", "method", "labels", "setting", "lengths", "numbers"),
)
def test_what_is_wrong_is_said_in_one_line(rows, changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        Embedder(**{"image_shape": (8, 8), **TINY, **changes}).fit(rows[0])
    assert "\n" not in str(caught.value)


def test_it_shows_how_it_goes_where_asked(rows, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(Terminal, "working", lambda self, *told: shown.append(told))
    Embedder((8, 8), **TINY).fit(rows[0])
    assert capsys.readouterr() == ("", "") and not shown
    Embedder((8, 8), verbose=True, **TINY).fit(rows[0])
    assert shown[-1] == ("training", TINY["steps"], TINY["steps"])


def test_its_example_is_right():
    found = doctest.testmod(byol.sklearn)
    assert (found.attempted, found.failed) == (3, 0)
