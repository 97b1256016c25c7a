"""weighted_knn against a naive float64 loop and against votes worked by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from byol.evaluate import knn
from byol.evaluate.knn import weighted_knn


def unit(cosine):
    """The unit vector of the plane with this cosine to (1, 0)."""
    return [cosine, math.sqrt(1 - cosine**2)]


def naive(bank, labels, queries, k, temperature):
    predictions = []
    for q in queries.double().tolist():
        similarities = []
        for row, label in zip(bank.double().tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(q, row, strict=True))
            norms = math.sqrt(sum(a * a for a in q)) * math.sqrt(sum(b * b for b in row))
            similarities.append((dot / norms, label))
        votes: dict[int, float] = {}
        for s, label in sorted(similarities, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(s / temperature)
        predictions.append(max(votes, key=lambda c: votes[c]))
    return torch.tensor(predictions)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (500, 0.2)])
def test_equals_a_naive_loop(k, temperature):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (90,), generator=generator)
    centres = torch.randn(5, 6, generator=generator)
    bank = 3 * (centres[labels] + torch.randn(90, 6, generator=generator))
    queries = torch.randn(40, 6, generator=generator)
    predictions = weighted_knn(bank, labels, queries, k=k, temperature=temperature)
    assert predictions.dtype == torch.int64
    assert predictions.tolist() == naive(bank, labels, queries, k, temperature).tolist()


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.5)])
def test_equals_scikit_learn_s_vote_by_cosine_distance(k, temperature):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 6, (400,), generator=generator)
    centres = torch.randn(6, 10, generator=generator)
    bank = 2 * (centres[labels] + 1.5 * torch.randn(400, 10, generator=generator))
    queries = torch.randn(150, 10, generator=generator)
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(bank.double().numpy(), labels.numpy())
    predictions = weighted_knn(bank, labels, queries, k=k, temperature=temperature)
    assert predictions.tolist() == theirs.predict(queries.double().numpy()).tolist()


def test_one_near_neighbour_outvotes_two_far_ones_at_low_temperature():
    # exp(1 / 0.07) against 2 exp(0.9 / 0.07): the ratio is exp(0.1 / 0.07) / 2 = 2.09. At 0.2 it is 0.82.
    bank = torch.tensor([unit(1.0), unit(0.9), [0.9, -math.sqrt(1 - 0.81)]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[5.0, 0.0]])
    assert weighted_knn(bank, labels, query, k=3, temperature=0.07).tolist() == [0]
    assert weighted_knn(bank, labels, query, k=3, temperature=0.2).tolist() == [1]


def test_rows_beyond_the_k_nearest_have_no_vote():
    bank = torch.tensor([unit(0.99), unit(0.5), unit(0.5), unit(0.5)])
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert weighted_knn(bank, labels, query, k=2, temperature=10.0).tolist() == [0]
    assert weighted_knn(bank, labels, query, k=4, temperature=10.0).tolist() == [1]


def test_a_tie_goes_to_the_lowest_class():
    bank = torch.tensor([[1.0, 0.0]] * 3)
    labels = torch.tensor([2, 1, 3])
    assert weighted_knn(bank, labels, torch.tensor([[1.0, 0.0]])).tolist() == [1]


def test_labels_may_be_any_numbers():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert weighted_knn(bank, torch.tensor([20_231_115, 7]), bank, k=1).tolist() == [20_231_115, 7]


def test_chunks_do_not_change_predictions(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    bank, queries = torch.randn(50, 8, generator=generator), torch.randn(33, 8, generator=generator)
    labels = torch.arange(50) % 4
    whole = weighted_knn(bank, labels, queries)
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", 50 * 7)
    assert torch.equal(weighted_knn(bank, labels, queries), whole)


def test_a_very_low_temperature_does_not_overflow():
    bank = torch.tensor([unit(0.9), unit(0.8), unit(0.8)])
    labels = torch.tensor([1, 0, 0])
    assert weighted_knn(bank, labels, torch.tensor([[1.0, 0.0]]), temperature=1e-4).tolist() == [1]


def test_no_queries_give_no_predictions():
    assert weighted_knn(torch.ones(2, 3), torch.tensor([0, 1]), torch.empty(0, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"bank_labels": torch.tensor([0, 1])}, "3 rows and 2 labels"),
        ({"bank_labels": torch.tensor([0, -1, 1])}, "a label is -1"),
        ({"queries": torch.ones(1, 3)}, r"\[1, 3\]"),
    ],
)
def test_what_cannot_be_computed_is_refused(arguments, message):
    given = {"bank": torch.ones(3, 2), "bank_labels": torch.tensor([0, 1, 2]), "queries": torch.ones(1, 2)}
    with pytest.raises(ValueError, match=message):
        weighted_knn(**(given | arguments))
