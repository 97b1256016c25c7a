"""The order of images, and batches that depend on their number alone."""

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from byol.data.loader import (
    Loader,
    Normalization,
    Order,
    data_statistics,
    fits_memory,
    load_pixels,
    split_hold_out,
    views_for,
)
from byol.data.open import open_source
from byol.data.source import DataError, Source
from byol.views import recipes
from byol.views.view import BYOL_T, BYOL_T_PRIME, View

PLAIN = Normalization((0.5,) * 3, (0.25,) * 3)


def test_each_epoch_holds_each_image_once_and_batches_run_across_epochs():
    order = Order(10, seed=0)
    rows, epochs = order(torch.arange(30))
    assert epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for epoch in range(3):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:20].tolist()
    pieces = torch.cat([Order(10, seed=0)(torch.arange(start, start + 7))[0] for start in (0, 7, 14)])
    assert torch.equal(pieces, rows[:21])
    assert not torch.equal(Order(10, seed=1)(torch.arange(10))[0], rows[:10])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(24):
        size = (40 + i, 50) if i % 2 else (64, 48)
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i:03}.png")
    whole = (root / "007.png").read_bytes()
    (root / "007.png").write_bytes(whole[: len(whole) // 2])
    return root


def loader_of(root, *, batch_size=5, workers=0, seed=3):
    source = open_source(root)
    return Loader(
        source,
        (BYOL_T, BYOL_T_PRIME),
        pixels=None,
        size=24,
        batch_size=batch_size,
        normalization=PLAIN,
        seed=seed,
        workers=workers,
    )


def by_image(batches):
    """(id of the row used, view) of every image, in order."""
    return [(int(i), a, b) for batch in batches for i, a, b in zip(batch.ids, *batch.views, strict=True)]


def same(left, right):
    return len(left) == len(right) and all(
        i == j and torch.equal(a, c) and torch.equal(b, d) for (i, a, b), (j, c, d) in zip(left, right, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # more than some machines have cores
def test_workers_batch_size_and_restart_change_nothing(folder):
    base = by_image(loader_of(folder, batch_size=4).batches(0, 15))
    assert same(base, by_image(loader_of(folder, batch_size=12).batches(0, 5)))
    assert same(base[20:], by_image(loader_of(folder, batch_size=4).batches(5, 15)))
    assert same(base[:24], by_image(loader_of(folder, batch_size=4, workers=4).batches(0, 6)))


def test_another_process_makes_the_same_views(folder):
    code = f"""
import json, torch
import sys; sys.path.insert(0, {json.dumps(sys.path[0])!s})
from byol.data.loader import Loader, Normalization
from byol.data.open import open_source
from byol.views.view import BYOL_T, BYOL_T_PRIME
loader = Loader(open_source({str(folder)!r}), (BYOL_T, BYOL_T_PRIME), pixels=None, size=24, batch_size=5,
                normalization=Normalization((0.5,) * 3, (0.25,) * 3), seed=3)
batch = next(iter(loader.batches(2, 3)))
from hashlib import sha256
print(json.dumps([sha256(v.numpy().tobytes()).hexdigest() for v in batch.views] + batch.ids.tolist()))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    batch = next(iter(loader_of(folder).batches(2, 3)))
    own = [sha256(v.numpy().tobytes()).hexdigest() for v in batch.views]
    assert json.loads(found.stdout) == own + batch.ids.tolist()


def test_views_come_normalised(folder):
    statistics = Normalization((0.2, 0.5, 0.7), (0.1, 0.25, 0.5))
    plain = next(iter(loader_of(folder).batches(0, 1)))
    loader = loader_of(folder)
    loader.normalization = statistics
    for view, raw in zip(next(iter(loader.batches(0, 1))).views, plain.views, strict=True):
        raw = raw * torch.tensor(PLAIN.std)[:, None, None] + torch.tensor(PLAIN.mean)[:, None, None]
        for channel, (mean, std) in enumerate(zip(statistics.mean, statistics.std, strict=True)):
            assert torch.allclose(view[:, channel], (raw[:, channel] - mean) / std, atol=1e-5)


def test_a_broken_image_is_replaced_by_a_fixed_other_one_and_reported(folder):
    batches = list(loader_of(folder).batches(0, 10))
    reported = [bad for batch in batches for bad in batch.replaced]
    assert reported
    assert {bad for bad, _ in reported} == {7}
    assert all(7 not in batch.ids for batch in batches)
    again = list(loader_of(folder).batches(0, 10))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(batches, again, strict=True))


def test_nothing_but_broken_images_ends_in_one_line(tmp_path):
    for i in range(3):
        Image.new("RGB", (300, 300), (i, 0, 0)).save(tmp_path / f"{i}.png")
        data = (tmp_path / f"{i}.png").read_bytes()
        (tmp_path / f"{i}.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="unusable"):
        next(iter(loader_of(tmp_path, batch_size=2).batches(0, 1)))


def test_memory_and_workers_agree_within_a_grey_level(tmp_path):
    generator = np.random.default_rng(1)
    for i in range(8):
        Image.fromarray(generator.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    source = open_source(tmp_path)
    assert fits_memory(source)
    source, pixels, _ = load_pixels(source)
    view = View(jitter=0, gray=0, blur=0)
    arguments = {
        "size": 16,
        "batch_size": 8,
        "normalization": Normalization((0.0,) * 3, (1.0,) * 3),
        "seed": 0,
    }
    in_memory = next(iter(Loader(source, (view,), pixels=pixels, **arguments).batches(0, 1)))
    decoded = next(iter(Loader(source, (view,), pixels=None, **arguments).batches(0, 1)))
    assert torch.equal(in_memory.ids, decoded.ids)
    assert (in_memory.views[0] - decoded.views[0]).abs().max() <= 0.5 / 255 + 1e-5


def test_views_are_full_precision_also_where_the_caller_computes_in_less(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    source, held, _ = load_pixels(open_source(tmp_path / "a.npy"))
    for kept in (held, None):
        loader = Loader(source, (BYOL_T, BYOL_T_PRIME), pixels=kept, size=16, batch_size=8, normalization=PLAIN, seed=0)
        rows = torch.arange(16)
        plain = loader.batch_of(rows, torch.zeros(16, dtype=torch.int64))
        with torch.autocast("cpu", torch.bfloat16):
            within = loader.batch_of(rows, torch.zeros(16, dtype=torch.int64))
        for a, b in zip(plain.views, within.views, strict=True):
            assert b.dtype == torch.float32
            assert torch.equal(a, b)


def test_hold_out_is_a_fixed_share_that_training_never_sees():
    source = open_source("digits")
    train, held = split_hold_out(source, 0.05, seed=0)
    assert len(held) == 200
    assert len(train) == 3800
    assert not set(train.ids) & set(held.ids)
    assert np.array_equal(split_hold_out(source, 0.05, seed=0)[1].ids, held.ids)
    assert split_hold_out(source, 0.0, seed=0)[1] is None
    assert split_hold_out(source.subset(np.arange(100)), 0.05, seed=0)[1] is None


def test_statistics_are_those_of_the_pixels():
    source, pixels, _ = load_pixels(open_source("digits").subset(np.arange(500)))
    found = data_statistics(source, pixels, num=500)
    flat = pixels.double() / 255
    assert found.mean[0] == pytest.approx(flat.mean().item(), abs=1e-4)
    assert found.std[0] == pytest.approx(flat.std(correction=0).item(), abs=1e-4)


def test_colour_changes_are_left_out_for_gray_images():
    source = open_source("digits")
    gray = views_for((BYOL_T, BYOL_T_PRIME), source)
    assert all(v.hue == v.saturation == v.gray == 0 for v in gray)
    assert [v.blur for v in gray] == [1.0, 0.1]
    assert not any(v.channelwise for v in gray)
    assert views_for((BYOL_T,), replace(source, channels=3)) == (BYOL_T,)
    (five,) = views_for((BYOL_T,), replace(source, channels=5, deep=True))
    assert five.channelwise and (five.hue, five.saturation, five.gray) == (0, 0, 0)


def waves(height, width):
    y, x = np.mgrid[:height, :width]
    return 128 + 90 * np.stack(
        [np.sin(2 * np.pi * (x / a + y / b)) for a, b in ((400, 900), (700, 300), (500, 500))], 2
    )


def test_crops_of_large_photographs_are_cut_from_a_reduced_image_at_the_same_place(tmp_path, monkeypatch):
    Image.fromarray(waves(1203, 1600).round().astype(np.uint8)).save(tmp_path / "0.jpg", quality=95, subsampling=0)
    Image.fromarray(waves(1203, 1600).round().astype(np.uint8)).save(tmp_path / "1.png")
    asked = []
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda self, i, reduce=1: asked.append((i, reduce)) or read(self, i, reduce))
    view = View(jitter=0, gray=0, blur=0, flip=0, crop_area=(0.25, 1.0))
    found = {}
    for reduced in (True, False):
        loader = Loader(
            open_source(tmp_path),
            (view, view),
            pixels=None,
            size=64,
            batch_size=2,
            normalization=Normalization((0.0,) * 3, (1.0,) * 3),
            seed=0,
            reduced=reduced,
        )
        rows = torch.tensor([0, 1]).repeat(10)
        found[reduced] = loader.batch_of(rows, torch.arange(20)).views
    factors = {reduce for image, reduce in asked if image == 0}
    assert factors - {1} and 1 in factors  # the run without reducing asks for 1
    for reduced, full in zip(found[True], found[False], strict=True):
        # Half a reduced pixel, 1 to 4 px, would shift the waves by 0.005 and more in the mean.
        assert (reduced - full).abs().mean() < 0.002
        assert (reduced - full).abs().max() < 0.02
    # No crop is enlarged for having been cut from a smaller image.
    for epoch in range(20):
        keys = recipes.view_keys(0, torch.tensor([epoch]), torch.tensor([0]), 2)
        boxes = [recipes.place(view, recipes.crop_numbers(view, k), *torch.tensor([[1203], [1600]])) for k in keys]
        smallest = min(float(box[0, 2:].min()) for box in boxes)
        assert (0, max(k for k in (1, 2, 4, 8) if k == 1 or smallest >= 64 * k)) in asked


def test_the_share_of_each_process_is_every_second_image(folder):
    whole = list(loader_of(folder, batch_size=6).batches(0, 4))
    shares = []
    for rank in range(2):
        loader = loader_of(folder, batch_size=6, workers=2)
        loader.share = (rank, 2)
        shares.append(list(loader.batches(0, 4)))
    for number, batch in enumerate(whole):
        for rank in range(2):
            assert torch.equal(batch.ids[rank::2], shares[rank][number].ids)
            for view, own in zip(batch.views, shares[rank][number].views, strict=True):
                assert torch.equal(view[rank::2], own)
