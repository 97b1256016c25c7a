"""What a run writes down as it goes: metrics.jsonl, skipped.jsonl, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from byol.dashboard import Dashboard
from byol.diagnose import Health
from byol.files import json_lines, naming, placed_lines, sync
from byol.kinds import fits

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"


@dataclass
class Before:
    """What was written of a run before it goes on: seconds of training; the steps after which held-out images were
    looked at, and what was found; whether the last look found a collapse, and was at the step to go on from; the ids of
    images that turned out unusable."""

    seconds: float = 0.0
    looks: list[tuple[int, Health]] = field(default_factory=list)
    collapsed: int = 0
    looked: bool = False
    bad: set[int] = field(default_factory=set)


class Metrics:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard, and for a dashboard."""

    def __init__(self, directory: Path, start: int, dashboard: Dashboard | None = None) -> None:
        self._start = start
        self._path = directory / METRICS
        self._skipped = directory / SKIPPED
        _drop_after(self._path, start or -1)  # a run that starts anew looks at step 0 again
        _drop_after(self._skipped, start)
        self._board: _Board | None = None
        self._dashboard = dashboard

    def before(self) -> Before:
        """What the files say of the run so far. ValueError, in one line, where they are damaged."""
        found = Before()
        try:
            for line in json_lines(self._path):
                found.seconds = _number(line.get("seconds", found.seconds))
                if "held_out/verdict" in line:
                    numbers = {each.name: _number(line[f"held_out/{each.name}"]) for each in fields(Health)}
                    found.looks.append((line["step"], Health(**numbers)))
                    # A start is no collapse.
                    found.collapsed = int(line["step"] > 0 and line["held_out/verdict"] == "collapsed")
            found.looked = bool(found.looks) and found.looks[-1][0] == self._start
            found.bad = {int(_number(line["id"])) for line in json_lines(self._skipped) if line["step"] > 0}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path} or {SKIPPED} is damaged: a line lacks a number; restore it from a copy"
            ) from error
        return found

    def write(self, step: int, values: dict[str, Any]) -> None:
        _append(self._path, [{"step": step, **values}])
        if self._board is None:
            self._board = _Board(self._path.parent / "tensorboard", self._start)
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self._board.write(step, numbers)
        if self._dashboard is not None:
            self._dashboard.write(step, numbers)

    def skipped(self, replaced: list[tuple[int, int, str]]) -> None:
        if replaced:
            lines = [{"step": step, "id": image, "reason": reason} for step, image, reason in replaced]
            _append(self._skipped, lines)

    def settle(self) -> None:
        """Wait until all of it is on the disk: a checkpoint never stands without the lines that belong to it."""
        for path in (self._path, self._skipped):
            if path.exists():
                sync(path)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._dashboard is not None:
            self._dashboard.close()


class NoMetrics:
    """Of a process that writes none, because the first one does."""

    def before(self) -> Before:
        return Before()

    def write(self, step: int, values: dict[str, Any]) -> None: ...
    def skipped(self, replaced: list[tuple[int, int, str]]) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


def _number(value: Any) -> float:
    if not fits(value, float):
        raise TypeError("not a number")
    return float(value)


def _append(path: Path, objects: list[dict[str, Any]]) -> None:
    """Whole lines, in one write: a reader finds them all or none."""
    text = "".join(json.dumps(each) + "\n" for each in objects).encode()
    with naming(path), path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while text:
                text = text[file.write(text) :]
        except OSError:
            file.truncate(before)
            raise


def _drop_after(path: Path, step: int) -> None:
    """Forget lines of steps a resumed run will do again, and a line cut off by a crash."""
    if not path.exists():
        return
    kept = 0
    for line, end in placed_lines(path):
        if not isinstance(line.get("step"), int):
            raise ValueError(f"{path} is damaged: a line of it names no step; restore it from a copy")
        if line["step"] > step:
            break
        kept = end
    os.truncate(path, kept)


class _Board:
    """Numbers for TensorBoard. What cannot be written is left out: no run ends for it."""

    def __init__(self, directory: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._file: IO[bytes] | None = None
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        with contextlib.suppress(OSError):
            directory.mkdir(exist_ok=True)
            self._file = (directory / name).open("ab", buffering=0)
        self._put(Event(file_version="brain.Event:2"))
        if start:  # what an earlier part of the run says of later steps counts no more
            self._put(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._put(Event(step=step, summary=Summary(value=values)))

    def _put(self, event: Any) -> None:
        # Not torch's SummaryWriter: its thread ends in a traceback where a disk is full.
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            return
        event.wall_time = time.time()
        try:
            RecordWriter(self._file).write(event.SerializeToString())
        except OSError:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
