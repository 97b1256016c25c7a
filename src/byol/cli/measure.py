"""Commands that measure: one backbone, methods side by side, BYOL taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from byol import names
from byol.cli.help import SELDOM
from byol.cli.shared import (
    AsJson,
    Backbone,
    BatchSize,
    ComputeDevice,
    Data,
    ImageSize,
    Labels,
    Out,
    Seed,
    Settings,
    Test,
    TrainDevice,
    check_method,
    fail,
    must_exist,
    options_of,
    print_json,
    seconds_of,
    taken,
)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Argument(
            help="Labelled data: a folder, a .parquet, .npy or .npz file, or `digits`. Several: one after the other.",
            show_default=False,
        ),
    ],
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="knn, linear, fewshot, views",
            help="knn, linear (L-BFGS), fewshot, linear-sgd, finetune, semi, transfer (linear, a row a source) or "
            "views (no labels needed). May be repeated.",
        ),
    ] = None,
    test: Test = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.csv|AMOUNT",
            help="A file that names each image's label; or, for semi, how many labels: 1%,10% or a number per class, "
            "or a .txt list of images. May be repeated.",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|REGEX",
            help="What belongs together (a patient, a flight): a column of the labels, or a pattern in names.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="top1",
            help="top1, mean-per-class, or map (11 points; several labels an image): once, or for each DATA.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="raw pixels, untrained",
            help="To stand beside it: supervised (from scratch on the same labels), another run, timm:NAME.TAG, or "
            "NAME=FILE.safetensors; none leaves out the two. May be repeated.",
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Labels per class in few-shot evaluation.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=SELDOM, help="Of linear-sgd; 80 in the paper.")] = 80,
    full_grid: Annotated[
        bool, typer.Option("--full-grid", rich_help_panel=SELDOM, help="The papers' whole grids for finetune and semi.")
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, rich_help_panel=SELDOM, help="Fits of linear-sgd, finetune and semi.")
    ] = 1,
    suggest: Annotated[int | None, typer.Option(min=1, help="Name so many images worth labelling first.")] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, rich_help_panel=SELDOM, help="Processes that decode large images; 0: threads of this one."),
    ] = 0,
    device: ComputeDevice = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", rich_help_panel=SELDOM, help="Keep no features for the next time.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a run's backbone on images, with labels or without.

    Raw pixels and the same network untrained stand beside it, under the same protocols.

    Examples:
        byol evaluate run labelled
        byol evaluate run photos --suggest 50
        byol evaluate run labelled --protocol semi --labels 1%,10% --baseline supervised
        byol evaluate run flowers cars --protocol transfer --json
    """
    known = (*names.PROTOCOLS, "transfer", "views")
    for name in protocol or ():
        if name not in known:
            fail(names.unknown("protocol", name, known))
    for name in metric or ():
        if name not in names.METRICS:
            fail(names.unknown("metric", name, names.METRICS))
    if metric and len(metric) not in (1, len(data)):
        fail(f"--metric is given {len(metric)} times for {len(data)} sources; give it once, or once for each")
    if not (run / "backbone.json").is_file():
        fail(f"{run} holds no backbone.json; is it the --out of a finished pretrain?")
    files = [each for each in labels or () if each.lower().endswith((".csv", ".tsv"))]
    if len(files) > 1:
        fail(f"--labels names two label files, {files[0]} and {files[1]}; put them into one")
    for place in (*data, test, *files):
        if place is not None:
            must_exist(place)
    from byol.console import Terminal, evaluation_tables, stdout
    from byol.data.places import cache_directory
    from byol.evaluate.cache import FeatureCache
    from byol.evaluate.protocols import Settings
    from byol.evaluate.subsets import parse_amounts
    from byol.evaluation import evaluate_sources

    wanted = [each for each in labels or () if each not in files]
    if wanted and "semi" not in (protocol or ()):
        fail(f"--labels {wanted[0]} is an amount for --protocol semi; add it, or name a .csv file of labels")
    settings = Settings(
        protocols=tuple(protocol or ()),
        seed=seed,
        seeds=seeds,
        shots=shots,
        epochs=epochs,
        full_grid=full_grid,
        workers=workers,
        device=device.value if device is not None else None,
        amounts=parse_amounts(",".join(wanted)) if wanted else Settings.amounts,
    )
    with Terminal() as terminal:
        found, failed = evaluate_sources(
            run,
            data,
            metrics=tuple(metric or ()),
            test=test,
            settings=settings,
            labels=files[0] if files else None,
            groups=groups,
            baselines=tuple(baseline or ()),
            suggest=suggest,
            features=None if no_cache else FeatureCache(cache_directory()),
            observer=terminal,
        )
        page = _page(run, terminal)
    if as_json:
        print_json(found[0] if len(found) == 1 else {"sources": found})
    else:
        for table in evaluation_tables(found):
            stdout.print(table)
        drawn = ", ".join(picture for each in found for picture in each["pictures"])
        stdout.print(f"Written to {run}/evaluation.json{page}" + (f"; pictures beside it: {drawn}." if drawn else "."))
    if failed is not None:
        raise failed


