"""The command that writes a backbone for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from byol import names
from byol.cli.shared import AsJson, fail, print_json


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    format: Annotated[  # noqa: A002
        str, typer.Option("--format", help=f"One of {', '.join(names.FORMATS)}.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory to write into; RUN/export/FORMAT by default.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="SPDX", help="The weights' licence for the card, e.g. Apache-2.0.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the backbone for timm, Hugging Face, torchvision, ONNX or torch.export.

    They need nothing of this package. A model card comes along, and the features that come out are compared with the
    encoder's once it is written.

    Examples:
        byol export run --format timm
        byol export run --format huggingface --out my-backbone --licence Apache-2.0
        byol export run --format onnx --json
    """
    try:
        names.check_format(format)
        licence = None if licence is None else names.licence(licence)
    except ValueError as error:
        fail(str(error))
    if not (run / "backbone.json").is_file():
        fail(f"{run} holds no backbone.json; is it the --out of a finished pretrain?")
    from byol.console import Terminal, stdout
    from byol.formats import export as run_export

    with Terminal() as terminal:
        found = run_export(run, format, out, licence=licence, observer=terminal)
    if as_json:
        print_json(found)
    else:
        stdout.print(
            f"Written to {found['out']}; its features differ by {found['relative_difference']:.0e} at most, relative. "
            f"{found['card']} says how to load it.",
            markup=False,
        )
