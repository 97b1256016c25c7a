"""Batch norm in groups is torch's on each group, and images are dealt to the groups by what they are."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from byol import parallel, rng
from byol.norm import SharedBatchNorm, dealt, share

SHAPES = {"rows": (12, 5), "images": (12, 5, 3, 2)}


def batch_norm(shape, **settings):
    torch.manual_seed(0)
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], **settings).double().train()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=1.0)
    return norm


def inputs(shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # The groups differ in mean and spread.
    scale = torch.linspace(0.5, 3, len(x), dtype=torch.float64).view(-1, *[1] * (x.ndim - 1))
    return scale * (x + 1)


def output_and_gradients(norm, x):
    """norm(x), and the gradients of a weighted sum with respect to x and the parameters."""
    x = x.clone().requires_grad_()
    y = norm(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    wanted = [x, *norm.parameters()]
    return [y.detach(), *torch.autograd.grad((weights * y).sum(), wanted)]


class Chunked(nn.Module):
    """torch's own batch norm, a copy for each chunk with the parameters in common."""

    def __init__(self, norm, chunks):
        super().__init__()
        self.norm = norm
        self.copies = [copy.deepcopy(norm) for _ in range(chunks)]
        for each in self.copies:
            each.weight, each.bias = norm.weight, norm.bias

    def forward(self, x):
        return torch.cat([each(part) for each, part in zip(self.copies, x.chunk(len(self.copies)), strict=True)])

    def statistics(self, name):
        return torch.stack([getattr(each, name) for each in self.copies]).mean(0)


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_groups_it_is_torch_s_batch_norm_on_each_chunk(shape, groups):
    norm = share(batch_norm(shape), groups)
    chunked = Chunked(batch_norm(shape), groups)
    for seed in range(3):
        for found, expected in zip(
            output_and_gradients(norm, inputs(shape, seed)),
            output_and_gradients(chunked, inputs(shape, seed)),
            strict=True,
        ):
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert torch.allclose(norm.running_mean, chunked.statistics("running_mean"), rtol=1e-12)
        assert torch.allclose(norm.running_var, chunked.statistics("running_var"), rtol=1e-12)
        assert norm.num_batches_tracked == seed + 1
        # Every group goes on from the mean of all.
        for each in chunked.copies:
            each.running_mean, each.running_var = norm.running_mean.clone(), norm.running_var.clone()


@pytest.mark.parametrize("groups", [None, 1])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_group_is_torch_s_batch_norm(shape, groups):
    norm, plain = share(batch_norm(shape), groups), batch_norm(shape)
    for seed in range(2):
        for found, expected in zip(
            output_and_gradients(norm, inputs(shape, seed)),
            output_and_gradients(plain, inputs(shape, seed)),
            strict=True,
        ):
            assert torch.equal(found, expected)
    for name, value in plain.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name


@pytest.mark.parametrize("groups", [None, 3])
def test_in_evaluation_the_running_statistics_are_used(groups):
    norm, plain = share(batch_norm((12, 5)), groups), batch_norm((12, 5))
    norm(inputs((12, 5)))
    plain.load_state_dict(norm.state_dict())
    x = inputs((7, 5), seed=1)
    assert torch.equal(norm.eval()(x), plain.eval()(x))
    assert torch.equal(norm(x)[:2], norm(x[:2]))
    for name, value in plain.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name


