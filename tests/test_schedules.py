"""Schedules against the authors' recorded values and hand-worked ones."""

import math
from pathlib import Path

import numpy as np
import pytest

from byol.schedules import target_decay, warmup_cosine

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
