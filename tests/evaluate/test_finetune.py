"""Fine-tuning: against a plain loop in float64, its grids, and who is trained on which images from which weights."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from byol.data.loader import Normalization, load_pixels
from byol.data.open import open_source
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate import finetune as finetune_module
from byol.evaluate.finetune import (
    SEMI,
    SEMI_SMALL,
    TRANSFER,
    TRANSFER_SMALL,
    Grid,
    Point,
    finetune,
    set_batch_norm_momentum,
    train_all,
)
from byol.evaluate.sgd import CROP_FLIP, Input, new_head, seeded

SPEC = EncoderSpec("resnet18", 28, 1, "3x3", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
NORMALIZATION = Normalization((0.13,), (0.31,))
GENTLE = replace(CROP_FLIP, crop_area=(0.6, 1.0), flip=0.0)
SEEN = {"normalization": NORMALIZATION, "size": 28}


def grid(**changes):
    fields = {
        "base_lrs": (0.1, 0.4),
        "weight_decays": (0.0,),
        "lengths": (2,),
        "unit": "epochs",
        "batch_size": 30,
        "slow_batch_norm": False,
    }
    return Grid(**(fields | changes))


@pytest.fixture(scope="module")
def digits():
    """(source, pixels) of 60 digits, 6 of each class."""
    source, pixels, _ = load_pixels(open_source("digits"))
    rows = np.concatenate([np.flatnonzero(source.labels == label)[:6] for label in range(10)])
    return source.subset(rows), pixels[torch.from_numpy(rows)]


FIT, HELD = np.flatnonzero(np.arange(60) % 6 < 4), np.flatnonzero(np.arange(60) % 6 >= 4)


def network():
    torch.manual_seed(0)
    return Encoder(SPEC)


class Small(nn.Module):
    """A convolution with batch norm, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 5, stride=3).double()
        self.norm = nn.BatchNorm2d(4).double()

    def forward(self, x):
        return self.norm(self.conv(x.double())).relu().mean((2, 3))


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], value) for name, value in states[1].items())


