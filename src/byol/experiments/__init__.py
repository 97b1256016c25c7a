"""Published recipes, as functions that return what they decide; `--recipe NAME` takes one."""

from __future__ import annotations

from collections.abc import Callable

from byol.experiments import cifar, imagenet, small
from byol.experiments.small import cifar10_two_cores, digits_demo
from byol.options import Options

__all__ = ["RECIPES", "cifar10_two_cores", "digits_demo"]

RECIPES: dict[str, Callable[[], Options]] = {
    name: recipe
    for module in (imagenet, cifar, small)
    for name, recipe in vars(module).items()
    if callable(recipe) and not name.startswith("_") and getattr(recipe, "__module__", None) == module.__name__
}
"""Every public function of the recipes' modules, by its name."""
