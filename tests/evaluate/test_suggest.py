"""Suggestions by hand on the circle and on clouds, and their value against fits made one by one."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from byol.evaluate import suggest as module
from byol.evaluate.fewshot import mean_interval
from byol.evaluate.logistic import logistic_regression
from byol.evaluate.suggest import PENALTY, suggest, suggestion_value


def circle(*degrees):
    """Rows at these angles, of different lengths."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.linspace(0.5, 9, len(angles))[:, None]


def clouds(sizes, seed=0, spread=0.3):
    """Clouds around orthogonal directions: (x, the cloud of each row)."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return 3 * (np.eye(len(sizes), 12)[y] + spread * generator.normal(size=(len(y), 12)) / np.sqrt(12)), y


def test_most_typical_images_of_two_clusters_by_hand(monkeypatch):
    # Sums of distances, in degrees: 17, 14, 13, 15, 33 of 0, 1, 2, 4, 10, and 11, 10, 19 of 100, 101, 110.
    monkeypatch.setattr(module, "MOST_CLUSTERS", 2)
    x = circle(100, 0, 1, 2, 101, 4, 10, 110)
    for count in range(2, 9):
        assert suggest(x, count, seed=0).tolist() == [3, 4, 2, 0, 5, 7, 1, 6][:count]


def test_typical_means_near_the_nearest_neighbours_alone(monkeypatch):
    # Nearest to all others is 11 degrees; to its two nearest neighbours 1.5 is, at a mean of 1.5 against 2.
    x = circle(0, 1.5, 3, 9, 11, 13, 15, 17, 19)
    assert suggest(x, 1, seed=0).tolist() == [4]
    monkeypatch.setattr(module, "NEIGHBOURS", 2)
    assert suggest(x, 1, seed=0).tolist() == [1]


def test_equals_a_naive_search_within_each_cluster():
    x, _ = clouds([100, 80, 60], spread=6)
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    random = np.random.RandomState(np.random.MT19937(3))
    clusters = KMeans(12, n_init=1, random_state=random).fit(z).labels_
    expected = []
    for c in sorted(range(12), key=lambda c: -(clusters == c).sum()):
        members = np.flatnonzero(clusters == c).tolist()

        def mean_distance(i, members=members):
            distances = sorted(np.linalg.norm(z[i] - z[j]) for j in members if j != i)[:20]
            return sum(distances) / len(distances)

        expected.append(min(members, key=mean_distance))
    rows = suggest(x, 12, seed=3)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected


def test_clusters_are_of_directions_and_length_says_nothing():
    x, _ = clouds([30, 20, 10])
    scaled = x * np.random.default_rng(1).uniform(0.1, 50, size=(60, 1))
    assert suggest(x, 6, seed=0).tolist() == suggest(scaled, 6, seed=0).tolist()


@pytest.mark.parametrize(("most_exact", "unused"), [(140, "MiniBatchKMeans"), (139, "KMeans")])
def test_each_cluster_gives_one_image_the_largest_first(monkeypatch, most_exact, unused):
    monkeypatch.setattr(module, "MOST_EXACT", most_exact)
    monkeypatch.setattr(module, unused, None)
    x, y = clouds([10, 90, 40])
    assert y[suggest(x, 3, seed=0)].tolist() == [1, 2, 0]


@pytest.mark.parametrize("count", [1, 7, 40])
def test_rows_are_distinct_also_where_images_are_equal(count):
    few = np.repeat(clouds([1, 1, 1])[0], [20, 15, 5], axis=0)
    for x in (clouds([25, 15])[0], few, np.ones((40, 3)), np.zeros((40, 3))):
        rows = suggest(x, count, seed=0)
        assert len(rows) == len(set(rows.tolist())) == count
        assert set(rows.tolist()) <= set(range(40))


def test_equal_images_are_suggested_once_before_any_twice():
    x = np.repeat(clouds([1, 1, 1])[0], [20, 15, 5], axis=0)
    assert suggest(x, 5, seed=0).tolist() == [0, 20, 35, 1, 21]


def test_rows_follow_from_the_seed_whatever_the_threads_and_the_kind_of_array():
    x, _ = clouds([100, 100, 100], spread=4)
    x = x.astype(np.float32)
    state = np.random.get_state()[1].copy()
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            results.append(suggest(x, 30, seed=2**63).tolist())
    results.append(suggest(torch.from_numpy(x), 30, seed=2**63).tolist())
    assert results[0] == results[1] == results[2]
    assert results[0] != suggest(x, 30, seed=1).tolist()
    assert (np.random.get_state()[1] == state).all()


def test_clusters_are_made_on_one_thread(monkeypatch):
    # More threads add up in another order each time; rarely enough for a test of the rows to miss it.
    seen = []
    original = module._clusters

    def recorded(*arguments):
        seen.extend(library["num_threads"] for library in threadpool_info())
        return original(*arguments)

    monkeypatch.setattr(module, "_clusters", recorded)
    with threadpool_limits(2):
        suggest(clouds([20, 20])[0], 2, seed=0)
    assert set(seen) == {1}


def test_of_very_many_images_a_sample_stands_for_all(monkeypatch):
    monkeypatch.setattr(module, "MOST_IMAGES", 40)
    x, cloud = clouds([50, 50])
    compared = []
    original = module._clusters
    monkeypatch.setattr(module, "_clusters", lambda x, *rest: compared.append(len(x)) or original(x, *rest))
    rows = suggest(x, 2, seed=3)
    assert compared == [40]
    assert sorted(cloud[rows]) == [0, 1]
    sample = np.sort(np.random.default_rng(3).choice(100, 40, replace=False))
    assert set(rows) <= set(sample)
    assert rows.tolist() == sample[suggest(x[sample], 2, seed=3)].tolist()
    with pytest.raises(ValueError, match="use 1 to 40"):
        suggest(x, 41, seed=0)


@pytest.mark.parametrize("count", [0, 7])
def test_a_count_out_of_range_is_refused_in_one_line(count):
    with pytest.raises(ValueError, match=rf"count={count} is not allowed; use 1 to 6") as error:
        suggest(np.ones((6, 2)), count, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("features", [np.full((4, 2), np.nan), np.ones(4), np.ones((0, 3))])
def test_what_is_no_table_of_finite_features_is_refused(features):
    with pytest.raises(ValueError, match="features"):
        suggest(features, 1, seed=0)


def test_value_is_that_of_fits_with_the_statistics_of_all_training_features():
    x, y = clouds([40, 40, 20], spread=3)
    test_x, test_y = clouds([40, 40, 20], spread=3, seed=1)
    value = suggestion_value(x, y, test_x, test_y, 6, seed=4, draws=5)
    mean, std = x.mean(axis=0), x.std(axis=0)
    as_it_is = np.zeros(12), np.ones(12)

    def accuracy(rows):
        model = logistic_regression(((x - mean) / std)[rows], y[rows], PENALTY, statistics=as_it_is)
        return model.accuracy((test_x - mean) / std, test_y)

    generator = np.random.default_rng([4, 0])
    by_chance = tuple(accuracy(generator.choice(100, size=6, replace=False)) for _ in range(5))
    assert len(set(by_chance)) > 1
    assert value.suggested == accuracy(suggest(x, 6, seed=4))
    assert value.random_accuracies == by_chance
    assert value.random == pytest.approx(np.mean(by_chance))
    assert value.interval_95 == mean_interval(by_chance)
    assert value.beaten == sum(a < value.suggested for a in by_chance) / 5


def test_one_label_predicts_its_class_for_every_image():
    x, y = clouds([3, 3, 3])
    test_x, test_y = clouds([50, 30, 20], seed=1)
    value = suggestion_value(x, y, test_x, test_y, 1, seed=0, draws=8)
    shares = {0: 0.5, 1: 0.3, 2: 0.2}
    assert value.suggested == shares[y[suggest(x, 1, seed=0)[0]]]
    generator = np.random.default_rng([0, 0])
    assert value.random_accuracies == tuple(shares[y[generator.choice(9, size=1)[0]]] for _ in range(8))


def test_a_suggestion_finds_the_rare_classes_that_chance_misses():
    sizes = [200, 200, 10, 10, 10]
    x, y = clouds(sizes)
    value = suggestion_value(x, y, *clouds([20] * 5, seed=1), 5, seed=0)
    assert value.suggested == 1.0
    assert value.beaten == 1.0
    # Five images hold 3 * 5 * 10 / 430 = 0.35 of the three rare classes on average, and each class is worth 0.2.
    assert value.interval_95[1] < 0.6


def test_labels_as_many_as_images_leave_nothing_to_choose():
    x, y = clouds([20, 20], spread=3)
    value = suggestion_value(x, y, *clouds([20, 20], spread=3, seed=1), 40, seed=0, draws=2)
    assert value.random_accuracies == (value.suggested, value.suggested)
    assert value.beaten == 0.0


def test_one_draw_is_refused():
    x, y = clouds([5, 5])
    with pytest.raises(ValueError, match="draws=1"):
        suggestion_value(x, y, x, y, 2, seed=0, draws=1)
