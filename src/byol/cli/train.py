"""Commands that train, and that say beforehand what training would be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from byol.cli.help import SELDOM
from byol.cli.shared import (
    DATA_HELP,
    Accumulate,
    AsJson,
    AutoBatch,
    Backbone,
    BatchSize,
    Channels,
    Data,
    Epochs,
    ImageSize,
    Labels,
    Method,
    PrecisionName,
    Recipe,
    Seed,
    Settings,
    Steps,
    Tile,
    TrainDevice,
    Workers,
    fail,
    must_exist,
    options_of,
    print_json,
    repeat_of,
    seconds_of,
    taken,
)
from byol.launch import launched_rank, restarted


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write into.")] = Path("byol-demo"),
    seed: Seed = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, show_default="1100", help="Fewer steps, for a quick look.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train BYOL on 4,000 real digits and show what it gained.

    It sees no label while it trains; raw pixels and the untrained network stand beside it. Takes minutes.

    Examples:
        byol demo
        byol demo --steps 200 --out quick-look
        byol demo --quiet --json > result.json
    """
    if taken(out):
        fail(f"{out} exists already; choose another --out")
    from byol.console import Terminal, evaluation_table, stdout
    from byol.demo import demo as run_demo

    with Terminal() as terminal:
        found = run_demo(out, terminal, seed=seed, steps=steps)
    if as_json:
        print_json(found)
        return
    stdout.print(evaluation_table(found))
    stdout.print(
        f"The network saw no label while it trained. A page to look at: {out}/report.html. Pictures: {out}/views.png "
        f"(what it saw), {out}/training.png, {out}/results.png. The backbone: {out}/backbone.safetensors."
    )


