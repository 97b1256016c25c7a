"""The command that predicts classes from few labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from byol.cli.shared import AsJson, ComputeDevice, Labels, Seed, fail, must_exist, print_json


def classify(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    labelled: Annotated[
        str, typer.Argument(help="Images of which some are labelled: a sub-folder a class, or with --labels.")
    ],
    new: Annotated[str, typer.Argument(help="Images to classify; they may hold the labelled ones.")],
    out: Annotated[Path, typer.Option("--out", help="The .csv file of predictions.", show_default=False)],
    labels: Labels = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|REGEX",
            help="What belongs together (a patient, a plate, a flight): a column of the labels, or a pattern in names.",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="P", help="Be unsure below this probability, in place of --error-rate.")
    ] = None,
    error_rate: Annotated[
        float | None, typer.Option(help="Share of wrong answers that is allowed; 0.05 if neither is given.")
    ] = None,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; 0: threads of this one.")] = 0,
    device: ComputeDevice = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no features for the next time.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict classes from few labels, by a calibrated classifier on the features.

    How good it is by cross-validation is said first. It is unsure where too many of its answers would be wrong.

    Examples:
        byol classify run labelled photos --out predictions.csv
        byol classify run photos photos --labels labels.csv --out predictions.csv
        byol classify run labelled photos --error-rate 0.01 --out predictions.csv --json
    """
    if threshold is not None and error_rate is not None:
        fail("--threshold and --error-rate each say when to be unsure; give one of them")
    if threshold is not None and not 0 <= threshold <= 1:
        fail(f"--threshold {threshold:g} is no probability; use a number from 0 to 1")
    if error_rate is not None and not 0 < error_rate < 1:
        fail(f"--error-rate {error_rate:g} is not possible; use a number between 0 and 1, such as 0.05")
    if out.suffix.lower() != ".csv":
        fail(f"{out} does not end in .csv; name the file of predictions, such as predictions.csv")
    if not (run / "backbone.json").is_file():
        fail(f"{run} holds no backbone.json; is it the --out of a finished pretrain?")
    for place in (labelled, new, labels):
        if place is not None:
            must_exist(place)
    for file in (out, out.with_suffix(".json"), out.with_suffix(".png")):
        if file.exists():
            fail(f"{file} exists already; choose another --out, or delete it")
    from byol.classify import learn, opened, predict
    from byol.console import Terminal, learned_lines, predicted_lines, stdout
    from byol.data.places import cache_directory
    from byol.evaluate.cache import FeatureCache

    features = None if no_cache else FeatureCache(cache_directory())
    with Terminal() as terminal:
        task = opened(run, labelled, new, labels=labels, groups=groups, say=terminal.say)
        learned = learn(
            task,
            threshold=threshold,
            error_rate=0.05 if error_rate is None else error_rate,
            seed=seed,
            workers=workers,
            device=None if device is None else device.value,
            features=features,
            observer=terminal,
        )
    if not as_json:
        for line in learned_lines(learned.found):
            stdout.print(line, markup=False)
    with Terminal() as terminal:
        found = predict(learned, out, features=features, observer=terminal)
    if as_json:
        print_json(found)
    else:
        for line in predicted_lines(found):
            stdout.print(line, markup=False)
