"""The backbone in other ecosystems' formats: the same features, in processes that cannot import this package."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from byol import cli, formats, names
from byol.encoder import Encoder, EncoderSpec
from byol.export import load, save_backbone, write_backbone
from byol.formats import export, of_torchvision
from byol.formats.card import escaped, plain
from byol.views.view import BYOL_T, describe

TINY = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
DEEP_RANGE = ((0.0, 65535.0), (10.0, 20.0))
SPECS = {
    "small stem": EncoderSpec("resnet18", 32, 3, "3x3", TINY),
    "deep small stem": EncoderSpec("resnet18", 32, 1, "3x3", {**TINY, "stem_type": "deep", "stem_width": 8}),
    "resnet18": EncoderSpec("resnet18", 32),
    "vit": EncoderSpec("vit_tiny_patch16_224", 32, args={"depth": 1, "embed_dim": 24, "num_heads": 3}),
    "convnext": EncoderSpec("convnext_atto", 32, args={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "deep values": EncoderSpec("resnet18", 32, 2, "original", TINY),
}
WRITTEN = [
    ("timm", "small stem"),
    ("timm", "vit"),
    ("timm", "deep values"),
    ("huggingface", "small stem"),
    ("huggingface", "deep small stem"),
    ("huggingface", "resnet18"),
    ("huggingface", "vit"),
    ("huggingface", "convnext"),
    ("torchvision", "resnet18"),
    ("onnx", "small stem"),
    ("pt2", "vit"),
    ("pt2", "deep values"),
]
MAY_IMPORT = {
    "onnx": (),
    "pt2": ("torch",),
    "torchvision": ("torch", "torchvision"),
    "timm": ("torch", "torchvision", "timm"),
    "huggingface": ("torch", "torchvision", "timm"),
}
"""Format -> what its process may import; in the order in which one process can try them all."""
CHILD = """
import json, os, sys
import numpy as np
sys.modules["byol"] = None
for folder, allowed, code, images, out in json.loads(sys.argv[1]):
    for name in ("torch", "torchvision", "timm"):
        if name not in allowed:
            sys.modules[name] = None
        elif name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
    os.chdir(folder)
    known = {"given": np.load(images)}
    try:
        exec(code, known)
    except Exception as error:
        open(out + ".txt", "w").write(f"{type(error).__name__}: {error}")
    else:
        np.save(out, np.asarray(known["features"]))
"""


def encoder_of(spec):
    """With statistics and affine parameters that differ from those of a new network."""
    torch.manual_seed(0)
    encoder = Encoder(spec)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return encoder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_run):
    """Directories with a backbone of each kind, and run.json."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, spec in SPECS.items():
        found[name] = root / name
        found[name].mkdir()
        run = make_run(
            backbone=spec.name,
            backbone_args=spec.args,
            stem=spec.stem,
            image_size=spec.image_size,
            channels=spec.channels,
            mean=(0.3, 0.5, 0.6)[: spec.channels],
            std=(0.2, 0.3, 0.25)[: spec.channels],
            value_range=DEEP_RANGE if name == "deep values" else None,
            facts={
                "images_trained_on": 1234,
                "images_usable": 1300,
                "data_fingerprint": "f" * 64,
                "device_name": "a processor",
                "versions": {"torch": "9.9"},
            },
        )
        save_backbone(encoder_of(spec), run, found[name], step=2)
        run.write(found[name] / "run.json")
    return found


def images_for(name):
    """[7, S, S, C]: uint8, or float32 of which some lie out of the range."""
    spec, generator = SPECS[name], np.random.default_rng(0)
    shape = (7, spec.image_size, spec.image_size, spec.channels)
    if name == "deep values":
        low, high = np.array(DEEP_RANGE).T
        return generator.uniform(low - 0.2 * (high - low), high + 0.2 * (high - low), shape).astype(np.float32)
    return generator.integers(0, 256, shape).astype(np.uint8)


