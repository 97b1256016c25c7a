"""Linear evaluation by SGD: against a plain NumPy loop, each head against itself alone, and who sees which images."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from byol.data.decode import Unusable
from byol.data.loader import Normalization, load_pixels
from byol.data.open import open_source
from byol.data.source import DataError
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate import sgd
from byol.evaluate.features import extract
from byol.evaluate.sgd import CROP_FLIP, Input, best, fit_sgd_linear, new_head, seeded, train_heads
from byol.views.view import View

SPEC = EncoderSpec("resnet18", 28, 1, "3x3", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
NORMALIZATION = Normalization((0.13,), (0.31,))
SEEN = {"normalization": NORMALIZATION, "size": 28}
STILL = View(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)


@pytest.fixture(scope="module")
def digits():
    """(source, pixels) of 120 digits, 12 of each class."""
    source, pixels, _ = load_pixels(open_source("digits"))
    rows = np.concatenate([np.flatnonzero(source.labels == label)[:12] for label in range(10)])
    return source.subset(rows), pixels[torch.from_numpy(rows)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Encoder(SPEC)


def parts(source, keep=9):
    """Of each class, `keep` rows to fit to and the other rows to choose on."""
    place = np.array([np.sum(source.labels[:row] == label) for row, label in enumerate(source.labels)])
    return np.flatnonzero(place < keep), np.flatnonzero(place >= keep)


class Pixels(nn.Module):
    """Pixels as features, in float64."""

    def forward(self, x):
        return x.flatten(1).double()


def numpy_heads(loader, weight, bias, base_lrs, steps):
    """Softmax regression by Nesterov's momentum in float64: v <- 0.9 v + g, then w <- w - lr (g + 0.9 v)."""
    batches = [(b.views[0].flatten(1).double().numpy(), b.labels.numpy()) for b in loader.batches(0, steps)]
    found = {}
    for base_lr in base_lrs:
        w = np.hstack([weight, bias[:, None]])
        v = np.zeros_like(w)
        for k, (x, y) in enumerate(batches):
            x = np.hstack([x, np.ones((len(x), 1))])
            e = np.exp(x @ w.T)
            g = (e / e.sum(1, keepdims=True) - np.eye(len(w))[y]).T @ x / len(x)
            v = 0.9 * v + g
            w = w - base_lr * len(x) / 256 * (1 + math.cos(math.pi * k / steps)) / 2 * (g + 0.9 * v)
        found[base_lr] = w
    return found


def check_numpy_loop(source, pixels):
    loader = Input(**SEEN).loader(source, pixels, view=CROP_FLIP, batch_size=20, seed=3)
    with seeded(3):
        start = new_head(torch.empty(1, 784, dtype=torch.float64), 10)
    expected = numpy_heads(loader, start.weight.detach().numpy(), start.bias.detach().numpy(), (0.4, 0.05), 15)
    heads = train_heads(Pixels(), loader, start, (0.4, 0.05), 15)
    for base_lr, head in heads.items():
        assert head.weight.dtype == torch.float64
        found = np.hstack([head.weight.detach().numpy(), head.bias.detach().numpy()[:, None]])
        assert np.abs(found - expected[base_lr]).max() < 1e-12
        assert np.abs(found - expected[0.4 if base_lr == 0.05 else 0.05]).max() > 1e-3


def test_heads_are_a_plain_loop_s_in_float64(digits):
    check_numpy_loop(*digits)


def test_a_head_is_bit_for_bit_what_it_is_alone(digits, network):
    loader = Input(**SEEN).loader(*digits, view=CROP_FLIP, batch_size=30, seed=0)
    with seeded(0):
        start = new_head(torch.empty(1, 8), 10)
    together = train_heads(network, loader, start, (0.05, 0.1, 0.2, 0.3, 0.4), 8)
    for base_lr, head in together.items():
        alone = train_heads(network, loader, start, (base_lr,), 8)[base_lr]
        assert torch.equal(head.weight, alone.weight)
        assert torch.equal(head.bias, alone.bias)
    assert not torch.equal(together[0.4].weight, together[0.05].weight)
    with seeded(0):
        assert torch.equal(start.weight, new_head(torch.empty(1, 8), 10).weight)


def test_heads_start_as_the_authors_do_and_leave_torch_s_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with seeded(1):
        head = new_head(torch.empty(1, 400), 50)
    assert torch.equal(before, torch.random.get_rng_state())
    assert head.bias.abs().max() == 0
    # A normal cut at two sigma has 0.8796 of its standard deviation; here sigma is 1 / sqrt(400).
    assert head.weight.std().item() == pytest.approx(0.8796 / 20, rel=0.02)
    assert head.weight.abs().max() <= 2 / 20
    with seeded(2):
        assert not torch.equal(head.weight, new_head(torch.empty(1, 400), 50).weight)


