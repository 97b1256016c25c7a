"""Names people type, without importing what they name: `--help` and option errors must answer at once."""

from __future__ import annotations

import ast
import builtins
import difflib
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

METHODS = ("byol",)
PROTOCOLS = ("knn", "linear", "fewshot")
PRETRAINED = "timm:"
"""What stands before the tag of weights that timm downloads."""


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


def split_tag(init: str) -> tuple[str, str]:
    """timm:NAME.TAG or timm:TAG -> (NAME or nothing, TAG)."""
    name, _, tag = init.removeprefix(PRETRAINED).rpartition(".")
    return name, tag


@cache
def method_arguments(method: str) -> dict[str, Any]:
    """The arguments of a method's constructor that a run may set, and their types, read from its source file: importing
    it imports torch. ValueError for a method that does not exist."""
    if method not in METHODS:
        raise ValueError(unknown("method", method, METHODS))
    tree = ast.parse((Path(__file__).parent / "methods" / f"{method}.py").read_text("utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    own = next(node for node in classes if any(isinstance(b, ast.Name) and b.id == "Method" for b in node.bases))
    constructor = next(node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return {argument.arg: _kind(argument.annotation) for argument in constructor.args.kwonlyargs}


def _kind(annotation: ast.expr | None) -> Any:
    """A type from its source: a name of Python's own, X | Y, or a Literal."""
    match annotation:
        case ast.Name(id=name):
            return getattr(builtins, name)
        case ast.Constant(value=None):
            return type(None)
        case ast.BinOp(left=left, right=right):
            return _kind(left) | _kind(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            return Literal[ast.literal_eval(values)]
    raise TypeError(f"an argument of a method has no type this can read: {annotation and ast.unparse(annotation)}")
