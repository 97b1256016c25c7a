"""The package's own method, loss, target, schedules, LARS and online classifier against recorded steps of the authors'
code.

BYOL_ORACLE (a path) and BYOL_ORACLE_SETTINGS (JSON) replace the recording and its settings.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from byol.data.loader import Batch
from byol.methods.byol import BYOL
from byol.networks import Networks, make_optimizer
from byol.online import OnlineClassifier
from byol.step import train_step
from byol.views.ops import normalize_
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD

ORACLE = Path(os.environ.get("BYOL_ORACLE", Path(__file__).parents[1] / "oracles/deepmind_byol_steps.npz"))
SETTINGS = {
    "base_lr": 0.3,
    "weight_decay": 1e-6,
    "tau_base": 0.99,
    "warmup_steps": 4,
    "max_steps": 20,
    "batch_size": 16,
} | json.loads(os.environ.get("BYOL_ORACLE_SETTINGS", "{}"))


def same(x, kernel, stride, value=0.0):
    """TensorFlow's SAME padding: what is odd goes after."""
    pads = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class SameConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(same(x, self.kernel_size[0], self.stride[0]))


def conv(weight, stride):
    k, _, i, o = weight.shape
    return SameConv(i, o, k, stride=stride, bias=False)


class Block(nn.Module):
    def __init__(self, w, stride):
        super().__init__()
        self.conv_0, self.conv_1 = conv(w("conv_0"), stride), conv(w("conv_1"), 1)
        self.shortcut_conv = conv(w("shortcut_conv"), stride)
        width = w("conv_0").shape[-1]
        self.batchnorm_0, self.batchnorm_1, self.shortcut_batchnorm = (nn.BatchNorm2d(width) for _ in range(3))

    def forward(self, x):
        y = F.relu(self.batchnorm_0(self.conv_0(x)))
        y = self.batchnorm_1(self.conv_1(y))
        return F.relu(y + self.shortcut_batchnorm(self.shortcut_conv(x)))


class TinyResNet(nn.Module):
    """The reference's ResNet v1 with one basic block a group, sized by the recording."""

    def __init__(self, oracle):
        super().__init__()
        root = "step0|online|tiny_res_net/~/"
        first = oracle[root + "initial_conv|w"]
        self.initial_conv = conv(first, 2)
        self.initial_batchnorm = nn.BatchNorm2d(first.shape[-1])
        groups = []
        while f"{root}block_group_{len(groups)}/~/block_0/~/conv_0|w" in oracle:
            name = f"{root}block_group_{len(groups)}/~/block_0/~/"
            groups.append(Block(lambda part, name=name: oracle[f"{name}{part}|w"], 1 if not groups else 2))
        self.groups = nn.ModuleList(groups)
        self.dim = oracle["step0|online|classifier|w"].shape[0]

    def forward(self, x):
        x = F.relu(self.initial_batchnorm(self.initial_conv(x)))
        x = F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
        for group in self.groups:
            x = group(x)
        return x.mean((2, 3))


def recorded(oracle, step, network):
    """The recording's parameters under this package's names, float64, in torch's layout."""
    found = {}
    prefix = f"step{step}|{network}|"
    for key in oracle:
        if not key.startswith(prefix):
            continue
        module, part = key.removeprefix(prefix).split("|")
        value = torch.from_numpy(oracle[key]).double()
        if part == "w":
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        else:
            value = value.flatten()
        part = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}[part]
        found[f"{renamed(module)}.{part}"] = value
    return found


def renamed(module):
    """A module of the recording under this package's name."""
    module = module.replace("tiny_res_net/~/", "encoder.").replace("/~/block_0/~/", ".")
    module = module.replace("block_group_", "groups.")
    for head in ("projector", "predictor"):
        for theirs, ours in (("linear_1", "3"), ("linear", "0"), ("batch_norm", "1")):
            module = module.replace(f"{head}/{theirs}", f"{head}.{ours}")
    return module.replace("classifier", "classifier.linear")


def recorded_means(oracle, step, network):
    """The recording's moving means of batch norm, before its correction for starting at zero."""
    found = {}
    for key in oracle:
        if key.startswith(f"step{step}|{network}_state|") and key.endswith("/~/mean_ema|hidden"):
            found[renamed(key.split("|")[2].removesuffix("/~/mean_ema"))] = torch.from_numpy(oracle[key]).flatten()
    return found


def running_means(networks):
    encoder, projector = networks.method.target.module
    online, target = nn.ModuleDict(), nn.ModuleDict({"encoder": encoder, "projector": projector})
    for name in ("encoder", "projector", "predictor"):
        online[name] = getattr(networks.method, name)
    return {
        side: {n: m.running_mean.clone() for n, m in parts.named_modules() if hasattr(m, "running_mean")}
        for side, parts in (("online", online), ("target", target))
    }


