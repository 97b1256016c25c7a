"""From a run's backbone to numbers: how good it is beside what it must beat, with labels or without."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import count as count_from
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol import pictures
from byol.data.labels import with_groups, with_labels
from byol.data.loader import Normalization, fits_memory, load_pixels, views_for
from byol.data.open import open_source
from byol.data.source import DataError, Part, Source
from byol.draw import draw
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate.cache import FeatureCache
from byol.evaluate.columns import (
    BACKBONE,
    RAW_PIXELS,
    SUPERVISED,
    UNTRAINED,
    Column,
    backbone,
    on_gray,
    raw_pixels,
    untrained,
)
from byol.evaluate.images import evaluation_images
from byol.evaluate.labelled import Parts, apart, labelled_of, with_classes_of
from byol.evaluate.labelled import load as load_part
from byol.evaluate.protocols import Settings
from byol.evaluate.subsets import write_list
from byol.evaluate.suggest import suggest
from byol.evaluate.table import Evaluated, all_features, evaluate, stronger_untrained
from byol.evaluate.unlabelled import Numbers, unlabelled_numbers, view_pairs
from byol.export import DESCRIPTION, load, read_description, start_from
from byol.names import PRETRAINED, backbones, split_tag, unknown
from byol.pipeline import Observer, Silent
from byol.run import Run
from byol.views.view import BYOL_T, BYOL_T_PRIME, IMAGENET_MEAN, IMAGENET_STD, View

COLUMNS = (BACKBONE, RAW_PIXELS, UNTRAINED)
USUAL = ("knn", "linear", "fewshot")
"""Protocols where none was asked for: those that take minutes at most."""
ALL_LABELS = ("linear", "linear-sgd", "finetune", "semi")
"""Protocols beside whose numbers those of training from scratch on the same labels can stand."""
TEST_SHARE = 0.2
"""Share of labelled images held out for testing where the data come without a test part."""


def open_images(
    data: str,
    *,
    part: Part = "train",
    channels: int | None = None,
    labels: str | None = None,
    groups: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Source:
    """A part of `data`. channels: that the encoder takes, where the source may choose. labels: a file that names them.
    groups: what images belong together, see `with_groups`."""
    return _told(open_source(data, part=part, channels=channels if channels in (1, 3) else None), labels, groups, say)


def open_parts(
    data: str,
    test: str | None,
    *,
    channels: int | None = None,
    labels: str | None = None,
    groups: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    opened: Source | None = None,
) -> Parts:
    """Labelled training images, and test images that are read when they are asked for. test: other data to test on;
    else the test part of `data`, or a fifth of it where it has none. channels, labels, groups: see `open_images`;
    opened: what that gave, where it was called before."""
    if opened is None:
        opened = open_images(data, channels=channels, labels=labels, groups=groups, say=say)
    source = labelled_of(opened)
    name = test or data
    if test is None and not source.has_test_part:
        fit, held = apart(source, TEST_SHARE, seed=0)
        source, found = source.subset(fit), source.subset(held)
    else:
        found = open_source(name, part="all" if test else "test", channels=source.channels)
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


def evaluate_run(
    run_directory: Path,
    data: str,
    *,
    test: str | None = None,
    settings: Settings | None = None,
    labels: str | None = None,
    groups: str | None = None,
    baselines: tuple[str, ...] = (),
    columns: tuple[str, ...] = COLUMNS,
    observer: Observer | None = None,
    parts: Parts | None = None,
    look_for_duplicates: bool = True,
    features: FeatureCache | None = None,
    write: bool = True,
) -> Evaluated:
    """Evaluate a run's backbone on labelled data, beside what it must beat; keeps the result in the run (if write).

    test, labels, groups: see `open_parts`; parts: what that gave, where it was called before. columns: of the table, to
    leave out baselines. baselines: further ones, see `baseline`, or "supervised", training from scratch on the labels.
    look_for_duplicates: among test and training images. features: where they are kept.
    """
    observer = observer or Silent()
    settings = settings or Settings()
    settings = replace(settings, device=device_of(settings), flip=_flip(run_directory))
    description, spec, own = read_backbone(run_directory)
    if SUPERVISED in baselines and not set(settings.protocols) & set(ALL_LABELS):
        raise ValueError(f"--baseline {SUPERVISED} trains on the labels of {', '.join(ALL_LABELS)}; add one --protocol")
    if parts is None:
        parts = open_parts(data, test, channels=spec.channels, labels=labels, groups=groups, say=observer.say)
    scratch = None
    if UNTRAINED in columns or SUPERVISED in baselines:
        observer.say("the untrained network")
        scratch = stronger_untrained(spec, description["seed"], own, parts.train, settings, features)
    found_columns = [own] if BACKBONE in columns else []
    found_columns += [raw_pixels(spec.image_size, spec.channels)] if RAW_PIXELS in columns else []
    found_columns += [scratch] if scratch is not None and UNTRAINED in columns else []
    found_columns += [baseline(name, own) for name in baselines if name != SUPERVISED]
    if twice := [name for name, count in Counter(c.name for c in found_columns).items() if count > 1]:
        raise ValueError(f"--baseline {twice[0]} is there twice; rename the directory of one")
    evaluated = evaluate(
        found_columns,
        parts,
        settings,
        scratch=None if scratch is None else replace(scratch, name=SUPERVISED),
        supervised=SUPERVISED in baselines,
        cache=features,
        look_for_duplicates=look_for_duplicates,
        say=observer.say,
        working=observer.working,
    )
    used = {"used_labels": True} if description.get("used_labels") else {}
    if used and test is None and not parts.train.source.has_test_part:
        line = f"the backbone learned from labels, perhaps those of the test images: {data} has no test part of its own"
        evaluated.found["warnings"].append(f"{line}; give other images with --test")
    about = {"run": str(run_directory), "data": data, "test": test, "labels_file": labels, "grouped_by": groups}
    evaluated = replace(evaluated, found={**about, **used, **evaluated.found})
    if write:
        evaluated = replace(evaluated, found=_keep(run_directory, evaluated))
    return evaluated


def evaluate_sources(
    run_directory: Path,
    data: Sequence[str],
    *,
    settings: Settings,
    metrics: tuple[str, ...] = (),
    test: str | None = None,
    labels: str | None = None,
    groups: str | None = None,
    baselines: tuple[str, ...] = (),
    suggest: int | None = None,
    features: FeatureCache | None = None,
    observer: Observer | None = None,
) -> list[dict[str, Any]]:
    """What `byol evaluate` does: every protocol that was asked for on every source, with its pictures.

    settings.protocols: none for the usual ones, which without labels are those that need none. metrics: one, or one a
    source. suggest: how many images worth labelling to name.
    """
    observer = observer or Silent()
    settings = replace(settings, device=device_of(settings))
    columns = (BACKBONE,) if "none" in baselines else COLUMNS
    channels = read_description(run_directory)["channels"]
    others = tuple(name for name in baselines if name != "none")
    found = []
    for i, place in enumerate(data):
        if len(data) > 1:
            observer.say(f"{i + 1} of {len(data)}: {place}")
        chosen = settings.protocols or (("linear",) if len(data) > 1 else (*USUAL, "views"))
        chosen = tuple(dict.fromkeys("linear" if name == "transfer" else name for name in chosen))
        source = open_images(place, channels=channels, labels=labels, groups=groups, say=observer.say)
        if not settings.protocols and not _has_labels(source):
            observer.say(f"{place} has no labels: measured is what can be without")
            chosen = ("views",)
        if suggest is not None and suggest > len(source):
            raise ValueError(f"{place} has {len(source):,} images; use --suggest {len(source)} or less")
        trained = tuple(name for name in chosen if name != "views")
        result: dict[str, Any] = {"run": str(run_directory), "data": place}
        drawn: list[Path] = []
        # Of several sources each has a folder of pictures.
        folder = run_directory if len(data) == 1 else run_directory / "evaluations" / f"{i + 1}-{_slug(place)}"
        folder.mkdir(parents=True, exist_ok=True)
        if trained:
            metric = metrics[i if len(metrics) > 1 else 0] if metrics else settings.metric
            evaluated = evaluate_run(
                run_directory,
                place,
                test=test,
                settings=replace(settings, protocols=trained, metric=metric),
                labels=labels,
                groups=groups,
                baselines=others,
                columns=columns,
                observer=observer,
                parts=open_parts(place, test, labels=labels, groups=groups, say=observer.say, opened=source),
                features=features,
            )
            result = evaluated.found
            drawn += draw(evaluated, folder)
        if "views" in chosen:
            result["unlabelled"] = without_labels(
                run_directory, place, opened=source, columns=columns, device=settings.device, observer=observer
            )
        if suggest is not None:
            names, written, sheet = worth_labelling(
                run_directory, source, suggest, folder, settings=settings, features=features, observer=observer
            )
            result["suggested"], result["suggested_as"] = names, str(written.relative_to(run_directory))
            drawn.append(sheet)
        result["pictures"] = [str(path.relative_to(run_directory)) for path in drawn]
        _write_evaluation(run_directory, result)
        # What an earlier evaluation found stays in the file alone.
        earlier = {"unlabelled": "views" not in chosen, "suggested": suggest is None, "suggested_as": suggest is None}
        found.append({name: value for name, value in result.items() if not earlier.get(name)})
    return found


def device_of(settings: Settings) -> str:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is not available here; use --device cpu")
    return settings.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _has_labels(source: Source) -> bool:
    return source.targets is not None or (source.labels is not None and bool((source.labels >= 0).any()))


def without_labels(
    run_directory: Path,
    data: str,
    *,
    opened: Source | None = None,
    columns: tuple[str, ...] = COLUMNS,
    device: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Numbers that need no labels, of the backbone, raw pixels and the untrained network (the better one by view
    retrieval): see `byol.evaluate.unlabelled`. The views are the run's own, drawn anew. opened: the training part of
    `data`, where it was opened before."""
    observer = observer or Silent()
    description, spec, own = read_backbone(run_directory)
    source = open_images(data, channels=spec.channels) if opened is None else opened
    if source.has_test_part:  # images that a run on the training part never saw
        source = open_images(data, part="test", channels=source.channels)
    pixels = None
    if fits_memory(source):
        source, pixels, _ = load_pixels(source)
    views = _views(run_directory) or views_for((BYOL_T, BYOL_T_PRIME), source.channels)
    rows, first, second = view_pairs(source, pixels, views, size=spec.image_size, seed=description["seed"])
    plain = evaluation_images(source, pixels, rows, spec.image_size)
    device = device or device_of(Settings())

    def numbers(column: Column) -> Numbers:
        observer.say(f"without labels: {column.name}")
        network = column.network.to(device)
        return unlabelled_numbers(network, plain, first, second, normalization=column.normalization, device=device)

    found: dict[str, Any] = {BACKBONE: asdict(numbers(own))} if BACKBONE in columns else {}
    if RAW_PIXELS in columns:
        found[RAW_PIXELS] = asdict(numbers(raw_pixels(spec.image_size, spec.channels)))
    if UNTRAINED in columns:
        both = [
            numbers(replace(own, name=UNTRAINED, network=untrained(spec, description["seed"], last_scale=scale)))
            for scale in (0, 1)
        ]
        found[UNTRAINED] = asdict(max(both, key=lambda each: each.view_retrieval))
    return found


