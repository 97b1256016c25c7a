"""Commands that use a trained backbone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from byol.cli.shared import AsJson, ComputeDevice, Data, Part, Seed, Tile, fail, must_exist, print_json
from byol.launch import launched_rank


class MapMethod(StrEnum):
    auto = "auto"
    tsne = "tsne"
    pca = "pca"
    none = "none"


def embed(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", metavar="PLACE", help="NAME.parquet, or a directory of files.", show_default=False)
    ],
    part: Annotated[Part, typer.Option(help="Of data that have a training and a test part.")] = Part.all,
    tile: Tile = None,
    map_method: Annotated[
        MapMethod, typer.Option("--map", help="How images are placed on the plane.")
    ] = MapMethod.auto,
    neighbours: Annotated[int, typer.Option(min=0, max=1000, help="Nearest images of each; 0 for none.")] = 10,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="List groups of images that show the same picture again.")
    ] = False,
    outliers: Annotated[int | None, typer.Option(min=1, metavar="N", help="List the N strangest images.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Images of a file.")] = 8192,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; 0: threads of this one.")] = 0,
    device: ComputeDevice = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write what the backbone makes of images: features, map, neighbours, as Parquet.

    The same command goes on where it stopped. `byol explore` shows what it wrote.

    Examples:
        byol embed run photos --out photos.parquet
        byol embed run photos --out photos.parquet --duplicates --outliers 50
        byol embed run photos --out features --map none --neighbours 0
    """
    if not (run / "backbone.json").is_file():
        fail(f"{run} holds no backbone.json; is it the --out of a finished pretrain?")
    if (duplicates or outliers) and not neighbours:
        fail("--duplicates and --outliers look at neighbours; leave out --neighbours 0")
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
            map_method=map_method.value,
            num_neighbours=neighbours,
            seed=seed,
            rows=rows,
            workers=workers,
            device=None if device is None else device.value,
            observer=terminal,
        )
        if launched_rank() > 0:
            return
        lines = []
        if duplicates or outliers:
            from byol import embeddings

            read = embeddings.read(out)
            if duplicates:
                terminal.say("images that are there twice")
                groups, table = embeddings.list_duplicates(read)
                found["duplicates"] = {"groups": len(groups), "images": sum(map(len, groups)), "table": str(table)}
                kinds = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
                lines.append(f"{sum(map(len, groups)):,} images in {kinds} of the same picture: {table}.")
            if outliers:
                strange, table, sheet = embeddings.list_outliers(read, outliers)
                found["outliers"] = {"names": strange, "table": str(table), "picture": str(sheet)}
                lines.append(f"The {len(strange)} strangest images: {table}, {sheet}.")
    if as_json:
        print_json(found)
        return
    kept = [f"{found['images']:,} images, {found['feature_dim']} features each"]
    if found["unusable"]:
        kept.append(f"{found['unusable']:,} unusable images left out")
    if found["map"]:
        trust = found["map"]["trustworthiness"]
        kept.append(
            f"a map by {found['map']['method']}" + (f", trustworthiness {trust:.3f}" if trust is not None else "")
        )
    if found["neighbors"]:
        recall = found["neighbors"]["recall"]
        kept.append(f"{found['neighbors']['k']} neighbours each" + (f" (recall {recall:.3f})" if recall < 1 else ""))
    where = str(out) if found["files"] == 1 and out.suffix == ".parquet" else f"{found['files']} files in {out}"
    stdout.print(f"{'; '.join(kept)}: {where}. `byol explore {out}` shows them.")
    for line in lines:
        stdout.print(line)
