"""The collapse diagnostics against values worked by hand and naive loops, and on degenerate input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from byol.diagnose import (
    SETTLED_STEPS,
    Health,
    alignment,
    effective_rank,
    feature_std,
    health,
    uniformity,
    verdict,
    view_ratio,
)
from byol.names import METHODS

RECORDS = Path(__file__).parents[1] / "benchmarks" / "results" / "collapse.jsonl"
"""Runs as they are and spoiled ones, with all numbers of each look: benchmarks/collapse.py."""

AXES = torch.tensor([[2.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -5.0]])
"""Four directions of the plane, of different lengths."""


def sphere(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_feature_std_by_hand():
    # Normalised, each column is (1, -1, 0, 0) in some order: variance 2/4.
    assert feature_std(AXES) == pytest.approx(math.sqrt(0.5))


def test_feature_std_of_a_sphere_is_one_over_root_d():
    assert feature_std(sphere(4096, 64)) == pytest.approx(1 / 8, rel=0.01)


def test_effective_rank_by_hand():
    # Columns (2, -2, 0, 0) and (0, 0, 1, -1) are centred and orthogonal: sigma = 2 sqrt 2, sqrt 2.
    z = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert effective_rank(z) == pytest.approx(math.exp(entropy))


def test_effective_rank_counts_equal_directions_and_ignores_the_mean():
    basis = torch.cat([torch.eye(5), -torch.eye(5)]) @ torch.linalg.qr(sphere(8, 5))[0].T
    assert effective_rank(basis) == pytest.approx(5, rel=1e-5)
    assert effective_rank(100 * basis + 7) == pytest.approx(5, rel=1e-5)


def test_alignment_by_hand():
    # Normalised gaps: 0, sqrt 2 (a right angle), 2 (opposite), 0 (same direction): squares 0, 2, 4, 0.
    other = torch.tensor([[1.0, 0.0], [0.0, 4.0], [0.0, -1.0], [0.0, -1.0]])
    assert alignment(AXES, other) == pytest.approx(6 / 4)
    assert alignment(AXES, other, alpha=1) == pytest.approx((math.sqrt(2) + 2) / 4)


def test_uniformity_by_hand():
    # Six pairs: two opposite (squared distance 4), four at right angles (2).
    assert uniformity(AXES) == pytest.approx(math.log((2 * math.exp(-8) + 4 * math.exp(-4)) / 6))
    assert uniformity(AXES, t=1) == pytest.approx(math.log((2 * math.exp(-4) + 4 * math.exp(-2)) / 6))


def test_uniformity_equals_a_naive_loop():
    z = sphere(15, 4).double()
    rows = [row / row.norm() for row in z]
    pairs = [math.exp(-2 * float((rows[i] - rows[j]).square().sum())) for i in range(15) for j in range(i + 1, 15)]
    assert uniformity(z) == pytest.approx(math.log(sum(pairs) / len(pairs)))


def test_row_scale_changes_only_the_rank():
    z, scales = sphere(50, 6), torch.linspace(0.1, 9, 50)[:, None]
    assert feature_std(z * scales) == pytest.approx(feature_std(z))
    assert uniformity(z * scales) == pytest.approx(uniformity(z))
    assert alignment(z * scales, z) == pytest.approx(0, abs=1e-10)
    assert effective_rank(3 * z) == pytest.approx(effective_rank(z))


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(8, 4),
        torch.ones(8, 4) / 3,
        sphere(1, 16).repeat(64, 1),
        sphere(8, 1),
        sphere(1, 4),
        torch.zeros(1, 1),
        torch.full((5, 3), 1e-30),
        torch.full((5, 3), 1e30),
        sphere(8, 4).bfloat16(),
    ],
    ids=["zeros", "equal", "repeated", "d=1", "one row", "one zero", "tiny", "huge", "bfloat16"],
)
def test_degenerate_input_gives_finite_numbers(z):
    found = health(z, z)
    assert all(math.isfinite(value) for value in vars(found).values())
    assert found.alignment == 0


def test_equal_rows_are_collapsed_whatever_rounding_leaves():
    for seed in range(3):
        z = (sphere(1, 32, seed).double() / 3).repeat(100, 1)
        numbers = health(z, z)
        assert numbers.std == pytest.approx(0, abs=1e-12)
        assert numbers.effective_rank == 0
        assert numbers.uniformity == pytest.approx(0, abs=1e-12)
        assert verdict([numbers]) == "collapsed"


def test_health_gathers_the_numbers():
    z1, z2 = sphere(64, 16), sphere(64, 16, seed=1)
    expected = Health(
        std=feature_std(z1),
        std_ratio=4 * feature_std(z1),
        effective_rank=effective_rank(z1),
        alignment=alignment(z1, z2),
        uniformity=uniformity(z1),
        view_ratio=view_ratio(z1, z2),
    )
    assert health(z1, z2) == expected


@pytest.mark.parametrize(
    ("std_ratio", "rank", "view_ratio", "word"),
    [
        (1.0, 30.0, 0.1, "healthy"),
        (0.5, 5.0, 0.9, "healthy"),
        (0.49, 30.0, 0.1, "narrow"),
        (1.0, 4.9, 0.1, "narrow"),
        (0.3, 3.0, 0.6, "narrow"),
        (0.29, 30.0, 0.1, "collapsed"),
        (1.0, 2.9, 0.1, "collapsed"),
        (1.0, 30.0, 0.91, "collapsed"),
    ],
)
def test_verdict_by_its_thresholds(std_ratio, rank, view_ratio, word):
    assert verdict([numbers(std_ratio, rank, view_ratio)]) == word


def numbers(std_ratio, rank=30.0, view_ratio=0.6):
    return Health(0.1, std_ratio, rank, alignment=0.1, uniformity=-2.0, view_ratio=view_ratio)


def test_before_a_look_counts_there_is_no_verdict():
    assert verdict([]) == "early"


@pytest.mark.parametrize("number", ["std_ratio", "rank"])
@pytest.mark.parametrize(
    ("shares", "fallen"),
    [
        ((1.0, 0.45), ()),
        ((1.0, 0.44), (1,)),
        ((0.6, 1.0, 0.7, 0.44, 0.44, 0.46), (3, 4)),
        ((1.0, 0.8, 0.7, 0.44), ()),
        ((1.0, 1.0, 0.8, 0.7, 0.44), (4,)),
        ((1.0, 1.0, *[0.4] * 20), range(2, 22)),
        ((0.5, 0.5, 0.5), ()),
    ],
    ids=[
        "at the share",
        "below it",
        "from its highest, and back",
        "since the first third",
        "after it",
        "for good",
        "never high",
    ],
)
def test_a_fall_is_within_the_last_two_thirds_of_the_looks(number, shares, fallen):
    looks = [numbers(share) if number == "std_ratio" else numbers(1.0, 60 * share) for share in shares]
    collapsed = [i for i in range(len(looks)) if verdict(looks[: i + 1]) == "collapsed"]
    assert collapsed == list(fallen)


def test_spread_and_directions_lost_together_are_a_fall():
    before = numbers(1.0, 60.0)
    assert verdict([before, numbers(0.7, 40.0)]) == "healthy"
    assert verdict([before, numbers(0.7, 38.0)]) == "collapsed"


def test_the_last_look_is_judged():
    point, well = numbers(0.1), numbers(1.0)
    assert verdict([well, point]) == "collapsed"
    assert verdict([point, well]) == "healthy"
    assert verdict([numbers(1.0, view_ratio=0.95), well]) == "healthy"


def recorded():
    for run in map(json.loads, RECORDS.read_text("utf-8").splitlines()):
        counts = [i for i, step in enumerate(run["step"]) if step >= max(SETTLED_STEPS, run["warmup_steps"])]
        looks = [Health(**{name: run[name][i] for name in vars(numbers(1.0))}) for i in counts]
        yield run, counts, looks


def test_recorded_runs_are_called_what_they_called_themselves():
    """That training hands on the right looks: the words were written by whole runs, of the seed made by this rule."""
    seen = 0
    for run, counts, looks in recorded():
        if run["seed"] == 2:
            words = ["early"] * counts[0] + [verdict(looks[: i + 1]) for i in range(len(looks))]
            assert words == run["verdict"], run["run"]
            seen += 1
    assert seen >= 40


def test_recorded_runs_of_methods_as_they_are_are_never_called_collapsed():
    methods = []
    for run, _, looks in recorded():
        if run["cause"] is None:
            assert "collapsed" not in [verdict(looks[: i + 1]) for i in range(len(looks))], run["run"]
            methods.append(run["method"])
    assert set(methods) == set(METHODS)


def test_the_alarm_s_score_is_what_the_documentation_says(monkeypatch):
    monkeypatch.syspath_prepend(RECORDS.parents[1])
    import collapse

    found = collapse.outcomes([record for record in collapse.read() if record["seed"] == 2])
    delays = [each.delay for each in found if each.delay is not None]
    methods = {each.record["method"] for each in found}
    assert len(found) == 61 and methods == set(METHODS) and sum(each.collapse is not None for each in found) == 41
    assert sum(each.miss for each in found) == 0
    assert [each.record["cause"] for each in found if each.false_alarm] == ["no variance", "redundancy alone"]
    assert np.median(delays) == 0 and (min(delays), max(delays)) == (-80, 40)


def test_view_ratio_by_hand():
    # Normalised: gaps 0, sqrt 2, 2, 0 as above, mean square 3/2; of six pairs two have squared distance 4, four 2.
    other = torch.tensor([[1.0, 0.0], [0.0, 4.0], [0.0, -1.0], [0.0, -1.0]])
    assert view_ratio(AXES, other) == pytest.approx(1.5 / (16 / 6))
    assert view_ratio(sphere(4096, 64), sphere(4096, 64, seed=1)) == pytest.approx(1, rel=0.02)
    assert view_ratio(torch.ones(8, 4), torch.ones(8, 4)) == 1.0


def test_verdicts_of_embeddings_one_can_picture():
    z = sphere(256, 32)
    line = z[:, :1] * sphere(1, 32, seed=1)
    assert verdict([health(z, z)]) == "healthy"
    assert verdict([health(line, line)]) == "collapsed"
    assert verdict([health(z + 2.2, z + 2.2)]) == "narrow"
    assert verdict([health(z + 10, z + 10)]) == "collapsed"


def test_numbers_carry_no_gradient():
    z = sphere(8, 4).requires_grad_()
    assert isinstance(health(z, z).std, float)
    assert z.grad is None


@pytest.mark.parametrize("z", [torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(4)])
def test_shapes_without_embeddings_are_refused(z):
    with pytest.raises(ValueError, match=r"\[B, d\]"):
        feature_std(z)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        effective_rank(torch.tensor([[1.0, math.nan]]))


def test_views_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="row i of both"):
        alignment(torch.zeros(3, 2), torch.zeros(4, 2))
