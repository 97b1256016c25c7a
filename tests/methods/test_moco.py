"""MoCo's order of things: which keys stand in the queue, who made them, and when the key encoder follows."""

import copy

import pytest
import torch

from byol import rng
from byol.conformance import BATCH, batch, forward, make, take_step
from byol.losses import info_nce
from byol.methods import moco as module
from byol.norm import SharedBatchNorm, dealt

SMALL = {"hidden": 6, "out": 4, "groups": 4}


class FollowedByHand:
    """A key encoder of the test's own, which starts as a copy of the online network."""

    def __init__(self, method):
        self.network = copy.deepcopy(method.online()).train()

    @torch.no_grad()
    def keys(self, x, ids, key):
        k = dealt(self.network, x, ids, key)
        return k / k.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def follow(self, method, tau):
        for own, online in zip(self.network.parameters(), method.online().parameters(), strict=True):
            own.copy_(tau * own + (1 - tau) * online)


@pytest.fixture
def negatives_seen(monkeypatch):
    """The queues that the loss was given, in order."""
    seen = []

    def spy(q, k, queue, temperature):
        seen.append(queue.clone())
        return info_nce(q, k, queue, temperature)

    monkeypatch.setattr(module, "info_nce", spy)
    return seen


def test_keys_enter_in_order_made_by_the_weights_of_the_step_before(negatives_seen):
    tau, length = 0.6, 3 * BATCH
    method = make("moco", queue=length, tau=tau, **SMALL)
    by_hand = FollowedByHand(method)
    expected = method.queue.keys.clone()
    for step in range(4):
        views, given = batch(method, seed=step)
        keys = by_hand.keys(views[1], given["ids"], rng.fold(rng.fold(given["key"], 0), 1))
        online = [p.clone() for p in method.online().parameters()]
        take_step(method, seed=step, progress=step / 4)
        # What the queries met is the queue without this step's keys.
        assert torch.equal(negatives_seen[step], expected)
        assert (keys @ negatives_seen[step]).max() < 1 - 1e-6
        start = step * BATCH % length
        expected[:, start : start + BATCH] = keys.T
        assert torch.allclose(method.queue.keys, expected, rtol=0, atol=1e-9)
        assert method.queue.pointer == (start + BATCH) % length
        expected = method.queue.keys.clone()
        # The step moved the online weights, and the keys of the next are made by what follows those.
        assert any((p - old).abs().max() > 1e-3 for p, old in zip(method.online().parameters(), online, strict=True))
        by_hand.follow(method, tau)
        for own, target in zip(by_hand.network.parameters(), method.target.parameters(), strict=True):
            assert torch.allclose(own, target, rtol=0, atol=1e-12)
    assert len(negatives_seen) == 4
    assert method.queue.pointer == BATCH


def test_the_symmetric_variant_enqueues_the_keys_of_both_views(negatives_seen):
    method = make("moco", queue=4 * BATCH, symmetric=True, **SMALL)
    by_hand = FollowedByHand(method)
    before = method.queue.keys.clone()
    views, given = batch(method)
    of_second = by_hand.keys(views[1], given["ids"], rng.fold(rng.fold(given["key"], 0), 1))
    of_first = by_hand.keys(views[0], given["ids"], rng.fold(rng.fold(given["key"], 1), 1))
    out = forward(method, views, given)
    method.after_step(0.0, [out.detach()])
    assert len(negatives_seen) == 2
    assert all(torch.equal(seen, before) for seen in negatives_seen)
    # As in the authors' demo: the keys of the first view, then those of the second.
    expected = torch.cat([of_first.T, of_second.T, before[:, 2 * BATCH :]], dim=1)
    assert torch.allclose(method.queue.keys, expected, rtol=0, atol=1e-9)
    assert method.queue.pointer == 2 * BATCH


