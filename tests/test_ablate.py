"""Lists of runs: what is done already, what fails, and what is gone on with."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_faults import held

from byol import ablate
from byol.evaluate import table
from byol.experiments.paper import EXPERIMENTS, Arm, Claim, Experiment, more
from byol.options import Options
from byol.pipeline import Silent

SMALL = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    image_size=12,
    batch_size=32,
    steps=2,
    warmup_steps=1,
    hold_out=0.1,
    precision="32",
    method_args={"hidden": 16, "out": 8, "tau": 0.9},
)


def test_of_lists_with_longer_runs_the_length_is_the_first_one_s(images, tmp_path, here, monkeypatch, measured):
    monkeypatch.setattr(ablate, "train_and_measure", lambda *_: measured)
    result = ablate.ablate(EXPERIMENTS["symmetry"], images, tmp_path, SMALL, seeds=1, processes=1)
    assert result["steps"] == SMALL.steps


def test_an_error_of_any_kind_stops_one_run_alone(images, tmp_path, here, monkeypatch, measured):
    def short_of_memory(data, place, options, *_):
        if options.method_args["tau"] == 0.5:
            raise RuntimeError("out of memory")
        return measured

    monkeypatch.setattr(ablate, "train_and_measure", short_of_memory)
    result = ablate.ablate(_pair, images, tmp_path, SMALL, seeds=1, processes=1)
    assert result["failed"] == {"low, seed 0": "RuntimeError: out of memory"}
    assert [arm["seeds"] for arm in result["arms"]] == [1, 0, 1]


def test_a_list_without_a_result_is_one_clear_line(images, tmp_path, here, monkeypatch):
    def fail(*_):
        raise ValueError("the disk is full")

    monkeypatch.setattr(ablate, "train_and_measure", fail)
    with pytest.raises(ValueError, match=r"no run of pair came to its end; untrained, seed 0: the disk is full"):
        ablate.ablate(_pair, images, tmp_path, SMALL, seeds=1, processes=1)


def test_the_second_of_two_lists_in_a_directory_is_refused(images, tmp_path, here):
    with held(tmp_path), pytest.raises(ValueError, match="another experiment is writing"):
        ablate.ablate(_pair, images, tmp_path, SMALL, seeds=1, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_labels_for_the_evaluation_are_looked_for_before_anything_trains(images, tmp_path, here):
    np.save(tmp_path / "plain.npy", np.zeros((8, 12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="no labels"):
        ablate.ablate(_pair, images, tmp_path / "out", SMALL, seeds=1, labelled=str(tmp_path / "plain.npy"))
    assert not (tmp_path / "out").exists()


def test_children_see_the_devices_that_the_parent_sees(monkeypatch):
    monkeypatch.setattr(ablate.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ablate.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert ablate._parallel(None) == (2, None, ["0", "1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-a")
    assert ablate._parallel(3) == (3, None, ["3", "MIG-a", "3"])


class Here:
    """Calls in this process: as what happens there, and quick."""

    def __init__(self, *_):
        pass

    def __exit__(self, *_):
        pass

    def call(self, function, *arguments):
        return function(*arguments)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(ablate, "Apart", Here)
    # What is true of the images is not found out again for each run.
    monkeypatch.setattr(table, "_warnings", lambda *_: pytest.fail("looked for duplicates"))


def _pair(base):
    arms = (
        Arm("untrained", None, 1.4),
        Arm("low", replace(base, method_args={**base.method_args, "tau": 0.5}), 70.0),
        Arm("high", base, 72.5),
    )
    return Experiment("pair", "Which?", "Table 0", arms, (more("high", "low"), Claim("unknown", {"untrained": 1})))


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablate")
    return ablate.ablate(_pair, images, out, SMALL, seeds=2, processes=2), out


def test_a_list_becomes_a_table_a_plot_and_verdicts(done):
    result, out = done
    assert [arm["name"] for arm in result["arms"]] == ["untrained", "low", "high"]
    assert all(arm["seeds"] == 2 and 0 <= arm["measures"]["linear"]["mean"] <= 1 for arm in result["arms"])
    values = {arm["name"]: arm["measures"]["linear"]["values"] for arm in result["arms"]}
    differences = [100 * (a - b) for a, b in zip(values["high"], values["low"], strict=True)]
    assert result["verdicts"][0]["difference"] == pytest.approx(sum(differences) / 2)
    assert result["verdicts"][0]["paper"] == pytest.approx(2.5)
    assert result["failed"] == {}
    table = (out / "pair.md").read_text("utf-8")
    assert "| high |" in table and "72.5" in table and result["verdicts"][0]["verdict"] in table
    assert (out / "pair.png").stat().st_size > 10_000


def test_what_is_done_is_not_done_again_by_whichever_list(done, images, monkeypatch):
    result, out = done

    def fail(*_):
        raise AssertionError("a run was made again")

    monkeypatch.setattr(ablate, "_run_all", lambda missing, *_: {} if not missing else fail())
    again = ablate.ablate(_pair, images, out, SMALL, seeds=2, processes=2)
    assert again["arms"] == result["arms"]
    # An argument at its default makes no other run; another tau does.
    same = replace(SMALL, method_args={**SMALL.method_args, "target_init": "independent"})
    assert ablate.ablate(_pair, images, out, same, seeds=2)["arms"] == result["arms"]
    with pytest.raises(AssertionError, match="made again"):
        ablate.ablate(_pair, images, out, replace(SMALL, method_args={**SMALL.method_args, "tau": 0.8}), seeds=2)


def test_an_interrupted_list_goes_on_and_a_failed_run_stops_nobody(images, tmp_path, here):
    def broken(base):
        arms = (Arm("good", base), Arm("bad", replace(base, base_lr=1e30, optimizer="sgd")))
        return Experiment("broken", "Which?", "Table 0", arms, (more("good", "bad"),))

    result = ablate.ablate(broken, images, tmp_path, replace(SMALL, steps=12), seeds=2, processes=1)
    assert [arm["seeds"] for arm in result["arms"]] == [2, 0]
    assert set(result["failed"]) == {"bad, seed 0", "bad, seed 1"}
    assert result["verdicts"][0]["verdict"] == "not run"
    lines = (tmp_path / ablate.RECORD).read_text("utf-8").splitlines()
    assert len(lines) == 2
    # Cut off in the middle of a line, as a crash leaves it: that run is done again, the other is not.
    (tmp_path / ablate.RECORD).write_text(lines[0] + "\n" + lines[1][:40], "utf-8")
    before = result["arms"][0]["measures"]["linear"]["values"]
    again = ablate.ablate(broken, images, tmp_path, replace(SMALL, steps=12), seeds=2, processes=1)
    assert again["arms"][0]["measures"]["linear"]["values"] == before
    keys = [json.loads(line)["key"] for line in (tmp_path / ablate.RECORD).read_text("utf-8").splitlines()]
    assert len(keys) == len(set(keys)) == 2


def test_a_network_is_trained_before_the_one_that_predicts_it(images, tmp_path, here):
    result = ablate.ablate(EXPERIMENTS["bootstrap"], images, tmp_path, SMALL, seeds=1, processes=1)
    assert [arm["seeds"] for arm in result["arms"]] == [1] * 6
    runs = [json.loads(line) for line in (tmp_path / ablate.RECORD).read_text("utf-8").splitlines()]
    order = [run["arm"] for run in runs if run["arm"][0].isdigit()]
    assert order == sorted(order)
    taught = json.loads((tmp_path / "runs" / runs[-1]["key"] / "run.json").read_text("utf-8"))
    assert taught["method"].endswith("Family")

    # The networks in between are gone by now: the first is trained again for the one that is missing.
    kept = [json.dumps(run) for run in runs if not run["arm"].startswith("2")]
    (tmp_path / ablate.RECORD).write_text("\n".join(kept) + "\n", "utf-8")
    again = ablate.ablate(EXPERIMENTS["bootstrap"], images, tmp_path, SMALL, seeds=1, processes=1)
    assert again["arms"] == result["arms"]


def test_a_plan_says_what_would_be_done_and_does_nothing(images, tmp_path):
    _, rows, left = ablate.prediction(_pair, images, tmp_path / "out", SMALL, seeds=3, processes=1)
    assert [(name, runs, is_done) for name, runs, _, is_done in rows] == [
        ("untrained", 3, False),
        ("low", 3, False),
        ("high", 3, False),
    ]
    assert left == pytest.approx(3 * (rows[1][2] + rows[2][2]))
    assert not (tmp_path / "out").exists()


def test_other_test_labels_are_other_runs(with_test_part, tmp_path):
    def keys():
        base = replace(SMALL, batch_size=8)
        return {job.key for job in ablate._jobs(_pair, str(tmp_path / "data.npz"), base, 1, None, None)[0]}

    kept = dict(np.load(with_test_part))
    np.savez(tmp_path / "data.npz", **kept)
    first = keys()
    assert keys() == first
    np.savez(tmp_path / "data.npz", **{**kept, "test_labels": 1 - kept["test_labels"]})
    assert not keys() & first


def test_a_run_that_failed_keeps_its_checkpoints_and_one_that_ended_does_not(images, tmp_path, here, monkeypatch):
    measure = ablate.train_and_measure

    def killed(data, place, options, *more):
        found = measure(data, place, options, *more)
        if options.method_args["tau"] == 0.5:
            raise RuntimeError("killed")
        return found

    monkeypatch.setattr(ablate, "train_and_measure", killed)
    ablate.ablate(_pair, images, tmp_path, SMALL, seeds=1, processes=1)
    (line,) = [json.loads(each) for each in (tmp_path / ablate.RECORD).read_text("utf-8").splitlines()][1:]
    assert not (tmp_path / "runs" / line["key"] / "checkpoints").exists()
    left = [place.parent.name for place in (tmp_path / "runs").glob("*/checkpoints")]
    assert len(left) == 1 and left[0] != line["key"]


def test_images_too_few_for_an_experiment_are_said(images, tmp_path, here, monkeypatch, measured):
    said = []

    class Told(Silent):
        def say(self, line):
            said.append(line)

    monkeypatch.setattr(ablate, "train_and_measure", lambda *_: measured)

    def small(base):
        return replace(_pair(base), steps_a_pass=20)

    ablate.ablate(small, images, tmp_path, SMALL, seeds=1, processes=1, observer=Told())
    assert any("a pass over these images is 8 steps; below 20" in line for line in said)
