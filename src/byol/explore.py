"""The explorer: a page of this machine alone that shows what `byol embed` wrote.

It answers to nobody but this machine's browser, serves that one set, and opens no file but the images of its rows.
"""

from __future__ import annotations

import csv
import errno
import json
import re
import threading
from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from byol.data.decode import Unusable, decode
from byol.embeddings import Embeddings
from byol.export import digest, load
from byol.pictures import thumbnail
from byol.report.gallery import groups
from byol.report.page import template

HOST = "127.0.0.1"
MOST_POINTS = 100_000
"""On the map; of more images so many, evenly spaced."""
MOST_UPLOAD_BYTES = 64 << 20
MOST_LISTED = 1 << 20
"""Rows of a list."""
SHOWN = 24
"""Images that a search finds."""
LARGE_PX = 800


class Refused(Exception):
    """What is answered in place of what was asked for."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class Explorer:
    """What the page asks for. run: of the backbone that a search embeds its image with; by default the one that wrote
    the embeddings. ValueError, in one line, where the set has no map."""

    def __init__(self, found: Embeddings, run: Path | None = None) -> None:
        if found.positions is None:
            raise ValueError(f"{found.place} has no map; embed without --map none")
        self.found = found
        self._run = run
        self._embedding = threading.Lock()
        self.rows = np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST_POINTS)).astype(int))

    def about(self) -> dict[str, Any]:
        """What stands on the page, but for the points."""
        about = self.found.about
        _, names, kind = self._groups
        return {
            "name": self.found.place.name,
            "num": len(self.found),
            "points": len(self.rows),
            "groups": names,
            "kind": kind,
            "map": {"method": "", "trustworthiness": None, **(about.get("map") or {})},
            "neighbors": about.get("neighbors"),
            "data": about.get("data", ""),
        }

    def points(self) -> bytes:
        """Of each point x, y (float32), the row and the group (int32), little-endian, column by column."""
        assert self.found.positions is not None
        of = self._groups[0]
        columns = [
            self.found.positions[self.rows].T.astype("<f4"),
            self.rows.astype("<i4"),
            of[self.rows].astype("<i4"),
        ]
        return b"".join(np.ascontiguousarray(column).tobytes() for column in columns)

    def row(self, row: int) -> dict[str, Any]:
        """An image and its neighbours."""
        near = [] if self.found.neighbours is None else [column[row].tolist() for column in self.found.neighbours]
        return {**self._named(row), "neighbours": [] if not near else self._listed(*near)}

    def search(self, image: Path) -> list[dict[str, Any]]:
        """The images nearest to that of a file, nearest first. ValueError where it is none, or where there is no
        backbone to embed it with."""
        with self._embedding:
            features = self._encoder.embed([image])[0]
        rows, distances = self.found.search(features, min(SHOWN, len(self.found)))
        return self._listed(rows.tolist(), distances.tolist())

    def listing(self, rows: list[int]) -> str:
        """Rows as CSV."""
        text = StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("row", "path", "label"))
        labels = self.found.labels
        writer.writerows((row, self.found.path(row), "" if labels is None else labels[row] or "") for row in rows)
        return text.getvalue()

    def picture(self, row: int) -> bytes:
        """A JPEG of an image, large where its file can be read, else its thumbnail."""
        path = self.file_of(row)
        if path is None:
            return self.found.thumbnail(row)
        try:
            return thumbnail(decode(path.read_bytes(), 3), LARGE_PX)
        except (Unusable, OSError):
            return self.found.thumbnail(row)

    def file_of(self, row: int) -> Path | None:
        """The file of an image, where the data were a folder that still has it; never one outside that folder."""
        folder = Path(str(self.found.about.get("data", "")))
        if not self.found.about.get("data") or not folder.is_dir() or self.found.about.get("tile"):
            return None
        try:
            path = (folder / self.found.path(row)).resolve(strict=True)
        except (OSError, ValueError):
            return None
        return path if path.is_file() and path.is_relative_to(folder.resolve()) else None

    def place_of(self, number: str) -> int:
        """A row by its number. Refused where there is none."""
        if not re.fullmatch(r"\d{1,9}", number) or int(number) >= len(self.found):
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no row {number[:20]}")
        return int(number)

    @cached_property
    def _groups(self) -> tuple[np.ndarray, list[str], str]:
        return groups(self.found)

    @cached_property
    def _encoder(self) -> Any:
        made_with = self.found.about.get("backbone")
        run = self._run if self._run is not None else Path(str(self.found.about.get("run", "")))
        if not (run / "backbone.json").is_file():
            raise ValueError(f"{run} holds no backbone to embed the image with; say where the run is with --run")
        if made_with is not None and digest(run) != made_with:
            raise ValueError(
                f"{run} is another backbone than {self.found.place} was made with; embed anew, or use --run"
            )
        return load(run)

    def _named(self, row: int) -> dict[str, Any]:
        label = None if self.found.labels is None else self.found.labels[row]
        return {"row": row, "path": self.found.path(row), "label": label}

    def _listed(self, rows: list[int], distances: list[float]) -> list[dict[str, Any]]:
        return [{**self._named(row), "distance": round(d, 6)} for row, d in zip(rows, distances, strict=True)]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, work: Callable[[], tuple[bytes, str]]) -> None:
        try:
            self._check()
            body, kind = work()
            status = HTTPStatus.OK
        except Refused as refused:
            body, kind, status = f"{refused}\n".encode(), "text/plain; charset=utf-8", refused.status
        except ValueError as error:
            body, kind, status = f"{error}\n".encode(), "text/plain; charset=utf-8", HTTPStatus.BAD_REQUEST
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.send_header("Cache-Control", "no-store")
            if status is not HTTPStatus.OK:  # what was sent along may not have been read
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _check(self) -> None:
        """Other sites, whose names may be made to lead here, are not answered."""
        own = {f"{HOST}:{self.server.server_port}", f"localhost:{self.server.server_port}"}
        if self.headers.get("Host") not in own:
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for the browser of its own machine")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in own:
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for the browser of its own machine")

    def _get(self) -> tuple[bytes, str]:
        explorer, path = self.server.explorer, self.path.partition("?")[0]
        if path == "/":
            return self.server.page, "text/html; charset=utf-8"
        if path == "/points":
            return explorer.points(), "application/octet-stream"
        what, _, number = path.removeprefix("/").partition("/")
        if what == "row":
            return _json(explorer.row(explorer.place_of(number)))
        if what == "thumbnail":
            return explorer.found.thumbnail(explorer.place_of(number)), "image/jpeg"
        if what == "picture":
            return explorer.picture(explorer.place_of(number)), "image/jpeg"
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing of that name")

    def _post(self) -> tuple[bytes, str]:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length) or int(length) > MOST_UPLOAD_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an image has at most {MOST_UPLOAD_BYTES >> 20} MiB here"
            )
        body = self.rfile.read(int(length))
        if self.path == "/search":
            with NamedTemporaryFile(prefix="byol-query-") as file:
                file.write(body)
                file.flush()
                try:
                    return _json(self.server.explorer.search(Path(file.name)))
                except ValueError as error:
                    raise ValueError(str(error).replace(file.name, "the image")) from error
        if self.path == "/list":
            return self.server.explorer.listing(self._rows(body)).encode(), "text/csv; charset=utf-8"
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing of that name")

    def _rows(self, body: bytes) -> list[int]:
        try:
            rows = json.loads(body)
        except (ValueError, RecursionError):
            rows = None
        if not isinstance(rows, list) or len(rows) > MOST_LISTED:
            raise Refused(HTTPStatus.BAD_REQUEST, "a list of rows is wanted")
        return [self.server.explorer.place_of(str(row)) for row in rows]

    def log_message(self, *_: Any) -> None: ...


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value).encode(), "application/json"


class Server(ThreadingHTTPServer):
    """Serves an explorer on this machine alone. port: 0 for a free one. ValueError, in one line, where it is taken."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, explorer: Explorer, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ValueError(
                f"port {port} is in use or not allowed; choose another --port, or 0 for a free one"
            ) from error
        self.explorer = explorer
        self.page = template("explore.html").render(about=explorer.about()).encode()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"
