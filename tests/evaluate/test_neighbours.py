"""Neighbours and maps against hand-worked values, brute force and what other methods say."""

import numpy as np
import pytest

from byol.evaluate import maps
from byol.evaluate.maps import draw_map, trust
from byol.evaluate.neighbours import neighbours_of_all


def clusters(num=90, dim=12, of=3, seed=0):
    """Points about `of` directions, and which each belongs to."""
    generator = np.random.default_rng(seed)
    group = np.arange(num) % of
    return (np.eye(of, dim)[group] * 5 + generator.normal(size=(num, dim)) * 0.3).astype(np.float32), group


def test_neighbours_by_hand():
    x = np.array([[1, 0], [2, 0.1], [0, 3], [0.1, 1], [-1, 0]], np.float32)
    found = neighbours_of_all(x, 2)
    assert found.rows[:4].tolist() == [[1, 3], [0, 3], [3, 1], [2, 1]]
    assert found.distances[0, 0] == pytest.approx(1 - 2 / np.sqrt(4.01), abs=1e-6)
    assert (found.method, found.recall) == ("exact", 1.0)


def test_an_image_is_never_its_own_neighbour_among_equal_ones():
    x = np.ones((6, 3), np.float32)
    found = neighbours_of_all(x, 4)
    assert found.rows.shape == (6, 4) and not (found.rows == np.arange(6)[:, None]).any()
    assert np.abs(found.distances).max() < 1e-6
    assert neighbours_of_all(x, 50).rows.shape == (6, 5)


def test_faiss_finds_nearly_all_and_says_how_many():
    x = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    exact = neighbours_of_all(x, 5, exact=True)
    found = neighbours_of_all(x, 5, exact=False)
    share = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact.rows, found.rows, strict=True)])
    assert found.method == "FAISS HNSW" and share > 0.95
    assert found.recall == pytest.approx(share, abs=0.01)  # a sample of a third
    same = found.rows == exact.rows
    assert np.allclose(found.distances[same], exact.distances[same], atol=1e-5)
    assert not (found.rows == np.arange(3000)[:, None]).any()


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_a_map_keeps_groups_apart(method):
    x, group = clusters()
    found = draw_map(x, method)
    assert found.positions.shape == (90, 2) and found.positions.dtype == np.float32
    near = np.argsort(((found.positions[:, None] - found.positions[None]) ** 2).sum(-1), axis=1)[:, 1:6]
    assert (group[near] == group[:, None]).mean() > 0.99
    assert np.array_equal(found.positions, draw_map(x, method).positions)


def test_open_tsne_draws_what_is_too_many_for_scikit_learn(monkeypatch):
    monkeypatch.setattr(maps, "MOST_EXACT", 50)
    monkeypatch.setattr(maps, "MOST_FITTED", 150)
    x, group = clusters(200)
    told = []
    found = draw_map(x, progress=lambda done, total: told.append((done, total)))
    assert found.method.startswith("t-SNE (openTSNE)") and told[-1] == (750, 750)
    near = np.argsort(((found.positions[:, None] - found.positions[None]) ** 2).sum(-1), axis=1)[:, 1:6]
    assert (group[near] == group[:, None]).mean() > 0.99  # also of the fifty that were placed afterwards


def test_few_and_equal_images_have_a_map():
    for x in (np.ones((8, 4), np.float32), np.eye(2, 5, dtype=np.float32), np.eye(4, 1, dtype=np.float32)):
        found = draw_map(x)
        assert found.positions.shape == (len(x), 2) and np.isfinite(found.positions).all()


def test_trustworthiness_by_its_definition():
    """Venna & Kaski 2001, with cosine distances among the features, written out."""
    generator = np.random.default_rng(1)
    x, y, k = generator.normal(size=(40, 6)), generator.normal(size=(40, 2)), 10
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    ranks = np.argsort(np.argsort(1 - unit @ unit.T + np.diag(np.full(40, -9.0)), axis=1), axis=1)  # 0: itself
    plane = ((y[:, None] - y[None]) ** 2).sum(-1) + np.diag(np.full(40, np.inf))
    total = sum(max(ranks[i, j] - k, 0) for i in range(40) for j in np.argsort(plane[i])[:k])
    assert trust(x, y) == pytest.approx(1 - 2 / (40 * k * (2 * 40 - 3 * k - 1)) * total)
    assert trust(x, y) < 0.7 < trust(x[:, :2], unit[:, :2])
    assert trust(x[:20], y[:20]) is None
