"""Methods defined outside the package: the one of docs/add-a-method.md, and ones that break a promise."""

import json
import sys

import numpy as np
import pytest
from methods import outside

from byol import conformance
from byol.cli import main
from byol.compare import contender
from byol.methods import get, uses_labels
from byol.names import method_arguments
from byol.options import Options


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with the method of the docs and some images."""
    outside.write(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (60, 12, 12, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    outside.forget("wrong", "own")


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["byol", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_the_method_of_the_docs_is_short_and_keeps_every_promise(folder):
    assert len((folder / "align_uniform.py").read_text("utf-8").splitlines()) < 60
    conformance.check("align_uniform:AlignUniform")


def test_it_trains_from_the_command_line_and_its_arguments_are_checked(folder, monkeypatch, capsys):
    small = (
        "--steps",
        3,
        "--batch-size",
        8,
        "--set",
        "backbone_args={'layers': [1, 1, 1, 1], 'channels': [8, 8, 8, 8]}",
    )
    wrong = ("pretrain", "images.npz", "--out", "run", "--method", "align_uniform:AlignUniform", *small)
    assert command(monkeypatch, *wrong, "--set", "wieght=2") == 2
    assert "weight" in capsys.readouterr().err
    assert command(monkeypatch, *wrong, "--set", "weight=much") == 2
    assert "a number" in capsys.readouterr().err
    assert command(monkeypatch, *wrong, "--set", "weight=2.0", "--set", "hidden=16") == 0
    run = json.loads((folder / "run/run.json").read_text("utf-8"))
    assert run["method"] == "align_uniform:AlignUniform"
    assert run["method_args"] == {"hidden": 16, "out": 128, "weight": 2.0}
    assert (folder / "run/backbone.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:Method", "no module no_such_module"),
        ("align_uniform:AlignUniforn", "AlignUniform"),
        ("json:JSONDecoder", "JSONDecoder"),
    ],
)
def test_what_is_not_there_is_one_line(folder, monkeypatch, capsys, name, says):
    assert command(monkeypatch, "pretrain", "images.npz", "--out", "run", "--method", name) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error


def test_one_that_learns_from_labels_is_marked_by_that_alone(folder):
    code = (folder / "align_uniform.py").read_text("utf-8").replace("x2: Tensor)", "x2: Tensor, *, labels: Tensor)")
    (folder / "wrong.py").write_text(code, "utf-8")
    sys.path.insert(0, str(folder))
    assert uses_labels(get("wrong:AlignUniform"))
    assert not uses_labels(get("align_uniform:AlignUniform"))
    assert contender("wrong:AlignUniform", Options()).used_labels


def test_an_argument_of_a_kind_that_is_not_pythons_own_takes_anything(folder):
    code = "class Own(Method):\n    def __init__(self, encoder, *, where: Path, part: nn.Module | None = None): ..."
    (folder / "own.py").write_text(code, "utf-8")
    assert method_arguments("own:Own") == {"where": object, "part": object | None}


LOSS = "loss=alignment + self.weight * uniformity"
FIRST = "        alignment ="
# What is wrong -> (a part of the docs' method to replace, with what, words that say so).
WRONG = {
    "a loss for each image": (LOSS, "loss=(u1 - u2).square().sum(1)", "scalar"),
    "a loss in half precision": (LOSS, "loss=alignment.half()", "scalar"),
    "features in another order": ("features=y1", "features=y1.flip(0)", "row i of image i"),
    "random numbers of torch's": (FIRST, f"        u1 = u1 + 0.1 * torch.randn_like(u1)\n{FIRST}", "same key"),
    "an image that counts more": ("sum(dim=1).mean()", "sum(dim=1)[0]", "order of images"),
    "an untrained part": ("        self.count = 0", "        self.spare = torch.nn.Linear(2, 2)", "spare"),
    "state changed in forward": (FIRST, f"        self.seen.add_(1)\n{FIRST}", "forward changes seen"),
    "state outside of buffers": (FIRST, f"        u1 = u1 * (1 + self.count)\n{FIRST}", "state dict"),
    "a loss of nothing": (LOSS, "loss=0 * alignment", "encoder is zero"),
    "a loss that rises": (LOSS, "loss=2 * alignment.detach() - alignment", "goes from"),
    "defaults that nothing takes": ('"out": 128, "weight"', '"out": 128, "width": 3, "weight"', "width"),
}
MEMORY = """
        self.register_buffer("seen", torch.zeros(()))
        self.count = 0

    def after_step(self, progress, outs):
        self.count += 1
"""


@pytest.mark.parametrize("what", WRONG)
def test_a_broken_promise_is_named(folder, what):
    line, instead, says = WRONG[what]
    code = (folder / "align_uniform.py").read_text("utf-8")
    code = code.replace("        self.weight = weight\n", "        self.weight = weight" + MEMORY)
    assert line in code
    (folder / "wrong.py").write_text(code.replace(line, instead), "utf-8")
    sys.path.insert(0, str(folder))
    with pytest.raises((AssertionError, TypeError), match=says):
        conformance.check("wrong:AlignUniform")
