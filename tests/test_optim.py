"""LARS against the authors' recorded steps and golden values with a decay that leaves a mark."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from byol.optim import LARS, parameter_groups

ORACLE = Path(__file__).parent / "oracles/deepmind_ops.npz"


class Bag(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(torch.as_tensor(v)) for v in values])


def check_recorded_lars():
    with np.load(ORACLE) as oracle:
        names = sorted(k.removeprefix("lars|step0|") for k in oracle.files if k.startswith("lars|step0|"))
        bag = Bag([torch.from_numpy(oracle[f"lars|step0|{n}"]).double() for n in names])
        optimizer = LARS(parameter_groups([bag], weight_decay=1.5e-6), lr=3.2)
        for step in range(5):
            for name, p in zip(names, bag.values, strict=True):
                p.grad = torch.from_numpy(oracle[f"lars|grad{step}|{name}"]).double()
            optimizer.step()
            for name, p in zip(names, bag.values, strict=True):
                expected = torch.from_numpy(oracle[f"lars|step{step + 1}|{name}"]).double()
                assert torch.allclose(p, expected, rtol=2e-6, atol=2e-6), (step, name)


def golden_steps(start, gradient, weight_decay):
    bag = Bag([torch.tensor(start, dtype=torch.float64)])
    optimizer = LARS(parameter_groups([bag], weight_decay=weight_decay), lr=0.0)
    for t, lr in enumerate((0.2, 0.4, 0.6)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        bag.values[0].grad = (t + 1) * torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return bag.values[0].detach().flatten().tolist()


def check_golden_lars():
    w, g = [[0.5, -1.0], [2.0, 0.25]], [[0.1, 0.2], [-0.3, 0.4]]
    expected = [0.4983759684, -1.0016125514, 2.0020099492, 0.2449349465]
    assert golden_steps(w, g, 0.1) == pytest.approx(expected, abs=1e-9)
    expected = [0.4989110952, -1.0021763650, 2.0032641864, 0.2456456448]
    assert golden_steps(w, g, 1e-4) == pytest.approx(expected, abs=1e-9)


def check_golden_excluded():
    assert golden_steps([0.1, -0.2], [0.01, 0.02], 0.1) == pytest.approx([0.05274, -0.29452], abs=1e-12)


def test_recorded_steps():
    check_recorded_lars()


def test_golden_values_with_decay():
    check_golden_lars()


def test_biases_and_norms_get_plain_momentum():
    check_golden_excluded()


def check_run_decay_reaches_the_optimizer(make_run):
    from byol.train import make_optimizer

    for name in ("lars", "sgd", "adamw"):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        optimizer = make_optimizer(make_run(optimizer=name, weight_decay=0.125), network)
        decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert len(decays) == len(list(network.parameters()))
        assert all(decays[id(p)] == (0.125 if p.ndim > 1 else 0.0) for p in network.parameters()), name


def test_the_run_s_decay_reaches_weights_only(make_run):
    check_run_decay_reaches_the_optimizer(make_run)


def test_scaling_the_loss_moves_biases_but_not_weights():
    def moved(scale):
        bag = Bag([torch.tensor([[0.5, -1.0]]), torch.tensor([0.1, -0.2])])
        before = [p.detach().clone() for p in bag.values]
        optimizer = LARS(parameter_groups([bag], weight_decay=0.0), lr=0.1)
        for p in bag.values:
            p.grad = scale * torch.ones_like(p)
        optimizer.step()
        return [p.detach() - b for p, b in zip(bag.values, before, strict=True)]

    (weight_1, bias_1), (weight_10, bias_10) = moved(1.0), moved(10.0)
    assert torch.allclose(weight_1, weight_10)
    assert torch.allclose(10 * bias_1, bias_10)


def test_a_parameter_without_gradient_is_left_alone():
    bag = Bag([torch.ones(2, 2), torch.ones(2, 2)])
    bag.values[0].grad = torch.ones(2, 2)
    optimizer = LARS(parameter_groups([bag], weight_decay=0.1), lr=1.0)
    optimizer.step()
    assert torch.equal(bag.values[1], torch.ones(2, 2))
    assert not torch.equal(bag.values[0], torch.ones(2, 2))
