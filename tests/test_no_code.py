"""No file that the package reads can run code: not our own, and not a pickle under any of their names."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from byol import checkpoint
from byol.data import manifest
from byol.data.open import open_source
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate.cache import FeatureCache
from byol.export import load, save_backbone

REPLACED = {"listing.npz", "members.npz", "features.npy", "images"}
"""Caches, of which what cannot be read is made anew, and an image, which is left out."""


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any, make_run: Any) -> Path:
    """A folder with one of every kind of file that the package reads."""
    root = tmp_path_factory.mktemp("files")
    run = root / "run"
    run.mkdir()
    small = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    encoder = Encoder(EncoderSpec("resnet18", 32, args=small))
    save_backbone(encoder, make_run(), run, step=2)
    replace(make_run(), facts={"data_fingerprint": "0" * 64}).write(run / "run.json")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (run / "evaluation.json").write_text(json.dumps({"data": "images", "test": None, "rows": []}))
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(linear.parameters(), 0.1, 0.9)
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint.save(root, 1, linear, optimizer)
    save_file(Encoder(EncoderSpec("resnet10t", 32)).model.state_dict(), root / "init.safetensors")
    (root / "images").mkdir()
    for i in range(6):
        (root / "images" / f"{i}.png").write_bytes(png(i))
    with tarfile.open(root / "shard.tar", "w") as archive:
        for i in range(6):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(png(i))
            archive.addfile(member, io.BytesIO(png(i)))
    table = pa.table({"image": [png(i) for i in range(6)], "label": [0, 1] * 3, "site": ["a", "b"] * 3})
    for name in ("table", "embedding"):
        pq.write_table(table, root / f"{name}.parquet")
    (root / "labels.csv").write_text("file,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(6)))
    (root / "list.txt").write_text("0.png\n3.png\n")
    manifest.write(run, open_source(root / "images"))
    torch.save(Encoder(EncoderSpec("resnet10t", 32)).model.state_dict(), root / "weights.pth")
    (root / "weights.pkl").write_bytes(pickle.dumps({"w": np.ones((2, 3), np.float32)}, protocol=2))
    np.savez(root / "arrays.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4))
    np.save(root / "array.npy", np.zeros((4, 8, 8), np.float32))
    return root


class Reader:
    """The process of readers.py: what it says of one name after another."""

    def __init__(self, root: Path) -> None:
        environment = {**os.environ, "BYOL_CACHE": str(root / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("readers.py"), root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, name: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, (name, self.process.wait())
        return json.loads(line)


@pytest.fixture(scope="module")
def read(whole: Path) -> Any:
    """Of a process that has imported everything, and watches itself."""
    with_features(whole)
    reader = Reader(whole)
    reader("warm")
    reader("arm")
    yield reader
    reader.process.communicate()


def readers() -> list[str]:
    source = Path(__file__).with_name("readers.py").read_text()
    return [line.split('"')[1] for line in source.splitlines() if line.startswith('        "') and '": ' in line]


class Trap:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def with_features(root: Path) -> None:
    cache = FeatureCache(root / "cache")
    cache.directory.mkdir(exist_ok=True)
    cache.write("0" * 64, (4, 3), np.dtype(np.float32), [np.ones((4, 3), np.float32)])


def test_reading_all_our_files_unpickles_compiles_and_starts_nothing(whole: Path, read: Reader) -> None:
    marker = whole / "marker"
    (whole / "pickle").write_bytes(pickle.dumps(Trap(marker)))
    names = readers()
    assert len(names) == 23
    for name in names:
        answer = read(name)
        assert answer["error"] is None, (name, answer)
        assert answer["noted"] == [], (name, answer)
    trapped, evaluated = read("pickle"), read("eval")
    # The hook sees what it should: a real pickle, and an expression.
    assert marker.exists()
    assert any(line.startswith("pickle.find_class") for line in trapped["noted"])
    assert any(line.startswith("os.system") for line in trapped["noted"])
    assert any(line.startswith("exec") for line in evaluated["noted"])


def traps(marker: Path) -> dict[str, bytes]:
    """A pickle in every wrapping that some reader opens."""
    trap = Trap(marker)
    raw, saved, npy, npz, parquet, arrow = pickle.dumps(trap), *(io.BytesIO() for _ in range(5))
    torch.save({"state_dict": trap, "format": trap}, saved)
    objects = np.empty(4, object)
    objects[:] = [trap] * 4
    np.save(npy, objects, allow_pickle=True)
    np.savez(npz, images=objects, x=objects, labels=objects, shapes=objects, starts=objects, allow_pickle=True)
    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": raw}
    fields = [pa.field(name, pa.binary(), metadata=about) for name in ("image", "label", "site")]
    table = pa.table([pa.array([raw] * 4, pa.binary())] * 3, pa.schema(fields))
    table = table.replace_schema_metadata({"pandas": raw, "huggingface": raw})
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write(table)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in ("images.npy", "shapes.npy", "archive/data.pkl", "data.pkl"):
            archive.writestr(name, raw)
    streams = {"torch": saved, "npy": npy, "npz": npz, "parquet": parquet, "arrow": arrow, "zip": zipped}
    return {"pickle": raw, **{name: stream.getvalue() for name, stream in streams.items()}}


def places(root: Path) -> dict[str, Path]:
    """Where each reader's file lies."""
    run = {name: root / "run" / name for name in readers()[:7] if "." in name}
    elsewhere = {
        "baseline": root / "run" / "backbone.safetensors",
        "baseline.safetensors": root / "init.safetensors",
        "features.npy": root / "cache" / ("0" * 64 + ".npy"),
        "listing.npz": root / "cache" / "listings" / "kept.npz",
        "members.npz": next((root / "cache" / "archives").glob("*.npz")),
        "streamed.parquet": root / "table.parquet",
        "columns.parquet": root / "embedding.parquet",
        "images": root / "images" / "2.png",
    }
    return {**{name: root / name for name in readers()}, **run, **elsewhere}


