"""Commands that show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from byol.cli.shared import AsJson, fail, print_json


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories; several stand side by side.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; RUN/report.html of one run, report.html of several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page to look at: how good and how healthy a run is, what it saw, and what it makes of the images.

    One HTML file that needs no network, for a browser or a mail. `pretrain`, `demo` and `evaluate` write it too.
    """
    for run in runs:
        if not (run / "run.json").is_file() and not (run / "backbone.json").is_file():
            fail(f"{run} holds no run.json; name the --out of a pretrain")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        fail(f"{out} is no page; name a .html file")
    from byol.console import Terminal, stdout
    from byol.report import report as write_report

    with Terminal() as terminal:
        written = write_report(runs, out, observer=terminal)
    if as_json:
        print_json({"report": str(written), "bytes": written.stat().st_size})
    else:
        stdout.print(f"Written to {written}.", soft_wrap=True)
