"""Parquet files in the Hugging Face layout."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from byol.data.decode import Unusable, decode, header
from byol.data.source import DataError, Part, Source, no_test_part, shown, verified

F = TypeVar("F")

ROWS_AT_ONCE = 256
MOST_BYTES, MOST_GROWTH = 1 << 28, 20
"""What is read of a file may be that large, or that many times the file: encoded images hardly get smaller in one."""


def _words(file: str) -> set[str]:
    # A path with two of the words belongs to no part: in both, it would be tested on what it trained.
    return {"train", "test", "validation"} & set(re.split("[^a-z]+", file.lower()))


def has_parts(files: list[str]) -> bool:
    """Whether the files of a training and of a test (else validation) part say so in their names."""
    words = [_words(file) for file in files]
    return {"train"} in words and ({"test"} in words or {"validation"} in words)


def of_part(name: str, files: list[tuple[str, F]], part: Part) -> list[tuple[str, F]]:
    """The (name, ...) of the files that belong to a part of the data."""
    names = [file for file, _ in files]
    if not has_parts(names):
        if part == "test":
            raise no_test_part(name, "name files that have `train` and `test` in their names")
        return files
    held_out = "test" if {"test"} in map(_words, names) else "validation"
    wanted = {"train": ({"train"},), "test": ({held_out},), "all": tuple(map(_words, names))}[part]
    return [file for file in files if _words(file[0]) in wanted]


def from_parquet(name: str, files: list[tuple[str, Path]], part: Part, channels: int | None) -> Source:
    """Rows of Parquet files in the Hugging Face layout, file by file; the bytes stay in memory as Arrow."""
    import pyarrow as pa

    is_split = has_parts([file for file, _ in files])
    files = of_part(name, files, part)
    digest, tables, classes, contents = hashlib.sha256(), [], None, list[bytes]()
    for file, path in files:
        try:
            table, class_names = _columns(file, path)
            with path.open("rb") as stream:
                contents.append(hashlib.file_digest(stream, "sha256").digest())
            digest.update(os.fsencode(f"{file}\0") + contents[-1])
        except DataError:
            raise
        except Exception as error:  # Arrow's, and of names that are no UTF-8 Python's
            raise DataError(f"{shown(file)} is not a readable Parquet file; write it again") from error
        tables.append(table)
        classes = classes or class_names
    rows = pa.concat_tables(tables)
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    listing = Rows(
        rows["encoded"], rows["path"], [file for file, _ in files], starts, [path for _, path in files], contents
    )
    labels = rows["label"].to_numpy().astype(np.int64)
    if classes is not None and labels.size and labels.max() >= len(classes):
        raise DataError(f"{shown(name)}: label {labels.max()} has no name in its metadata; correct one")
    source = verified(name, listing, len(rows), digest.hexdigest(), labels, channels)
    return replace(source, classes=classes, has_test_part=is_split)


@dataclass(frozen=True, eq=False)
class Rows:
    """Arrow columns: encoded (large_binary), paths (string). starts: the first row of each of `files`.

    tables: where each of `files` lies. contents: SHA-256 of each.
    """

    encoded: Any
    paths: Any
    files: list[str]
    starts: np.ndarray
    tables: list[Path]
    contents: list[bytes]

    def header(self, position: int) -> tuple[int, int, int]:
        return header(self._bytes(position))

    def read(self, position: int, channels: int, reduce: int = 1) -> np.ndarray:
        return decode(self._bytes(position), channels, reduce)

    def name(self, position: int) -> str:
        file = int(np.searchsorted(self.starts, position, side="right")) - 1
        path = self.paths[position].as_py()
        return f"{self.files[file]} row {position - int(self.starts[file])}" + (f" ({path})" if path else "")

    def entries(self) -> Iterator[tuple[str, int, int]]:
        for file, path, digest in zip(self.files, self.tables, self.contents, strict=True):
            yield file, path.stat().st_size, int.from_bytes(digest[:6], "big")

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

        found = list[str | None]()
        for file, path in zip(self.files, self.tables, strict=True):
            with pq.ParquetFile(path) as parquet:
                table = read_some(file, parquet, [name], path.stat().st_size)
            # By a dictionary: one long value in every row stays one.
            column = table[name]
            encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            one = encoded.unify_dictionaries()
            values = one.chunk(0).dictionary.cast(pa.string()).to_pylist() if one.num_chunks else []
            numbers = (number for chunk in one.chunks for number in chunk.indices.to_pylist())
            found += [None if number is None else values[number] for number in numbers]
        return found

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
        column, labelled, class_names = image_column(file, parquet.schema_arrow)
        check_rows(file, parquet.metadata.num_rows, path.stat().st_size)
        table = read_some(file, parquet, [column, "label"] if labelled else [column], path.stat().st_size)
    images, paths = table[column], pa.nulls(len(table), pa.string())
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        paths = pc.struct_field(images, "path").cast(pa.string())
    labels = table["label"].cast(pa.int64()) if labelled else pa.nulls(len(table), pa.int64())
    columns = {"encoded": encoded_images(file, column, images), "path": paths, "label": pc.fill_null(labels, -1)}
    return pa.table(columns), class_names


def check_rows(file: str, num_rows: int, num_bytes: int) -> None:
    """DataError where a file says that it holds more images than bytes: what is made for each row takes memory."""
    if not 0 <= num_rows <= num_bytes:
        raise DataError(f"{shown(file)} says that it holds {num_rows:,} rows in {num_bytes:,} bytes; write it again")


def _bytes_of(column: Any, seen: set[int]) -> int:
    """Of an Arrow array; a dictionary that several share counts once. seen: where those lie that were counted."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    own = {buffer.address: buffer.size for buffer in column.dictionary.buffers() if buffer is not None}
    new = own.keys() - seen
    seen |= new
    return int(column.indices.nbytes) + sum(own[address] for address in new)


