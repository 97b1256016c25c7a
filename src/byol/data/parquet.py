"""Parquet files in the Hugging Face layout."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from byol.data.decode import Unusable, decode, header
from byol.data.source import DataError, Part, Source, no_test_part, shown, verified


def from_parquet(name: str, files: list[tuple[str, Path]], part: Part, channels: int | None) -> Source:
    """Rows of Parquet files in the Hugging Face layout, file by file; the bytes stay in memory as Arrow."""
    import pyarrow as pa

    # A path with two of the words belongs to no part: in both, it would be tested on what it trained.
    words = [{"train", "test", "validation"} & set(re.split("[^a-z]+", file.lower())) for file, _ in files]
    held_out = "test" if {"test"} in words else "validation"
    is_split = {"train"} in words and {held_out} in words
    if is_split and part != "all":
        wanted = {"train"} if part == "train" else {held_out}
        files = [file for file, word in zip(files, words, strict=True) if word == wanted]
    elif part == "test" and not is_split:
        raise no_test_part(name, "name a folder whose .parquet files have `train` and `test` in their names")
    digest, tables, classes = hashlib.sha256(), [], None
    for file, path in files:
        try:
            table, class_names = _columns(file, path)
            with path.open("rb") as stream:
                digest.update(os.fsencode(f"{file}\0") + hashlib.file_digest(stream, "sha256").digest())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{shown(file)} is not a readable Parquet file; write it again") from error
        tables.append(table)
        classes = classes or class_names
    rows = pa.concat_tables(tables)
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    listing = Rows(rows["encoded"], rows["path"], [file for file, _ in files], starts, [path for _, path in files])
    labels = rows["label"].to_numpy().astype(np.int64)
    if classes is not None and labels.size and labels.max() >= len(classes):
        raise DataError(f"{shown(name)}: label {labels.max()} has no name in its metadata; correct one")
    source = verified(name, listing, len(rows), digest.hexdigest(), labels, channels)
    return replace(source, classes=classes, has_test_part=is_split)


@dataclass(frozen=True, eq=False)
class Rows:
    """Arrow columns: encoded (large_binary), paths (string). starts: the first row of each of `files`.

    tables: where each of `files` lies.
    """

    encoded: Any
    paths: Any
    files: list[str]
    starts: np.ndarray
    tables: list[Path]

    def header(self, position: int) -> tuple[int, int, int]:
        return header(self._bytes(position))

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        return decode(self._bytes(position), channels, reduce)

    def name(self, position: int) -> str:
        file = int(np.searchsorted(self.starts, position, side="right")) - 1
        path = self.paths[position].as_py()
        return f"{self.files[file]} row {position - int(self.starts[file])}" + (f" ({path})" if path else "")

    def columns(self) -> list[str]:
        """The names of the columns of plain values that every file has."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schemas = [pq.read_schema(path) for path in self.tables]
        common = set.intersection(*(set(schema.names) for schema in schemas))
        binary = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
        return [f.name for f in schemas[0] if f.name in common and not any(is_kind(f.type) for is_kind in binary)]

    def column(self, name: str) -> list[str | None]:
        """One of `columns`, as text, of every position in the listing; None where it is null."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        read = [pq.read_table(path, columns=[name])[name].cast(pa.string()) for path in self.tables]
        return [value for column in read for value in column.to_pylist()]

    def _bytes(self, position: int) -> bytes:
        data = self.encoded[position].as_py()
        if data is None:
            raise Unusable("the row holds no image bytes")
        return data


def _columns(file: str, path: Path) -> tuple[Any, tuple[str, ...] | None]:
    """(a table of encoded: large_binary, path: string, label: int64 or -1; class names or None)."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        column = next((c for c in ("image", "img") if c in schema.names), None)
        if column is None:
            known = shown(", ".join(schema.names))
            raise DataError(f"{shown(file)} has no column `image`, only {known}; rename one")
        table = parquet.read([column, "label"] if "label" in schema.names else [column])
    images, paths = table[column], pa.nulls(len(table), pa.string())
    if pa.types.is_struct(images.type):
        fields = [images.type.field(i).name for i in range(images.type.num_fields)]
        paths = pc.struct_field(images, "path").cast(pa.string()) if "path" in fields else paths
        images = pc.struct_field(images, "bytes") if "bytes" in fields else images
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(f"{shown(file)}: column `{column}` is {images.type}; it must hold encoded images")
    labels, class_names = pa.nulls(len(table), pa.int64()), None
    if "label" in schema.names:
        if not pa.types.is_integer(table["label"].type):
            raise DataError(f"{shown(file)}: `label` is {table['label'].type}; make it int64 or drop it")
        labels = table["label"].cast(pa.int64())
        class_names = _class_names(schema.metadata or {})
    columns = {"encoded": images.cast(pa.large_binary()), "path": paths, "label": pc.fill_null(labels, -1)}
    return pa.table(columns), class_names


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, found)) if isinstance(found, list) and found else None