def compare(
    data: Data,
    out: Out,
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES", show_default="all", help="With commas between: methods, recipes, or your own module:Class."
        ),
    ] = ",".join(names.METHODS),
    steps: Annotated[int | None, typer.Option(min=1, help="Equal steps: one table.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", show_default="5m without --steps", help="Equal time, e.g. 30m: one table."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method; 2 and more give intervals.")] = 3,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A recipe whose network, batch and views all methods get.")
    ] = None,
    own_views: Annotated[bool, typer.Option("--own-views", help="Each method's own views, for the same ones.")] = False,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    backbone: Backbone = None,
    device: TrainDevice = None,
    labelled: Annotated[
        str | None, typer.Option(metavar="DATA", show_default="DATA itself", help="Labelled data to evaluate on.")
    ] = None,
    labels: Labels = None,
    test: Test = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train and evaluate several methods alike, and show them in one table and one plot.

    Each brings its own optimizer, learning rate and arguments; data, views, network, batch and length are the same.

    Examples:
        byol compare labelled --out comparison
        byol compare labelled --out comparison --methods byol,vicreg,simclr --steps 1000
        byol compare photos --out comparison --labelled labelled --budget 30m --seeds 2
    """
    from byol.experiments import RECIPES

    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    if not chosen:
        fail("--methods names none; see `byol list methods`")
    if twice := next((name for name in chosen if chosen.count(name) > 1), None):
        fail(f"--methods names {twice} twice")
    for name in chosen:
        if name not in RECIPES:
            check_method(name)
    for setting in settings or ():
        if (field := setting.partition("=")[0]) in ("epochs", "steps", "budget", "seed"):
            fail(f"{field} is the same for all; leave out --set {setting} and use --steps, --budget or --seeds")
    common = options_of(
        None,
        recipe,
        None,
        batch_size=batch_size,
        image_size=image_size,
        backbone=backbone,
        labels=labels,
        device=None if device is None else device.value,
    )
    seconds = None if budget is None and steps is not None else seconds_of(budget or "5m")
    for place in (data, labelled, test):
        if place is not None:
            must_exist(place)
    if not resume and taken(out):
        fail(f"{out} exists already; choose another --out, or add --resume to go on with it")
    from byol import compare as comparing
    from byol.console import Terminal, comparison_table, stdout

    lengths = {} if steps is None else {"steps": comparing.Length(steps=steps)}
    lengths |= {} if seconds is None else {"minutes": comparing.Length(budget=seconds)}
    contenders = [comparing.contender(name, common, settings or (), own_views=own_views) for name in chosen]
    with Terminal() as terminal:
        result = comparing.compare(
            data,
            out,
            contenders,
            lengths,
            seeds=seeds,
            labelled=labelled,
            test=test,
            resume=resume,
            observer=terminal,
        )
    if as_json:
        print_json(result)
        return
    for length in lengths:
        found = comparing.rows(result, length, intervals=comparing.ACCURACIES)
        stdout.print(comparison_table(comparing.title(result, length), comparing.MEASURES, found))
    drawn = ", ".join(f"{out}/{length}.png" for length in lengths)
    note = (
        "± is half the 95 % interval of the mean over seeds; the other columns' are in the file. " if seeds > 1 else ""
    )
    stdout.print(f"{note}Tables: {out}/compare.md; plots: {drawn}.")


def ablate(
    name: Annotated[str, typer.Argument(help="An experiment; see `byol list experiments`.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="With labels: a folder of folders, a .parquet or .npz file, or `digits`."),
    ] = "digits",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Directory for runs and results; experiments share it.")
    ] = Path("byol-ablate"),
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="digits_minute for `digits`", help="What all runs share."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, show_default="the recipe's", help="Length of each run, in optimizer steps.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="The same in passes over the images.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm; intervals and verdicts need 2 and more.")] = 5,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    device: TrainDevice = None,
    processes: Annotated[
        int | None, typer.Option(min=1, show_default="one a core, or one a GPU", help="Runs side by side.")
    ] = None,
    labels: Labels = None,
    labelled: Annotated[
        str | None, typer.Option(metavar="DATA", show_default="the data itself", help="Labelled data to evaluate on.")
    ] = None,
    test: Test = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Print runs, claims and predicted time, and stop.")] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of the BYOL paper: one thing changed at a time, beside its numbers.

    Results stand in DIR/runs.jsonl; the same command goes on where it was interrupted.

    Examples:
        byol ablate collapse --plan
        byol ablate tau --seeds 3 --out taken-apart
        byol ablate target --data labelled --epochs 20 --seeds 2
    """
    from byol.experiments.paper import EXPERIMENTS

    if name not in EXPERIMENTS:
        fail(names.unknown("experiment", name, EXPERIMENTS))
    for setting in settings or ():
        if (field := setting.partition("=")[0]) in ("budget", "seed"):
            fail(f"{field} is the same for all runs of a list; leave out --set {setting} and use --steps or --seeds")
    recipe = recipe or ("digits_minute" if data == "digits" else None)
    base = options_of(
        None,
        recipe,
        settings,
        steps=steps,
        epochs=epochs,
        backbone=backbone,
        image_size=image_size,
        labels=labels,
        device=None if device is None else device.value,
    )
    if base.method != "byol":
        fail(f"{recipe} is a recipe of {base.method}; an experiment takes BYOL apart")
    make = EXPERIMENTS[name]
    make(base)  # says what is missing
    for place in (data, labelled, test):
        if place is not None:
            must_exist(place)
    from byol import ablate as ablating
    from byol.console import Terminal, ablation_tables, plan_table, stdout

    common: dict[str, Any] = {"seeds": seeds, "processes": processes, "labelled": labelled, "test": test}
    if only_plan:
        experiment, rows, left = ablating.prediction(make, data, out, base, **common)
        if as_json:
            keys = ("arm", "runs", "seconds_a_run", "done")
            found = [dict(zip(keys, row, strict=True)) for row in rows]
            print_json({"claims": [c.words for c in experiment.claims], "runs": found, "seconds_left": left})
            return
        stdout.print(plan_table(experiment, rows, left))
        return
    with Terminal(plan=False) as terminal:
        result = ablating.ablate(make, data, out, base, observer=terminal, **common)
    if as_json:
        print_json(result)
        return
    for table in ablation_tables(result):
        stdout.print(table)
    stdout.print(f"Tables: {out}/{name}.md; plot: {out}/{name}.png; every run: {out}/{ablating.RECORD}.")
    if result["failed"]:
        stdout.print(f"{len(result['failed'])} runs failed; the same command tries them again.")


def _page(run: Path, observer: Any) -> str:
    """Write the run's page anew; what to say of it."""
    from byol.report import REPORT, write_page

    try:
        return f" and {write_page([run], run / REPORT)}"
    except (ValueError, OSError) as error:  # the numbers are there all the same
        observer.warn(f"{REPORT} was not written: {error}")
        return ""