def test_without_running_statistics_and_parameters_it_works_in_groups_too():
    settings = {"affine": False, "track_running_stats": False}
    x = inputs((12, 5))
    found = share(batch_norm((12, 5), **settings), 3)(x)
    plain = batch_norm((12, 5), **settings)
    assert torch.equal(found, torch.cat([plain(part) for part in x.chunk(3)]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_timm_s_batch_norm_keeps_its_activation(groups, training):
    torch.manual_seed(0)
    plain = BatchNormAct2d(5).double().train(training)
    nn.init.normal_(plain.bias)
    norm = share(copy.deepcopy(plain), groups)
    x = inputs((12, 5, 3, 2))
    expected = torch.cat([copy.deepcopy(plain)(part) for part in x.chunk(groups or 1)])
    found = norm(x)
    assert isinstance(norm, SharedBatchNorm)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert (found == 0).any() and not (found < 0).any()


def test_sharing_leaves_names_parameters_and_what_is_no_batch_norm():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Sequential(nn.BatchNorm2d(4)))
    before = network.state_dict()
    assert share(network, 2) is network
    assert list(network.state_dict()) == list(before)
    assert all(
        value is before[name] or torch.equal(value, before[name]) for name, value in network.state_dict().items()
    )
    assert [type(part) for part in network[:3]] == [nn.Conv2d, SharedBatchNorm, nn.GroupNorm]
    assert type(network[3][0]) is SharedBatchNorm


def test_those_that_have_groups_keep_them():
    network = nn.Sequential(share(nn.BatchNorm1d(4), 3), nn.BatchNorm1d(4))
    share(network)
    assert [part.groups for part in network] == [3, None]
    share(network, 2)
    assert [part.groups for part in network] == [3, 2]


def test_groups_that_do_not_divide_the_batch_are_refused():
    norm = share(batch_norm((12, 5)), 5)
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(ValueError, match="12 images each do not make 5 equal groups"):
        norm(inputs((12, 5)))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    norm.eval()(inputs((12, 5)))


IDS = torch.tensor([40, 3, 77, 8, 15, 16, 23, 42, 5, 1, 90, 2])


def groups_met(key, order, count=3):
    """Which ids shared a group when images in that order were dealt."""
    met = []

    def network(x):
        met.extend(frozenset(part[:, 0].int().tolist()) for part in x.chunk(count))
        return x

    ids = IDS[order]
    x = torch.stack([ids, 2 * ids], dim=1).double()
    assert torch.equal(dealt(network, x, ids, key), x)
    return set(met)


def test_the_groups_depend_on_key_and_ids_and_not_on_rows():
    straight, other = torch.arange(12), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    first = groups_met(rng.key(0), straight)
    assert first == groups_met(rng.key(0), other)
    assert first != groups_met(rng.key(1), straight)
    assert frozenset().union(*first) == frozenset(IDS.tolist())
    assert first != {frozenset(part.tolist()) for part in IDS.chunk(3)}


def test_any_two_images_meet_as_often_as_chance_has_it():
    met = [groups_met(rng.key(seed), torch.arange(12)) for seed in range(300)]
    for pair in ({40, 3}, {3, 2}, {90, 16}):
        together = sum(any(pair <= group for group in groups) for groups in met)
        # 3 of the 11 others: 82 of 300, with a standard deviation of 7.7.
        assert together == pytest.approx(300 * 3 / 11, abs=30)


def test_what_is_dealt_comes_back_in_order():
    network = nn.Sequential(nn.Linear(5, 4), share(nn.BatchNorm1d(4), 3)).double()
    x, order = inputs((12, 5)), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    found = dealt(network, x, IDS, rng.key(0))
    assert torch.allclose(dealt(network, x[order], IDS[order], rng.key(0)), found[order], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(dealt(network, x, IDS, rng.key(1)), found, atol=1e-3)
    assert not torch.allclose(network(x), found, atol=1e-3)
    network[1].eval()
    assert torch.allclose(dealt(network, x, IDS, rng.key(0)), network(x), rtol=1e-12, atol=1e-12)


def test_a_gradient_passes_through_the_dealing():
    network = nn.Sequential(nn.Linear(5, 4), share(nn.BatchNorm1d(4), 3)).double()
    dealt(network, inputs((12, 5)), IDS, rng.key(0)).square()[0].sum().backward()
    assert network[0].weight.grad.abs().max() > 1e-6


def test_on_one_process_what_is_shared_is_one_s_own():
    x, scalar = torch.randn(6, 3, requires_grad=True), torch.tensor(2.5)
    assert (parallel.world_size(), parallel.rank()) == (1, 0)
    assert parallel.gather(x) is x
    assert parallel.mean(scalar) is scalar
    assert torch.equal(parallel.own(x), x)
