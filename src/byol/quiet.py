"""Whether only warnings and errors are told: an environment variable, so that processes of a command know it too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "BYOL_QUIET"


def is_quiet() -> bool:
    """Whether a person asked for it, by the variable or by `--quiet`."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


@contextmanager
def quieted() -> Iterator[None]:
    """Within it, here and in processes that are started there, it is asked for."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
