"""Images of 16 bits, floats and any number of channels: read value for value, and everything that follows."""

import builtins
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from byol import cli
from byol.data import deep
from byol.data.decode import Unusable
from byol.data.loader import Loader, Normalization, fits_memory, load_pixels
from byol.data.open import open_source
from byol.data.source import DataError, measured
from byol.data.tiles import tiled
from byol.embed import embed
from byol.evaluate.protocols import Settings
from byol.evaluation import evaluate_run
from byol.export import load, range_of, read_description
from byol.options import Options
from byol.pipeline import pretrain, views_sheet
from byol.run import Run
from byol.views import ops, recipes
from byol.views.view import BYOL_T, View

SMALL = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=16,
    batch_size=8,
    steps=4,
    precision="32",
    method_args={"hidden": 16, "out": 8},
)


def stack(seed, channels=5, side=20, top=4000):
    return np.random.default_rng(seed).integers(100, top, (channels, side, side), dtype=np.uint16)


@pytest.fixture
def plates(tmp_path):
    """24 five-channel 16-bit TIFFs of two classes, told apart by which channel is bright."""
    for i in range(24):
        image = stack(i)
        image[i % 2] = image[i % 2] // 2 + 30000
        folder = tmp_path / "plates" / ("even", "odd")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{i:02}.tif", image, imagej=True, metadata={"axes": "CYX"})
    return tmp_path / "plates"


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "how", "expected"),
    [
        ("gray", (20, 30), "u2", {}, (20, 30, 1, 16)),
        ("colour", (20, 30, 3), "u1", {"photometric": "rgb"}, (20, 30, 3, 0)),
        ("three stains", (3, 20, 30), "u1", {"imagej": True, "metadata": {"axes": "CYX"}}, (20, 30, 3, 8)),
        ("channels first", (5, 20, 30), "u2", {"imagej": True, "metadata": {"axes": "CYX"}}, (20, 30, 5, 16)),
        ("ome float", (2, 20, 30), "f4", {"ome": True, "metadata": {"axes": "CYX"}}, (20, 30, 2, 32)),
        ("deflate", (20, 30, 4), "u2", {"compression": "zlib", "planarconfig": "contig"}, (20, 30, 4, 16)),
        ("lzw", (20, 30), "u2", {"compression": "lzw"}, (20, 30, 1, 16)),
        ("first of depth", (7, 5, 20, 30), "u2", {"imagej": True, "metadata": {"axes": "ZCYX"}}, (20, 30, 5, 16)),
        ("pages", (5, 20, 30), "u2", {}, (20, 30, 1, 16)),
        ("tiled bigtiff", (20, 30), "i4", {"bigtiff": True, "tile": (16, 16)}, (20, 30, 1, 32)),
    ],
)
def test_tiffs_of_all_kinds_are_read_value_for_value(tmp_path, name, shape, dtype, how, expected):
    image = (np.random.default_rng(0).random(shape) * 250).astype(dtype)
    path = str(tmp_path / f"{name}.tif")
    tifffile.imwrite(path, image, **how)
    assert deep.look(path, None) == expected
    found = deep.values(path, None)
    assert found.dtype == image.dtype and found.shape == expected[:3]
    whole = image[0] if name in ("pages", "first of depth") else image
    whole = whole if whole.ndim == 3 else whole[..., None]
    np.testing.assert_array_equal(found, whole if whole.shape == found.shape else np.moveaxis(whole, 0, -1))


def test_pages_without_a_meaning_are_channels_where_so_many_are_wanted(tmp_path):
    image = stack(0)
    tifffile.imwrite(tmp_path / "a.tif", image)
    path = str(tmp_path / "a.tif")
    assert deep.look(path, 5) == (20, 20, 5, 16)
    np.testing.assert_array_equal(deep.values(path, 5), np.moveaxis(image, 0, -1))
    assert deep.look(path, 4) == (20, 20, 1, 16)


def test_what_is_no_image_has_a_reason(tmp_path):
    (tmp_path / "cut.tif").write_bytes(b"II*\0" + b"\0" * 8)
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    for name in ("cut.tif", "flat.npy", "words.npy", "objects.npy"):
        with pytest.raises(Unusable) as caught:
            deep.look(str(tmp_path / name), None)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


