"""MoCo v3's loss as a loop over queries and keys, and its key encoder."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from byol.conformance import batch, descend, forward, make, take_step

SMALL = {"hidden": 6, "out": 4, "tau": 0.9}


def direction_by_hand(queries, keys, temperature):
    """The mean over queries of -ln(exp(own) / sum exp), by loops over rows of length 1."""
    total = 0.0
    queries, keys = (F.normalize(rows.detach(), dim=1).tolist() for rows in (queries, keys))
    for i, q in enumerate(queries):
        exponentials = [math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / temperature) for k in keys]
        total -= math.log(exponentials[i] / sum(exponentials))
    return total / len(queries)


def parts(method, views):
    """(queries, keys) of each view, by copies of the networks; both views pass them one after the other."""
    online, target, predictor = map(copy.deepcopy, (method.online(), method.target, method.predictor))
    return [predictor(online(view)) for view in views], [target(view) for view in views]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_a_loop_over_queries_and_keys(temperature):
    method = make("moco_v3", temperature=temperature, **SMALL)
    take_step(method, seed=7, progress=0.0)  # so that keys are not what the online network gives
    views, given = batch(method)
    (q1, q2), (k1, k2) = parts(method, views)
    first, second = direction_by_hand(q1, k2, temperature), direction_by_hand(q2, k1, temperature)
    expected = 2 * temperature * (first + second)
    assert forward(method, views, given).loss.item() == pytest.approx(expected, abs=1e-10)
    swapped = direction_by_hand(q1, k1, temperature) + direction_by_hand(q2, k2, temperature)
    assert abs(first + second - swapped) > 1e-4


def test_keys_are_constants_to_the_gradient():
    method = make("moco_v3", temperature=0.5, **SMALL)
    take_step(method, seed=7, progress=0.0)
    views, given = batch(method)
    _, (k1, k2) = parts(method, views)
    assert not k1.requires_grad
    method.zero_grad()
    forward(method, views, given).loss.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    assert not any(name.startswith("target.") for name in found)
    own = torch.arange(len(k1))
    q1, q2 = (method.predictor(method.online()(view)) for view in views)
    loss = sum(
        F.cross_entropy(F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.5, own) for q, k in ((q1, k2), (q2, k1))
    )
    method.zero_grad()
    loss.backward()  # 2 T = 1
    for name, gradient in found.items():
        assert torch.allclose(gradient, method.get_parameter(name).grad, rtol=1e-8, atol=1e-10), name


@pytest.mark.parametrize(("progress", "decay"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_key_encoder_follows_after_the_step_by_a_rising_decay(progress, decay):
    method = make("moco_v3", **SMALL)
    before = [p.clone() for p in method.target.parameters()]
    out = forward(method, *batch(method))
    out.loss.backward()
    descend(method)
    assert all(torch.equal(p, old) for p, old in zip(method.target.parameters(), before, strict=True))
    method.after_step(progress, [out.detach()])
    for target, old, online in zip(method.target.parameters(), before, method.online().parameters(), strict=True):
        assert torch.allclose(target, decay * old + (1 - decay) * online, rtol=0, atol=1e-12)
    assert method.status(progress)["tau"] == pytest.approx(decay)
