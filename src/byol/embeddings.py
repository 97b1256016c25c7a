"""What `byol embed` wrote, read again: for maps, searches, and lists of what is there twice or strange."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol import pictures
from byol.embed import _values, read_about
from byol.evaluate.duplicates import duplicate_groups
from byol.evaluate.knn import nearest
from byol.files import write_text

NEEDED = ("id", "path", "vector", "thumbnail")
SHEET = 100
"""Images on a sheet of the strangest."""
SIDE_PX = 64
"""Of the squares that duplicates are looked for in."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """place: where they were read. table: pyarrow's. about: see `byol.embed`; {} of files by others."""

    place: Path
    table: Any
    about: dict[str, Any]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def vectors(self) -> np.ndarray:
        """[N, D] float32."""
        column = self.table["vector"]
        return _values(column, column.type.list_size)

    @property
    def positions(self) -> np.ndarray | None:
        """[N, 2] float32 on the map."""
        if not {"x", "y"} <= set(self.table.column_names):
            return None
        return np.stack([self.table[name].to_numpy() for name in ("x", "y")], axis=1).astype(np.float32)

    @cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray] | None:
        """([N, k] rows, [N, k] distances)."""
        if "neighbors" not in self.table.column_names:
            return None
        column = self.table["neighbors"].combine_chunks()
        rows, distances = (column.field(name) for name in ("ids", "distances"))
        k = rows.type.list_size
        return np.array(rows.flatten()).reshape(-1, k), np.array(distances.flatten()).reshape(-1, k)

    @cached_property
    def labels(self) -> list[str | None] | None:
        """Of each image, its class in words."""
        for name in ("class", "label"):
            if name in self.table.column_names:
                return [None if each is None else str(each) for each in self.table[name].to_pylist()]
        return None

    def path(self, row: int) -> str:
        return str(self.table["path"][row].as_py())

    def thumbnail(self, row: int) -> bytes:
        """A JPEG."""
        found = self.table["thumbnail"][row].as_py()
        return bytes(found["bytes"]) if found and found["bytes"] else b""

    def picture(self, row: int) -> np.ndarray:
        """[H, W, C] uint8: the thumbnail."""
        from PIL import Image

        with Image.open(BytesIO(self.thumbnail(row)), formats=("JPEG", "PNG", "WEBP")) as picture:
            return np.atleast_3d(np.asarray(picture))

    def clusters(self, most: int = 10, seed: int = 0) -> np.ndarray:
        """[N] int64: the cluster of each image, by k-means of the features' directions; the largest is 0."""
        from sklearn.cluster import MiniBatchKMeans

        unit = self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-12)
        wanted = min(most, len(np.unique(unit.round(6), axis=0)))
        found = MiniBatchKMeans(wanted, n_init=3, batch_size=4096, random_state=seed).fit_predict(unit)
        order = np.argsort(-np.bincount(found, minlength=wanted), kind="stable")
        return np.argsort(order)[found].astype(np.int64)

    def search(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows [k], distances [k]) of the images nearest to features [D]."""
        similarities, rows = nearest(torch.from_numpy(self.vectors), torch.from_numpy(features)[None], k)
        return rows[0].numpy(), (1 - similarities[0]).clamp(0, 2).numpy()


def read(place: str | Path) -> Embeddings:
    """A file, or a folder of them, that `byol embed` wrote. ValueError, in one line, where it is none."""
    import pyarrow.parquet as pq

    place = Path(place)
    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; `byol embed RUN DATA --out {place}` writes it")
    if not files:
        raise ValueError(f"{place} holds no .parquet file; name what `byol embed` wrote")
    try:
        schema, about = pq.read_schema(files[0]), read_about(files[0])
        if lacking := [name for name in NEEDED if name not in schema.names]:
            raise ValueError(f"it has no column {lacking[0]}")
        if not hasattr(schema.field("vector").type, "list_size"):
            raise ValueError("its column vector is no list of as many numbers in every row")
        wanted = [name for name in (*NEEDED, "label", "class", "x", "y", "neighbors") if name in schema.names]
        table = pq.read_table(files if place.is_dir() else place, columns=wanted)
        found = Embeddings(place, table, about)
        if len(found) and (not np.isfinite(found.vectors).all() or _beyond(found)):
            raise ValueError("it has numbers that are none")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{place} cannot be used: {reason}; write it with `byol embed RUN DATA --out FILE.parquet`"
        ) from error
    if len(found) < 2:
        raise ValueError(f"{place} has {len(found)} images; embed 2 or more")
    return found


def _beyond(found: Embeddings) -> bool:
    """Whether a place on the map, or a neighbour's row, is none."""
    lost = found.positions is not None and not np.isfinite(found.positions).all()
    if found.neighbours is None:
        return lost
    rows, distances = found.neighbours
    return bool(lost or rows.min() < 0 or rows.max() >= len(found) or not np.isfinite(distances).all())


def _neighbours(found: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    if found.neighbours is None:
        raise ValueError(f"{found.place} has no neighbours; embed without --neighbours 0")
    return found.neighbours


def duplicates(found: Embeddings) -> list[list[int]]:
    """Groups of rows that show the same picture again: of each image's nearest neighbours those whose thumbnails agree,
    see `duplicate_groups`. The largest group first."""
    rows, _ = _neighbours(found)
    return duplicate_groups(_squares(found), rows)


def _squares(found: Embeddings) -> Iterator[Tensor]:
    """The thumbnails as [B, 1, SIDE_PX, SIDE_PX] uint8, gray."""
    from PIL import Image

    for start in range(0, len(found), 256):
        squares = []
        for row in range(start, min(start + 256, len(found))):
            with Image.open(BytesIO(found.thumbnail(row)), formats=("JPEG", "PNG", "WEBP")) as picture:
                squares.append(np.asarray(picture.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)))
        yield torch.from_numpy(np.stack(squares))[:, None]


def outliers(found: Embeddings, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, mean distances) of the images that are farthest from their nearest neighbours, the strangest first.

    The mean distance to the k nearest: Angiulli & Pizzuti 2002, "Fast outlier detection in high dimensional spaces".
    """
    _, distances = _neighbours(found)
    mean = distances.mean(axis=1)
    rows = np.argsort(-mean, kind="stable")[:count]
    return rows, mean[rows]


def list_duplicates(found: Embeddings) -> tuple[list[list[int]], Path]:
    """(the groups, the table of them beside the embeddings)"""
    groups = duplicates(found)
    rows = [(number, row, found.path(row)) for number, group in enumerate(groups, start=1) for row in group]
    return groups, _table(found, "duplicates", ("group", "row", "path"), rows)


def list_outliers(found: Embeddings, count: int) -> tuple[list[str], Path, Path]:
    """(the names of the strangest images, the table and the picture of them beside the embeddings)"""
    rows, distances = outliers(found, count)
    names = [found.path(int(row)) for row in rows]
    lines = [(int(row), name, f"{d:.6f}") for row, name, d in zip(rows, names, distances, strict=True)]
    table = _table(found, "outliers", ("row", "path", "mean_distance"), lines)
    sheet = table.with_suffix(".png")
    images = [found.picture(int(row)) for row in rows[:SHEET]]
    pictures.suggested_sheet(images, names[:SHEET], sheet, title=f"{found.place.stem}: the strangest images")
    return names, table, sheet


def _table(found: Embeddings, what: str, columns: tuple[str, ...], rows: list[Any]) -> Path:
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    path = found.place.with_name(f"{found.place.stem}-{what}.csv")
    write_text(path, text.getvalue())
    return path
