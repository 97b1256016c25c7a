"""Features as Parquet: whose they are, that a stop costs one file, and that they are evaluation's."""

import json
import subprocess
import sys
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import byol
from byol.data.open import open_source
from byol.embed import embed
from byol.evaluate import maps, neighbours
from byol.evaluate.features import extract
from byol.evaluate.images import evaluation_batches
from byol.options import Options
from byol.pipeline import Silent, pretrain

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


def read(place):
    return pq.read_table(place).to_pydict()


@pytest.fixture(scope="module")
def whole(place):
    """One file of everything."""
    embed(place / "run", str(place / "images"), place / "whole.parquet", num_neighbours=4)
    return place / "whole.parquet"


def test_rows_are_the_listing_s_and_features_those_of_evaluation(place, tmp_path):
    found = embed(place / "run", str(place / "images"), tmp_path / "out", rows=5)
    assert (found["images"], found["files"], found["feature_dim"], found["unusable"]) == (22, 5, DIM, 1)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["_embeddings.json", *(f"part-{n:05}.parquet" for n in range(5))]
    table = read(tmp_path / "out")
    source = open_source(place / "images", part="all")
    broken = next(i for i in source.ids.tolist() if source.name_of(i) == "a/22.png")
    assert table["id"] == [i for i in range(23) if i != broken]
    assert table["path"] == [source.name_of(i) for i in table["id"]]
    assert table["label"] == [source.labels[i] for i in table["id"]]
    assert table["class"] == [name[0] for name in table["path"]]
    about = json.loads((place / "run/backbone.json").read_text())
    batches = [images for _, images in evaluation_batches(source, None, 24)]
    scale = {name: about["normalization"][name] for name in ("mean", "std")}
    expected = extract(byol.load(place / "run"), batches, size=None, **scale)
    assert torch.allclose(torch.tensor(table["vector"]), expected, atol=1e-5)
    metadata = json.loads(pq.read_schema(tmp_path / "out/part-00002.parquet").metadata[b"byol"])
    assert metadata["unusable"] == [broken]


