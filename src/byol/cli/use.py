"""Commands that use a trained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from byol.cli.shared import AsJson, ComputeDevice, Data, Part, Tile, fail, must_exist, print_json
from byol.launch import launched_rank


def embed(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Directory of the Parquet files.", show_default=False)
    ],
    part: Annotated[Part, typer.Option(help="Of data that have a training and a test part.")] = Part.all,
    tile: Tile = None,
    rows: Annotated[int, typer.Option(min=1, help="Images of a file.")] = 8192,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; 0: threads of this one.")] = 0,
    device: ComputeDevice = None,
    as_json: AsJson = False,
) -> None:
    """Write the backbone's features of every image to Parquet files. The same command goes on where it stopped.

    Examples:
        byol embed run photos --out features
        byol embed run photos --out features --part test --json
    """
    if not (run / "backbone.json").is_file():
        fail(f"{run} holds no backbone.json; is it the --out of a finished pretrain?")
    must_exist(data)
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
        print_json(found)
    else:
        stdout.print(
            f"{found['images']:,} images, {found['feature_dim']} features each, in {found['files']} files: {out}."
        )
