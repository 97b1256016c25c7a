"""Shards: what is read, in which order, and that neither processes nor workers nor a stop change it."""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stream_run
import torch
from PIL import Image

from byol.data.loader import Loader, Normalization, split_hold_out
from byol.data.open import open_source
from byol.data.order import StreamOrder
from byol.data.source import DataError
from byol.pipeline import Silent, pretrain
from byol.train import TrainingStopped
from byol.views.view import View

NUM, SIDE = 240, 20


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYOL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def image(number):
    """Its number in the first pixel, noise elsewhere."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 4, 3), dtype=np.uint8)
    pixels[0, 0] = number
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(folder, files=4, row_group=10):
    per_file = NUM // files
    for f in range(files):
        rows = range(f * per_file, (f + 1) * per_file)
        table = pa.table(
            {"image": [{"bytes": image(i), "path": f"{i}.png"} for i in rows], "label": [i % 3 for i in rows]}
        )
        pq.write_table(table, folder / f"part-{f:03}.parquet", row_group_size=row_group)


def write_tars(folder, files=4):
    per_file = NUM // files
    for f in range(files):
        with tarfile.open(folder / f"shard-{f:03}.tar", "w") as archive:
            for i in range(f * per_file, (f + 1) * per_file):
                for ending, data in (("json", b"{}"), ("cls", str(i % 3).encode()), ("png", image(i))):
                    member = tarfile.TarInfo(f"set/{i:05}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    write_parquet(folder)
    return folder


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder)
    return folder


def opened(kind, parquet, tars, monkeypatch):
    monkeypatch.setattr("byol.data.shards.UNIT_BYTES", 16_000)  # about ten of these images
    return open_source(parquet, streams=True) if kind == "parquet" else open_source(tars)


def test_every_epoch_of_the_streams_holds_every_row_once():
    bounds = np.array([0, 7, 7, 19, 24, 40, 41, 60])
    order = StreamOrder(bounds, 4, seed=0)
    positions = torch.arange(4 * 200)
    rows, epochs = order(positions)
    for epoch in range(8):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(60))
    # A stream sees one unit after the other.
    unit = np.searchsorted(bounds, rows[::4].numpy(), side="right")
    changes = 1 + (np.diff(unit) != 0).sum()
    assert changes <= len(set(zip(unit.tolist(), epochs[::4].tolist(), strict=True)))
    shuffled = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    again = StreamOrder(bounds, 4, seed=0)(positions[shuffled])
    assert torch.equal(again[0], rows[shuffled]) and torch.equal(again[1], epochs[shuffled])
    assert not torch.equal(StreamOrder(bounds, 4, seed=1)(positions)[0], rows)
    first = [rows[epochs == epoch].tolist() for epoch in range(2)]
    assert first[0] != first[1]
    with pytest.raises(ValueError, match="6 units cannot be read in 8 streams"):
        StreamOrder(bounds, 8, seed=0)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_rows_are_numbered_through_all_shards(kind, parquet, tars, monkeypatch):
    source = opened(kind, parquet, tars, monkeypatch)
    assert len(source) == source.num_listed == NUM
    assert (source.height, source.width, source.channels) == (SIDE, SIDE + 4, 3)
    assert len(source.unit_starts) >= 20
    assert source.labels.tolist() == [i % 3 for i in range(NUM)]
    for i in (0, 59, 60, 123, 239):
        assert source.read(i)[0, 0, 0] == i
        assert source.header(i) == (SIDE, SIDE + 4, 3)
    assert source.name_of(61).endswith("001.parquet row 1" if kind == "parquet" else "001.tar row 1")
    assert source.fingerprint == opened(kind, parquet, tars, monkeypatch).fingerprint


def loader_of(source, *, share=(0, 1), workers=0, batch_size=8, streams=8):
    return Loader(
        source,
        (View(), View()),
        pixels=None,
        size=12,
        batch_size=batch_size,
        normalization=Normalization((0.5,) * 3, (0.25,) * 3),
        seed=0,
        share=share,
        workers=workers,
        streams=streams,
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_neither_processes_nor_workers_change_a_batch(kind, parquet, tars, monkeypatch):
    source = opened(kind, parquet, tars, monkeypatch)
    whole = list(loader_of(source).batches(3, 9))
    assert len({int(i) for batch in whole for i in batch.ids}) == 48
    for world, workers in ((1, 3), (2, 2), (4, 0)):
        for rank in range(world):
            share = loader_of(source, share=(rank, world), workers=workers).batches(3, 9)
            for batch, own in zip(whole, share, strict=True):
                assert torch.equal(batch.ids[rank::world], own.ids)
                assert torch.equal(batch.labels[rank::world], own.labels)
                for view, view_here in zip(batch.views, own.views, strict=True):
                    assert torch.equal(view[rank::world], view_here)


def test_each_process_reads_its_own_units_and_each_once(parquet, monkeypatch):
    source = open_source(parquet, streams=True)
    read = []
    original = type(source.listing)._read
    monkeypatch.setattr(type(source.listing), "_read", lambda self, unit: read.append(unit) or original(self, unit))
    units = []
    for rank in range(2):
        fresh = open_source(parquet, streams=True)
        read.clear()
        for _ in loader_of(fresh, share=(rank, 2)).batches(0, 8):
            pass
        assert len(read) == len(set(read))
        units.append(set(read))
    assert not units[0] & units[1]


def test_held_out_images_come_from_few_units_and_are_not_trained_on(parquet):
    source = open_source(parquet, streams=True)
    training, held = split_hold_out(source, 0.1, seed=0)
    assert len(held) == 24 and len(training) == NUM - 24
    assert not set(held.ids.tolist()) & set(training.ids.tolist())
    assert len({source.listing.unit_of(i) for i in held.ids.tolist()}) <= 5
    rows, epochs = loader_of(training).order(torch.arange(400))
    assert set(training.ids[rows[epochs == 0].numpy()].tolist()) == set(training.ids.tolist())


def test_addresses(parquet, tars, tmp_path):
    for spec in (
        f"file://{parquet}",
        f"file://{parquet}/part-*.parquet",
        f"{parquet}/part-*.parquet",
        f"{parquet}/part-{{000..003}}.parquet",
        f"file://{tars}/shard-{{000..003}}.tar",
        str(tars / "shard-000.tar"),
    ):
        source = open_source(spec)
        assert len(source) == (60 if spec.endswith("000.tar") else NUM), spec
        assert source.read(7)[0, 0, 0] == 7


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("file:///nowhere/{0..3}.tar", "does not exist"),
        ("http://127.0.0.1:9/a.tar", "cannot be reached"),
        ("nothere://bucket/a.tar", "cannot be read"),
        ("{empty}/*.tar", "names no .parquet or .tar file"),
    ],
)
def test_what_cannot_be_reached_is_one_line(spec, words, tmp_path):
    with pytest.raises(DataError, match=words) as caught:
        open_source(spec.replace("{empty}", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_broken_shard_is_one_line_and_a_broken_image_is_replaced(tmp_path):
    write_tars(tmp_path, files=2)
    data = bytearray((tmp_path / "shard-001.tar").read_bytes())
    source = open_source(tmp_path)
    file = source.listing.files[1]
    start = int(file.starts[3])
    data[start : start + 60] = bytes(60)
    (tmp_path / "shard-001.tar").write_bytes(data)
    source = open_source(tmp_path)
    batches = list(loader_of(source, streams=2).batches(0, 40))
    assert {bad for batch in batches for bad, _ in batch.replaced} == {123}
    assert all(123 not in batch.ids for batch in batches)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"bad.parquet cannot be read") as caught:
        open_source(str(tmp_path / "*.parquet"))
    assert "\n" not in str(caught.value)


def test_a_folder_may_name_the_part(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "default" / part).mkdir(parents=True)
        write_tars(tmp_path / "default" / part, files=2 if part == "train" else 3)
    source = open_source(f"file://{tmp_path}")
    assert source.has_test_part and len(source) == NUM and len(source.listing.files) == 2
    assert all(file.name.startswith("train/") for file in source.listing.files)
    assert len(open_source(f"file://{tmp_path}", part="test").listing.files) == 3
    assert not open_source(f"file://{tmp_path}/default/train").has_test_part
    with pytest.raises(DataError, match="no test part"):
        open_source(f"file://{tmp_path}/default/train", part="test")


def test_members_of_an_archive_are_listed_once(tmp_path, monkeypatch):
    write_tars(tmp_path, files=2)
    first = open_source(tmp_path)
    monkeypatch.setattr("byol.data.shards._members", lambda url: pytest.fail("listed again"))
    again = open_source(tmp_path)
    assert again.labels.tolist() == first.labels.tolist()
    assert again.read(200)[0, 0, 0] == 200


def test_a_shard_that_vanishes_stops_the_run_with_its_state_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("byol.data.shards.UNIT_BYTES", 16_000)
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    write_tars(data)
    options = replace(stream_run.OPTIONS, workers=1)
    whole = pretrain(str(data), tmp_path / "whole", options)

    class Vandal(Silent):
        def progress(self, progress):
            for file in data.glob("shard-*.tar"):
                file.rename(file.with_suffix(".away"))

    with pytest.raises(
        TrainingStopped, match=r"shard-00\d.tar is gone; put it back; the state after \d+ steps is"
    ) as e:
        pretrain(str(data), out, options, observer=Vandal())
    assert "\n" not in str(e.value)
    for file in data.glob("*.away"):
        file.rename(file.with_suffix(".tar"))
    assert pretrain(str(data), out, resume=True).total_steps == whole.total_steps
    assert (out / "backbone.safetensors").read_bytes() == (tmp_path / "whole/backbone.safetensors").read_bytes()


def test_a_killed_run_of_two_processes_goes_on_with_the_very_images(tmp_path, parquet):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", stream_run.__file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [*launcher, str(parquet), str(two), "17"], env=environment, capture_output=True, text=True, check=False
    )
    assert killed.returncode != 0
    first = stream_run.seen(two)
    assert max(first) == 16 and not (two / "run/backbone.safetensors").exists()
    subprocess.run([*launcher, str(parquet), str(two)], env=environment, capture_output=True, check=True)
    second = stream_run.seen(two, resumed=True)
    stream_run.work(str(parquet), one)
    uninterrupted = stream_run.seen(one)
    assert sorted(uninterrupted) == list(range(stream_run.OPTIONS.steps))
    assert 0 < min(second) <= 17 and max(second) == stream_run.OPTIONS.steps - 1
    assert first.keys() | second.keys() == uninterrupted.keys()
    for step, images in uninterrupted.items():
        assert first.get(step, images) == images == second.get(step, images), step
    lines = [json.loads(line) for line in (two / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30]
