"""Weights & Biases by one option: the same numbers, the same run, and no run that ends for it. Offline, no network."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from byol import dashboard
from byol.metrics import METRICS
from byol.options import Options
from byol.pipeline import Silent, pretrain
from byol.run import Run

TINY = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=12,
    batch_size=16,
    steps=4,
    precision="32",
    method_args={"hidden": 16, "out": 8},
)

SESSION = """
import os, sys
from dataclasses import replace
import wandb
from byol.pipeline import pretrain
from test_wandb import TINY
images, folder = sys.argv[1:]
try:
    pretrain(images, folder + "/none", TINY, wandb="digits")
except ValueError as error:
    print(error)
wandb.teardown()  # it reads the environment once
os.environ["WANDB_MODE"] = "offline"
pretrain(images, folder + "/run", TINY, wandb="team/digits")
pretrain(images, folder + "/run", replace(TINY, steps=8), resume=True, wandb="team/digits")
"""


@pytest.fixture(scope="module")
def session(images, tmp_path_factory):
    """(directory of a run that was logged, and made longer; what was printed; processes left of it)"""
    folder = tmp_path_factory.mktemp("wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(folder), "NETRC": str(folder / "netrc"), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION, images, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return folder, stdout, stderr, _of_session(process.pid)


def _of_session(number):
    """The processes of a session that are there."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.append(place.name)
    return found


def _records(path):
    """What a file of W&B holds: LevelDB's log format behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        whole, place = whole + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # a whole one, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def _logged(folder):
    """(run, settings, rows) of each part of the run, in their order."""
    parts = []
    for path in sorted(folder.glob("run/wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        run, settings, rows = None, {}, []
        for record in _records(path):
            if record.WhichOneof("record_type") == "run":
                run = record.run
            settings |= {item.key: json.loads(item.value_json) for item in record.config.update}
            if items := record.history.item:
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        parts.append((run, settings, rows))
    return parts


def test_every_row_of_numbers_and_the_run_are_logged(session):
    folder, *_ = session
    (run, settings, rows), (_, _, later) = _logged(folder)
    assert (run.project, run.entity, run.display_name) == ("digits", "team", "run")
    written = [json.loads(line) for line in (folder / "run" / METRICS).read_text().splitlines()]
    for line, row in zip(written, rows + later, strict=True):
        numbers = {name: value for name, value in line.items() if isinstance(value, (int, float)) and name != "step"}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers)
        assert row["trainer/global_step"] == line["step"]
        assert set(row) - set(numbers) == {"trainer/global_step", "_step", "_runtime", "_timestamp"}
    made = Run.read(folder / "run/run.json")
    assert settings["method"] == "byol" and settings["method_args"] == made.method_args
    assert settings["base_lr"] == made.base_lr and settings["total_steps"] == 4


def test_a_run_that_goes_on_is_the_same_there(session):
    folder, *_ = session
    (first, *_), (second, *_) = _logged(folder)
    assert first.run_id == second.run_id == json.loads((folder / "run/wandb.json").read_text())["id"]


def test_its_lines_do_not_stand_between_ours_and_nothing_is_left_running(session):
    _, stdout, stderr, left = session
    assert "wandb" not in stderr.lower() and stderr == ""
    assert len(stdout.splitlines()) == 1
    assert left == []


def test_without_a_key_it_is_one_line_before_anything_is_written(session):
    folder, stdout, *_ = session
    assert stdout.startswith("--wandb knows no API key here; run `wandb login`") and not (folder / "none").exists()


def test_what_is_logged_is_no_part_of_the_run(session, images, tmp_path):
    folder, *_ = session
    again = pretrain(images, tmp_path / "run", replace(TINY, steps=4))
    again = pretrain(images, tmp_path / "run", replace(TINY, steps=8), resume=True)
    logged = Run.read(folder / "run/run.json")
    assert replace(again, facts={}) == replace(logged, facts={}) and again.options == logged.options
    assert "wandb" not in (folder / "run/run.json").read_text().replace("offline", "")


class Telling(Silent):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_goes_wrong_there_is_said_once_and_ends_no_run(fails, images, tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "check_login", lambda: None)
    monkeypatch.setattr("byol.pipeline.check_login", lambda: None)

    class Broken:
        def __init__(self, **_):
            if fails == "init":
                raise ConnectionError("no way\nout")

        def log_hyperparams(self, _): ...

        def log_metrics(self, *_):
            if fails == "log":
                raise OSError(28, "No space left on device")

        @property
        def experiment(self):
            raise TimeoutError

    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", Broken)
    observer = Telling()
    pretrain(images, tmp_path / "run", TINY, wandb="digits", observer=observer)
    told = [line for line in observer.said if "W&B" in line]
    reason = {"init": "no way out", "log": "[Errno 28] No space left on device", "finish": "TimeoutError"}[fails]
    assert told == [f"W&B gets no more of this run: {reason}"]
    assert (tmp_path / "run/backbone.safetensors").is_file()


@pytest.mark.parametrize("project", ["", "a/b/c", "a#b", "/a", "a/", "a\nb", "x" * 129, "a?b", "\x1b[31m"])
def test_a_project_that_is_none_is_one_line(project, images, tmp_path):
    with pytest.raises(ValueError, match="is no project") as caught:
        pretrain(images, tmp_path / "run", TINY, wandb=project)
    assert str(caught.value).isprintable() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["wandb", "pytorch_lightning"])
def test_what_is_not_installed_is_named_before_anything_is_written(missing, images, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(ValueError, match=r"run `pip install wandb pytorch-lightning`$"):
        pretrain(images, tmp_path / "run", TINY, wandb="digits")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ['{"id": "../x"}', "{}", "[]", '{"id": 3}', "{"])
def test_a_damaged_identity_is_one_line(text, tmp_path, make_run):
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(ValueError, match="damaged"):
        dashboard.Dashboard("digits", tmp_path, make_run(), print)
