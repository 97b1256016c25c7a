"""The collapse alarm: silent on every method as it is, raised on each method's own collapsed form."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from byol import losses, methods
from byol.experiments import digits_demo
from byol.methods import Out
from byol.methods.barlow_twins import BarlowTwins
from byol.methods.byol import BYOL
from byol.methods.instdisc import InstDisc
from byol.methods.moco import MoCo
from byol.methods.moco_v3 import MoCoV3
from byol.methods.simclr import SimCLR
from byol.methods.simsiam import SimSiam
from byol.methods.vicreg import VICReg
from byol.names import METHODS
from byol.pipeline import pretrain
from byol.train import TrainingStopped

DEMO = digits_demo()
pytestmark = pytest.mark.slow


def attraction(a, b):
    return 1 - (losses.l2_normalize(a) * losses.l2_normalize(b)).sum(1).mean()


class WithoutPredictor(BYOL):
    """Grill et al. 2020, Table 5b: no predictor, beta = 0: 0.2 %."""

    def __init__(self, encoder, **arguments):
        super().__init__(encoder, **arguments)
        self.predictor = nn.Identity()


class WithoutStopGradient(SimSiam):
    """Chen & He 2021, Figure 2: 0.1 %."""

    def forward(self, x1, x2):
        y1, y2 = self.encoder(x1), self.encoder(x2)
        z1, z2 = self.projector(y1), self.projector(y2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = losses.negative_cosine(p1, z2) / 2 + losses.negative_cosine(p2, z1) / 2
        return Out(loss.mean(), y1, z1)


class RedundancyOnly(BarlowTwins):
    """Zbontar et al. 2021, Table 5: the redundancy term alone, 0.1 %."""

    def forward(self, x1, x2):
        y1, y2 = self.encoder(x1), self.encoder(x2)
        z1, z2 = self.projector(y1), self.projector(y2)
        loss = losses.barlow_twins(z1, z2, 1.0) - losses.barlow_twins(z1, z2, 0.0)
        return Out(0.0051 * loss, y1, z1)


class WithoutNegatives(SimCLR):
    """Grill et al. 2020, Table 5b: no predictor, no target, beta = 0: 0.1 %."""

    def forward(self, x1, x2):
        y = self.encoder(torch.cat([x1, x2]))
        z1, z2 = self.projector(y).chunk(2)
        return Out(attraction(z1, z2) / self.temperature, y[: len(x1)], z1)


class NothingToContrast(MoCoV3):
    """No negatives and no predictor, and no batch norm on the output to keep the features apart."""

    def __init__(self, encoder, **arguments):
        super().__init__(encoder, **arguments)
        self.projector[-1] = nn.Identity()
        self.target.module[1][-1] = nn.Identity()
        self.predictor = nn.Identity()

    def forward(self, x1, x2):
        y1, y2 = self.encoder(x1), self.encoder(x2)
        z1, z2 = self.projector(y1), self.projector(y2)
        k1, k2 = self.target(x1), self.target(x2)
        return Out(attraction(z1, k2) + attraction(z2, k1), y1, z1)


class OwnMemoryOnly(InstDisc):
    """No other images: each is drawn to its own row of the bank alone."""

    def forward(self, x, *, ids, key):
        y = self.encoder(x)
        z = self.projector(y)
        loss = attraction(z, self.bank.rows[ids]) / self.temperature
        return Out(loss, y, z, {"ids": ids, "v": losses.l2_normalize(z)})


COLLAPSED = {
    "byol": (WithoutPredictor, {}),
    "simsiam": (WithoutStopGradient, {}),
    "barlow_twins": (RedundancyOnly, {}),
    # Bardes et al. 2022, Table 7: each of these collapses.
    "vicreg, invariance alone": (VICReg, {"sim": 1.0, "std": 0.0, "cov": 0.0}),
    "vicreg, no variance": (VICReg, {"std": 0.0}),
    "vicreg, no invariance": (VICReg, {"sim": 0.0}),
    "simclr": (WithoutNegatives, {}),
    # He et al. 2020, Table 1: without momentum it fails.
    "moco": (MoCo, {"tau": 0.0}),
    "moco_v3": (NothingToContrast, {}),
    "instdisc": (OwnMemoryOnly, {}),
}


def verdicts(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["held_out/verdict"] for line in found if line.get("held_out/verdict") and line["step"] > 0]


def options(name, **changes):
    views = DEMO.views[: len(methods.get(name).views)]
    return replace(DEMO.for_method(name), views=views, **changes)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_no_alarm_on_a_method_as_it_is(tmp_path, name, seed):
    pretrain("digits", tmp_path / "run", options(name, steps=200, seed=seed))
    assert "collapsed" not in verdicts(tmp_path / "run")


@pytest.mark.parametrize("form", COLLAPSED)
def test_an_alarm_on_each_collapsed_form(tmp_path, monkeypatch, form):
    kind, arguments = COLLAPSED[form]
    name = form.partition(",")[0]
    monkeypatch.setattr("byol.networks.get", lambda _: kind)
    with pytest.raises(TrainingStopped, match="collapsed"):
        pretrain("digits", tmp_path / "run", options(name, steps=400, method_args=arguments, stop_on_collapse=True))