def pretrain(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help=DATA_HELP, metavar="DATA", show_default=False)] = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory to write the run into.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="run.json", help="Repeat that run exactly, but for what is given beside it."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; larger --epochs or --steps extend it.")
    ] = False,
    recipe: Recipe = None,
    method: Method = None,
    backbone: Backbone = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="WEIGHTS", help="Start from a run, a .safetensors file or timm:NAME.TAG."),
    ] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="As many steps as fit into 90s, 30m, 8h or 2d.")
    ] = None,
    batch_size: BatchSize = None,
    auto_batch: AutoBatch = False,
    accumulate: Accumulate = 1,
    image_size: ImageSize = None,
    channels: Channels = None,
    base_lr: Annotated[
        float | None,
        typer.Option(rich_help_panel=SELDOM, show_default="the method's", help="Learning rate for 256 images a step."),
    ] = None,
    seed: Seed = 0,
    workers: Workers = None,
    precision: PrecisionName = None,
    device: TrainDevice = None,
    labels: Labels = None,
    tile: Tile = None,
    hold_out: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=SELDOM,
            show_default="0.05",
            help="Share of images never trained on, for diagnosis; 0 for none.",
        ),
    ] = None,
    stop_on_collapse: Annotated[
        bool,
        typer.Option("--stop-on-collapse", rich_help_panel=SELDOM, help="Stop when the embedding collapses."),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=SELDOM, show_default="2", help="Checkpoints to keep, the last so many."),
    ] = None,
    max_bad: Annotated[
        float | None,
        typer.Option(rich_help_panel=SELDOM, show_default="0.1", help="Share of unusable images that stops the run."),
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", rich_help_panel=SELDOM, help="Leave out RUN/report.html, a page to look at.")
    ] = False,
    settings: Settings = None,
    wandb: Annotated[
        str | None,
        typer.Option(metavar="PROJECT", help="Log to Weights & Biases too; ENTITY/PROJECT for a team's."),
    ] = None,
    replay: Annotated[
        tuple[Path, int] | None,
        typer.Option(
            metavar="RUN STEP",
            rich_help_panel=SELDOM,
            help="Train nothing: draw a step's batch again, and show what it does.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a backbone on images without labels.

    Only DATA and --out are needed; the rest follows from the data, is printed first and written to DIR/run.json.

    Examples:
        byol pretrain photos --out run
        byol pretrain photos --out run --budget 30m --method vicreg
        byol pretrain photos --out run --resume --epochs 400    # longer
        byol pretrain --config run/run.json --out again --seed 1
    """
    if replay is not None:
        _replay(*replay, data or None, method, as_json)
        return
    if out is None or not (data or config):
        fail("DATA and --out are needed: what to train on, and the directory to write the run into")
    typed = [name for name in context.params if _is_typed(context, name)]
    given = {
        "backbone": backbone,
        "epochs": epochs,
        "steps": steps,
        "budget": None if budget is None else seconds_of(budget),
        "batch_size": batch_size,
        "auto_batch": auto_batch,
        "accumulate": accumulate,
        "image_size": image_size,
        "channels": channels,
        "base_lr": base_lr,
        "seed": seed,
        "workers": workers,
        "precision": None if precision is None else precision.value,
        "device": None if device is None else device.value,
        "init": init,
        "labels": labels,
        "tile": tile,
        "hold_out": hold_out,
        "stop_on_collapse": stop_on_collapse,
        "keep": keep,
        "max_bad": max_bad,
    }
    given = {name: value for name, value in given.items() if name in typed}
    repeat = None
    if config is not None:
        if recipe is not None:
            fail("--config and --recipe each say what to start from; give one of them")
        repeat = repeat_of(config, method, exactly=not (given or settings or data), elsewhere=bool(data))
        options = options_of(method, None, settings, start=repeat.options(), **given)
        data = data or repeat.run.data
    else:
        options = options_of(method, recipe, settings, **given)
    options = replace(options, fixed=(*typed, *(setting.partition("=")[0] for setting in settings or ())))
    if wandb is not None:
        from byol.dashboard import check_project

        check_project(wandb)
    must_exist(data)
    resume = resume or (restarted() and (out / "run.json").is_file())
    if resume and not (out / "run.json").is_file():
        fail(f"{out} holds no run.json to resume from; leave out --resume to start a run there")
    if not resume and taken(out):
        hint = " or add --resume" if (out / "run.json").is_file() else ""
        fail(f"{out} exists already; choose another --out{hint}")
    from byol.console import Terminal, stderr
    from byol.pipeline import facts_for_json
    from byol.report import pretrain as run_pretrain

    with Terminal() as terminal:
        run = run_pretrain(
            data, out, options, resume=resume, repeat=repeat, wandb=wandb, report=not no_report, observer=terminal
        )
    if launched_rank() > 0:
        return
    if as_json:
        print_json(facts_for_json(run, out) | ({} if repeat is None else {"differs": repeat.differs(run)}))
    else:
        stderr.print(f"The backbone is {out}/backbone.safetensors; `byol evaluate {out} LABELLED` says how good it is.")


def estimate(
    data: Data,
    method: Method = None,
    backbone: Backbone = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    auto_batch: AutoBatch = False,
    accumulate: Accumulate = 1,
    image_size: ImageSize = None,
    channels: Channels = None,
    workers: Workers = None,
    precision: PrecisionName = None,
    device: TrainDevice = None,
    recipe: Recipe = None,
    tile: Tile = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say what `byol pretrain` with the same options would take: memory, time, disk.

    Tries some steps on the data and writes nothing.

    Examples:
        byol estimate photos
        byol estimate photos --backbone resnet50 --epochs 300 --auto-batch
        byol estimate photos --recipe byol_imagenet_300 --json
    """
    options = options_of(
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
        fail("an estimate is of a number of steps, which a budget is not; give --epochs or --steps")
    must_exist(data)
    from byol.console import Terminal, grid, stdout
    from byol.estimate import estimate as run_estimate

    with Terminal() as terminal:
        found, lines = run_estimate(data, options, terminal)
    if as_json:
        print_json(found)
    else:
        stdout.print(grid(lines))


def views(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture to write.")] = Path("views.png"),
    method: Method = None,
    recipe: Recipe = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    tile: Tile = None,
    settings: Settings = None,
    seed: Seed = 0,
    images: Annotated[int, typer.Option(min=1, max=32, help="How many images.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Draw what the network will see: pairs of views.

    Examples:
        byol views photos
        byol views photos --method moco --images 4 --out views.pdf
        byol views photos --set view.crop_area="(0.5, 1)" --set view.blur=0
    """
    options = options_of(method, recipe, settings, image_size=image_size, channels=channels, tile=tile, seed=seed)
    if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        fail(f"{out} has no ending that says what kind of picture; use .png, .jpg, .pdf or .svg")
    must_exist(data)
    from byol.console import stderr
    from byol.pipeline import views_sheet

    written = views_sheet(data, out, options, num_images=images)
    if as_json:
        print_json({"picture": str(written)})
    else:
        stderr.print(f"Written to {written}.")


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _replay(run: Path, step: int, data: str | None, method: str | None, as_json: bool) -> None:
    if not (run / "run.json").is_file():
        fail(f"{run} holds no run.json; name the --out of a pretrain")
    if data is not None:
        must_exist(data)
    from byol.console import Terminal, grid, stdout
    from byol.replay import replay

    with Terminal(plan=False) as terminal:
        found, lines = replay(run, step, data, terminal, method)
    if as_json:
        print_json(found)
    else:
        stdout.print(grid(lines))
