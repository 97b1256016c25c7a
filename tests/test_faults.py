"""What goes wrong around a run: disks, signals, other runs, bad numbers, bad images; and what --resume may be asked."""

import errno
import gzip
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import kill_server
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import byol
from byol import checkpoint, files, methods
from byol.data.open import open_source
from byol.methods import Out
from byol.methods.byol import BYOL
from byol.pictures.training import training_curves
from byol.pipeline import Silent, pretrain
from byol.run import Run
from byol.spikes import WINDOW, is_spike
from byol.step import learning_rate_share
from byol.train import Interrupted, Training, TrainingStopped

TINY = replace(kill_server.OPTIONS, method_args={"hidden": 16, "out": 8})


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(images, out, TINY)
    return out


class At(Silent):
    """Calls something once, when the run has done so many steps."""

    def __init__(self, step, call):
        self.step, self.call, self.said = step, call, []

    def say(self, line):
        self.said.append(line)

    def progress(self, progress):
        if progress.step == self.step and progress.metrics:
            self.call()


def weights(run):
    return (run / "backbone.safetensors").read_bytes()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Files


def test_what_is_written_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    with pytest.raises(OSError) as error:
        files.write_json(tmp_path / "none" / "file.json", {})
    assert error.value.filename == str(tmp_path / "none" / "file.json")


def test_a_line_that_is_half_written_is_not_read(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert list(files.json_lines(path)) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert list(files.json_lines(path)) == [{"step": 1}, {"step": 2}]


def test_what_is_longer_than_any_file_of_ours_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_JSON_BYTES", 20)
    for name, text in {
        "whole": '{"a": "' + "x" * 30 + '"}',
        "line": '{"step": 1}\n{"a": "' + "x" * 30 + '"}\n',
    }.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="longer than any"):
        files.read_json(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"line 2 of .*longer than any"):
        list(files.json_lines(tmp_path / "line"))


@pytest.mark.parametrize("write", [lambda path: files.write_json(path, {}), files.sync])
def test_what_cannot_be_kept_is_named(tmp_path, monkeypatch, write):
    """A quota is often noticed only where the disk is waited for."""

    def over(file):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    (tmp_path / "file.json").touch()
    monkeypatch.setattr("byol.files.os.fsync", over)
    with pytest.raises(OSError, match="Disk quota exceeded") as error:
        write(tmp_path / "file.json")
    assert error.value.filename == str(tmp_path / "file.json")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"loss": 1}',
        '{"step": "1"}',
        "\0\0",
        '{"step": 1',
        '{"step": 1, "seconds": "1"}',
        '{"step": 1, "held_out/verdict": "healthy"}',
    ],
)
def test_a_damaged_line_before_the_last_is_told_and_nothing_cut_off(images, tmp_path, whole, line):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    first, *rest = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    text = "".join([first, line + "\n", *rest])
    (out / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"metrics.jsonl (or skipped.jsonl )?is damaged: .*; restore it from a copy"):
        pretrain(images, out, replace(TINY, steps=30), resume=True)
    assert (out / "metrics.jsonl").read_text() == text


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "run.json.0123456789ab.tmp"]])
def test_what_a_run_left_that_never_began_is_in_nobody_s_way(images, tmp_path, left):
    out = tmp_path / "run"
    out.mkdir()
    for name in left:
        (out / name).touch()
    pretrain(images, out, replace(TINY, steps=2))
    assert not list(out.glob("*.tmp"))


# Checkpoints


def saved(tmp_path, steps=(1,), **more):
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for step in steps:
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        checkpoint.save(tmp_path, step, module, optimizer, **more)
    return module, optimizer


def test_a_checkpoint_comes_back_with_its_notes(tmp_path):
    module, optimizer = saved(tmp_path, (1, 2), notes={"losses": [0.1, 0.25]})
    other = torch.nn.Linear(3, 2)
    again = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    assert checkpoint.load(checkpoint.latest(tmp_path), other, again) == (2, {"losses": [0.1, 0.25]})
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(again.state[other.bias]["momentum_buffer"], optimizer.state[module.bias]["momentum_buffer"])


def test_every_changed_byte_of_a_checkpoint_is_seen_and_nothing_taken_from_it(tmp_path):
    module, optimizer = saved(tmp_path)
    path = checkpoint.latest(tmp_path)
    whole, before = path.read_bytes(), module.weight.clone()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        with pytest.raises(checkpoint.Damaged, match="step-000000001"):
            checkpoint.load(path, module, optimizer)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path, module, optimizer)
    assert torch.equal(module.weight, before)


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    assert checkpoint.newest_whole(tmp_path) == (None, [])
    saved(tmp_path, (1, 2, 3), keep=3)
    first, second, third = checkpoint.all_of(tmp_path)
    assert checkpoint.newest_whole(tmp_path) == (third, [])
    third.write_bytes(third.read_bytes()[:-1])
    assert checkpoint.newest_whole(tmp_path) == (second, [third])
    second.write_bytes(b"")
    assert checkpoint.newest_whole(tmp_path) == (first, [third, second])
    first.write_bytes(b"x" * 100)
    with pytest.raises(checkpoint.Damaged, match="none of the 3"):
        checkpoint.newest_whole(tmp_path)


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(images, tmp_path, keep):
    pretrain(images, tmp_path / "run", replace(TINY, keep=keep))
    kept = [checkpoint.step_of(path) for path in checkpoint.all_of(tmp_path / "run/checkpoints")]
    assert kept == [20, 22, 24][-keep:]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(images, tmp_path, whole):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    last = checkpoint.latest(out / "checkpoints")
    last.write_bytes(last.read_bytes()[:-10])
    observer = At(0, lambda: None)
    pretrain(images, out, resume=True, observer=observer)
    assert weights(out) == weights(whole)
    assert any("step-000000024.safetensors.damaged: a checkpoint that is damaged" in line for line in observer.said)