def test_a_value_becomes_its_place_in_the_range_of_its_channel(plates):
    source = open_source(plates)
    assert (source.channels, source.deep, source.is_rgb, source.value_range) == (5, True, False, None)
    source = source.with_range(((0.0, 60000.0), (100.0, 4000.0), (0.0, 1.0), (5000.0, 6000.0), (0.0, 65535.0)))
    values, found = source.values(3).astype(np.float64), source.read(3)
    assert found.dtype == np.float32 == source.dtype
    np.testing.assert_allclose(found[..., 0], values[..., 0] / 60000 * 255, rtol=1e-6)
    np.testing.assert_allclose(found[..., 1], ((values[..., 1] - 100) / 3900 * 255).clip(0, 255), rtol=1e-5, atol=1e-4)
    assert (found[..., 2] == 255).all() and (found[..., 3] == 0).all()
    assert source.picture(3).dtype == np.uint8
    for wrong in (((0.0, 1.0),), ((1.0, 1.0),) * 5):
        with pytest.raises(DataError, match="low < high"):
            source.with_range(wrong)


def test_the_range_is_measured_in_one_pass_and_hot_pixels_do_not_count(tmp_path):
    images = np.random.default_rng(0).normal([[[1000.0, -3.0]]], [[[100.0, 0.5]]], (40, 32, 32, 2)).astype(np.float32)
    images[7, 3, 3] = 1e9
    np.save(tmp_path / "images.npy", images)
    source = measured(open_source(tmp_path / "images.npy"))
    (low, high), (low2, high2) = source.value_range
    # The standard normal's 0.001 quantile is -3.09.
    assert (low, high) == (pytest.approx(691, abs=12), pytest.approx(1309, abs=12))
    assert (low2, high2) == (pytest.approx(-4.545, abs=0.06), pytest.approx(-1.455, abs=0.06))
    mean, std = source.statistics
    assert mean == (pytest.approx(0.5, abs=0.01), pytest.approx(0.5, abs=0.01))
    assert std == (pytest.approx(1 / 6.18, abs=0.01), pytest.approx(1 / 6.18, abs=0.01))
    again = measured(open_source(tmp_path / "images.npy"))
    assert (again.value_range, again.statistics) == (source.value_range, source.statistics)
    assert open_source(tmp_path / "images.npy").values(0).tolist() == images[0].tolist()


def test_eight_bits_of_many_channels_keep_their_whole_range(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(50, 60, (9, 4, 12, 12), dtype=np.uint8))
    source = measured(open_source(tmp_path / "a.npy"))
    assert source.channels == 4
    assert source.value_range == ((0.0, 255.0),) * 4
    constant = np.full((9, 12, 12), 7, np.uint16)
    np.save(tmp_path / "b.npy", constant)
    assert measured(open_source(tmp_path / "b.npy")).value_range == ((7.0, 8.0),)