def expected(run, name):
    """The features, straight from what backbone.json says."""
    about = json.loads((run / "backbone.json").read_text())
    x = torch.from_numpy(images_for(name)).permute(0, 3, 1, 2).double()
    if name == "deep values":
        low, high = torch.tensor(DEEP_RANGE, dtype=torch.float64).T
        x = ((x - low.view(-1, 1, 1)) / (high - low).view(-1, 1, 1)).clamp(0, 1)
    else:
        x = x / 255
    mean, std = (torch.tensor(about["normalization"][key], dtype=torch.float64) for key in ("mean", "std"))
    with torch.no_grad():
        return load(run).double()((x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).numpy()


def code_of(card):
    return re.search(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """(format, run) -> (what `export` said, its directory, the features of the card's code in a fresh process)."""
    root = tmp_path_factory.mktemp("exported")
    said, jobs = {}, []
    for kind, name in sorted(WRITTEN, key=lambda each: list(MAY_IMPORT).index(each[0])):
        place, images = root / f"{kind} {name}", root / f"{name}.npy"
        said[kind, name] = export(runs[name], kind, place)
        np.save(images, images_for(name))
        code, replaced = re.subn(
            r"^images = (\S+?\.|\S+ \+ ).*  # yours.*",
            lambda found: "images = given" if found[1] == "np." else "images = torch.from_numpy(given)",
            code_of((place / "README.md").read_text("utf-8")),
            flags=re.MULTILINE,
        )
        assert replaced == 1
        jobs.append([str(place), MAY_IMPORT[kind], code, str(images), f"{root}/{kind} {name} features.npy"])
        if (kind, name) == ("torchvision", "resnet18"):  # before anybody names a small stem to timm
            alone = 'import timm\ntimm.create_model("local-dir:.", pretrained=True)'
            folder = str(root / "huggingface small stem")
            jobs.append([folder, MAY_IMPORT["timm"], alone, str(images), str(root / "alone")])
    subprocess.run([sys.executable, "-c", CHILD, json.dumps(jobs)], check=True)
    return said, root


@pytest.mark.parametrize(("kind", "name"), WRITTEN, ids=[" ".join(each) for each in WRITTEN])
def test_each_format_gives_the_same_features_where_this_package_cannot_be_imported(kind, name, runs, exported):
    said, root = exported
    failed = root / f"{kind} {name} features.npy.txt"
    assert not failed.exists(), failed.read_text()
    found, right = np.load(root / f"{kind} {name} features.npy"), expected(runs[name], name)
    apart = np.linalg.norm(found - right, axis=1) / np.linalg.norm(right, axis=1)
    assert found.dtype == np.float32 and apart.max() < 1e-4
    assert np.linalg.norm(right - right.mean(0), axis=1).min() > 1e-2 * np.linalg.norm(right, axis=1).max()
    assert said[kind, name]["relative_difference"] < 1e-4
    assert {p.name for p in (root / f"{kind} {name}").iterdir()} == set(said[kind, name]["files"])


def test_timm_alone_refuses_a_small_stem_by_its_name(exported):
    assert "Unknown model (resnet18_3x3)" in (exported[1] / "alone.txt").read_text()


def test_an_onnx_file_says_what_it_takes_and_is_one(exported):
    import onnxruntime

    place = exported[1] / "onnx small stem"
    session = onnxruntime.InferenceSession(place / "model.onnx")
    taken, given = session.get_inputs()[0], session.get_outputs()[0]
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert (given.name, given.type, given.shape[1:]) == ("features", "tensor(float)", [16])
    assert isinstance(taken.shape[0], str)
    about = session.get_modelmeta().custom_metadata_map
    assert about["name"] == "resnet18" and json.loads(about["mean"]) == [0.3, 0.5, 0.6] and about["byol"]
    assert {p.suffix for p in place.iterdir()} == {".onnx", ".md", ".json"}


def test_a_hub_folder_says_what_images_it_takes_and_nothing_of_timm_s_own_weights(exported):
    config = json.loads((exported[1] / "huggingface resnet18" / "config.json").read_text())
    cfg = config["pretrained_cfg"]
    assert config["architecture"] == "resnet18" and config["num_features"] == 512
    assert (cfg["input_size"], cfg["mean"], cfg["std"]) == ([3, 32, 32], [0.3, 0.5, 0.6], [0.2, 0.3, 0.25])
    assert not {"url", "tag", "license", "origin_url", "paper_ids", "hf_hub_id"} & set(cfg)
    vit = json.loads((exported[1] / "huggingface vit" / "config.json").read_text())
    assert vit["model_args"]["img_size"] == 32 and vit["pretrained_cfg"]["fixed_input_size"]


def test_a_timm_export_is_a_run_of_ours_too(exported, runs):
    place = exported[1] / "timm vit"
    own, again = load(runs["vit"]).state_dict(), load(place).state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("small stem", "torchvision has no resnet18 with a 3x3 stem"),
        ("vit", "no vit_tiny"),
        ("deep values", "in_chans=2"),
    ],
)
def test_torchvision_refuses_what_it_does_not_have_and_names_formats_that_work(
    name, words, runs, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match=words) as error:
        export(runs[name], "torchvision", tmp_path / "out")
    assert str(error.value).endswith("; use --format timm, huggingface, onnx or pt2")
    monkeypatch.setattr(names, "missing_packages", lambda kind: ["onnx"] if kind == "onnx" else [])
    with pytest.raises(ValueError, match=r"use --format timm, huggingface or pt2$"):
        export(runs[name], "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def renamed(model, rename, like):
    """A timm model's weights under torchvision's names, into `like`; both in evaluation mode."""
    weights = {rename(name): value for name, value in model.state_dict().items()}
    like.load_state_dict({k: v.view(-1, 1, 1) if k.endswith(".layer_scale") else v for k, v in weights.items()})
    return model.eval(), like.eval()


def test_vision_transformers_have_their_twins(tmp_path):
    args = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 0}
    own = timm.create_model("vit_base_patch16_224", **args)
    torch.nn.init.normal_(own.pos_embed)
    twin = torchvision.models.VisionTransformer(32, 16, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96)
    twin.heads = torch.nn.Identity()
    own, twin = renamed(own, of_torchvision.vit_name, twin)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(twin(x), own(x))


