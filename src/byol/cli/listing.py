"""What names there are."""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from byol import names
from byol.cli.shared import AsJson, fail, print_json


class Kind(StrEnum):
    methods = "methods"
    backbones = "backbones"
    recipes = "recipes"
    experiments = "experiments"


def list_names(
    kind: Annotated[Kind, typer.Argument(help="methods, backbones, recipes or experiments.", show_default=False)],
    pattern: Annotated[
        str | None, typer.Argument(help="Only names that hold this, or that match it where it has a * or ?.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The names that --method, --backbone, --recipe and `byol ablate` take.

    Examples:
        byol list methods
        byol list backbones convnext
        byol list backbones 'vit_small*224'
        byol list recipes cifar --json
    """
    known = _all(kind)
    found = {name: said for name, said in known.items() if pattern is None or _matches(name, pattern)}
    if not found:
        assert pattern is not None, "there are names of each kind"
        fail(names.unknown(kind.value.removesuffix("s"), pattern, known))
    if as_json:
        print_json({kind.value: found if any(found.values()) else list(found)})
        return
    for name, said in found.items():
        typer.echo(f"{name}: {said}" if said else name)


def _all(kind: Kind) -> dict[str, str]:
    """Names, and what is said of each."""
    if kind is Kind.recipes:
        from byol.experiments import RECIPES

        return {name: _first_sentences(recipe.__doc__) for name, recipe in RECIPES.items()}
    if kind is Kind.experiments:
        from byol.experiments.paper import EXPERIMENTS

        return {name: experiment.__doc__ or "" for name, experiment in EXPERIMENTS.items()}
    if kind is Kind.methods:
        return {name: names.method_summary(name) for name in names.METHODS}
    return dict.fromkeys(names.backbones(), "")


def _first_sentences(described: str | None) -> str:
    return " ".join((described or "").partition("\n\n")[0].split())


def _matches(name: str, pattern: str) -> bool:
    """As timm's own filter where there is a * or ?, else any part of the name."""
    pattern = pattern.lower()
    return fnmatchcase(name, pattern) if any(c in pattern for c in "*?[") else pattern in name
