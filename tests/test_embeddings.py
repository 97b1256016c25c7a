"""What `byol embed` wrote, read again: duplicates, the strangest, a search; and files that are none."""

import csv
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol import embeddings
from byol.evaluate.duplicates import duplicate_groups
from byol.pictures import thumbnail


def picture(seed, side=48):
    """A smooth colourful image."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def jpeg(image, quality):
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(BytesIO(file.getvalue())))


PICTURES = [picture(i) for i in range(12)]
# 3 again as a poor JPEG, 3 again darker, 7 again moved by 1/48 of its side.
COPIES = [jpeg(PICTURES[3], 40), (PICTURES[3] * 0.8).astype(np.uint8), np.roll(PICTURES[7], 1, axis=1)]
GROUPS = [[3, 12, 13], [7, 14]]


def write(place, /, pictures=PICTURES + COPIES, *, vectors=None, **more):
    vectors = (
        np.random.default_rng(0).normal(size=(len(pictures), 4)).astype(np.float32) if vectors is None else vectors
    )
    columns = {
        "id": pa.array(range(len(pictures)), pa.int64()),
        "path": [f"{i}.png" for i in range(len(pictures))],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        "thumbnail": [{"bytes": thumbnail(image), "path": None} for image in pictures],
        **more,
    }
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), place)
    return place


def near(rows, distances=None):
    rows = np.array(rows)
    distances = np.full(rows.shape, 0.5, np.float32) if distances is None else np.array(distances, np.float32)
    parts = [pa.FixedSizeListArray.from_arrays(pa.array(each.reshape(-1)), rows.shape[1]) for each in (rows, distances)]
    return pa.StructArray.from_arrays(parts, ["ids", "distances"])


def everyone(num):
    return [[j for j in range(num) if j != i] for i in range(num)]


def test_the_same_picture_again_is_found_and_nothing_else(tmp_path):
    found = embeddings.read(write(tmp_path / "e.parquet", neighbors=near(everyone(15))))
    assert embeddings.duplicates(found) == GROUPS
    groups, table = embeddings.list_duplicates(found)
    lines = list(csv.reader(table.read_text().splitlines()))
    assert groups == GROUPS and table.name == "e-duplicates.csv"
    assert lines[0] == ["group", "row", "path"] and lines[1:3] == [["1", "3", "3.png"], ["1", "12", "12.png"]]


def test_only_candidates_are_compared_and_links_make_groups():
    import torch

    images = [torch.from_numpy(np.stack(PICTURES + COPIES)).permute(0, 3, 1, 2)]
    some = [[(i + 1) % 15] for i in range(15)]  # 3 is never compared with 12 or 13, but these are with each other
    assert duplicate_groups(images, np.array(some)) == [[12, 13]]
    some[3] = [13]
    assert duplicate_groups(images, np.array(some)) == [[3, 12, 13]]


def test_the_strangest_are_those_far_from_their_nearest(tmp_path):
    distances = np.full((15, 14), 0.1)
    distances[5], distances[9] = 0.9, 0.4
    found = embeddings.read(write(tmp_path / "e.parquet", neighbors=near(everyone(15), distances)))
    rows, means = embeddings.outliers(found, 3)
    assert rows.tolist() == [5, 9, 0] and means == pytest.approx([0.9, 0.4, 0.1])
    names, table, sheet = embeddings.list_outliers(found, 2)
    assert names == ["5.png", "9.png"] and Image.open(BytesIO(sheet.read_bytes())).width > 100
    assert table.read_text().splitlines()[1] == "5,5.png,0.900000"


def test_a_search_finds_the_image_itself_first(tmp_path):
    found = embeddings.read(write(tmp_path / "e.parquet"))
    rows, distances = found.search(found.vectors[6] * 3, 4)
    assert rows[0] == 6 and distances[0] == pytest.approx(0, abs=1e-6) and (np.diff(distances) >= 0).all()


def test_clusters_are_the_groups_of_the_features(tmp_path):
    group = np.arange(15) % 3
    vectors = (np.eye(3, 4)[group] * 4 + np.random.default_rng(0).normal(size=(15, 4)) * 0.1).astype(np.float32)
    found = embeddings.read(write(tmp_path / "e.parquet", vectors=vectors)).clusters(most=3)
    assert len({(a, b) for a, b in zip(group.tolist(), found.tolist(), strict=True)}) == 3


WRONG = {
    "no column path": {"path": None},
    "no column vector": {"vector": None},
    "no list of as many numbers": {"vector": [[1.0], [1.0, 2.0], *[[0.0]] * 13]},
    "numbers that are none": {"vectors": np.full((15, 4), np.nan, np.float32)},
    "cannot be used": {"neighbors": near([[99]] * 15)},
}


@pytest.mark.parametrize("line", WRONG)
def test_a_file_that_is_none_is_one_line(tmp_path, line):
    with pytest.raises(ValueError, match=line) as caught:
        embeddings.read(write(tmp_path / "e.parquet", **WRONG[line]))
    assert "byol embed" in str(caught.value) and "\n" not in str(caught.value)


def test_places_that_hold_none_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        embeddings.read(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match=r"holds no \.parquet"):
        embeddings.read(tmp_path)
    whole = write(tmp_path / "e.parquet").read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 2):
        (tmp_path / "cut.parquet").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be used"):
            embeddings.read(tmp_path / "cut.parquet")
    with pytest.raises(ValueError, match="has 1 images"):
        embeddings.read(write(tmp_path / "one.parquet", PICTURES[:1]))
