"""Shards behind HTTP and on a hub of data sets, both served here by this process."""

import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shard_files import NUM, loader_of, write_parquet, write_tars

from byol.data.open import open_source
from byol.data.source import DataError

REPOSITORY = "someone/photos"
COMMIT = "0" * 40


class Storage(BaseHTTPRequestHandler):
    """Files of a folder, by ranges of bytes; the same as a data set of a hub. The server's `failing` counts down."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root, *arguments):
        self.root = root
        super().__init__(*arguments)

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.split("?")[0]
        if self.server.failing and self.headers.get("Range"):
            self.server.failing -= 1
            self.send(503, b"busy")
        elif path.startswith("/api/datasets/"):
            self.hub(path.removeprefix("/api/datasets/"))
        else:
            self.file(re.sub(f"^/datasets/{REPOSITORY}/resolve/[^/]+", "", path))

    def hub(self, path):
        if not path.startswith(REPOSITORY):
            self.send(401, b'{"error": "Repository not found"}', kind="application/json", more={
                "X-Error-Code": "RepoNotFound"})  # fmt: skip
            return
        if "/tree/" in path or "/paths-info/" in path:
            found = [
                {
                    "type": "file",
                    "path": file.relative_to(self.root).as_posix(),
                    "size": file.stat().st_size,
                    "oid": "0",
                }
                for file in sorted(self.root.rglob("*"))
                if file.is_file()
            ]
        else:
            found = {"id": REPOSITORY, "sha": COMMIT, "siblings": [], "private": False, "tags": [], "downloads": 0}
        self.send(200, json.dumps(found).encode(), kind="application/json")

    def file(self, path):
        file = self.root / path.lstrip("/")
        if not file.is_file():
            self.send(404, b"no such file")
            return
        held, code, more = file.read_bytes(), 200, {"Accept-Ranges": "bytes", "ETag": '"0"'}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(held) - 1), len(held) - 1)
            more["Content-Range"] = f"bytes {start}-{end}/{len(held)}"
            held, code = held[start : end + 1], 206
        self.send(code, held, more=more)

    def send(self, code, body, *, kind="application/octet-stream", more=None):
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(the folder, its address, the server)"""
    monkeypatch.setenv("BYOL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "served"
    root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Storage, root)) as server:
        server.asked, server.failing, server.daemon_threads = [], 0, True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{server.server_port}", server
        server.shutdown()


def numbers_seen(source, **arguments):
    return [batch.ids.tolist() for batch in loader_of(source, **arguments).batches(0, 6)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_behind_http_are_those_on_disk(served, monkeypatch, kind, workers):
    monkeypatch.setattr("byol.data.shards.UNIT_BYTES", 16_000)
    root, address, _ = served
    write_parquet(root) if kind == "parquet" else write_tars(root)
    pattern = "part-{000..003}.parquet" if kind == "parquet" else "shard-{000..003}.tar"
    here, there = open_source(f"{root}/{pattern}"), open_source(f"{address}/{pattern}")
    assert len(there) == NUM
    assert np.array_equal(there.labels, here.labels)
    assert there.read(7)[0, 0, 0] == 7
    for a, b in zip(loader_of(here).batches(0, 4), loader_of(there, workers=workers).batches(0, 4), strict=True):
        assert torch.equal(a.ids, b.ids)
        assert all(torch.equal(*pair) for pair in zip(a.views, b.views, strict=True))


def test_images_are_fetched_by_ranges_and_storage_that_was_busy_is_asked_again(served, monkeypatch):
    root, address, server = served
    waited = []
    monkeypatch.setattr("byol.data.shards.time", SimpleNamespace(sleep=waited.append))
    write_parquet(root)
    source = open_source(f"{address}/part-000.parquet")
    server.asked.clear()
    server.failing = 2
    assert source.read(5)[0, 0, 0] == 5, "of the first unit, which is not held any more"
    assert server.failing == 0
    assert waited == [1, 2]
    assert all(ranged for command, _, ranged in server.asked if command == "GET")
    server.failing = 100
    with pytest.raises(DataError, match=r"part-000\.parquet"):
        source.read(15)


def test_a_data_set_of_a_hub(served, monkeypatch):
    root, address, _ = served
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    write_parquet(root)
    source = open_source(f"hf:{REPOSITORY}")
    assert len(source) == NUM
    assert source.read(130)[0, 0, 0] == 130
    here = open_source(root, streams=True)
    assert np.array_equal(source.labels, here.labels)
    assert numbers_seen(source) == numbers_seen(here)
    with pytest.raises(DataError, match="hf:someone/else") as caught:
        open_source("hf:someone/else")
    assert "\n" not in str(caught.value)
