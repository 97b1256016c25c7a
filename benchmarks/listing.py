"""Listing a folder of very many small files: seconds and memory, the first time and again.

    .venv/bin/python benchmarks/listing.py --files 1000000

The files are JPEGs of 16 x 16 px in 1,000 folders, made in a temporary folder: 4 GB of disk at 4 KB a file.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LISTER = """
import json, resource, sys, time
from byol.data.open import open_source
from byol.machine import process_memory
began, before = time.perf_counter(), process_memory()
source = open_source(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - began, "images": len(source), "bytes": process_memory(),
                  "more": process_memory() - before,
                  "child": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}))
"""


def make(folder: Path, num: int) -> None:
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(64):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "JPEG")
        encoded.append(stream.getvalue())
    for start in range(0, num, 1000):
        inside = folder / f"{start // 1000:04}"
        inside.mkdir()
        for i in range(start, min(start + 1000, num)):
            (inside / f"{i:07}.jpg").write_bytes(encoded[i % 64])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where they are, or are to be made and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place) / "images"
        if not folder.exists():
            folder.mkdir(parents=True)
            began = time.perf_counter()
            make(folder, arguments.files)
            print(f"made {arguments.files:,} files in {time.perf_counter() - began:.0f} s")
        for name in ("first", "again"):
            command = [sys.executable, "-c", LISTER, str(folder)]
            environment = {"BYOL_CACHE": f"{place}/cache", "PATH": "/usr/bin:/bin"}
            ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found = json.loads(ended.stdout)
            print(
                f"{name}: {found['images']:,} images listed in {found['seconds']:.1f} s, process at most "
                f"{found['bytes'] / 1e9:.2f} GB, {found['more'] / 1e9:.2f} GB of them for the listing; the largest of "
                f"its own processes {found['child'] / 1e9:.2f} GB, most of it shared"
            )


if __name__ == "__main__":
    main()
