"""The rule of a verdict, and the tables and pictures of every list."""

import pytest

from byol import pictures
from byol.experiments import verdicts
from byol.experiments.paper import EXPERIMENTS
from byol.experiments.small import digits_minute


def test_a_verdict_is_where_the_paired_interval_lies():
    # Three differences of mean 2 and s = 1: the half interval is 4.3027 / sqrt(3) = 2.484.
    interval, word = verdicts.verdict([1.0, 2.0, 3.0])
    assert interval == pytest.approx((-0.484, 4.484), abs=1e-3)
    assert word == "too small to tell"
    assert verdicts.verdict([1.9, 2.0, 2.1])[1] == "held"
    assert verdicts.verdict([-1.9, -2.0, -2.1])[1] == "reversed"
    assert verdicts.verdict([5.0]) == (None, "one seed tells nothing")


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("failed", [False, True])
def test_every_list_has_a_table_and_a_picture_also_where_most_runs_failed(name, failed, tmp_path, measured):
    experiment = EXPERIMENTS[name](digits_minute())
    arms = experiment.arms[:1] if failed else experiment.arms
    runs = {(arm.name, seed): measured for arm in arms for seed in range(2)}
    result = verdicts.summary(experiment, runs, seeds=2, data="digits", steps=400)
    assert f"| {arms[0].name} | 50.0 +- 0.0 |" in verdicts.markdown(result)
    pictures.experiment(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
