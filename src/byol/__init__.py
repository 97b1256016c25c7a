"""From a folder of unlabelled images to a proven self-supervised backbone.

`byol.pretrain(DATA, OUT)` makes a run; `byol.load(RUN)` gives its encoder, and `.embed(IMAGES)` of that features.
`byol.sklearn.Embedder` is for scikit-learn. Importing this package imports nothing heavy and changes no global state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from byol.export import load
    from byol.options import Options
    from byol.report import pretrain

__all__ = ["Options", "load", "pretrain"]

_HOMES = {"load": "byol.export", "Options": "byol.options", "pretrain": "byol.report"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'byol' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