def test_most_images_decide_whether_values_count(tmp_path):
    for i in range(5):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    tifffile.imwrite(tmp_path / "deep.tif", np.full((8, 8), 65535, np.uint16))
    tifffile.imwrite(tmp_path / "many.tif", stack(0))
    np.save(tmp_path / "features.npy", np.zeros((8, 8, 7)))
    source = open_source(tmp_path)
    assert not source.deep and source.channels == 3
    assert {name for _, name, _ in source.skipped} == {"features.npy"}
    assert "7 channels" in source.skipped[0][2]
    row = next(i for i in source.ids.tolist() if source.name_of(i) == "deep.tif")
    assert (source.read(row) == 255).all()
    with pytest.raises(DataError, match=r"no image of channels=4; its images have 1 or 3 or 7"):
        open_source(tmp_path, channels=4)
    for i in range(9):
        Image.fromarray(np.full((8, 8), 300 + i, np.uint16)).save(tmp_path / f"gray{i}.png")
    source = open_source(tmp_path)
    assert source.deep and source.channels == 1
    assert int(source.values(int(source.ids[-1])).max()) in range(300, 65536)
    assert sum("3 channels of 8 bits, not 1 channels of 16" in reason for _, _, reason in source.skipped) == 5
    with pytest.raises(DataError, match="channels=5 is for folders and arrays"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = (tmp_path / "x.png").read_bytes()
        pq.write_table(pa.table({"image": [{"bytes": data, "path": "x.png"}] * 4}), tmp_path / "x.parquet")
        open_source(tmp_path / "x.parquet", channels=5)


def test_without_tifffile_gray_is_read_and_the_rest_says_how(plates, tmp_path, monkeypatch):
    own = builtins.__import__

    def lacking(name, *rest):
        if name == "tifffile":
            raise ImportError
        return own(name, *rest)

    tifffile.imwrite(tmp_path / "gray.tif", np.full((8, 9), 40000, np.uint16))
    tifffile.imwrite(tmp_path / "float.tif", np.full((8, 9), -2.5, np.float32))
    monkeypatch.setattr(builtins, "__import__", lacking)
    assert deep.look(str(tmp_path / "gray.tif"), None) == (8, 9, 1, 16)
    assert (deep.values(str(tmp_path / "gray.tif"), None) == 40000).all()
    assert (deep.values(str(tmp_path / "float.tif"), None) == -2.5).all()
    tifffile.imwrite(tmp_path / "five.tif", np.moveaxis(stack(0), 0, -1), planarconfig="contig")
    with pytest.raises(Unusable, match=r"byol\[tiff\]"):
        deep.look(str(tmp_path / "five.tif"), None)


def test_views_keep_more_than_eight_bits_and_are_the_same_from_memory_and_from_files(plates):
    source = open_source(plates).with_range(((0.0, 65535.0),) * 5)
    assert fits_memory(source)
    whole, pixels, _ = load_pixels(source)
    assert pixels.dtype == torch.float32
    view = View(crop_area=(0.3, 1.0), blur=0.5, channelwise=True, hue=0, saturation=0, gray=0)
    given = {"size": 16, "batch_size": 8, "normalization": Normalization((0.0,) * 5, (1.0,) * 5), "seed": 0}
    held = Loader(whole, (view, view), pixels=pixels, **given)
    read = Loader(source, (view, view), pixels=None, **given)
    for a, b in zip(next(held.batches(3, 4)).views, next(read.batches(3, 4)).views, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
        assert len((a * 255).unique()) > 5000, "not 256 levels"


@pytest.mark.parametrize("style", ["authors", "torchvision"])
def test_channels_that_are_no_colours_change_one_by_one(style):
    view = replace(View(jitter=1.0, flip=0, blur=0, gray=0, hue=0, saturation=0, channelwise=True), style=style)
    keys = recipes.view_keys(0, torch.zeros(64, dtype=torch.int64), torch.arange(64), 1)[0]
    sizes = torch.full((64,), 8)
    drawn = recipes.draw(view, keys, sizes, sizes, 8, 3)
    assert drawn.brightness.shape == drawn.contrast.shape == (64, 3)
    both = torch.cat([drawn.brightness - float(style == "torchvision"), drawn.contrast - 1], dim=1)
    assert both.abs().max() <= 0.4 and (both.std(0) > 0.15).all()
    assert torch.corrcoef(both.T).fill_diagonal_(0).abs().max() < 0.4, "independent"
    images = torch.rand(64, 3, 8, 8) * 0.2 + 0.4  # nothing is clipped
    found = recipes.photometry(view, images.clone(), drawn)
    for row in range(64):
        for channel in range(3):
            x = images[row, channel].double()
            for change in drawn.order[row].tolist():
                b, c = drawn.brightness[row, channel].double(), drawn.contrast[row, channel].double()
                if change == 0:
                    x = (x * b if style == "torchvision" else x + b).clamp(0, 1)
                elif change == 1:
                    x = ((x - x.mean()) * c + x.mean()).clamp(0, 1)
            torch.testing.assert_close(found[row, channel].double(), x, rtol=0, atol=1e-5)
    one = recipes.draw(replace(view, channelwise=False), keys, sizes, sizes, 8, 3)
    assert one.brightness.shape == (64,)
    torch.testing.assert_close(
        ops.tf_brightness(images, one.brightness), ops.tf_brightness(images, one.brightness[:, None].expand(-1, 3))
    )


def test_five_channels_from_the_folder_to_the_numbers(plates, tmp_path, capsys):
    out = tmp_path / "run"
    run = pretrain(str(plates), out, SMALL)
    assert Run.read(out / "run.json") == run
    assert run.channels == 5 and len(run.value_range) == len(run.mean) == 5
    low, high = run.value_range[0]
    assert 90 < low < 400 and 31000 < high < 32100
    assert all(view["channelwise"] and not view["hue"] for view in run.views)
    words = (out / "plan.txt").read_text()
    assert "brightness and contrast change channel by channel" in words
    assert "values: 0 to 1 are" in words
    description = read_description(out)
    assert range_of(description) == run.value_range
    assert load(out)(torch.zeros(2, 5, 16, 16)).shape == (2, 16)
    found = evaluate_run(out, str(plates), settings=Settings(protocols=("knn",))).found
    assert set(found["rows"][0]["columns"]) == {"backbone", "raw pixels", "untrained"}
    # Other images, of another range: they are read as the backbone's were.
    other = tmp_path / "other"
    other.mkdir()
    for i in range(4):
        tifffile.imwrite(other / f"{i}.tif", stack(i, top=200), imagej=True, metadata={"axes": "CYX"})
    assert embed(out, str(other), tmp_path / "features")["images"] == 4
    import pyarrow.parquet as pq

    features = np.stack(pq.read_table(tmp_path / "features" / "part-00000.parquet")["vector"].to_numpy())
    from byol.evaluate.features import stream_features
    from byol.subject import open_images

    source = open_images(str(other), channels=5, value_range=run.value_range)
    images = torch.stack([torch.from_numpy(source.read(i)).permute(2, 0, 1) for i in range(4)])
    (expected,) = stream_features(load(out), images, mean=run.mean, std=run.std, size=16)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)
    views_sheet(str(plates), tmp_path / "views.png", SMALL)
    with Image.open(tmp_path / "views.png") as sheet:
        assert sheet.size[0] > 300


def test_a_run_on_values_resumes_with_the_range_that_it_had(plates, tmp_path):
    whole = pretrain(str(plates), tmp_path / "whole", replace(SMALL, value_range=(0, 40000)))
    assert whole.value_range == ((0, 40000),) * 5
    stopped = tmp_path / "stopped"
    pretrain(str(plates), stopped, replace(SMALL, value_range=(0, 40000)))
    for file in sorted((stopped / "checkpoints").iterdir())[1:]:
        file.unlink()
    again = pretrain(str(plates), stopped, resume=True)
    assert again == whole or replace(again, facts={}) == replace(whole, facts={})
    first, second = ((d / "backbone.safetensors").read_bytes() for d in (tmp_path / "whole", stopped))
    assert first == second
    with pytest.raises(ValueError, match="value_range is of images"):
        pretrain("digits", tmp_path / "no", replace(SMALL, value_range=(0, 40000)))


def test_tiles_of_values_are_cut_from_values(tmp_path):
    image = stack(1, channels=3, side=50)
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", image, imagej=True, metadata={"axes": "CYX"})
    source = tiled(open_source(tmp_path), 20)
    assert source.deep and not source.is_rgb and len(source) == 18
    np.testing.assert_array_equal(source.values(4), np.moveaxis(image, 0, -1)[20:40, 20:40])
    ranged = measured(source)
    assert ranged.read(4).dtype == np.float32 and 0 <= ranged.read(4).min() <= ranged.read(4).max() <= 255


def test_the_command_takes_channels(plates, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["byol", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr()

    small = ["--set", "backbone_args={'layers': [1, 1, 1, 1], 'channels': [8, 8, 16, 16]}", "--set", "hidden=16"]
    code, said = run(
        "pretrain", plates, "--out", tmp_path / "o", "--channels", 5, "--backbone", "resnet18", "--image-size", 16,
        "--batch-size", 8, "--steps", 2, *small,
    )  # fmt: skip
    assert code == 0, said.err
    assert json.loads((tmp_path / "o" / "run.json").read_text())["channels"] == 5
    code, said = run("pretrain", plates, "--out", tmp_path / "p", "--channels", 4)
    assert code == 2 and "channels=4" in said.err and said.err.count("\n") == 1
    assert BYOL_T.channelwise is False


def pixel(source, i=0):
    return source.read(int(source.ids[i]))[0, 0].tolist()


def test_three_channels_of_eight_bits_that_are_no_colours_stay_three(tmp_path):
    image = np.stack([np.full((12, 12), v, np.uint8) for v in (10, 20, 30)])
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", image, imagej=True, metadata={"axes": "CYX"})
    source = measured(open_source(tmp_path))
    assert (source.channels, source.deep, source.is_rgb) == (3, True, False)
    assert pixel(source) == pytest.approx([10, 20, 30], abs=1e-4)
    for i in range(9):
        Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(tmp_path / f"{i}.png")
    source = open_source(tmp_path)
    assert not source.deep and len(source) == 9 and "most images are 8-bit" in source.skipped[0][2]


def test_plain_tiffs_and_arrays_are_read_as_ever(tmp_path):
    colour = Image.fromarray(np.full((12, 14, 3), (200, 100, 50), np.uint8))
    kinds = {
        "rgb": colour,
        "palette": colour.quantize(4),
        "bits": Image.new("1", (14, 12), 1),
        "cmyk": colour.convert("CMYK"),
    }
    clear = Image.new("RGBA", (14, 12), (9, 9, 9, 0))
    for name, image in (kinds | {"clear": clear}).items():
        folder = tmp_path / name
        folder.mkdir()
        for i in range(2):
            image.save(folder / f"{i}.tif")
        source = open_source(folder)
        assert not source.deep and (source.height, source.width) == (12, 14), name
        assert pixel(source) == (
            [255] if name == "bits" else [255] * 3 if name == "clear" else pytest.approx([200, 100, 50], abs=2)
        ), name
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "turned").mkdir()
    for i in range(2):
        colour.save(tmp_path / "turned" / f"{i}.tif", exif=turned)
        colour.save(tmp_path / "turned" / f"jpeg{i}.tif", "JPEG")
    source = open_source(tmp_path / "turned")
    assert len(source) == 4
    assert [source.read(i).shape for i in range(4)] == [(*source.header(i)[:2], 3) for i in range(4)]
    assert source.read(0).shape == (14, 12, 3) and source.read(2).shape == (12, 14, 3)
    (tmp_path / "arrays").mkdir()
    for i in range(2):
        np.save(tmp_path / "arrays" / f"{i}.npy", np.full((12, 14, 3), (1, 2, 3), np.uint8))
    source = open_source(tmp_path / "arrays")
    assert source.is_rgb and pixel(source) == [1, 2, 3]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((4, 9, 9), -3, np.int8), 0.0),
        (np.full((4, 9, 9), 65535, np.uint16), 0.0),
        (np.full((4, 9, 9), 10**9, np.int32), 0.0),
        (np.full((4, 9, 9), -3.4e38, np.float32), 0.0),
    ],
)
def test_values_at_the_ends_of_their_types_are_in_range(tmp_path, array, expected):
    np.save(tmp_path / "a.npy", array)
    source = measured(open_source(tmp_path / "a.npy"))
    assert source.deep
    assert (source.read(0) == expected).all()
    ((low, high),) = source.value_range
    assert high > low and np.float32(high) > np.float32(low)