def worth_labelling(
    run_directory: Path,
    source: Source,
    count: int,
    folder: Path,
    *,
    settings: Settings,
    features: FeatureCache | None = None,
    observer: Observer | None = None,
) -> tuple[list[str], Path, Path]:
    """(names of `count` images worth labelling first, the table to fill in, the picture of them): suggested.csv and
    .png in the folder, or suggested-2 and so on where somebody has filled one in already."""
    observer = observer or Silent()
    _, _, own = read_backbone(run_directory)
    part = load_part(replace(source, labels=None, targets=None, classes=()))
    part, found = all_features([own], part, settings, features, observer.working)
    observer.say("images worth labelling first")
    rows = suggest(found[own.name], count, seed=settings.seed)
    names = [part.source.name_of(int(part.source.ids[row])) for row in rows]
    number = next(n for n in count_from(1) if not _filled_in(_suggested(folder, n)))
    table = _suggested(folder, number)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([name, ""] for name in names)
    images = [part.source.read(int(part.source.ids[row])) for row in rows[:100]]
    title = f"{Path(source.name).name}: the images worth labelling first"
    sheet = table.with_suffix(".png")
    pictures.suggested_sheet(images, names[:100], sheet, title=title)
    return names, table, sheet


def _suggested(folder: Path, number: int) -> Path:
    return folder / ("suggested.csv" if number == 1 else f"suggested-{number}.csv")


