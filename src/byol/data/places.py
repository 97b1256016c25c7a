"""Where what can be made again is kept between commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """$BYOL_CACHE, else `byol` in the user's cache folder by the XDG rule."""
    if chosen := os.environ.get("BYOL_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "byol"
