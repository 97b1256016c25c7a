"""What a run writes and tells as it goes: its numbers, the images it had to replace, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.dashboard import Dashboard
from byol.data.loader import Batch
from byol.metrics import Metrics, NoMetrics
from byol.online import Probe
from byol.parallel import agreed, collected, rank, together
from byol.run import Run


@dataclass(frozen=True)
class Progress:
    """What an observer is told. `probe` is set when held-out images were looked at."""

    step: int
    total_steps: int
    metrics: dict[str, float]
    images_per_second: float
    probe: Probe | None = None


class Journal:
    """Of one run, from a step on, in each of its processes; the first one writes.

    bad: the ids of images that turned out unusable. seconds: of training, up to the last line. collapsed: how many
    looks in a row found a collapse. looks: the steps after which there were looks before, and what they found; looked:
    whether there was one at the start. unwritten: why something could not be written, after which nothing more is.
    """

    def __init__(
        self,
        run: Run,
        directory: Path,
        start: int,
        observe: Callable[[Progress], None],
        say: Callable[[str], None],
        dashboard: Dashboard | None = None,
    ) -> None:
        self.observe, self.say = observe, say
        self.unwritten: OSError | None = None
        self._images_per_step = run.images_per_step
        self._metrics = together(lambda: Metrics(directory, start, dashboard) if rank() == 0 else NoMetrics())
        before = agreed(together(self._metrics.before))
        self.seconds, self.collapsed, self.looked = before.seconds, before.collapsed, before.looked
        self.looks, self.bad = before.looks, before.bad
        self._replaced: list[tuple[int, int, str]] = []
        self.clock(start)

    def clock(self, step: int) -> None:
        """Count seconds from here on, `step` steps being done."""
        self._since, self._since_step = time.perf_counter(), step

    @contextmanager
    def paused(self) -> Iterator[float]:
        """Within it no seconds are counted: those of training are training's alone. Gives how many there were."""
        before = time.perf_counter()
        yield self.seconds + before - self._since
        self._since += time.perf_counter() - before

    def write(self, call: Callable[..., None], *arguments: Any) -> None:
        """Write something. What cannot be written ends the run before its next step, in all processes."""
        if self.unwritten is None:
            try:
                call(*arguments)
            except OSError as error:
                self.unwritten = error

    def replaced(self, done: int, micro: list[Batch]) -> None:
        """Remember the images that a step could not use."""
        self._replaced += [(done, *each) for batch in micro for each in batch.replaced]

    def exchange(self) -> None:
        """Write what all processes remember of such images."""
        found, self._replaced = collected(self._replaced), []
        self.write(self._metrics.skipped, found)
        self.bad |= {image for _, image, _ in found}

    def spike(self, done: int, loss: float, usual: float) -> None:
        self.write(self._metrics.write, done, {"loss_spike": loss, "median_before": usual})
        self.say(f"step {done}: the loss jumped from {usual:.4g} to {loss:.4g}")

    def log(self, done: int, total: int, values: dict[str, float]) -> None:
        """A line of numbers, with the rate since the last one."""
        now = time.perf_counter()
        rate = (done - self._since_step) * self._images_per_step / (now - self._since)
        self.seconds += now - self._since
        self.clock(done)
        line = {**values, "images_per_second": rate, "seconds": round(self.seconds, 3)}
        self.write(self._metrics.write, done, line)
        self.observe(Progress(done, total, values, rate))

    def look(self, done: int, total: int, probe: Probe, seconds: float) -> None:
        """A line of what held-out images said after so many seconds of training."""
        found = {f"held_out/{name}": value for name, value in probe.to_dict().items() if name != "step"}
        self.write(self._metrics.write, done, {"seconds": round(seconds, 3), **found})
        self.observe(Progress(done, total, {}, 0.0, probe))

    def settle(self) -> None:
        """Wait until all lines are on the disk."""
        self.write(self._metrics.settle)

    def close(self) -> None:
        self._metrics.close()
