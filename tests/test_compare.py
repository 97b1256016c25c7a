"""Methods side by side: what is the same for all, what the table says, and going on after a stop."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from test_faults import held

from byol import compare as comparing
from byol import pictures
from byol.compare import Length, compare, contender, markdown, rows
from byol.console import comparison_table
from byol.evaluate.fewshot import mean_interval
from byol.evaluate.protocols import score_of
from byol.options import Options
from byol.pictures import mean_curve
from byol.train import TrainingStopped
from byol.views.view import View

GENTLE, STRONG = View(crop_area=(0.8, 1.0), blur=0.0), View(crop_area=(0.4, 1.0), blur=0.0)
COMMON = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    batch_size=16,
    precision="32",
    views=(STRONG, GENTLE),
    optimizer="lars",
    base_lr=3.0,
    warmup_steps=5,
)


@pytest.fixture
def here(monkeypatch):
    """Training in this process, which takes a second where a process of its own takes ten."""

    def train(data, run, options):
        if not (run / "backbone.json").is_file():
            trained.append(run.name)
            comparing._train_here(data, run, options, (run / "run.json").is_file())

    trained: list[str] = []
    monkeypatch.setattr(comparing, "_train", train)
    return trained


@pytest.fixture
def drawn(monkeypatch):
    """(curves, title) of each plot."""

    def comparison(curves, path, *, title):
        found.append((curves, title))
        draw(curves, path, title=title)

    found: list[tuple[dict, str]] = []
    draw = pictures.comparison
    monkeypatch.setattr(pictures, "comparison", comparison)
    return found


def test_the_second_of_two_comparisons_in_a_directory_is_refused(images, tmp_path, here):
    arguments = ([contender("byol", COMMON)], {"steps": Length(steps=2)})
    out = tmp_path / "out"
    with held(out), pytest.raises(ValueError, match="another comparison is writing"):
        compare(images, out, *arguments, seeds=1)
    assert here == []


def test_all_get_the_same_data_and_views_and_their_own_optimizer():
    byol, instdisc = (contender(name, COMMON).options for name in ("byol", "instdisc"))
    assert byol.views == (STRONG, GENTLE)
    assert instdisc.views == (STRONG,)
    for options in (byol, instdisc):
        assert (options.backbone, options.batch_size) == ("resnet18", 16)
        assert options.optimizer is options.base_lr is options.warmup_steps is None
    assert contender("instdisc", COMMON, own_views=True).options.views is None
    # A preset that holds nothing out would have no curve; what is said of it here counts.
    preset = replace(COMMON, hold_out=0.0)
    assert contender("byol", preset).options.hold_out == 0.05
    assert contender("byol", preset, ["hold_out=0.0"]).options.hold_out == 0.0
    assert contender("byol", replace(COMMON, hold_out=0.2)).options.hold_out == 0.2
    assert contender("random_target", COMMON).options.method_args == {"tau": 1.0, "target_init": "independent"}
    assert contender("supervised", COMMON).used_labels
    assert contender("byol", COMMON, ["view.flip=0.0"]).options.view_changes == {"flip": 0.0}
    with pytest.raises(ValueError, match="unknown setting"):
        contender("vicreg", COMMON, ["tau=0.9"])


def test_a_comparison_writes_tables_and_plots_and_goes_on(images, tmp_path, here, drawn, monkeypatch):
    scores = comparing._scores
    contenders = [contender(name, COMMON) for name in ("instdisc", "supervised")]
    lengths = {"steps": Length(steps=4)}
    out = tmp_path / "out"
    result = compare(images, out, contenders, lengths, seeds=2)
    assert len(here) == 4
    assert (out / "steps.png").stat().st_size > 5000
    ((curves, title),) = drawn
    assert title == f"{images}: 4 steps each; kNN accuracy on held-out images"
    for (label, runs), name in zip(curves.items(), ("instdisc", "supervised"), strict=True):
        assert label == {"supervised": "supervised (labels)"}.get(name, name)
        for seed, curve in enumerate(runs):
            lines = map(json.loads, (out / f"steps/{name}-seed{seed}/metrics.jsonl").read_text().splitlines())
            assert curve == [(line["seconds"], line["held_out/knn"]) for line in lines if "held_out/knn" in line]
            assert len(curve) == 2
    table = result["tables"]["steps"]["rows"]
    for name in ("instdisc", "supervised"):
        for measure in ("knn", "linear", "fewshot", "images_per_second", "peak_memory_gib", "effective_rank"):
            found = table[name][measure]
            assert found["mean"] == pytest.approx(np.mean(found["values"]))
            assert found["interval_95"] == pytest.approx(mean_interval(found["values"]))
        for seed in (0, 1):
            kept = json.loads((out / f"steps/{name}-seed{seed}/evaluation.json").read_text("utf-8"))
            assert score_of(kept, "knn", "backbone") == table[name]["knn"]["values"][seed]
            assert kept.get("used_labels", False) == (name == "supervised")
    assert len(result["baselines"]["raw pixels"]["linear"]["values"]) == 1
    assert len(result["baselines"]["untrained"]["linear"]["values"]) == 2
    text = (out / "compare.md").read_text("utf-8")
    assert text == markdown(result)
    assert "| supervised (labels) |" in text
    # A fifth of the images is tested on, and all of them trained the supervised network.
    assert "those of the test images too" in text
    assert "those of the test images too" not in markdown({**result, "trained_on_test_labels": False})
    for measure, digits in (("images_per_second", 0), ("peak_memory_gib", 2), ("effective_rank", 0), ("knn", 3)):
        low, high = table["instdisc"][measure]["interval_95"]
        cell = dict(rows(result, "steps"))["instdisc"][measure]
        assert cell == f"{table['instdisc'][measure]['mean']:.{digits}f} +- {(high - low) / 2:.{digits}f}"
        assert f" {cell} |" in text
    assert "+-" not in dict(rows(result, "steps", ("knn",)))["instdisc"]["peak_memory_gib"]
    assert "| instdisc |" in text

    # What another evaluation has left in a run since, or one that failed, is not what is compared.
    path = out / "steps/instdisc-seed0/evaluation.json"
    for changed in ({"data": "elsewhere"}, {"failed": {"linear": "out of memory"}}):
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "rows": [], **changed}), "utf-8")
        assert compare(images, out, contenders, lengths, seeds=2, resume=True)["tables"] == result["tables"]

    # An interrupted comparison does only what is missing; another one in its place is refused.
    (out / "steps/instdisc-seed1/backbone.json").unlink()
    (out / "steps/instdisc-seed1/evaluation.json").unlink()
    monkeypatch.setattr(
        comparing, "_scores", lambda found, column: pytest.fail() if column != "backbone" else scores(found, column)
    )
    again = compare(images, out, contenders, lengths, seeds=2, resume=True)
    assert here[4:] == ["instdisc-seed1"]
    assert again["baselines"] == result["baselines"]
    assert again["tables"]["steps"]["rows"]["supervised"] == table["supervised"]
    with pytest.raises(ValueError, match="seeds differ"):
        compare(images, out, contenders, lengths, seeds=3, resume=True)
    with pytest.raises(ValueError, match="--resume"):
        compare(images, out, contenders, lengths, seeds=2)


def test_without_labels_to_look_at_while_training_the_plot_has_the_ends(images, tmp_path, here, drawn):
    with np.load(images) as given:
        np.savez(tmp_path / "plain.npz", images=given["images"])
    plain = str(tmp_path / "plain.npz")
    result = compare(
        plain, tmp_path / "out", [contender("simsiam", COMMON)], {"steps": Length(steps=3)}, seeds=2, labelled=images
    )
    found = result["tables"]["steps"]["rows"]["simsiam"]
    ends = [[end] for end in zip(found["seconds"]["values"], found["knn"]["values"], strict=True)]
    assert drawn == [({"simsiam": ends}, f"{plain}: 3 steps each; kNN accuracy on the test images")]
    assert (tmp_path / "out/steps.png").stat().st_size > 5000


def test_a_run_that_stops_is_named_and_the_others_go_on(images, tmp_path, monkeypatch):
    def train(data, run, options):
        if options.method == "vicreg":
            raise TrainingStopped("the loss is nan at step 3")
        if options.method == "simclr":
            raise ValueError("16 images of 32 px at a time do not fit")
        comparing._train_here(data, run, options, False)

    monkeypatch.setattr(comparing, "_train", train)
    contenders = [contender(name, COMMON) for name in ("vicreg", "simclr", "simsiam")]
    result = compare(images, tmp_path / "out", contenders, {"steps": Length(steps=2)}, seeds=1)
    found = dict(rows(result, "steps"))
    assert found["vicreg (1 of 1 failed)"]["linear"] == found["simclr (1 of 1 failed)"]["linear"] == "-"
    assert float(found["simsiam"]["linear"]) > 0
    assert "vicreg failed: seed 0: the loss is nan at step 3" in markdown(result)
    assert "simclr failed: seed 0: 16 images of 32 px at a time do not fit" in markdown(result)
    with pytest.raises(TrainingStopped, match="of the 2 runs finished: vicreg: seed 0: the loss is nan"):
        compare(images, tmp_path / "none", contenders[:2], {"steps": Length(steps=2)}, seeds=1)


def test_the_table_on_screen_shortens_shares_and_nothing_else():
    cells = {"knn": "0.905 +- 0.010", "peak_memory_gib": "10.05", "seconds": "0.99", "images_per_second": "100"}
    table = comparison_table("title", {name: name for name in cells}, [("byol", cells)])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    shown = console.export_text().splitlines()[-2]
    assert shown.split() == ["byol", ".905±.010", "10.05", "0.99", "100"]


def test_the_mean_curve_compares_runs_at_equal_times():
    # One run twice as fast, looked at three times, and one looked at twice.
    found = mean_curve([[(0, 0.0), (1, 0.4), (2, 0.8)], [(0, 0.2), (4, 1.0)]], points=3)
    np.testing.assert_allclose(found, [[0, 0.1], [1, 0.4], [2, 0.7], [3, 0.9]])


def test_each_run_trains_in_a_process_of_its_own_and_its_errors_come_back(images, tmp_path):
    options = replace(COMMON, method="simsiam", steps=2, optimizer="sgd", base_lr=float("1e30"), warmup_steps=0)
    with pytest.raises(TrainingStopped, match="step"):
        comparing._train(images, tmp_path / "run", replace(options, steps=10))
    with pytest.raises(ValueError, match="give one of them"):
        comparing._train(images, tmp_path / "other", replace(options, steps=10, budget=3.0))
