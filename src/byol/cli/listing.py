"""What names there are."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from byol import names


class Kind(StrEnum):
    methods = "methods"
    backbones = "backbones"
    recipes = "recipes"
    experiments = "experiments"


def list_names(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """The names that --method, --backbone and --recipe take."""
    if kind is Kind.recipes:
        from byol.experiments import RECIPES

        for name, recipe in RECIPES.items():
            first, _, _ = (recipe.__doc__ or "").partition("\n\n")
            typer.echo(f"{name}: {' '.join(first.split())}")
    elif kind is Kind.experiments:
        from byol.experiments.paper import EXPERIMENTS

        for name, experiment in EXPERIMENTS.items():
            typer.echo(f"{name}: {experiment.__doc__}")
    elif kind is Kind.methods:
        for name in names.METHODS:
            typer.echo(f"{name}: {names.method_summary(name)}")
    else:
        for name in names.backbones():
            typer.echo(name)
