"""Encoder.embed: the features of `byol embed`, of whatever a program holds; and pretrain by keywords and of arrays."""

import io
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import byol
from byol.embed import embed
from byol.encoder import Encoder

TINY = {
    "backbone": "resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "batch_size": 8,
    "steps": 2,
    "precision": "32",
    "device": "cpu",
    "method_args": {"hidden": 8, "out": 4},
}


def every_kind(folder):
    """Images of all kinds that a folder may hold: sizes, modes, alpha, palettes, EXIF, 16 bits."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (37, 51, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=turned, quality=90)
    colour.save(folder / "colour.jpg")
    colour.resize((24, 24)).save(folder / "fits.png")
    colour.convert("L").save(folder / "gray.png")
    colour.quantize(16).save(folder / "palette.png")
    colour.convert("1").save(folder / "bits.png")
    colour.convert("CMYK").save(folder / "print.jpg")
    alpha = colour.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(colour.size))
    alpha.save(folder / "alpha.png")
    alpha.save(folder / "alpha.webp", lossless=True)
    deep = generator.integers(0, 65536, (40, 60), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    colour.save(folder / "turned.tif", exif=turned)
    np.save(folder / "array.npy", generator.integers(0, 256, (3, 30, 40), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("python")
    folder = every_kind(root / "images")
    byol.pretrain(str(folder), root / "run", image_size=24, **TINY)
    return root


@pytest.fixture(scope="module")
def deep_place(tmp_path_factory):
    """A run on images of two channels of 16 bits."""
    root = tmp_path_factory.mktemp("deep")
    generator = np.random.default_rng(1)
    (root / "images").mkdir()
    for i in range(12):
        np.save(root / f"images/{i:02}.npy", generator.integers(500, 4000, (20, 22, 2), dtype=np.uint16))
    byol.pretrain(str(root / "images"), root / "run", **TINY)
    return root


def embedded(place, tmp_path):
    """(names, features) that `byol embed` writes of the folder."""
    embed(place / "run", str(place / "images"), tmp_path / "out")
    table = pq.read_table(tmp_path / "out").to_pydict()
    return table["path"], np.array(table["vector"], np.float32)


def inputs_of(encoder, images, **given):
    """What the network is given."""
    seen = []
    handle = encoder.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    encoder.embed(images, **given)
    handle.remove()
    return torch.cat(seen)


def test_load_gives_an_encoder_that_timm_s_weights_still_fit(place):
    encoder = byol.load(place / "run")
    assert isinstance(encoder, Encoder)
    assert not encoder.training
    assert list(encoder.state_dict()) == [f"model.{name}" for name in encoder.model.state_dict()]
    again = pickle.loads(pickle.dumps(encoder))
    paths = sorted((place / "images").iterdir())
    assert np.array_equal(encoder.embed(paths), again.embed(paths))


@pytest.mark.parametrize("which", ["place", "deep_place"])
def test_paths_give_the_features_of_byol_embed(which, request, tmp_path):
    place = request.getfixturevalue(which)
    names, expected = embedded(place, tmp_path)
    found = byol.load(place / "run").embed([place / "images" / name for name in names])
    assert found.dtype == np.float32
    assert found.shape == (len(names), 8)
    assert len(names) == len(list((place / "images").iterdir()))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-2, "and they differ from each other"


def test_pillow_s_images_and_arrays_give_the_network_what_their_files_do(place):
    encoder = byol.load(place / "run")
    paths = sorted(path for path in (place / "images").iterdir() if path.suffix != ".npy")
    of_paths = inputs_of(encoder, [str(path) for path in paths])
    assert torch.equal(inputs_of(encoder, [Image.open(path) for path in paths]), of_paths)
    loaded = [Image.open(io.BytesIO(path.read_bytes())) for path in paths]
    for image in loaded:
        image.load()
    assert torch.equal(inputs_of(encoder, loaded), of_paths)
    array = np.load(place / "images/array.npy")
    pixels = np.asarray(Image.open(place / "images/colour.jpg"))
    mixed = inputs_of(encoder, [pixels, place / "images/array.npy", array, array.transpose(1, 2, 0)])
    assert torch.equal(mixed[0], of_paths[[path.name for path in paths].index("colour.jpg")])
    assert torch.equal(mixed[1], mixed[2])
    assert torch.equal(mixed[1], mixed[3])


def test_one_array_of_images_gives_what_a_list_of_them_does(place):
    encoder = byol.load(place / "run")
    colour = np.random.default_rng(2).integers(0, 256, (5, 30, 26, 3), dtype=np.uint8)
    colour.flags.writeable = False
    expected = encoder.embed(list(colour))
    assert np.array_equal(encoder.embed(colour), expected)
    assert np.array_equal(encoder.embed(colour.transpose(0, 3, 1, 2)), expected)
    gray = colour[..., 0]
    assert np.array_equal(encoder.embed(gray), encoder.embed(np.repeat(gray[..., None], 3, axis=3)))
    assert np.allclose(encoder.embed(colour, batch_size=2), expected, rtol=1e-5, atol=1e-6)
    assert encoder.embed([]).shape == (0, 8)


def test_embedding_leaves_the_encoder_as_it_was(place):
    encoder = byol.load(place / "run").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.embed(sorted((place / "images").iterdir()))
    assert all(module.training for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_one_image_in_several_places_is_read_by_threads(place):
    encoder = byol.load(place / "run")
    image = Image.open(place / "images/colour.jpg")
    found = encoder.embed([image] * 64)
    assert np.allclose(found, found[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ("one.png", "single image"),
        (Image.new("RGB", (9, 9)), "single image"),
        (np.zeros((9, 9, 3), np.uint8), "single image"),
        (np.zeros((9, 9), np.uint8), "single image"),
        (np.zeros((2, 2, 9, 9, 3), np.uint8), "use \\[N, H, W\\]"),
        ([np.zeros((9, 9, 3), np.uint8), torch.zeros(3, 9, 9)], "images\\[1\\] is of type Tensor"),
        ([np.zeros((9, 9, 4), np.uint8)], "images\\[0\\]: 4 channels of 8 bits, and .* 8-bit gray or RGB"),
        ([np.zeros((9, 9), np.float32)], "images\\[0\\]: 1 channels of 32 bits, and .* 8-bit gray or RGB"),
        ([np.zeros((9, 9), bool)], "images\\[0\\]: its values are bool"),
        ([np.zeros(9, np.uint8)], "images\\[0\\]: an array of shape \\[9\\]"),
        ([Image.new("LAB", (9, 9))], "images\\[0\\]: pixel mode LAB"),
        (["no/such.png"], "no/such.png: the file is missing"),
        (["."], "\\.: is a directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_embedded_is_named_in_one_line(place, images, says):
    with pytest.raises(ValueError, match=says) as caught:
        byol.load(place / "run").embed(images)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_named_and_a_batch_of_none_refused(place, tmp_path):
    whole = (place / "images/gray.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    encoder = byol.load(place / "run")
    with pytest.raises(ValueError, match=r"cut\.png: broken image"):
        encoder.embed([place / "images/gray.png", tmp_path / "cut.png"])
    with pytest.raises(ValueError, match="batch_size=0"):
        encoder.embed([place / "images/gray.png"], batch_size=0)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((20, 22, 3), np.uint16), "3 channels of 16 bits, and .* 2 channels"),
        (np.full((20, 22, 2), np.nan, np.float32), "not finite"),
        (Image.new("RGB", (9, 9)), "3 channels of 8 bits, and .* 2 channels"),
    ],
    ids=("channels", "nan", "rgb"),
)
def test_of_deep_images_others_are_refused_and_arrays_taken(deep_place, image, says):
    encoder = byol.load(deep_place / "run")
    with pytest.raises(ValueError, match=says):
        encoder.embed([image])
    path = deep_place / "images/03.npy"
    assert torch.equal(inputs_of(encoder, [path]), inputs_of(encoder, [np.load(path)]))
    as_float = inputs_of(encoder, [np.load(path).astype(np.float64)])  # scaled in float64, the others in float32
    assert torch.allclose(inputs_of(encoder, [path]), as_float, rtol=0, atol=1e-5)


def test_a_description_without_normalization_gives_an_encoder_for_tensors(place, tmp_path):
    about = json.loads((place / "run/backbone.json").read_text())
    (tmp_path / "backbone.safetensors").write_bytes((place / "run/backbone.safetensors").read_bytes())
    told = about.pop("normalization")
    (tmp_path / "backbone.json").write_text(json.dumps(about))
    encoder = byol.load(tmp_path)
    assert encoder(torch.zeros(1, 3, 24, 24)).shape == (1, 8)
    with pytest.raises(ValueError, match="does not say how its images are normalised"):
        encoder.embed([np.zeros((9, 9), np.uint8)])
    for damage in ("half", {"mean": told["mean"]}, {**told, "std": [0.0, 1.0, 1.0]}, {**told, "mean": [0.5]}):
        (tmp_path / "backbone.json").write_text(json.dumps({**about, "normalization": damage}))
        with pytest.raises(ValueError, match="no mean and std for each of 3 channels"):
            byol.load(tmp_path)


def test_pretrain_takes_options_by_name_and_images_in_memory(tmp_path):
    images = np.random.default_rng(3).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    run = byol.pretrain(images, tmp_path / "run", **TINY | {"method": "vicreg", "method_args": {"width": 8}})
    assert (run.method, run.total_steps, run.batch_size, run.data) == ("vicreg", 2, 8, "an array")
    assert run.options["backbone_args"] == TINY["backbone_args"]
    np.save(tmp_path / "images.npy", images)
    settings = {**run.options, "backbone_args": run.backbone_args}
    byol.pretrain(tmp_path / "images.npy", tmp_path / "file", **settings)
    weights = [(tmp_path / name / "backbone.safetensors").read_bytes() for name in ("run", "file")]
    assert weights[0] == weights[1], "it is the same run as of a file that holds the array"
    longer = byol.pretrain(images, tmp_path / "run", resume=True, steps=4)
    assert longer.total_steps == 4
    with pytest.raises(ValueError, match="an array is not what this run began with"):
        byol.pretrain(255 - images, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean epochs"),
        ({"epochs": "3"}, "epochs='3' is not possible; use a number"),
        ({"method": "vicregg"}, "unknown method 'vicregg'; did you mean vicreg"),
        ({"backbone": "resnet81"}, "unknown backbone 'resnet81'; did you mean"),
        ({"method_args": {"width": 3}}, "unknown argument of byol 'width'"),
        ({"moves": ()}, "unknown setting 'moves'"),
        ({"epochs": 3, "steps": 5}, "each say how long to train"),
        ({"auto_batch": True, "batch_size": 8}, "give one of them"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_is_wrong_is_one_line_and_nothing_is_written(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says) as caught:
        byol.pretrain("digits", tmp_path / "run", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_setting_replaces_what_the_options_say_of_the_same_thing():
    recipe = byol.Options(
        backbone="resnet50", stem="3x3", batch_size=256, epochs=9, base_lr=0.2, optimizer="lars",
        method_args={"tau": 0.99, "hidden": 64},
    )  # fmt: skip
    assert recipe.changed({}) == recipe
    assert recipe.changed({"steps": 7}) == replace(recipe, epochs=None, steps=7)
    assert recipe.changed({"method_args": {"hidden": 8}}).method_args == {"tau": 0.99, "hidden": 8}
    assert recipe.changed({"backbone": "resnet18"}) == replace(recipe, backbone="resnet18", stem=None)
    assert recipe.changed({"backbone": "resnet18", "stem": "3x3"}) == replace(recipe, backbone="resnet18")
    assert recipe.changed({"batch_size": 64}) == recipe.at_batch(64)
    assert recipe.changed({"batch_size": 64, "base_lr": 0.3}) == replace(recipe.at_batch(64), base_lr=0.3)
    other = recipe.changed({"method": "vicreg"})
    assert (other.method, other.method_args, other.optimizer, other.backbone) == ("vicreg", {}, None, "resnet50")


@pytest.mark.parametrize("array", [np.zeros((4, 5)), np.zeros((4, 5, 5), complex), np.zeros((1, 8, 8), np.uint8)])
def test_an_array_that_holds_no_images_is_one_line(tmp_path, array):
    with pytest.raises(ValueError, match="an array") as caught:
        byol.pretrain(array, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_the_code_of_the_documentation_runs(tmp_path, monkeypatch):
    """docs/python.md, from top to bottom, in a folder that has some photos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(4)
    for i in range(40):
        image = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"photos/{i}.png")
    text = (Path(__file__).parents[1] / "docs/python.md").read_text("utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(code) == 5
    names = {}
    exec(compile("\n".join(code), "python.md", "exec"), names)
    assert names["run"].total_steps == 40, "5 epochs of 40 images in batches of 5"
    assert names["features"].shape == names["more"].shape == (2, names["encoder"].dim)
    assert names["mine"].method == "vicreg"
    assert names["search"].best_score_ > 0.4, "more than a third"


def test_the_readme_s_code_runs(place, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "byol.pretrain" in code]
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (30, 20), "red").save(name)
    (tmp_path / "FOLDER").symlink_to(place / "images")
    names = {}
    exec(snippet.replace("epochs=20", "steps=1"), names)
    assert names["features"].shape[0] == 2
