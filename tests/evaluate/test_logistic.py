"""Logistic regression against its objective in plain NumPy, against scikit-learn, and by hand."""

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from byol.evaluate import logistic
from byol.evaluate.logistic import CHOICE, FINAL, Effort, Objective, Standardised, logistic_path, logistic_regression


def clouds(num_classes, per_class, dim=12, seed=0, spread=1.5):
    """Overlapping Gaussian classes whose features have very different scales."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(num_classes), per_class)
    centres = np.random.default_rng(99).normal(size=(num_classes, dim))
    x = (centres[y] + spread * generator.normal(size=(len(y), dim))) * 10.0 ** np.linspace(-2, 2, dim) + 5
    return x.astype(np.float32), y


def gradient(x, y, num_classes, weight, bias, penalty):
    """Of mean cross-entropy + penalty / 2 * |W|^2, in float64, with features standardised here."""
    x = x.astype(np.float64)
    std = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(std < 1e-12, 1, std)
    logits = x @ weight.T + bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(num_classes)[y]
    by_weight = errors.T @ x / len(y) + penalty * weight
    return np.concatenate([by_weight.ravel(), errors.mean(axis=0)])


def remaining(x, y, model, penalty):
    """The norm of the gradient at the solution, as a share of that at zero weights."""
    num_classes = len(model.classes)
    start = gradient(x, y, num_classes, np.zeros_like(model.weight), np.zeros(num_classes), penalty)
    end = gradient(x, y, num_classes, model.weight, model.bias, penalty)
    return np.linalg.norm(end) / np.linalg.norm(start)


def correlated(num_classes=3, images=900):
    """What tells the classes apart lies in the axes of least variance."""
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(images) % num_classes)
    z = generator.normal(size=(images, 60))
    z[:, -num_classes:] += 1.5 * np.eye(num_classes)[y]
    return (z * 10.0 ** np.linspace(0, -2, 60)) @ np.linalg.qr(generator.normal(size=(60, 60)))[0], y


def with_constants():
    x, y = clouds(3, per_class=40)
    x[:, [0, 7]] = 0.1, 3e4
    return x, y


def separable():
    y = np.arange(90) % 3
    return np.eye(3)[y] * 8 + np.random.default_rng(0).normal(size=(90, 3)), y


PROBLEMS = {
    "two classes": lambda: clouds(2, per_class=60),
    "ten classes": lambda: clouds(10, per_class=30),
    "separable": separable,
    "correlated": correlated,
    "more features than images": lambda: clouds(4, per_class=5, dim=60),
    "constant features": with_constants,
}


@pytest.mark.parametrize("penalty", [1e-6, 1e-1, 1e5], ids="sum_form_{:g}".format)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradient_of_the_objective_vanishes_at_the_solution(problem, penalty):
    x, y = PROBLEMS[problem]()
    model = logistic_regression(x, y, penalty / len(y))
    assert model.converged
    assert remaining(x, y, model, penalty / len(y)) <= 1e-5


def test_gradient_vanishes_along_the_whole_path():
    x, y = clouds(4, per_class=50)
    path = list(logistic_path(x, y, [1e-5, 1.0, 1e-3]))
    assert [penalty for penalty, _ in path] == [1.0, 1e-3, 1e-5]
    assert max(remaining(x, y, model, penalty) for penalty, model in path) <= 1e-5


def test_penalty_of_two_classes_by_hand():
    # x = -1, 1 with labels 0, 1; by symmetry W = (-u, u), b = 0, and the objective is
    # log(1 + exp(-2u)) + p u^2. Its derivative is zero where p = sigmoid(-2u) / u.
    # For u = log(3) / 2: sigmoid(-log 3) = 1/4, p = 1 / (2 log 3).
    model = logistic_regression(np.array([[-1.0], [1.0]]), np.array([0, 1]), 1 / (2 * np.log(3)))
    np.testing.assert_allclose(model.weight, [[-np.log(3) / 2], [np.log(3) / 2]], rtol=1e-5)
    np.testing.assert_allclose(model.bias, [0, 0], atol=1e-6)


def test_penalty_of_three_classes_by_hand():
    # x = -s, 0, s with labels 0, 1, 2 and s^2 = 3/2, so that its std is 1. By symmetry W = (-u, 0, u), and b
    # is (-c, 0, -c) up to a constant; with t = e^c and a = e^{su} + e^{-su}, the class-1 probabilities sum to
    # 1 where t / (t + 2) + 2t / (t + a) = 1, that is a = t^2 + t. For t = 2: a = 6, e^{su} = 3 + sqrt 8.
    # The derivative by W[2] is s (sqrt 8 * 2 / 8 - 1) / 3 + p u, zero at p = s (1 - 1 / sqrt 2) / (3u).
    s = np.sqrt(1.5)
    u = np.log(3 + np.sqrt(8)) / s
    penalty = s * (1 - 1 / np.sqrt(2)) / (3 * u)
    model = logistic_regression(np.array([[-s], [0], [s]]), np.array([0, 1, 2]), penalty)
    np.testing.assert_allclose(model.weight, [[-u], [0], [u]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.bias[1] - model.bias[[0, 2]], np.log(2), rtol=1e-4)


def test_penalty_does_not_depend_on_the_number_of_images():
    x, y = clouds(3, per_class=20)
    once = logistic_regression(x, y, 0.01)
    thrice = logistic_regression(np.tile(x, (3, 1)), np.tile(y, 3), 0.01)
    np.testing.assert_allclose(once.weight, thrice.weight, atol=1e-4)


def test_scale_of_features_does_not_matter():
    x, y = clouds(3, per_class=20)
    np.testing.assert_array_equal(
        logistic_regression(x, y, 0.01).predict(x),
        logistic_regression(100 * x - 7, y, 0.01).predict(100 * x - 7),
    )


def test_constant_features_are_harmless():
    x, y = clouds(3, per_class=20)
    x[:, 4] = 0.1
    model = logistic_regression(x, y, 0.01)
    assert model.std[4] == 1
    np.testing.assert_allclose(model.weight[:, 4], 0, atol=1e-5)


def test_labels_need_not_start_at_zero():
    x, y = clouds(3, per_class=20)
    model = logistic_regression(torch.from_numpy(x), torch.from_numpy(7 * y + 3), 0.01)
    assert set(model.predict(torch.from_numpy(x)).tolist()) == {3, 10, 17}


def test_a_fit_cut_short_is_reported_and_does_not_warn():
    x, y = clouds(3, per_class=40)
    assert not logistic_regression(x, y, 1e-4, effort=Effort(FINAL.tolerance, 2, np.float64)).converged
    assert logistic_regression(x, y, 1e-4, effort=Effort(0.1, 20, np.float64)).converged


def test_a_short_memory_finds_the_same_optimum(monkeypatch):
    monkeypatch.setattr(logistic, "MEMORY_VALUES", 1)
    x, y = correlated()
    assert remaining(x, y, logistic_regression(x, y, 1e-3), 1e-3) <= 1e-5


def test_rows_are_the_fit_to_these_images_alone():
    x, y = clouds(3, per_class=40)
    rows = np.random.default_rng(0).permutation(len(y))[:70]
    part, alone = logistic_regression(x, y, 0.01, rows=rows), logistic_regression(x[rows], y[rows], 0.01)
    np.testing.assert_array_equal(part.weight, alone.weight)
    np.testing.assert_array_equal(part.mean, alone.mean)
    np.testing.assert_array_equal(part.predict(x, rows), part.predict(x)[rows])
    np.testing.assert_allclose(part.scores(x, rows), part.scores(x)[rows], rtol=1e-12)


def test_scores_are_the_logits(monkeypatch):
    monkeypatch.setattr(logistic, "BLOCK_IMAGES", 7)
    x, y = clouds(3, per_class=10)
    model = logistic_regression(x, y, 0.01)
    logits = (x.astype(np.float64) - model.mean) / model.std @ model.weight.T + model.bias
    np.testing.assert_allclose(model.scores(x), logits, rtol=1e-10)
    np.testing.assert_array_equal(model.predict(x), logits.argmax(axis=1))


def test_the_same_input_twice_gives_the_same_bits():
    x, y = correlated()
    first, second = (logistic_regression(x.copy(), y.copy(), 1e-4) for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
    np.testing.assert_array_equal(first.bias, second.bias)


@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
def test_solution_is_scikit_learn_s(penalty):
    x, y = clouds(4, per_class=50)
    model = logistic_regression(x, y, penalty)
    theirs = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-9, max_iter=10_000)
    theirs.fit((x - model.mean) / model.std, y)
    np.testing.assert_allclose(model.weight, theirs.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.bias - model.bias[0], theirs.intercept_ - theirs.intercept_[0], atol=1e-3)


def test_features_as_correlated_as_pixels_converge_in_tens_of_steps():
    # Without units of curvature: 281 and 667 steps.
    x, y = correlated()
    for penalty, model in logistic_path(x, y, [1e-1, 1e-3, 1e-5], effort=Effort(FINAL.tolerance, 60, np.float64)):
        assert model.converged
        assert remaining(x, y, model, penalty) <= 1.01 * FINAL.tolerance


def test_curvature_is_estimated_anew():
    # From the estimate at zero weights alone it takes 1,450 steps.
    x, y = load_digits(return_X_y=True)
    model = logistic_regression(x, y, 1e-4 / len(y), effort=Effort(FINAL.tolerance, 200, np.float64))
    assert model.converged
    assert remaining(x, y, model, 1e-4 / len(y)) <= 1e-5


@pytest.fixture
def on_disk(tmp_path):
    """float16 features, a memmap, and labels: correlated, shifted, one constant."""
    x, y = correlated(num_classes=4, images=6000)
    x = (x + np.linspace(0, 3, 60)).astype(np.float16)
    x[:, 5] = 2
    np.save(tmp_path / "x.npy", x)
    return np.load(tmp_path / "x.npy", mmap_mode="r"), y


def stream(monkeypatch):
    monkeypatch.setattr(logistic, "STREAM_IMAGES", 100)
    monkeypatch.setattr(logistic, "BLOCK_IMAGES", 250)


def test_a_streamed_fit_is_the_one_in_memory(on_disk, monkeypatch):
    x, y = on_disk
    rows = np.flatnonzero(np.arange(len(y)) % 5)
    whole = logistic_regression(np.array(x), y, 1e-3, rows=rows)
    stream(monkeypatch)
    streamed = logistic_regression(x, y, 1e-3, rows=rows)
    assert streamed.converged
    assert np.linalg.norm(streamed.weight - whole.weight) <= 1e-4 * np.linalg.norm(whole.weight)
    np.testing.assert_allclose(streamed.std, whole.std, rtol=1e-12)
    np.testing.assert_array_equal(streamed.predict(x), whole.predict(x))
    assert remaining(x[rows], y[rows], streamed, 1e-3) <= 1e-5


def test_a_streamed_choice_compares_float32_fits_as_near_as_the_kept_ones(on_disk, monkeypatch):
    x, y = on_disk
    kept = list(logistic_path(x, y, [1e-1, 1e-3], effort=CHOICE))
    stream(monkeypatch)
    for (penalty, model), (_, other) in zip(logistic_path(x, y, [1e-1, 1e-3], effort=CHOICE), kept, strict=True):
        assert model.converged
        assert remaining(x, y, model, penalty) <= 1.1 * CHOICE.tolerance
        assert (model.predict(x) != other.predict(x)).mean() < 0.005


@pytest.mark.parametrize(("effort", "dtype"), [(CHOICE, np.float32), (FINAL, np.float64)])
def test_streamed_blocks_are_as_exact_as_the_effort_says_and_kept_ones_float64(effort, dtype, monkeypatch):
    dtypes = []
    original = Standardised.blocks

    def spied(self, dtype):
        dtypes.append(dtype)
        return original(self, dtype)

    monkeypatch.setattr(Standardised, "blocks", spied)
    x, y = clouds(3, per_class=40)
    statistics = x.mean(axis=0), x.std(axis=0)
    logistic_regression(x, y, 1e-2, statistics=statistics, effort=effort)
    assert set(dtypes) == {np.float64}
    dtypes.clear()
    stream(monkeypatch)
    logistic_regression(x, y, 1e-2, statistics=statistics, effort=effort)
    assert set(dtypes) == {dtype}


def test_with_more_features_than_images_a_streamed_fit_is_the_one_in_memory(monkeypatch):
    x, y = clouds(4, per_class=30, dim=150)
    whole = logistic_regression(x, y, 1e-2)
    stream(monkeypatch)
    streamed = logistic_regression(x, y, 1e-2)
    assert np.linalg.norm(streamed.weight - whole.weight) <= 1e-4 * np.linalg.norm(whole.weight)


def test_a_streamed_fit_holds_no_copy_of_the_features(tmp_path, monkeypatch):
    images, dim = 20_000, 64
    y = np.arange(images) % 2
    x = np.random.default_rng(0).normal(size=(images, dim)).astype(np.float16) + y[:, None].astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    del x
    monkeypatch.setattr(logistic, "STREAM_IMAGES", 10_000)
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = np.arange(0, images, 2) + y[: images // 2]
    tracemalloc.start()
    model = logistic_regression(on_disk, y, 1.0, rows=rows)
    model.predict(on_disk, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(rows) * dim * 8 * 0.7, "a float64 copy of the images fitted to"
    assert model.converged


def test_loss_and_gradient_are_autograd_s():
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(40, 6)), generator.normal(size=(3, 7))
    labels, many = generator.integers(0, 3, 40), generator.integers(-1, 2, (40, 3)).astype(np.int8)
    images = Standardised(x, None, np.zeros(6), np.ones(6))
    known = torch.from_numpy(many >= 0)

    def cross_entropy(logits):
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")

    def binary(logits):
        present = torch.from_numpy(many).double().clamp(min=0)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, present, reduction="none")[known].sum()

    for link, targets, loss in ((logistic.softmax, labels, cross_entropy), (logistic.sigmoid, many, binary)):
        objective = Objective(images, targets, link, np.float64)
        turned = torch.from_numpy(np.column_stack([weight[:, :-1] @ objective.axes.T, weight[:, -1]])).requires_grad_()
        expected = loss(torch.from_numpy(x) @ turned[:, :-1].T + turned[:, -1]) / 40
        expected.backward()
        value, by_axes = objective(weight)
        assert value == pytest.approx(expected.item(), rel=1e-12)
        by_weight = np.column_stack([by_axes[:, :-1] @ objective.axes.T, by_axes[:, -1]])
        np.testing.assert_allclose(by_weight, turned.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "penalty", "message"),
    [
        (np.ones((3, 2)), np.array([0, 1]), 1.0, "3 feature rows and 2 labels"),
        (np.ones((2, 2)), np.array([1, 1]), 1.0, "hold 1 class"),
        (np.ones((2, 2)), np.array([0, 1]), 0.0, "penalties"),
        (np.array([[1.0], [np.nan]]), np.array([0, 1]), 1.0, "not finite"),
        (np.ones(2), np.array([0, 1]), 1.0, r"\[N, D\]"),
        (np.ones((2, 2)), np.array([0.0, 1.0]), 1.0, "integers"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(x, y, penalty, message):
    with pytest.raises(ValueError, match=message) as error:
        logistic_regression(x, y, penalty)
    assert "\n" not in str(error.value)
