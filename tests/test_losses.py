"""BYOL's loss against the authors' recorded values, hand-worked ones, and its geometry."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from byol import losses

ORACLE = Path(__file__).parent / "oracles/deepmind_ops.npz"


def golden(k, rows=8, columns=6):
    i, j = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return torch.sin(k + 1.3 * i + 0.7 * j + 0.1 * i * j)


def check_recorded_loss():
    with np.load(ORACLE) as oracle:
        x, y, per_sample, gradient = (
            torch.from_numpy(oracle[f"loss|{k}"]) for k in ("x", "y", "per_sample", "grad_x_of_mean")
        )
    x.requires_grad_()
    found = losses.regression(x, y)
    found.mean().backward()
    assert torch.allclose(found.detach(), per_sample, rtol=1e-5, atol=1e-5)
    assert torch.allclose(x.grad, gradient, rtol=1e-4, atol=1e-8)


def check_golden_loss():
    m1, m2, m3, m4 = map(golden, (1, 2, 3, 4))
    assert math.isclose(m1[0, 0], 0.8414709848, abs_tol=1e-9)
    assert math.isclose(losses.regression(m1, m4).mean(), 3.9804992999543, abs_tol=1e-9)
    assert math.isclose(losses.regression(m2, m3).mean(), 0.9318327459091, abs_tol=1e-9)


def check_near_zero_rows():
    zero = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    unit = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    found = losses.regression(zero, unit)
    found.sum().backward()
    assert found.item() == 1.0
    assert torch.isfinite(zero.grad).all()
    # sum x^2 = 4e-14 is below 1e-12, so the row is scaled by 1e6 and not to length 1.
    assert losses.l2_normalize(2e-7 * unit)[0, 0].item() == pytest.approx(0.2)


def test_recorded_values_and_gradients():
    check_recorded_loss()


def test_golden_values():
    check_golden_loss()


def test_rows_near_zero_stay_finite():
    check_near_zero_rows()


def test_parallel_orthogonal_and_opposite():
    a = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[2.0, 4.0], [-2.0, 1.0], [-1.0, -2.0]], dtype=torch.float64)
    assert torch.allclose(losses.regression(a, b), torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64))


def test_scale_does_not_matter_and_the_gradient_is_orthogonal():
    generator = torch.Generator().manual_seed(0)
    p, z = (torch.randn(9, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.allclose(losses.regression(p, z), losses.regression(3 * p, 0.1 * z))
    p.requires_grad_()
    losses.regression(p, z).sum().backward()
    assert (p.grad * p).sum(1).abs().max() < 1e-12
    assert torch.autograd.gradcheck(losses.regression, (p, z))


def test_half_types_are_promoted_and_float64_stays():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert losses.regression(x.bfloat16(), x.bfloat16()).dtype == torch.float32
    assert losses.regression(x.double(), x.double()).dtype == torch.float64
