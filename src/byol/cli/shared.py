"""What the commands share: the application, options that mean the same everywhere, and how mistakes are said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from byol import names
from byol.cli.help import SELDOM, Group, be_quiet
from byol.files import is_free

app = typer.Typer(
    name="byol",
    cls=Group,
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
    __: Annotated[
        bool, typer.Option("--quiet", "-q", callback=be_quiet, help="Nothing on stderr but warnings and errors.")
    ] = False,
) -> None:
    """From a folder of unlabelled images to a proven self-supervised backbone.

    `byol COMMAND --help` shows a command's options, their defaults, and examples. Exit codes: 0 done, 1 stopped for a
    reason that is said, 2 a mistake in what was asked for; 130, 138 and 143 after Ctrl-C, SIGUSR1 and SIGTERM.
    """


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


DATA_HELP = "A folder; a .parquet, .tar, .npy or .npz file; a URL of shards; hf:OWNER/NAME; or `digits`."
Data = Annotated[str, typer.Argument(help=DATA_HELP, show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write the run into.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Everything random follows from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Method = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default="byol", help="See `byol list methods`; your own: module:Class."),
]
Recipe = Annotated[
    str | None, typer.Option(metavar="NAME", help="Settings of a published run; see `byol list recipes`.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting: tau=0.99, optimizer=lars, view.flip=0. May be repeated."
    ),
]
Labels = Annotated[
    str | None, typer.Option(metavar="FILE.csv", help="A .csv or .tsv file that names each image's label.")
]
Tile = Annotated[int | None, typer.Option(min=8, metavar="PX", help="Cut large images into tiles of this side.")]
AutoBatch = Annotated[
    bool,
    typer.Option("--auto-batch", help="The largest batch that fits; the recipe's learning rate moves with it."),
]
Channels = Annotated[
    int | None,
    typer.Option(
        min=1,
        rich_help_panel=SELDOM,
        show_default="the data's",
        help="1 or 3 convert 8-bit images, another number takes those that have so many.",
    ),
]
ImageSize = Annotated[
    int | None, typer.Option(min=8, metavar="PX", show_default="the data's, at most 224", help="Size of the views.")
]
Backbone = Annotated[
    str | None,
    typer.Option(metavar="TIMM_NAME", show_default="follows the views' size", help="See `byol list backbones`."),
]
Epochs = Annotated[
    float | None,
    typer.Option(show_default="100, more for few images", help="Passes over the images."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps, in place of --epochs.")]
BatchSize = Annotated[
    int | None, typer.Option(min=2, show_default="follows the data", help="Images in one forward pass.")
]
Accumulate = Annotated[int, typer.Option(min=1, rich_help_panel=SELDOM, help="Forward passes in one step.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        rich_help_panel=SELDOM,
        show_default="free cores",
        help="Processes that decode large images; 0: threads of this one.",
    ),
]
PrecisionName = Annotated[
    Precision | None,
    typer.Option(
        rich_help_panel=SELDOM, show_default="bf16 where it is faster, else 32", help="Of the networks' arithmetic."
    ),
]
TrainDevice = Annotated[Device | None, typer.Option(show_default="a GPU if there is one", help="Where to train.")]
ComputeDevice = Annotated[Device | None, typer.Option(show_default="a GPU if there is one", help="Where to compute.")]
Test = Annotated[str | None, typer.Option(metavar="DATA", help="Data to test on; else the test part, or a fifth.")]


def check_method(name: str) -> None:
    try:
        names.method_arguments(name)
    except ValueError as error:
        fail(str(error))


def options_of(
    method: str | None, recipe: str | None, settings: list[str] | None, start: Any = None, **given: Any
) -> Any:
    """The recipe's options, or those to start from, with what was given on the command line in place of their own."""
    from byol.experiments import RECIPES
    from byol.options import BATCH, Options

    if recipe is not None and recipe not in RECIPES:
        fail(names.unknown("recipe", recipe, RECIPES))
    if method is not None:
        check_method(method)
    options = start or (RECIPES[recipe]() if recipe else Options(method=method or "byol"))
    if start is not None and method not in (None, start.method):
        options = start.for_method(str(method))
    if method not in (None, options.method):
        fail(f"{recipe} is a recipe of {options.method}; leave out --method {method}")
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
        options = replace(options, **lengths, extended=(), replan=None)
    if given.get("backbone") is not None:
        options = replace(options, backbone_args=None, stem=None)
    if given.get("auto_batch"):
        if batch_given or batch:
            fail("--auto-batch and a batch size each say how large batches are; give one of them")
        options = replace(options, fixed=(*given, *(s.partition("=")[0] for s in settings or ())))
    return options.with_settings(s for s in settings or () if s not in batch).checked()


def repeat_of(config: Path, method: str | None, *, exactly: bool, elsewhere: bool) -> Any:
    """The run of a run.json, or of the directory that holds one, to be done again."""
    from byol.repeat import Repeat, check_trusted
    from byol.run import RUN, Run

    path = config / RUN if config.is_dir() else config
    if not path.is_file():
        fail(f"{path} does not exist; give the {RUN} of a run, or its directory")
    run = Run.read(path)
    if method is None or method == run.method:
        check_trusted(run, method)
    else:
        exactly = False
    return Repeat(path, run, exactly=exactly, elsewhere=elsewhere)


def must_exist(data: str) -> None:
    if data != "digits" and not Path(data).exists() and not re.search(r"[*{]|^hf:|://", data):
        from byol.data.open import open_source

        open_source(data)  # says what is wrong with it, and the nearest name


def seconds_of(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        fail(f"budget {text!r} is not a time such as 90s, 30m, 8h or 2d")


def taken(out: Path) -> bool:
    return not is_free(out)


def fail(line: str) -> NoReturn:
    raise typer.BadParameter(line)


def print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found))
