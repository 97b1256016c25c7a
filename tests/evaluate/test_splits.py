"""Splits that keep groups whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byol.data.source import DataError
from byol.evaluate.linear import stratified_split
from byol.evaluate.splits import split


def patients(num_groups=200, num_classes=4, seed=0):
    """Groups of 1 to 20 images, each with a mixture of its own of unbalanced classes, in no order."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 21, num_groups)
    groups = generator.permutation(np.repeat(generator.permutation(1000)[:num_groups], sizes))
    mixtures = generator.dirichlet([2.0, 1.0, 0.5, 0.2][:num_classes], 1000)
    labels = np.array([generator.choice(num_classes, p=mixtures[group]) for group in groups])
    return labels, groups


def test_without_groups_it_is_the_stratified_split():
    labels, _ = patients()
    for ours, theirs in zip(
        split(labels, 0.3, seed=4), stratified_split(labels, 0.3, np.random.default_rng(4)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 8)), min_size=2, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_no_group_is_cut_every_row_is_in_one_part_and_every_class_stays(pairs, share, seed):
    labels, groups = np.array(pairs).T
    try:
        large, small = split(labels, share, seed=seed, groups=groups)
    except DataError:
        # One group, or every group is the only one of a class.
        alone = [{g for y, g in pairs if y == label} for label in set(labels)]
        only = {next(iter(where)) for where in alone if len(where) == 1}
        assert set(groups) == only or len(set(groups)) == 1
        return
    assert not set(groups[large]) & set(groups[small])
    assert np.sort(np.concatenate([large, small])).tolist() == list(range(len(pairs)))
    assert (np.diff(large) > 0).all() and (np.diff(small) > 0).all()
    assert large.dtype == small.dtype == np.int64
    assert len(small)
    assert set(labels[large]) == set(labels)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.35, 0.7])
def test_the_small_part_has_the_share_of_the_images_and_of_each_class(share):
    for seed in range(5):
        labels, groups = patients(seed=seed)
        _, small = split(labels, share, seed=seed, groups=groups)
        assert len(small) / len(labels) == pytest.approx(share, abs=0.01)
        shares = np.bincount(labels[small], minlength=4) / np.bincount(labels)
        np.testing.assert_allclose(shares, share, atol=0.04)


def test_a_rare_class_weighs_as_much_as_a_common_one():
    shares = []
    for seed in range(20):
        labels, groups = patients(seed=seed)
        _, small = split(labels, 0.2, seed=seed, groups=groups)
        shares.append((labels[small] == 3).sum() / (labels == 3).sum())
    # Measured: 0.004, and 0.011 where distances are in images and not in shares of the class.
    assert np.abs(np.array(shares) - 0.2).mean() < 0.007


def test_with_one_class_the_share_is_met_within_half_a_group():
    _, groups = patients()
    _, small = split(np.zeros(len(groups), int), 0.2, seed=0, groups=groups)
    assert abs(len(small) - 0.2 * len(groups)) <= 10


def test_a_large_group_does_not_take_the_small_part():
    groups = np.repeat([0, 1], [90, 10])
    for seed in range(5):
        _, small = split(np.arange(100) % 2, 0.2, seed=seed, groups=groups)
        assert small.tolist() == list(range(90, 100))
    # Both too large: the smaller one.
    groups = np.repeat([0, 1], [60, 40])
    assert split(np.arange(100) % 2, 0.05, seed=0, groups=groups)[1].tolist() == list(range(60, 100))


def test_the_seed_chooses_the_groups():
    labels, groups = patients()
    parts = [split(labels, 0.2, seed=seed, groups=groups)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(parts[0], parts[1])
    assert set(groups[parts[0]]) != set(groups[parts[2]])


def test_groups_that_cannot_be_split_are_refused_in_one_line():
    with pytest.raises(DataError, match="1 group, and a split needs 2"):
        split(np.arange(4) % 2, 0.2, seed=0, groups=np.ones(4, int))
    with pytest.raises(DataError, match="all images of a class"):
        split(np.array([0, 0, 1, 1]), 0.5, seed=0, groups=np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="share=1"):
        split(np.arange(4) % 2, 1, seed=0, groups=np.arange(4))
