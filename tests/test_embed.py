"""Features as Parquet: whose they are, that a stop costs one file, and that they are evaluation's."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import byol
from byol.data.open import open_source
from byol.embed import embed
from byol.evaluate.features import extract
from byol.evaluate.images import evaluation_batches
from byol.options import Options
from byol.pipeline import pretrain

DIM = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of 23 images of two classes, one of them cut short, and a run."""
    root = tmp_path_factory.mktemp("embed")
    generator = np.random.default_rng(0)
    for i in range(23):
        file = root / "images" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    options = Options(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, DIM]},
        image_size=24,
        batch_size=8,
        steps=2,
        precision="32",
        workers=0,
        method_args={"hidden": 16, "out": 8},
    )
    pretrain(str(root / "images"), root / "run", options)
    return root


def read(directory):
    return pq.read_table(directory).to_pydict()


def test_rows_are_the_listing_s_and_features_those_of_evaluation(place, tmp_path):
    found = embed(place / "run", str(place / "images"), tmp_path / "out", rows=5)
    assert found == {"out": str(tmp_path / "out"), "images": 22, "files": 5, "feature_dim": DIM}
    files = sorted(file.name for file in (tmp_path / "out").glob("*.parquet"))
    assert files == [f"part-{n:05}.parquet" for n in range(5)]
    table = read(tmp_path / "out")
    source = open_source(place / "images", part="all")
    broken = next(i for i in source.ids.tolist() if source.name_of(i) == "a/22.png")
    assert table["id"] == [i for i in range(23) if i != broken]
    assert table["name"] == [source.name_of(i) for i in table["id"]]
    assert table["label"] == [source.labels[i] for i in table["id"]]
    about = json.loads((place / "run/backbone.json").read_text())
    batches = [images for _, images in evaluation_batches(source, None, 24)]
    scale = {name: about["normalization"][name] for name in ("mean", "std")}
    expected = extract(byol.load(place / "run"), batches, size=None, **scale)
    assert torch.allclose(torch.tensor(table["features"]), expected, atol=1e-5)
    metadata = json.loads(pq.read_schema(tmp_path / "out/part-00002.parquet").metadata[b"byol"])
    assert metadata["unusable"] == ([broken] if 10 <= broken < 15 else [])


def test_the_same_command_writes_what_is_missing_and_nothing_else(place, tmp_path):
    embed(place / "run", str(place / "images"), tmp_path / "out", rows=5)
    before = read(tmp_path / "out")
    (tmp_path / "out/part-00003.parquet").unlink()
    (tmp_path / "out/.part-00001.parquet.tmp").write_bytes(b"half")
    kept = (tmp_path / "out/part-00000.parquet").stat().st_mtime_ns
    assert embed(place / "run", str(place / "images"), tmp_path / "out", rows=5)["images"] == 22
    assert read(tmp_path / "out") == before
    assert (tmp_path / "out/part-00000.parquet").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="another rows_per_file"):
        embed(place / "run", str(place / "images"), tmp_path / "out", rows=6)
    with pytest.raises(ValueError, match="exists already"):
        embed(place / "run", str(place / "images"), place / "run")


def test_two_processes_write_the_files_of_one(place, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "byol", "embed"]
    command += [str(place / "run"), str(place / "images"), "--rows", "5", "--json", "--out"]
    embed(place / "run", str(place / "images"), tmp_path / "two", rows=5)
    for number in (1, 2, 3, 4):  # the first is there already
        (tmp_path / f"two/part-0000{number}.parquet").unlink()
    ended = subprocess.run([*command, str(tmp_path / "two")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"out": str(tmp_path / "two"), "images": 22, "files": 5, "feature_dim": DIM}
    embed(place / "run", str(place / "images"), tmp_path / "one", rows=5)
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert np.allclose(one.pop("features"), two.pop("features"), atol=1e-6)
    assert one == two
