"""The losses against the authors' recorded values, golden and hand-worked ones, and their geometry."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from byol import losses

ORACLE = Path(__file__).parent / "oracles/deepmind_ops.npz"
RECORDED = Path(__file__).parent / "oracles/losses.npz"


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


def check_golden_negative_cosine():
    p1, p2, z1, z2 = map(golden, (1, 2, 3, 4))
    found = losses.negative_cosine(p1, z2).mean() / 2 + losses.negative_cosine(p2, z1).mean() / 2
    assert found.item() == pytest.approx(0.2280830114658, abs=1e-9)


def check_golden_nt_xent():
    z1, z2 = golden(1), golden(2)
    assert losses.nt_xent(z1, z2, 0.1).item() == pytest.approx(3.6191595226040, rel=1e-9)
    assert losses.nt_xent(z1, z2, 0.5).item() == pytest.approx(2.1350816437333, rel=1e-9)


def check_golden_barlow_twins():
    z1, z2 = golden(1), golden(2)
    on_diagonal, off_diagonal = 1.1960317081701, 12.4596295953245
    assert losses.barlow_twins(z1, z2).item() == pytest.approx(1.2595758191062, rel=1e-9)
    assert losses.barlow_twins(z1, z2, 0.0).item() == pytest.approx(on_diagonal, rel=1e-9)
    assert losses.barlow_twins(z1, z2, 1.0).item() == pytest.approx(on_diagonal + off_diagonal, rel=1e-9)


def check_golden_vicreg():
    z1, z2 = golden(1), golden(2)
    invariance, variances, covariance = 0.4507683881992, (0.2442003609690, 0.2453159677743), 0.9534324962819
    assert losses.vicreg(z1, z2).item() == pytest.approx(18.3415963105524, rel=1e-9)
    assert losses.vicreg(z1, z2, std=50).item() == pytest.approx(24.4605505, abs=1e-6)
    assert losses.vicreg(z1, z2, sim=1, std=0, cov=0).item() == pytest.approx(invariance, abs=1e-9)
    assert losses.vicreg(z1, z2, sim=0, std=1, cov=0).item() == pytest.approx(sum(variances) / 2, abs=1e-9)
    assert losses.vicreg(z1, z2, sim=0, std=0, cov=1).item() == pytest.approx(covariance, abs=1e-9)


def check_golden_info_nce():
    q, k, queue = golden(1), golden(4), golden(5).T
    assert losses.info_nce(q, k, queue, 0.07).item() == pytest.approx(25.3757007415818, rel=1e-9)
    assert losses.info_nce(q, k, queue, 0.2).item() == pytest.approx(9.5900103951363, rel=1e-9)


@pytest.mark.parametrize(
    "check",
    [
        check_golden_negative_cosine,
        check_golden_nt_xent,
        check_golden_barlow_twins,
        check_golden_vicreg,
        check_golden_info_nce,
    ],
    ids=lambda check: check.__name__,
)
def test_golden_values_of_the_other_methods(check):
    check()


def half_symmetric(z1, z2):
    return (losses.negative_cosine(z1, z2.detach()) + losses.negative_cosine(z2, z1.detach())).mean() / 2


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as file:
        return {name: torch.from_numpy(file[name]).double() for name in file.files}


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("barlow_twins", losses.barlow_twins),
        ("lightly_barlow", losses.barlow_twins),
        ("vicreg", losses.vicreg),
        ("lightly_vicreg", losses.vicreg),
        ("nt_xent_t0.5", lambda z1, z2: losses.nt_xent(z1, z2, 0.5)),
        ("nt_xent_t0.1", lambda z1, z2: losses.nt_xent(z1, z2, 0.1)),
        ("simsiam_half_symmetric", half_symmetric),
    ],
)
def test_recorded_values_and_gradients_of_the_other_methods(recorded, name, loss):
    z1, z2 = (recorded[part].clone().requires_grad_() for part in ("z1", "z2"))
    found = loss(z1, z2)
    found.backward()
    assert found.item() == pytest.approx(recorded[f"{name}|loss"].item(), rel=1e-6)
    for part, z in (("grad_z1", z1), ("grad_z2", z2)):
        expected = recorded[f"{name}|{part}"]
        assert z.grad is not None, part
        assert (z.grad - expected).abs().max() < 1e-5 * expected.abs().max(), part


def test_recorded_value_and_gradient_of_moco(recorded):
    q = recorded["z1"].clone().requires_grad_()
    found = losses.info_nce(q, recorded["z2"], recorded["moco|queue_dim_by_k"], 0.07)
    found.backward()
    expected = recorded["moco_t0.07|grad_z1"]
    # The recorded queries already pick their keys with a probability of 0.998: in its float32 the loss is what 1 lacks,
    # and the largest gradient of 7e-6 is right to 1e-4 of itself. An absolute 1e-5 would pass a gradient of 0.
    assert found.item() == pytest.approx(recorded["moco_t0.07|loss"].item(), abs=1e-7)
    assert (q.grad - expected).abs().max() < 2e-4 * expected.abs().max()


def check_hand_worked_batch_info_nce():
    q = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    k = torch.tensor([[5.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    # Of length 1 the keys are (1, 0) and (0.6, 0.8). At temperature 0.5 the logits of the first query are 2 (its own)
    # and 1.2, those of the second 0 and 1.6 (its own): the losses are ln(1 + e^(1.2 - 2)) and ln(1 + e^(0 - 1.6)).
    expected = (math.log(1 + math.exp(-0.8)) + math.log(1 + math.exp(-1.6))) / 2
    assert losses.batch_info_nce(q, k, 0.5).item() == pytest.approx(expected, abs=1e-12)


def check_hand_worked_instance_nce():
    exponentials = torch.tensor([[2.0, 1.0, 4.0], [5.0, 5.0, 0.5]], dtype=torch.float64)
    # With Z = 10, P is (0.2; 0.1, 0.4) and (0.5; 0.5, 0.05). Two drawn of 8 images: K/N = 0.25.
    tiny = 1e-7
    first = -math.log(0.2 / (0.45 + tiny)) - math.log(0.25 / (0.35 + tiny)) - math.log(0.25 / (0.65 + tiny))
    second = -math.log(0.5 / (0.75 + tiny)) - math.log(0.25 / (0.75 + tiny)) - math.log(0.25 / (0.30 + tiny))
    found = losses.instance_nce(exponentials, torch.tensor(10.0, dtype=torch.float64), 8)
    assert found.item() == pytest.approx((first + second) / 2, abs=1e-12)


def check_hand_worked_labelled_cross_entropy():
    logits = torch.tensor([[1.0, 3.0], [9.0, -9.0], [0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    # The second image has no label: the mean is over two.
    expected = (math.log(1 + math.exp(1 - 3)) + math.log(1 + math.exp(0 - 0.5))) / 2
    found = losses.labelled_cross_entropy(logits, torch.tensor([1, -1, 0]))
    found.backward()
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert (logits.grad[1] == 0).all() and (logits.grad[[0, 2]] != 0).all()


def test_hand_worked_batch_info_nce():
    check_hand_worked_batch_info_nce()


def test_hand_worked_instance_nce():
    check_hand_worked_instance_nce()


def test_hand_worked_labelled_cross_entropy():
    check_hand_worked_labelled_cross_entropy()


def test_without_any_label_the_loss_is_zero_and_moves_nothing():
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = losses.labelled_cross_entropy(logits, torch.full((3,), -1))
    found.backward()
    assert found.item() == 0.0
    assert (logits.grad == 0).all()


# name -> (loss of float tensors, their shapes)
CASES = {
    "l2_normalize": (losses.l2_normalize, [(5, 4)]),
    "regression": (losses.regression, [(5, 4), (5, 4)]),
    "negative_cosine": (losses.negative_cosine, [(5, 4), (5, 4)]),
    "barlow_twins": (losses.barlow_twins, [(5, 4), (5, 4)]),
    "vicreg": (losses.vicreg, [(5, 4), (5, 4)]),
    "nt_xent": (lambda z1, z2: losses.nt_xent(z1, z2, 0.3), [(5, 4), (5, 4)]),
    "info_nce": (lambda q, k, queue: losses.info_nce(q, k, queue, 0.3), [(5, 4), (5, 4), (4, 6)]),
    "batch_info_nce": (lambda q, k: losses.batch_info_nce(q, k, 0.3), [(5, 4), (5, 4)]),
    "instance_nce": (lambda x, z: losses.instance_nce(x, z, 9), [(5, 4), ()]),
    "labelled_cross_entropy": (lambda x: losses.labelled_cross_entropy(x, torch.tensor([3, -1, 0, 1, 1])), [(5, 4)]),
}


def case(name, dtype=torch.float64):
    loss, shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    # Greater than 0, as the exponentials of instance_nce are.
    return loss, [0.1 + torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", CASES)
def test_every_argument_has_the_right_gradient(name):
    loss, tensors = case(name)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(loss, tensors)
    found = loss(*tensors)
    # Not the sum: that of rows of length 1 may stand still.
    weights = torch.arange(1.0, found.numel() + 1, dtype=torch.float64).view_as(found)
    for gradient in torch.autograd.grad((weights * found).sum(), tensors):
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing_and_half_types_are_promoted(name):
    loss, tensors = case(name, torch.float32)
    outside = loss(*tensors)
    assert outside.dtype == torch.float32
    halves = [tensor.bfloat16() for tensor in tensors]
    promoted = loss(*(half.float() for half in halves))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(*tensors), outside)
        assert torch.equal(loss(*halves), promoted)
    for found in (loss(*halves), loss(*(half.half() for half in halves))):
        assert found.dtype == torch.float32
        assert torch.equal(found, promoted)
    assert loss(*(tensor.double() for tensor in tensors)).dtype == torch.float64


def test_the_variance_term_is_zero_where_every_feature_varies_enough():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(32, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    z1, z2 = z1 / z1.std(dim=0), 1.5 * z2 / z2.std(dim=0)
    variance = {"sim": 0.0, "std": 25.0, "cov": 0.0}
    assert losses.vicreg(z1, z2, **variance).item() == 0.0
    # A standard deviation of 0.5 in one of six features of one view.
    z1[:, 2] /= 2
    expected = 25 / 2 * (1 - math.sqrt(0.25 + 1e-4)) / 6
    assert losses.vicreg(z1, z2, **variance).item() == pytest.approx(expected, abs=1e-12)
    assert losses.vicreg(z2, z1, **variance).item() == pytest.approx(expected, abs=1e-12)


def test_equal_views_leave_barlow_twins_its_redundancy_alone():
    z = golden(1, rows=32)
    assert losses.barlow_twins(z, z, 0.0).item() == pytest.approx(0.0, abs=1e-8)
    assert losses.barlow_twins(z, z, 1.0).item() > 0.1
    assert losses.barlow_twins(z, 3 * z + 1, 0.0).item() == pytest.approx(0.0, abs=1e-8)


def test_a_contrastive_loss_of_what_cannot_be_told_apart_is_the_logarithm_of_the_choices():
    z, queue = torch.ones(8, 4, dtype=torch.float64), torch.ones(4, 10, dtype=torch.float64)
    assert losses.nt_xent(z, z, 0.1).item() == pytest.approx(math.log(15))
    assert losses.info_nce(z, z, queue, 0.1).item() == pytest.approx(math.log(11))
    assert losses.batch_info_nce(z, z, 0.1).item() == pytest.approx(math.log(8))


def test_half_types_are_promoted_by_name_too():
    z1, z2 = (torch.randn(6, 4, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    expected = losses.nt_xent(z1.float(), z2.float(), 0.5)
    assert torch.equal(losses.nt_xent(z1=z1, z2=z2, temperature=0.5), expected)
