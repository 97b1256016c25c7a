"""The images on a run's page: views that the network saw, and a sample of the images with what it makes of them."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from byol.data.open import Images
from byol.data.source import Source
from byol.embed import embed, read_about
from byol.embeddings import Embeddings
from byol.export import WEIGHTS, digest
from byol.files import write_json
from byol.parallel import rank
from byol.pictures import thumbnail
from byol.pipeline import Observer, Silent, how_to_open, open_for_training, sample_views
from byol.report.facts import EMBEDDING, VIEWS
from byol.run import RUN, Run
from byol.views.view import View

SAMPLE = 1000
"""Images on the map: it stands in seconds, and the page stays below 3 MB."""
VIEWED, EPOCHS = 6, 2
VIEW_PX, SPRITE_PX = 96, 40
SHEET_ROWS, SHEET_COLUMNS = 8, 8


def write_views(directory: Path, run: Run, source: Source, pixels: Tensor | None) -> None:
    """views.json: some images and the views that training drew of them in its first epochs."""
    views = tuple(View(**fields) for fields in run.views)
    ids, originals, drawn = sample_views(
        source, pixels, views, run.image_size, seed=run.seed, num_images=VIEWED, epochs=EPOCHS
    )
    levels = [(view.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy() for view in drawn]
    rows = [
        {
            "name": source.name_of(image),
            "image": data_url(thumbnail(original, VIEW_PX)),
            "views": [data_url(thumbnail(view[i], VIEW_PX)) for view in levels],
        }
        for i, (image, original) in enumerate(zip(ids, originals, strict=True))
    ]
    write_json(directory / VIEWS, {"views_an_epoch": len(views), "rows": rows})


def draw_views(directory: Path) -> None:
    """views.json of a run that has none, from its data. ValueError or OSError where they are not there any more."""
    run = Run.read(directory / RUN)
    source, pixels = open_for_training(run.data, Silent(), **how_to_open(run))
    if source.fingerprint != run.facts.get("data_fingerprint"):
        raise ValueError(f"{run.data} is not what it was when {directory} was trained on it")
    write_views(directory, run, source, pixels)


def draw_sample(directory: Path, observer: Observer, data: Images | None = None) -> None:
    """embedding.parquet: of at most SAMPLE images of the run's data, see `byol.embed`; anew where the weights are not
    those that it was made with. In all processes of a run. data: the run's, where they are in memory."""
    run, out = Run.read(directory / RUN), directory / EMBEDDING
    if rank() == 0 and out.is_file() and read_about(out).get("backbone") != digest(directory):
        out.unlink()
    embed(
        directory,
        run.data if data is None else data,
        out,
        part="train",
        labels=run.labels,
        tile=run.tile,
        most=SAMPLE,
        workers=run.workers,
        device=run.device,
        observer=observer,
    )


def has_backbone(directory: Path) -> bool:
    return (directory / WEIGHTS).is_file()


def data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def sprite(found: Embeddings, rows: np.ndarray) -> tuple[str, int]:
    """(one picture of all thumbnails, SPRITE_PX each, row by row; how many stand in a row)"""
    from PIL import Image

    columns = max(1, int(np.ceil(np.sqrt(len(rows)))))
    sheet = Image.new("RGB", (columns * SPRITE_PX, -(-len(rows) // columns) * SPRITE_PX), "#7f7f7f")
    for place, row in enumerate(rows):
        with Image.open(BytesIO(found.thumbnail(int(row)))) as picture:
            small = picture.convert("RGB")
            scale = SPRITE_PX / max(small.size)
            small = small.resize([max(1, round(side * scale)) for side in small.size], Image.Resampling.BICUBIC)
        left, top = (place % columns) * SPRITE_PX, (place // columns) * SPRITE_PX
        sheet.paste(small, (left + (SPRITE_PX - small.width) // 2, top + (SPRITE_PX - small.height) // 2))
    file = BytesIO()
    sheet.save(file, "JPEG", quality=70)
    return data_url(file.getvalue()), columns


def neighbour_rows(found: Embeddings) -> list[dict[str, Any]]:
    """Images evenly spaced over the sample, each with its nearest others; whether these are of its class, where classes
    are known."""
    if found.neighbours is None:
        return []
    near, _ = found.neighbours
    labels = found.labels
    shown = []
    for row in np.unique(np.linspace(0, len(found) - 1, min(SHEET_ROWS, len(found))).astype(int)).tolist():
        others = [int(other) for other in near[row, :SHEET_COLUMNS]]
        known = labels is not None and labels[row] is not None
        same = (
            [labels[other] == labels[row] for other in others] if labels is not None and known else [None] * len(others)
        )
        shown.append(
            {
                "label": labels[row] if labels is not None and known else "",
                "name": found.path(row),
                "image": data_url(found.thumbnail(row)),
                "others": [
                    {"name": found.path(other), "image": data_url(found.thumbnail(other)), "same": each}
                    for other, each in zip(others, same, strict=True)
                ],
            }
        )
    return shown


def groups(found: Embeddings) -> tuple[np.ndarray, list[str], str]:
    """([N] of each image, -1 for none; their names; what they are): by label, else by cluster."""
    if found.labels is not None:
        names = sorted({label for label in found.labels if label is not None}, key=_natural)
        number = {name: i for i, name in enumerate(names)}
        return np.array([-1 if label is None else number[label] for label in found.labels]), names, "label"
    of = found.clusters()
    return of, [f"cluster {i + 1}" for i in range(int(of.max()) + 1)], "cluster"


def _natural(name: str) -> list[tuple[int, str]]:
    """Names in the order of the numbers in them."""
    pieces = re.split(r"(\d{1,9})", name)
    return [(int(piece), "") if i % 2 else (0, piece) for i, piece in enumerate(pieces)]
