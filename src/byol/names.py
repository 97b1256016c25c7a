"""Names people type, without importing what they name: `--help` and option errors must answer at once."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

METHODS = ("byol",)
PROTOCOLS = ("knn", "linear", "fewshot")
RECIPES = (
    "byol_imagenet_100",
    "byol_imagenet_300",
    "byol_imagenet_1000",
    "byol_imagenette",
    "byol_cifar10",
    "cifar10_two_cores",
    "digits_demo",
)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist, with the nearest that do."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {', '.join(near)}?"
    return f"unknown {kind} {name!r}; known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"


@cache
def backbones() -> tuple[str, ...]:
    """The names of timm's models, read from its source files: importing timm takes seconds, this takes 0.1 s."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("timm is not installed; run `pip install timm`")
    names: set[str] = set()
    for file in (Path(spec.origin).parent / "models").glob("*.py"):
        names.update(re.findall(r"^@register_model\s+def (\w+)\(", file.read_text("utf-8"), re.MULTILINE))
    return tuple(sorted(names))
