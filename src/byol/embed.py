"""Features of every image as Parquet files, a shard at a time: by many processes, and again from where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol import cluster
from byol.data.source import Part, Source
from byol.data.tiles import tiled
from byol.encoder import Encoder
from byol.evaluate.features import stream_features
from byol.evaluate.images import evaluation_batches
from byol.export import WEIGHTS, load, range_of, read_description
from byol.files import is_free, read_json, write_json
from byol.parallel import agreed, collected, rank, together, world_size
from byol.pipeline import Observer, Silent
from byol.subject import open_images

ABOUT = "_embeddings.json"
"""Readers of a folder of Parquet files pass over names that begin so."""
ROWS = 8192
"""Of a shard: 16 MiB of 512 features."""


def embed(
    run_directory: str | Path,
    data: str,
    out: str | Path,
    *,
    part: Part = "all",
    tile: int = 0,
    rows: int = ROWS,
    workers: int = 0,
    device: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Write the features of `data`'s images by a run's backbone to OUT/part-NNNNN.parquet; returns what is there.

    Each file has the images of `rows` places in the listing: columns id (int64, the place), name, label (where there
    are labels), group (of tiles, the place of their image) and features (D float32, the encoder's, of the evaluation's
    view). Files that are there already stay.
    tile: see `tiled`. Where several processes run, each writes every W-th file. ValueError where OUT holds other
    embeddings.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    engine = cluster.fabric(device)
    observer = observer if observer is not None and rank() == 0 else Silent()
    directory, run_directory = Path(out), Path(run_directory)
    description = together(lambda: read_description(run_directory))
    source = together(lambda: _opened(data, part, description, tile))
    encoder, contents = together(lambda: _loaded(run_directory))
    encoder = encoder.to(engine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    about = {
        "data": source.name,
        "data_fingerprint": source.fingerprint,
        "backbone": contents,
        "part": part,
        "rows_per_file": rows,
        "feature_dim": description["feature_dim"],
    }
    together(lambda: _begin(directory, about))
    numbers = range(-(-source.num_listed // rows))
    left = agreed([n for n in numbers if not _file(directory, n).exists()])
    there = sorted(set(numbers) - set(left))
    mine = left[rank() :: world_size()]
    places = [_places(source, n * rows, rows) for n in mine]

    def write() -> None:
        done, total = 0, sum(map(len, places))
        for number, chosen in zip(mine, places, strict=True):
            shard = source.subset(chosen)
            found, used = list[torch.Tensor](), list[np.ndarray]()
            batches = evaluation_batches(shard, None, description["image_size"], workers=workers)
            for batch_rows, images in batches:
                used.append(batch_rows.numpy())
                found += stream_features(
                    encoder,
                    images,
                    mean=description["normalization"]["mean"],
                    std=description["normalization"]["std"],
                    size=None,
                    device=engine.device,
                )
                done += len(batch_rows)
                observer.working("embedding", done, total)
            _write(_file(directory, number), shard, np.concatenate([*used, []]).astype(int), found, about)

    together(write)
    # Each counts its own: another's may not be there yet.
    counted = [_rows_of(_file(directory, n)) for n in [*mine, *there[rank() :: world_size()]]]
    written = sum(collected(counted))
    return {"out": str(directory), "images": written, "files": len(numbers), "feature_dim": about["feature_dim"]}


def _loaded(run_directory: Path) -> tuple[Encoder, str]:
    """(the encoder, SHA-256 of its weights' file)"""

    def contents() -> str:
        with (run_directory / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    before, encoder = contents(), load(run_directory)
    if contents() != before:
        raise ValueError(f"{run_directory} was written while it was read; embed once it is trained")
    return encoder, before


def _opened(data: str, part: Part, description: dict[str, Any], tile: int) -> Source:
    channels = description["channels"]
    source = open_images(data, part=part, channels=channels, value_range=range_of(description))
    if source.channels != channels:
        raise ValueError(f"the images have {source.channels} channels, and the backbone was trained on {channels}")
    return tiled(source, tile) if tile else source


def _begin(directory: Path, about: dict[str, Any]) -> None:
    """ValueError where the directory holds something else than these embeddings."""
    path = directory / ABOUT
    if path.is_file():
        there = read_json(path)
        if differs := [name for name in about if there.get(name) != about[name]]:
            raise ValueError(f"{directory} holds other embeddings (another {differs[0]}); choose another --out")
    elif not is_free(directory) and rank() == 0:  # another process may be writing it
        raise ValueError(f"{directory} exists already and holds no {ABOUT}; choose another --out")
    elif rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, about)


def _file(directory: Path, number: int) -> Path:
    return directory / f"part-{number:05}.parquet"


def _places(source: Source, start: int, count: int) -> np.ndarray:
    """The rows of a source whose ids are in [start, start + count)."""
    first, last = np.searchsorted(source.ids, [start, start + count])
    return np.arange(first, last)


def _write(path: Path, shard: Source, rows: np.ndarray, features: list[torch.Tensor], about: dict[str, Any]) -> None:
    """One file, whole or not at all. rows: of the shard, those that are usable."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = about["feature_dim"]
    values = torch.cat(features).numpy() if features else np.empty((0, dim), np.float32)
    ids = shard.ids[rows]
    columns: dict[str, Any] = {"id": pa.array(ids, pa.int64()), "name": [shard.name_of(int(i)) for i in ids]}
    if shard.labels is not None:
        labels = shard.labels[rows]
        columns["label"] = pa.array(labels, pa.int64(), mask=labels < 0)
    if shard.groups is not None:
        columns["group"] = pa.array(shard.groups[rows], pa.int64())
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), dim)
    unused = np.setdiff1d(np.arange(len(shard)), rows)
    metadata = {"byol": json.dumps(about | {"unusable": shard.ids[unused].tolist()})}
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)
    temporary.replace(path)


def _rows_of(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
