"""Names people type, without importing what they name: `--help` and option errors must answer at once."""

from __future__ import annotations

import ast
import builtins
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

METHODS = ("byol", "simsiam", "barlow_twins", "vicreg", "simclr", "moco", "moco_v3", "instdisc", "supervised")
PROTOCOLS = ("knn", "linear", "fewshot", "linear-sgd", "finetune", "semi")
METRICS = {"top1": "top-1 accuracy", "mean-per-class": "mean per-class accuracy", "map": "11-point mAP"}
FORMATS: dict[str, tuple[str, ...]] = {
    "timm": (),
    "huggingface": (),
    "torchvision": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "pt2": (),
}
"""What a backbone is exported as -> the packages that it takes beyond this one's own."""
PRETRAINED = "timm:"
"""What stands before the tag of weights that timm downloads."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist, with the nearest that do."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {', '.join(near)}?"
    return f"unknown {kind} {name!r}; known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"


def missing_packages(kind: str) -> list[str]:
    """Those that a format of FORMATS takes and that are not installed."""
    return [name for name in FORMATS[kind] if importlib.util.find_spec(name) is None]


def check_format(kind: str) -> None:
    """ValueError where there is no such format, or packages are missing that it takes."""
    if kind not in FORMATS:
        raise ValueError(unknown("format", kind, FORMATS))
    if missing := missing_packages(kind):
        raise ValueError(f"{kind} needs {', '.join(missing)}; run `pip install {' '.join(missing)}`")


def licence(text: str) -> str:
    """An SPDX identifier as it was given. ValueError where it is not of their form."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", text):
        raise ValueError(f"licence {text[:80]!a} is no SPDX identifier such as Apache-2.0, MIT or CC-BY-4.0")
    return text


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


FILLED = ("num_images", "num_classes")
"""Arguments of a method's constructor that the data decide."""


@cache
def method_arguments(method: str) -> dict[str, Any]:
    """The arguments of a method's constructor that a run may set, and their types, read from its source file: importing
    it imports torch. method: a name, or module:Class. ValueError for a method that does not exist."""
    tree = ast.parse(_source(method).read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if ":" in method:
        _, _, name = method.partition(":")
        found = [node for node in classes if node.name == name]
        if not found:
            raise ValueError(unknown(f"class in {method.partition(':')[0]}", name, [c.name for c in classes]))
        own = found[0]
    else:
        own = next(node for node in classes if any(isinstance(b, ast.Name) and b.id == "Method" for b in node.bases))
    constructor = [node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    arguments = constructor[0].args.kwonlyargs if constructor else []
    return {a.arg: _kind(a.annotation) for a in arguments if a.arg not in FILLED}


def method_summary(method: str) -> str:
    """The first sentence of a method's file, which says what it does."""
    described = ast.get_docstring(ast.parse(_source(method).read_text("utf-8"))) or ""
    return described.partition("\n\n")[0].replace("\n", " ")


def _source(method: str) -> Path:
    if ":" not in method:
        if method not in METHODS:
            raise ValueError(unknown("method", method, METHODS))
        return Path(__file__).parent / "methods" / f"{method}.py"
    module = method.partition(":")[0]
    _see_working_directory()
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"method {method!r}: there is no module {module} here; give module:Class of a Python file")
    return Path(spec.origin)


def import_outside(name: str) -> Any:
    """What module:Name names, the module found here or installed. ValueError, in one line, where it cannot be had."""
    module, _, attribute = name.partition(":")
    _see_working_directory()
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error


def _see_working_directory() -> None:
    # A command installed in bin/ does not look where it is called, as `python -m` does.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _kind(annotation: ast.expr | None) -> Any:
    """A type from its source: a name of Python's own, X | Y, or a Literal."""
    match annotation:
        case ast.Name(id=name):
            return getattr(builtins, name, object)
        case ast.Constant(value=None):
            return type(None)
        case ast.BinOp(left=left, right=right):
            return _kind(left) | _kind(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            return Literal[ast.literal_eval(values)]
    return object  # of a method of your own: anything
