"""Every image's features, its place on a map, its neighbours and a small picture of it, as Parquet.

Features come first, a file at a time, by many processes, and again from where it stopped; then the first process finds
neighbours and map, and writes what was asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol import cluster
from byol.data.loader import looked_at
from byol.data.open import Images
from byol.data.source import Part, Source
from byol.data.tiles import tiled
from byol.encoder import Encoder
from byol.evaluate import maps, neighbours
from byol.evaluate.features import stream_features
from byol.evaluate.images import batches_and
from byol.export import digest, load, range_of, read_description
from byol.files import is_free, read_json, replacing, write_json
from byol.parallel import agreed, collected, rank, together, world_size
from byol.pictures import thumbnail
from byol.pipeline import Observer, Silent
from byol.subject import open_images

ABOUT = "_embeddings.json"
"""Readers of a folder of Parquet files pass over names that begin so."""
FEATURES = "_features"
"""Where the features lie, in a folder of Parquet files, until these are whole; beside a file, with .parts after it."""
ROWS = 8192
"""Of a file: 16 MiB of 512 features."""
NEIGHBOURS = 10
KEY = b"byol"
"""Of the metadata of the Parquet schema: JSON, what the embeddings are of."""


def embed(
    run_directory: str | Path,
    data: Images,
    out: str | Path,
    *,
    part: Part = "all",
    tile: int = 0,
    most: int | None = None,
    labels: str | None = None,
    map_method: maps.Method = "auto",
    num_neighbours: int = NEIGHBOURS,
    seed: int = 0,
    rows: int = ROWS,
    workers: int = 0,
    device: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Write the embedding of `data`'s images by a run's backbone; returns what is there.

    out: NAME.parquet, one file, or a directory of part-NNNNN.parquet, each with the images of `rows` places in the
    listing. Columns, a row an image in the order of the listing:

    - id (int64): its place in the listing; path (string): its name there;
    - label (int64) where there are labels, and class (string) where they have names;
    - group (int64) of tiles: the id of their image;
    - vector (D float32): the encoder's features of the evaluation's view;
    - x, y (float32): its place on the map, see `byol.evaluate.maps`;
    - neighbors (ids: k int64, distances: k float32): rows of its nearest images in this table, counted from 0 over all
      files, nearest first, and 1 - their cosine similarity;
    - thumbnail (bytes, path): a JPEG of at most 64 px.

    The schema's metadata have all else under "byol", as JSON. What is there already stays.
    tile: see `tiled`. labels: a file that names them.
    most: no more images than these, evenly spaced over the listing. num_neighbours: 0 for none.
    Where several processes run, each embeds every W-th file. ValueError where `out` holds something else.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    engine = cluster.fabric(device)
    observer = observer if observer is not None and rank() == 0 else Silent()
    out, run_directory = Path(out), Path(run_directory)
    description = together(lambda: read_description(run_directory))
    source = together(lambda: _opened(data, part, description, tile, most, labels))
    encoder, contents = together(lambda: _loaded(run_directory))
    encoder = encoder.to(engine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    about = {
        "data": source.name,
        "data_fingerprint": source.fingerprint,
        "run": str(run_directory),
        "backbone": contents,
        "method": description["method"],
        "part": part,
        "tile": tile,
        "labels": labels,
        "most": most,
        "rows_per_file": rows,
        "feature_dim": description["feature_dim"],
        "--map": map_method,
        "--neighbours": num_neighbours,
        "--seed": seed,
    }
    notes = agreed(together(lambda: _begin(out, about, source) if rank() == 0 else None))
    if notes is None:
        return _found(out, about)
    for note in notes:
        observer.say(note)
    work = _work(out)
    numbers = range(-(-source.num_listed // rows))
    left = agreed([n for n in numbers if not _file(work, n).exists()])
    mine = left[rank() :: world_size()]
    places = [_places(source, n * rows, rows) for n in mine]

    def write() -> None:
        done, total = 0, sum(map(len, places))
        for number, chosen in zip(mine, places, strict=True):
            shard = source.subset(chosen)
            found, used, small = list[torch.Tensor](), list[np.ndarray](), list[bytes]()
            for batch_rows, images, made in batches_and(shard, description["image_size"], _small, workers=workers):
                used.append(batch_rows.numpy())
                small += made
                found += stream_features(
                    encoder,
                    [images],
                    mean=description["normalization"]["mean"],
                    std=description["normalization"]["std"],
                    size=None,
                    device=engine.device,
                )
                done += len(batch_rows)
                observer.working("embedding", done, total)
            kept = np.concatenate([*used, []]).astype(int)
            _write_features(_file(work, number), shard, kept, found, small, about["feature_dim"])

    together(write)
    collected([rank()])  # all have written theirs
    if rank() == 0:
        _finish(out, about, len(numbers), observer)
    return _found(out, about) if rank() == 0 else {}


def _small(image: np.ndarray) -> bytes:
    return thumbnail(image if image.dtype == np.uint8 else image.round().astype(np.uint8))


def _found(out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What the finished files hold."""
    files = [out] if out.suffix == ".parquet" else sorted(out.glob("part-*.parquet"))
    kept = read_about(files[0])
    return {
        "out": str(out),
        "images": sum(map(_rows_of, files)),
        "files": len(files),
        "feature_dim": about["feature_dim"],
        "map": kept["map"],
        "neighbors": kept["neighbors"],
        "unusable": len(kept["unusable"]),
    }


