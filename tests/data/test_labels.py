"""Labels files and groups: which image a row names, what becomes of its label, what is refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol.data.labels import with_groups, with_labels
from byol.data.loader import load_pixels, split_hold_out
from byol.data.open import open_source
from byol.data.source import DataError, Source

FILES = ("a/1.png", "a/2.png", "b/1.png", "b/3.png", "c.png")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 5), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Source:
    for i, file in enumerate(FILES):
        (tmp_path / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / file).write_bytes(png(i))
    return open_source(tmp_path / "images")


@pytest.fixture
def arrays(tmp_path: Path) -> Source:
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 6, 5), np.uint8), labels=np.array([4, 4, 4, 4, 4]))
    return open_source(tmp_path / "a.npz")


@pytest.fixture
def rows(tmp_path: Path) -> Source:
    """Five rows in two files, with columns of plain values."""
    for name, part in (("x", slice(0, 3)), ("y", slice(3, 5))):
        columns = {
            "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(5)][part],
            "patient": [7, 7, 8, None, 9][part],
            "site": ["p", "q", "p", "q", "p"][part],
            "note": [b"", b"", b"", b"", b""][part],
        }
        if name == "x":
            columns["only_here"] = [1, 2, 3]
        (tmp_path / "tables").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "tables" / f"{name}.parquet")
    return open_source(tmp_path / "tables")


def csv(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def labels_of(source: Source) -> list[str | None]:
    assert source.labels is not None and source.classes is not None and source.labels.dtype == np.int64
    return [source.classes[y] if y >= 0 else None for y in source.labels]


def refused(match: str, function: Any, *arguments: Any) -> str:
    with pytest.raises(DataError, match=match) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_file_gives_a_folder_labels(folder: Source, tmp_path: Path) -> None:
    said: list[str] = []
    path = csv(tmp_path, "file,label\nb/3.png,dog\na/1.png,cat\nc.png,\na/2.png,dog\nz.png,emu\n\ny.png,emu\n")
    labelled = with_labels(folder, path, say=said.append)
    assert labels_of(labelled) == ["cat", "dog", None, "dog", None]
    assert labelled.classes == ("cat", "dog", "emu")  # those of the file, so that another part has the same numbers
    assert labelled.num_classes == 3 and labelled.targets is None and folder.labels is None
    assert labelled.fingerprint == folder.fingerprint
    assert said == [
        f"2 of 6 rows of {path} name no image, the first: z.png",
        f"2 of 5 images of {folder.name} have no label in {path}",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na/1.png,x\na/2.png,y\n",
        "\ufefflabel,score,file\r\nx,1,a/1.png\r\ny,2,a/2.png\r\n",
        "file\tlabel\na/1.png\tx\na/2.png\ty\n",
        "file;label\na/1.png;x\na/2.png;y",
        'File, LABEL \n"a/1.png", x\na/2.png ,"y"\n',
        "score,label,name\n1,x,a/1.png\n2,y,a/2.png\n",
        "where,score,class\na/1.png,1,x\na/2.png,2,y\n",
        "id,target,path\n1,x,a/1.png\n2,y,a/2.png\n",
        "where,what\na/1.png,x\na/2.png,y\n",
        "label,where\nx,a/1.png\ny,a/2.png\n",
        "file,what\n./a/1.png,x\n/data/images/a/2.png,y\n",
        "file,what\nimages\\a\\1.png,x\n2.png,y\n",
        "file,what\na/1.png,x\na/1.png,x\na/2.png,y\n",
    ],
)
def test_layouts_that_say_the_same(text: str, folder: Source, tmp_path: Path) -> None:
    assert labels_of(with_labels(folder, csv(tmp_path, text))) == ["x", "y", None, None, None]


def test_a_file_name_names_an_image_only_where_no_other_has_it(folder: Source, tmp_path: Path) -> None:
    said: list[str] = []
    path = csv(tmp_path, "file,label\n1.png,x\n3.png,y\nother/2.png,x\n")
    assert labels_of(with_labels(folder, path, say=said.append)) == [None, None, None, "y", None]
    assert said[0].startswith("2 of 3 rows")  # 1.png is two images, and other/2.png is not a/2.png


def test_rows_of_the_other_part_are_not_taken_for_this_part_s_images(tmp_path: Path) -> None:
    for i, file in enumerate(("train/1.png", "train/2.png", "test/1.png", "test/3.png")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(png(i))
    path = csv(tmp_path, "file,label\ntrain/1.png,x\ntrain/2.png,y\ntest/1.png,y\ntest/3.png,x\n", "l.tsv")
    assert labels_of(with_labels(open_source(tmp_path), path)) == ["x", "y"]
    assert labels_of(with_labels(open_source(tmp_path, part="test"), path)) == ["y", "x"]


def test_classes_that_are_all_numbers_are_in_their_order(folder: Source, tmp_path: Path) -> None:
    path = csv(tmp_path, "file,label\na/1.png,10\na/2.png,9\nb/1.png,-3\nc.png,-1\n")
    labelled = with_labels(folder, path)
    assert labelled.classes == ("-3", "9", "10")
    assert labels_of(labelled) == ["10", "9", "-3", None, None]
    path = csv(tmp_path, "file,label\na/1.png,10\na/2.png,9\nb/1.png,none\n")
    assert with_labels(folder, path).classes == ("10", "9", "none")


def test_arrays_and_parquet_rows_are_named_by_their_number(arrays: Source, rows: Source, tmp_path: Path) -> None:
    path = csv(tmp_path, "id,label\n4,b\n0,a\n5,a\n")
    for source in (arrays, rows):
        assert labels_of(with_labels(source, path)) == ["a", None, None, None, "b"]
    assert labels_of(with_labels(arrays, csv(tmp_path, "id,label\nimage 1,a\n2,b\n"))) == [None, "a", "b", None, None]


def test_a_number_names_no_file(folder: Source, tmp_path: Path) -> None:
    refused(
        "names no image of .*: its first is 0, the first image is a/1.png",
        with_labels,
        folder,
        csv(tmp_path, "id,label\n0,a\n1,b\n"),
    )


def test_unusable_images_keep_their_rows_to_themselves(folder: Source, tmp_path: Path) -> None:
    (tmp_path / "images/a/2.png").write_bytes(b"")
    said: list[str] = []
    path = csv(tmp_path, "file,label\na/1.png,x\na/2.png,y\nb/1.png,x\nb/3.png,y\nc.png,x\n")
    labelled = with_labels(open_source(tmp_path / "images"), path, say=said.append)
    assert labels_of(labelled) == ["x", "x", "y", "x"]
    assert said == []


def test_several_labels_in_a_cell_become_targets(folder: Source, tmp_path: Path) -> None:
    said: list[str] = []
    path = csv(tmp_path, "file,label\na/1.png,cat; dog\na/2.png,dog\nb/1.png,\nb/3.png,emu|cat\nb/3.png,cat|emu\n")
    labelled = with_labels(folder, path, say=said.append)
    assert labelled.labels is None and labelled.classes == ("cat", "dog", "emu")
    assert labelled.targets is not None and labelled.targets.dtype == np.int8
    assert labelled.targets.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [-1, -1, -1]]
    assert labelled.num_classes == 0  # no classifier of one class an image can be made of them
    assert said == [f"1 of 5 images of {folder.name} have no label in {path}"]


def test_a_column_a_class_becomes_targets(folder: Source, tmp_path: Path) -> None:
    said: list[str] = []
    path = csv(tmp_path, "age,file,dog,cat\n31,c.png,1,0\n8,a/2.png,-1,1.0\n9,a/1.png,,0\n")
    labelled = with_labels(folder, path, say=said.append)
    assert labelled.classes == ("dog", "cat") and labelled.labels is None and labelled.targets is not None
    assert labelled.targets.tolist() == [[-1, 0], [-1, 1], [-1, -1], [-1, -1], [1, 0]]
    assert said[0] == f"columns of {path} that hold more than 1, 0 and -1 are no classes: age"


def test_labels_of_a_file_replace_those_of_the_data(arrays: Source, tmp_path: Path) -> None:
    several = with_labels(arrays, csv(tmp_path, "id,label\n0,a|b\n"))
    assert several.labels is None
    one = with_labels(several, csv(tmp_path, "id,label\n0,a\n1,b\n"))
    assert one.targets is None and labels_of(one)[:3] == ["a", "b", None]


def test_targets_and_groups_follow_the_images(folder: Source, tmp_path: Path) -> None:
    cells = ("a", "b", "a|b", "a|b", "b")
    path = csv(tmp_path, "file,label\n" + "".join(f"{f},{c}\n" for f, c in zip(FILES, cells, strict=True)))
    whole = with_groups(with_labels(folder, path), r"(\d)|c")
    assert whole.targets is not None and whole.groups is not None
    part = whole.subset([4, 1, 2])
    assert part.targets is not None and part.targets.tolist() == [[0, 1], [1, 1], [0, 1]]
    assert part.groups is not None and part.groups.tolist() == whole.groups[[1, 2, 4]].tolist()
    (tmp_path / "images/b/1.png").write_bytes(png(0)[:-20])  # proves broken when it is read
    loaded, pixels, skipped = load_pixels(whole)
    assert len(skipped) == 1 and len(pixels) == 4
    assert loaded.targets is not None and loaded.targets.tolist() == whole.targets[[0, 1, 3, 4]].tolist()
    assert loaded.groups is not None and loaded.groups.tolist() == whole.groups[[0, 1, 3, 4]].tolist()


def test_held_out_images_keep_their_groups() -> None:
    digits = open_source("digits")
    digits = replace(digits, groups=digits.ids * 2)
    for part in split_hold_out(digits, 0.01, seed=0):
        assert part is not None and part.groups is not None
        np.testing.assert_array_equal(part.groups, part.ids * 2)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,label\na/1.png,x\na/1.png,y\n", "two labels for a/1.png"),
        ("file,label\na/1.png,x|y\na/1.png,y\n", "two labels for a/1.png"),
        ("file,u,v\na/1.png,0,1\na/1.png,0,0\n", "two labels for a/1.png"),
        ("file,label\nd.png,x\ne.png,y\n", "names no image of .*: its first is d.png, the first image is a/1.png"),
        ("file,label\na/1.png,x\nc.png\n", "line 3 has 1 cells, the first line 2"),
        ("file,label\na/1.png,x\na/2.png,x\n", r"names 1 class\(es\), at least 2"),
        ("file,label\na/1.png,x\na/2.png,-1\n", r"names 1 class\(es\), at least 2"),
        ("file,u,v\na/1.png,3,1\na/2.png,0,1\n", "no column `label`, only file, u, v"),
        ("file,label,label\na/1.png,x,x\n", "each once"),
        ("file\na/1.png\n", "two or more columns"),
        ("file,label\n", "rows below it"),
        ("", "needs a first line"),
        ('file,label\n"a/1.png,x\n', "is not CSV"),
        ("file,label\ncaf\xe9.png,x\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str | bytes, match: str, folder: Source, tmp_path: Path) -> None:
    assert str(tmp_path / "labels.csv") in refused(match, with_labels, folder, csv(tmp_path, text))


def test_a_file_that_cannot_be_read(folder: Source, tmp_path: Path) -> None:
    refused("no such file", with_labels, folder, tmp_path / "none.csv")
    refused("is a directory", with_labels, folder, tmp_path)


def numbered(groups: np.ndarray | None) -> list[int]:
    """Groups as 0, 1, ... in the order in which they appear."""
    assert groups is not None
    order = list(dict.fromkeys(group for group in groups.tolist() if group >= 0))
    return [order.index(group) if group >= 0 else -1 for group in groups.tolist()]


def test_groups_by_a_column_of_the_labels_file(folder: Source, tmp_path: Path) -> None:
    path = csv(tmp_path, "file,label,patient\nc.png,x,p1\na/1.png,y,p2\na/2.png,x,p1\nb/1.png,,\n")
    grouped = with_groups(with_labels(folder, path), "patient", path)
    assert grouped.groups is not None and grouped.groups.dtype == np.int64
    assert numbered(grouped.groups) == [0, 1, -1, -1, 1]  # images without a label need none
    assert folder.groups is None
    message = refused("2 of 5 images have no group by patient, the first b/1.png", with_groups, folder, "patient", path)
    assert message.endswith("give every image one")
    csv(tmp_path, "file,label,patient\nc.png,x,p1\nc.png,x,p2\n")
    refused("two values of `patient` for c.png", with_groups, folder, "patient", path)


def test_an_image_known_to_have_none_of_the_classes_needs_a_group(folder: Source, tmp_path: Path) -> None:
    path = csv(tmp_path, "file,label,patient\na/1.png,x|y,p1\na/2.png,,\n")
    refused(
        "1 of 2 images have no group by patient, the first a/2", with_groups, with_labels(folder, path), "patient", path
    )


def test_groups_by_a_column_of_the_parquet_files(rows: Source, tmp_path: Path) -> None:
    assert rows.listing.columns() == ["patient", "site"]  # type: ignore[attr-defined]
    grouped = with_groups(rows, "site")
    assert numbered(grouped.groups) == [0, 1, 0, 1, 0]
    refused("1 of 5 images have no group by patient, the first y.parquet row 0", with_groups, rows, "patient")
    some = with_groups(rows.subset([1, 2, 4]), "patient").groups
    assert numbered(some) == [0, 1, 2]
    # The labels file's column of that name comes first.
    path = csv(tmp_path, "id,site\n" + "".join(f"{i},{i // 4}\n" for i in range(5)))
    grouped = with_groups(rows, "site", path)
    assert numbered(grouped.groups) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(r"[ab]/(\d)|c", [0, 1, 0, 2, 3]), (r"^[abc]", [0, 0, 1, 1, 2]), (r"[abc](?=/|\.)", [0, 0, 1, 1, 2])],
)
def test_groups_by_a_regular_expression(pattern: str, expected: list[int], folder: Source) -> None:
    # Of [ab]/(\d)|c the group is the digit, and the whole match, c, where the group has none.
    groups = with_groups(folder, pattern).groups
    assert numbered(groups) == expected
    # A value has the same number in another part of the data.
    assert groups is not None and with_groups(folder.subset([3, 4]), pattern).groups.tolist() == groups[3:].tolist()


def test_images_in_which_the_expression_is_not_found_are_counted(folder: Source, tmp_path: Path) -> None:
    refused("1 of 5 images have no group by .*, the first c.png", with_groups, folder, "[ab]/")
    path = csv(tmp_path, "file,label\na/1.png,x\nb/1.png,y\n")
    assert numbered(with_groups(with_labels(folder, path), "[ab]/").groups) == [0, 0, 1, 1, -1]


def test_neither_a_column_nor_an_expression(folder: Source, rows: Source, tmp_path: Path) -> None:
    path = csv(tmp_path, "file,label\na/1.png,x\nb/1.png,y\n")
    message = refused("nor found in any image's name, such as a/1.png", with_groups, folder, "patient", path)
    assert message.endswith("the columns are file, label")
    assert refused("patiemt", with_groups, rows, "patiemt").endswith("the columns are patient, site")
    message = refused("nor a regular expression", with_groups, folder, "(a")
    assert "columns" not in message