def read_some(file: str, parquet: Any, columns: list[str], num_bytes: int, unit: int | None = None) -> Any:
    """A table of those columns, of one row group or all. DataError where it is far more than the file holds: one value
    of a dictionary may stand in every row. num_bytes: of the file."""
    import pyarrow as pa

    batches, total, seen = [], 0, set[int]()
    groups = range(parquet.metadata.num_row_groups) if unit is None else [unit]
    for batch in parquet.iter_batches(ROWS_AT_ONCE, groups, columns):
        batches.append(batch)
        total += sum(_bytes_of(column, seen) for column in batch.columns)
        if total > max(MOST_BYTES, MOST_GROWTH * num_bytes):
            raise DataError(f"{shown(file)} is {num_bytes:,} bytes and grows beyond {total:,}; write it again")
    schema = batches[0].schema if batches else parquet.schema_arrow
    table = pa.Table.from_batches(batches, schema)
    return table.select(columns)


def image_column(file: str, schema: Any) -> tuple[str, bool, tuple[str, ...] | None]:
    """(the column that holds images, whether there are labels, class names or None) of an Arrow schema."""
    import pyarrow as pa

    column = next((c for c in ("image", "img") if c in schema.names), None)
    if column is None:
        known = shown(", ".join(schema.names))
        raise DataError(f"{shown(file)} has no column `image`, only {known}; rename one")
    if "label" not in schema.names:
        return column, False, None
    if not pa.types.is_integer(kind := schema.field("label").type):
        raise DataError(f"{shown(file)}: `label` is {shown(str(kind))}; make it int64 or drop it")
    return column, True, _class_names(schema.metadata or {})


def encoded_images(file: str, column: str, images: Any) -> Any:
    """The values of a column as large_binary: they, or the `bytes` of a struct."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pc.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(f"{shown(file)}: column `{column}` is {shown(str(images.type))}; it must hold encoded images")
    return images.cast(pa.large_binary())


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, found)) if isinstance(found, list) and found else None
