"""The collapse alarm: silent on every method as it is, raised on each method's own collapsed form, also in mid-run."""

import json
from dataclasses import replace

import pytest
from collapses import CAUSES, spoiled

from byol import methods
from byol.experiments import digits_demo
from byol.names import METHODS
from byol.pipeline import pretrain
from byol.train import TrainingStopped

DEMO = digits_demo()
pytestmark = pytest.mark.slow

FROM_START = (
    "no predictor",
    "no stop-gradient",
    "redundancy alone",
    "invariance alone",
    "no variance",
    "no invariance",
    "no negatives",
    "tau 0",
    "nothing to contrast",
    "own memory alone",
)
MID_RUN = ("no predictor", "no stop-gradient", "no covariance", "tau 0", "nothing to contrast", "dead units")


def verdicts(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {line["step"]: line["held_out/verdict"] for line in found if "held_out/verdict" in line}


def options(name, **changes):
    views = DEMO.views[: len(methods.get(name).views)]
    return replace(DEMO.for_method(name), views=views, **changes)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_no_alarm_on_a_method_as_it_is(tmp_path, name, seed):
    pretrain("digits", tmp_path / "run", options(name, steps=200, seed=seed))
    assert "collapsed" not in verdicts(tmp_path / "run").values()


@pytest.mark.parametrize("cause", FROM_START)
def test_an_alarm_on_each_collapsed_form(tmp_path, cause):
    name, spoil = CAUSES[cause]
    with spoiled(spoil, 0), pytest.raises(TrainingStopped, match="collapsed"):
        pretrain("digits", tmp_path / "run", options(name, steps=400, stop_on_collapse=True))


@pytest.mark.parametrize("cause", MID_RUN)
def test_an_alarm_in_mid_run_and_none_before(tmp_path, cause):
    name, spoil = CAUSES[cause]
    with spoiled(spoil, 120), pytest.raises(TrainingStopped, match="collapsed"):
        pretrain("digits", tmp_path / "run", options(name, steps=400, stop_on_collapse=True))
    assert "collapsed" not in [word for step, word in verdicts(tmp_path / "run").items() if step <= 120]
