"""Schedules against the authors' recorded values and hand-worked ones."""

import math
from pathlib import Path

import numpy as np
import pytest

from byol.schedules import target_decay, warmup_cosine, warmup_drops
from byol.step import learning_rate_share

ORACLE = Path(__file__).parent / "oracles/deepmind_ops.npz"


def check_recorded_decay():
    with np.load(ORACLE) as oracle:
        steps = oracle["sched|steps"]
        for base in (0.97, 0.99, 0.996):
            expected = oracle[f"sched|target_ema|base={base}|max=1000"]
            found = [target_decay(int(k) / 1000, base) for k in steps]
            assert np.abs(found - expected).max() < 1e-6, base


def check_recorded_learning_rate():
    with np.load(ORACLE) as oracle:
        steps = oracle["sched|steps"]
        for base, batch, warmup in ((0.2, 4096, 100), (0.3, 256, 100), (0.45, 512, 0)):
            expected = oracle[f"sched|lr|base={base}|batch={batch}|warmup={warmup}|total=1000"]
            peak = base * batch / 256
            found = [peak * warmup_cosine(int(k), warmup_steps=warmup, total_steps=1000) for k in steps]
            assert np.abs(found - expected).max() < 2e-6 * peak, (base, batch)


def test_recorded_decay():
    check_recorded_decay()


def test_recorded_learning_rate():
    check_recorded_learning_rate()


@pytest.mark.parametrize(
    ("base", "values"),
    [
        (0.996, (0.996, 0.9960000099, 0.9965857864, 0.998, 0.9994142136, 0.9999999901)),
        (0.99, (0.99, 0.9900000247, 0.9914644661, 0.995, 0.9985355339, 0.9999999753)),
    ],
)
def test_golden_decay(base, values):
    found = [target_decay(k / 1000, base) for k in (0, 1, 250, 500, 750, 999)]
    assert found == pytest.approx(values, abs=1e-9)
    assert found[0] == base
    assert target_decay(1.0, base) == 1.0


def test_golden_learning_rate():
    found = [
        3.2 * warmup_cosine(k, warmup_steps=100, total_steps=1000) for k in (0, 1, 50, 99, 100, 101, 550, 999, 1000)
    ]
    assert found == pytest.approx([0, 0.032, 1.6, 3.168, 3.2, 3.19999025, 1.6, 9.75e-6, 0], abs=1e-8)


def test_no_warmup_starts_at_the_peak_and_all_warmup_never_divides_by_zero():
    assert warmup_cosine(0, warmup_steps=0, total_steps=10) == 1.0
    assert warmup_cosine(9, warmup_steps=10, total_steps=10) == 0.9
    assert math.isfinite(warmup_cosine(10, warmup_steps=10, total_steps=10))


def test_the_cosine_ends_at_what_is_left():
    settings = {"warmup_steps": 100, "total_steps": 1000, "final": 0.002}
    found = [warmup_cosine(k, **settings) for k in (0, 50, 100, 550, 1000, 2000)]
    assert found == pytest.approx([0, 0.5, 1, 0.501, 0.002, 0.002], abs=1e-12)
    # A third of the way down: 0.002 + 0.998 (1 + cos 60 degrees) / 2.
    assert warmup_cosine(400, **settings) == pytest.approx(0.002 + 0.998 * 0.75, abs=1e-12)
    assert min(warmup_cosine(k, **settings) for k in range(100, 1001)) == pytest.approx(0.002)


def test_the_learning_rate_is_a_tenth_after_each_drop():
    settings = {"warmup_steps": 10, "total_steps": 200, "drops": (0.6, 0.8)}
    found = [warmup_drops(k, **settings) for k in (0, 5, 9, 10, 119, 120, 159, 160, 199, 200)]
    assert found == pytest.approx([0, 0.5, 0.9, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01], abs=1e-12)
    assert warmup_drops(0, warmup_steps=0, total_steps=200, drops=(0.6, 0.8)) == 1.0


def test_the_order_of_the_drops_does_not_matter():
    for k in range(0, 30):
        found = [warmup_drops(k, warmup_steps=3, total_steps=30, drops=drops) for drops in ((0.3, 0.9), (0.9, 0.3))]
        assert found[0] == found[1]


def test_the_rate_of_a_run_is_by_step_or_held_within_an_epoch(make_run):
    def cosine(k):
        return 0.5 * (1 + math.cos(math.pi * (k - 4) / 16))

    by_step, by_epoch = (
        make_run(total_steps=20, warmup_steps=4),
        make_run(total_steps=20, warmup_steps=4, lr_every_steps=5),
    )
    warm = [0, 0.25, 0.5, 0.75]
    assert [learning_rate_share(by_step, k) for k in range(20)] == pytest.approx(
        warm + [cosine(k) for k in range(4, 20)]
    )
    # An epoch has five steps; the first one ends with the warm-up's last step and the peak.
    held = [4, *[5] * 5, *[10] * 5, *[15] * 5]
    assert [learning_rate_share(by_epoch, k) for k in range(20)] == pytest.approx(warm + [cosine(k) for k in held])


def test_a_warm_up_that_ends_within_an_epoch_leaves_its_rest_at_the_peak(make_run):
    run = make_run(total_steps=20, warmup_steps=7, lr_every_steps=5)
    found = [learning_rate_share(run, k) for k in range(6, 11)]
    after = 0.5 * (1 + math.cos(math.pi * 3 / 13))
    assert found == pytest.approx([6 / 7, 1, 1, 1, after])


def test_without_a_warm_up_the_first_epoch_is_at_the_peak(make_run):
    run = make_run(total_steps=20, warmup_steps=0, lr_every_steps=5)
    found = [learning_rate_share(run, k) for k in (0, 4, 5)]
    assert found == pytest.approx([1, 1, 0.5 * (1 + math.cos(math.pi / 4))])


def test_a_run_s_drops_and_final_rate_reach_its_schedule(make_run):
    dropping = make_run(total_steps=20, warmup_steps=4, lr_drops=(0.5, 0.75))
    found = [learning_rate_share(dropping, k) for k in (2, 4, 9, 10, 14, 15, 19)]
    assert found == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    by_epoch = make_run(total_steps=20, warmup_steps=4, lr_drops=(0.6,), lr_every_steps=5)
    # 60 % is within the third epoch of five steps: the fourth is the first at a tenth.
    assert [learning_rate_share(by_epoch, k) for k in (12, 14, 15)] == pytest.approx([1, 1, 0.1])
    ending = make_run(total_steps=20, warmup_steps=4, final_lr=0.1)
    assert learning_rate_share(ending, 12) == pytest.approx(0.55)
    assert learning_rate_share(ending, 20) == pytest.approx(0.1)


def test_a_drop_comes_at_its_step_whatever_rounding_makes_of_its_share():
    # 0.55 x 100 is 55.00000000000001 in floating point.
    assert [warmup_drops(k, warmup_steps=0, total_steps=100, drops=(0.55,)) for k in (54, 55)] == [1.0, 0.1]
