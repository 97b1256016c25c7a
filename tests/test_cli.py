"""The command line: errors a person can cause are one line on stderr, exit code 2, and nothing written."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from byol import cli, names
from byol.cli.shared import options_of
from byol.evaluate.protocols import score_of
from byol.experiments import RECIPES
from byol.options import Options


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
    (("pretrain", "digits", "--out", "OUT", "--budget", "soon"), "30m"),
    (("pretrain", "digits", "--out", "OUT", "--budget", "3m", "--steps", "4"), "give one of them"),
    (("pretrain", "digits", "--out", "OUT", "--method", "boyl", "--recipe", "digits_demo"), "byol"),
    (("pretrain", "digits", "--out", "OUT", "--method", "barlow_twin"), "barlow_twins"),
    (("pretrain", "digits", "--out", "OUT", "--method", "moco", "--set", "qeue=4096"), "queue"),
    (("pretrain", "digits", "--out", "OUT", "--batch-size", "1"), "equal to 2"),
    (("compare", "digits", "--out", "OUT", "--methods", "byol,vicrge"), "vicreg"),
    (("compare", "digits", "--out", "OUT", "--methods", "byol,byol"), "twice"),
    (("compare", "digits", "--out", "OUT", "--methods", ","), "byol list methods"),
    (("compare", "digits", "--out", "OUT", "--budget", "5"), "30m"),
    (("compare", "digits", "--out", "OUT", "--seeds", "0"), "equal to 1"),
    (("compare", "digits", "--out", "OUT", "--set", "steps=100"), "--steps"),
    (("pretrian", "digits"), "`byol --help`"),
    (("views", "digits", "--out", "grid"), ".png"),
    (("evaluate", "nowhere", "digits", "--protocol", "linaer"), "linear"),
    (("evaluate", "nowhere", "digits", "--metric", "mAP"), "map"),
    (("evaluate", "nowhere", "digits", "digits", "digits", "--metric", "map", "--metric", "top1"), "once for each"),
    (("evaluate", "nowhere", "digits", "--labels", "a.csv", "--labels", "b.csv"), "nowhere"),
    (("pretrain", "digits", "--out", "OUT", "--labels", "nowhere.csv"), "nowhere.csv"),
    (("ablate", "collaps"), "collapse"),
    (("ablate", "tau", "--data", "nowhere", "--out", "OUT"), "nowhere"),
    (("ablate", "tau", "--out", "OUT", "--recipe", "simclr_cifar10"), "takes BYOL apart"),
    (("ablate", "tau", "--out", "OUT", "--set", "budget=60s"), "--steps"),
    (("ablate", "tau", "--out", "OUT", "--set", "seed=3"), "--seeds"),
    (("ablate", "weight-decay", "--data", "tests", "--out", "OUT"), "--set weight_decay=0.002"),
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


WRONG_SETTINGS = [
    (("--set", "tua=0.9"), "tau"),
    (("--set", "tau=high"), "a number"),
    (("--set", "target_init=same"), "independent, copy"),
    (("--set", "optimizer=lasr"), "lars"),
    (("--set", "base_lr=much"), "a number"),
    (("--set", "base_lr=nan"), "base_lr"),
    (("--set", "steps=1.5"), "a whole number"),
    (("--set", "steps"), "name=value"),
    (("--set", "view.flop=1"), "flip"),
    (("--set", "view.flip=1.5"), "probability"),
    (("--set", "view.crop_area=(0.5, 0.2)"), "low <= high"),
    (("--set", "view.crop_area=0.2"), "2 values"),
    (("--set", "backbone_args=3"), "a dictionary"),
    (("--set", "epochs=0"), "epochs=0"),
    (("--set", "hold_out=1.5"), "hold_out"),
    (("--init", "missing.safetensors"), "missing.safetensors"),
]
WRONG_FOR_THE_DATA = [
    *WRONG_SETTINGS,
    (("--batch-size", "5000"), "batch_size=5000"),
    (("--batch-size", "8", "--set", "tau=2"), "tau=2"),
    (("--method", "moco", "--batch-size", "8", "--set", "queue=20"), "queue=16 or 24"),
    (("--method", "moco", "--batch-size", "8", "--set", "queue=4"), "queue=8"),
    (("--method", "moco", "--batch-size", "8", "--set", "groups=3"), "one of 1, 2, 4"),
    (("--method", "moco", "--batch-size", "8", "--set", "groups=8"), "one of 1, 2, 4"),
    (("--method", "simclr", "--batch-size", "8", "--set", "temperature=0.0"), "temperature=0.0"),
    (("--method", "vicreg", "--batch-size", "8", "--set", "width=0"), "width=0"),
    (("--method", "simsiam", "--batch-size", "8", "--set", "constant_lr=('predicter',)"), "predictor"),
    (("--set", "lr_drops=(0.5, 2.0)"), "lr_drops"),
    (("--set", "lr_drops=0.5"), "several values"),
    (("--set", "final_lr=2"), "final_lr"),
    (("--set", "encoder_init=torch"), "timm"),
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


def test_a_supervised_run_without_labels_is_one_line(run, tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (40, 12, 12, 3)).astype(np.uint8))
    out = tmp_path / "out"
    code, _, stderr = run("pretrain", tmp_path / "images.npy", "--out", out, "--method", "supervised")
    assert code == 2
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("byol: supervised learns from labels and")
    assert "sub-folder a class" in last
    assert not out.exists()


def test_a_comparison_that_cannot_be_finished_is_one_line_before_it_begins(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 12, 12, 3)).astype(np.uint8)
    np.savez(tmp_path / "plain.npz", images=pixels)
    np.savez(tmp_path / "one.npz", images=pixels, labels=np.zeros(60, int))
    np.savez(tmp_path / "two.npz", images=pixels, labels=np.arange(60) % 2)
    plain, one, two = (tmp_path / f"{name}.npz" for name in ("plain", "one", "two"))
    out = tmp_path / "out"
    for arguments, says in (
        ((plain, "--labelled", two, "--methods", "byol,supervised"), "supervised cannot be compared: "),
        ((one, "--methods", "byol,supervised"), "not two classes"),
        ((plain, "--methods", "byol"), "has no labels to evaluate against"),
        ((one, "--methods", "byol"), "labels of one class"),
        ((two, "--methods", "moco", "--set", "queue=1000"), "queue="),
        ((two, "--methods", "byol", "--batch-size", 5000), "at most --batch-size"),
    ):
        code, _, stderr = run("compare", *arguments, "--out", out, "--steps", 2, "--seeds", 1)
        last = stderr.strip().splitlines()[-1]
        assert code == 2
        assert last.startswith("byol: ")
        assert says in last
        assert not out.exists()


@pytest.mark.parametrize(
    "asked", [("--method", "moco"), ("--recipe", "moco_v2_imagenet_200"), ("--method", "instdisc")]
)
def test_views_of_a_few_images_are_drawn_for_any_method(run, images, tmp_path, asked):
    code, _, stderr = run("views", images, "--out", tmp_path / "views.png", "--images", 2, *asked)
    assert code == 0, stderr
    assert (tmp_path / "views.png").stat().st_size > 5000


def test_what_is_given_beside_another_batch_is_not_moved():
    options = options_of(None, "digits_demo", ["tau=0.7", "batch_size=64"], steps=400)
    assert (options.batch_size, options.steps, options.method_args["tau"]) == (64, 400, 0.7)
    assert [said.partition(" ")[0] for said in options.moved()] == ["batch", "learning", "weight", "warm-up"]
    assert options.warmup_steps == 400  # the recipe's 200, of twice the images


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
    assert set(found["rows"][0]["columns"]) == {"backbone", "raw pixels", "untrained"}
    assert score_of(found, "knn", "raw pixels") == 1.0
    for picture in found["pictures"]:
        assert (out / picture).stat().st_size > 1000

    code, _, stderr = run("views", images, "--out", tmp_path / "views.png", "--images", 2)
    assert code == 0, stderr
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width > picture.height

    code, _, stderr = run("pretrain", images, "--out", out)
    assert code == 2
    assert "--resume" in stderr


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run of a few steps on coloured squares."""
    from byol.pipeline import pretrain

    folder = tmp_path_factory.mktemp("small")
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pixels = generator.integers(0, 90, (90, 16, 16, 3)) + (np.eye(3)[labels] * 160)[:, None, None, :]
    np.savez(folder / "data.npz", images=pixels.astype(np.uint8), labels=labels)
    np.save(folder / "plain.npy", pixels.astype(np.uint8))
    options = Options(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        steps=4,
        batch_size=16,
        method_args={"hidden": 16, "out": 8},
    )
    pretrain(str(folder / "data.npz"), folder / "run", options)
    return folder


