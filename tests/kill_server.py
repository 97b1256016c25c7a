"""Runs that may be killed, each in a process forked from one that has imported everything; asked over pipes.

A line of JSON asks for a run: {"data", "out", "changes": of Options, "resume", "point", "count", "after"}. It is killed
after `after` seconds, or where the `count`-th write reaches `point`. Or it asks for a command: {"argv", "environment",
"out", "signal", "lines"}, which gets that signal once its metrics.jsonl has so many lines. A line of JSON answers:
{"status", "seconds", "stdout", "stderr"}.
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import timm  # noqa: F401 (the children shall not import it each for themselves; nor the next)
import torch
from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: F401
from tensorboard.summary.writer import record_writer  # noqa: F401

from byol import checkpoint, metrics
from byol.options import Options
from byol.pipeline import pretrain
from byol.train import Training

OPTIONS = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    image_size=12,
    batch_size=16,
    steps=24,
    precision="32",
    device="cpu",
    workers=0,
    optimizer="lars",
    base_lr=0.5,
)
POINTS = {
    "the temporary write": ("write", "step-"),
    "before the rename": ("rename", "step-"),
    "after the rename": ("renamed", "step-"),
    "before pruning": ("prune", ""),
    "between two that are pruned": ("pruned", "step-"),
    "a metrics append": ("append", "metrics.jsonl"),
    "the backbone's write": ("write", "backbone"),
    "between the backbone and its description": ("renamed", "backbone.safetensors"),
    "before run.json": ("rename", "run.json"),
    "after run.json": ("renamed", "run.json"),
}


def trap(point, count):
    """Arm one of POINTS: the process kills itself where its `count`-th write gets there."""
    left = [count]
    what, prefix = POINTS[point]

    def die_at(place, name):
        if place == what and name.startswith(prefix):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    replace_file, unlink, append = Path.replace, Path.unlink, metrics._append
    save_file, prune = safetensors.torch.save_file, checkpoint.prune

    def replaced(path, target):
        die_at("rename", Path(target).name)
        found = replace_file(path, target)
        die_at("renamed", Path(target).name)
        return found

    def unlinked(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        die_at("pruned", path.name)

    def appended(path, objects):
        if what == "append" and path.name == prefix:
            left[0] -= 1
            if left[0] == 0:
                whole = "".join(json.dumps(each) + "\n" for each in objects)
                with path.open("a") as file:
                    file.write(whole[: len(whole) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        append(path, objects)

    def saved(tensors, path, metadata=None):
        save_file(tensors, path, metadata=metadata)
        if what == "write" and Path(path).name.startswith(prefix) and left[0] == 1:
            os.truncate(path, Path(path).stat().st_size // 2)
        die_at("write", Path(path).name)

    def pruned(directory, keep):
        die_at("prune", "")
        prune(directory, keep)

    Path.replace, Path.unlink, metrics._append = replaced, unlinked, appended
    safetensors.torch.save_file, checkpoint.prune = saved, pruned


def command(asked):
    from byol import cli

    os.environ |= asked["environment"]
    sys.argv = ["byol", *asked["argv"]]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def run(asked):
    if asked["point"] is not None:
        trap(asked["point"], asked["count"])
    options = replace(OPTIONS, **asked["changes"]).checked()
    pretrain(asked["data"], asked["out"], options, resume=asked["resume"])


def begun(asked, files):
    """The number of a new process that does what is asked for; what it says goes to those files."""
    if (child := os.fork()) > 0:
        return child
    code = 1
    try:
        for file, number in zip(files, (1, 2), strict=True):
            os.dup2(file.fileno(), number)
        torch.set_num_threads(1)
        Training.measure_rate = lambda self, seconds: 1.0  # a second of trial steps each time would say nothing here
        code = command(asked) if "argv" in asked else run(asked) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ends(child, asked):
    """See it through; returns how it ended."""
    if asked.get("after") is not None:
        time.sleep(asked["after"])
        os.kill(child, signal.SIGKILL)
    if asked.get("signal") is not None:
        written = Path(asked["out"], "metrics.jsonl")
        while (gone := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if written.exists() and written.read_bytes().count(b"\n") >= asked["lines"]:
                os.kill(child, asked["signal"])
                break
            time.sleep(0.01)
        else:
            return os.waitstatus_to_exitcode(gone[1])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.monotonic()
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            status = ends(begun(asked, (stdout, stderr)), asked)
            found = {"status": status, "seconds": time.monotonic() - began}
            for name, file in (("stdout", stdout), ("stderr", stderr)):
                file.seek(0)
                found[name] = file.read().decode()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
