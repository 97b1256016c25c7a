"""A run's page while it trains and when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from byol import pipeline
from byol.data.open import Images
from byol.data.source import Source
from byol.journal import Progress
from byol.options import Options
from byol.parallel import rank
from byol.pipeline import Observer, Silent
from byol.repeat import Repeat
from byol.report import gallery
from byol.report.facts import VIEWS
from byol.report.page import REFRESH_SECONDS, REPORT, write_page
from byol.run import RUN, Run

COST = 0.01
"""Share of the time that writing the page may take while a run trains."""


class Watching:
    """An observer that passes all on to another one, and keeps RUN/report.html up to date meanwhile.

    What cannot be written ends no run: it is said once.
    """

    def __init__(self, directory: Path, observer: Observer) -> None:
        self._directory, self._observer = directory, observer
        self._next, self._silent = 0.0, False
        self.say, self.warn, self.planned = observer.say, observer.warn, observer.planned
        self.loading, self.working = observer.loading, observer.working

    def begun(self, run: Run, source: Source, pixels: Tensor | None) -> None:
        self._observer.begun(run, source, pixels)
        if not (self._directory / VIEWS).exists():
            self._try(lambda: gallery.write_views(self._directory, run, source, pixels))
        self._write()

    def progress(self, progress: Progress) -> None:
        self._observer.progress(progress)
        if time.monotonic() >= self._next:
            self._write()

    def done(self, data: Images | None = None) -> None:
        """The page of the finished run, with a sample of its images. In all processes of the run. data: the run's, if
        they are in memory."""
        if rank() == 0:
            self.say(f"a page to look at: {self._directory / REPORT}")
        self._try(lambda: gallery.draw_sample(self._directory, self._observer, data))
        if rank() == 0:
            self._try(lambda: write_page([self._directory], self._directory / REPORT))

    def _write(self) -> None:
        begun = time.monotonic()
        self._try(lambda: write_page([self._directory], self._directory / REPORT, refresh=True))
        now = time.monotonic()
        self._next = now + max(REFRESH_SECONDS, (now - begun) / COST)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        # SystemExit: of several processes those that leave it to the first to say what is wrong.
        except (ValueError, OSError, SystemExit) as error:
            if not self._silent and rank() == 0:
                self.warn(f"{REPORT} is not all that it could be: {error}")
            self._silent = True


def pretrain(
    data: Images,
    out: str | Path,
    options: Options | None = None,
    *,
    resume: bool = False,
    repeat: Repeat | None = None,
    wandb: str | None = None,
    report: bool = True,
    observer: Observer | None = None,
    **settings: Any,
) -> Run:
    """Train on the images of `data`, write a run directory at `out` and its page, OUT/report.html. Returns the run.

    data: a folder, a file, see `open_source`, or images in memory, [N, H, W], [N, H, W, C] or [N, C, H, W] uint8.
    options: what to decide by hand; the rest follows from the data. settings: fields of `Options`, in place of what
    `options` says: pretrain("folder", "run", method="vicreg", epochs=5). resume: go on from the last checkpoint in
    `out`, on the same data; `epochs` or `steps` make the run longer. repeat, wandb: see `byol.pipeline.pretrain`.
    report: whether the page is written. observer: is told how it goes; a `byol.console.Terminal` shows it. ValueError,
    before anything is written, for what a person can set right.
    """
    settings |= {"resume": resume, "repeat": repeat, "wandb": wandb}
    if not report:
        return pipeline.pretrain(data, out, options, observer=observer, **settings)
    watching = Watching(Path(out), observer or Silent())
    run = pipeline.pretrain(data, out, options, observer=watching, **settings)
    watching.done(data)
    return run


def report(runs: Sequence[str | Path], out: str | Path | None = None, *, observer: Observer | None = None) -> Path:
    """Write the page of a run, RUN/report.html, or of several side by side, ./report.html; returns where it is.

    Of each run the views and the sample of images are drawn where they are not there, or belong to other weights, and
    its data are still where they were. ValueError or FileNotFoundError, in one line, where a directory is no run.
    """
    directories = [Path(run) for run in runs]
    if not directories:
        raise ValueError("name a run, or several")
    for directory in directories:
        if (directory / RUN).is_file():
            _complete(directory, observer or Silent())
    target = Path(out) if out is not None else directories[0] / REPORT if len(directories) == 1 else Path(REPORT)
    return write_page(directories, target)


def _complete(directory: Path, observer: Observer) -> None:
    """Draw what the page shows and the run does not have."""
    try:
        if not (directory / VIEWS).exists():
            gallery.draw_views(directory)
        if gallery.has_backbone(directory):
            gallery.draw_sample(directory, observer)
    except (ValueError, OSError) as error:
        observer.warn(f"{directory}: images are left out: {error}")
