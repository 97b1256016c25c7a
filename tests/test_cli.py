"""The command line: errors a person can cause are one line on stderr, exit code 2, and nothing written."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from byol import cli, names


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["byol", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return call


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((16, 16, 3), 30 + i, np.uint8)
            pixels[..., 0 if name == "cat" else 2] = 200
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "cat" / "broken.png").write_bytes(b"not an image")
    return folder


WRONG = [
    (("pretrain", "digits"), "--out"),
    (("pretrain", "digits", "--out", "OUT", "--epoch", "3"), "--epochs"),
    (("pretrain", "nowhere", "--out", "OUT"), "nowhere"),
    (("pretrain", "digits", "--out", "OUT", "--backbone", "resnet19"), "resnet18"),
    (("pretrain", "digits", "--out", "OUT", "--method", "boyl"), "byol"),
    (("pretrain", "digits", "--out", "OUT", "--recipe", "byol_imagenet_30"), "byol_imagenet_300"),
    (("pretrain", "digits", "--out", "OUT", "--precision", "16"), "bf16"),
    (("evaluate", "nowhere", "digits"), "backbone.json"),
    (("pretrain", "digits", "--out", "OUT", "--epochs", "0"), "epochs=0"),
    (("pretrain", "digits", "--out", "OUT", "--epochs", "3", "--steps", "4"), "give one of them"),
    (("pretrain", "digits", "--out", "OUT", "--hold-out", "1.5"), "hold_out"),
    (("list", "method"), "methods"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_a_wrong_option_is_one_line_and_writes_nothing(run, tmp_path, arguments, says):
    out = tmp_path / "out"
    code, stdout, stderr = run(*(out if a == "OUT" else a for a in arguments))
    assert code == 2
    assert stdout == ""
    assert stderr.count("\n") == 1
    assert says in stderr
    assert not out.exists()


WRONG_FOR_THE_DATA = [
    (("--batch-size", "5000"), "batch_size=5000"),
    (("--set", "tua=0.9"), "tau"),
    (("--set", "optimizer=lasr"), "lars"),
    (("--set", "view.flop=1"), "flip"),
    (("--set", "epochs=0"), "epochs=0"),
    (("--init", "missing.safetensors"), "missing.safetensors"),
    (("--set", "hold_out=1.5"), "hold_out"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG_FOR_THE_DATA)
def test_a_setting_that_does_not_fit_is_one_line_and_writes_nothing(run, images, tmp_path, arguments, says):
    out = tmp_path / "out"
    code, _, stderr = run("pretrain", images, "--out", out, *arguments)
    assert code == 2
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("byol: ")
    assert says in last
    assert not out.exists()


def test_a_folder_with_fewer_than_two_images_is_refused(run, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "a.png")
    code, _, stderr = run("pretrain", tmp_path / "one", "--out", tmp_path / "out")
    assert code == 2
    assert "at least 2 are needed" in stderr
    assert not (tmp_path / "out").exists()


def test_pretrain_evaluate_and_views_of_a_folder(run, images, tmp_path):
    out = tmp_path / "run"
    small = (
        "--steps",
        4,
        "--batch-size",
        8,
        "--set",
        "backbone_args={'layers': [1, 1, 1, 1], 'channels': [8, 8, 8, 8]}",
    )
    code, stdout, stderr = run(
        "pretrain", images, "--out", out, "--backbone", "resnet18", *small, "--set", "hidden=16", "--json"
    )
    assert code == 0, stderr
    assert json.loads(stdout)["steps"] == 4
    assert "16 x 16 px" in stderr
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [s["name"] for s in skipped] == ["cat/broken.png"]

    code, stdout, stderr = run("evaluate", out, images, "--protocol", "knn", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert found == json.loads((out / "evaluation.json").read_text())
    assert set(found["results"]["knn"]) == {"backbone", "raw pixels", "untrained"}
    assert found["results"]["knn"]["raw pixels"]["k=20"] == 1.0
    assert (out / "results.png").stat().st_size > 1000

    code, _, stderr = run("views", images, "--out", tmp_path / "views.png", "--images", 2)
    assert code == 0, stderr
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width > picture.height

    code, _, stderr = run("pretrain", images, "--out", out)
    assert code == 2
    assert "--resume" in stderr


def test_the_lists_name_what_can_be_asked_for(run):
    from byol.experiments import RECIPES

    assert run("list", "methods")[1].split() == list(names.METHODS)
    assert "resnet18" in run("list", "backbones")[1].split()
    assert [line.split(":")[0] for line in run("list", "recipes")[1].splitlines()] == list(RECIPES)
    assert tuple(RECIPES) == names.RECIPES


def test_backbone_names_read_from_source_are_timm_s():
    import timm

    assert set(timm.list_models()) == set(names.backbones())


def test_help_and_option_errors_do_not_import_torch():
    code = (
        "import sys\nsys.argv = ['byol', *ARGS]\nfrom byol import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'timm', 'lightning_fabric', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    for arguments in (
        ["--help"],
        ["pretrain", "digits", "--out", "x", "--backbone", "resnet19"],
        ["pretrain", "--nope"],
        ["pretrain", "digits", "--out", "x", "--epochs", "0"],
    ):
        found = subprocess.run(
            [sys.executable, "-c", code.replace("ARGS", repr(arguments))], capture_output=True, text=True, check=True
        )
        assert found.stdout.strip().splitlines()[-1] == "[]", arguments