def test_the_symmetric_loss_is_the_sum_of_both_directions():
    views, given = batch(make("moco", **SMALL))
    method = make("moco", queue=2 * BATCH, symmetric=True, **SMALL)
    both = forward(method, views, given).loss
    first, _, _, _ = method.contrast(views[0], views[1], given["ids"], rng.fold(given["key"], 0))
    second, _, _, _ = method.contrast(views[1], views[0], given["ids"], rng.fold(given["key"], 1))
    assert both.item() == pytest.approx((first + second).item(), abs=1e-12)
    assert abs((first - second).item()) > 1e-4
    alone = make("moco", queue=2 * BATCH, **SMALL)
    assert forward(alone, views, given).loss.item() == pytest.approx(first.item(), abs=1e-12)


def test_both_micro_batches_are_enqueued_and_the_target_moves_once():
    method = make("moco", queue=4 * BATCH, tau=0.6, **SMALL)
    by_hand = FollowedByHand(method)
    for parameter in method.online().parameters():
        parameter.data.mul_(1.25)
    before = method.queue.keys.clone()
    keys, outs = [], []
    for seed in (0, 1):
        views, given = batch(method, seed=seed)
        keys.append(by_hand.keys(views[1], given["ids"], rng.fold(rng.fold(given["key"], 0), 1)))
        outs.append(forward(method, views, given).detach())
    assert torch.equal(method.queue.keys, before)
    method.after_step(0.0, outs)
    expected = torch.cat([keys[0].T, keys[1].T, before[:, 2 * BATCH :]], dim=1)
    assert torch.allclose(method.queue.keys, expected, rtol=0, atol=1e-9)
    assert method.queue.pointer == 2 * BATCH
    by_hand.follow(method, 0.6)
    for own, target in zip(by_hand.network.parameters(), method.target.parameters(), strict=True):
        assert torch.allclose(own, target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_decay_is_the_same_throughout_the_run(progress):
    method = make("moco", tau=0.75, **SMALL)
    with torch.no_grad():
        for target, online in zip(method.target.parameters(), method.online().parameters(), strict=True):
            target.fill_(0.0)
            online.fill_(1.0)
    method.after_step(progress, [])
    assert all((p == 0.25).all() for p in method.target.parameters())


def test_the_loss_is_that_of_the_queries_with_the_keys_and_the_queue():
    method = make("moco", temperature=0.3, **SMALL)
    views, given = batch(method)
    # Each pass of one network: at first both encoders are the same.
    q, k = (
        FollowedByHand(method).keys(view, given["ids"], rng.fold(rng.fold(given["key"], 0), part))
        for part, view in enumerate(views)
    )
    queue = method.queue.keys / method.queue.keys.norm(dim=0)
    own, others = (q * k).sum(1) / 0.3, q @ queue / 0.3
    expected = -(own.exp() / (own.exp() + others.exp().sum(1))).log().mean()
    assert forward(method, views, given).loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_batch_norm_of_both_encoders_is_in_groups():
    method = make("moco", **SMALL)
    norms = [part for part in method.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 4
    assert all(isinstance(norm, SharedBatchNorm) and norm.groups == 4 for norm in norms)


def test_who_shares_a_group_changes_queries_and_keys():
    found = {}
    for groups in (1, 4):
        for seed in (0, 1):
            method = make("moco", **(SMALL | {"groups": groups}))
            views, given = batch(method)
            out = forward(method, views, given | {"key": rng.key(seed)})
            found[groups, seed] = out.embedding.detach(), out.extras["keys"]
    for part in range(2):
        assert torch.allclose(found[1, 0][part], found[1, 1][part], rtol=0, atol=1e-10)
        assert not torch.allclose(found[4, 0][part], found[4, 1][part], rtol=0, atol=1e-2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_queries_and_keys_are_dealt_anew_each_time(monkeypatch, symmetric):
    used = []

    def spy(network, x, ids, key):
        used.append(tuple(key.tolist()))
        return dealt(network, x, ids, key)

    monkeypatch.setattr(module, "dealt", spy)
    method = make("moco", queue=2 * BATCH, symmetric=symmetric, **SMALL)
    for seed in (0, 1):
        forward(method, *batch(method, seed=seed))
    assert len(used) == len(set(used)) == 2 * (4 if symmetric else 2)
