"""Logistic regression against its objective in plain numpy, and the protocol against what it must not do."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from byol.evaluate import linear
from byol.evaluate.linear import (
    best_penalty,
    linear_evaluation,
    logistic_path,
    logistic_regression,
    stratified_split,
)


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
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    exponentials = np.exp(x @ weight.T + bias)
    errors = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(num_classes)[y]
    by_weight = errors.T @ x / len(y) + penalty * weight
    return np.concatenate([by_weight.ravel(), errors.mean(axis=0)])


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_gradient_of_the_objective_vanishes_at_the_solution(num_classes, penalty):
    x, y = clouds(num_classes, per_class=60)
    model = logistic_regression(x, y, penalty)
    start = gradient(x, y, num_classes, np.zeros_like(model.weight), np.zeros(num_classes), penalty)
    end = gradient(x, y, num_classes, model.weight, model.bias, penalty)
    assert model.converged
    assert np.linalg.norm(end) <= 1e-5 * np.linalg.norm(start)


def test_gradient_vanishes_along_the_whole_path():
    x, y = clouds(4, per_class=50)
    start = np.linalg.norm(gradient(x, y, 4, np.zeros((4, 12)), np.zeros(4), 1.0))
    path = logistic_path(x, y, [1e-5, 1.0, 1e-3])
    assert list(path) == [1.0, 1e-3, 1e-5]
    for penalty, model in path.items():
        assert np.linalg.norm(gradient(x, y, 4, model.weight, model.bias, penalty)) <= 1e-5 * start


@pytest.mark.parametrize("num_classes", [2, 4])
def test_gradient_vanishes_with_more_features_than_images(num_classes):
    x, y = clouds(num_classes, per_class=5, dim=60)
    model = logistic_regression(x, y, 1e-2)
    start = gradient(x, y, num_classes, np.zeros_like(model.weight), np.zeros(num_classes), 1e-2)
    assert model.weight.shape == (num_classes, 60)
    end = gradient(x, y, num_classes, model.weight, model.bias, 1e-2)
    assert np.linalg.norm(end) <= 1e-5 * np.linalg.norm(start)


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


def test_a_fit_cut_short_is_reported_and_does_not_warn(monkeypatch):
    x, y = clouds(3, per_class=40)
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    assert not logistic_regression(x, y, 1e-4).converged
    assert not linear_evaluation(x, y, x, y, penalties=[1e-4]).converged


@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
def test_solution_is_scikit_learn_s(penalty):
    x, y = clouds(4, per_class=50)
    model = logistic_regression(x, y, penalty)
    theirs = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-9, max_iter=10_000)
    theirs.fit((x - model.mean) / model.std, y)
    np.testing.assert_allclose(model.weight, theirs.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.bias - model.bias[0], theirs.intercept_ - theirs.intercept_[0], atol=1e-3)


def test_features_as_correlated_as_pixels_converge_in_tens_of_steps(monkeypatch):
    # What tells the classes apart lies in the axes of least variance; without units of curvature: 281 and 667 steps.
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 900)
    axes = np.linalg.qr(generator.normal(size=(60, 60)))[0]
    z = generator.normal(size=(900, 60))
    z[:, -3:] += 1.5 * np.eye(3)[y]
    x = (z * 10.0 ** np.linspace(0, -2, 60)) @ axes
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 60)
    start = np.linalg.norm(gradient(x, y, 3, np.zeros((3, 60)), np.zeros(3), 1.0))
    for penalty, model in logistic_path(x, y, [1e-1, 1e-3, 1e-5]).items():
        assert model.converged
        assert np.linalg.norm(gradient(x, y, 3, model.weight, model.bias, penalty)) <= 1.01 * linear.TOLERANCE * start


class Sealed:
    """Test data that may be read only after the last of `fits` fits, and counts its readings."""

    def __init__(self, array, fits):
        self.array, self.fits, self.readings = array, fits, 0

    def __array__(self, dtype=None, copy=None):
        assert self.fits["done"] == self.fits["expected"], "the test data were read before the last fit"
        self.readings += 1
        return np.asarray(self.array, dtype=dtype)

    def __getattr__(self, name):
        if name.startswith("__array"):  # numpy asks for its protocols before it reads
            raise AttributeError(name)
        raise AssertionError(f"the test data's {name} was read")


def test_test_data_are_read_once_and_after_the_last_fit(monkeypatch):
    x, y = clouds(3, per_class=30)
    test_x, test_y = clouds(3, per_class=30, seed=1)
    fits = {"done": 0, "expected": 3 + 1}
    original = linear._fit

    def counted(*arguments):
        converged = original(*arguments)
        fits["done"] += 1
        return converged

    monkeypatch.setattr(linear, "_fit", counted)
    sealed_x, sealed_y = Sealed(test_x, fits), Sealed(test_y, fits)
    result = linear_evaluation(x, y, sealed_x, sealed_y, penalties=[1e-3, 1e-2, 1e-1])
    assert fits["done"] == 4
    assert (sealed_x.readings, sealed_y.readings) == (1, 1)
    assert result.accuracy == np.mean(result.predictions == test_y)


def test_result_is_the_refit_on_all_training_data_at_the_best_penalty():
    x, y = clouds(4, per_class=40)
    test_x, test_y = clouds(4, per_class=100, seed=1)
    result = linear_evaluation(x, y, test_x, test_y, seed=3)
    assert result.penalty == best_penalty(result.validation_accuracies)
    assert set(result.validation_accuracies) == set(linear.PENALTIES)
    final = logistic_regression(x, y, result.penalty)
    np.testing.assert_array_equal(result.predictions, final.predict(test_x))
    assert result.accuracy == final.accuracy(test_x, test_y) > 0.6
    assert result.converged


def test_validation_accuracy_is_of_the_held_out_part_with_the_fit_part_s_statistics():
    x, y = clouds(4, per_class=25)
    result = linear_evaluation(x, y, x, y, penalties=[0.1], validation_share=0.4, seed=5)
    fit, validation = stratified_split(y, 0.4, np.random.default_rng(5))
    model = logistic_regression(x[fit], y[fit], 0.1)
    np.testing.assert_allclose(model.mean, x[fit].astype(np.float64).mean(axis=0))
    assert result.validation_accuracies == {0.1: model.accuracy(x[validation], y[validation])}


def test_ties_go_to_the_largest_penalty():
    assert best_penalty({0.1: 0.5, 10.0: 0.8, 1.0: 0.8}) == 10.0


def test_split_is_stratified_disjoint_complete_and_seeded():
    y = np.repeat([0, 1, 2], [10, 40, 1])
    fit, validation = stratified_split(y, 0.2, np.random.default_rng(0))
    assert sorted([*fit, *validation]) == list(range(51))
    assert np.bincount(y[validation], minlength=3).tolist() == [2, 8, 0]
    np.testing.assert_array_equal(validation, stratified_split(y, 0.2, np.random.default_rng(0))[1])
    assert not np.array_equal(validation, stratified_split(y, 0.2, np.random.default_rng(1))[1])


def test_evaluation_is_deterministic():
    x, y = clouds(3, per_class=30)
    first, second = (linear_evaluation(x, y, x, y, seed=1) for _ in range(2))
    assert first.validation_accuracies == second.validation_accuracies
    np.testing.assert_array_equal(first.predictions, second.predictions)


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


def test_a_split_without_validation_images_is_refused():
    with pytest.raises(ValueError, match="no class has images to spare"):
        linear_evaluation(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"validation_share=1\.0"):
        linear_evaluation(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 1]), validation_share=1.0)
