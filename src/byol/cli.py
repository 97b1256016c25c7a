"""The command line. Thin, and quick to answer: nothing heavy is imported before the options are known to be right."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from byol import names
from byol.files import is_free
from byol.launch import is_first_here, launched, launched_rank, restarted

SHARED = ("pretrain", "embed")
"""Commands that several processes do together."""

app = typer.Typer(
    name="byol",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # the plain help needs no import of Rich, half of the time to answer
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"byol {version('byol')}")
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From a folder of unlabelled images to a proven self-supervised backbone."""


class Precision(StrEnum):
    bf16 = "bf16"
    float32 = "32"
    float64 = "64"


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class Part(StrEnum):
    train = "train"
    test = "test"
    all = "all"


class Kind(StrEnum):
    methods = "methods"
    backbones = "backbones"
    recipes = "recipes"
    experiments = "experiments"


DATA_HELP = "A folder of images, a .parquet, .tar, .npy or .npz file, a URL of shards, hf:OWNER/NAME, or `digits`."
Data = Annotated[str, typer.Argument(help=DATA_HELP, show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="Directory to write the run into.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Everything random follows from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Method = Annotated[str | None, typer.Option(help="byol by default; see `byol list methods`. Your own: module:Class.")]
Recipe = Annotated[str | None, typer.Option(help="A published recipe; see `byol list recipes`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, e.g. tau=0.99, optimizer=lars, view.flip=0."),
]
Labels = Annotated[
    str | None, typer.Option(metavar="FILE.csv", help="A .csv or .tsv file that names each image's label.")
]
Tile = Annotated[int | None, typer.Option(min=8, metavar="PX", help="Cut large images into tiles of this side.")]
AutoBatch = Annotated[
    bool,
    typer.Option("--auto-batch", help="The largest batch that fits; the recipe's learning rate and such move with it."),
]
Channels = Annotated[
    int | None,
    typer.Option(min=1, help="Of the images: 1 or 3 convert 8-bit ones, another number takes those that have so many."),
]
ImageSize = Annotated[int | None, typer.Option(min=8, help="Size of the views, px.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write into.")] = Path("byol-demo"),
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps, for a quick look.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train BYOL on 4,000 real digits and show what it gained.

    It sees no label while it trains; raw pixels and the untrained network stand beside it. Takes minutes.
    """
    if _taken(out):
        _fail(f"{out} exists already; choose another --out")
    from byol.console import Terminal, evaluation_table, stdout
    from byol.demo import demo as run_demo

    with Terminal() as terminal:
        found = run_demo(out, terminal, seed=seed, steps=steps)
    if as_json:
        _print_json(found)
        return
    stdout.print(evaluation_table(found))
    stdout.print(
        f"The network saw no label while it trained. Pictures: {out}/views.png (what it saw), {out}/training.png, "
        f"{out}/results.png. The backbone: {out}/backbone.safetensors."
    )


@app.command()
def pretrain(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help=DATA_HELP, metavar="DATA", show_default=False)] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Directory to write the run into.")] = None,
    method: Method = None,
    backbone: Annotated[str | None, typer.Option(metavar="TIMM_NAME", help="See `byol list backbones`.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How long to train, in passes over the images.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long to train, in optimizer steps.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long to train, about, e.g. 90s, 30m, 8h or 2d.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images in one forward pass.")] = None,
    auto_batch: AutoBatch = False,
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes in one step.")] = 1,
    image_size: ImageSize = None,
    channels: Channels = None,
    base_lr: Annotated[float | None, typer.Option(help="Learning rate for 256 images a step.")] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode large images; 0: threads of this one.")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of the networks' arithmetic.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    recipe: Recipe = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN|FILE|timm:NAME.TAG", help="Weights the encoder starts from.")
    ] = None,
    labels: Labels = None,
    tile: Tile = None,
    hold_out: Annotated[
        float | None, typer.Option(help="Share of images never trained on, for diagnosis; 0 for none. 0.05 by default.")
    ] = None,
    stop_on_collapse: Annotated[
        bool, typer.Option("--stop-on-collapse", help="Stop when the embedding collapses.")
    ] = False,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Checkpoints to keep, the last so many; 2 by default.")
    ] = None,
    max_bad: Annotated[
        float | None, typer.Option(help="Share of unusable images that stops the run; 0.1 by default.")
    ] = None,
    settings: Settings = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint in --out; larger --epochs or --steps extend it."),
    ] = False,
    replay: Annotated[
        tuple[Path, int] | None,
        typer.Option(metavar="RUN STEP", help="Train nothing: draw a step's batch again, and show what it does."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a backbone on images without labels. Only DATA and --out are needed; the rest follows from the data.

    Exit codes: 0 done, 1 stopped for a reason that is said, 2 a mistake in what was asked for; 130, 138 and 143 after
    Ctrl-C, SIGUSR1 and SIGTERM, with the state saved for --resume.
    """
    if replay is not None:
        _replay(*replay, data or None, method, as_json)
        return
    if not data or out is None:
        _fail("DATA and --out are needed: what to train on, and the directory to write the run into")
    typed = [name for name in context.params if _is_typed(context, name)]
    options = _options(
        method,
        recipe,
        settings,
        backbone=backbone,
        epochs=epochs,
        steps=steps,
        budget=None if budget is None else _seconds(budget),
        batch_size=batch_size,
        auto_batch=auto_batch or None,
        accumulate=None if accumulate == 1 else accumulate,
        image_size=image_size,
        channels=channels,
        base_lr=base_lr,
        seed=seed,
        workers=workers,
        precision=None if precision is None else precision.value,
        device=None if device is None else device.value,
        init=init,
        labels=labels,
        tile=tile,
        hold_out=hold_out,
        stop_on_collapse=stop_on_collapse,
        keep=keep,
        max_bad=max_bad,
    )
    options = replace(options, fixed=(*typed, *(setting.partition("=")[0] for setting in settings or ())))
    _must_exist(data)
    resume = resume or (restarted() and (out / "run.json").is_file())
    if resume and not (out / "run.json").is_file():
        _fail(f"{out} holds no run.json to resume from; leave out --resume to start a run there")
    if not resume and _taken(out):
        hint = " or add --resume" if (out / "run.json").is_file() else ""
        _fail(f"{out} exists already; choose another --out{hint}")
    from byol.console import Terminal, stderr
    from byol.pipeline import facts_for_json
    from byol.pipeline import pretrain as run_pretrain

    with Terminal() as terminal:
        run = run_pretrain(data, out, options, resume=resume, observer=terminal)
    if launched_rank() > 0:
        return
    if as_json:
        _print_json(facts_for_json(run, out))
    else:
        stderr.print(f"The backbone is {out}/backbone.safetensors; `byol evaluate {out} LABELLED` says how good it is.")


@app.command()
def estimate(
    data: Data,
    method: Method = None,
    backbone: Annotated[str | None, typer.Option(metavar="TIMM_NAME", help="See `byol list backbones`.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How long to train, in passes over the images.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long to train, in optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images in one forward pass.")] = None,
    auto_batch: AutoBatch = False,
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes in one step.")] = 1,
    image_size: ImageSize = None,
    channels: Channels = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode large images; 0: threads of this one.")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of the networks' arithmetic.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    recipe: Recipe = None,
    tile: Tile = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say what `byol pretrain` with the same options would take: FLOPs, memory, images/s, time, disk.

    Tries some steps on the data and writes nothing.
    """
    options = _options(
        method,
        recipe,
        settings,
        backbone=backbone,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        auto_batch=auto_batch or None,
        accumulate=None if accumulate == 1 else accumulate,
        image_size=image_size,
        channels=channels,
        workers=workers,
        precision=None if precision is None else precision.value,
        device=None if device is None else device.value,
        tile=tile,
    )
    if options.budget is not None:
        _fail("an estimate is of a number of steps, which a budget is not; give --epochs or --steps")
    _must_exist(data)
    from byol.console import Terminal, grid, stdout
    from byol.estimate import estimate as run_estimate

    with Terminal() as terminal:
        found, lines = run_estimate(data, options, terminal)
    if as_json:
        _print_json(found)
    else:
        stdout.print(grid(lines))


@app.command()
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
            help="knn, linear (L-BFGS), fewshot, linear-sgd, finetune, semi, transfer (linear, one row a source) or "
            "views (no labels needed); may be repeated. By default knn, linear, fewshot and views."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Data to test on; else the test part of DATA, or a fifth.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="A .csv or .tsv file that names each image's label; or, for --protocol semi, how many labels: 1%,10% "
            "or a number per class, or a .txt list of images. May be repeated."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|REGEX",
            help="What belongs together (a patient, a plate, a flight): a column of the labels, or a pattern in names.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="top1, mean-per-class, or map (11 points; for several labels an image): once, or for each DATA."
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="To stand beside it: supervised (from scratch on the same labels), another run, timm:NAME.TAG, or "
            "NAME=FILE.safetensors; none leaves out raw pixels and the untrained network. May be repeated.",
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Labels per class in few-shot evaluation.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Of linear-sgd; 80 in the paper.")] = 80,
    full_grid: Annotated[
        bool, typer.Option("--full-grid", help="The papers' whole grids for finetune and semi.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of linear-sgd, finetune and semi.")] = 1,
    suggest: Annotated[int | None, typer.Option(min=1, help="Name so many images worth labelling first.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that decode large images; 0: threads of this one.")
    ] = 0,
    device: Annotated[Device | None, typer.Option(help="Where to compute.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no features for the next time.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a run's backbone on images, with labels or without.

    Raw pixels and the same network untrained stand beside it, under the same protocols.
    """
    known = (*names.PROTOCOLS, "transfer", "views")
    for name in protocol or ():
        if name not in known:
            _fail(names.unknown("protocol", name, known))
    for name in metric or ():
        if name not in names.METRICS:
            _fail(names.unknown("metric", name, names.METRICS))
    if metric and len(metric) not in (1, len(data)):
        _fail(f"--metric is given {len(metric)} times for {len(data)} sources; give it once, or once for each")
    if not (run / "backbone.json").is_file():
        _fail(f"{run} holds no backbone.json; is it the --out of a finished pretrain?")
    files = [each for each in labels or () if each.lower().endswith((".csv", ".tsv"))]
    if len(files) > 1:
        _fail(f"--labels names two label files, {files[0]} and {files[1]}; put them into one")
    for place in (*data, test, *files):
        if place is not None:
            _must_exist(place)
    from byol.console import Terminal, evaluation_tables, stdout
    from byol.data.places import cache_directory
    from byol.evaluate.cache import FeatureCache
    from byol.evaluate.protocols import Settings
    from byol.evaluate.subsets import parse_amounts
    from byol.evaluation import evaluate_sources

    wanted = [each for each in labels or () if each not in files]
    if wanted and "semi" not in (protocol or ()):
        _fail(f"--labels {wanted[0]} is an amount for --protocol semi; add it, or name a .csv file of labels")
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
    if as_json:
        _print_json(found[0] if len(found) == 1 else {"sources": found})
    else:
        for table in evaluation_tables(found):
            stdout.print(table)
        drawn = ", ".join(picture for each in found for picture in each["pictures"])
        stdout.print(f"Written to {run}/evaluation.json" + (f"; pictures beside it: {drawn}." if drawn else "."))
    if failed is not None:
        raise failed


@app.command()
def compare(
    data: Data,
    out: Out,
    methods: Annotated[
        str, typer.Option(help="Names with commas between: methods, recipes, or your own module:Class.")
    ] = ",".join(names.METHODS),
    steps: Annotated[int | None, typer.Option(min=1, help="Equal steps: one table.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Equal time, e.g. 5m: one table. 5m where --steps is not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method; 2 and more give intervals.")] = 3,
    recipe: Annotated[str | None, typer.Option(help="A recipe whose network, batch and views all methods get.")] = None,
    own_views: Annotated[bool, typer.Option("--own-views", help="Each method's own views, for the same ones.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images in one forward pass.")] = None,
    image_size: ImageSize = None,
    backbone: Annotated[str | None, typer.Option(metavar="TIMM_NAME", help="See `byol list backbones`.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    labelled: Annotated[str | None, typer.Option(help="Labelled data to evaluate on; DATA itself by default.")] = None,
    labels: Labels = None,
    test: Annotated[str | None, typer.Option(help="Data to test on; else the test part, or a fifth.")] = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train several methods alike, evaluate them alike, and show them in one table and one plot.

    Each brings its own optimizer, learning rate and arguments; data, views, network, batch and length are the same.
    """
    from byol.experiments import RECIPES

    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    if not chosen:
        _fail("--methods names none; see `byol list methods`")
    if twice := next((name for name in chosen if chosen.count(name) > 1), None):
        _fail(f"--methods names {twice} twice")
    for name in chosen:
        if name not in RECIPES:
            _check_method(name)
    for setting in settings or ():
        if (field := setting.partition("=")[0]) in ("epochs", "steps", "budget", "seed"):
            _fail(f"{field} is the same for all; leave out --set {setting} and use --steps, --budget or --seeds")
    common = _options(
        None,
        recipe,
        None,
        batch_size=batch_size,
        image_size=image_size,
        backbone=backbone,
        labels=labels,
        device=None if device is None else device.value,
    )
    seconds = None if budget is None and steps is not None else _seconds(budget or "5m")
    for place in (data, labelled, test):
        if place is not None:
            _must_exist(place)
    if not resume and _taken(out):
        _fail(f"{out} exists already; choose another --out, or add --resume to go on with it")
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
        _print_json(result)
        return
    for length in lengths:
        found = comparing.rows(result, length, intervals=comparing.ACCURACIES)
        stdout.print(comparison_table(comparing.title(result, length), comparing.MEASURES, found))
    drawn = ", ".join(f"{out}/{length}.png" for length in lengths)
    note = (
        "± is half the 95 % interval of the mean over seeds; the other columns' are in the file. " if seeds > 1 else ""
    )
    stdout.print(f"{note}Tables: {out}/compare.md; plots: {drawn}.")


@app.command()
def ablate(
    name: Annotated[str, typer.Argument(help="An experiment; see `byol list experiments`.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(help="A folder with one sub-folder a class, a .parquet or .npz file with labels, or `digits`."),
    ] = "digits",
    out: Annotated[Path, typer.Option("--out", help="Directory for runs and results; experiments share it.")] = Path(
        "byol-ablate"
    ),
    recipe: Annotated[
        str | None, typer.Option(help="What all runs share; digits_minute for `digits`. See `byol list recipes`.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of each run, in place of the recipe's.")] = None,
    epochs: Annotated[float | None, typer.Option(help="The same in passes over the images.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm; intervals and verdicts need 2 and more.")] = 5,
    backbone: Annotated[str | None, typer.Option(metavar="TIMM_NAME", help="See `byol list backbones`.")] = None,
    image_size: ImageSize = None,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; by default one a core, or one a GPU.")
    ] = None,
    labels: Labels = None,
    labelled: Annotated[
        str | None, typer.Option(help="Labelled data to evaluate on; the data itself by default.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Data to test on; else the test part, or a fifth.")] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Print runs, claims and predicted time, and stop.")] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of the BYOL paper: one thing changed at a time, beside the paper's numbers.

    Results stand in OUT/runs.jsonl; the same command goes on where it was interrupted.
    """
    from byol.experiments.paper import EXPERIMENTS

    if name not in EXPERIMENTS:
        _fail(names.unknown("experiment", name, EXPERIMENTS))
    for setting in settings or ():
        if (field := setting.partition("=")[0]) in ("budget", "seed"):
            _fail(f"{field} is the same for all runs of a list; leave out --set {setting} and use --steps or --seeds")
    recipe = recipe or ("digits_minute" if data == "digits" else None)
    base = _options(
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
        _fail(f"{recipe} is a recipe of {base.method}; an experiment takes BYOL apart")
    make = EXPERIMENTS[name]
    make(base)  # says what is missing
    for place in (data, labelled, test):
        if place is not None:
            _must_exist(place)
    from byol import ablate as ablating
    from byol.console import Terminal, ablation_tables, plan_table, stdout

    common: dict[str, Any] = {"seeds": seeds, "processes": processes, "labelled": labelled, "test": test}
    if only_plan:
        experiment, rows, left = ablating.prediction(make, data, out, base, **common)
        if as_json:
            keys = ("arm", "runs", "seconds_a_run", "done")
            found = [dict(zip(keys, row, strict=True)) for row in rows]
            _print_json({"claims": [c.words for c in experiment.claims], "runs": found, "seconds_left": left})
            return
        stdout.print(plan_table(experiment, rows, left))
        return
    with Terminal(plan=False) as terminal:
        result = ablating.ablate(make, data, out, base, observer=terminal, **common)
    if as_json:
        _print_json(result)
        return
    for table in ablation_tables(result):
        stdout.print(table)
    stdout.print(f"Tables: {out}/{name}.md; plot: {out}/{name}.png; every run: {out}/{ablating.RECORD}.")
    if result["failed"]:
        stdout.print(f"{len(result['failed'])} runs failed; the same command tries them again.")


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Directory of the Parquet files.", show_default=False)],
    part: Annotated[Part, typer.Option(help="Of data that have a training and a test part.")] = Part.all,
    tile: Tile = None,
    rows: Annotated[int, typer.Option(min=1, help="Images of a file.")] = 8192,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; 0: threads of this one.")] = 0,
    device: Annotated[Device | None, typer.Option(help="Where to compute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the backbone's features of every image to Parquet files. The same command goes on where it stopped."""
    if not (run / "backbone.json").is_file():
        _fail(f"{run} holds no backbone.json; is it the --out of a finished pretrain?")
    _must_exist(data)
    from byol.console import Terminal, stdout
    from byol.embed import embed as run_embed

    with Terminal() as terminal:
        found = run_embed(
            run,
            data,
            out,
            part=part.value,
            tile=tile or 0,
            rows=rows,
            workers=workers,
            device=None if device is None else device.value,
            observer=terminal,
        )
    if launched_rank() > 0:
        return
    if as_json:
        _print_json(found)
    else:
        stdout.print(
            f"{found['images']:,} images, {found['feature_dim']} features each, in {found['files']} files: {out}."
        )


@app.command()
def views(
    data: Data,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("views.png"),
    method: Method = None,
    recipe: Recipe = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    tile: Tile = None,
    settings: Settings = None,
    seed: Seed = 0,
    images: Annotated[int, typer.Option(min=1, max=32, help="How many images.")] = 8,
) -> None:
    """Draw what the network will see: pairs of views."""
    options = _options(method, recipe, settings, image_size=image_size, channels=channels, tile=tile, seed=seed)
    if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        _fail(f"{out} has no ending that says what kind of picture; use .png, .jpg, .pdf or .svg")
    _must_exist(data)
    from byol.console import stderr
    from byol.pipeline import views_sheet

    stderr.print(f"Written to {views_sheet(data, out, options, num_images=images)}.")


@app.command("list")
def list_names(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """The names that --method, --backbone and --recipe take."""
    if kind is Kind.recipes:
        from byol.experiments import RECIPES

        for name, recipe in RECIPES.items():
            first, _, _ = (recipe.__doc__ or "").partition("\n\n")
            typer.echo(f"{name}: {' '.join(first.split())}")
    elif kind is Kind.experiments:
        from byol.experiments.paper import EXPERIMENTS

        for name, experiment in EXPERIMENTS.items():
            typer.echo(f"{name}: {experiment.__doc__}")
    elif kind is Kind.methods:
        for name in names.METHODS:
            typer.echo(f"{name}: {names.method_summary(name)}")
    else:
        for name in names.backbones():
            typer.echo(name)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _replay(run: Path, step: int, data: str | None, method: str | None, as_json: bool) -> None:
    if not (run / "run.json").is_file():
        _fail(f"{run} holds no run.json; name the --out of a pretrain")
    if data is not None:
        _must_exist(data)
    from byol.console import Terminal, grid, stdout
    from byol.replay import replay

    with Terminal(plan=False) as terminal:
        found, lines = replay(run, step, data, terminal, method)
    if as_json:
        _print_json(found)
    else:
        stdout.print(grid(lines))


def _check_method(name: str) -> None:
    try:
        names.method_arguments(name)
    except ValueError as error:
        _fail(str(error))


def _options(method: str | None, recipe: str | None, settings: list[str] | None, **given: Any) -> Any:
    """The recipe's options, with what was given on the command line in place of its own."""
    from byol.experiments import RECIPES
    from byol.options import BATCH, Options

    if recipe is not None and recipe not in RECIPES:
        _fail(names.unknown("recipe", recipe, RECIPES))
    if method is not None:
        _check_method(method)
    options = RECIPES[recipe]() if recipe else Options(method=method or "byol")
    if method not in (None, options.method):
        _fail(f"{recipe} is a recipe of {options.method}; leave out --method {method}")
    given = {name: value for name, value in given.items() if value is not None}
    # The batch first: what it moves are the recipe's settings, not those given beside it.
    batch = [setting for setting in settings or () if setting.partition("=")[0] in BATCH]
    options = options.with_settings(batch).checked()
    batch_given = "batch_size" in given
    if options.batch_size is not None:
        options = options.at_batch(
            given.pop("batch_size", options.batch_size), given.pop("accumulate", options.accumulate)
        )
    options = replace(options, **given)
    # How long to train, said here, replaces how long the recipe says; so does the backbone, with all its structure.
    lengths: dict[str, Any] = {name: given.get(name) for name in ("epochs", "steps", "budget")}
    if any(value is not None for value in lengths.values()):
        options = replace(options, **lengths)
    if given.get("backbone") is not None:
        options = replace(options, backbone_args=None, stem=None)
    if given.get("auto_batch"):
        if batch_given or batch:
            _fail("--auto-batch and a batch size each say how large batches are; give one of them")
        options = replace(options, fixed=(*given, *(s.partition("=")[0] for s in settings or ())))
    return options.with_settings(s for s in settings or () if s not in batch).checked()


def _must_exist(data: str) -> None:
    if data != "digits" and not Path(data).exists() and not re.search(r"[*{]|^hf:|://", data):
        from byol.data.open import open_source

        open_source(data)  # says what is wrong with it, and the nearest name


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        _fail(f"budget {text!r} is not a time such as 90s, 30m, 8h or 2d")


def _taken(out: Path) -> bool:
    return not is_free(out)


def _fail(line: str) -> NoReturn:
    raise typer.BadParameter(line)


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found))


def main() -> None:
    """Run the command line; what a person can set right is one line on stderr and exit code 2."""
    try:
        if launched()[0] > 1 and sys.argv[1:2] not in ([name] for name in SHARED):
            _fail(
                f"only `byol {'` and `byol '.join(SHARED)}` run in several processes; start this one without a launcher"
            )
        code = app(sys.argv[1:] or ["--help"], prog_name="byol", standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except _UsageError as error:
        if launched_rank() > 0:  # the first of the processes says it
            sys.exit(2)
        _exit(_one_line(error))
    except (ValueError, FileNotFoundError) as error:
        if not _for_people(error):
            raise
        _exit(str(error))
    except OSError as error:  # a place that cannot be written, a full disk
        if error.filename is None:
            raise
        _exit(f"{error.strerror}: {error.filename}")
    except RuntimeError as error:
        from byol.train import TrainingStopped

        if not isinstance(error, TrainingStopped):
            raise
        print(f"byol: {error}", file=sys.stderr)
        sys.exit(error.code)
    sys.exit(code if isinstance(code, int) else 0)


_UsageError: Any = typer.BadParameter.__base__  # Typer carries a Click of its own in some versions


def _one_line(error: Any) -> str:
    """An option error's own text, without Click's "Invalid value" where the text is this module's."""
    command = error.ctx.command_path if error.ctx is not None else ""
    where = f"`{command} --help` lists what there is" if command else ""
    text = error.message if type(error) is typer.BadParameter and error.param is None else error.format_message()
    return f"{text.rstrip('.')}; {where}" if where else text


def _for_people(error: Exception) -> bool:
    """Whether the error was raised by this package, whose messages are written for people."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("byol.")


def _exit(line: str) -> None:
    if not is_first_here():
        from byol.parallel import world_size

        if world_size() == 1:  # they have not met, and all of this machine have the same trouble
            sys.exit(2)
    print(f"byol: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)
