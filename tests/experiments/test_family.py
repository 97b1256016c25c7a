"""The family around BYOL: its losses against recorded values, its ends against the methods that stand there."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from byol import losses
from byol.conformance import CHECKS, batch, descend, forward, make
from byol.export import load
from byol.options import Options
from byol.pipeline import pretrain
from byol.run import Run

FAMILY = "byol.experiments.family:Family"


def golden(k, rows=8, columns=6):
    i, j = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return torch.sin(k + 1.3 * i + 0.7 * j + 0.1 * i * j)


@pytest.mark.parametrize(
    ("alpha", "beta", "objective"),
    [(0.1, 0, -1.9804992999543), (0.1, 1, -4.0130534361678), (0.1, 0.5, -2.9967763680610), (1, 1, -7.8109201845961)],
)
def test_golden_values_of_the_objective(alpha, beta, objective):
    phi, psi, psi_prime = map(golden, (1, 3, 4))
    loss = losses.squared_distance(phi, psi_prime, "l2") + beta * losses.contrast(phi, psi, psi_prime, alpha)
    assert (2 - loss.mean()).item() == pytest.approx(objective, abs=1e-9)


def test_other_normalisations_are_those_of_the_layers_of_that_name():
    p, z = golden(1), golden(4)
    width = p.shape[1] ** 0.5
    layer = torch.nn.LayerNorm(p.shape[1], elementwise_affine=False).double()
    norm = torch.nn.BatchNorm1d(p.shape[1], affine=False).double().train()
    for name, of in (("layer", layer), ("batch", norm), ("none", lambda x: x * width)):
        expected = ((of(p) - of(z)) / width).square().sum(dim=1)
        torch.testing.assert_close(losses.squared_distance(p, z, name), expected)
    assert torch.equal(losses.squared_distance(p, z, "l2"), losses.regression(p, z))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_promises_of_a_method(check):
    check(FAMILY)


def test_with_its_defaults_it_is_byol_to_the_bit():
    byol, family = make("byol"), make(FAMILY)
    for step in range(3):
        views, given = batch(byol, seed=step)
        outs = [forward(method, views, given) for method in (byol, family)]
        assert torch.equal(outs[0].loss, outs[1].loss)
        for method, out in zip((byol, family), outs, strict=True):
            method.zero_grad()
            out.loss.backward()
            descend(method)
            method.after_step(step / 3, [out.detach()])
    state = family.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in byol.state_dict().items())


def _gradients(**arguments):
    method = make(FAMILY, **arguments)
    views, given = batch(method)
    forward(method, views, given).loss.backward()
    return method, {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def test_the_target_without_ema_is_the_online_projection_with_or_without_its_gradient():
    method, held = _gradients(target="stop-gradient", predictor_depth=0)
    _, flowing = _gradients(target="gradient", predictor_depth=0)
    assert method.target is None
    # Without a predictor |z - z'|^2 is symmetric: holding z' still halves the gradient.
    for name, gradient in held.items():
        torch.testing.assert_close(2 * gradient, flowing[name])


def test_negatives_push_other_images_away():
    """Of two images whose views agree, the contrast is smaller the further apart the images are."""
    near = torch.tensor([[1.0, 0.1], [1.0, -0.1]])
    far = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    of_near, of_far = (losses.contrast(x, x, x, 0.1).mean() for x in (near, far))
    assert of_far < of_near
    # Two images: itself in the other view, and the other image in both.
    similarity = F.cosine_similarity(near[:1], near[1:]).item()
    by_hand = 0.2 * torch.tensor([1.0, similarity, similarity]).div(0.1).logsumexp(dim=0)
    assert of_near.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_one_direction_is_half_of_a_symmetric_loss_whose_views_are_equal():
    both, one = make(FAMILY), make(FAMILY, symmetric=False)
    views, given = batch(both)
    same = [views[0], views[0]]
    assert forward(both, same, given).loss.item() == pytest.approx(2 * forward(one, same, given).loss.item())


def test_a_constant_decay_stays(make_run):
    constant, cosine = (make(FAMILY, tau=0.5, tau_schedule=s) for s in ("constant", "cosine"))
    assert [constant.decay(p) for p in (0.0, 0.5, 1.0)] == [0.5, 0.5, 0.5]
    assert [cosine.decay(p) for p in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]


def test_a_teacher_is_the_other_run_s_network_and_stays_it(images, tmp_path):
    args = {"hidden": 16, "out": 8, "tau": 1.0, "tau_schedule": "constant"}
    options = Options(
        method=FAMILY,
        method_args=args,
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        steps=3,
        batch_size=32,
        hold_out=0.0,
    )
    pretrain(images, tmp_path / "first", options)
    taught = replace(options, seed=1, method_args={**args, "teacher": str(tmp_path / "first")})
    pretrain(images, tmp_path / "second", taught)
    from byol import checkpoint

    state = checkpoint.tensors(checkpoint.latest(tmp_path / "second" / "checkpoints"), "module.method.target.module.0.")
    teacher = load(tmp_path / "first").state_dict()
    learned = load(tmp_path / "second").state_dict()
    weights = [name for name in teacher if name.endswith("weight")]
    assert weights and all(torch.equal(state[name], teacher[name]) for name in weights)
    assert not any(torch.equal(learned[name], teacher[name]) for name in weights if "conv" in name)


def test_what_cannot_be_had_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        make(FAMILY, teacher=str(tmp_path))
    with pytest.raises(ValueError, match="needs target='ema'"):
        make(FAMILY, teacher=str(tmp_path), target="gradient")


def test_a_part_may_learn_at_a_multiple_of_the_rate(make_run):
    from byol.networks import build, make_optimizer

    run: Run = make_run(lr_scales={"predictor": 10.0}, optimizer="sgd", bias_lr=2.0)
    networks = build(run)
    scale = {id(p): g["lr_scale"] for g in make_optimizer(run, networks).param_groups for p in g["params"]}
    for name, p in networks.method.named_parameters():
        if p.requires_grad:
            expected = (10.0 if name.startswith("predictor") else 1.0) * (2.0 if p.ndim == 1 else 1.0)
            assert scale[id(p)] == expected, name
    with pytest.raises(ValueError, match="part of byol"):
        make_optimizer(make_run(lr_scales={"predicter": 2.0}), build(run))