def _filled_in(table: Path) -> bool:
    """Whether somebody's labels stand in it."""
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", newline="") as file:
        return any(any(cell.strip() for cell in row[1:]) for row in list(csv.reader(file))[1:])


def baseline(name: str, like: Column) -> Column:
    """A network to stand beside a backbone: a run, timm:NAME.TAG, or NAME=FILE.safetensors, a timm model with local
    weights. like: the backbone, whose input size a timm model gets. Networks for colour take gray images too."""
    assert isinstance(like.network, Encoder)
    channels = like.network.spec.channels
    if (Path(name) / DESCRIPTION).is_file():
        description, spec, own = read_backbone(Path(name))
        used = " (used labels)" if description.get("used_labels") else ""
        own = replace(own, name=Path(name).resolve().name + used)
        if spec.channels == channels:
            return own
        if (spec.channels, channels) != (3, 1):
            raise ValueError(f"--baseline {name} takes images of {spec.channels} channels, the backbone of {channels}")
        return on_gray(own)
    model, equals, file = name.partition("=")
    if name.startswith(PRETRAINED):
        model = split_tag(name)[0]
    elif not equals:
        raise ValueError(f"--baseline {name} is no run, timm:NAME.TAG, NAME=FILE.safetensors, supervised or none")
    if model not in backbones():
        raise ValueError(unknown("backbone", model, backbones()))
    encoder = start_from(Encoder(EncoderSpec(model, like.size, 3)), file if equals else name)
    column = Column(model, encoder.eval(), Normalization(IMAGENET_MEAN, IMAGENET_STD), like.size)
    return column if channels == 3 else on_gray(column)


