"""Against the published Random123 vectors, and the statistics a generator must have."""

import numpy as np
import pytest
import torch
from scipy import stats

from byol import rng

VECTORS = [  # Random123's kat_vectors, threefry2x32, 20 rounds: counter, key, output
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_threefry_gives_the_published_vectors(counter, key, output):
    found = rng.threefry2x32(tuple(map(torch.tensor, key)), tuple(map(torch.tensor, counter)))
    assert tuple(map(int, found)) == output


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_as_a_gpu_computes_it_it_gives_them_too(counter, key, output):
    assert tuple(map(int, rng._in_int64([torch.tensor(word) for word in (*key, *counter)]))) == output


def test_a_draw_does_not_depend_on_its_batch_or_order():
    root = rng.key(7)
    ids = torch.arange(1000)
    together = rng.bits(rng.fold(root, ids), 5)
    alone = torch.stack([rng.bits(rng.fold(root, int(i)), 5) for i in ids])
    assert torch.equal(together, alone)
    order = torch.randperm(1000)
    assert torch.equal(rng.bits(rng.fold(root, ids[order]), 5), together[order])
    assert torch.equal(rng.bits(rng.fold(root, ids), 3), together[:, :3])


def test_keys_of_different_things_differ():
    root = rng.key(0)
    keys = [rng.fold(rng.fold(root, a), b) for a in range(30) for b in range(30)]
    keys += [rng.key(seed) for seed in range(100)] + [rng.key(0, purpose) for purpose in rng.Purpose]
    assert len({tuple(k.tolist()) for k in keys}) == len(keys)
    assert not torch.equal(rng.fold(root, 1 << 32), rng.fold(root, 1))


def test_a_fold_never_repeats_what_bits_gives():
    root = rng.key(3)
    assert not torch.equal(rng.fold(root, 0), rng.bits(root, 2))


def test_values_and_bits_are_uniform():
    words = rng.bits(rng.fold(rng.key(1), torch.arange(20_000)), 4)
    per_bit = torch.stack([(words >> bit) & 1 for bit in range(32)]).double().mean((1, 2))
    assert ((per_bit - 0.5).abs() < 4 * 0.5 / np.sqrt(words.numel())).all()
    uniform = rng.uniform(rng.fold(rng.key(1), torch.arange(20_000)), 4)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert torch.equal(uniform, uniform.float().double())
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    columns = np.corrcoef(uniform.numpy().T)
    assert np.abs(columns - np.eye(4)).max() < 4 / np.sqrt(20_000)


def test_permutation_holds_each_number_once_and_follows_from_its_key():
    first = rng.permutation(rng.key(0), 1001)
    assert torch.equal(first.sort().values, torch.arange(1001))
    assert torch.equal(first, rng.permutation(rng.key(0), 1001))
    assert not torch.equal(first, rng.permutation(rng.key(1), 1001))


def test_places_in_a_permutation_are_uniform():
    keys = rng.fold(rng.key(5), torch.arange(3000))
    places = torch.stack([rng.permutation(key, 6) for key in keys])
    counts = torch.stack([(places == value).sum(0) for value in range(6)])
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="out of range"):
        rng.key(seed)


@pytest.mark.gpu
def test_the_same_integers_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ids = torch.arange(4096)
    here = rng.bits(rng.fold(rng.key(9), ids), 7)
    for key, at in ((rng.key(9).cuda(), ids.cuda()), (rng.key(9), ids.cuda()), (rng.key(9).cuda(), ids)):
        there = rng.bits(rng.fold(key, at), 7)
        assert there.is_cuda
        assert torch.equal(here, there.cpu())