def test_the_network_sees_batches_as_the_encoder_would_and_is_left_as_it_was(digits, network):
    source, pixels = digits
    network.train()
    network.model.layer1.eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    fit = fit_sgd_linear(network, source, pixels, split=parts(source), epochs=1, batch_size=40, **SEEN)
    rows, logits = fit.scores(source, pixels)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    features = extract(network, pixels, mean=NORMALIZATION.mean, std=NORMALIZATION.std, size=None)
    expected = features @ fit.head.weight.T + fit.head.bias
    assert (logits.dtype, logits.shape, rows.tolist()) == (np.float32, (120, 10), list(range(120)))
    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-5)


def test_training_features_are_of_inference_mode(digits, network):
    """Batch norm over a batch of one class would tell that class apart from none."""
    source, pixels = digits
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output, module.training)))
    loader = Input(**SEEN).loader(source, pixels, view=CROP_FLIP, batch_size=30, seed=0)
    train_heads(network.train(), loader, new_head(torch.empty(1, 8), 10), (0.1,), 2)
    assert [training for *_, training in seen] == [False, False]
    network._forward_hooks.clear()
    for batch, (images, features, _) in zip(loader.batches(0, 2), seen, strict=True):
        assert torch.equal(batch.views[0], images)
        with torch.no_grad():
            assert torch.equal(network.eval()(images), features)


def test_the_rate_is_chosen_on_the_validation_part_and_trained_anew_on_both(digits, network, monkeypatch):
    source, pixels = digits
    fit_rows, held_rows = parts(source)
    trained, original = [], sgd.train_heads

    def recorded(network, loader, start, base_lrs, steps, tick):
        trained.append((loader.source.ids.tolist(), list(base_lrs), loader.batch_size, steps))
        return original(network, loader, start, base_lrs, steps, tick)

    monkeypatch.setattr(sgd, "train_heads", recorded)
    labels, told = [], []

    def score(true, predicted):
        labels.append(true.tolist())
        return [0.5, 0.7, 0.7][len(labels) - 1]

    fit = fit_sgd_linear(
        network,
        source,
        pixels,
        split=(fit_rows[::-1], held_rows),
        base_lrs=(0.4, 0.2, 0.1),
        epochs=3,
        batch_size=1024,
        score=score,
        progress=lambda done, total: told.append((done, total)),
        **SEEN,
    )
    assert labels == [source.labels[held_rows].tolist()] * 3
    # 90 images fit: a quarter is 22, and 3 epochs of 90 are 12 batches, of 120 they are 16.
    assert trained == [
        (source.ids[fit_rows].tolist(), [0.1, 0.2, 0.4], 22, 12),
        (source.ids.tolist(), [0.2], 22, 16),
    ]
    assert (fit.batch_size, fit.steps, fit.epochs, fit.base_lr) == (22, 16, 3, 0.2)
    assert fit.validation_scores == {0.1: 0.5, 0.2: 0.7, 0.4: 0.7}
    assert told == [(done, 28) for done in range(1, 29)]
    whole = Input(**SEEN).loader(source, pixels, view=CROP_FLIP, batch_size=22, seed=0)
    with seeded(0):
        start = new_head(torch.empty(1, 8), 10)
    assert torch.equal(original(network, whole, start, (0.2,), 16)[0.2].weight, fit.head.weight)


def test_validation_scores_are_accuracies_of_evaluation_views(digits):
    source, pixels = digits
    fit_rows, held_rows = parts(source)
    given = {"base_lrs": (0.05, 0.4), "epochs": 10, "seed": 1, **SEEN}
    fit = fit_sgd_linear(nn.Flatten(), source, pixels, split=(fit_rows, held_rows), **given)
    for base_lr in given["base_lrs"]:
        alone = fit_sgd_linear(
            nn.Flatten(),
            source.subset(fit_rows),
            pixels[fit_rows],
            split=(np.arange(len(fit_rows)), np.arange(0)),
            **(given | {"base_lrs": (base_lr,)}),
        )
        assert alone.validation_scores == {}
        rows, logits = alone.scores(source.subset(held_rows), pixels[held_rows])
        expected = (logits.argmax(1) == source.labels[held_rows][rows]).mean()
        assert fit.validation_scores[base_lr] == expected > 0.25


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(digits, network):
    source, pixels = digits
    given = {"split": parts(source), "base_lrs": (0.1, 0.3), "epochs": 2, **SEEN}
    first, again, other = (fit_sgd_linear(network, source, pixels, seed=s, **given) for s in (0, 0, 1))
    assert torch.equal(first.head.weight, again.head.weight)
    assert first.validation_scores == again.validation_scores
    assert not torch.equal(first.head.weight, other.head.weight)


def test_another_view_and_images_that_are_decoded(digits):
    source, pixels = digits
    given = {"split": (np.arange(120), np.arange(0)), "base_lrs": (0.1,), "epochs": 1, "view": STILL, **SEEN}
    in_memory = fit_sgd_linear(nn.Flatten(), source, pixels, **given)
    decoded = fit_sgd_linear(nn.Flatten(), source, None, **given)
    flipped = fit_sgd_linear(nn.Flatten(), source, pixels, **(given | {"view": CROP_FLIP}))
    torch.testing.assert_close(decoded.head.weight, in_memory.head.weight, rtol=0, atol=1e-4)
    assert (flipped.head.weight - in_memory.head.weight).abs().max() > 1e-2


