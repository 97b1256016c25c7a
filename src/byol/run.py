"""A run as a value: all that determines the result, written beside it as JSON."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from byol.files import read_json, write_json
from byol.kinds import fits

T = TypeVar("T")

RUN = "run.json"
Optimizer = Literal["lars", "sgd", "adamw"]
Precision = Literal["bf16", "32", "64"]
Stem = Literal["original", "3x3", "3x3-pad2"]
Padding = Literal["symmetric", "SAME"]
Compile = Literal["default", "reduce-overhead"]
EncoderInit = Literal["byol", "timm"]
"""How the encoder's weights are drawn: as BYOL's code does, or as timm does (for ResNets: Kaiming normal, each residual
block's last norm at 0), which is also how the code of the methods written in PyTorch does."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights are moved. Pure data: the same names in a method's defaults, a recipe and a run."""

    optimizer: Optimizer
    base_lr: float
    """Learning rate for 256 images a step; the peak is base_lr * batch_size * accumulate / 256."""
    weight_decay: float
    """Of the weights; biases and normalisation parameters have none unless `decay_all` is set."""
    decay_all: bool = False
    """Biases and normalisation parameters decay too, as in the code of SimSiam and MoCo."""
    bias_lr: float = 1.0
    """Learning rate of biases and normalisation parameters, as a multiple of the weights'."""
    constant_lr: tuple[str, ...] = ()
    """Parts of the method whose learning rate stays at its peak after the warm-up."""
    lr_scales: dict[str, float] = field(default_factory=dict)
    """Parts of the method whose learning rate is a multiple of the others'."""
    final_lr: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    lr_drops: tuple[float, ...] = ()
    """Shares of the run after each of which the learning rate is a tenth; where there are any, no cosine."""
    lr_in_momentum: bool = False
    """LARS with the learning rate inside the momentum buffer, as in SimCLR's code."""


@dataclass(frozen=True, kw_only=True)
class Run(Optimization):
    """Everything that determines what a training run computes. Nothing in it is decided later."""

    data: str
    method: str
    method_args: dict[str, Any]
    backbone: str
    """timm name."""
    backbone_args: dict[str, Any]
    stem: Stem
    padding: Padding = "symmetric"
    image_size: int
    """Height and width of the views, px."""
    channels: int
    value_range: tuple[tuple[float, float], ...] | None = None
    """Of images that are not 8-bit gray or RGB, per channel (low, high): the values that become 0 and 1."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]; views are normalised with it and `std`."""
    std: tuple[float, ...]
    views: tuple[dict[str, Any], ...]
    """Fields of byol.views.view.View, one for each view of the method."""
    batch_size: int
    """Images in one forward pass."""
    accumulate: int
    """Forward passes in one optimizer step."""
    total_steps: int
    """Optimizer steps, K."""
    warmup_steps: int
    extended: tuple[tuple[int, int], ...] = ()
    """(k, K) for each time that it was made longer: the steps before the k-th were those of a run of K steps."""
    replan: tuple[int, int] | None = None
    """(k, K): the first k steps were those of a run of K steps; from there to the same end it goes evenly, in what is
    left of `total_steps`. `warmup_steps` and what the method was given belong to K."""
    lr_every_steps: int = 1
    """After the warm-up the learning rate changes this often: 1, or the steps of an epoch."""
    encoder_init: EncoderInit = "byol"
    precision: Precision
    """bf16: networks under autocast; weights, loss, optimizer and target stay float32."""
    compile: Compile | None = None
    """The mode in which torch.compile makes the networks; "reduce-overhead" replays CUDA graphs."""
    device: str
    """"cpu" or "cuda"."""
    workers: int
    """Processes that decode large images, 0: threads of this one do; small ones live in memory."""
    seed: int
    hold_out: float
    """Share of the images never trained on, for diagnosis while training."""
    evaluate_every_steps: int
    checkpoint_every_steps: int
    keep: int = 2
    """Checkpoints, the last so many."""
    max_bad: float = 0.1
    """Share of unusable images that stops a run."""
    stop_on_collapse: bool = False
    tile: int = 0
    """Side of the tiles that images were cut into, px; 0 for whole images."""
    streams: int = 0
    """Of data in shards or tiles, how many are read side by side; 0 for data whose images are read in any order."""
    reduced_decoding: bool = True
    """JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where all their crops stay at least as large as the views."""
    init: str | None = None
    """A run, a safetensors file or timm:NAME.TAG whose weights the encoder starts from."""
    labels: str | None = None
    """A file that named the images' labels."""
    options: dict[str, Any] = field(default_factory=dict, compare=False)
    """What was decided by hand, as `Options.given` has it: what a resumed run may not change."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was found and not chosen: versions, the data's count and fingerprint, device, git commit."""

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.images_per_step / 256

    def schedule(self, step: int) -> tuple[float, int]:
        """(where a step stands, of how many steps): schedules were made for the second number, and the first is the
        step itself, unless the run was planned again."""
        total = next((before for begun, before in self.extended if step < begun), self.total_steps)
        if self.replan is None:
            return step, total
        begun, planned = self.replan
        if step > begun:
            return begun + (planned - begun) * (step - begun) / (total - begun), planned
        return step, planned

    def progress(self, step: int) -> float:
        """How far the run is before a step, in [0, 1]."""
        position, planned = self.schedule(step)
        return position / planned

    def fact(self, name: str, kind: type[T]) -> T:
        """What was found of that name. ValueError where the run's file does not say it."""
        value = self.facts.get(name)
        if not fits(value, kind):
            raise ValueError(f"{RUN} is damaged: its facts lack `{name}`; restore it from a copy")
        return cast(T, value)

    def write(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run written at `path`. ValueError at a key this version does not know or does not find."""
        found = read_json(path)
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := set(found) - set(known):
            raise ValueError(
                f"{path} has settings unknown to this version: {', '.join(map(ascii, sorted(unknown)[:5]))}"
            )
        optional = {name for name, f in known.items() if f.default_factory is not dataclasses.MISSING}
        optional |= {name for name, f in known.items() if f.default is not dataclasses.MISSING}
        if missing := set(known) - set(found) - optional:
            raise ValueError(f"{path} lacks settings this version needs: {', '.join(sorted(missing))}")
        try:
            run = cls._of(found)
        except (TypeError, ValueError, AttributeError):
            run = None
        kinds = typing.get_type_hints(cls)
        wrong = [name for name in found if run is None or not fits(getattr(run, name), kinds[name])]
        if run is None or wrong:
            which = f"`{wrong[0]}` is" if run else "settings are"
            raise ValueError(f"{path} is damaged: {which} of another kind; restore it from a copy")
        return run

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Run:
        types = typing.get_type_hints(cls)
        tuples = {n for n in found if tuple in [typing.get_origin(t) for t in (types[n], *typing.get_args(types[n]))]}
        values: dict[str, Any] = {n: tuple(v) if n in tuples and v is not None else v for n, v in found.items()}
        for name in ("value_range", "extended"):
            if values.get(name) is not None:
                values[name] = tuple(map(tuple, values[name]))
        values["views"] = tuple(
            {k: tuple(v) if isinstance(v, list) else v for k, v in view.items()} for view in values["views"]
        )
        return cls(**values)
