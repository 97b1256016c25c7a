"""The protocol of linear evaluation against what it must do, and against what it must not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from byol.evaluate import linear, logistic
from byol.evaluate.linear import (
    PENALTIES,
    best_penalty,
    fit_linear,
    linear_evaluation,
    mean_penalty,
    stratified_split,
)
from byol.evaluate.logistic import CHOICE, Effort, logistic_regression

FEW = tuple(np.logspace(-3, 3, 4))


def clouds(num_classes, per_class, seed=0, spread=3.0):
    """Overlapping Gaussian classes."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(num_classes), per_class)
    centres = np.random.default_rng(99).normal(size=(num_classes, 12))
    return centres[y] + spread * generator.normal(size=(len(y), 12)), y


def test_penalties_are_the_published_45():
    assert len(PENALTIES) == 45
    assert (PENALTIES[0], PENALTIES[-1]) == pytest.approx((1e-6, 1e5))
    steps = np.diff(np.log(PENALTIES))
    np.testing.assert_allclose(steps, steps[0])


def test_penalty_of_a_sum_by_hand():
    # x = -1, 1 with labels 0, 1; by symmetry W = (-u, u), b = 0, and the sum of losses + penalty / 2 * |W|^2 is
    # 2 log(1 + exp(-2u)) + penalty u^2. Its derivative is zero where penalty = 2 sigmoid(-2u) / u.
    # For u = log(3) / 2: sigmoid(-log 3) = 1/4, penalty = 1 / log 3.
    x, y = np.array([[-1.0], [1.0]]), np.array([0, 1])
    model = logistic_regression(x, y, mean_penalty(1 / np.log(3), len(y)))
    np.testing.assert_allclose(model.weight, [[-np.log(3) / 2], [np.log(3) / 2]], rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.3, 30.0])
def test_penalty_is_the_inverse_of_scikit_learn_s_c(penalty):
    x, y = clouds(4, per_class=50)
    model = fit_linear(x, y, penalties=[penalty]).classifier
    theirs = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=10_000).fit((x - model.mean) / model.std, y)
    np.testing.assert_allclose(model.weight, theirs.coef_, rtol=1e-3, atol=1e-4)


def test_fits_of_the_choice_are_to_the_fit_part_at_the_same_penalty():
    x, y = clouds(3, per_class=30)
    fit, validation = stratified_split(y, 0.5, np.random.default_rng(0))
    seen = []

    def score(labels, predictions):
        seen.append(predictions)
        return float((labels == predictions).mean())

    found = fit_linear(x, y, penalties=FEW, split=(fit, validation), score=score)
    for penalty, predictions in zip(sorted(FEW, reverse=True), seen, strict=True):
        theirs = LogisticRegression(C=1 / penalty, tol=1e-6, max_iter=10_000)
        mean, std = x[fit].mean(axis=0), x[fit].std(axis=0)
        theirs.fit((x[fit] - mean) / std, y[fit])
        np.testing.assert_array_equal(predictions, theirs.predict((x[validation] - mean) / std))
        assert found.validation_scores[penalty] == (predictions == y[validation]).mean()
    assert len(set(found.validation_scores.values())) > 1


def test_score_chooses_the_penalty():
    # A strong penalty finds no image of the rare class, which costs little accuracy and half of the mean per class.
    generator = np.random.default_rng(3)
    y = (generator.random(600) < 0.1).astype(int)
    x = generator.normal(size=(600, 60)) + y[:, None] * 0.2
    weak, strong = penalties = (1e-2, 1e5)
    assert fit_linear(x, y, penalties=penalties).penalty == strong
    assert fit_linear(x, y, penalties=penalties, score=balanced_accuracy_score).penalty == weak


def test_a_split_is_kept_to():
    x, y = clouds(3, per_class=30)
    y[y == 2] += 1
    fit, validation = np.arange(0, 60), np.arange(60, 90)  # the last class is in no fit of the choice
    found = fit_linear(x, y, penalties=[1.0], split=(fit, validation))
    assert found.validation_scores == {1.0: 0.0}
    assert found.classifier.classes.tolist() == [0, 1, 3]


@pytest.mark.parametrize("split", [([0, 1, 2], [2, 3]), ([], [0, 1]), ([0, 1], [])])
def test_a_split_that_is_none_is_refused(split):
    x, y = clouds(2, per_class=2)
    with pytest.raises(ValueError, match="give two parts"):
        fit_linear(x, y, split=tuple(np.array(part, dtype=np.int64) for part in split))


def test_a_score_that_is_not_finite_is_refused():
    x, y = clouds(2, per_class=10)
    with pytest.raises(ValueError, match="not finite"):
        fit_linear(x, y, penalties=[1.0], score=lambda labels, predictions: float("nan"))


def test_a_streamed_fit_chooses_and_predicts_as_the_one_in_memory(tmp_path, monkeypatch):
    x, y = clouds(4, per_class=200)
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    kept = fit_linear(np.array(on_disk), y, penalties=FEW)
    monkeypatch.setattr(logistic, "STREAM_IMAGES", 300)
    monkeypatch.setattr(logistic, "BLOCK_IMAGES", 64)
    streamed = fit_linear(on_disk, y, penalties=FEW)
    assert (streamed.penalty, streamed.converged) == (kept.penalty, True)
    np.testing.assert_array_equal(streamed.classifier.predict(on_disk), kept.classifier.predict(on_disk))
    again = fit_linear(on_disk, y, penalties=FEW)
    np.testing.assert_array_equal(again.classifier.weight, streamed.classifier.weight)


@pytest.mark.parametrize("cut", ["CHOICE", "FINAL"])
def test_a_fit_cut_short_is_reported(cut, monkeypatch):
    x, y = clouds(3, per_class=40)
    assert linear_evaluation(x, y, x, y, penalties=[1e-2]).converged
    monkeypatch.setattr(linear, cut, Effort(1e-6, 2, np.float64))
    assert not linear_evaluation(x, y, x, y, penalties=[1e-2]).converged


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
    original = logistic._fit

    def counted(*arguments):
        found = original(*arguments)
        fits["done"] += 1
        return found

    monkeypatch.setattr(logistic, "_fit", counted)
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
    assert set(result.validation_accuracies) == set(PENALTIES)
    final = logistic_regression(x, y, mean_penalty(result.penalty, len(y)))
    np.testing.assert_array_equal(result.predictions, final.predict(test_x))
    assert result.accuracy == final.accuracy(test_x, test_y) > 0.4
    assert result.converged


def test_validation_accuracy_is_of_the_held_out_part_with_the_fit_part_s_statistics():
    x, y = clouds(4, per_class=25)
    result = linear_evaluation(x, y, x, y, penalties=[0.1], validation_share=0.4, seed=5)
    fit, validation = stratified_split(y, 0.4, np.random.default_rng(5))
    model = logistic_regression(x[fit], y[fit], 0.1 / len(fit), effort=CHOICE)
    np.testing.assert_allclose(model.mean, x[fit].mean(axis=0))
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


def test_a_split_without_validation_images_is_refused():
    with pytest.raises(ValueError, match="no class has images to spare"):
        linear_evaluation(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"validation_share=1\.0"):
        linear_evaluation(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 1]), validation_share=1.0)
