"""Files that a killed process leaves whole, that a reader never finds torn, and that one run at a time writes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

LOCK = ".lock"
TEMPORARY = ".tmp"
MOST_JSON_BYTES = 1 << 24
"""Of a JSON file, or of one line of a file of many: as Python's objects it may take twenty times as much."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary place beside `path`: what is written there takes its name at the end, whole and on the disk, or is
    gone. OSErrors name `path`."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:12]}{TEMPORARY}")
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """OSErrors say which file they are about: those of a write do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def sync(path: Path) -> None:
    """Wait until a file, or which files a folder has, is on the disk. OSErrors name it."""
    with naming(path), contextlib.suppress(PermissionError):  # Windows opens no folders
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
                raise
        finally:
            os.close(file)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def sweep(directory: Path, *names: str) -> None:
    """Remove what writers that were killed left of files of those names; * stands for anything."""
    for pattern in (*(f"{name}.*{TEMPORARY}" for name in names), ".tmp*"):  # safetensors has names of its own
        for left in directory.glob(pattern):
            left.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError, in one line, where it holds none."""
    with path.open("rb") as file:
        return _object(path, file.read(MOST_JSON_BYTES + 1), "")


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of one each line, of which the last may be half written; none where there is no file.
    ValueError, in one line, where a line holds none."""
    return (found for found, _ in placed_lines(path))


def placed_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The same, each with the place in the file where its line ends, bytes."""
    if not path.exists():
        return
    end, number = 0, 0
    with path.open("rb") as file:
        while (line := file.readline(MOST_JSON_BYTES + 1)).endswith(b"\n") or len(line) > MOST_JSON_BYTES:
            end, number = end + len(line), number + 1
            yield _object(path, line, f"line {number} of "), end


def _object(path: Path, text: bytes, which: str) -> dict[str, Any]:
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f"{which}{path} is longer than any that this package writes; restore it from a copy")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{which}{path} is damaged: it is no JSON; restore it from a copy") from error
    if not isinstance(found, dict):
        raise ValueError(f"{which}{path} is damaged: it is no JSON object; restore it from a copy")
    return found


def is_free(directory: Path) -> bool:
    """Whether a run may begin there: nothing is there but what one leaves that was killed before it wrote anything."""
    if not directory.exists():
        return True
    return directory.is_dir() and all(p.name == LOCK or p.suffix == TEMPORARY for p in directory.iterdir())


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold a directory, which is made if need be, against other processes. BlockingIOError where one holds it. Gives
    whether it is held: not all file systems can.

    The system lets go when the process ends, however it does; processes that it forked do not hold on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    held = True
    with (directory / LOCK).open("a") as file:
        try:
            with naming(directory):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, "held by another process", str(directory)) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            held = False
        yield held


@contextmanager
def only_one(directory: Path, what: str, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Within it no other process writes there. ValueError where one does. what: writes it, such as "another run"."""
    with contextlib.ExitStack() as lock:
        try:
            held = lock.enter_context(locked(directory))
        except BlockingIOError:
            raise ValueError(f"{what} is writing {directory}; wait until it ends, or choose another --out") from None
        if not held:
            say(f"{directory} cannot be locked here: let nothing else write to it meanwhile")
        yield
