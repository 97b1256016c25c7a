"""Few-shot evaluation: its draws, its interval, and what it may read."""

import numpy as np
import pytest
import scipy.stats

from byol.evaluate import fewshot, logistic
from byol.evaluate.fewshot import draw_shots, fewshot_evaluation, mean_interval
from byol.evaluate.linear import best_penalty
from byol.evaluate.logistic import logistic_regression

TWO = (0.1, 1.0)
"""Penalties to choose from: the default seven take longer and show no more."""


def clouds(per_class=30, seed=0):
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), per_class)
    centres = np.random.default_rng(99).normal(size=(3, 8))
    return (centres[y] + 1.5 * generator.normal(size=(len(y), 8))) * 7 + 2, y


def test_draws_hold_each_class_equally_and_no_image_twice():
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5, 9, 30]))
    for sample in draw_shots(y, 5, 10, np.random.default_rng(0)):
        assert np.bincount(y[sample]).tolist() == [5, 5, 5]
        assert len(set(sample)) == 15


def test_same_seed_gives_the_same_draws_and_another_seed_others():
    _, y = clouds()
    samples = [draw_shots(y, 4, 3, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])
    assert len({tuple(sorted(sample)) for sample in samples[0]}) == 3


def test_same_seed_gives_the_same_result():
    x, y = clouds()
    test_x, test_y = clouds(seed=1)
    first, second, other = (fewshot_evaluation(x, y, test_x, test_y, draws=3, seed=s, penalties=TWO) for s in (0, 0, 1))
    assert first == second
    assert first.accuracies != other.accuracies


def test_draws_do_not_depend_on_how_the_penalty_came_about():
    x, y = clouds()
    test_x, test_y = clouds(seed=1)
    chosen = fewshot_evaluation(x, y, test_x, test_y, draws=3, penalties=TWO)
    given = fewshot_evaluation(x, y, test_x, test_y, draws=3, penalty=chosen.penalty)
    assert given.accuracies == chosen.accuracies
    assert given.validation_accuracies == {}
    assert chosen.penalty == best_penalty(chosen.validation_accuracies)
    assert set(chosen.validation_accuracies) == set(TWO)


def test_each_draw_is_a_fit_with_the_statistics_of_all_training_features():
    x, y = clouds()
    test_x, test_y = clouds(seed=1)
    result = fewshot_evaluation(x, y, test_x, test_y, shots=3, draws=5, seed=2, penalty=0.1)
    samples = draw_shots(y, 3, 5, np.random.default_rng([2, 0]))
    standardised, test_standardised = (
        (x - x.mean(axis=0)) / x.std(axis=0),
        (test_x - x.mean(axis=0)) / x.std(axis=0),
    )
    as_it_is = np.zeros(8), np.ones(8)
    expected = [
        logistic_regression(standardised[s], y[s], 0.1, statistics=as_it_is).accuracy(test_standardised, test_y)
        for s in samples
    ]
    assert result.accuracies == tuple(expected)
    assert result.accuracy == pytest.approx(np.mean(expected))
    assert result.converged


def test_interval_is_student_s():
    values = np.random.default_rng(0).normal(0.7, 0.05, size=20)
    expected = scipy.stats.t.interval(0.95, df=19, loc=values.mean(), scale=scipy.stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, rel=1e-12)


def test_interval_of_two_values_by_hand():
    # s = 0.1 * sqrt 2, s / sqrt 2 = 0.1, and t_{0.975, 1} = tan(0.475 pi) = 12.7062.
    low, high = mean_interval([0.4, 0.6])
    assert (low, high) == pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-5)


def test_result_carries_the_interval_of_its_accuracies():
    x, y = clouds()
    result = fewshot_evaluation(x, y, *clouds(seed=1), draws=3, penalty=0.1)
    assert result.interval == mean_interval(result.accuracies)


class Sealed:
    """Data that may be read only once `open` holds."""

    open = False

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        assert Sealed.open, "the test data were read before the last fit"
        return np.asarray(self.array, dtype=dtype)


def test_test_data_are_read_after_the_last_fit(monkeypatch):
    monkeypatch.setattr(Sealed, "open", False)
    remaining = fewshot.VALIDATION_DRAWS * 2 + 4
    original = logistic._fit

    def counted(*arguments):
        nonlocal remaining
        remaining -= 1
        monkeypatch.setattr(Sealed, "open", remaining == 0)
        return original(*arguments)

    monkeypatch.setattr(logistic, "_fit", counted)
    test_x, test_y = clouds(seed=1)
    fewshot_evaluation(*clouds(), Sealed(test_x), Sealed(test_y), draws=4, penalties=TWO)
    assert remaining == 0


def test_penalty_is_chosen_on_images_that_no_classifier_of_the_choice_was_fitted_to(monkeypatch):
    x, y = clouds()
    x[:, 0] = np.arange(len(y))  # names the image
    fitted, scored = set(), set()
    original = fewshot.logistic_path

    def recorded(features, labels, penalties, **rest):
        fitted.update(features[:, 0])
        return [(penalty, Recorder(model)) for penalty, model in original(features, labels, penalties, **rest)]

    class Recorder:
        converged = True

        def __init__(self, model):
            self.model = model

        def predict(self, features, rows):
            scored.update(features[rows, 0])
            return self.model.predict(features, rows)

    monkeypatch.setattr(fewshot, "logistic_path", recorded)
    fewshot_evaluation(x, y, *clouds(seed=1), draws=2, penalties=TWO)
    assert fitted
    assert len(scored) == 18
    assert not fitted & scored


def test_a_class_with_too_few_images_is_refused_in_one_line():
    x, y = clouds(per_class=10)
    x, y = x[:-7], y[:-7]
    with pytest.raises(ValueError, match=r"class 2 has 3 training images; shots=5") as error:
        fewshot_evaluation(x, y, x, y, shots=5)
    assert "\n" not in str(error.value)


def test_a_class_with_exactly_enough_images_stays_whole_while_the_penalty_is_chosen():
    x, y = clouds(per_class=10)
    x, y = x[:-5], y[:-5]
    assert fewshot_evaluation(x, y, x, y, shots=5, draws=2, penalties=TWO).shots == 5


@pytest.mark.parametrize(("arguments", "message"), [({"draws": 1}, "draws=1"), ({"shots": 0}, "shots=0")])
def test_numbers_out_of_range_are_refused(arguments, message):
    x, y = clouds(per_class=5)
    with pytest.raises(ValueError, match=message):
        fewshot_evaluation(x, y, x, y, **arguments)


def test_no_images_to_spare_asks_for_a_penalty():
    x, y = clouds(per_class=5)
    with pytest.raises(ValueError, match="fix the penalty"):
        fewshot_evaluation(x, y, x, y, shots=5)
    assert fewshot_evaluation(x, y, x, y, shots=5, draws=2, penalty=1.0).penalty == 1.0
