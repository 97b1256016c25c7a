"""Scores against scikit-learn and by hand; intervals against what is known of them."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
)

from byol.evaluate import scores
from byol.evaluate.scores import (
    accuracy,
    average_precision_11,
    confusion,
    difference,
    interval,
    macro_f1,
    map_11,
    mean_per_class,
)


def predicted(num=300, num_classes=5, share=0.6, seed=0):
    """Unbalanced labels, of which class 1 is missing, and predictions, of which class 3 is."""
    generator = np.random.default_rng(seed)
    y = generator.choice([0, 2, 3, 4], size=num, p=[0.5, 0.3, 0.15, 0.05])
    p = np.where(generator.random(num) < share, y, generator.integers(0, num_classes, num))
    return y, np.where(p == 3, 1, p)


def ranked(num=60, num_classes=3, seed=0):
    """Targets in {1, 0, -1} and scores with many ties."""
    generator = np.random.default_rng(seed)
    targets = generator.choice([1, 0, -1], size=(num, num_classes), p=[0.3, 0.6, 0.1])
    return targets, np.round(generator.normal(size=targets.shape) + (targets == 1), 1)


def f1_macro(y, p):
    return f1_score(y, p, average="macro")


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(accuracy, accuracy_score), (mean_per_class, balanced_accuracy_score), (macro_f1, f1_macro)],
)
def test_scores_equal_scikit_learn_s(ours, theirs):
    for seed in range(5):
        y, p = predicted(seed=seed)
        assert ours(y, p) == pytest.approx(theirs(y, p), rel=1e-12)


def test_mean_per_class_by_hand():
    # Class 0: 3 of 4. Class 2: 1 of 2. Class 1 is nobody's: its one prediction is only an error of class 2.
    y, p = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 2, 2, 1])
    assert mean_per_class(y, p) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert accuracy(y, p) == pytest.approx(4 / 6)


def test_confusion_has_true_classes_in_rows():
    y, p = predicted()
    np.testing.assert_array_equal(confusion(y, p, 6), confusion_matrix(y, p, labels=range(6)))
    with pytest.raises(ValueError, match="num_classes=4 must be above"):
        confusion(y, p, 4)


def test_eleven_point_average_precision_by_hand():
    # Retrieved in the order 1 0 1 0 0 1 0 0, that is precision 1, 2/3, 1/2 at recall 1/3, 2/3, 1: the highest at
    # recalls 0, .1, .2, .3 is 1, at .4, .5, .6 is 2/3, at .7, .8, .9, 1 is 1/2.
    target, score = np.array([1, 0, 1, 0, 0, 1, 0, 0]), -np.arange(8.0)
    value = average_precision_11(target, score)
    assert value == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11)
    # The mean of precision over positives (all points), and the area under the curve by trapezoids, are others.
    assert average_precision_score(target, score) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    precision, recall, _ = precision_recall_curve(target, score)
    area = -np.trapezoid(precision, recall)
    assert len({round(float(v), 3) for v in (value, average_precision_score(target, score), area)}) == 3


def test_recalls_are_reached_exactly():
    # Ten positives, then ten negatives after the third: recall 0.3 has precision 1, though 3 * 0.1 > 3 / 10 as floats.
    target = np.array([1] * 3 + [0] * 10 + [1] * 7)
    after = [(3 + i) / (13 + i) for i in range(1, 8)]
    expected = (4 * 1 + 7 * max(after)) / 11
    assert average_precision_11(target, -np.arange(20.0)) == pytest.approx(expected, rel=1e-12)


def test_eleven_point_average_precision_equals_scikit_learn_s_curve_also_with_ties():
    for seed in range(20):
        targets, values = ranked(seed=seed)
        target, score = targets[:, 0], values[:, 0]
        precision, recall, _ = precision_recall_curve(target[target >= 0], score[target >= 0])
        precision, recall = precision[:-1], recall[:-1]  # the last point is no retrieval: precision 1 by definition
        expected = np.mean([precision[recall >= tenth / 10 - 1e-9].max() for tenth in range(11)])
        assert average_precision_11(target, score) == pytest.approx(expected, rel=1e-12)


def test_order_of_ties_and_images_left_out_do_not_count():
    targets, values = ranked()
    shuffled = np.random.default_rng(1).permutation(len(targets))
    first = average_precision_11(targets[:, 0], values[:, 0])
    assert average_precision_11(targets[shuffled, 0], values[shuffled, 0]) == first
    best = np.where(targets[:, 0] == -1, 99, values[:, 0])
    assert average_precision_11(targets[:, 0], best) == first
    assert average_precision_11(np.maximum(targets[:, 0], 0), best) < first


def test_map_is_the_mean_over_classes_that_have_a_positive():
    targets, values = ranked()
    targets[:, 1] = np.minimum(targets[:, 1], 0)
    expected = (
        average_precision_11(targets[:, 0], values[:, 0]) + average_precision_11(targets[:, 2], values[:, 2])
    ) / 2
    assert np.isnan(average_precision_11(targets[:, 1], values[:, 1]))
    assert map_11(targets, values) == pytest.approx(expected)
    assert np.isnan(map_11(targets[:, 1:2], values[:, 1:2]))


@pytest.mark.parametrize("metric", [accuracy, mean_per_class, macro_f1, map_11])
def test_a_weight_counts_an_image_that_many_times(metric):
    y, p = ranked() if metric is map_11 else predicted(60)
    weights = np.random.default_rng(3).integers(0, 4, size=(2, 3, len(y)))
    found = metric(y, p, weights)
    assert found.shape == (2, 3)
    for i in np.ndindex(2, 3):
        repeated = np.repeat(np.arange(len(y)), weights[i])
        assert found[i] == pytest.approx(metric(y[repeated], p[repeated]), rel=1e-12)
        assert metric(y, p, weights[i]) == found[i]


def test_classes_and_positives_that_a_resample_lacks_are_left_out_of_its_mean():
    y, p = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert mean_per_class(y, p, np.array([1, 1, 0])) == 0.5
    assert macro_f1(y, p, np.array([1, 0, 0])) == 1
    targets, values = np.array([[1, 0], [0, 1], [0, 0]]), np.array([[0.9, 0.1], [0.1, 0.1], [0.5, 0.9]])
    assert map_11(targets, values, np.array([1, 0, 2])) == 1
    assert np.isnan(map_11(targets, values, np.array([0, 0, 3])))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_interval_of_an_accuracy_over_many_images_is_the_binomial_s(share):
    num = 10_000
    y = np.zeros(num, np.int64)
    p = (np.arange(num) >= share * num).astype(np.int64)
    margin = 1.959964 * np.sqrt(share * (1 - share) / num)
    low, high = interval(accuracy, y, p)
    assert low == pytest.approx(share - margin, abs=0.1 * margin)
    assert high == pytest.approx(share + margin, abs=0.1 * margin)


def test_ends_of_an_interval_are_percentiles_over_resampled_copies():
    y, p = predicted(40)
    drawn = np.random.default_rng(5).integers(40, size=(scores.RESAMPLES, 40))
    found = np.sort([(y[rows] == p[rows]).mean() for rows in drawn])
    assert interval(accuracy, y, p, seed=5) == pytest.approx((found[50], found[-51]), abs=1e-12)


def test_difference_of_classifiers_that_err_alike_is_surer_than_their_intervals():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, 4000)
    a = np.where(generator.random(4000) < 0.7, y, (y + 1) % 10)
    b = np.where(generator.random(4000) < 0.02, (y + 1) % 10, a)  # a with a few more errors
    found = difference(accuracy, y, a, b)
    low_a, high_a = interval(accuracy, y, a)
    low_b, high_b = interval(accuracy, y, b)
    assert found.mean == accuracy(y, a) - accuracy(y, b)
    assert 0 < found.low < found.mean < found.high
    assert low_a < high_b
    # Var = E d^2 - (E d)^2 of the images' differences d.
    d = (a == y).astype(float) - (b == y)
    assert found.high - found.low == pytest.approx(2 * 1.96 * d.std() / np.sqrt(4000), rel=0.1)
    assert found.high - found.low < 0.3 * (high_a - low_a + high_b - low_b) / 2
    assert difference(accuracy, y, a, a) == scores.Difference(0, 0, 0)


def test_copies_within_a_group_widen_the_interval_by_the_root_of_their_number():
    y, p = predicted(500)
    y, p, groups = np.repeat(y, 9), np.repeat(p, 9), np.repeat(np.arange(500) * 7 - 3, 9)
    low, high = interval(accuracy, y, p)
    low_by_group, high_by_group = interval(accuracy, y, p, groups=groups)
    assert high_by_group - low_by_group == pytest.approx(3 * (high - low), rel=0.1)
    assert interval(accuracy, y[::9], p[::9]) == (low_by_group, high_by_group)


def test_a_group_is_drawn_with_all_its_images():
    def sizes(y, predictions, weight=None):
        return weight.sum(axis=-1)

    # Two groups, of 1 and 99 images: two draws hold 2, 100 or 198 images.
    groups = np.array([0] + [1] * 99)
    assert interval(sizes, np.zeros(100), np.zeros(100), groups=groups) == (2, 198)
    assert interval(sizes, np.zeros(100), np.zeros(100)) == (100, 100)


@pytest.mark.parametrize("groups", [None, np.arange(300) % 40])
def test_intervals_follow_from_the_seed_and_not_from_how_many_resamples_fit_memory(groups, monkeypatch):
    y, p = predicted()
    first = interval(macro_f1, y, p, groups=groups, seed=1)
    assert interval(macro_f1, y, p, groups=groups, seed=1) == first
    assert interval(macro_f1, y, p, groups=groups, seed=2) != first
    monkeypatch.setattr(scores, "WEIGHTS_AT_ONCE", 7 * 300)
    assert interval(macro_f1, y, p, groups=groups, seed=1) == first


def test_resamples_without_a_value_are_left_out():
    targets, values = np.array([[1], [0], [0]]), np.array([[0.9], [0.5], [0.1]])
    assert interval(map_11, targets, values) == (1, 1)  # where the one positive was drawn
    with pytest.raises(ValueError, match="no value"):
        interval(map_11, np.minimum(targets, 0), values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(np.array([0, 1]), np.array([0])), "predictions are int64"),
        (lambda: accuracy(np.array([0.0]), np.array([0])), "labels are float64"),
        (lambda: accuracy(np.array([], int), np.array([], int)), "labels are int64"),
        (lambda: mean_per_class(np.array([0, -1]), np.array([0, 1])), "labels hold -1"),
        (lambda: accuracy(np.array([0, 1]), np.array([0, 1]), np.ones(3)), "last axis"),
        (lambda: average_precision_11(np.array([0, 2]), np.zeros(2)), "other numbers"),
        (lambda: average_precision_11(np.zeros(2), np.zeros(2)), "targets are float64"),
        (lambda: average_precision_11(np.array([0, 1]), np.array([0, np.nan])), "NaN"),
        (lambda: map_11(np.zeros((2, 2), int), np.zeros((2, 3))), "use \\[N, K\\]"),
        (lambda: interval(accuracy, np.array([0]), np.array([0])), "1 test image;"),
        (lambda: interval(accuracy, np.zeros(3, int), np.zeros(3, int), groups=np.ones(3, int)), "1 test group"),
        (lambda: interval(accuracy, np.zeros(3, int), np.zeros(3, int), groups=np.ones(2, int)), "3 images"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
