"""Weights from elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from byol import names
from byol.cli.shared import AsJson, Backbone, fail, print_json, taken


class Origin(StrEnum):
    auto = "auto"
    deepmind = "deepmind"
    solo_learn = "solo-learn"
    lightly = "lightly"
    vicreg = "vicreg"
    barlow_twins = "barlow-twins"
    moco = "moco"
    simsiam = "simsiam"
    torchvision = "torchvision"
    timm = "timm"


Numbers = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="Per channel, of images in [0, 1]; ImageNet's by default.")
]


def import_weights(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of weights, or a name of timm (resnet50, resnet50.a1_in1k), whose weights it downloads.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write the run into.", show_default=False)],
    origin: Annotated[
        Origin,
        typer.Option(
            "--from",
            metavar="LIBRARY",
            help="Whose layout the file has: deepmind, solo-learn, lightly, vicreg, barlow-twins, moco, simsiam, "
            "torchvision or timm; auto sees it from the file's names.",
        ),
    ] = Origin.auto,
    backbone: Backbone = None,
    prefix: Annotated[
        str | None, typer.Option(help="What the names of the network's weights begin with, where there are several.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Input of the network, px; 224, or 32 with a 3x3 stem.")
    ] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Of the images, for a name of timm.")] = None,
    mean: Numbers = None,
    std: Numbers = None,
    used_labels: Annotated[
        bool, typer.Option("--used-labels", help="The weights learned from labels; evaluations will say so.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a run of weights trained elsewhere, for every other command to take.

    DeepMind's BYOL checkpoints, state dicts of solo-learn, lightly, VICReg, Barlow Twins, MoCo and SimSiam,
    torchvision's names, and timm's models.

    Examples:
        byol import pretrain_res50x1.pkl --out deepmind
        byol import checkpoint.ckpt --from solo-learn --image-size 32 --out solo
        byol import timm:resnet50.a1_in1k --out imagenet
    """
    is_file = Path(source).exists()
    if not is_file:
        _check_name(source, origin)
    if backbone is not None and backbone not in names.backbones():
        fail(names.unknown("backbone", backbone, names.backbones()))
    means, deviations = _numbers("--mean", mean), _numbers("--std", std)
    if deviations is not None and min(deviations) <= 0:
        fail(f"--std {std} holds what is not above 0")
    if taken(out):
        fail(f"{out} exists already; choose another --out")
    from byol.console import Terminal, stdout
    from byol.importing import import_weights as run_import

    layout: Any = None if origin is Origin.auto else origin.value
    with Terminal() as terminal:
        found = run_import(
            source,
            out,
            layout=layout,
            backbone=backbone,
            image_size=image_size,
            channels=channels,
            mean=means,
            std=deviations,
            prefix=prefix,
            used_labels=used_labels,
            say=terminal.say,
        )
    if as_json:
        print_json(found)
        return
    scale = "as given" if mean or std else "timm's" if found["imported"]["layout"] == "timm" else "ImageNet's"
    stdout.print(
        f"{found['name']} with {found['feature_dim']} features of {found['image_size']} px images "
        f"(mean and std: {scale}): {out}."
    )


def _check_name(source: str, origin: Origin) -> None:
    name, _, _ = source.removeprefix(names.PRETRAINED).partition(".")
    if name in names.backbones() and origin in (Origin.auto, Origin.timm):
        return
    if source.startswith(names.PRETRAINED) or origin is Origin.timm:
        fail(names.unknown("backbone", name, names.backbones()))
    fail(f"{source} is neither a file nor a name of timm; see `byol list backbones`")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        fail(f"{option} {text} is no list of numbers; write it as 0.485,0.456,0.406")