def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(images, tmp_path, whole):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    last = checkpoint.latest(out / "checkpoints")
    last.write_bytes(last.read_bytes()[:-10])
    with one_step_then(signal.SIGTERM), pytest.raises(Interrupted, match="the state after 23 steps is saved"):
        pretrain(images, out, replace(TINY, keep=1), resume=True)
    assert checkpoint.step_of(checkpoint.newest_whole(out / "checkpoints")[0]) == 23
    pretrain(images, out, resume=True)
    assert weights(out) == weights(whole)


# Disks


@contextmanager
def small_disk(place):
    """A file system of 4 MB. Skips where this user may not mount one."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place):
    with pytest.raises(OSError, match="No space"), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_whole(images, tmp_path, whole):
    with small_disk(tmp_path / "disk") as disk:
        full = pytest.raises(TrainingStopped, match=r"No space left on device: .*the state after 8 steps is saved")
        with full as stopped:
            pretrain(images, disk / "run", TINY, observer=At(10, lambda: fill(disk)))
        assert "\n" not in str(stopped.value)
        assert checkpoint.newest_whole(disk / "run/checkpoints")[1] == []
        assert not list((disk / "run").rglob("*.tmp*"))
        (disk / "filler").unlink()
        pretrain(images, disk / "run", resume=True)
        assert weights(disk / "run") == weights(whole)


def test_a_directory_that_may_no_longer_be_written_ends_in_one_line(images, tmp_path, whole):
    out = tmp_path / "run"
    place = out / "checkpoints"

    def forbid():
        if subprocess.run(["mount", "--bind", place, place], capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)

    try:
        with pytest.raises(TrainingStopped, match=r"Read-only file system: .*the state after 8 steps is saved"):
            pretrain(images, out, TINY, observer=At(10, forbid))
    finally:
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)
    assert checkpoint.step_of(checkpoint.newest_whole(place)[0]) == 8
    pretrain(images, out, resume=True)
    assert weights(out) == weights(whole)


def test_a_quota_ends_in_one_line_with_the_last_checkpoint_whole(images, tmp_path, whole):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    out = tmp_path / "run"
    try:
        with pytest.raises(TrainingStopped, match=r"File too large: .*the state after 8 steps is saved"):
            pretrain(images, out, TINY, observer=At(10, limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    pretrain(images, out, resume=True)
    assert weights(out) == weights(whole)


def test_a_place_that_cannot_be_written_is_refused_at_once(images, tmp_path, monkeypatch):
    monkeypatch.setattr("byol.pipeline.os.access", lambda place, mode: place != tmp_path)
    opened = []
    monkeypatch.setattr("byol.pipeline.open_for_training", lambda *a, **k: opened.append(a))
    with pytest.raises(ValueError, match="cannot be written to"):
        pretrain(images, tmp_path / "new" / "run", TINY)
    assert not opened


@pytest.mark.parametrize("cleared", [False, True])
def test_a_disk_that_is_full_where_lines_are_written_ends_in_one_line(images, tmp_path, capfd, cleared):
    """TensorBoard's file is the first that cannot be written, and ends no run."""
    options = replace(TINY, steps=400, hold_out=0)
    with small_disk(tmp_path / "disk") as disk:

        def fill_for_a_while():
            fill(disk)
            if cleared:
                (disk / "filler").unlink()

        with pytest.raises(TrainingStopped) if not cleared else nullcontext() as stopped:
            pretrain(images, disk / "run", options, observer=At(50, fill_for_a_while))
        if not cleared:
            said = str(stopped.value)
            assert said.startswith(f"No space left on device: {disk}/run/") and "\n" not in said
            assert "the state after 40 steps is saved" in said
        assert "Traceback" not in "".join(capfd.readouterr())


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_after_its_step_with_the_state_saved(images, tmp_path, whole, number):
    out = tmp_path / "run"
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name} after 10 steps; the state after 10 steps is saved") as ended:
        pretrain(images, out, TINY, observer=At(10, lambda: os.kill(os.getpid(), number)))
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is handler
    assert checkpoint.step_of(checkpoint.latest(out / "checkpoints")) == 10
    pretrain(images, out, resume=True)
    assert weights(out) == weights(whole)


def test_a_signal_between_checkpoints_saves_the_very_step(images, tmp_path, monkeypatch):
    passes = Training.passes

    def signalled(self, step, micro):
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return passes(self, step, micro)

    monkeypatch.setattr(Training, "passes", signalled)
    with pytest.raises(Interrupted, match="SIGTERM after 13 steps"):
        pretrain(images, tmp_path / "run", TINY)
    assert checkpoint.step_of(checkpoint.latest(tmp_path / "run/checkpoints")) == 13


