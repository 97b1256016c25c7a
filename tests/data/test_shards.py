"""Shards: what is read, in which order, and that neither processes nor workers nor a stop change it."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stream_run
import torch
from PIL import Image
from safetensors.torch import load_file
from shard_files import NUM, SIDE, image, loader_of, write_parquet, write_tars

from byol.data.loader import split_hold_out
from byol.data.open import open_source
from byol.data.order import StreamOrder
from byol.data.source import DataError
from byol.data.units import some_rows
from byol.pipeline import Silent, pretrain
from byol.train import Training, TrainingStopped

MEASURED = ("seconds", "images_per_second", "peak_memory_bytes")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYOL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.mark.parametrize("row_group", [3, 10])
@pytest.mark.parametrize("batch_size", [8, 80])
def test_each_process_reads_its_own_units_and_each_once(tmp_path, monkeypatch, row_group, batch_size):
    write_parquet(tmp_path, row_group=row_group)
    source = open_source(tmp_path, streams=True)
    streams = 8 if row_group == 3 else 4
    of_a_stream = NUM // streams  # 30 images in 10 units, or 60 in 6
    read = []
    original = type(source.listing)._read
    monkeypatch.setattr(type(source.listing), "_read", lambda self, unit: read.append(unit) or original(self, unit))
    units = []
    for rank in range(2):
        fresh = open_source(tmp_path, streams=True)
        fresh.listing.units._forget()  # what was looked at to open it
        read.clear()
        loader = loader_of(fresh, share=(rank, 2), batch_size=batch_size, streams=streams)
        # Until the last unit of each stream but one is done: then the next epoch's first ones are read.
        for _ in loader.batches(0, (of_a_stream - row_group) * streams // batch_size):
            pass
        fresh.listing.units._pool.shutdown()
        assert len(read) == len(set(read))
        assert len(read) >= (of_a_stream // row_group - batch_size // streams // row_group - 1) * streams // 2
        units.append(set(read))
    assert not units[0] & units[1]


def test_the_unit_that_follows_is_the_one_a_stream_reads_next():
    bounds = np.array([0, 7, 7, 19, 24, 40, 41, 60])
    order = StreamOrder(bounds, 2, seed=0)
    positions = torch.arange(0, 400, 2)
    unit = np.searchsorted(bounds, order(positions)[0].numpy(), side="right")
    following = np.searchsorted(bounds, order.following(positions).numpy(), side="right")
    for i in range(100):
        later = [(u, e) for u, e in zip(unit[i:], order(positions)[1][i:].tolist(), strict=True)]
        assert following[i] == next(u for u, e in later if (u, e) != later[0])


def test_rows_to_look_at_come_from_few_units():
    bounds = np.array([0, 10, 10, 30, 31, 60])
    assert some_rows(bounds, 4, 2).tolist() == [0, 9, 31, 59]
    assert some_rows(bounds, 8, 2).tolist() == [0, 9, 10, 29, 30, 31, 59]
    assert len(some_rows(bounds, 50, 8)) == 10 + 13 + 1 + 13
    assert some_rows(np.arange(101), 5, 1).tolist() == [0, 24, 49, 74, 99]
    assert some_rows(np.array([0]), 5, 1).tolist() == []
    assert some_rows(np.arange(101), 50, 16)[[0, -1]].tolist() == [0, 99], "units of one row are not few"
    assert len(some_rows(np.arange(101), 50, 16)) == 50
    assert some_rows(np.arange(0, 6400, 100), 1024, 16)[-1] == 6299


def test_memory_for_streams_follows_from_the_largest_unit(tmp_path):
    write_parquet(tmp_path, files=2, row_group=120)
    source = open_source(tmp_path, streams=True)
    size = sum(len(image(i)) for i in range(120))
    assert size < source.unit_bytes < 1.2 * size


def test_colour_may_begin_in_a_later_shard(tmp_path):
    for number, mode in enumerate(("L", "RGB")):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for i in range(100):
                stream = io.BytesIO()
                Image.fromarray(np.zeros((8, 8), np.uint8)).convert(mode).save(stream, "PNG")
                member = tarfile.TarInfo(f"{i}.png")
                member.size = len(stream.getvalue())
                archive.addfile(member, io.BytesIO(stream.getvalue()))
    assert open_source(tmp_path).channels == 3


@pytest.mark.parametrize("damage", ["zeros", "header", "cut"])
def test_a_damaged_archive_is_not_taken_for_a_shorter_one(tmp_path, damage):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(40):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(image(i)) + 40_000
            archive.addfile(member, io.BytesIO(image(i) + bytes(40_000)))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole + bytes(4 << 20))
    assert len(open_source(tmp_path)) == 40, "records may be of megabytes"
    start = whole.index(b"20.png")
    if damage == "zeros":
        (tmp_path / "a.tar").write_bytes(whole[:start] + bytes(len(whole) - start + (8 << 20)))
    elif damage == "cut":
        (tmp_path / "a.tar").write_bytes(whole[:start])
    else:
        (tmp_path / "a.tar").write_bytes(whole[: start + 100] + b"garbage" * 10 + whole[start + 170 :])
    with pytest.raises(DataError, match=r"a.tar is damaged, or was never closed, after 20 samples"):
        open_source(tmp_path)


def test_labels_beyond_the_names_are_one_line(tmp_path):
    table = pa.table({"image": [{"bytes": image(i), "path": None} for i in range(4)], "label": [0, 1, 2, 5]})
    feature = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(DataError, match="label 5 has no name"):
        open_source(tmp_path, streams=True)


def test_images_beside_archives_are_ambiguous(tmp_path):
    write_tars(tmp_path, files=2)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(image(0))
    with pytest.raises(DataError, match=r"holds images and .tar archives; name '.*\*.tar', or move them"):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/*.tar")) == NUM


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
    monkeypatch.setattr("byol.data.shards._members", lambda *_: pytest.fail("listed again"))
    again = open_source(tmp_path)
    assert again.labels.tolist() == first.labels.tolist()
    assert again.read(200)[0, 0, 0] == 200
    monkeypatch.undo()
    for left in (b"torn", b""):
        for kept in (Path(os.environ["BYOL_CACHE"]) / "archives").glob("*.npz"):
            kept.write_bytes(left)
        assert open_source(tmp_path).labels.tolist() == first.labels.tolist()


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


def test_storage_that_fails_in_a_look_stops_the_run_with_its_state_saved(tmp_path, parquet, monkeypatch):
    look = Training.look

    def failing(self, step):
        if step >= 20:
            raise DataError("part-001.parquet is gone; put it back")
        return look(self, step)

    monkeypatch.setattr(Training, "look", failing)
    options = replace(stream_run.OPTIONS, workers=0, hold_out=0.2)
    with pytest.raises(TrainingStopped, match=r"gone; put it back; the state after 20 steps is saved"):
        pretrain(str(parquet), tmp_path / "run", options)
    assert (tmp_path / "run/checkpoints/step-000000020.safetensors").is_file()
    monkeypatch.undo()
    pretrain(str(parquet), tmp_path / "run", resume=True)
    pretrain(str(parquet), tmp_path / "whole", options)
    resumed, whole = (
        [
            {name: value for name, value in json.loads(line).items() if name not in MEASURED}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("run", "whole")
    )
    assert resumed == whole
    assert any("held_out/std" in line for line in whole)


def test_workers_without_a_stream_are_told_of(tmp_path, parquet):
    lines = []

    class Listening(Silent):
        def planned(self, run, found):
            lines.extend(found)

    pretrain(str(parquet), tmp_path / "run", replace(stream_run.OPTIONS, workers=3, steps=1), observer=Listening())
    assert (
        "note",
        "2 of 3 workers read: they share the 8 streams of a process evenly; --workers 2, or "
        "--set streams=N with a multiple of 3",
    ) in lines


def two_processes(*arguments):
    """Of stream_run.py, which the launcher starts once more if one of them dies."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    ended = subprocess.run(
        [*launcher, stream_run.__file__, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def two_alone(parquet, tmp_path_factory):
    """Where two processes ran that nothing disturbed."""
    place = tmp_path_factory.mktemp("two")
    two_processes(parquet, place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_one_of_two_processes_is_killed_at_any_moment(tmp_path, parquet, two_alone, moment):
    generator = random.Random(moment)
    while not (tmp_path / "killed").exists():  # it may have been quicker than its moment
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        after = generator.uniform(0, float((two_alone / "seconds0").read_text()))
        two_processes(parquet, tmp_path, "null", json.dumps([generator.randrange(2), after]))
    for name in ("backbone.safetensors", "backbone.json", "checkpoints/step-000000030.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (two_alone / "run" / name).read_bytes(), name
    found, whole = (
        [
            {name: value for name, value in json.loads(line).items() if name not in MEASURED}
            for line in (place / "run/metrics.jsonl").read_text().splitlines()
        ]
        for place in (tmp_path, two_alone)
    )
    assert found == whole


def test_a_killed_process_of_two_is_started_again_and_the_run_ends_exact(tmp_path, parquet):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    two_processes(parquet, two, 17)
    first, second = stream_run.seen(two), stream_run.seen(two, resumed=True)
    stream_run.work(str(parquet), one)
    uninterrupted = stream_run.seen(one)
    assert sorted(uninterrupted) == list(range(stream_run.OPTIONS.steps))
    assert max(first) == 16 and 0 < min(second) <= 17 and max(second) == stream_run.OPTIONS.steps - 1
    assert first.keys() | second.keys() == uninterrupted.keys()
    for step, images in uninterrupted.items():
        assert first.get(step, images) == images == second.get(step, images), step
    lines = [json.loads(line) for line in (two / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30]
    weights = [load_file(place / "run/backbone.safetensors") for place in (one, two)]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-9, atol=1e-11), name
