"""Two real processes compute what one does with the same global batch: loss, gradients, and everything remembered."""

import pytest
import torch
import torch.multiprocessing as mp
from methods import outside
from methods.two_processes import DTYPES, NORMALISED, VARIANTS, WORLD, jobs, measure, normalised, work

# Of the largest gradient in float64; relative in float32.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found, all methods in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    outside.write(folder)
    mp.spawn(work, (str(folder / "store"), str(folder)), nprocs=WORLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]
    outside.forget()


def disagreement(found, expected, prefix, least=0.0):
    """The largest difference between tensors of that prefix, as a share of the largest value, or of `least`."""
    names = [name for name in expected if name.startswith(prefix)]
    assert names and set(names) == {name for name in found if name.startswith(prefix)}
    largest = max(least, *(expected[name].abs().max().item() for name in names))
    return max((found[name] - expected[name]).abs().max().item() for name in names) / largest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_one_process(ranks, name, dtype):
    key = f"{name}|{dtype}|steps"
    expected = measure(*jobs()[key][:2], seeds=jobs()[key][2])
    for found in ranks:
        # A mean of cosines may be near 0, and is rounded as they are.
        least = 1.0 if dtype == "float32" else 0.0
        assert disagreement(found[key], expected, "0|loss", least) <= TOLERANCE[dtype]
        assert disagreement(found[key], expected, "0|gradient|") <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", VARIANTS)
def test_three_steps_leave_the_state_of_one_process_on_every_rank(ranks, name):
    key = f"{name}|float64|steps"
    expected = measure(*jobs()[key][:2], seeds=jobs()[key][2])
    for part in expected:
        if not part.startswith("state|"):
            continue
        first, second = (found[key][part] for found in ranks)
        # Queue, bank and running statistics are equal by what each process does, not by sending them around.
        assert torch.equal(first, second), part
        assert torch.allclose(first, expected[part], rtol=1e-9, atol=1e-10), part


@pytest.mark.parametrize("name", NORMALISED)
def test_batch_norm_is_torch_s_of_the_whole_batch(ranks, name):
    # A gradient is rounded to bfloat16 three times on its way here and once in torch, by up to 2^-9 each of terms that
    # may be larger than their sum; what is of a channel is kept in float32.
    dtype = NORMALISED[name][0]
    exact = 1e-13 if dtype == torch.float64 else 2e-6
    rows, sums = (2**-6, 2e-3) if dtype == torch.bfloat16 else (exact, exact)
    expected, (first, second) = normalised(*NORMALISED[name]), (each[name] for each in ranks)
    for part in ("output", "gradient"):
        found = torch.cat([first[part], second[part]])
        assert (found - expected[part]).abs().max() <= rows * expected[part].abs().max(), part
    for part in ("mean", "var"):
        assert torch.equal(first[part], second[part])
        assert torch.allclose(first[part], expected[part], rtol=exact), part
    for part in expected.keys() - {"output", "gradient", "mean", "var"}:
        assert ((first[part] + second[part]) - expected[part]).abs().max() <= sums * expected[part].abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_accumulation_of_the_same_micro_batches_agrees(ranks, name):
    key = f"{name}|float64|micro"
    expected = measure(*jobs()[key][:2], seeds=jobs()[key][2])
    for found in ranks:
        for step in range(2):
            assert disagreement(found[key], expected, f"{step}|loss") <= 1e-9
            assert disagreement(found[key], expected, f"{step}|gradient|") <= 1e-8
        assert disagreement(found[key], expected, "state|") <= 1e-8


@pytest.mark.parametrize("name", VARIANTS)
def test_a_gather_that_keeps_its_own_gradient_only_is_found_out(ranks, name):
    expected = measure(name, torch.float64)
    assert disagreement(ranks[0][f"{name}|wrong gather"], expected, "0|gradient|") > 1e-3