def test_a_second_ctrl_c_does_not_wait(images, tmp_path, monkeypatch):
    passes, done = Training.passes, []

    def signalled(self, step, micro):
        if step == 12:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("went on")
        return passes(self, step, micro)

    monkeypatch.setattr(Training, "passes", signalled)
    with pytest.raises(
        Interrupted, match="SIGINT ended it at once, after 12 steps; --resume goes on after 12"
    ) as ended:
        pretrain(images, tmp_path / "run", TINY)
    assert not done and ended.value.code == 130


@contextmanager
def one_step_then(number):
    """A run within it gets that signal in its first step."""
    passes = Training.passes

    def signalled(self, step, micro):
        os.kill(os.getpid(), number)
        return passes(self, step, micro)

    with mock.patch.object(Training, "passes", signalled):
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_first_step_ends_a_run_at_once(images, tmp_path, monkeypatch, number):
    opened = byol.pipeline.open_for_training

    def slow(*arguments, **named):
        os.kill(os.getpid(), number)
        return opened(*arguments, **named)

    monkeypatch.setattr("byol.pipeline.open_for_training", slow)
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name} while nothing was trained; the same command starts") as ended:
        pretrain(images, tmp_path / "run", TINY)
    assert ended.value.code == 128 + number and not (tmp_path / "run").exists()
    assert signal.getsignal(number) is handler
    monkeypatch.undo()
    pretrain(images, tmp_path / "run", replace(TINY, steps=2))
    monkeypatch.setattr("byol.pipeline.open_for_training", slow)
    with pytest.raises(Interrupted, match=f"{number.name} while nothing was trained; --resume goes on"):
        pretrain(images, tmp_path / "run", resume=True)


def test_a_second_signal_does_not_keep_a_job_from_its_queue(images, tmp_path, monkeypatch):
    handlers = []

    def requeue(number):
        os.kill(os.getpid(), signal.SIGTERM)
        handlers.append(signal.getsignal(signal.SIGTERM))
        return "job 4711 is back in its queue"

    monkeypatch.setattr("byol.cluster.requeue", requeue)
    with one_step_then(signal.SIGUSR1), pytest.raises(Interrupted, match="4711 is back in its queue") as ended:
        pretrain(images, tmp_path / "run", TINY)
    assert handlers == [signal.SIG_IGN] and ended.value.code == 138


