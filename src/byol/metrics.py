"""What a run writes down as it goes: metrics.jsonl, skipped.jsonl, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from byol.files import json_lines, naming, sync

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"


class Metrics:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard."""

    def __init__(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._start = start
        self._path = directory / METRICS
        self._skipped = directory / SKIPPED
        _drop_after(self._path, start or -1)  # a run that starts anew looks at step 0 again
        _drop_after(self._skipped, start)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start or None)

    def standing(self) -> tuple[float, int, bool]:
        """(seconds of training, whether the last look found a collapse, whether it was at `start`) as far as the file
        goes."""
        seconds = (self.last("seconds") or {"seconds": 0.0})["seconds"]
        look = self.last("held_out/verdict") or {"step": -1, "held_out/verdict": ""}
        collapsed = look["step"] > 0 and look["held_out/verdict"] == "collapsed"  # a start is no collapse
        return seconds, int(collapsed), look["step"] == self._start

    def looks(self) -> list[tuple[int, dict[str, Any]]]:
        """The steps after which held-out images were looked at, and what was found then, by name."""
        return [
            (line["step"], {name.removeprefix("held_out/"): value for name, value in line.items()})
            for line in json_lines(self._path)
            if "held_out/verdict" in line
        ]

    def last(self, name: str) -> dict[str, Any] | None:
        """The last line that holds a number of that name."""
        return next((line for line in reversed(json_lines(self._path)) if name in line), None)

    def bad(self) -> set[int]:
        """The ids of images that turned out unusable so far."""
        return {line["id"] for line in json_lines(self._skipped) if line["step"] > 0}

    def write(self, step: int, values: dict[str, Any]) -> None:
        _append(self._path, [{"step": step, **values}])
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

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
        self._board.close()


class NoMetrics:
    """Of a process that writes none, because the first one does."""

    def standing(self) -> tuple[float, int, bool]:
        return 0.0, 0, False

    def bad(self) -> set[int]:
        return set()

    def looks(self) -> list[tuple[int, dict[str, Any]]]:
        return []

    def write(self, step: int, values: dict[str, Any]) -> None: ...
    def skipped(self, replaced: list[tuple[int, int, str]]) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


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
    with contextlib.suppress(json.JSONDecodeError):
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept += len(line)
    os.truncate(path, kept)
