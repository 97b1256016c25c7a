"""Wrong versions of BYOL that people write, and the check that catches each: a check nobody can fail proves nothing.

Every check here is the body of a test of the same name elsewhere in this folder; it must pass as things are, and fail
under each of its mutants. docs/fidelity.md shows the table.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import test_encoder
import test_losses
import test_optim
import test_schedules
import test_target
import torch
import torch.nn.functional as F
from methods import test_parity as parity
from torch import nn
from views import test_ops, test_recipes

from byol import losses, networks, online, optim, schedules, target
from byol.methods import Out
from byol.methods import byol as byol_module
from byol.methods.byol import BYOL
from byol.run import Run
from byol.step import train_step as the_step
from byol.views import ops
from byol.views.view import BYOL_T, View


def check_parity(make_run):
    with np.load(parity.ORACLE) as file:
        oracle = {k: file[k] for k in file.files}
    networks = parity.recorded_networks(oracle)
    found = parity.follow_recording(oracle, parity.settings_run(make_run), networks)
    assert parity.disagreements(oracle, *found) == []


CHECKS = {
    "parity: eight recorded steps": check_parity,
    "losses: recorded values": lambda _: test_losses.check_recorded_loss(),
    "losses: golden values": lambda _: test_losses.check_golden_loss(),
    "losses: rows near zero": lambda _: test_losses.check_near_zero_rows(),
    "schedules: recorded decay": lambda _: test_schedules.check_recorded_decay(),
    "schedules: recorded learning rate": lambda _: test_schedules.check_recorded_learning_rate(),
    "optim: golden LARS": lambda _: test_optim.check_golden_lars(),
    "optim: biases and norms": lambda _: test_optim.check_golden_excluded(),
    "optim: the run's decay": test_optim.check_run_decay_reaches_the_optimizer,
    "target: moving average": lambda _: test_target.check_follow(),
    "target: own statistics": lambda _: test_target.check_own_statistics(),
    "target: small increments": lambda _: test_target.check_float32_increments(),
    "encoder: moments": lambda _: test_encoder.check_moments(),
    "heads: shape": lambda _: test_encoder.check_head(),
    "heads: moments": lambda _: test_encoder.check_heads(),
    "views: recorded colour": lambda _: test_ops.check_recorded_colour(),
    "views: golden blur": lambda _: test_ops.check_golden_blur(),
    "views: the method's pair": lambda _: test_recipes.check_byol_pair(),
    "views: application rates": lambda _: test_recipes.check_byol_rates(),
    "views: ranges": lambda _: test_recipes.check_byol_ranges(),
}


def forward_with(**changes):
    """BYOL's forward with parts exchanged."""

    def forward(self, v, v_prime):
        y, y_prime = self.encoder(v), self.encoder(v_prime)
        if changes.get("concatenated"):
            y, y_prime = self.encoder(torch.cat([v, v_prime])).chunk(2)
        z, z_prime = self.projector(y), self.projector(y_prime)
        q, q_prime = self.predictor(z), self.predictor(z_prime)
        if changes.get("one_predictor"):
            q_prime = z_prime
        self.target.train(not changes.get("target_in_eval"))
        with torch.no_grad():
            xi, xi_prime = self.target(v), self.target(v_prime)
            if changes.get("predictor_on_target"):
                xi, xi_prime = self.predictor(xi), self.predictor(xi_prime)
        if changes.get("same_view"):
            xi, xi_prime = xi_prime, xi
        first, second = losses.regression(q, xi_prime), losses.regression(q_prime, xi)
        total = first if changes.get("one_direction") else first + second
        return Out(changes.get("factor", 1.0) * total.mean(), y, z)

    return forward