def test_a_signal_after_the_last_step_goes_on_with_the_backbone(images, tmp_path, monkeypatch, whole):
    monkeypatch.setattr("byol.train.save_backbone", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(
        Interrupted, match="SIGTERM ended it at once, after 24 steps; --resume goes on after 24"
    ) as ended:
        pretrain(images, tmp_path / "run", TINY)
    assert ended.value.code == 143
    monkeypatch.undo()
    pretrain(images, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(whole)


def command(server, data, out, *more, **asked):
    argv = ["pretrain", str(data), "--out", str(out), "--backbone", "resnet18", "--batch-size", "16", "--steps", "24",
            "--set", "backbone_args={'layers': [1, 1, 1, 1], 'channels': [4, 4, 8, 8]}", "--precision", "32",
            "--set", "optimizer=lars", "--set", "hidden=16", "--set", "out=8", "--base-lr", "0.5",
            "--workers", "0", "--device", "cpu", *more]  # fmt: skip
    return server({"argv": argv, "out": str(out), "environment": {}, **asked})


@pytest.fixture(scope="module")
def commanded(server, images, tmp_path_factory):
    """The weights of the command that nothing disturbed, in a process of one thread."""
    out = tmp_path_factory.mktemp("commanded") / "run"
    ended = command(server, images, out)
    assert ended["status"] == 0, ended["stderr"]
    return weights(out)


def one_line(stderr):
    """What a command says at its end, below the plan and the bars."""
    return [line for line in stderr.splitlines() if line.startswith("byol:")]


def test_the_command_ends_with_the_signal_s_code_and_one_line(server, images, tmp_path, commanded):
    out = tmp_path / "run"
    ended = command(server, images, out, signal=signal.SIGTERM, lines=2)
    assert ended["status"] == 143, ended["stderr"]
    assert len(one_line(ended["stderr"])) == 1 and "Traceback" not in ended["stderr"]
    assert "is saved, --resume goes on" in one_line(ended["stderr"])[0]
    assert command(server, images, out, "--resume")["status"] == 0
    assert weights(out) == commanded


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_ends_a_run_with_the_state_saved(tmp_path, number):
    """SIGTERM goes to all processes of a job at once; then it is the signal that ends it."""
    place = broken_folder(tmp_path / "images", [])
    options = replace(TINY, batch_size=4, image_size=32, workers=1)

    def end():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
        if number == signal.SIGTERM:
            os.kill(os.getpid(), number)

    kind, said = (TrainingStopped, "a process that decodes images died")
    if number == signal.SIGTERM:
        kind, said = (Interrupted, "SIGTERM after")
    with pytest.raises(kind, match=said) as stopped:
        pretrain(str(place), tmp_path / "run", options, observer=At(10, end))
    step = checkpoint.step_of(checkpoint.latest(tmp_path / "run/checkpoints"))
    assert step >= 10 and f"the state after {step} steps is saved" in str(stopped.value)
    pretrain(str(place), tmp_path / "run", resume=True)
    pretrain(str(place), tmp_path / "whole", options)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


# SLURM


@pytest.fixture
def scontrol(tmp_path):
    """A `scontrol` that writes down what it is asked, and knows a record; (environment, what it was asked)."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "record").write_text("")
    (place / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {place}/asked\ncat {place}/record\n')
    (place / "scontrol").chmod(0o755)
    environment = {"PATH": f"{place}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    return environment, place


PREEMPTED = "JobId=4711 JobName=byol JobState=RUNNING PreemptTime=2026-11-27T05:00:00 Requeue=1"
CANCELLED = "JobId=4711 JobName=byol JobState=CANCELLED PreemptTime=None Requeue=1"


@pytest.mark.parametrize(
    ("number", "record", "asked"),
    [
        (signal.SIGUSR1, "", ["requeue 4711"]),
        (signal.SIGTERM, PREEMPTED, ["show --oneliner job 4711", "requeue 4711"]),
        (signal.SIGTERM, CANCELLED, ["show --oneliner job 4711"]),
        (signal.SIGINT, PREEMPTED, []),
    ],
)
def test_a_preempted_job_is_put_back_and_goes_on_by_itself(
    server, scontrol, images, tmp_path, commanded, number, record, asked
):
    environment, place = scontrol
    (place / "record").write_text(record)
    out = tmp_path / "run"
    ended = command(server, images, out, environment=environment, signal=number, lines=2)
    assert ended["status"] == 128 + number, ended["stderr"]
    found = (place / "asked").read_text().splitlines() if (place / "asked").exists() else []
    assert found == asked
    assert ("back in its queue" in ended["stderr"]) == ("requeue 4711" in asked)
    if number == signal.SIGUSR1:  # SLURM starts the same script again, which names no --resume
        again = command(server, images, out, environment={**environment, "SLURM_RESTART_COUNT": "1"})
        assert again["status"] == 0, again["stderr"]
        assert weights(out) == commanded


def test_a_job_that_cannot_be_put_back_says_so(server, scontrol, images, tmp_path):
    environment, place = scontrol
    (place / "scontrol").write_text("#!/bin/sh\necho slurm_requeue error: operation is disabled >&2\nexit 1\n")
    ended = command(server, images, tmp_path / "run", environment=environment, signal=signal.SIGUSR1, lines=2)
    assert ended["status"] == 138
    assert "4711 could not be put back into its queue: slurm_requeue error" in " ".join(ended["stderr"].split())


# Other runs


@contextmanager
def held(directory):
    """Another process holds the directory."""
    program = "import sys; from pathlib import Path; from byol.files import locked\n"
    program += "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, str(directory)], **pipes) as other:
        other.stdout.readline()
        try:
            yield other
        finally:
            other.kill()


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_of_two_runs_in_a_directory_is_refused(images, tmp_path, whole, resume):
    out = tmp_path / "run"
    if resume:
        shutil.copytree(whole, out)
    with held(out), pytest.raises(ValueError, match="another run is writing"):
        pretrain(images, out, TINY, resume=resume)
    pretrain(images, out, replace(TINY), resume=resume)  # it died, and holds nothing
    assert weights(out) == weights(whole)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_said(images, tmp_path, monkeypatch, number):
    def none(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", none)
    observer = At(0, lambda: None)
    pretrain(images, tmp_path / "run", replace(TINY, steps=2), observer=observer)
    assert [line for line in observer.said if "cannot be locked here" in line]


def test_a_run_that_began_meanwhile_is_left_alone(images, tmp_path, monkeypatch):
    """Both found the place free; the other one was quicker."""
    out = tmp_path / "run"
    ready = byol.pipeline.ready

    def slow(*arguments):
        (out / "run.json").parent.mkdir(exist_ok=True)
        (out / "run.json").write_text("{}")
        return ready(*arguments)

    monkeypatch.setattr("byol.pipeline.ready", slow)
    with pytest.raises(ValueError, match="exists already"):
        pretrain(images, out, TINY)
    assert (out / "run.json").read_text() == "{}"


def test_a_reader_of_a_live_run_never_sees_a_torn_file(images, tmp_path):
    out, ended, seen, torn = tmp_path / "run", threading.Event(), set(), []

    def drawn():
        if begun := any(files.json_lines(out / "metrics.jsonl")):
            training_curves(out, tmp_path / "curves.png")
        return begun

    def read():
        while not ended.is_set():
            for name, reading in (
                ("run", lambda: Run.read(out / "run.json")),
                ("metrics", lambda: list(files.json_lines(out / "metrics.jsonl"))),
                ("skipped", lambda: list(files.json_lines(out / "skipped.jsonl"))),
                ("curves", drawn),
                ("state", lambda: load_file(checkpoint.latest(out / "checkpoints"))),
                ("backbone", lambda: byol.load(out)),
            ):
                try:
                    if reading():
                        seen.add(name)
                except (FileNotFoundError, TypeError):  # not yet, or forgotten meanwhile
                    pass
                except Exception as error:
                    torn.append((name, error))
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        pretrain(images, out, TINY)
        pretrain(images, out, replace(TINY, steps=40), resume=True)
    finally:
        ended.set()
        reader.join()
    assert torn == []
    assert seen >= {"run", "metrics", "curves", "state", "backbone"}


# What --resume may be asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 8}, "batch_size is 16, not 8"),
        ({"base_lr": 0.4}, "base_lr is 0.5, not 0.4"),
        ({"seed": 1}, "seed is 0, not 1"),
        ({"method": "simsiam", "fixed": ("method",)}, "method is 'byol', not 'simsiam'"),
        ({"method_args": {"tau": 0.5}}, "not 0.5"),
        ({"hold_out": 0.1}, "hold_out is 0.05, not 0.1"),
        ({"seed": 1, "precision": "64"}, "precision is '32', not '64'; seed is 0, not 1"),
        ({"steps": 12}, "it has 24 steps, and 12 were asked for"),
    ],
)
def test_other_settings_are_refused_and_named(images, tmp_path, whole, changes, said):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="--resume") as refused:
        pretrain(images, out, replace(TINY, **changes), resume=True)
    assert said in str(refused.value)
    assert {p: p.read_bytes() for p in before} == before


def test_the_same_command_goes_on_with_the_largest_batch(images, tmp_path, monkeypatch):
    """A job that is put back into its queue, or started again, is the same command, also of a recipe that it moves."""
    monkeypatch.setattr(
        "byol.pipeline.largest_batch", lambda options, *_: replace(options.at_batch(32, 1), auto_batch=False)
    )
    options = replace(TINY, auto_batch=True, method_args={**TINY.method_args, "tau": 0.97})
    run = pretrain(images, tmp_path / "run", options)
    assert run.batch_size == 32 and run.method_args["tau"] != 0.97 and run.total_steps != TINY.steps
    assert pretrain(images, tmp_path / "run", options, resume=True) == run
    with pytest.raises(ValueError, match="batch_size is 16, not 8"):
        pretrain(images, tmp_path / "run", replace(options, batch_size=8), resume=True)


def damaged(text, **changes):
    return json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": {}},
        {"facts": []},
        {"options": []},
        {"method": "nope"},
        {"total_steps": "24"},
        {"views": [{"nope": 1}] * 2},
        {"views": [1, 2]},
        {"base_lr": None},
        {"mean": [0.5, "x", 0.5]},
        {"extended": [[1]]},
        {"method_args": {"nope": 1}},
    ],
)
def test_a_damaged_run_file_is_told_in_one_line(server, images, tmp_path, whole, changes):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "run.json").write_text(damaged((out / "run.json").read_text(), **changes))
    for argv in (["pretrain", str(images), "--out", str(out), "--resume"], ["pretrain", "--replay", str(out), "3"]):
        ended = server({"argv": argv, "out": str(out), "environment": {}})
        assert ended["status"] == 2 and "Traceback" not in ended["stderr"], ended["stderr"]
        assert len(one_line(ended["stderr"])) == 1


def test_code_that_a_run_names_is_not_run_unless_it_is_named_again(images, tmp_path, whole):
    """run.json may come from somebody else."""
    from byol.replay import replay

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    text = (out / "run.json").read_text().replace('"method": "byol"', '"method": "this_module:Harms"')
    (out / "run.json").write_text(text)
    with pytest.raises(ValueError, match="--method this_module:Harms"):
        pretrain(images, out, resume=True)
    with pytest.raises(ValueError, match="--method this_module:Harms"):
        replay(out, 1, images, Silent())


def test_a_default_that_is_typed_counts_as_typed(server, images, tmp_path, whole):
    out = tmp_path / "run"
    pretrain(images, out, replace(TINY, seed=3, steps=2))
    argv = ["pretrain", str(images), "--out", str(out), "--resume", "--seed", "0"]
    refused = server({"argv": argv, "out": str(out), "environment": {}})
    assert refused["status"] == 2 and "seed is 3, not 0" in " ".join(refused["stderr"].split())


def test_what_changes_no_step_may_change(images, tmp_path, whole):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        pretrain(images, out, TINY, observer=At(10, lambda: os.kill(os.getpid(), signal.SIGINT)))
    changed = replace(TINY, keep=5, max_bad=0.5, workers=1, timeout=60.0)
    assert pretrain(images, out, changed, resume=True).keep == 5
    assert weights(out) == weights(whole)
    assert len(checkpoint.all_of(out / "checkpoints")) == 5


def test_a_run_made_longer_is_the_longer_run_from_there_on(images, tmp_path, whole):
    out = tmp_path / "run"
    stop = At(10, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        pretrain(images, out, TINY, observer=stop)
    run = pretrain(images, out, replace(TINY, steps=40), resume=True)
    assert (run.total_steps, run.extended) == (40, ((10, 24),))
    assert Run.read(out / "run.json") == run
    short, long = Run.read(whole / "run.json"), replace(run, extended=())
    for step in range(40):
        like = short if step < 10 else long
        assert learning_rate_share(run, step) == learning_rate_share(like, step)
        assert run.progress(step) == like.progress(step)
    # It can be repeated, and stopped, to the byte; its end may be put off again.
    repeated = tmp_path / "repeated"
    pretrain(images, repeated, replace(TINY, steps=40).with_settings(["extended=((10, 24),)"]))
    assert weights(repeated) == weights(out)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    longer = replace(TINY, steps=None, epochs=40 * 16 / short.facts["images_trained_on"] + 1e-9)
    with pytest.raises(Interrupted):
        pretrain(images, stopped, longer, resume=True, observer=At(30, stop.call))
    assert pretrain(images, stopped, resume=True).extended == ((24, 24),)
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    pretrain(images, again, longer, resume=True)
    assert weights(again) == weights(stopped) != weights(out)
    twice = pretrain(images, again, replace(TINY, steps=50), resume=True)
    assert twice.extended == ((24, 24), (40, 40)) and twice.total_steps == 50
    assert [line["step"] for line in lines(again / "metrics.jsonl") if "loss" in line] == [10, 20, 24, 30, 40, 50]


def made_folder(place, num=40):
    generator = np.random.default_rng(0)
    place.mkdir()
    for i in range(num):
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(place / f"{i:02}.bmp")
    return place


def later(path, seconds=5):
    os.utime(path, ns=(path.stat().st_mtime_ns + seconds * 10**9,) * 2)


def rewrite(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    later(path)


def grow(path):
    path.write_bytes(path.read_bytes() + bytes(100))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda place: (place / "07.bmp").unlink(), "07.bmp is gone"),
        (lambda place: shutil.copy(place / "07.bmp", place / "new.bmp"), "new.bmp is new"),
        (lambda place: (place / "07.bmp").rename(place / "x.bmp"), "07.bmp is gone; x.bmp is new"),
        (lambda place: grow(place / "03.bmp"), "03.bmp has 586 bytes, not 486"),
        (lambda place: rewrite(place / "09.bmp"), "09.bmp was written again"),
        (lambda place: [(place / f"0{i}.bmp").unlink() for i in range(6)], "02.bmp is gone and 3 more"),
    ],
)
def test_changed_files_are_refused_and_named(tmp_path, change, said):
    place = made_folder(tmp_path / "images")
    pretrain(str(place), tmp_path / "run", replace(TINY, steps=2, batch_size=8))
    change(place)
    with pytest.raises(ValueError, match="is not what this run began with") as refused:
        pretrain(str(place), tmp_path / "run", resume=True)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no gzip",
        gzip.compress(b"[]\n"),
        gzip.compress(b'["a", 1, "x"]\n'),
        gzip.compress(b"{"),
        gzip.compress(b'["00.bmp", 486, 0]\n' * 99)[:-9],
        gzip.compress(b"[" * 10_000),
        gzip.compress(b'["00.bmp", 486, 0]\n' * 10**5),
        gzip.compress(b'["gone.bmp", 486, 0]\n' * 10**6),
        gzip.compress(b" " * 10**8),
    ],
    ids=range(10),  # gzip writes the time down: as names these would differ between processes
)
def test_a_damaged_list_of_files_is_told_in_one_line_and_takes_no_memory(tmp_path, text):
    place = made_folder(tmp_path / "images")
    pretrain(str(place), tmp_path / "run", replace(TINY, steps=2, batch_size=8))
    (tmp_path / "run/data.jsonl.gz").write_bytes(text)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"data.jsonl.gz is damaged|is not what this run began with") as refused:
            pretrain(str(place), tmp_path / "run", resume=True)
        assert "\n" not in str(refused.value) and tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_files_that_were_all_written_again_are_no_copy(tmp_path):
    place = made_folder(tmp_path / "images")
    pretrain(str(place), tmp_path / "run", replace(TINY, steps=2, batch_size=8))
    for path in place.iterdir():
        rewrite(path)
    with pytest.raises(ValueError, match=r"00.bmp holds something else; 01.bmp holds something else; .* and 37 more"):
        pretrain(str(place), tmp_path / "run", resume=True)


def test_other_labels_are_refused(tmp_path):
    place, labels = made_folder(tmp_path / "images"), tmp_path / "labels.csv"
    names = sorted(path.name for path in place.iterdir())
    labels.write_text("file,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names)))
    options = replace(TINY, steps=2, batch_size=8, labels=str(labels))
    pretrain(str(place), tmp_path / "run", options)
    before = labels.read_text()
    for changed in (before.replace("00.bmp,a", "00.bmp,b"), before.replace("39.bmp,b", "39.bmp,c")):
        labels.write_text(changed)
        with pytest.raises(ValueError, match=r"is not what this run began with .*: images have other labels"):
            pretrain(str(place), tmp_path / "run", options, resume=True)
    labels.write_text(before)
    pretrain(str(place), tmp_path / "run", replace(options, steps=4), resume=True)


def test_storage_that_does_not_answer_loses_no_folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(tmp_path / "images" / name / "0.png")
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("b"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return scandir(path)

    monkeypatch.setattr("byol.data.folder.os.scandir", failing)
    with pytest.raises(OSError, match="Stale file handle") as error:
        open_source(tmp_path / "images")
    assert error.value.filename.endswith("images/b")


def test_storage_that_does_not_answer_makes_no_image_broken(tmp_path, monkeypatch):
    """Another image in its place would be another run."""
    place = broken_folder(tmp_path / "images", [])
    options = replace(TINY, batch_size=4, image_size=32)
    opened, broken, begun = Path.open, [], []

    class Beginning(Silent):
        def begun(self, *_):
            begun.append(True)

    def failing(path, *arguments, **named):
        broken.extend([path] * (path.suffix == ".png" and len(begun)))
        if path.suffix == ".png" and len(broken) > 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *arguments, **named)

    pretrain(str(place), tmp_path / "whole", options)
    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(TrainingStopped, match=r"Input/output error: .*png.*; the state after \d+ steps is saved"):
        pretrain(str(place), tmp_path / "run", options, observer=Beginning())
    monkeypatch.undo()
    assert lines(tmp_path / "run/skipped.jsonl") == lines(tmp_path / "whole/skipped.jsonl")
    pretrain(str(place), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_files_whose_times_are_as_they_were_are_not_read_again(tmp_path, monkeypatch):
    place = made_folder(tmp_path / "images")
    pretrain(str(place), tmp_path / "run", replace(TINY, steps=2, batch_size=8))
    monkeypatch.setattr("byol.data.folder.Files.digests", lambda *_: pytest.fail("read"))
    assert pretrain(str(place), tmp_path / "run", resume=True).total_steps == 2


def test_a_copy_of_the_files_is_the_same_data(tmp_path):
    place = made_folder(tmp_path / "images")
    pretrain(str(place), tmp_path / "run", replace(TINY, steps=2, batch_size=8))
    copy = shutil.copytree(place, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in copy.iterdir():
        later(path)
    assert pretrain(str(copy), tmp_path / "run", resume=True).total_steps == 2


# Numbers that go wrong


class GoesWrong(BYOL):
    """Its loss, or its gradients alone, are not finite in the ninth forward pass."""

    passes, wrong = 0, "loss"

    def forward(self, v, v_prime):
        out = super().forward(v, v_prime)
        if self.training:
            type(self).passes += 1
        if type(self).passes == 9 and self.wrong == "loss":
            return Out(out.loss * float("nan"), out.features, out.embedding)
        if type(self).passes == 9:
            out.embedding.register_hook(lambda gradient: gradient * float("inf"))
        return out


@pytest.fixture
def wrong_from(monkeypatch):
    """Trains GoesWrong, whose passes in the trial before the first step do not count."""
    monkeypatch.setattr(Training, "measure_rate", lambda self, seconds: 1.0)
    monkeypatch.setattr("byol.networks.get", lambda name: GoesWrong)
    monkeypatch.setattr(GoesWrong, "passes", 0)


@pytest.mark.usefixtures("wrong_from")
@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_a_run_before_a_weight_moves(images, tmp_path, monkeypatch, whole, wrong):
    out = tmp_path / "run"
    monkeypatch.setattr(GoesWrong, "wrong", wrong)
    what = {"loss": "loss is not finite in step 8", "gradient": "a gradient is not finite in step 8"}[wrong]
    with pytest.raises(TrainingStopped, match=f"{what}, which changed no weight; `byol pretrain --replay") as stopped:
        pretrain(images, out, TINY)
    assert "\n" not in str(stopped.value)
    place = out / "failures/step-000000008"
    kept, about = checkpoint._read(place / "step-000000008.safetensors")
    before = load_file(checkpoint.all_of(out / "checkpoints")[-1])
    assert about["step"] == 8 and all(value.isfinite().all() for value in kept.values())
    batch = json.loads((place / "batch.json").read_text())
    assert len(batch["ids"]) == 16 and batch["gradients_not_finite"]
    # The state is that of eight steps, to the bit, with what the ninth forward pass did to running statistics undone.
    assert kept.keys() == before.keys() and all(torch.equal(kept[name], before[name]) for name in kept)
    monkeypatch.setattr("byol.networks.get", methods.get)
    pretrain(images, out, resume=True)
    assert weights(out) == weights(whole)


@pytest.mark.usefixtures("wrong_from")
def test_replay_draws_the_very_batch_and_says_where_it_goes_wrong(images, tmp_path, monkeypatch):
    from byol.replay import replay

    out, seen = tmp_path / "run", {}
    passes = Training.passes

    def recorded(self, step, micro):
        seen[step] = [(batch.ids.tolist(), [view.clone() for view in batch.views]) for batch in micro]
        return passes(self, step, micro)

    monkeypatch.setattr(Training, "passes", recorded)
    with pytest.raises(TrainingStopped):
        pretrain(images, out, replace(TINY, accumulate=2))
    (step, micro), *_ = sorted(seen.items(), reverse=True)
    weights_before = {p: p.read_bytes() for p in (out / "checkpoints").iterdir()}
    monkeypatch.setattr(GoesWrong, "passes", 8)
    found, told = replay(out, step, None, Silent())
    assert found["ids"] == [i for ids, _ in micro for i in ids]
    for (_, before), (_, again) in zip(micro, seen[step], strict=True):
        assert all(map(torch.equal, before, again))
    assert not found["finite"] and found["gradients_not_finite"] and found["views_finite"]
    assert dict(told)["not finite"].startswith("first after the forward pass")
    assert Path(found["picture"]).stat().st_size > 1000
    assert {p: p.read_bytes() for p in weights_before} == weights_before
    # Of a step that went well, from the checkpoint before it.
    monkeypatch.setattr("byol.networks.get", methods.get)
    pretrain(images, out, resume=True)
    whole_run = lines(out / "metrics.jsonl")
    found, told = replay(out, 23, None, Silent())
    assert found["finite"] and found["state_of_step"] == 22
    assert found["loss"] == next(line["loss"] for line in whole_run if line["step"] == 24 and "loss" in line)
    assert dict(told)["not finite"] == "nothing"
    with pytest.raises(ValueError, match="steps are 0 to 23"):
        replay(out, 24, None, Silent())
    # A damaged one is passed over for the one before it.
    damaged = out / "checkpoints/step-000000022.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    again, _ = replay(out, 23, None, Silent())
    assert (again["state_of_step"], again["loss"]) == (0, found["loss"])


def test_large_gradients_that_are_finite_stop_nothing(images, tmp_path, monkeypatch):
    """Their squares are not, nor is their norm; LARS makes steps of any length of them."""
    passes, seen = Training.passes, []

    def large(self, step, micro):
        taken = passes(self, step, micro)
        if step == 8:
            gradient = self.method.predictor[-1].weight.grad.fill_(1e30)
            taken = replace(taken, norm=torch.nn.utils.get_total_norm([gradient]))
            seen.append(float(taken.norm))
        return taken

    monkeypatch.setattr(Training, "passes", large)
    pretrain(images, tmp_path / "run", TINY)
    assert seen == [float("inf")]


def test_replay_names_the_first_part_that_makes_them(images, tmp_path, monkeypatch):
    from byol.replay import replay

    pretrain(images, tmp_path / "run", TINY)
    passes = Training.passes

    def broken(self, step, micro):
        self.method.predictor[0].weight.data[0, 0] = float("inf")
        return passes(self, step, micro)

    monkeypatch.setattr(Training, "passes", broken)
    found, _ = replay(tmp_path / "run", 22, None, Silent())
    assert found["first_not_finite"] == "method.predictor.0"


def test_the_command_replays(server, images, tmp_path, whole):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    argv = ["pretrain", "--replay", str(out), "20", "--json"]
    found = server({"argv": argv, "out": str(out), "environment": {}})
    assert found["status"] == 0, found["stderr"]
    assert json.loads(found["stdout"])["finite"]
    missing = server({"argv": ["pretrain"], "out": str(out), "environment": {}})
    assert missing["status"] == 2 and "DATA and --out are needed" in missing["stderr"]


def test_a_loss_out_of_line_is_a_spike():
    smooth = [1.0 - i / 100 for i in range(WINDOW)]
    assert not is_spike(5.0, smooth[1:])  # too few to say
    assert not is_spike(1.4, smooth)
    assert is_spike(1.6, smooth)
    assert not is_spike(-5.0, smooth)
    assert is_spike(-0.2, [-0.9 + i / 1000 for i in range(WINDOW)])  # a loss below zero
    assert not is_spike(2.0001, [2.0] * WINDOW)
    assert is_spike(2.1, [2.0] * WINDOW)


def test_spikes_are_reported_once_also_across_a_stop(images, tmp_path, monkeypatch):
    passes = Training.passes

    def spiked(self, step, micro):
        taken = passes(self, step, micro)
        factor = 100.0 if step == 64 else 1.0
        return replace(taken, losses={name: value * factor for name, value in taken.losses.items()})

    monkeypatch.setattr(Training, "passes", spiked)
    out, observer = tmp_path / "run", At(60, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        pretrain(images, out, replace(TINY, steps=70), observer=observer)
    assert not observer.said
    observer.step = 0
    pretrain(images, out, resume=True, observer=observer)
    assert [line["step"] for line in lines(out / "metrics.jsonl") if "loss_spike" in line] == [65]
    assert len(observer.said) == 1 and observer.said[0].startswith("step 65: the loss jumped from")


# Bad images


def broken_folder(place, bad, num=40, side=150):
    generator = np.random.default_rng(0)
    place.mkdir()
    for i in range(num):
        path = place / f"{i:02}.png"
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        if i in bad:
            path.write_bytes(path.read_bytes()[:-2000] if side > 128 else b"not an image")
    (place / "notes.txt").write_text("files that do not say they are images do not count")
    return place


@pytest.mark.parametrize("bad", [4, 5])
def test_data_that_are_mostly_broken_are_refused_at_once(tmp_path, bad):
    place = broken_folder(tmp_path / "images", range(bad), side=12)
    options = replace(TINY, steps=2, batch_size=8)
    if bad == 4:  # of 40, a tenth
        pretrain(str(place), tmp_path / "run", options)
        return
    with pytest.raises(ValueError, match=r"5 of 40 images are unusable, more than --max-bad 0\.1 allows; .* 00"):
        pretrain(str(place), tmp_path / "run", options)
    pretrain(str(place), tmp_path / "run", replace(options, max_bad=0.2))


def test_images_that_prove_broken_in_training_stop_the_run(tmp_path):
    """Their headers are whole."""
    place = broken_folder(tmp_path / "images", range(0, 40, 5))
    options = replace(TINY, steps=20, batch_size=8, hold_out=0.0, image_size=32)
    with pytest.raises(
        TrainingStopped, match=r"5 of about \d\d images turned out unusable, more than --max-bad 0\.1 allows"
    ):
        pretrain(str(place), tmp_path / "run", options)
    listed = {line["id"] for line in lines(tmp_path / "run/skipped.jsonl") if line["step"]}
    assert len(listed) == 5 and listed < set(range(0, 40, 5))
    pretrain(str(place), tmp_path / "run", replace(options, max_bad=0.2), resume=True)
    listed = {line["id"] for line in lines(tmp_path / "run/skipped.jsonl") if line["step"]}
    assert listed == set(range(0, 40, 5))
