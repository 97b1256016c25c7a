"""A run once more from its run.json: to the byte where nothing is overridden; else what differs is told."""

import dataclasses
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import byol.pipeline
from byol import cli
from byol.data.loader import load_pixels
from byol.data.open import open_source
from byol.experiments import RECIPES
from byol.names import METHODS
from byol.options import Options
from byol.pipeline import pretrain
from byol.plan import plan
from byol.repeat import decided, differences, pinned
from byol.run import Run
from byol.train import Training

TINY = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=12,
    batch_size=16,
    epochs=1,
    precision="32",
    method_args={"hidden": 16, "out": 8},
)
BYTES = ("backbone.safetensors", "run.json", "plan.txt")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process: (exit code, stdout, lines of stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["byol", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err.splitlines()

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 small images in a folder, and a file with their labels."""
    from PIL import Image

    place = tmp_path_factory.mktemp("folder")
    generator = np.random.default_rng(0)
    (place / "images").mkdir()
    for i in range(60):
        Image.fromarray(generator.integers(0, 255, (14, 14, 3)).astype(np.uint8)).save(place / f"images/{i:02}.png")
    (place / "labels.csv").write_text("file,label\n" + "".join(f"{i:02}.png,{i % 3}\n" for i in range(60)))
    return place


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The directory of a finished run on them."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(str(folder / "images"), out, replace(TINY, seed=5))
    return out


@pytest.fixture(scope="module")
def source():
    """The smallest data that all recipes accept: their steps are set, and nothing is trained."""
    found, pixels, _ = load_pixels(open_source("digits"))
    return found, pixels


ASKED = {
    "nothing": Options(),
    **{name: recipe() for name, recipe in RECIPES.items()},
    **{name: Options(method=name) for name in METHODS},
    "changed views": Options(view_changes={"flip": 0.25, "crop_area": (0.3, 1.0)}),
    "given by hand": Options(optimizer="sgd", base_lr=0.1, lr_drops=(0.5, 0.8), constant_lr=("predictor",)),
    "a long warm-up": Options(epochs=3, warmup_epochs=1.5, final_lr=0.1, lr_by_epoch=True),
    "no normalization": Options(normalize=False, hold_out=0.0, seed=3, keep=4, timeout=60.0, max_bad=0.5),
    "another stem": Options(backbone="resnet34", stem="original", encoder_init="timm", precision="64"),
    "moved with the batch": RECIPES["digits_demo"]().at_batch(64, 2),
    "extended": Options(steps=40, extended=((10, 30),)),
    "planned again": Options(steps=40, replan=(10, 30), batch_size=32),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
def test_a_run_s_file_gives_the_options_that_plan_the_run_again(asked, source, tmp_path, monkeypatch):
    monkeypatch.setattr(byol.plan, "has_bf16", lambda device: True)
    asked = replace(asked, device="cpu")
    images, pixels = source
    if asked.method == "moco":
        asked = replace(asked, method_args=asked.method_args | {"queue": 2 * (asked.images_per_step or 128)})
    if (asked.images_per_step or 0) > 3800:
        asked = asked.at_batch(256)
    run = plan(asked, images, pixels)
    run.write(tmp_path / "run.json")
    written = Run.read(tmp_path / "run.json")
    # A machine that would choose otherwise is told what was chosen.
    monkeypatch.setattr(byol.plan, "has_bf16", lambda device: False)
    monkeypatch.setattr(byol.plan, "_workers", lambda device: 7)
    for options in (pinned(written), decided(written)):
        again = plan(options, images, pixels)
        assert differences(written, again) == []
        assert replace(again, facts={}) == replace(run, facts={})
    assert Options.of(asked.given()) == replace(asked, moves=(), fixed=())
    assert "method_args" in run.options or set(decided(written).method_args) == set()


def test_every_setting_of_a_run_is_planned_again():
    """A field that options and runs share, or that only a run has, is either taken from it or follows from the rest."""
    follows = {"data", "mean", "std", "padding", "lr_every_steps", "evaluate_every_steps", "checkpoint_every_steps"}
    of_images = {"channels", "value_range"}
    runs = {field.name for field in dataclasses.fields(Run)} - {"options", "facts", "total_steps"}
    options = {field.name for field in dataclasses.fields(Options)}
    assert runs - options == follows - of_images


def test_a_run_is_repeated_to_the_byte(run, whole, tmp_path):
    code, _, stderr = run("pretrain", "--config", whole / "run.json", "--out", tmp_path / "again")
    assert code == 0, stderr
    assert f"nothing differs from {whole}/run.json" in stderr
    for name in BYTES[:2]:
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes()
    code, stdout, stderr = run("pretrain", "--config", tmp_path / "again", "--out", tmp_path / "third", "-q", "--json")
    assert (code, stderr) == (0, []) and json.loads(stdout)["differs"] == []
    for name in BYTES[:2]:
        assert (tmp_path / "third" / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_of_a_recipe_with_the_largest_batch_labels_and_own_views_is_repeated(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        byol.pipeline, "largest_batch", lambda options, *_: replace(options.at_batch(12), auto_batch=False)
    )
    asked = ("--recipe", "digits_minute", "--auto-batch", "--labels", folder / "labels.csv", "--method", "byol")
    asked += ("--set", "hidden=16", "--set", "view.flip=0.25", "--set", "steps=3", "--set", "hold_out=0.2")
    asked += ("--image-size", "12", "--set", "backbone_args={'layers': [1, 1, 1, 1], 'channels': [8, 8, 8, 8]}")
    code, _, stderr = run("pretrain", folder / "images", "--out", tmp_path / "one", *asked, "--precision", "32")
    assert code == 0, stderr
    monkeypatch.setattr(byol.pipeline, "largest_batch", lambda *_: pytest.fail("the batch is known"))
    code, _, stderr = run("pretrain", "--config", tmp_path / "one", "--out", tmp_path / "two")
    assert code == 0, stderr
    for name in BYTES[:1]:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    first, second = (Run.read(tmp_path / name / "run.json") for name in ("one", "two"))
    assert first.batch_size == 12 and first.facts["moved"]
    assert replace(first, facts={}) == replace(second, facts={})
    assert first.options == second.options


def test_a_budget_and_an_extension_are_repeated_as_the_steps_that_they_came_to(source):
    images, pixels = source
    made = plan(Options(device="cpu", steps=26, extended=((24, 24),), replan=(20, 30)), images, pixels)
    asked = replace(made, options={"budget": 3.0, "auto_batch": True})  # as it was begun
    for options in (pinned(asked), decided(asked)):
        assert (options.budget, options.auto_batch) == (None, False)
        assert differences(made, plan(options, images, pixels)) == []


def test_what_differs_is_told_with_what_follows_from_it(run, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "fit", lambda *_, **__: None)
    code, _, stderr = run("pretrain", "--config", whole, "--out", tmp_path / "a", "--epochs", 20, "--set", "tau=0.9")
    assert code == 0
    told = [line for line in stderr if " -> " in line]
    assert told == [
        "epochs: 0.8 -> 20",
        "tau: 0.6 -> 0.9",
        "total_steps: 3 -> 75",
        "warmup_steps: 0 -> 8",
        "checkpoint_every_steps: 1 -> 7",
    ]
    code, stdout, _ = run("pretrain", "--config", whole, "--out", tmp_path / "b", "--seed", 0, "--json", "-q")
    assert code == 0 and json.loads(stdout)["differs"] == ["seed: 5 -> 0"]  # 0 is what it is by default, too
    code, stdout, _ = run("pretrain", "--config", whole, "--out", tmp_path / "c", "--method", "simclr", "--json", "-q")
    told = json.loads(stdout)["differs"]
    assert told[0] == "optimizer: adamw -> lars" or any(line.startswith("method: byol -> simclr") for line in told)
    assert "tau: 0.6 -> None" in told and not any(line.startswith(("backbone", "seed", "epochs")) for line in told)


def test_another_machine_and_version_are_told(make_run):
    facts = {"threads": 4, "versions": {"torch": "2.11", "numpy": "2.0"}, "images_trained_on": 320, "git_commit": None}
    was = make_run(facts=facts)
    now = make_run(facts=facts | {"threads": 2, "versions": {"torch": "2.12", "numpy": "2.0"}}, device="cuda")
    assert differences(was, now) == ["device: cpu -> cuda", "threads: 4 -> 2", "version of torch: 2.11 -> 2.12"]
    views = [dict(view) for view in was.views]
    views[1]["flip"] = 0.0
    assert differences(was, replace(was, views=tuple(views))) == ["view 2 flip: 0.5 -> 0"]
    assert differences(was, replace(was, data="a\nb\x1b[31m"))[0].isprintable()


def test_images_that_changed_are_refused_unless_they_are_named(run, whole, folder, tmp_path, monkeypatch):
    import shutil

    there = Run.read(whole / "run.json").data
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    shutil.copytree(there, moved)
    shutil.copytree(there, changed)
    (changed / "07.png").unlink()
    copied = tmp_path / "copied"
    shutil.copytree(whole, copied)
    found = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**found, "data": str(changed)}))
    code, _, stderr = run("pretrain", "--config", copied, "--out", tmp_path / "a")
    assert code == 2 and "07.png is gone" in stderr[-1] and "name DATA" in stderr[-1]
    assert not (tmp_path / "a").exists()
    (copied / "run.json").write_text(json.dumps({**found, "data": str(tmp_path / "gone")}))
    code, _, stderr = run("pretrain", "--config", copied, "--out", tmp_path / "a")
    assert (code, len(stderr)) == (2, 1) and "gone" in stderr[0]
    # Named, they are trained on, wherever they lie now.
    code, stdout, _ = run("pretrain", moved, "--config", whole, "--out", tmp_path / "b", "-q", "--json")
    told = json.loads(stdout)["differs"]
    assert (code == 0 and told[0] == f"data: {there} -> {moved}"[: len(told[0])]) or told[0].startswith("data: ")
    assert (tmp_path / "b/backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
    monkeypatch.setattr(Training, "fit", lambda *_, **__: None)
    code, stdout, _ = run("pretrain", changed, "--config", whole, "--out", tmp_path / "c", "-q", "--json")
    assert code == 0 and "images_usable: 60 -> 59" in json.loads(stdout)["differs"]


HOSTILE = {
    "truncated": (lambda text: text[: len(text) // 2], "no JSON"),
    "empty": (lambda text: "", "no JSON"),
    "a list": (lambda text: "[]", "no JSON object"),
    "of another program": (lambda text: json.dumps({"model": "x", "\x1b[31m": 1}), "unknown to this version"),
    "of a newer version": (lambda text: text.replace('"keep"', '"keeps"', 1), "unknown to this version"),
    "of an older version": (lambda text: json.dumps({"data": "x"}), "lacks settings"),
    "of other kinds": (lambda text: text.replace('"seed": 5', '"seed": "5"', 1), "of another kind"),
    "no such option": (lambda text: changed(text, options={"colour": 1}), "no option"),
    "an option of another kind": (
        lambda text: changed(text, options={"epochs": "many"}, method_args={"tau": "x"}),
        "tau",
    ),
    "views of another kind": (lambda text: changed(text, views=[{"flop": 1}, {}]), "views"),
    "impossible": (lambda text: changed(text, batch_size=0), "batch_size"),
    "without steps": (lambda text: changed(text, total_steps=0), "steps"),
    "another method": (lambda text: changed(text, method="boyl"), "byol"),
    "other weights": (lambda text: changed(text, backbone_args={"checkpoint_path": "/x"}), "checkpoint_path"),
    "code": (lambda text: changed(text, method="planted:Method"), "--method planted:Method"),
    "code in a package": (lambda text: changed(text, method="planted.deep:Method"), "--method planted.deep:Method"),
}


def changed(text, **fields):
    return json.dumps({**json.loads(text), **fields})


BESIDE = {"of other kinds", "no such option", "views of another kind", "another method", "code", "code in a package"}
"""What is wrong whatever is given beside it."""


@pytest.mark.parametrize(
    ("kind", "beside"),
    [
        *(pytest.param(kind, (), id=kind) for kind in HOSTILE),
        *(pytest.param(kind, ("--epochs", "2"), id=f"{kind}, overridden") for kind in sorted(BESIDE)),
    ],
)
def test_a_file_that_is_no_run_is_one_line_and_runs_no_code(run, whole, tmp_path, monkeypatch, kind, beside):
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "marker"
    for place in (tmp_path / "planted.py", tmp_path / "planted/__init__.py", tmp_path / "planted/deep.py"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"open({str(marker)!r}, 'w')\nclass Method: pass\n")
    change, says = HOSTILE[kind]
    (tmp_path / "run.json").write_text(change((whole / "run.json").read_text()))
    code, stdout, stderr = run("pretrain", "--config", tmp_path / "run.json", "--out", tmp_path / "out", *beside)
    assert (code, stdout) == (2, "")
    assert says in stderr[-1] and stderr[-1].startswith("byol: ") and stderr[-1].isprintable()
    assert not marker.exists() and not (tmp_path / "out").exists()
    assert not any(name.startswith("planted") for name in sys.modules)


def test_what_cannot_be_meant_is_one_line(run, whole, tmp_path):
    for arguments, says in (
        (("--config", tmp_path / "none.json"), "does not exist"),
        (("--config", tmp_path), "does not exist"),
        (("--config", whole, "--recipe", "digits_demo"), "give one of them"),
        (("--config", whole, "--batch-size", "1"), "2"),
        (("--config", whole, "--epochs", "2", "--steps", "4"), "give one of them"),
    ):
        code, stdout, stderr = run("pretrain", *arguments, "--out", tmp_path / "out")
        assert (code, stdout, len(stderr)) == (2, "", 1) and says in stderr[0]
    code, _, stderr = run("pretrain", "--config", whole)
    assert code == 2 and "--out" in stderr[0]


def test_a_run_that_was_stopped_while_it_repeated_another_goes_on(run, whole, folder, tmp_path, monkeypatch):
    from byol.pipeline import Silent
    from byol.train import Interrupted

    class Stop(Silent):
        def progress(self, progress):
            if progress.metrics:
                raise KeyboardInterrupt

    from byol.repeat import Repeat

    repeat = Repeat(whole / "run.json", Run.read(whole / "run.json"), exactly=True)
    with pytest.raises(Interrupted):
        pretrain(str(folder / "images"), tmp_path / "run", repeat.options(), repeat=repeat, observer=Stop())
    code, _, stderr = run("pretrain", "--config", whole, "--out", tmp_path / "run", "--resume")
    assert code == 0, stderr
    assert (tmp_path / "run/backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
