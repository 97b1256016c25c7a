"""What a person, or a named recipe, decided about a run; mistakes are answered without importing anything heavy."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isclose
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from byol.kinds import fits
from byol.names import PRETRAINED, backbones, method_arguments, split_tag, unknown
from byol.run import Compile, EncoderInit, Optimization, Optimizer, Precision, Stem
from byol.views.view import View

BATCH = ("batch_size", "accumulate")
LENGTHS = ("epochs", "steps", "budget")
AS_JSON = ("backbone_args", "method_args", "lr_scales")
"""Options whose lists are lists."""


@dataclass(frozen=True)
class Move:
    """What another batch did to one setting. before, after: as shown in `words`; value: what the setting became."""

    setting: str
    value: float
    before: float
    after: float
    words: str


@dataclass(frozen=True)
class Options:
    """What was decided by hand; None leaves it to the rules of docs/defaults.md."""

    method: str = "byol"
    method_args: dict[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    backbone_args: dict[str, Any] | None = None
    stem: Stem | None = None
    image_size: int | None = None
    channels: int | None = None
    """Of the images: 1 and 3 convert 8-bit ones, another number takes those that have so many, value for value."""
    value_range: tuple[float, float] | None = None
    """Of images that are not 8-bit gray or RGB: the values that become 0 and 1. Measured by default."""
    batch_size: int | None = None
    auto_batch: bool = False
    """The largest batch that fits the machine, and what follows from it, as `at_batch` says."""
    accumulate: int = 1
    epochs: float | None = None
    steps: int | None = None
    budget: float | None = None
    """Time to train for, s: as many steps as fit, at the rate measured before the first one and again after a fifth."""
    extended: tuple[tuple[int, int], ...] = ()
    """See `Run`: repeats a run that was made longer."""
    replan: tuple[int, int] | None = None
    """See `Run`: repeats a run whose budget made it plan again."""
    optimizer: Optimizer | None = None
    base_lr: float | None = None
    weight_decay: float | None = None
    decay_all: bool | None = None
    bias_lr: float | None = None
    constant_lr: tuple[str, ...] | None = None
    lr_scales: dict[str, float] | None = None
    final_lr: float | None = None
    lr_drops: tuple[float, ...] | None = None
    lr_in_momentum: bool | None = None
    lr_by_epoch: bool = False
    """The learning rate changes once an epoch, after the warm-up."""
    encoder_init: EncoderInit = "byol"
    normalize: bool = True
    """Views are normalised with ImageNet's mean and standard deviation, or the data's own; else they stay in [0, 1]."""
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    views: tuple[View, ...] | None = None
    view_changes: dict[str, Any] = field(default_factory=dict)
    """Fields of View, set in each of the views."""
    precision: Precision | None = None
    compile: Compile | None = None
    device: Literal["cpu", "cuda"] | None = None
    workers: int | None = None
    tile: int | None = None
    """Side of the tiles that large images are cut into, px."""
    streams: int | None = None
    """Of data in shards or tiles: 64, or as many as there are units. Of a Parquet file: read it as shards are."""
    reduced_decoding: bool = True
    """See `Run`; False crops every image at its full size, as the authors' code does."""
    seed: int = 0
    hold_out: float = 0.05
    init: str | None = None
    labels: str | None = None
    """A file that names the images' labels."""
    stop_on_collapse: bool = False
    keep: int = 2
    """Checkpoints, the last so many."""
    max_bad: float = 0.1
    """Share of unusable images that stops a run."""
    timeout: float = 900.0
    """Of several processes: how long one waits for another before that counts as hanging, s."""
    fixed: tuple[str, ...] = ()
    """Settings that were given by hand: `at_batch` does not move them, and a resumed run does not change them."""
    moves: tuple[Move, ...] = ()
    """What `at_batch` did last; `moved` says it."""

    @property
    def images_per_step(self) -> int | None:
        return None if self.batch_size is None else self.batch_size * self.accumulate

    def checked(self) -> Options:
        """Itself, or ValueError in one line for what is wrong whatever the data."""
        if self.backbone is not None and self.backbone not in backbones():
            raise ValueError(unknown("backbone", self.backbone, backbones()))
        _check_kinds("", vars(self), get_type_hints(Options))
        _check_kinds(f"argument of {self.method}", self.method_args, method_arguments(self.method))
        _check_kinds("field of a view", self.view_changes, get_type_hints(View))
        for view in self.views or (View(),):
            replace(view, **self.view_changes)  # a View checks its own ranges
        for name in (
            "image_size",
            "channels",
            "batch_size",
            "accumulate",
            "tile",
            "streams",
            "epochs",
            "steps",
            "budget",
            "base_lr",
            "keep",
            "timeout",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be greater than 0 and finite")
        for name in ("weight_decay", "bias_lr", "warmup_epochs", "warmup_steps", "workers", "seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must not be negative")
        if self.final_lr is not None and not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr={self.final_lr} is a share of the peak: from 0 to 1")
        if not all(0 < share < 1 for share in self.lr_drops or ()):
            raise ValueError(f"lr_drops={self.lr_drops} are shares of the run: greater than 0 and less than 1")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad={self.max_bad} is a share: from 0 to 1")
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"hold_out={self.hold_out} is a share: at least 0 and less than 1")
        if self.replan is not None and not (self.steps and 0 < self.replan[0] < min(self.steps, self.replan[1])):
            raise ValueError(f"replan={self.replan} repeats a run of a given number of steps; add the --steps it had")
        if self.compile == "reduce-overhead" and self.accumulate > 1:
            raise ValueError(
                "compile=reduce-overhead replays CUDA graphs, which do not accumulate; use compile=default"
            )
        if sum(given is not None for given in (self.epochs, self.steps, self.budget)) > 1:
            raise ValueError("epochs, steps and budget each say how long to train; give one of them")
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("warmup_epochs and warmup_steps both say how long to warm up; give one of them")
        if self.init is not None and self.init.startswith(PRETRAINED):
            name = split_tag(self.init)[0]
            if name and name not in backbones():
                raise ValueError(unknown("backbone", name, backbones()))
            if name and self.backbone not in (None, name):
                raise ValueError(f"init={self.init!r} is not for backbone={self.backbone}; name one of the two")
        elif self.init is not None and not Path(self.init).exists():
            raise ValueError(f"init={self.init!r} does not exist; give a run, a .safetensors file, or timm:NAME.TAG")
        if self.labels is not None and not Path(self.labels).is_file():
            raise ValueError(
                f"labels={self.labels!r} does not exist; give a .csv or .tsv file that names each image's label"
            )
        return self

    def given(self) -> dict[str, Any]:
        """What was decided, by hand or by a recipe, as JSON has it: the settings that are not left to the rules."""
        default = Options()
        found = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("fixed", "moves")
            and (getattr(self, f.name) != getattr(default, f.name) or f.name in self.fixed)
        }
        if self.views is not None:
            found["views"] = [vars(view) for view in self.views]
        return json.loads(json.dumps(found))

    @classmethod
    def of(cls, given: dict[str, Any]) -> Options:
        """The options of which `given` gave this, read from JSON. ValueError, in one line, where it never gives that;
        `checked` says the rest."""
        names = {f.name for f in fields(cls)} - {"fixed", "moves"}
        if others := sorted(set(given) - names):
            raise ValueError(f"there is no option {others[0]!a}; the file is damaged, or of another version")
        values = {name: value if name in AS_JSON else _tuples(value) for name, value in given.items()}
        try:
            if values.get("views") is not None:
                values["views"] = tuple(View(**{k: _tuples(v) for k, v in view.items()}) for view in given["views"])
            if "view_changes" in values:
                values["view_changes"] = {k: _tuples(v) for k, v in given["view_changes"].items()}
        except (TypeError, AttributeError) as error:
            raise ValueError("the views are damaged, or of another version") from error
        return cls(**values)

    def at_batch(self, batch_size: int, accumulate: int = 1) -> Options:
        """With another batch, and with all that follows from it: docs/defaults.md has the rules and their sources."""
        old, new = self.images_per_step, batch_size * accumulate
        options = replace(self, batch_size=batch_size, accumulate=accumulate)
        if old is None or new < 1 or old == new:  # `checked` refuses less than 1
            return options
        ratio = new / old
        moves = [Move("images_per_step", new, old, new, "batch {:g} -> {:g}")]
        if self.base_lr is not None and "base_lr" not in self.fixed:
            # base_lr is multiplied by the batch wherever it is used, which is the linear rule.
            rule, exponent = ("square root", 0.5) if self.optimizer in (None, "adamw") else ("linear", 1.0)
            base_lr = float(f"{self.base_lr * ratio ** (exponent - 1):.4g}")
            options = replace(options, base_lr=base_lr)
            words = f"learning rate {{:.4g}} -> {{:.4g}} ({rule} rule)"
            moves.append(Move("base_lr", base_lr, self.base_lr * old / 256, base_lr * new / 256, words))
            if exponent == 0.5 and self.weight_decay and "weight_decay" not in self.fixed:
                weight_decay = float(f"{self.weight_decay * ratio**0.5:.4g}")
                options = replace(options, weight_decay=weight_decay)
                words = "weight decay {:g} -> {:g}"
                moves.append(Move("weight_decay", weight_decay, self.weight_decay, weight_decay, words))
        if "tau" in self.method_args and "tau" not in self.fixed:
            tau = round(self.method_args["tau"] ** ratio, 9)
            options = replace(options, method_args={**self.method_args, "tau": tau})
            moves.append(Move("tau", tau, self.method_args["tau"], tau, "tau {:g} -> {:g}"))
        for name, word in (("steps", ""), ("warmup_steps", "warm-up ")):
            if (steps := getattr(self, name)) and name not in self.fixed:
                options = replace(options, **{name: round(steps / ratio)})
                moves.append(Move(name, round(steps / ratio), steps, round(steps / ratio), word + "{:,} -> {:,} steps"))
        began = {move.setting: move.before for move in self._standing()}
        moves = [replace(move, before=began.get(move.setting, move.before)) for move in moves]
        return replace(options, moves=tuple(moves))

    def moved(self) -> list[str]:
        """What another batch did, for people: of the settings that still stand as it left them."""
        standing = self._standing()
        return [m.words.format(m.before, m.after) for m in standing if not isclose(m.before, m.after, rel_tol=1e-6)]

    def _standing(self) -> list[Move]:
        now = {"images_per_step": self.images_per_step, **vars(self), **self.method_args}
        return [move for move in self.moves if now.get(move.setting) == move.value]

    def for_method(self, method: str) -> Options:
        """The same data, network, views and length for another method, which brings its own arguments and optimizer."""
        own: dict[str, Any] = dict.fromkeys(f.name for f in fields(Optimization))
        return replace(self, method=method, method_args={}, warmup_steps=None, warmup_epochs=None, **own)

    def changed(self, settings: Mapping[str, Any]) -> Options:
        """With other values of fields, as keyword arguments give them. A method, a backbone and how long to train, each
        replaces all that was said of the old one; arguments of the method are added. ValueError for an unknown name."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        known = {name: kind for name, kind in get_type_hints(Options).items() if name not in ("fixed", "moves")}
        _check_kinds("setting", values, known)
        if values.get("auto_batch") and values.keys() & set(BATCH):
            raise ValueError("auto_batch and a batch size each say how large batches are; give one of them")
        options, method = self, values.pop("method", self.method)
        if method != self.method:
            options = self.for_method(method)
        if any(values.get(name) is not None for name in LENGTHS):
            options = replace(options, epochs=None, steps=None, budget=None)
        if values.get("backbone") is not None:
            options = replace(options, backbone_args=None, stem=None)
        if options.batch_size is not None and values.get("batch_size", 1) is not None:
            batch = {name: values.pop(name, getattr(options, name)) for name in BATCH}
            options = options.at_batch(**batch)
        if values.get("auto_batch"):
            values["fixed"] = tuple(settings)
        if "method_args" in values:
            values["method_args"] = {**options.method_args, **values["method_args"]}
        return replace(options, **values)

    def with_settings(self, settings: Iterable[str]) -> Options:
        """With `name=value` settings: an argument of the method, an option, or view.FIELD for all views."""
        options = self
        own = get_type_hints(Options)
        for name in (
            "method",
            "method_args",
            "views",
            "view_changes",
            "auto_batch",
            "fixed",
            "moves",
        ):  # set by ways of their own
            del own[name]
        of_view = {f"view.{name}": kind for name, kind in get_type_hints(View).items()}
        of_method = method_arguments(self.method)
        kinds = own | of_view | of_method
        # The batch first: what it moves are the recipe's settings, not those typed beside it.
        for setting in sorted(settings, key=lambda text: text.partition("=")[0] not in BATCH):
            name, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set {setting!r} is not of the form name=value")
            if name not in kinds:
                raise ValueError(unknown("setting", name, kinds))
            value = _value(text, kinds[name])
            if name in of_method:
                options = replace(options, method_args={**options.method_args, name: value})
            elif name in BATCH:
                batch = {"batch_size": options.batch_size, "accumulate": options.accumulate} | {name: value}
                if batch["batch_size"] is None or not fits(value, int):
                    options = replace(options, **{name: value})
                else:
                    options = options.at_batch(**batch)
            elif name in of_view:
                changes = {**options.view_changes, name.removeprefix("view."): value}
                options = replace(options, view_changes=changes)
            else:
                options = replace(options, **{name: value})
        return options


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _value(text: str, kind: Any) -> Any:
    """What was typed as Python's own literals read it, or the text where that is what is wanted."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    value = tuple(value) if isinstance(value, list) else value
    return text if not fits(value, kind) and fits(text, kind) else value


def _check_kinds(what: str, values: dict[str, Any], kinds: dict[str, Any]) -> None:
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(unknown(what, name, kinds))
        if not fits(value, kinds[name]):
            raise ValueError(f"{name}={value!r} is not possible; use {_words(kinds[name])}")


def _words(kind: Any) -> str:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in arguments if each is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return "several values in parentheses" if ... in arguments else f"{len(arguments)} values such as (0.2, 1)"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    return words.get(origin, "a dictionary such as {'layers': [1, 1, 1, 1]}")
