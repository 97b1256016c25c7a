"""Tiles: which pixels they are, whose they are, and that an image is decoded once for all of them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from byol.data.loader import Loader, Normalization, split_hold_out
from byol.data.open import open_source
from byol.data.source import DataError
from byol.data.tiles import tiled
from byol.options import Options
from byol.pipeline import pretrain
from byol.views.view import View

SIZES = {"a/0.png": (100, 130), "a/1.png": (64, 64), "b/2.png": (40, 90), "b/3.png": (129, 64)}


def pixels(number):
    height, width = list(SIZES.values())[number]
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(x, number)], 2).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(SIZES):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(tmp_path / "images" / name)
    (tmp_path / "images/a/00-broken.png").write_bytes(b"none")
    return tmp_path / "images"


def test_tiles_cover_each_image_and_end_with_it(folder):
    source = tiled(open_source(folder), 64)
    # (top, left) by hand: 2 x 3 of 100 x 130, 1, 1 x 2 of 40 x 90, 3 x 1 of 129 x 64.
    places = [(0, 0), (0, 64), (0, 66), (36, 0), (36, 64), (36, 66), (0, 0), (0, 0), (0, 26), (0, 0), (64, 0), (65, 0)]
    images = [0] * 6 + [1] + [2] * 2 + [3] * 3
    assert len(source) == source.num_listed == 12
    for tile, ((top, left), image) in enumerate(zip(places, images, strict=True)):
        expected = pixels(image)[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(source.read(tile), expected)
        assert source.header(tile) == (*expected.shape[:2], 3)
        assert source.sizes[tile].tolist() == list(expected.shape[:2])
        assert source.name_of(tile) == f"{list(SIZES)[image]} at {top},{left}"
    assert source.groups.tolist() == [[0, 2, 3, 4][image] for image in images]  # 1 is the broken one
    assert source.labels.tolist() == [0 if image < 2 else 1 for image in images]
    assert [len(each[2]) > 0 for each in source.skipped] == [True]
    assert source.fingerprint != tiled(open_source(folder), 32).fingerprint


def test_an_image_is_decoded_once_for_all_its_tiles(folder, monkeypatch):
    source = tiled(open_source(folder), 16)
    decoded = []
    listing = type(source.listing.listing)
    original = listing.read
    monkeypatch.setattr(listing, "read", lambda self, i, *rest: decoded.append(i) or original(self, i, *rest))
    source.hold_units(2)
    for tile in range(len(source)):
        source.read(tile)
    assert sorted(decoded) == [0, 2, 3, 4]
    assert pickle.loads(pickle.dumps(source)).read(3).shape == (16, 16, 3)


def test_a_run_on_tiles_says_so_and_goes_on_from_what_it_wrote(folder, tmp_path):
    options = Options(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        image_size=12,
        batch_size=8,
        steps=4,
        precision="32",
        workers=1,
        tile=16,
        method_args={"hidden": 16, "out": 8},
    )
    run = pretrain(str(folder), tmp_path / "run", options)
    assert (run.tile, run.streams) == (16, 4)
    assert run.facts["images_listed"] == len(tiled(open_source(folder), 16))
    assert pretrain(str(folder), tmp_path / "run", resume=True) == run
    training, held = split_hold_out(tiled(open_source(folder), 16), 0.3, seed=0)
    assert held is not None and not set(held.ids) & set(training.ids)


def test_held_out_tiles_are_those_of_whole_images(tmp_path):
    for number in range(20):
        generator = np.random.default_rng(number)
        Image.fromarray(generator.integers(0, 256, (40 + number, 40, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    source = tiled(open_source(tmp_path), 16)
    training, held = split_hold_out(source, 0.1, seed=0)
    assert 9 <= len(held) <= round(0.1 * len(source))
    assert not set(held.groups.tolist()) & set(training.groups.tolist())
    assert len(held) + len(training) == len(source)
    assert set(split_hold_out(source, 0.1, seed=1)[1].groups.tolist()) != set(held.groups.tolist())


def test_of_very_many_tiles_a_few_images_are_held_out(tmp_path):
    for number in range(100):
        Image.new("RGB", (400, 400)).save(tmp_path / f"{number}.png")
    source = tiled(open_source(tmp_path), 8)  # 2,500 of each image
    training, held = split_hold_out(source, 0.1, seed=0)
    assert len(held) == 1024
    assert len(source) - len(training) == 8 * 2500, "of the 10 that a tenth would be"
    assert len(set(held.groups.tolist())) == 8
    assert not set(held.groups.tolist()) & set(training.groups.tolist())


def test_tiles_of_a_run_are_decoded_once_an_epoch(tmp_path, monkeypatch):
    for number in range(12):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    source = tiled(open_source(tmp_path), 16)
    decoded = []
    listing = type(source.listing.listing)
    original = listing.read
    monkeypatch.setattr(listing, "read", lambda self, i, *rest: decoded.append(i) or original(self, i, *rest))
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    loader = Loader(
        source, (View(),) * 2, pixels=None, size=8, batch_size=4, normalization=normalization, seed=0, streams=2
    )
    for _ in loader.batches(0, 10):  # 20 of the 24 tiles of each stream: five of its six images, and the sixth
        pass
    source.listing.units._pool.shutdown()
    assert sorted(decoded) == list(range(12))


def test_what_cannot_be_tiled(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 20, 20), np.uint8))
    assert len(tiled(open_source(tmp_path / "a.npz"), 8)) == 27
    with pytest.raises(DataError, match="cut tiles first"):
        tiled(replace(open_source(tmp_path / "a.npz"), sizes=None), 8)