def read_about(path: Path) -> dict[str, Any]:
    """What the schema of a Parquet file says its embeddings are of; {} where it says nothing."""
    import pyarrow.parquet as pq

    found = json.loads((pq.read_schema(path).metadata or {}).get(KEY, b"{}"))
    return found if isinstance(found, dict) else {}


def _loaded(run_directory: Path) -> tuple[Encoder, str]:
    """(the encoder, SHA-256 of its weights' file)"""
    before, encoder = digest(run_directory), load(run_directory)
    if digest(run_directory) != before:
        raise ValueError(f"{run_directory} was written while it was read; embed once it is trained")
    return encoder, before


def _opened(
    data: Images, part: Part, description: dict[str, Any], tile: int, most: int | None, labels: str | None
) -> Source:
    channels = description["channels"]
    source = open_images(data, part=part, channels=channels, value_range=range_of(description), labels=labels)
    if source.channels != channels:
        raise ValueError(f"the images have {source.channels} channels, and the backbone was trained on {channels}")
    source = tiled(source, tile) if tile else source
    return source if most is None or most >= len(source) else source.subset(looked_at(source, most))


def _work(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts") if out.suffix == ".parquet" else out / FEATURES


def _begin(out: Path, about: dict[str, Any], source: Source) -> list[str] | None:
    """What to say of what cannot be had; None where everything is there. ValueError where `out` holds something else
    than these embeddings, or what was asked for needs what is not installed."""
    single, work = out.suffix == ".parquet", _work(out)
    if single and out.is_file():
        _check_same(out, read_about(out), about)
        shutil.rmtree(work, ignore_errors=True)
        return None
    listed = (work if single else out) / ABOUT
    if listed.is_file():
        _check_same(listed.parent, read_json(listed), about)
        if not single and not work.exists():
            return None
    elif not is_free(listed.parent):
        raise ValueError(f"{listed.parent} exists already and holds no {ABOUT}; choose another --out")
    notes = [maps.chosen(about["--map"], len(source))[1]]
    if about["--neighbours"] and (missing := neighbours.missing(len(source))):
        notes.append(f"{missing}; the files have none until then")
    work.mkdir(parents=True, exist_ok=True)
    write_json(listed, about)
    return [note for note in notes if note]


def _check_same(place: Path, known: dict[str, Any], about: dict[str, Any]) -> None:
    if differs := [name for name in about if name not in ("run", "method") and known.get(name) != about[name]]:
        raise ValueError(f"{place} holds other embeddings (another {differs[0]}); choose another --out")


def _file(directory: Path, number: int) -> Path:
    return directory / f"part-{number:05}.parquet"


def _places(source: Source, start: int, count: int) -> np.ndarray:
    """The rows of a source whose ids are in [start, start + count)."""
    first, last = np.searchsorted(source.ids, [start, start + count])
    return np.arange(first, last)


def _write_features(
    path: Path, shard: Source, rows: np.ndarray, features: list[torch.Tensor], small: list[bytes], dim: int
) -> None:
    """One file of features, whole or not at all. rows: of the shard, those that are usable."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = torch.cat(features).numpy() if features else np.empty((0, dim), np.float32)
    ids = shard.ids[rows]
    columns: dict[str, Any] = {
        "id": pa.array(ids, pa.int64()),
        "path": pa.array([shard.name_of(int(i)) for i in ids], pa.string()),
    }
    if shard.labels is not None:
        labels = shard.labels[rows]
        columns["label"] = pa.array(labels, pa.int64(), mask=labels < 0)
        if shard.classes is not None:
            named = [None if label < 0 else shard.classes[label] for label in labels]
            columns["class"] = pa.array(named, pa.string())
    if shard.groups is not None:
        columns["group"] = pa.array(shard.groups[rows], pa.int64())
    columns["vector"] = _fixed(values)
    of = [pa.array(small, pa.binary()), pa.nulls(len(small), pa.string())]
    columns["thumbnail"] = pa.StructArray.from_arrays(of, ["bytes", "path"])
    unused = np.setdiff1d(np.arange(len(shard)), rows)
    metadata = {KEY: json.dumps({"unusable": shard.ids[unused].tolist()})}
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)


def _fixed(values: np.ndarray) -> Any:
    """[N, D] as N lists of D."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _finish(out: Path, about: dict[str, Any], num_files: int, observer: Observer) -> None:
    """From the features of all files to neighbours and map, and to the files that were asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    work = _work(out)
    files = [_file(work, number) for number in range(num_files)]
    shards = [pq.read_table(path, columns=["vector"]) for path in files]
    dim = about["feature_dim"]
    vectors = np.concatenate([_values(shard["vector"], dim) for shard in shards])
    counts = [len(shard) for shard in shards]
    del shards
    unusable = [image for path in files for image in read_about(path)["unusable"]]
    about = {**about, "map": None, "neighbors": None, "unusable": unusable}
    more = dict[str, Any]()
    if about["--neighbours"] and len(vectors) > 1 and not neighbours.missing(len(vectors)):
        near = neighbours.neighbours_of_all(
            vectors, about["--neighbours"], progress=lambda done, total: observer.working("neighbours", done, total)
        )
        more["neighbors"] = pa.StructArray.from_arrays(
            [_fixed(near.rows), _fixed(near.distances)], ["ids", "distances"]
        )
        about["neighbors"] = {
            "k": near.rows.shape[1],
            "distance": "1 - cosine similarity",
            "method": near.method,
            "recall": near.recall,
        }
    if about["--map"] != "none" and len(vectors) > 1:
        observer.say(f"a map of {len(vectors):,} images")
        drawn = maps.draw_map(
            vectors,
            about["--map"],
            seed=about["--seed"],
            progress=lambda done, total: observer.working("map", done, total),
        )
        more["x"], more["y"] = (pa.array(column) for column in drawn.positions.T)
        about["map"] = {
            "method": drawn.method,
            "seed": drawn.seed,
            "trustworthiness": drawn.trustworthiness,
            "judged_on": drawn.judged,
        }
    del vectors
    tables = _joined(files, counts, more, {KEY: json.dumps(about)})
    if out.suffix == ".parquet":
        with replacing(out) as temporary:
            first = next(tables)
            with pq.ParquetWriter(temporary, first.schema) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)
    else:
        for number, table in enumerate(tables):
            with replacing(_file(out, number)) as temporary:
                pq.write_table(table, temporary)
    shutil.rmtree(work)


def _values(column: Any, dim: int) -> np.ndarray:
    """[N, dim] of a column of lists."""
    return np.concatenate([np.empty(0, np.float32), *(c.flatten().to_numpy() for c in column.chunks)]).reshape(-1, dim)


def _joined(files: list[Path], counts: list[int], more: dict[str, Any], metadata: dict[bytes, str]) -> Iterator[Any]:
    """The files' tables with further columns."""
    import pyarrow.parquet as pq

    start = 0
    for path, count in zip(files, counts, strict=True):
        table = pq.read_table(path)
        for name in ("x", "y", "neighbors"):
            if name in more:
                table = table.add_column(table.num_columns - 1, name, more[name].slice(start, count))
        start += count
        yield table.replace_schema_metadata(metadata)


def _rows_of(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
