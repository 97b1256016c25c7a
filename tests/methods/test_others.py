"""What tells SimCLR, SimSiam, Barlow Twins, VICReg and supervised training apart, and which losses compare images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol import losses
from byol.conformance import BATCH, batch, forward, make, rows
from byol.names import METHODS

HEADS = {
    "simclr": {"hidden": 6, "out": 4},
    "simsiam": {"hidden": 6, "out": 5, "bottleneck": 3},
    "byol": {"hidden": 6, "out": 4},
    "barlow_twins": {"width": 6},
    "vicreg": {"width": 6},
    "moco": {"hidden": 6, "out": 4},
    "moco_v3": {"hidden": 6, "out": 4},
    "instdisc": {"out": 5},
    "supervised": {},
}


def small(name, **method_args):
    return make(name, **HEADS[name], **method_args)


def gradients(method, loss):
    method.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def largest_gap(found, expected):
    """The largest difference, as a share of the largest value."""
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    return max((found[name] - expected[name]).abs().max().item() for name in expected) / largest


@pytest.mark.parametrize("name", METHODS)
def test_each_view_is_a_pass_of_its_own_but_for_simclr(name):
    method = small(name)
    sizes = []
    method.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    forward(method, *batch(method))
    expected = {"simclr": [2 * BATCH], "moco": [BATCH], "instdisc": [BATCH]}.get(name, [BATCH, BATCH])
    assert sizes == expected
    norms = [part for part in method.encoder.modules() if isinstance(part, _BatchNorm)]
    assert [norm.num_batches_tracked.item() for norm in norms] == [len(expected)] * 2


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_simclr_mixes_the_views_and_scales_the_mean(scale):
    method = small("simclr", scale=scale, temperature=0.3)
    views, given = batch(method)
    network = copy.deepcopy(nn.Sequential(method.encoder, method.projector))
    together = network(torch.cat(views)).chunk(2)
    apart = [network(view) for view in views]
    out = forward(method, views, given)
    assert out.loss.item() == pytest.approx(scale * losses.nt_xent(*together, 0.3).item(), abs=1e-12)
    assert abs(out.loss.item() - scale * losses.nt_xent(*apart, 0.3).item()) > 1e-4
    assert torch.equal(out.embedding, together[0])
    assert out.features.shape == (BATCH, 12)


def test_simsiam_stops_the_gradient_at_what_is_predicted():
    method = small("simsiam")
    views, given = batch(method)
    with torch.no_grad():
        z1, z2 = (copy.deepcopy(nn.Sequential(method.encoder, method.projector))(view) for view in views)
    out = forward(method, views, given)
    found = gradients(method, out.loss)

    def loss_with(stop):
        y = [method.projector(method.encoder(view)) for view in views]
        targets = (z1, z2) if stop else y
        p1, p2 = map(method.predictor, y)
        return -(F.cosine_similarity(p1, targets[1]).mean() + F.cosine_similarity(p2, targets[0]).mean()) / 2

    assert out.loss.item() == pytest.approx(loss_with(True).item(), abs=1e-12)
    assert -1 <= out.loss.item() <= 1
    assert largest_gap(found, gradients(method, loss_with(True))) < 1e-10
    assert largest_gap(found, gradients(method, loss_with(False))) > 1e-3


def test_barlow_twins_weighs_redundancy_as_told():
    views, given = batch(small("barlow_twins"))
    found = {}
    for lambd in (0.0, 0.0051, 1.0):
        method = small("barlow_twins", lambd=lambd)
        z = [copy.deepcopy(nn.Sequential(method.encoder, method.projector))(view) for view in views]
        found[lambd] = forward(method, views, given).loss.item()
        assert found[lambd] == pytest.approx(losses.barlow_twins(*z, lambd).item(), rel=1e-10)
    redundancy = found[1.0] - found[0.0]
    assert found[0.0051] == pytest.approx(found[0.0] + 0.0051 * redundancy, rel=1e-10)


def test_vicreg_weighs_its_terms_as_told():
    views, given = batch(small("vicreg"))
    weights = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (7.0, 5.0, 3.0)]
    found = [forward(small("vicreg", sim=sim, std=std, cov=cov), views, given).loss.item() for sim, std, cov in weights]
    method = small("vicreg")
    z1, z2 = (copy.deepcopy(nn.Sequential(method.encoder, method.projector))(view) for view in views)
    assert found[0] == pytest.approx(F.mse_loss(z1, z2).item(), rel=1e-10)
    assert len({round(value, 6) for value in found[:3]}) == 3
    assert found[3] == pytest.approx(7 * found[0] + 5 * found[1] + 3 * found[2], rel=1e-10)
    assert forward(method, views, given).loss.item() == pytest.approx(
        25 * found[0] + 25 * found[1] + found[2], rel=1e-10
    )


def in_evaluation(method):
    """The method with every batch norm at its running statistics: then no image changes another's output."""
    for part in method.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
    return method