def _flip(run_directory: Path) -> float:
    """Images of things that a mirror changes, such as letters, are not mirrored: where the run's own views are not."""
    views = _views(run_directory)
    return View().flip if not views or any(view.flip > 0 for view in views) else 0.0


def _views(run_directory: Path) -> tuple[View, ...]:
    """The run's own; none of a backbone that came without its run."""
    if not (run_directory / "run.json").is_file():
        return ()
    return tuple(View(**fields) for fields in Run.read(run_directory / "run.json").views)


def _keep(run_directory: Path, evaluated: Evaluated) -> dict[str, Any]:
    """Write what was found, with the rows that earlier evaluations of the same kind found; returns all of it."""
    found = evaluated.found
    same = ("data", "test", "labels_file", "grouped_by", "metric", "seed", "format")
    hashes = found["hashes"]
    identity = [*(found[name] for name in same), hashes["columns"].get(BACKBONE), hashes["train"], hashes["test"]]
    identity.append(hashes["labels"])
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    found["kept_as"] = f"{_slug(found['data'])}-{digest}"
    path = run_directory / "evaluations" / f"{found['kept_as']}.json"
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        new = {row["name"] for row in found["rows"]}
        found["hashes"] = {**hashes, "columns": before["hashes"]["columns"] | hashes["columns"]}
        found = {**before, **found, "rows": [r for r in before["rows"] if r["name"] not in new] + found["rows"]}
    for name, rows in evaluated.lists.items():
        source = evaluated.train.source
        path.parent.mkdir(exist_ok=True)
        listed = [source.name_of(int(i)) for i in source.ids[rows]]
        write_list(path.with_name(f"{found['kept_as']}-{name}.txt"), listed)
    _write_evaluation(run_directory, found)
    return found


def _slug(place: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(place).name).strip("-")


def _write_evaluation(run_directory: Path, found: dict[str, Any]) -> None:
    """evaluation.json, the last one, and a copy below evaluations/, where those of other data stay."""
    places = [run_directory / "evaluation.json"]
    if "kept_as" in found:
        places.append(run_directory / "evaluations" / f"{found['kept_as']}.json")
        places[-1].parent.mkdir(exist_ok=True)
    for place in places:
        temporary = place.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        temporary.replace(place)
