"""Parquet files and archives of numbered images, and batches of them."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from byol.data.loader import Loader, Normalization
from byol.views.view import View

NUM, SIDE = 240, 20


def image(number):
    """Its number in the first pixel, noise elsewhere."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 4, 3), dtype=np.uint8)
    pixels[0, 0] = number
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(folder, files=4, row_group=10):
    per_file = NUM // files
    for f in range(files):
        rows = range(f * per_file, (f + 1) * per_file)
        table = pa.table(
            {"image": [{"bytes": image(i), "path": f"{i}.png"} for i in rows], "label": [i % 3 for i in rows]}
        )
        pq.write_table(table, folder / f"part-{f:03}.parquet", row_group_size=row_group)


def write_tars(folder, files=4):
    per_file = NUM // files
    for f in range(files):
        with tarfile.open(folder / f"shard-{f:03}.tar", "w") as archive:
            for i in range(f * per_file, (f + 1) * per_file):
                for ending, data in (("json", b"{}"), ("cls", str(i % 3).encode()), ("png", image(i))):
                    member = tarfile.TarInfo(f"set/{i:05}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def loader_of(source, *, share=(0, 1), workers=0, batch_size=8, streams=8):
    return Loader(
        source,
        (View(), View()),
        pixels=None,
        size=12,
        batch_size=batch_size,
        normalization=Normalization((0.5,) * 3, (0.25,) * 3),
        seed=0,
        share=share,
        workers=workers,
        streams=streams,
    )