def test_large_integers_that_differ_little_stay_apart(tmp_path):
    np.save(tmp_path / "a.npy", 10**9 + np.arange(4 * 81).reshape(4, 9, 9).astype(np.int32))
    source = open_source(tmp_path / "a.npy").with_range(((10**9, 10**9 + 323.0),))
    assert len(np.unique(source.read(2))) == 81


def test_images_of_other_bits_are_skipped_and_other_kinds_of_data_refused(plates, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.full((9, 9), 4000 + i, np.uint16)).save(folder / f"deep{i}.png")
    for i in range(4):
        Image.fromarray(np.full((9, 9), 200, np.uint8)).save(folder / f"plain{i}.png")
    source = open_source(folder)
    assert source.deep and len(source) == 6
    assert source.skipped[0][2] == "1 channels of 8 bits, not 1 channels of 16"
    from byol.subject import baseline, open_images, read_backbone

    with pytest.raises(DataError, match="trained on other values"):
        open_images("digits", channels=1, value_range=((0.0, 4095.0),))
    for name, top in (("a", 40000), ("b", 50000)):
        pretrain(str(plates), tmp_path / name, replace(SMALL, value_range=(0, top)))
    description, _, own = read_backbone(tmp_path / "a")
    assert baseline(str(tmp_path / "a"), own, range_of(description)).name == "a"
    with pytest.raises(ValueError, match="another value_range"):
        baseline(str(tmp_path / "b"), own, range_of(description))