@pytest.fixture
def kept_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("BYOL_CACHE", str(tmp_path / "cache"))


def test_without_labels_what_needs_none_is_measured(run, small_run, kept_nowhere):
    code, stdout, stderr = run("evaluate", small_run / "run", small_run / "plain.npy", "--suggest", 4, "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert "rows" not in found
    assert set(found["unlabelled"]) == {"backbone", "raw pixels", "untrained"}
    assert len(set(found["suggested"])) == 4
    assert (small_run / "run/suggested.csv").read_text().splitlines()[0] == "file,label"
    assert "no labels" in stderr
    code, _, stderr = run("evaluate", small_run / "run", small_run / "plain.npy", "--protocol", "knn")
    assert code == 2 and "has no labels" in stderr and stderr.count("\n") == 1


def test_a_file_gives_labels_and_groups_to_images_without(run, small_run, kept_nowhere, tmp_path):
    rows = [f"{i},{'abc'[i % 3]},{i // 9}" for i in range(90)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,label,plate", *rows]))
    asked = ("--protocol", "linear", "--labels", tmp_path / "labels.csv", "--groups", "plate", "--json")
    code, stdout, stderr = run("evaluate", small_run / "run", small_run / "plain.npy", *asked)
    assert code == 0, stderr
    found = json.loads(stdout)
    assert found["classes"] == ["a", "b", "c"]
    assert found["groups"] * 9 == found["test_images"]
    assert found["rows"][0]["columns"]["backbone"]["over"] == "groups"


def test_labels_that_were_filled_in_are_never_written_over(run, small_run, kept_nowhere):
    asked = ("evaluate", small_run / "run", small_run / "plain.npy", "--suggest", 3, "--json")
    assert run(*asked)[0] == 0
    table = small_run / "run/suggested.csv"
    filled = table.read_text().replace(",\n", ",cat\n", 1)
    table.write_text(filled)
    code, stdout, _ = run(*asked)
    assert code == 0 and json.loads(stdout)["suggested_as"] == "suggested-2.csv"
    assert table.read_text() == filled
    assert len((small_run / "run/suggested-2.csv").read_text().splitlines()) == 4


def test_several_sources_without_labels_are_measured_too_each_in_a_folder(run, small_run, kept_nowhere):
    plain = small_run / "plain.npy"
    code, stdout, stderr = run("evaluate", small_run / "run", plain, plain, "--suggest", 2, "--json")
    assert code == 0, stderr
    first, second = json.loads(stdout)["sources"]
    assert first["unlabelled"] == second["unlabelled"]
    assert first["suggested_as"] == "evaluations/1-plain-npy/suggested.csv" != second["suggested_as"]
    assert all((small_run / "run" / each).is_file() for each in second["pictures"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--device", "cuda"), "device='cuda' is not available here; use --device cpu"),
        (("--labels", "1%"), "--labels 1% is an amount for --protocol semi"),
        (("--suggest", 91), "use --suggest 90 or less"),
        (("--metric", "map"), "use top1"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(more, message, run, small_run, kept_nowhere):
    if more[1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    code, _, stderr = run("evaluate", small_run / "run", small_run / "data.npz", *more)
    assert code == 2
    assert stderr.strip().splitlines()[-1].startswith("byol: ") and message in stderr.strip().splitlines()[-1]


def test_a_backbone_that_came_without_its_run_is_evaluated(run, small_run, kept_nowhere, tmp_path):
    for name in ("backbone.json", "backbone.safetensors"):
        (tmp_path / name).write_bytes((small_run / "run" / name).read_bytes())
    code, stdout, stderr = run("evaluate", tmp_path, small_run / "data.npz", "--protocol", "views", "--json")
    assert code == 0, stderr
    assert "view_retrieval" in json.loads(stdout)["unlabelled"]["backbone"]


def test_a_protocol_that_fails_is_one_line_after_all_that_did_not(run, small_run, kept_nowhere, monkeypatch, tmp_path):
    from byol.evaluate import protocols

    def fail(training):
        from byol.data.source import DataError

        raise DataError("too few")

    monkeypatch.setitem(protocols._FITS, "linear", fail)
    asked = ("--protocol", "knn", "--protocol", "linear", "--protocol", "views", "--baseline", "none")
    monkeypatch.setattr(cli, "_for_people", lambda error: True)  # raised by a test, not by the package
    data = small_run / "data.npz"
    shutil.copytree(small_run / "run", tmp_path / "run")  # what it keeps is its own
    code, stdout, stderr = run("evaluate", tmp_path / "run", data, data, *asked, "--json")
    assert code == 2
    assert stderr.strip().splitlines()[-1] == "byol: too few"
    for found in json.loads(stdout)["sources"]:
        assert found["failed"] == {"linear": "too few"}
        assert [row["protocol"] for row in found["rows"]] == ["knn", "knn"]
        assert "unlabelled" in found and len(found["pictures"]) > 2


def test_of_several_sources_all_are_opened_before_the_first_is_evaluated(run, small_run, kept_nowhere, monkeypatch):
    from byol import evaluation

    monkeypatch.setattr(evaluation, "evaluate_run", lambda *_, **__: pytest.fail("evaluated before"))
    monkeypatch.setattr(evaluation, "without_labels", lambda *_, **__: pytest.fail("evaluated before"))
    plain = small_run / "plain.npy"
    code, _, stderr = run("evaluate", small_run / "run", plain, small_run / "data.npz", "--suggest", 91)
    assert code == 2 and "use --suggest 90 or less" in stderr


def test_what_was_found_without_labels_is_kept_for_each_source(run, small_run, kept_nowhere, tmp_path):
    first, second = tmp_path / "first.npy", tmp_path / "second.npy"
    pixels = np.load(small_run / "plain.npy")
    np.save(first, pixels[:40])
    np.save(second, pixels[40:])
    assert run("evaluate", small_run / "run", first, second, "--json")[0] == 0
    for place, num in ((first, 40), (second, 50)):
        (kept,) = (small_run / "run/evaluations").glob(f"{place.stem}-npy-*.json")
        assert json.loads(kept.read_text("utf-8"))["unlabelled"]["backbone"]["num_images"] == num


def test_the_pictures_of_every_source_are_named(run, small_run, kept_nowhere, tmp_path):
    data = small_run / "data.npz"
    shutil.copytree(small_run / "run", tmp_path / "run")
    code, stdout, stderr = run("evaluate", tmp_path / "run", data, data, "--baseline", "none")
    assert code == 0, stderr
    said = stdout.replace("\n", "")  # wherever the terminal broke a line
    assert all(f"evaluations/{i}-data-npz/results.png" in said for i in (1, 2))


def test_the_package_runs_as_a_module_and_says_its_version():
    from importlib.metadata import version

    found = subprocess.run([sys.executable, "-m", "byol", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"byol {version('byol')}\n"


def test_several_sources_are_a_row_each_with_its_metric(run, small_run, kept_nowhere):
    data = small_run / "data.npz"
    asked = ("--metric", "top1", "--metric", "mean-per-class", "--baseline", "none")
    code, stdout, stderr = run("evaluate", small_run / "run", data, data, *asked)
    assert code == 0, stderr
    assert "top-1 accuracy" in stdout and "mean per-class" in stdout
    code, stdout, _ = run("evaluate", small_run / "run", data, data, *asked, "--json")
    metrics = [(each["metric"], [row["protocol"] for row in each["rows"]]) for each in json.loads(stdout)["sources"]]
    assert metrics == [("top1", ["linear"]), ("mean-per-class", ["linear"])]


def test_training_from_scratch_stands_beside_without_the_other_baselines(run, small_run, kept_nowhere):
    asked = ("--protocol", "linear-sgd", "--epochs", 1, "--baseline", "none", "--baseline", "supervised", "--json")
    code, stdout, stderr = run("evaluate", small_run / "run", small_run / "data.npz", *asked)
    assert code == 0, stderr
    assert set(json.loads(stdout)["rows"][-1]["columns"]) == {"backbone", "supervised"}


def test_training_from_scratch_on_labels_that_no_protocol_reads_is_one_line(run, small_run, kept_nowhere):
    asked = ("--protocol", "knn", "--baseline", "supervised")
    code, _, stderr = run("evaluate", small_run / "run", small_run / "data.npz", *asked)
    assert code == 2
    assert stderr.strip().splitlines()[-1].startswith("byol: --baseline supervised trains on the labels of linear")


def test_rows_of_an_earlier_evaluation_stay_and_the_lists_used_are_written(run, small_run, kept_nowhere, tmp_path):
    data, out = small_run / "data.npz", small_run / "run"
    assert run("evaluate", out, data, "--protocol", "knn", "--json")[0] == 0
    asked = ("--protocol", "semi", "--labels", "4", "--baseline", small_run / "run", "--json")
    code, stdout, stderr = run("evaluate", out, data, *asked)
    assert code == 0, stderr
    found = json.loads(stdout)
    assert [row["protocol"] for row in found["rows"]][-3:] == ["knn", "knn", "semi"]
    assert set(found["rows"][-1]["columns"]) == {"backbone", "run", "supervised"}
    lists = list((out / "evaluations").glob("*-4-seed0.txt"))
    assert len(lists) == 1 and len(lists[0].read_text().splitlines()) == 12
    # A list that was given says the same as the amount that made it.
    code, stdout, _ = run("evaluate", out, data, "--protocol", "semi", "--labels", lists[0], "--json")
    given = json.loads(stdout)["rows"][-1]["columns"]["backbone"]["score"]
    assert given == found["rows"][-1]["columns"]["backbone"]["score"]


def test_a_backbone_of_a_newer_format_or_without_weights_is_one_line(run, small_run, tmp_path):
    import shutil

    shutil.copytree(small_run / "run", tmp_path / "run")
    about = json.loads((tmp_path / "run/backbone.json").read_text())
    (tmp_path / "run/backbone.json").write_text(json.dumps({**about, "format": 99}))
    code, _, stderr = run("evaluate", tmp_path / "run", small_run / "data.npz")
    assert code == 2 and "format 99" in stderr and stderr.count("\n") == 1
    (tmp_path / "run/backbone.json").write_text(json.dumps(about))
    (tmp_path / "run/backbone.safetensors").unlink()
    code, _, stderr = run("evaluate", tmp_path / "run", small_run / "data.npz")
    assert code == 2 and "holds no backbone.safetensors" in stderr and stderr.count("\n") == 1


def test_labels_that_are_too_few_are_one_line(run, small_run, tmp_path):
    asked = (small_run / "run", small_run / "data.npz")
    for more, says in (
        (("--protocol", "semi", "--labels", "200"), "200 of each class are wanted"),
        (("--protocol", "fewshot", "--shots", "50"), "few-shot needs 50"),
        (("--baseline", "nowhere"), "nowhere"),
        (("--groups", "plate"), "plate"),
    ):
        code, _, stderr = run("evaluate", *asked, *more, "--no-cache")
        assert code == 2 and says in stderr.splitlines()[-1], stderr
    np.savez(tmp_path / "one.npz", images=np.zeros((20, 16, 16, 3), np.uint8), labels=np.zeros(20, np.int64))
    code, _, stderr = run("evaluate", small_run / "run", tmp_path / "one.npz", "--no-cache")
    assert code == 2 and "one class" in stderr.splitlines()[-1]


def test_the_lists_name_what_can_be_asked_for(run):
    experiments = [line.partition(": ") for line in run("list", "experiments")[1].splitlines()]
    assert {"bootstrap", "tau", "target", "collapse"} <= {name for name, _, _ in experiments}
    assert all(said.endswith(".") for _, _, said in experiments)
    methods = [line.partition(": ") for line in run("list", "methods")[1].splitlines()]
    assert [name for name, _, _ in methods] == list(names.METHODS)
    assert all(said.endswith(".") for _, _, said in methods)
    assert "resnet18" in run("list", "backbones")[1].split()
    assert [line.split(":")[0] for line in run("list", "recipes")[1].splitlines()] == list(RECIPES)


def test_backbone_names_read_from_source_are_timm_s():
    import timm

    assert set(timm.list_models()) == set(names.backbones())


HEAVY = ("torch", "timm", "lightning_fabric", "sklearn", "matplotlib")


def test_help_lists_and_option_errors_import_nothing_heavy(tmp_path):
    calls = [["--help"], ["pretrain", "--help"], ["list", "recipes"], ["list", "methods"], ["list", "backbones"]]
    calls += [["pretrain", "--nope"], ["views", "digits", "--set", "view.flop=1"], ["views", "nowhere"]]
    calls += [[str(tmp_path / "out") if a == "OUT" else a for a in arguments] for arguments, _ in WRONG]
    calls += [["pretrain", "digits", "--out", str(tmp_path / "out"), *more] for more, _ in WRONG_SETTINGS]
    code = (
        "import sys\nfrom byol import cli\n"
        f"for arguments in {calls!r}:\n"
        "    sys.argv = ['byol', *arguments]\n"
        "    try:\n        cli.main()\n    except SystemExit:\n        pass\n"
        f"    found = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    assert not found, (arguments, found)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_arguments_read_from_a_method_s_source_are_its_constructor_s():
    import inspect
    import typing

    from byol.methods import get

    for method in names.METHODS:
        constructor = get(method).__init__
        own = [p for p in inspect.signature(constructor).parameters if p not in ("self", "encoder", *names.FILLED)]
        hints = typing.get_type_hints(constructor)
        assert names.method_arguments(method) == {name: hints[name] for name in own}


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("precision=32", "precision", "32"),
        ("tau=0.9", "method_args", {"tau": 0.9}),
        ("target_init=copy", "method_args", {"target_init": "copy"}),
        ("view.crop_area=[0.3, 1]", "view_changes", {"crop_area": (0.3, 1)}),
        ("epochs=3", "epochs", 3),
        ("backbone_args={'layers': [1, 1, 1, 1]}", "backbone_args", {"layers": [1, 1, 1, 1]}),
        ("backbone=resnet18", "backbone", "resnet18"),
        ("stop_on_collapse=True", "stop_on_collapse", True),
    ],
)
def test_a_setting_is_read_as_what_it_sets(setting, name, value):
    options = Options().with_settings([setting]).checked()
    assert getattr(options, name) == value
    assert type(getattr(options, name)) is type(value)
