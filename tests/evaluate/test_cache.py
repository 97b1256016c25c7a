"""The feature cache: the same bits with and without, files that are damaged or too many, and bounded memory."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from byol.data.places import cache_directory
from byol.data.source import DataError
from byol.evaluate import cache as cache_module
from byol.evaluate.cache import (
    FeatureCache,
    cached_features,
    feature_key,
)
from byol.evaluate.features import extract, stream_features
from byol.evaluate.knn import weighted_knn

KEYS = [format(i, "064x") for i in range(8)]


def features(num=70, dim=9, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator) * scale + torch.arange(dim) / 3


def never():
    pytest.fail("features were made though the cache has them")
    yield


def cached(cache, values, key=KEYS[0]):
    return cached_features(cache, key, len(values), values.split(32))


def test_features_have_the_same_bits_with_and_without_a_cache_and_from_it(tmp_path):
    cache, values = FeatureCache(tmp_path / "new" / "folder"), features()
    without = cached(None, values)
    first = cached(cache, values)
    again = cached_features(cache, KEYS[0], 70, never())
    assert without.dtype == first.dtype == again.dtype == np.float16
    for found in (first, again):
        assert isinstance(found, np.memmap) and not found.flags.writeable
        assert found.tobytes() == without.tobytes() == values.numpy().astype(np.float16).tobytes()
    assert [path.name for path in cache.directory.iterdir()] == [f"{KEYS[0]}.npy"]


def test_batching_and_how_much_is_copied_at_a_time_change_nothing(tmp_path, monkeypatch):
    values = features()
    expected = cached(None, values).tobytes()
    monkeypatch.setattr(cache_module, "VALUES_AT_ONCE", 50)
    assert cached_features(None, "", 70, values.split(7)).tobytes() == expected
    assert cached(FeatureCache(tmp_path), values).tobytes() == expected
    assert cached_features(FeatureCache(tmp_path), KEYS[0], 70, never()).tobytes() == expected


@pytest.mark.parametrize(
    "changed",
    [
        lambda x: x * 1e5,  # beyond float16's 65,504
        lambda x: x * 1e-8,  # below its smallest number
        lambda x: x * 1e-3 + 5,  # numbers near 5 are 0.004 apart
        lambda x: torch.cat([x[:60], x[60:] * 1e7]),  # known only when all but the end is written
        lambda x: torch.cat([x[:, :8], x[:, 8:] * 1e-4 + 1], dim=1),  # one feature of nine
        lambda x: torch.where(x > 3, torch.nan, x),
    ],
)
def test_features_that_rounding_would_change_are_kept_in_float32(changed, tmp_path):
    values = changed(features())
    for found in (cached(None, values), cached(FeatureCache(tmp_path), values)):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values.numpy())
    assert cached_features(FeatureCache(tmp_path), KEYS[0], 70, never()).dtype == np.float32


def test_constant_features_do_not_count_as_changed():
    values = features(num=3001, dim=300)
    values[:, 1:] = torch.rand(299, generator=torch.Generator().manual_seed(0)) * 100
    values[:, 3] = 0
    assert cached(None, values).dtype == np.float16


def test_rounding_is_measured_against_the_spread():
    # From 2^k to 2^(k + 1) float16's numbers are 2^(k - 10) apart, and the error's std is that / sqrt 12, here of a std
    # of 1: 0.0045 at 2^4, 0.018 at 2^6.
    values = features(num=500, dim=1)
    assert cached(None, values + 1.5 * 2**4).dtype == np.float16
    assert cached(None, values + 1.5 * 2**6).dtype == np.float32


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"PK\3\4" + data[4:],
        lambda data: data[:40] + b"\xff" + data[41:],
        lambda data: data[:-300] + bytes([data[-300] ^ 1]) + data[-299:],
    ],
)
def test_a_damaged_file_is_made_again(damage, tmp_path):
    cache, values = FeatureCache(tmp_path), features()
    expected = cached(cache, values).tobytes()
    path = tmp_path / f"{KEYS[0]}.npy"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    assert cache.read(KEYS[0], 70) is None
    assert cached(cache, values).tobytes() == expected
    assert path.read_bytes() == whole


def test_a_file_of_another_number_of_images_is_made_again(tmp_path):
    cache = FeatureCache(tmp_path)
    cached(cache, features(50))
    assert cached(cache, features(70)).shape == (70, 9)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def broken():
        yield features(10)
        raise RuntimeError("stopped")

    cache = FeatureCache(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        cached_features(cache, KEYS[0], 20, broken())
    with pytest.raises(RuntimeError, match="stopped"):
        cache.write(KEYS[0], (20, 9), np.dtype(np.float32), (batch.numpy() for batch in broken()))
    assert list(tmp_path.iterdir()) == []


def test_the_files_read_longest_ago_are_deleted_beyond_the_limit(tmp_path):
    values = features()
    size = 70 * 9 * 2 + 128 + 4
    cache = FeatureCache(tmp_path, limit_bytes=3 * size)
    (tmp_path / "mine.npy").write_bytes(bytes(10 * size))  # not the cache's
    for i, key in enumerate(KEYS[:3]):
        cached(cache, values, key)
        os.utime(tmp_path / f"{key}.npy", (i, i))
    held = cache.read(KEYS[0], 70)  # now the youngest
    cached(cache, values, KEYS[3])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mine.npy", *(f"{KEYS[i]}.npy" for i in (0, 2, 3))}
    # A file above the limit alone stays, and what is mapped stays readable.
    cached(FeatureCache(tmp_path, limit_bytes=1), values, KEYS[4])
    assert {path.name for path in tmp_path.iterdir()} == {"mine.npy", f"{KEYS[4]}.npy"}
    assert held.tobytes() == values.numpy().astype(np.float16).tobytes()


def test_keys_follow_from_everything_that_features_follow_from():
    given = {
        "weights": "a",
        "description": {"name": "resnet18", "args": {"layers": [1]}},
        "fingerprint": "f",
        "ids": np.arange(5),
        "size": 32,
        "mean": (0.5,),
        "std": (0.25,),
    }
    others = [
        {"weights": "b"},
        {"description": {"name": "resnet18", "args": {"layers": [2]}}},
        {"fingerprint": "g"},
        {"ids": np.arange(6)},
        {"ids": np.array([0, 1, 2, 4, 3])},
        {"size": 33},
        {"mean": (0.25,), "std": (0.25,)},
        {"mean": (0.5,), "std": (0.5,)},
    ]
    assert len({feature_key(**(given | other)) for other in [{}, *others]}) == 1 + len(others)
    same = {
        "description": {"args": {"layers": [1]}, "name": "resnet18"},
        "ids": np.arange(5, dtype=np.int32),
        "mean": [0.5],
    }
    assert feature_key(**(given | same)) == feature_key(**given)
    assert len(bytes.fromhex(feature_key(**given))) == 32


def test_the_default_place(monkeypatch):
    monkeypatch.setenv("BYOL_CACHE", "/somewhere")
    assert cache_directory() == Path("/somewhere")
    monkeypatch.delenv("BYOL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_directory() == Path("/caches/byol")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "byol"


def test_what_is_wrong_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written to .*file: .*choose another folder"):
        cached(FeatureCache(tmp_path / "file"), features())
    with pytest.raises(ValueError, match="features of 70 images came where 71"):
        cached_features(None, "", 71, features().split(32))
    with pytest.raises(ValueError, match=r"features are \[3, 4\] after \[70, 9\]"):
        cached_features(None, "", 73, [features(), features(3, 4)])


def test_a_full_disk_is_said_in_one_line(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # bytes a file may have
    try:
        with pytest.raises(DataError, match=f"cannot be written to {tmp_path}: file too large; make room") as error:
            cached(FeatureCache(tmp_path), features(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_batches_own_is_not_taken_for_the_cache_s(tmp_path):
    def broken():
        yield features(10)
        raise OSError("the images are gone")

    with pytest.raises(OSError, match="the images are gone"):
        cached_features(FeatureCache(tmp_path), KEYS[0], 20, broken())


def test_memory_is_that_of_a_batch(tmp_path):
    num, dim, batch = 200_000, 256, 2000
    block = np.random.default_rng(0).normal(size=(batch, dim)).astype(np.float32)
    whole = num * dim * 4
    tracemalloc.start()
    try:
        batches = (torch.from_numpy(block + np.float32(i % 7)) for i in range(num // batch))
        cached_features(FeatureCache(tmp_path), KEYS[0], num, batches)
        found = FeatureCache(tmp_path).read(KEYS[0], num)
        total = sum(float(found[start : start + batch].astype(np.float32).sum()) for start in range(0, num, batch))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        (tmp_path / f"{KEYS[0]}.npy").unlink()
    assert found.dtype == np.float16
    assert total == pytest.approx(sum((block + i % 7).sum(dtype=np.float64) for i in range(100)), rel=1e-4)
    assert peak < whole / 5


def test_streamed_features_are_those_of_extract_and_feed_knn(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    labels = torch.arange(40) % 2
    images = (torch.randint(0, 100, (40, 1, 8, 8)) + 100 * labels[:, None, None, None]).to(torch.uint8)
    options = {"mean": (0.5,), "std": (0.25,), "size": None, "batch_size": 16}
    stream = stream_features(network, iter(images.split(10)), **options)
    first = next(stream)
    assert not first.requires_grad and torch.is_grad_enabled() and not network.training
    rest = torch.cat(list(stream))
    assert network.training and network[1].training
    expected = extract(network, images, **options)
    torch.testing.assert_close(torch.cat([first, rest]), expected)
    cache = FeatureCache(tmp_path)
    found = cached_features(cache, KEYS[0], 40, stream_features(network, images, **options))
    bank = torch.from_numpy(found.astype(np.float32))
    assert weighted_knn(bank[:30], labels[:30], bank[30:], k=3).tolist() == labels[30:].tolist()
    assert cached_features(cache, KEYS[0], 40, stream_features(nn.Identity(), images, **options)) is not None


def test_modes_are_restored_when_a_stream_is_left_early():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)).train()
    stream = stream_features(
        network, torch.zeros(9, 1, 8, 8, dtype=torch.uint8), mean=(0,), std=(1,), size=None, batch_size=2
    )
    next(stream)
    stream.close()
    assert network.training and network[1].training
