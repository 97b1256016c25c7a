"""From a run's backbone to what can be said without labels, and to the images worth labelling first."""

from __future__ import annotations

import csv
from dataclasses import asdict, replace
from itertools import count as count_from
from pathlib import Path
from typing import Any

from byol import pictures
from byol.data.loader import fits_memory, load_pixels, views_for
from byol.data.source import Source
from byol.evaluate.cache import FeatureCache
from byol.evaluate.columns import (
    BACKBONE,
    RAW_PIXELS,
    UNTRAINED,
    Column,
    raw_pixels,
    untrained,
)
from byol.evaluate.images import evaluation_images
from byol.evaluate.labelled import load as load_part
from byol.evaluate.protocols import Settings
from byol.evaluate.suggest import suggest
from byol.evaluate.table import all_features
from byol.evaluate.unlabelled import Numbers, unlabelled_numbers, view_pairs
from byol.export import range_of
from byol.pipeline import Observer, Silent
from byol.subject import COLUMNS, device_of, open_images, read_backbone, views_of
from byol.views.view import BYOL_T, BYOL_T_PRIME


def without_labels(
    run_directory: Path,
    data: str,
    *,
    opened: Source | None = None,
    columns: tuple[str, ...] = COLUMNS,
    device: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Numbers that need no labels, of the backbone, raw pixels and the untrained network (the better one by view
    retrieval): see `byol.evaluate.unlabelled`. The views are the run's own, drawn anew. opened: the training part of
    `data`, where it was opened before."""
    observer = observer or Silent()
    description, spec, own = read_backbone(run_directory)
    like: dict[str, Any] = {"channels": spec.channels, "value_range": range_of(description)}
    source = open_images(data, **like) if opened is None else opened
    if source.has_test_part:  # images that a run on the training part never saw
        source = open_images(data, part="test", **like)
    pixels = None
    if fits_memory(source):
        source, pixels, _ = load_pixels(source)
    views = views_of(run_directory) or views_for((BYOL_T, BYOL_T_PRIME), source)
    rows, first, second = view_pairs(source, pixels, views, size=spec.image_size, seed=description["seed"])
    plain = evaluation_images(source, pixels, rows, spec.image_size)
    device = device or device_of(Settings())

    def numbers(column: Column) -> Numbers:
        observer.say(f"without labels: {column.name}")
        network = column.network.to(device)
        return unlabelled_numbers(network, plain, first, second, normalization=column.normalization, device=device)

    found: dict[str, Any] = {BACKBONE: asdict(numbers(own))} if BACKBONE in columns else {}
    if RAW_PIXELS in columns:
        found[RAW_PIXELS] = asdict(numbers(raw_pixels(spec.image_size, spec.channels)))
    if UNTRAINED in columns:
        both = [
            numbers(replace(own, name=UNTRAINED, network=untrained(spec, description["seed"], last_scale=scale)))
            for scale in (0, 1)
        ]
        found[UNTRAINED] = asdict(max(both, key=lambda each: each.view_retrieval))
    return found


def worth_labelling(
    run_directory: Path,
    source: Source,
    count: int,
    folder: Path,
    *,
    settings: Settings,
    features: FeatureCache | None = None,
    observer: Observer | None = None,
) -> tuple[list[str], Path, Path]:
    """(names of `count` images worth labelling first, the table to fill in, the picture of them): suggested.csv and
    .png in the folder, or suggested-2 and so on where somebody has filled one in already."""
    observer = observer or Silent()
    _, _, own = read_backbone(run_directory)
    part = load_part(replace(source, labels=None, targets=None, classes=()))
    part, found = all_features([own], part, settings, features, observer.working)
    observer.say("images worth labelling first")
    rows = suggest(found[own.name], count, seed=settings.seed)
    names = [part.source.name_of(int(part.source.ids[row])) for row in rows]
    number = next(n for n in count_from(1) if not _filled_in(_suggested(folder, n)))
    table = _suggested(folder, number)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([name, ""] for name in names)
    images = [part.source.picture(int(part.source.ids[row])) for row in rows[:100]]
    title = f"{Path(source.name).name}: the images worth labelling first"
    sheet = table.with_suffix(".png")
    pictures.suggested_sheet(images, names[:100], sheet, title=title)
    return names, table, sheet


def _suggested(folder: Path, number: int) -> Path:
    return folder / ("suggested.csv" if number == 1 else f"suggested-{number}.csv")


def _filled_in(table: Path) -> bool:
    """Whether somebody's labels stand in it."""
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        return any(any(cell.strip() for cell in row[1:]) for row in list(csv.reader(file))[1:])
