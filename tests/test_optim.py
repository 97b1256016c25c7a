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


def golden_steps(start, gradient, weight_decay, **settings):
    bag = Bag([torch.tensor(start, dtype=torch.float64)])
    optimizer = LARS(parameter_groups([bag], weight_decay=weight_decay), lr=0.0, **settings)
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


def check_golden_lr_in_momentum():
    w, g = [[0.5, -1.0], [2.0, 0.25]], [[0.1, 0.2], [-0.3, 0.4]]
    expected = [0.4988489403, -1.0012417138, 2.0015974693, 0.2463236160]
    assert golden_steps(w, g, 0.1, lr_in_momentum=True) == pytest.approx(expected, abs=1e-9)
    found = golden_steps([0.1, -0.2], [0.01, 0.02], 0.1, lr_in_momentum=True)
    assert found == pytest.approx([0.06138, -0.27724], abs=1e-12)


def test_recorded_steps():
    check_recorded_lars()


def test_golden_values_with_decay():
    check_golden_lars()


def test_biases_and_norms_get_plain_momentum():
    check_golden_excluded()


def test_golden_values_with_the_learning_rate_in_the_momentum():
    check_golden_lr_in_momentum()


def test_at_a_constant_rate_its_place_does_not_matter():
    moved = []
    for inside in (False, True):
        bag = Bag([torch.tensor([[0.5, -1.0]], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)])
        optimizer = LARS(parameter_groups([bag], weight_decay=0.1), lr=0.3, lr_in_momentum=inside)
        for _ in range(3):
            for p in bag.values:
                p.grad = torch.ones_like(p)
            optimizer.step()
        moved.append(torch.cat([p.detach().flatten() for p in bag.values]))
    assert torch.allclose(*moved, rtol=1e-12)


def check_run_decay_reaches_the_optimizer(make_run):
    from byol.networks import make_optimizer

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


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)


def grouped(groups, network):
    """Each group's parameters by name, with what else it says."""
    names = {id(p): name for name, p in network.named_parameters()}
    return [({names[id(p)] for p in g["params"]}, {k: v for k, v in g.items() if k != "params"}) for g in groups]


def test_weights_and_biases_of_constant_and_other_parts_are_four_groups():
    network = TwoParts()
    groups = parameter_groups([network], weight_decay=0.1, bias_lr=0.25, constant=[network.head])
    weight = {"weight_decay": 0.1, "adapt": True, "lr_scale": 1.0}
    bias = {"weight_decay": 0.0, "adapt": False, "lr_scale": 0.25}
    assert grouped(groups, network) == [
        ({"body.0.weight"}, weight | {"constant": False}),
        ({"body.0.bias", "body.1.weight", "body.1.bias"}, bias | {"constant": False}),
        ({"head.weight"}, weight | {"constant": True}),
        ({"head.bias"}, bias | {"constant": True}),
    ]


def test_groups_without_parameters_are_left_out():
    network = TwoParts()
    plain = parameter_groups([network], weight_decay=0.1)
    assert [group["constant"] for group in plain] == [False, False]
    assert [group["lr_scale"] for group in plain] == [1.0, 1.0]
    head = parameter_groups([network.head], weight_decay=0.1, constant=[network.head])
    assert [(group["constant"], group["adapt"]) for group in head] == [(True, True), (True, False)]
    assert len(parameter_groups([network.frozen, nn.Linear(4, 2, bias=False)], weight_decay=0.1)) == 1


def test_all_decay_where_that_is_asked_and_lars_still_adapts_weights_alone():
    groups = parameter_groups([TwoParts()], weight_decay=0.1, decay_all=True)
    assert [(group["weight_decay"], group["adapt"]) for group in groups] == [(0.1, True), (0.1, False)]
    found = golden_steps([2.0], [0.5], 0.1)
    bag = Bag([torch.tensor([2.0], dtype=torch.float64)])
    optimizer = LARS(parameter_groups([bag], weight_decay=0.1, decay_all=True), lr=0.2)
    bag.values[0].grad = torch.tensor([0.5], dtype=torch.float64)
    optimizer.step()
    # Without decay the three steps are plain momentum: u = 0.5, 1, 1.5 at rates 0.2, 0.4, 0.6.
    assert found == pytest.approx([2 - 0.2 * 0.5 - 0.4 * 1.45 - 0.6 * 2.805], abs=1e-12)
    assert bag.values[0].item() == pytest.approx(2 - 0.2 * (0.5 + 0.1 * 2), abs=1e-12)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_what_a_run_says_of_its_groups_reaches_the_optimizer(make_run, name):
    from byol.networks import make_optimizer

    network = nn.Module()
    network.method = TwoParts()
    run = make_run(optimizer=name, weight_decay=0.125, decay_all=True, bias_lr=0.5, constant_lr=("head",))
    groups = make_optimizer(run, network).param_groups
    assert [(g["constant"], g["lr_scale"], g["weight_decay"]) for g in groups] == [
        (False, 1.0, 0.125),
        (False, 0.5, 0.125),
        (True, 1.0, 0.125),
        (True, 0.5, 0.125),
    ]
    plain = make_optimizer(make_run(optimizer=name), network).param_groups
    assert [(g["constant"], g["lr_scale"]) for g in plain] == [(False, 1.0), (False, 1.0)]


def test_the_place_of_the_learning_rate_in_lars_is_the_run_s(make_run):
    from byol.networks import make_optimizer

    for inside in (False, True):
        groups = make_optimizer(make_run(lr_in_momentum=inside), TwoParts()).param_groups
        assert [group["lr_in_momentum"] for group in groups] == [inside, inside]


def test_a_part_that_does_not_exist_is_refused(make_run):
    from byol.networks import make_optimizer

    network = nn.Module()
    network.method = TwoParts()
    with pytest.raises(ValueError, match="unknown part of byol 'heads'; did you mean head"):
        make_optimizer(make_run(constant_lr=("heads",)), network)
