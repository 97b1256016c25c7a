"""The target follows parameters, keeps its own statistics, and gets no gradient."""

import pytest
import torch
from torch import nn

from byol.target import Target


def online():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())


def check_follow():
    network = online()
    target = Target(network, init="independent")
    before = [p.clone() for p in target.module.parameters()]
    target.follow(network, 0.75)
    for own, old, new in zip(target.module.parameters(), before, network.parameters(), strict=True):
        assert torch.allclose(own, 0.75 * old + 0.25 * new, atol=1e-7)


def check_own_statistics():
    network = online()
    target = Target(network, init="copy").train()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    target(x)
    own = target.module[1].running_mean.clone()
    assert not torch.equal(own, network[1].running_mean)
    target.follow(network, 0.0)
    assert torch.equal(target.module[1].running_mean, own)
    assert torch.equal(target.module[0].weight, network[0].weight)


def check_float32_increments():
    network = nn.Linear(64, 64)
    target = Target(network, init="copy")
    with torch.no_grad():
        for p in target.module.parameters():
            p.fill_(1.0)
        for p in network.parameters():
            p.fill_(1.01)
    for _ in range(100):
        target.follow(network, 0.996)
    expected = 1.01 - 0.01 * 0.996**100
    assert target.module.weight.mean().item() == pytest.approx(expected, abs=2e-5)


def test_follow_is_the_moving_average_of_parameters():
    check_follow()


def test_batch_norm_statistics_are_the_target_s_own():
    check_own_statistics()


def test_small_increments_are_not_lost():
    check_float32_increments()


def test_half_precision_weights_are_refused():
    network = nn.Linear(2, 2)
    target = Target(network, init="copy").bfloat16()
    with pytest.raises(TypeError, match="half precision"):
        target.follow(network, 0.9)


def test_initialisation_is_independent_or_a_copy():
    network = online()
    assert torch.equal(Target(network, init="copy").module[0].weight, network[0].weight)
    assert not torch.equal(Target(network, init="independent").module[0].weight, network[0].weight)
    with pytest.raises(ValueError, match="target_init='other'"):
        Target(network, init="other")


def test_no_gradient_reaches_the_target():
    target = Target(online(), init="copy")
    x = torch.randn(4, 3, requires_grad=True)
    assert not target(x).requires_grad
    assert not any(p.requires_grad for p in target.parameters())


def test_in_training_mode_the_output_depends_on_the_batch():
    target = Target(online(), init="copy").train()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(target(x)[:3], target(x[:3]))
