"""The demo: BYOL on real digits without their labels, and by how much that beats doing nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from byol import pictures
from byol.evaluate.protocols import Settings
from byol.evaluation import USUAL, evaluate_run
from byol.experiments import digits_demo
from byol.pipeline import Observer, pretrain, views_sheet
from byol.report import Watching


def demo(out: Path, observer: Observer, *, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Pre-train on the digits, evaluate, draw the pictures. steps: fewer than the demo's own, for a quick look."""
    options = replace(digits_demo(), seed=seed)
    if steps is not None:
        options = replace(options, steps=steps)
    watching = Watching(out, observer)
    run = pretrain("digits", out, options, observer=watching)
    views_sheet("digits", out / "views.png", options)
    found = evaluate_run(out, "digits", settings=Settings(protocols=USUAL), observer=observer).whole().found
    pictures.training_curves(out, out / "training.png")
    pictures.results_chart(
        pictures.result_rows(found),
        out / "results.png",
        title=f"{run.facts['images_trained_on']:,} digits without labels, then tested with labels",
    )
    watching.done()
    return found