def test_headers_kept_for_some_channels_are_not_those_for_others(tmp_path, monkeypatch):
    monkeypatch.setenv("BYOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("byol.data.folder.KEEP_FROM_FILES", 2)
    (tmp_path / "pages").mkdir()
    for i in range(3):
        tifffile.imwrite(tmp_path / "pages" / f"{i}.tif", stack(i))
    assert open_source(tmp_path / "pages").channels == 1
    for _ in range(2):
        assert open_source(tmp_path / "pages", channels=5).channels == 5


def test_an_evaluation_reads_images_as_the_backbone_s_were(plates, tmp_path):
    run = pretrain(str(plates), tmp_path / "run", replace(SMALL, value_range=(0, 65535)))
    from byol.evaluate.columns import RAW_PIXELS
    from byol.subject import open_parts

    parts = open_parts(str(plates), None, channels=5, value_range=run.value_range)
    expected = parts.train.source.values(int(parts.train.source.ids[0])) / 65535 * 255
    np.testing.assert_allclose(parts.train.pixels[0].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-3)
    found = evaluate_run(tmp_path / "run", str(plates), settings=Settings(protocols=("knn",)))
    train_x, _ = found.features[RAW_PIXELS]
    assert np.asarray(train_x[0], np.float32).max() == pytest.approx(float(expected.max()) / 255, abs=0.1)