def test_convnexts_have_their_twins():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    own = timm.create_model("convnext_tiny", depths=[1, 2, 1, 1], dims=[8, 12, 16, 24], num_classes=0)
    for name, value in own.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(value)
    blocks = [(8, 12, 1), (12, 16, 2), (16, 24, 1), (24, None, 1)]
    twin = ConvNeXt([CNBlockConfig(*block) for block in blocks])
    twin.classifier[2] = torch.nn.Identity()
    own, twin = renamed(own, of_torchvision.convnext_name, twin)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(twin(x), own(x))


def test_all_twins_exist_in_both():
    theirs = torchvision.models.list_models()
    assert all(timm.is_model(name) and twin.name in theirs for name, twin in of_torchvision.TWINS.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", of_torchvision.TWINS)
def test_every_twin_takes_the_weights(name, make_run, tmp_path):
    size = 28 if name.endswith("patch14_224") else 32
    run = make_run(backbone=name, image_size=size)
    save_backbone(encoder_of(EncoderSpec(name, size)), run, tmp_path, step=1)
    assert export(tmp_path, "torchvision")["relative_difference"] < 1e-4


def test_other_features_are_refused_and_nothing_is_left(runs, tmp_path, monkeypatch):
    def off(backbone, directory):
        form = formats.write_timm(backbone, directory)
        return replace(form, features=lambda images: form.features(images) * (1 + factor))

    monkeypatch.setitem(formats.WRITERS, "timm", off)
    factor = 1e-3
    with pytest.raises(ValueError, match=r"gives other features \(relative difference 1.0e-03\)"):
        export(runs["vit"], "timm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    factor = 1e-5
    assert export(runs["vit"], "timm", tmp_path / "out")["relative_difference"] == pytest.approx(1e-5, rel=0.1)


def test_a_network_that_an_exporter_cannot_follow_is_one_line(runs, tmp_path, monkeypatch):
    def fails(backbone, directory):
        (directory / "half").write_text("written")
        raise RuntimeError("no such operator\nand a page of advice")

    monkeypatch.setitem(formats.WRITERS, "pt2", fails)
    with pytest.raises(ValueError, match=r"^pt2 cannot hold vit_tiny_patch16_224: no such operator; use --format timm"):
        export(runs["vit"], "pt2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_any_size_is_compared(runs, tmp_path, monkeypatch):
    seen = []

    def watched(backbone, directory):
        form = formats.write_timm(backbone, directory)
        return replace(form, features=lambda images: seen.append(len(images)) or form.features(images))

    monkeypatch.setitem(formats.WRITERS, "timm", watched)
    export(runs["vit"], "timm", tmp_path / "out")
    assert seen == [1, 5]


def test_an_export_may_be_written_again_and_nothing_else_is_touched(runs, tmp_path):
    out = tmp_path / "out"
    export(runs["small stem"], "huggingface", out)
    assert (out / "small_stem.py").is_file()
    (out / ".gitattributes").write_text("mine")
    export(runs["vit"], "huggingface", out, licence="CC-BY-4.0")
    kept = {".gitattributes", "README.md", "config.json", "export.json", "model.safetensors"}
    assert {p.name for p in out.iterdir()} == kept
    assert "vit_tiny" in (out / "config.json").read_text()
    with pytest.raises(ValueError, match="another format"):
        export(runs["vit"], "timm", out)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        export(runs["vit"], "timm", strange)
    assert [p.name for p in strange.iterdir()] == ["precious.txt"]
    (out / "export.json").write_text(json.dumps({"format": "huggingface", "files": ["../strange/precious.txt"]}))
    with pytest.raises(ValueError, match="damaged"):
        export(runs["vit"], "huggingface", out)
    assert (strange / "precious.txt").exists()


def copied(run, tmp_path):
    place = tmp_path / "copy"
    place.mkdir()
    for path in run.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def changed(place, **values):
    about = json.loads((place / "backbone.json").read_text())
    (place / "backbone.json").write_text(json.dumps(about | values))


def test_a_backbone_without_its_run_has_a_card_that_says_less(runs, tmp_path):
    place = copied(runs["vit"], tmp_path)
    (place / "run.json").unlink()
    found = export(place, "timm")
    assert found["out"] == str(place / "export" / "timm")
    card = Path(found["card"]).read_text("utf-8")
    assert "did not come along" in card and "has not been evaluated" in card and "unknown data" in card
    assert "Unknown: whoever exported it" in card and ModelCard(card).data.license == "unknown"


def test_damaged_and_hostile_files_are_one_line(runs, tmp_path):
    def refused(words):
        with pytest.raises(ValueError, match=words) as error:
            export(place, "timm", tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()

    place = copied(runs["vit"], tmp_path)
    for values, words in (
        ({"image_size": 10**9, "args": {**SPECS["vit"].args, "img_size": 32}}, "image_size"),
        ({"normalization": {"mean": [0.1], "std": [1.0] * 3}}, "no mean and std"),
        ({"normalization": {"mean": ["import os"] * 3, "std": [1.0] * 3}}, "no mean and std"),
        ({"normalization": {"mean": [0.1] * 3, "std": [0.0] * 3}}, "no mean and std"),
        ({"normalization": None}, "normalization"),
        ({"value_range": [[1, 0]] * 3}, "value_range"),
        ({"value_range": "abc"}, "value_range"),
        ({"args": {"checkpoint_path": "/etc/passwd"}}, "may not name"),
    ):
        before = (place / "backbone.json").read_bytes()
        changed(place, **values)
        refused(words)
        (place / "backbone.json").write_bytes(before)
    (place / "evaluation.json").write_text(json.dumps({"rows": [{"name": "x", "columns": {"backbone": 3}}]}))
    refused("evaluation.json is damaged")
    (place / "evaluation.json").unlink()
    (place / "run.json").write_text('{"data": 3')
    refused("run.json is damaged")
    (place / "run.json").unlink()
    weights = place / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("not a safetensors file")


def test_features_that_are_no_numbers_are_refused(runs, tmp_path, make_run):
    encoder = encoder_of(SPECS["small stem"])
    torch.nn.init.constant_(encoder.model.bn1.bias, float("nan"))
    save_backbone(encoder, make_run(image_size=32), tmp_path, step=1)
    with pytest.raises(ValueError, match="not finite"):
        export(tmp_path, "timm")


def evaluation(data):
    """As an evaluation writes it, of one protocol."""
    numbers = {"score": 0.875, "interval_95": [0.8125, 0.9375]}
    pixels = {"score": 0.5, "interval_95": [0.25, 0.75]}
    gain = {"difference": 0.375, "interval_95": [0.125, 0.625]}
    row = {"name": "kNN, k=20", "columns": {"backbone": numbers, "raw pixels": pixels}}
    return {
        "data": data,
        "metric": "top1",
        "train_images": 40,
        "test_images": 10,
        "rows": [row | {"differences": {"raw pixels": gain}}],
        "unlabelled": {"backbone": {"effective_rank": 12.5, "interval_95": [0, 1]}},
        "warnings": ["3 test images are near-duplicates"],
    }


def test_a_card_says_data_recipe_numbers_intervals_and_licence(runs, tmp_path):
    place = copied(runs["vit"], tmp_path)
    (place / "evaluation.json").write_text(json.dumps(evaluation("flowers")))
    text = Path(export(place, "huggingface", licence="Apache-2.0")["card"]).read_text("utf-8")
    row = "| kNN, k=20 | 0.875 (0.812 to 0.938) | 0.500 (0.250 to 0.750) | +0.375 (+0.125 to +0.625) |"
    for words in (row, "1,234 images", "f" * 64, "tau=0.99", "near-duplicates", "torch 9.9", "12.5", "Apache-2.0"):
        assert words in text, words
    assert f"1. {escaped(describe(BYOL_T))}" in text
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "timm", "image-feature-extraction")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_value) == ("flowers", 0.875)
    html = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert html.count("<table>") == 4 and html.count("<h2>") == 6


HOSTILE = "x](http://evil) <script>alert(1)</script> | `a` ![](http://evil)\n---\nlicense: mit\n---\n# You \u202ewon"


def test_no_text_of_a_run_becomes_markup(runs, tmp_path, make_run):
    place = copied(runs["small stem"], tmp_path)
    run = make_run(
        data=HOSTILE,
        method_args={HOSTILE: HOSTILE},
        facts={
            "images_trained_on": 1,
            "images_usable": 1,
            "data_fingerprint": HOSTILE,
            "device_name": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "git_commit": HOSTILE,
        },
        views=(asdict(BYOL_T),),
    )
    run.write(place / "run.json")
    changed(place, method=HOSTILE, evaluation_input=HOSTILE, steps=HOSTILE)
    found = evaluation(HOSTILE) | {"warnings": [HOSTILE]}
    found["rows"][0]["name"] = HOSTILE
    found["rows"][0]["columns"][HOSTILE] = found["rows"][0]["columns"]["backbone"]
    (place / "evaluation.json").write_text(json.dumps(found))
    text = Path(export(place, "timm")["card"]).read_text("utf-8")
    assert ModelCard(text).data.license == "unknown" and "\u202e" not in text
    html = MarkdownIt("commonmark").enable("table").render(text.split("\n---\n", 1)[1])
    assert html.count("<table>") == 4 and html.count("<h2>") == 6 and html.count("<h1>") == 1
    assert not re.search(r"<(script|a|img|hr|code>a)\b", html)
    rows = [line for line in text.splitlines() if line.startswith("| x")]
    assert rows and len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_arguments_in_the_code_are_values_and_nothing_else(runs, tmp_path):
    place = copied(runs["small stem"], tmp_path)
    name = 'print("ran") or dict(a'
    changed(place, args={**TINY, name: None})
    code = code_of(Path(export(place, "timm")["card"]).read_text("utf-8"))
    assert repr(name) in code and 'print("ran")' not in code.replace(repr(name), "")


def test_plain_is_one_short_printable_line():
    assert plain("a\n\x00b\u202e  c\u2028d") == "a b c d"
    assert len(plain("x" * 10_000)) < 400
    assert escaped("www.evil.org https://evil") == r"www\.evil.org https\://evil"


@pytest.fixture
def command(capsys, monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["byol", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return call


def test_the_command_prints_one_object(command, runs, tmp_path):
    code, out, _ = command(runs["vit"], "--format", "timm", "--out", tmp_path / "out", "--licence", "MIT", "--json")
    found = json.loads(out)
    assert code == 0 and found["licence"] == "MIT" and found["relative_difference"] < 1e-4
    code, out, _ = command(runs["vit"], "--format", "timm", "--out", tmp_path / "out")
    assert code == 0 and "README.md" in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "--format", "timm"), "holds no backbone.json"),
        (("nowhere", "--format", "onx"), "onnx"),
        (("nowhere", "--format", "timm", "--licence", "my own!"), "SPDX"),
        (("nowhere",), "--format"),
    ],
    ids=["run", "format", "licence", "none"],
)
def test_mistakes_are_one_line(command, arguments, words):
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1


def test_packages_that_are_missing_are_named_with_the_command_that_installs_them(command, runs, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    gone = ("onnxscript", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else find(name, *rest))
    code, _, err = command(runs["vit"], "--format", "onnx")
    assert code == 2 and "`pip install onnxscript onnxruntime`" in err and err.count("\n") == 1


@pytest.mark.parametrize("kind", ["timm", "huggingface", "torchvision"])
def test_padding_that_no_other_library_has_is_refused_in_one_line(same, kind, tmp_path):
    with pytest.raises(ValueError, match=r"SAME.*--format onnx or pt2$") as caught:
        export(same, kind, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_graphs_hold_it_themselves(same, kind, tmp_path):
    assert export(same, kind, tmp_path / "out")["relative_difference"] < 1e-5


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """A backbone with TensorFlow's SAME padding."""
    directory = tmp_path_factory.mktemp("same")
    spec = EncoderSpec("resnet18", 32, args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, padding="SAME")
    about = {"method": "byol", "used_labels": False, "steps": None, "seed": 0}
    write_backbone(Encoder(spec).eval(), directory, (0.5,) * 3, (0.2,) * 3, about)
    return directory
