"""The demo: BYOL on real digits without their labels, and by how much that beats doing nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from byol import pictures
from byol.data.open import open_source
from byol.evaluate.table import PROTOCOLS, evaluate, load_labelled, split_labelled, with_classes_of
from byol.experiments import digits_demo
from byol.export import load, read_description
from byol.pipeline import Observer, pretrain, views_sheet


def demo(out: Path, observer: Observer, *, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Pre-train on the digits, evaluate, draw the pictures. steps: fewer than the demo's own, for a quick look."""
    options = replace(digits_demo(), seed=seed)
    if steps is not None:
        options = replace(options, steps=steps)
    run = pretrain("digits", out, options, observer=observer)
    views_sheet("digits", out / "views.png", options)
    found = evaluate_run(out, "digits", observer=observer)
    pictures.training_curves(out, out / "training.png")
    pictures.results_chart(
        pictures.result_rows(found),
        out / "results.png",
        title=f"{run.facts['images_trained_on']:,} digits without labels, then tested with labels",
    )
    return found


def evaluate_run(
    run_directory: Path,
    data: str,
    *,
    test: str | None = None,
    protocols: tuple[str, ...] = PROTOCOLS,
    seed: int = 0,
    observer: Observer,
) -> dict[str, Any]:
    """Evaluate a run's backbone on labelled data, beside its baselines; writes evaluation.json into the run.

    test: other data to test on; else the test part of `data`, or a fifth of it where it has none.
    """
    encoder = load(run_directory)
    description = read_description(run_directory)
    spec = encoder.spec
    source = open_source(data, part="train", channels=spec.channels if spec.channels in (1, 3) else None)
    train = load_labelled(source, spec.image_size)
    if test is not None or source.has_test_part:
        tests = open_source(test or data, part="all" if test else "test", channels=source.channels)
        held = with_classes_of(train, load_labelled(tests, spec.image_size), test or data)
    else:
        train, held = split_labelled(train)
    found = evaluate(
        encoder,
        train,
        held,
        mean=description["normalization"]["mean"],
        std=description["normalization"]["std"],
        protocols=protocols,
        seed=seed,
        network_seed=description["seed"],
        say=observer.say,
    )
    found = {"run": str(run_directory), "data": data, "test": test, **found}
    temporary = run_directory / "evaluation.json.tmp"
    temporary.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    temporary.replace(run_directory / "evaluation.json")
    return found