def lars_with(kind):
    """LARS with one line wrong."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                decay, g = group["weight_decay"], p.grad
                adapt = group["adapt"] or kind == "nothing excluded"
                if kind == "nothing excluded":
                    decay = self.param_groups[0]["weight_decay"]
                u = g + decay * p
                if adapt:
                    norm = u.norm()
                    if kind == "decay in the denominator":
                        norm = g.norm() + decay * p.norm()
                    if kind == "epsilon":
                        norm = norm + 1e-3
                    ratio = group["eta"] * p.norm() / norm
                    if kind == "clipped":
                        ratio = torch.minimum(ratio / max(group["lr"], 1e-12), torch.ones(())) * 1e-3
                    u = u * ratio if p.norm() > 0 and norm > 0 else u
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                if kind == "lr inside momentum":
                    m.mul_(group["momentum"]).add_(group["lr"] * u)
                    p.sub_(m)
                else:
                    m.mul_(group["momentum"]).add_(u)
                    p.sub_(group["lr"] * (g if kind == "no momentum" else m))

    return step


def step_with(kind):
    """The training step with something out of place."""
    right = the_step

    def train_step(run, step, networks, method, optimizer, batches, backward):
        if kind == "target before optimizer":
            after, method.after_step = method.after_step, lambda progress, outs: None
            after(step / run.total_steps, [])
            try:
                return right(run, step, networks, method, optimizer, batches, backward)
            finally:
                del method.after_step
        if kind == "tau one step late":
            after = method.after_step
            method.after_step = lambda progress, outs: after(max(step - 1, 0) / run.total_steps, outs)
            try:
                return right(run, step, networks, method, optimizer, batches, backward)
            finally:
                del method.after_step
        return right(run, step + 1, networks, method, optimizer, batches, backward)

    return train_step


def statistics_too(self, online, decay):
    with torch.no_grad():
        for own, other in zip(self.module.parameters(), online.parameters(), strict=True):
            own.lerp_(other, 1 - decay)
        for own, other in zip(self.module.buffers(), online.buffers(), strict=True):
            own.copy_(other)


def half_follow(self, online, decay):
    with torch.no_grad():
        for own, other in zip(self.module.parameters(), online.parameters(), strict=True):
            own.copy_((decay * own.bfloat16() + (1 - decay) * other.bfloat16()).to(own.dtype))


def leaking_classifier(self, features, labels):
    return F.cross_entropy(self.linear(features), labels)


def head_with(*, first_bias=True, last_bias=False, hidden_norm=True, out_norm=False):
    def mlp(in_dim, hidden_dim, out_dim):
        parts = [nn.Linear(in_dim, hidden_dim, bias=first_bias)]
        parts += [nn.BatchNorm1d(hidden_dim)] if hidden_norm else []
        parts += [nn.ReLU(), nn.Linear(hidden_dim, out_dim, bias=last_bias)]
        return nn.Sequential(*parts, *([nn.BatchNorm1d(out_dim)] if out_norm else []))

    return mlp


def slow_statistics(*widths):
    head = right_mlp(*widths)
    head[1].momentum = 0.01
    return head


right_mlp = byol_module.mlp


def groups_with_decay(factor):
    right = optim.parameter_groups
    return lambda modules, *, weight_decay, **settings: right(modules, weight_decay=factor * weight_decay, **settings)


def kaiming(module):
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


def epoch_wise(step, *, warmup_steps, total_steps):
    whole = step // 50 * 50
    return schedules_right(whole, warmup_steps=warmup_steps, total_steps=total_steps)


schedules_right = schedules.warmup_cosine


def no_warm_up_from_zero(step, *, warmup_steps, total_steps):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return schedules_right(step, warmup_steps=warmup_steps, total_steps=total_steps)


def per_feature_mean(p, z):
    return (losses.l2_normalize(p) - losses.l2_normalize(z)).square().mean(-1)


def without_epsilon(x, epsilon=0.0):
    return x / x.norm(dim=-1, keepdim=True)


# name -> (object, attribute, wrong version, the check that catches it). An object of "parity" is where the recorded
# steps look the name up.
MUTANTS = {
    "target in evaluation mode": (BYOL, "forward", forward_with(target_in_eval=True), "parity: eight recorded steps"),
    "views concatenated": (BYOL, "forward", forward_with(concatenated=True), "parity: eight recorded steps"),
    "loss times 0.5": (BYOL, "forward", forward_with(factor=0.5), "parity: eight recorded steps"),
    "one direction only": (BYOL, "forward", forward_with(one_direction=True), "parity: eight recorded steps"),
    "predictor missing on one direction": (BYOL, "forward", forward_with(one_predictor=True), "parity: eight recorded steps"),
    "predictor on the target": (BYOL, "forward", forward_with(predictor_on_target=True), "parity: eight recorded steps"),
    "target of the same view": (BYOL, "forward", forward_with(same_view=True), "parity: eight recorded steps"),
    "constant tau": (byol_module, "target_decay", lambda progress, base: base, "parity: eight recorded steps"),
    "constant tau, on its own": (test_schedules, "target_decay", lambda progress, base: base, "schedules: recorded decay"),
    "tau one step late": (parity, "train_step", step_with("tau one step late"), "parity: eight recorded steps"),
    "target before the optimizer": (parity, "train_step", step_with("target before optimizer"), "parity: eight recorded steps"),
    "schedule one step early": (parity, "train_step", step_with("early"), "parity: eight recorded steps"),
    "classifier leaks into the encoder": (online.OnlineClassifier, "forward", leaking_classifier, "parity: eight recorded steps"),
    "learning rate not scaled by the batch": (Run, "peak_lr", property(lambda self: self.base_lr), "parity: eight recorded steps"),
    "mean over features": (byol_module, "regression", per_feature_mean, "parity: eight recorded steps"),
    "mean over features, on its own": (losses, "regression", per_feature_mean, "losses: recorded values"),
    "a factor in the loss": (losses, "regression", lambda p, z: 0.5 * (losses.l2_normalize(p) - losses.l2_normalize(z)).square().sum(-1), "losses: golden values"),
    "no epsilon in the normalisation": (losses, "l2_normalize", without_epsilon, "losses: rows near zero"),
    "hidden norm missing": (test_encoder, "mlp", head_with(hidden_norm=False), "heads: shape"),
    "norm on the output": (test_encoder, "mlp", head_with(out_norm=True), "heads: shape"),
    "bias on the last layer": (test_encoder, "mlp", head_with(last_bias=True), "heads: shape"),
    "no bias on the first layer": (test_encoder, "mlp", head_with(first_bias=False), "heads: shape"),
    "LARS: decay in the denominator": (optim.LARS, "step", lars_with("decay in the denominator"), "optim: golden LARS"),
    "LARS: epsilon": (optim.LARS, "step", lars_with("epsilon"), "optim: golden LARS"),
    "LARS: trust ratio clipped": (optim.LARS, "step", lars_with("clipped"), "optim: golden LARS"),
    "LARS: lr inside momentum": (optim.LARS, "step", lars_with("lr inside momentum"), "optim: golden LARS"),
    "LARS: lr inside momentum, biases": (optim.LARS, "step", lars_with("lr inside momentum"), "optim: biases and norms"),
    "LARS: no momentum": (optim.LARS, "step", lars_with("no momentum"), "optim: biases and norms"),
    "LARS: nothing excluded": (optim.LARS, "step", lars_with("nothing excluded"), "optim: biases and norms"),
    "weight decay 0": (networks, "parameter_groups", groups_with_decay(0.0), "optim: the run's decay"),
    "weight decay 100 times": (networks, "parameter_groups", groups_with_decay(100.0), "optim: the run's decay"),
    "target copies batch-norm statistics": (target.Target, "follow", statistics_too, "target: own statistics"),
    "moving average in half precision": (target.Target, "follow", half_follow, "target: small increments"),
    "decay and its complement exchanged": (target.Target, "follow", lambda self, online, decay: right_follow(self, online, 1 - decay), "target: moving average"),
    "batch-norm momentum 0.01": (byol_module, "mlp", slow_statistics, "parity: eight recorded steps"),
    "PyTorch's own initialisation": (test_encoder, "initialize", kaiming, "encoder: moments"),
    "PyTorch's own initialisation of the heads": (byol_module, "initialize", lambda module: None, "heads: moments"),
    "schedule by epoch": (test_schedules, "warmup_cosine", epoch_wise, "schedules: recorded learning rate"),
    "warm-up not from zero": (test_schedules, "warmup_cosine", no_warm_up_from_zero, "schedules: recorded learning rate"),
    "multiplicative brightness": (ops, "tf_brightness", lambda x, d: ops.tv_brightness(x, 1 + d), "views: recorded colour"),
    "contrast about the gray mean": (ops, "tf_contrast", ops.tv_contrast, "views: recorded colour"),
    "saturation as a blend with gray": (ops, "tf_saturation", ops.tv_saturation, "views: recorded colour"),
    "reflected borders in the blur": (ops, "blur", lambda x, taps, right=ops.blur: right(x, taps, padding="reflect"), "views: golden blur"),
    "the same views twice": (test_recipes, "BYOL_T_PRIME", BYOL_T, "views: application rates"),
    "the method with one view twice": (BYOL, "views", (BYOL_T, BYOL_T), "views: the method's pair"),
    "blur on half of both views": (test_recipes, "BYOL_T", View(blur=0.5), "views: application rates"),
    "saturation 0.4": (test_recipes, "BYOL_T", View(saturation=0.4), "views: ranges"),
}  # fmt: skip

right_follow = target.Target.follow


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_passes_as_things_are(check, make_run):
    CHECKS[check](make_run)


@pytest.mark.parametrize(
    ("where", "attribute", "right", "check"),
    [
        (BYOL, "forward", forward_with(), "parity: eight recorded steps"),
        (optim.LARS, "step", lars_with(None), "optim: golden LARS"),
        (optim.LARS, "step", lars_with(None), "optim: biases and norms"),
    ],
)
def test_what_the_mutants_are_made_of_is_right_without_their_fault(
    where, attribute, right, check, make_run, monkeypatch
):
    monkeypatch.setattr(where, attribute, right)
    CHECKS[check](make_run)


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name, make_run, monkeypatch):
    where, attribute, wrong, check = MUTANTS[name]
    monkeypatch.setattr(where, attribute, wrong)
    with pytest.raises(AssertionError):
        CHECKS[check](make_run)


def test_every_check_has_a_mutant():
    assert {check for *_, check in MUTANTS.values()} == set(CHECKS)


def test_the_table_in_the_docs_names_every_mutant():
    rows = (Path(__file__).parents[1] / "docs/fidelity.md").read_text("utf-8").splitlines()
    named = {row.split(" | ")[0].removeprefix("| ") for row in rows if " | `" in row and "test_" in row}
    assert set(MUTANTS) <= named
    here = Path(__file__).parent
    for row in rows:
        for place in re.findall(r"`([\w/]+\.py::\w+)`", row):
            file, _, test = place.partition("::")
            assert f"def {test}(" in (here / file).read_text("utf-8"), place
