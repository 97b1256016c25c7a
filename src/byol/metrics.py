"""What a run writes down as it goes: metrics.jsonl, skipped.jsonl, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Metrics:
    """metrics.jsonl, one JSON object a line, and the same numbers for TensorBoard."""

    def __init__(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._start = start
        self._path = directory / "metrics.jsonl"
        self._skipped = directory / "skipped.jsonl"
        _drop_after(self._path, start or -1)  # a run that starts anew looks at step 0 again
        _drop_after(self._skipped, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start or None)

    def standing(self) -> tuple[float, int, bool]:
        """(seconds of training, whether the last look found a collapse, whether it was at `start`) as far as the file
        goes."""
        seconds = (self.last("seconds") or {"seconds": 0.0})["seconds"]
        look = self.last("held_out/verdict") or {"step": -1, "held_out/verdict": ""}
        collapsed = look["step"] > 0 and look["held_out/verdict"] == "collapsed"  # a start is no collapse
        return seconds, int(collapsed), look["step"] == self._start

    def last(self, name: str) -> dict[str, Any] | None:
        """The last line that holds a number of that name."""
        lines = map(json.loads, reversed(self._path.read_text("utf-8").splitlines()))
        return next((line for line in lines if name in line), None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def skipped(self, replaced: list[tuple[int, int, str]]) -> None:
        if replaced:
            with self._skipped.open("a", encoding="utf-8") as file:
                for step, image, reason in replaced:
                    file.write(json.dumps({"step": step, "id": image, "reason": reason}) + "\n")

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoMetrics:
    """Of a process that writes none, because the first one does."""

    def standing(self) -> tuple[float, int, bool]:
        return 0.0, 0, False

    def write(self, step: int, values: dict[str, Any]) -> None: ...
    def skipped(self, replaced: list[tuple[int, int, str]]) -> None: ...
    def close(self) -> None: ...


def _drop_after(path: Path, step: int) -> None:
    """Forget lines of steps a resumed run will do again, and a line cut off by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    path.write_text("".join(line + "\n" for line in kept), "utf-8")