def plain_loop(model, loader, lr, decay, steps):
    """v <- 0.9 v + g, w <- w - lr_k (g + 0.9 v), where weights' g has (decay / lr) w added; lr is already scaled."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    model.train()
    for k, batch in enumerate(loader.batches(0, steps)):
        found = model(batch.views[0])
        loss = -found.log_softmax(1)[torch.arange(len(found)), batch.labels].mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rate = lr * (1 + math.cos(math.pi * k / steps)) / 2
        with torch.no_grad():
            for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                g = g + decay / lr * p if p.ndim > 1 else g
                v.mul_(0.9).add_(g)
                p -= rate * (g + 0.9 * v)


def check_plain_loop(source, pixels):
    loader = Input(**SEEN).loader(source, pixels, view=CROP_FLIP, batch_size=24, seed=2)
    with seeded(2):
        start = nn.Sequential(Small(), new_head(torch.empty(1, 4, dtype=torch.float64), 10))
    set_batch_norm_momentum(start.eval(), 200)
    expected, found = copy.deepcopy(start), copy.deepcopy(start)
    plain_loop(expected, loader, 0.2 * 24 / 256, 1e-3, 10)
    train_all(found, loader, Point(0.2, 1e-3, 10), 10, lambda: None)
    without = copy.deepcopy(start)
    train_all(without, loader, Point(0.2, 0.0, 10), 10, lambda: None)
    for name, value in expected.state_dict().items():
        assert (value - found.state_dict()[name]).abs().max() < 1e-12, name
    assert (without[0].conv.weight - found[0].conv.weight).abs().max() > 1e-4
    assert found[0].norm.num_batches_tracked == 10
    assert (found[0].conv.weight - start[0].conv.weight).abs().max() > 1e-3


def test_training_is_a_plain_loop_s_in_float64(digits):
    check_plain_loop(*digits)


@pytest.mark.parametrize(
    ("steps_per_epoch", "decay"),
    # 50,000 images in batches of 256: s = 195.3, 1 - 10/s = 0.9488. At s = 15.7 it would be 0.363: 0.9 is the least.
    [(50_000 / 256, 0.9488), (1000, 0.99), (100, 0.9), (15.7, 0.9), (0.5, 0.9)],
)
def test_batch_norm_decays_as_slowly_as_an_epoch_is_long(steps_per_epoch, decay):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3, momentum=0.3)))
    set_batch_norm_momentum(model, steps_per_epoch)
    assert 1 - model[1].momentum == pytest.approx(decay)
    assert model[2][0].momentum == model[1].momentum


def test_slow_batch_norm_reaches_the_network(digits):
    source, pixels = digits
    given = {"split": (np.arange(60), np.arange(0)), **SEEN}
    one = {"base_lrs": (0.1,), "lengths": (1,), "unit": "steps", "batch_size": 2}
    # 60 images in batches of 2 are 30 steps; torch's own 0.1 is what both have then, and the network here another.
    start = network()
    start.model.bn1.momentum = 0.25
    slow = finetune(start, source, pixels, grid=grid(**one, slow_batch_norm=True), **given)
    plain = finetune(start, source, pixels, grid=grid(**one), **given)
    assert slow.model[0].model.bn1.momentum == 0.1
    assert plain.model[0].model.bn1.momentum == start.model.bn1.momentum == 0.25


def check_points(source, pixels, monkeypatch):
    trained, original = [], train_all

    def recorded(model, loader, point, steps, tick):
        trained.append((loader.source.ids.tolist(), point, steps, copy.deepcopy(model)))
        original(model, loader, point, steps, tick)

    monkeypatch.setattr(finetune_module, "train_all", recorded)
    scored, told = [], []

    def score(true, predicted):
        scored.append((true.tolist(), predicted))
        return {2: 0.8, 3: 0.8}.get(len(scored), 0.1)

    start = network()
    tried = grid(base_lrs=(0.4, 0.1), weight_decays=(0.01, 0.0), lengths=(3, 2), batch_size=25)
    fit = finetune(
        start,
        source,
        pixels,
        grid=tried,
        split=(FIT, HELD),
        score=score,
        progress=lambda done, total: told.append((done, total)),
        **SEEN,
    )
    *candidates, final = trained
    points = [Point(lr, wd, n) for lr in (0.1, 0.4) for wd in (0.0, 0.01) for n in (2, 3)]
    # Of 40 images in batches of 25, 2 epochs are 3 steps and 3 epochs 4; of 60 images, 4 and 7.
    assert [each[:3] for each in candidates] == [(source.ids[FIT].tolist(), p, {2: 3, 3: 4}[p.length]) for p in points]
    assert all(same(each[3], final[3]) and same(each[3][0], start) for each in candidates)
    assert final[:3] == (source.ids.tolist(), points[1], 7)
    assert [true for true, _ in scored] == [source.labels[HELD].tolist()] * 8
    assert list(fit.validation_scores) == points
    assert list(fit.validation_scores.values()) == [0.1, 0.8, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert (fit.point, fit.batch_size, fit.steps) == (points[1], 25, 7)
    assert told == [(done, 28 + 7) for done in range(1, 36)]


def test_every_point_starts_alike_and_the_best_is_trained_anew_on_both_parts(digits, monkeypatch):
    check_points(*digits, monkeypatch)


def test_the_fit_is_the_chosen_point_s_training_and_its_scores_the_model_s(digits):
    source, pixels = digits
    start = network()
    fit = finetune(start, source, pixels, grid=grid(), split=(FIT, HELD), seed=4, **SEEN)
    loader = Input(**SEEN).loader(source, pixels, view=CROP_FLIP, batch_size=30, seed=4)
    with seeded(4):
        expected = nn.Sequential(copy.deepcopy(start), new_head(torch.empty(1, 8), 10))
        train_all(expected, loader, fit.point, 4, lambda: None)
    assert same(fit.model, expected)
    assert not same(fit.model[0], start)
    rows, logits = fit.scores(source, pixels)
    with torch.no_grad():
        plain = expected.eval()(NORMALIZATION(pixels.float() / 255))
    assert (logits.dtype, rows.tolist()) == (np.float32, list(range(60)))
    np.testing.assert_allclose(logits, plain.numpy(), atol=1e-5)


def test_the_network_given_is_not_changed(digits):
    source, pixels = digits
    start = network().train()
    start.model.layer1.eval()
    modes, before = [part.training for part in start.modules()], copy.deepcopy(start)
    finetune(start, source, pixels, grid=grid(slow_batch_norm=True), split=(FIT, HELD), **SEEN)
    assert same(start, before)
    assert [part.training for part in start.modules()] == modes
    assert start.model.bn1.momentum == before.model.bn1.momentum
    assert all(p.grad is None for p in start.parameters())
    assert start.model.conv1.weight.is_contiguous()


def test_the_memory_layout_of_the_network_given_does_not_matter(digits):
    source, pixels = digits
    one = {"grid": grid(base_lrs=(0.1,)), "split": (FIT, np.arange(0)), **SEEN}
    plain = finetune(network(), source, pixels, **one)
    other = finetune(network().to(memory_format=torch.channels_last), source, pixels, **one)
    assert same(plain.model, other.model)
    assert other.model[0].model.layer2[0].conv1.weight.is_contiguous()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(digits):
    source, pixels = digits
    start = nn.Sequential(network(), nn.Dropout(0.5))  # which draws from torch's generator
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        found.append(finetune(start, source, pixels, grid=grid(), split=(FIT, HELD), seed=seed, **SEEN))
        assert torch.equal(state, torch.random.get_rng_state())
    first, again, other = found
    assert same(first.model, again.model)
    assert first.validation_scores == again.validation_scores
    assert not same(first.model, other.model)


def test_fine_tuning_learns_digits_it_has_not_seen(digits):
    source, pixels = digits
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=3)]
    start = nn.Sequential(*layers, nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
    one = grid(base_lrs=(0.8,), lengths=(30,), batch_size=20)
    fit = finetune(start, source, pixels, grid=one, split=(FIT, HELD), view=GENTLE, **SEEN)
    assert fit.validation_scores[fit.point] > 0.4  # chance is 0.1
    rows, logits = fit.scores(source, pixels)
    assert (logits.argmax(1) == source.labels[rows]).mean() > 0.8


def test_parts_without_a_class_or_without_validation_still_work(digits):
    source, pixels = digits
    without_nines = HELD[source.labels[HELD] != 9]
    fit = finetune(nn.Flatten(), source, pixels, grid=grid(), split=(FIT, without_nines), **SEEN)
    assert fit.scores(source, pixels)[1].shape == (60, 10)
    one = grid(base_lrs=(0.1,), batch_size=1024)
    alone = finetune(nn.Flatten(), source, pixels, grid=one, split=(FIT[::4], np.arange(0)), **SEEN)
    # 10 images are one batch, and 2 epochs of them 2 steps.
    assert (alone.validation_scores, alone.batch_size, alone.steps) == ({}, 10, 2)
    with pytest.raises(ValueError, match="choose among 2 settings"):
        finetune(nn.Flatten(), source, pixels, grid=grid(), split=(FIT, np.arange(0)), **SEEN)


def test_a_point_that_diverges_is_not_chosen(digits):
    source, pixels = digits
    fit = finetune(network(), source, pixels, grid=grid(base_lrs=(0.1, 1e30)), split=(FIT, HELD), **SEEN)
    assert math.isnan(fit.validation_scores[Point(1e30, 0.0, 2)])
    assert fit.point == Point(0.1, 0.0, 2)
    with pytest.raises(ValueError, match=r"diverged at base_lr=1e\+30"):
        finetune(network(), source, pixels, grid=grid(base_lrs=(1e30,)), split=(FIT, np.arange(0)), **SEEN)


def test_frozen_parameters_stay_and_images_may_be_decoded(digits):
    source, pixels = digits
    start = network()
    start.model.conv1.requires_grad_(False)
    one = grid(base_lrs=(0.1,))
    fit = finetune(start, source, None, grid=one, split=(FIT, np.arange(0)), **SEEN)
    assert torch.equal(fit.model[0].model.conv1.weight, start.model.conv1.weight)
    assert not torch.equal(fit.model[0].model.layer1[0].conv1.weight, start.model.layer1[0].conv1.weight)
    in_memory = finetune(start, source, pixels, grid=one, split=(FIT, np.arange(0)), **SEEN)
    torch.testing.assert_close(fit.model[1].weight, in_memory.model[1].weight, rtol=0, atol=1e-3)


def test_the_published_grids():
    assert len(SEMI.points()) == 10
    assert {p.base_lr for p in SEMI.points()} == {0.01, 0.02, 0.05, 0.1, 0.005}
    assert (SEMI.lengths, SEMI.unit, SEMI.batch_size, SEMI.weight_decays) == ((30, 50), "epochs", 1024, (0.0,))
    assert len(TRANSFER.points()) == 56
    np.testing.assert_allclose(TRANSFER.base_lrs, np.geomspace(1e-4, 0.1, 7))
    np.testing.assert_allclose(TRANSFER.weight_decays, [0, *np.geomspace(1e-6, 1e-3, 7)])
    assert (TRANSFER.lengths, TRANSFER.unit, TRANSFER.batch_size) == ((20_000,), "steps", 256)
    assert (SEMI.slow_batch_norm, TRANSFER.slow_batch_norm) == (False, True)


@pytest.mark.parametrize(("small", "whole", "num"), [(SEMI_SMALL, SEMI, 3), (TRANSFER_SMALL, TRANSFER, 6)])
def test_small_grids_are_parts_of_the_published_ones(small, whole, num):
    assert len(small.points()) == num
    assert set(small.base_lrs) <= set(whole.base_lrs)
    assert set(small.weight_decays) <= set(whole.weight_decays)
    assert small.slow_batch_norm == whole.slow_batch_norm


def test_the_small_grids_values():
    assert SEMI_SMALL.base_lrs == (0.02, 0.05, 0.1)
    assert SEMI_SMALL.lengths == (50,)
    np.testing.assert_allclose(TRANSFER_SMALL.base_lrs, (1e-3, 1e-2, 1e-1))
    np.testing.assert_allclose(TRANSFER_SMALL.weight_decays, (0, 1e-4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_lrs": (0.1, -0.1)}, "base_lrs"),
        ({"base_lrs": ()}, "base_lrs"),
        ({"weight_decays": (-1e-4,)}, "weight_decays"),
        ({"weight_decays": ()}, "weight_decays"),
        ({"lengths": (0,)}, "lengths"),
        ({"lengths": ()}, "lengths"),
        ({"batch_size": 1}, "batch_size=1"),
    ],
)
def test_grids_that_cannot_be_trained_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        grid(**changes)
    assert "\n" not in str(error.value)
