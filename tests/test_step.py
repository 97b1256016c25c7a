"""What one training step hands to its parts: learning rates to the groups, random keys to the micro-batches."""

import math

import pytest
import torch

from byol import rng
from byol.conformance import batch, make
from byol.data.loader import Batch
from byol.networks import Networks, make_optimizer
from byol.step import train_step


def simsiam_step(run, step):
    """The learning rate of each group after one step, by (weight?, constant?)."""
    networks = Networks(make("simsiam", hidden=6, out=5, bottleneck=3), None)
    optimizer = make_optimizer(run, networks)
    views, given = batch(networks.method)
    micro = [Batch(given["ids"], given["labels"], tuple(views))]
    train_step(run, step, networks, networks.method, optimizer, micro, torch.Tensor.backward)
    parts = {id(p): name.split(".")[1] for name, p in networks.named_parameters()}
    for group in optimizer.param_groups:
        assert {parts[id(p)] == "predictor" for p in group["params"]} == {group["constant"]}
    return {(group["adapt"], group["constant"]): group["lr"] for group in optimizer.param_groups}


@pytest.mark.parametrize(
    ("step", "share", "held"),
    [
        (0, 0, 0),
        (1, 0.25, 0.25),
        (3, 0.75, 0.75),
        (4, 1, 1),
        (12, 0.1 + 0.9 / 2, 1),
        (19, 0.1 + 0.9 * (1 + math.cos(math.pi * 15 / 16)) / 2, 1),
    ],
)
def test_the_rates_of_biases_and_of_constant_parts(make_run, step, share, held):
    run = make_run(
        optimizer="sgd",
        base_lr=16.0,  # 1 at a batch of 16
        bias_lr=0.25,
        constant_lr=("predictor",),
        final_lr=0.1,
        total_steps=20,
        warmup_steps=4,
    )
    assert run.peak_lr == 1
    assert simsiam_step(run, step) == pytest.approx(
        {(True, False): share, (False, False): share / 4, (True, True): held, (False, True): held / 4}
    )


def test_constant_parts_stay_at_the_peak_while_others_drop(make_run):
    run = make_run(base_lr=16.0, constant_lr=("predictor",), lr_drops=(0.5,), total_steps=20, warmup_steps=4)
    assert simsiam_step(run, 15) == pytest.approx(
        {(True, False): 0.1, (False, False): 0.1, (True, True): 1, (False, True): 1}
    )


@pytest.mark.parametrize("step", [0, 1, 19])
def test_without_a_warm_up_constant_parts_are_at_the_peak_from_the_first_step(make_run, step):
    run = make_run(base_lr=16.0, constant_lr=("predictor",), total_steps=20, warmup_steps=0)
    found = simsiam_step(run, step)
    assert found[True, True] == found[False, True] == 1


class Recording(Networks):
    def __init__(self, method):
        super().__init__(method, None)
        self.keys = []

    def forward(self, views, ids, labels, key):
        self.keys.append(tuple(key.tolist()))
        return super().forward(views, ids, labels, key)


def keys_of_steps(run, steps):
    networks = Recording(make("instdisc", out=4))
    optimizer = make_optimizer(run, networks)
    views, given = batch(networks.method)
    micro = [Batch(given["ids"], given["labels"], tuple(views))] * run.accumulate
    for step in steps:
        train_step(run, step, networks, networks.method, optimizer, micro, torch.Tensor.backward)
    return networks.keys


def test_each_micro_batch_has_a_key_named_by_seed_step_and_number(make_run):
    run = make_run(accumulate=3, seed=5)
    found = keys_of_steps(run, (0, 1, 7))
    root = rng.key(5, rng.Purpose.METHOD)
    expected = [rng.fold(rng.fold(root, step), number).tolist() for step in (0, 1, 7) for number in range(3)]
    assert [list(key) for key in found] == expected
    assert keys_of_steps(run, (7,)) == found[6:]
    others = keys_of_steps(make_run(accumulate=3, seed=6), (0, 1, 7))
    assert len({*found, *others}) == 18


def test_the_key_of_a_step_is_what_the_method_s_draws_come_from(make_run):
    drawn = []
    for step in (0, 0, 1):
        networks = Networks(make("moco", hidden=6, out=4, groups=4), None)
        optimizer = make_optimizer(make_run(), networks)
        views, given = batch(networks.method)
        micro = [Batch(given["ids"], given["labels"], tuple(views))]
        found = train_step(make_run(), step, networks, networks.method, optimizer, micro, torch.Tensor.backward)
        drawn.append(found["loss"].item())
    assert drawn[0] == drawn[1] != drawn[2]