def test_images_without_a_label_change_nothing_in_the_supervised_loss():
    method = in_evaluation(small("supervised"))
    views, given = batch(method)
    labels = given["labels"]
    known = labels >= 0
    assert 0 < known.sum() < BATCH
    logits = [method.classifier(method.encoder(view)) for view in views]
    expected = torch.stack([F.cross_entropy(each[known], labels[known]) for each in logits]).mean()
    found = forward(method, views, given).loss
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    before = gradients(method, found)
    others = [torch.where(known[:, None, None, None], view, -view) for view in views]
    again = forward(method, others, given).loss
    assert again.item() == pytest.approx(found.item(), abs=1e-12)
    assert largest_gap(gradients(method, again), before) < 1e-10
    alone = forward(method, *rows(views, given, known)).loss
    assert alone.item() == pytest.approx(found.item(), abs=1e-12)


def test_without_any_label_the_supervised_loss_is_zero():
    method = small("supervised")
    views, given = batch(method)
    out = forward(method, views, given | {"labels": torch.full((BATCH,), -1)})
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert all((p.grad == 0).all() for p in method.parameters())


def test_the_supervised_embedding_is_the_features():
    method = small("supervised")
    views, given = batch(method)
    out = forward(method, views, given)
    assert out.embedding is out.features
    method.eval()
    assert torch.equal(method.embed(views[0]), method.encoder(views[0]))


VARIANTS = {name: (name, {}) for name in METHODS} | {
    "moco, symmetric": ("moco", {"symmetric": True, "queue": 2 * BATCH}),
    "moco, one group": ("moco", {"groups": 1}),
    "instdisc, negatives": ("instdisc", {"negatives": 16}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loss_compares_images_where_the_method_says_so(name):
    kind, arguments = VARIANTS[name]
    method = in_evaluation(small(kind, **arguments))
    if kind == "instdisc":
        method.partition.fill_(50.0)  # as after the first step, whose whole batch estimates it
    views, given = batch(method)
    given["labels"] = given["labels"].clamp_min(0)
    whole = forward(method, views, given).loss
    parts = (slice(0, BATCH // 2), slice(BATCH // 2, BATCH))
    halves = torch.stack([forward(method, *rows(views, given, part)).loss for part in parts]).mean()
    loss_gap = abs(whole.item() - halves.item()) / abs(whole.item())
    gradient_gap = largest_gap(gradients(method, halves), gradients(method, whole))
    if method.across_batch:
        assert loss_gap > 1e-6
        assert gradient_gap > 1e-3
    else:
        assert loss_gap < 1e-12
        assert gradient_gap < 1e-10


def test_two_halves_are_not_the_batch_where_labels_are_missing_or_nce_begins():
    """The exceptions that docs/defaults.md names."""
    halves = (slice(0, BATCH // 2), slice(BATCH // 2, BATCH))

    def gap(method, given):
        whole = forward(method, views, given).loss
        parts = torch.stack([forward(method, *rows(views, given, half)).loss for half in halves])
        return abs(whole - parts.mean()).item(), abs(whole - (parts * weights).sum()).item()

    method = in_evaluation(small("supervised"))
    views, given = batch(method)
    given["labels"] = torch.where(torch.arange(BATCH) < BATCH - 2, torch.arange(BATCH) % 3, -1)
    weights = torch.tensor([BATCH / 2, BATCH / 2 - 2], dtype=torch.float64) / (BATCH - 2)
    plain, weighted = gap(method, given)
    assert plain > 1e-4
    assert weighted < 1e-12
    assert gap(method, given | {"labels": torch.arange(BATCH) % 3})[0] < 1e-12

    method = in_evaluation(small("instdisc", negatives=16))
    views, given = batch(method)
    assert gap(method, given)[0] > 1e-4
    method.partition.fill_(50.0)
    assert gap(method, given)[0] < 1e-12
