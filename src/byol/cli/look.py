"""Commands that show."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from byol.cli.shared import AsJson, fail, print_json


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Several stand side by side.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", show_default="RUN/report.html, of one run", help="The page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page to look at: how good a run is, what it saw, what it makes of the images.

    One HTML file that needs no network, for a browser or a mail. `pretrain`, `demo` and `evaluate` write it too.

    Examples:
        byol report run
        byol report run other-run --out both.html
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


def explore(
    place: Annotated[Path, typer.Argument(metavar="FILE", help="What `byol embed` wrote.", show_default=False)],
    query: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Name the images nearest to this one, and stop.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The run whose backbone a search uses; by default the one that embedded.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 for a free one.")] = 8350,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    atlas: Annotated[
        bool, typer.Option("--atlas", help="Show it in Embedding Atlas, where that is installed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at an embedding: map, thumbnails, neighbours, search by an image, selections.

    The page is for this machine's browser alone. Ctrl-C ends it.

    Examples:
        byol explore photos.parquet
        byol explore photos.parquet --query photo.jpg
        byol explore photos.parquet --port 0 --no-browser
    """
    if not place.exists():
        fail(f"{place} does not exist; `byol embed RUN DATA --out {place}` writes it")
    if query is not None and not query.is_file():
        fail(f"{query} is no file")
    if atlas:
        _atlas(place)
        return
    from byol import embeddings
    from byol.console import stdout
    from byol.explore import Explorer, Server

    explorer = Explorer(embeddings.read(place), run)
    if query is not None:
        found = explorer.search(query)
        if as_json:
            print_json({"query": str(query), "nearest": found})
            return
        for each in found:
            named = f"{each['label']}: " if each["label"] is not None else ""
            stdout.print(f"{each['distance']:.4f}  {named}{each['path']}", soft_wrap=True, markup=False)
        return
    with Server(explorer, port) as server:
        if as_json:
            print_json({"url": server.url, "images": len(explorer.found)})
        else:
            stdout.print(f"{len(explorer.found):,} images on {server.url}; Ctrl-C ends it.")
        sys.stdout.flush()
        if browser and sys.stdout.isatty():
            import webbrowser

            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def _atlas(place: Path) -> None:
    program = shutil.which("embedding-atlas")
    if program is None:
        fail("Embedding Atlas is not installed; in an environment of its own run: pip install embedding-atlas")
    columns = ["--x", "x", "--y", "y", "--neighbors", "neighbors", "--image", "thumbnail", "--text", "path"]
    files = [str(place)] if place.is_file() else [str(each) for each in sorted(place.glob("*.parquet"))]
    raise typer.Exit(subprocess.run([program, *files, *columns], check=False).returncode)