def test_a_pickle_under_any_name_runs_nothing_and_is_told_in_one_line(
    whole: Path, read: Reader, tmp_path: Path
) -> None:
    where, marker = places(whole), tmp_path / "marker"
    for wrapping, trap in traps(marker).items():
        before = {name: path.read_bytes() for name, path in where.items()}
        for path in where.values():
            path.write_bytes(trap)
        answers = {name: read(name) for name in readers()}
        for name, path in where.items():
            path.write_bytes(before[name])
        for name, answer in answers.items():
            told = (wrapping, name, answer)
            # What comes from a pool of its own processes is unpickled.
            unpickled = [
                line
                for line in answer["noted"]
                if line.startswith("pickle.") and not any(each in line for each in ("numpy", "concurrent.futures"))
            ]
            assert not unpickled and "os.system" not in str(answer["noted"]), told
            if name in REPLACED:
                assert answer["error"] is None, told
            else:
                assert answer["value"] and answer["said"].isprintable(), told
    assert not marker.exists()
    assert all(read(name)["error"] is None for name in readers())
    # Loading one as pickles are loaded does make the file.
    torch.load(io.BytesIO(traps(marker)["torch"]), weights_only=False)
    assert marker.exists()


def test_a_description_cannot_name_other_weights(whole: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = tmp_path / "evil.pth"
    torch.save(Trap(marker), evil)
    run = tmp_path / "run"
    run.mkdir()
    described = json.loads((whole / "run" / "backbone.json").read_text())
    (run / "backbone.safetensors").write_bytes((whole / "run" / "backbone.safetensors").read_bytes())
    for change in (
        {"args": {"checkpoint_path": str(evil)}},
        {"args": {"pretrained_cfg": {"file": str(evil)}}},
        {"args": {"pretrained_cfg_overlay": {"file": str(evil)}}},
        {"args": {"pretrained": True}},
        {"name": f"local-dir:{tmp_path}"},
        {"name": "hf-hub:nobody/nothing"},
        {"name": "../../resnet18"},
        {"args": "layers"},
        {"args": {"layers": "\n\x1b[31m"}},
        {"image_size": "32"},
    ):
        (run / "backbone.json").write_text(json.dumps(described | change))
        with pytest.raises(ValueError, match="backbone") as caught:
            load(run)
        assert str(caught.value).isprintable()
    assert not marker.exists()
    # Without that check timm reads what it is told to.
    with pytest.raises(Exception, match=r"weights_only|globals"):
        timm.create_model("resnet18", checkpoint_path=str(evil))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "no description"),
        ('{"a": ' * 50_000, "no description"),
        ("[]", "no description"),
        ('{"format": "new"}', "no description"),
        ('{"format": 99}', "newer"),
        ("{}", "says no name"),
        (" " * (2 << 20), "bytes"),
        ("\ud800", "no description"),
    ],
)
def test_a_damaged_description_is_told_in_one_line(whole: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "backbone.json").write_text(text, "utf-8", "surrogatepass")
    (tmp_path / "backbone.safetensors").write_bytes((whole / "run" / "backbone.safetensors").read_bytes())
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8 + b"{}",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (90 << 20).to_bytes(8, "little") + b"{}",
        (50_000).to_bytes(8, "little") + b"[" * 50_000,
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1073741824,1073741824],"data_off',
    ],
)
def test_damaged_weights_are_told_in_one_line(whole: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "backbone.json").write_bytes((whole / "run" / "backbone.json").read_bytes())
    (tmp_path / "backbone.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="is not a safetensors file") as caught:
        load(tmp_path)
    assert str(caught.value).isprintable()


def test_weights_of_another_backbone_are_told_in_one_line(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "backbone.json").write_bytes((whole / "run" / "backbone.json").read_bytes())
    save_file({"\x1b[31m" * 100: torch.ones(2)}, tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match="does not fit the backbone") as caught:
        load(tmp_path)
    assert str(caught.value).isprintable()
