"""Instance discrimination against loops over images and negatives, and the bank against its rule."""

import math

import pytest
import torch

from byol import rng
from byol.conformance import BATCH, NUM_IMAGES, batch, forward, make, take_step

SMALL = {"out": 5, "temperature": 0.5}


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def normalised(a):
    length = math.sqrt(dot(a, a))
    return [x / length for x in a]


def exponentials_by_hand(method, out, given):
    """exp(m_i . v / T) of the image's own row and of those drawn for it, a list for each image."""
    found = []
    for image, embedding in zip(given["ids"].tolist(), out.embedding.tolist(), strict=True):
        v = normalised(embedding)
        drawn = (rng.bits(rng.fold(given["key"], image), method.negatives) % NUM_IMAGES).tolist()
        rows = [method.bank.rows[i].tolist() for i in (image, *drawn)]
        found.append([math.exp(dot(row, v) / method.temperature) for row in rows])
    return found


def nce_by_hand(exponentials, partition):
    total = 0.0
    for own, *drawn in exponentials:
        noise = len(drawn) / NUM_IMAGES
        p = own / partition
        total -= math.log(p / (p + noise + 1e-7))
        for each in drawn:
            total -= math.log(noise / (each / partition + noise + 1e-7))
    return total / len(exponentials)


def partition_by_hand(exponentials):
    every = [x for row in exponentials for x in row]
    return sum(every) / len(every) * NUM_IMAGES


def test_the_estimated_loss_is_a_loop_over_images_and_negatives():
    method = make("instdisc", negatives=8, **SMALL)
    views, given = batch(method)
    out = forward(method, views, given)
    exponentials = exponentials_by_hand(method, out, given)
    assert [len(row) for row in exponentials] == [9] * BATCH
    assert out.loss.item() == pytest.approx(nce_by_hand(exponentials, partition_by_hand(exponentials)), abs=1e-10)


def test_the_partition_is_estimated_by_the_first_step_and_then_fixed():
    method = make("instdisc", negatives=8, **SMALL)
    assert method.partition == 0
    views, given = batch(method)
    out = forward(method, views, given)
    first = partition_by_hand(exponentials_by_hand(method, out, given))
    assert method.partition == 0
    method.after_step(0.0, [out.detach()])
    assert method.partition.item() == pytest.approx(first, rel=1e-12)
    for seed in (1, 2):
        views, given = batch(method, seed=seed)
        out = forward(method, views, given)
        exponentials = exponentials_by_hand(method, out, given)
        assert abs(partition_by_hand(exponentials) / first - 1) > 1e-3
        assert out.loss.item() == pytest.approx(nce_by_hand(exponentials, first), abs=1e-10)
        method.after_step(seed / 3, [out.detach()])
        assert method.partition.item() == pytest.approx(first, rel=1e-12)


def test_the_partition_of_two_micro_batches_is_their_mean():
    method = make("instdisc", negatives=8, **SMALL)
    outs, partitions = [], []
    for seed in (0, 1):
        views, given = batch(method, seed=seed)
        outs.append(forward(method, views, given))
        partitions.append(partition_by_hand(exponentials_by_hand(method, outs[-1], given)))
    method.after_step(0.0, [out.detach() for out in outs])
    assert method.partition.item() == pytest.approx(sum(partitions) / 2, rel=1e-12)


def test_without_negatives_the_loss_is_the_softmax_over_all_images():
    method = make("instdisc", negatives=0, **SMALL)
    views, given = batch(method)
    out = forward(method, views, given)
    rows, total = method.bank.rows.tolist(), 0.0
    for image, embedding in zip(given["ids"].tolist(), out.embedding.tolist(), strict=True):
        v = normalised(embedding)
        exponentials = [math.exp(dot(row, v) / 0.5) for row in rows]
        total -= math.log(exponentials[image] / sum(exponentials))
    assert out.loss.item() == pytest.approx(total / BATCH, abs=1e-10)
    method.after_step(0.0, [out.detach()])
    assert method.partition == 0


@pytest.mark.parametrize("negatives", [0, 8])
@pytest.mark.parametrize("momentum", [0.5, 0.8])
def test_the_bank_changes_after_the_step_in_the_rows_of_its_images_alone(negatives, momentum):
    method = make("instdisc", negatives=negatives, momentum=momentum, **SMALL)
    before = method.bank.rows.clone()
    views, given = batch(method)
    out = forward(method, views, given)
    out.loss.backward()
    assert torch.equal(method.bank.rows, before)
    # The features are those the loss saw, whatever the optimizer does to the weights in between.
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0)
    method.after_step(0.0, [out.detach()])
    expected = before.clone()
    for image, embedding in zip(given["ids"].tolist(), out.embedding.tolist(), strict=True):
        v = normalised(embedding)
        moved = [momentum * m + (1 - momentum) * x for m, x in zip(before[image].tolist(), v, strict=True)]
        expected[image] = torch.tensor(normalised(moved), dtype=torch.float64)
    assert torch.allclose(method.bank.rows, expected, rtol=0, atol=1e-12)
    untouched = torch.ones(NUM_IMAGES, dtype=torch.bool).index_fill(0, given["ids"], False)
    assert torch.equal(method.bank.rows[untouched], before[untouched])


def test_an_image_of_two_micro_batches_counts_with_its_mean():
    method = make("instdisc", **SMALL)
    before = method.bank.rows.clone()
    views, given = batch(method, seed=0)
    others, _ = batch(method, seed=1)
    outs = [forward(method, each, given).detach() for each in (views, others)]
    method.after_step(0.0, outs)
    image, pair = int(given["ids"][3]), [normalised(out.embedding[3].tolist()) for out in outs]
    moved = [(m + (a + b) / 2) / 2 for m, a, b in zip(before[image].tolist(), *pair, strict=True)]
    assert method.bank.rows[image].tolist() == pytest.approx(normalised(moved), abs=1e-12)


@pytest.mark.parametrize("negatives", [0, 8])
def test_no_gradient_flows_to_the_bank(negatives):
    method = make("instdisc", negatives=negatives, **SMALL)
    out = forward(method, *batch(method))
    out.loss.backward()
    assert not method.bank.rows.requires_grad
    assert method.bank.rows.grad is None
    assert "bank.rows" in method.state_dict() and "bank.rows" not in dict(method.named_parameters())
    take_step(method, seed=1, progress=0.0)
    assert not method.bank.rows.requires_grad