def online_parameters(networks):
    """Name -> parameter, of encoder, projector, predictor and classifier, under the recording's names."""
    named = {n.removeprefix("method."): p for n, p in networks.named_parameters()}
    return {n: p for n, p in named.items() if not n.startswith("target.")}


def target_parameters(networks):
    encoder, projector = networks.method.target.module
    return {f"encoder.{n}": p for n, p in encoder.named_parameters()} | {
        f"projector.{n}": p for n, p in projector.named_parameters()
    }


def load(parameters, values):
    assert set(parameters) <= set(values), sorted(set(parameters) - set(values))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


@pytest.fixture(scope="module")
def oracle():
    with np.load(ORACLE) as file:
        return {k: file[k] for k in file.files}


def recorded_networks(oracle):
    hidden = oracle["step0|online|projector/linear|w"].shape[1]
    out = oracle["step0|online|projector/linear_1|w"].shape[1]
    method = BYOL(TinyResNet(oracle), hidden=hidden, out=out, tau=SETTINGS["tau_base"])
    dim, classes = oracle["step0|online|classifier|w"].shape
    networks = Networks(method, OnlineClassifier(dim, classes)).double().train()
    load(online_parameters(networks), recorded(oracle, 0, "online"))
    load(target_parameters(networks), recorded(oracle, 0, "target"))
    return networks


def recorded_batch(oracle, step):
    mean, std = torch.tensor(IMAGENET_MEAN).double(), torch.tensor(IMAGENET_STD).double()
    views = tuple(
        normalize_(torch.from_numpy(oracle[f"inputs{step}|{v}"]).double().permute(0, 3, 1, 2).clone(), mean, std)
        for v in ("view1", "view2")
    )
    labels = torch.from_numpy(oracle[f"inputs{step}|labels"]).long()
    return Batch(torch.arange(len(labels)), labels, views)


def settings_run(make_run):
    return make_run(
        batch_size=SETTINGS["batch_size"],
        total_steps=SETTINGS["max_steps"],
        warmup_steps=SETTINGS["warmup_steps"],
        optimizer="lars",
        base_lr=SETTINGS["base_lr"],
        weight_decay=SETTINGS["weight_decay"],
    )


def follow_recording(oracle, run, networks):
    """Drive the recorded steps; returns each step's losses, and parameters and moving means after each."""
    optimizer = make_optimizer(run, networks)
    steps = sum(1 for key in oracle if key.startswith("logs") and key.endswith("|repr_loss"))
    losses, states, means = [], {0: snapshot(networks)}, {}
    for step in range(steps):
        batch = recorded_batch(oracle, step)
        found = train_step(run, step, networks, networks.method, optimizer, [batch], torch.Tensor.backward)
        losses.append((found["loss"].item(), found["classifier_loss"].item()))
        states[step + 1] = snapshot(networks)
        means[step + 1] = running_means(networks)
    return losses, states, means


def snapshot(networks):
    return {
        side: {n: p.detach().clone() for n, p in parameters.items()}
        for side, parameters in (
            ("online", online_parameters(networks)),
            ("target", target_parameters(networks)),
        )
    }


def disagreements(oracle, losses, states, means):
    """Every way in which a run differs from the recording, as text; none where they agree."""
    wrong = []
    for step, (loss, classifier_loss) in enumerate(losses):
        for name, value in (("repr_loss", loss), ("classif_loss", classifier_loss)):
            expected = float(oracle[f"logs{step}|{name}"])
            if not abs(value - expected) <= 1e-5:
                wrong.append(f"{name} of step {step}: {value} against {expected}")
    kept = sorted({int(k.split("|")[0][4:]) for k in oracle if k.startswith("step")} - {0})
    for step in kept:
        for side in ("online", "target"):
            before, after = recorded(oracle, 0, side), recorded(oracle, step, side)
            for name, value in states[step][side].items():
                gap = (value - after[name]).abs().max().item()
                if not gap <= 1e-6:
                    wrong.append(f"{side} {name} after step {step} is off by {gap}")
                moved = (after[name] - before[name]).norm().item()
                # Below 1e-6 a float32 recording holds its own rounding rather than a movement.
                if step == kept[-1] and moved > 1e-6 and (value - after[name]).norm().item() > 0.01 * moved:
                    wrong.append(f"{side} {name} misses its movement of {moved} by {(value - after[name]).norm()}")
            # Two updates a step, view 1 then view 2, in each network, of its own passes.
            expected = recorded_means(oracle, step, side)
            for name, value in means[step][side].items() if expected else ():
                if not (value - expected[name]).abs().max() <= 1e-5:
                    wrong.append(f"the moving mean of {side} {name} after step {step} is off")
    return wrong


def test_eight_recorded_steps_are_followed(oracle, make_run):
    networks = recorded_networks(oracle)
    losses, states, means = follow_recording(oracle, settings_run(make_run), networks)
    assert len(losses) >= (1 if "BYOL_ORACLE" in os.environ else 8)
    assert disagreements(oracle, losses, states, means) == []