class Broken:
    """A listing of which one image cannot be read."""

    def __init__(self, listing, bad):
        self.listing, self.bad = listing, bad

    def read(self, position, channels, reduce=1):
        if position == self.bad:
            raise Unusable("cut off")
        return self.listing.read(position, channels, reduce)

    def name(self, position):
        return self.listing.name(position)


def test_an_unusable_image_has_no_row(digits):
    source, pixels = digits
    fit = fit_sgd_linear(
        nn.Flatten(), source, pixels, split=(np.arange(120), np.arange(0)), base_lrs=(0.1,), epochs=1, **SEEN
    )
    broken = replace(source, listing=Broken(source.listing, int(source.ids[50])))
    rows, logits = fit.scores(broken, None)
    assert rows.tolist() == [row for row in range(120) if row != 50]
    np.testing.assert_allclose(logits, np.delete(fit.scores(source, pixels)[1], 50, axis=0), atol=1e-5)


def test_validation_scores_leave_unusable_images_out(digits):
    source, _ = digits
    fit_rows, held_rows = parts(source)
    broken = replace(source, listing=Broken(source.listing, int(source.ids[held_rows[4]])))
    labels = []
    fit_sgd_linear(
        nn.Flatten(),
        broken,
        None,
        split=(fit_rows, held_rows),
        base_lrs=(0.1,),
        epochs=1,
        score=lambda true, predicted: labels.append((true, predicted)) or 0.5,
        **SEEN,
    )
    ((true, predicted),) = labels
    np.testing.assert_array_equal(true, source.labels[np.delete(held_rows, 4)])
    assert predicted.shape == true.shape


def test_the_highest_score_wins_then_the_smallest_candidate_and_never_one_that_diverged():
    assert best({0.4: 0.9, 0.1: 0.9, 0.2: 0.8, 0.05: math.nan}) == 0.1
    with pytest.raises(ValueError, match="every learning rate"):
        best({0.4: math.nan})


def test_a_rate_that_diverges_is_not_chosen(digits):
    source, pixels = digits
    given = {"split": parts(source), "epochs": 2, **SEEN}
    fit = fit_sgd_linear(nn.Flatten(), source, pixels, base_lrs=(0.1, 3e38), **given)
    assert math.isnan(fit.validation_scores[3e38])
    assert fit.base_lr == 0.1
    alone = fit_sgd_linear(nn.Flatten(), source, pixels, base_lrs=(0.1,), **given)
    assert torch.equal(fit.head.weight, alone.head.weight)
    given["split"] = (np.arange(120), np.arange(0))
    with pytest.raises(ValueError, match="diverged at base_lr=3e"):
        fit_sgd_linear(nn.Flatten(), source, pixels, base_lrs=(3e38,), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_lrs": ()}, r"base_lrs=\[\]"),
        ({"base_lrs": (0.0,)}, r"base_lrs=\[0.0\]"),
        ({"epochs": 0}, "epochs=0"),
        ({"split": (np.arange(4), np.arange(3, 6))}, "in both"),
        ({"split": (np.arange(1), np.arange(3, 6))}, "at least 2"),
        ({"split": (np.arange(9), np.arange(0))}, "5 settings"),
        ({"pixels": torch.zeros(3, 1, 28, 28, dtype=torch.uint8)}, "3 images in memory and 120"),
        ({"network": nn.Identity()}, "pools its features"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(digits, changes, message):
    source, pixels = digits
    given = {"network": nn.Flatten(), "source": source, "pixels": pixels, "split": parts(source), **SEEN} | changes
    with pytest.raises(ValueError, match=message) as error:
        fit_sgd_linear(given.pop("network"), given.pop("source"), given.pop("pixels"), **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "without a label"), (np.r_[np.zeros(119, np.int64), -1], "without a label"), (np.zeros(120, int), "1 cl")],
)
def test_images_without_labels_are_refused(digits, labels, message):
    source, pixels = digits
    with pytest.raises(DataError, match=message):
        fit_sgd_linear(nn.Flatten(), replace(source, labels=labels, classes=None), pixels, split=parts(source), **SEEN)


def test_the_published_settings():
    assert sgd.BASE_LRS == (0.4, 0.3, 0.2, 0.1, 0.05)
    assert (sgd.EPOCHS, sgd.BATCH_SIZE, sgd.MOMENTUM) == (80, 1024, 0.9)
    assert (CROP_FLIP.crop_area, CROP_FLIP.crop_aspect, CROP_FLIP.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (CROP_FLIP.jitter, CROP_FLIP.gray, CROP_FLIP.blur, CROP_FLIP.solarize) == (0, 0, 0, 0)