def test_neighbours_are_rows_of_the_table_and_distances_those_of_cosine(whole):
    table = read(whole)
    x = np.array(table["vector"], np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distances = 1 - x @ x.T
    np.fill_diagonal(distances, np.inf)
    near = np.array([each["ids"] for each in table["neighbors"]])
    found = np.array([each["distances"] for each in table["neighbors"]])
    assert np.allclose(found, np.sort(distances, axis=1)[:, :4], atol=1e-5)
    assert np.allclose(np.take_along_axis(distances, near, axis=1), found, atol=1e-5)


def test_thumbnails_are_small_pictures_of_the_whole_image(place, whole):
    table = read(whole)
    for name, each in zip(table["path"], table["thumbnail"], strict=True):
        with Image.open(BytesIO(each["bytes"])) as small, Image.open(place / "images" / name) as image:
            assert small.format == "JPEG" and max(small.size) <= 64
            assert small.size == image.size  # of 40 to 51 px: nothing is enlarged


def test_the_map_says_how_it_was_drawn_and_is_the_same_again(place, whole, tmp_path):
    about = json.loads(pq.read_schema(whole).metadata[b"byol"])
    assert about["map"]["method"].startswith("t-SNE (scikit-learn)") and about["map"]["seed"] == 0
    assert 0 < about["map"]["trustworthiness"] <= 1 and about["map"]["judged_on"] == 22
    embed(place / "run", str(place / "images"), tmp_path / "again.parquet", num_neighbours=4)
    assert read(tmp_path / "again.parquet") == read(whole)
    embed(place / "run", str(place / "images"), tmp_path / "plain.parquet", num_neighbours=0, map_method="none")
    assert set(read(tmp_path / "plain.parquet")) == {"id", "path", "label", "class", "vector", "thumbnail"}


def test_other_tools_read_it(whole):
    import duckdb
    import pandas
    import polars

    table = read(whole)
    frame = pandas.read_parquet(whole)
    assert frame["path"].tolist() == table["path"] and np.stack(frame["vector"]).shape == (22, DIM)
    lines = polars.read_parquet(whole)
    assert lines["vector"].to_numpy().shape == (22, DIM) and lines["path"].to_list() == table["path"]
    chosen = "path, neighbors.ids[1], octet_length(thumbnail.bytes)"
    query = f"SELECT {chosen} FROM read_parquet(?) WHERE class = 'a' ORDER BY id"
    rows = duckdb.execute(query, [str(whole)]).fetchall()
    assert [row[0] for row in rows] == [name for name in table["path"] if name.startswith("a")]
    assert rows[0][1] == table["neighbors"][0]["ids"][0] and rows[0][2] == len(table["thumbnail"][0]["bytes"])


def test_the_columns_are_those_that_embedding_atlas_takes(whole):
    """x, y: numbers; neighbors: a struct of `ids` and `distances`; an image: a struct of `bytes`."""
    schema = pq.read_schema(whole)
    assert str(schema.field("x").type) == str(schema.field("y").type) == "float"
    assert [field.name for field in schema.field("neighbors").type] == ["ids", "distances"]
    assert [field.name for field in schema.field("thumbnail").type] == ["bytes", "path"]


def test_the_same_command_writes_what_is_missing_and_nothing_else(place, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    expected = embed(place / "run", str(place / "images"), out, rows=5)
    before = read(out)
    assert not out.with_name("out.parquet.parts").exists()
    monkeypatch.setattr("byol.embed.batches_and", None)  # nothing is embedded again
    assert embed(place / "run", str(place / "images"), out, rows=5) == expected
    monkeypatch.undo()
    out.unlink()
    monkeypatch.setattr("byol.embed._finish", lambda *_: (_ for _ in ()).throw(OSError("stopped")))
    with pytest.raises(OSError, match="stopped"):
        embed(place / "run", str(place / "images"), out, rows=5)
    monkeypatch.undo()
    work = out.with_name("out.parquet.parts")
    (work / "part-00003.parquet").unlink()
    kept = (work / "part-00000.parquet").stat().st_mtime_ns
    seen = []

    class Watcher(Silent):
        def working(self, what, done, total):
            seen.append((what, done, total))
            assert not (work / "part-00000.parquet").exists() or (
                (work / "part-00000.parquet").stat().st_mtime_ns == kept
            )

    assert embed(place / "run", str(place / "images"), out, rows=5, observer=Watcher())["images"] == 22
    assert ("embedding", 5, 5) in seen  # one file of five
    assert read(out) == before
    with pytest.raises(ValueError, match="another rows_per_file"):
        embed(place / "run", str(place / "images"), out, rows=6)
    with pytest.raises(ValueError, match="another --map"):
        embed(place / "run", str(place / "images"), out, rows=5, map_method="pca")
    with pytest.raises(ValueError, match="exists already"):
        embed(place / "run", str(place / "images"), place / "run")


def test_two_processes_write_the_files_of_one(place, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "byol", "embed"]
    command += [str(place / "run"), str(place / "images"), "--rows", "5", "--json", "--out"]
    ended = subprocess.run([*command, str(tmp_path / "two")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = embed(place / "run", str(place / "images"), tmp_path / "one", rows=5)
    assert json.loads(ended.stdout) == {**found, "out": str(tmp_path / "two")}
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert np.allclose(one.pop("vector"), two.pop("vector"), atol=1e-6)
    assert [one[name] for name in ("id", "path", "label", "thumbnail")] == [
        two[name] for name in ("id", "path", "label", "thumbnail")
    ]


def test_what_is_missing_is_said_before_anything_is_embedded(place, tmp_path, monkeypatch):
    lines = []

    class Listening(Silent):
        def say(self, line):
            lines.append(line)

    monkeypatch.setattr(maps, "MOST_EXACT", 10)
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 10)
    monkeypatch.setattr(neighbours, "find_spec", lambda name: None)
    found = embed(place / "run", str(place / "images"), tmp_path / "out.parquet", observer=Listening())
    assert "pip install openTSNE" in lines[0] and "pip install faiss-cpu" in lines[1]
    assert found["map"]["method"] == "PCA" and found["neighbors"] is None
    with pytest.raises(ValueError, match="pip install openTSNE"):
        embed(place / "run", str(place / "images"), tmp_path / "b.parquet", map_method="tsne")
    assert not list(tmp_path.glob("b.*"))
