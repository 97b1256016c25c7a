"""What an evaluation is of: images with their labels, and the networks that stand side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol.data.labels import with_groups, with_labels
from byol.data.loader import Normalization
from byol.data.open import Images, open_source
from byol.data.source import DataError, Part, Range, Source, measured
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate.columns import (
    BACKBONE,
    RAW_PIXELS,
    UNTRAINED,
    Column,
    backbone,
    on_gray,
)
from byol.evaluate.labelled import Parts, apart, labelled_of, with_classes_of
from byol.evaluate.labelled import load as load_part
from byol.evaluate.protocols import Settings
from byol.export import DESCRIPTION, load, range_of, read_description, start_from
from byol.names import PRETRAINED, backbones, split_tag, unknown
from byol.run import Run
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD, View

COLUMNS = (BACKBONE, RAW_PIXELS, UNTRAINED)
TEST_SHARE = 0.2
"""Share of labelled images held out for testing where the data come without a test part."""


def open_images(
    data: Images,
    *,
    part: Part = "train",
    channels: int | None = None,
    value_range: Range | None = None,
    labels: str | None = None,
    groups: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Source:
    """A part of `data`. channels: that the encoder takes, where the source may choose. value_range: of deep images,
    that of the encoder's training; measured here where it is not known. labels: a file that names them. groups: what
    images belong together, see `with_groups`."""
    source = open_source(data, part=part, channels=channels)
    if source.deep:
        source = source.with_range(value_range) if value_range else measured(source)
    elif value_range is not None:
        raise DataError(f"{data} holds 8-bit gray or RGB images, and the backbone was trained on other values")
    return _told(source, labels, groups, say)


def open_parts(
    data: str,
    test: str | None,
    *,
    channels: int | None = None,
    value_range: Range | None = None,
    labels: str | None = None,
    groups: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    opened: Source | None = None,
) -> Parts:
    """Labelled training images, and test images that are read when they are asked for. test: other data to test on;
    else the test part of `data`, or a fifth of it where it has none. channels, value_range, labels, groups: see
    `open_images`; opened: what that gave, where it was called before."""
    if opened is None:
        opened = open_images(data, channels=channels, value_range=value_range, labels=labels, groups=groups, say=say)
    source = labelled_of(opened)
    name = test or data
    if test is None and not source.has_test_part:
        fit, held = apart(source, TEST_SHARE, seed=0)
        source, found = source.subset(fit), source.subset(held)
    else:
        which: Part = "all" if test else "test"
        found = open_images(name, part=which, channels=source.channels, value_range=source.value_range)
        if labels is not None and _share_names(opened, found):
            say(f"{labels} names test images of {name} as it names training images: those keep their own labels")
            labels = None
        found = _told(found, labels, groups, say)
        found = with_classes_of(source, labelled_of(found), name)
    if found.groups is not None and len(np.unique(found.groups)) < 2:
        raise DataError(
            f"the test images of {name} are of one group, and an interval needs 2 or more; name another grouping"
        )
    return Parts(load_part(source), cache(lambda: load_part(found)), name)


def _told(source: Source, labels: str | None, groups: str | None, say: Callable[[str], None]) -> Source:
    if labels is not None:
        source = with_labels(source, labels, say=say)
    return source if groups is None else with_groups(source, groups, labels)


def _share_names(a: Source, b: Source) -> bool:
    """Whether a name that a labels file holds could be an image of either: listings number theirs from 0."""
    names = (
        {listing.name(i) for i in range(num)} for listing, num in ((a.listing, a.num_listed), (b.listing, b.num_listed))
    )
    return a.fingerprint != b.fingerprint and not next(names).isdisjoint(next(names))


def read_backbone(run_directory: Path) -> tuple[dict[str, Any], EncoderSpec, Column]:
    """(the description, the encoder's structure, the backbone as a column) of a run."""
    description, encoder = read_description(run_directory), load(run_directory)
    about = description["normalization"]
    return description, encoder.spec, backbone(encoder, about["mean"], about["std"])


def device_of(settings: Settings) -> str:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is not available here; use --device cpu")
    return settings.device or ("cuda" if torch.cuda.is_available() else "cpu")


def baseline(name: str, like: Column, value_range: Range | None = None) -> Column:
    """A network to stand beside a backbone: a run, timm:NAME.TAG, or NAME=FILE.safetensors, a timm model with local
    weights. like: the backbone, whose input size a timm model gets; value_range: of its images. Networks for colour
    take gray images too."""
    assert isinstance(like.network, Encoder)
    channels = like.network.spec.channels
    if (Path(name) / DESCRIPTION).is_file():
        description, spec, own = read_backbone(Path(name))
        used = " (used labels)" if description.get("used_labels") else ""
        own = replace(own, name=Path(name).resolve().name + used)
        if spec.channels == channels:
            if range_of(description) != value_range:
                raise ValueError(f"--baseline {name} was trained on another value_range; evaluate it by itself")
            return own
        if (spec.channels, channels) != (3, 1):
            raise ValueError(f"--baseline {name} takes images of {spec.channels} channels, the backbone of {channels}")
        return on_gray(own)
    model, equals, file = name.partition("=")
    title = model
    if name.startswith(PRETRAINED):
        model, title = split_tag(name)[0], name.removeprefix(PRETRAINED)
    elif not equals:
        raise ValueError(f"--baseline {name} is no run, timm:NAME.TAG, NAME=FILE.safetensors, supervised or none")
    if model not in backbones():
        raise ValueError(unknown("backbone", model, backbones()))
    encoder = start_from(Encoder(EncoderSpec(model, like.size, 3)), file if equals else name)
    if channels not in (1, 3):
        raise ValueError(f"--baseline {name} takes images of 3 channels, the backbone of {channels}; leave it out")
    column = Column(title, encoder.eval(), Normalization(IMAGENET_MEAN, IMAGENET_STD), like.size)
    return column if channels == 3 else on_gray(column)


def views_of(run_directory: Path) -> tuple[View, ...]:
    """The run's own; none of a backbone that came without its run."""
    if not (run_directory / "run.json").is_file():
        return ()
    return tuple(View(**fields) for fields in Run.read(run_directory / "run.json").views)
