"""From a folder to a trained backbone, and from a backbone to a table of how good it is."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from byol import pictures
from byol.data.decode import Unusable
from byol.data.labels import with_groups, with_labels
from byol.data.loader import Loader, Normalization, fits_memory, load_pixels
from byol.data.open import open_source
from byol.data.source import Source
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate import scores
from byol.evaluate.cache import FeatureCache
from byol.evaluate.columns import BACKBONE, RAW_PIXELS, SUPERVISED, UNTRAINED, Column, backbone, raw_pixels, untrained
from byol.evaluate.images import evaluation_images
from byol.evaluate.knn import nearest
from byol.evaluate.labelled import Labelled, Parts, apart, labelled_of, with_classes_of
from byol.evaluate.labelled import load as load_part
from byol.evaluate.protocols import Settings
from byol.evaluate.subsets import write_list
from byol.evaluate.suggest import suggest
from byol.evaluate.table import Evaluated, all_features, evaluate, stronger_untrained
from byol.evaluate.unlabelled import Numbers, unlabelled_numbers, view_pairs
from byol.export import DESCRIPTION, load, read_description, start_from
from byol.methods import uses_labels
from byol.names import PRETRAINED, backbones, split_tag, unknown
from byol.options import Options
from byol.plan import chosen_views, image_size, plan
from byol.run import Run
from byol.train import Progress, Training
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD, View, describe

COLUMNS = (BACKBONE, RAW_PIXELS, UNTRAINED)
USUAL = ("knn", "linear", "fewshot")
"""Protocols where none was asked for: those that take minutes at most."""
TEST_SHARE = 0.2
"""Share of labelled images held out for testing where the data come without a test part."""


class Observer(Protocol):
    """Who is told what happens while it happens."""

    def say(self, line: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def working(self, what: str, done: int, total: int) -> None: ...
    def planned(self, run: Run, lines: list[tuple[str, str]]) -> None: ...
    def progress(self, progress: Progress) -> None: ...


class Silent:
    """An observer for programs."""

    def say(self, line: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def working(self, what: str, done: int, total: int) -> None: ...
    def planned(self, run: Run, lines: list[tuple[str, str]]) -> None: ...
    def progress(self, progress: Progress) -> None: ...


def open_for_training(data: str, observer: Observer, labels: str | None = None) -> tuple[Source, Tensor | None]:
    """The usable images of a source, and their pixels where they fit in memory. labels: a file that names them."""
    source = open_source(data, part="train")
    if labels is not None:
        source = with_labels(source, labels, say=observer.say)
    if not fits_memory(source):
        return source, None
    source, pixels, skipped = load_pixels(source, observer.loading)
    return replace(source, skipped=source.skipped + skipped), pixels


def pretrain(
    data: str,
    out: str | Path,
    options: Options | None = None,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train on the images of `data` and write a run directory at `out`. Returns the run.

    options: what to decide by hand; the rest follows from the data. resume: go on from the last checkpoint in `out`,
    on the same data, with the settings written there. ValueError, before anything is written, for what a person can
    set right.
    """
    observer = observer or Silent()
    options = (options or Options()).checked()
    directory = Path(out)
    if Path(data).is_dir() and directory.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"{directory} lies inside {data}, where all files count as data; choose an --out elsewhere")
    if resume:
        if not (directory / "run.json").is_file():
            raise ValueError(f"{directory} holds no run.json to resume from; leave out --resume to start a run there")
        run = Run.read(directory / "run.json")
        source, pixels = open_for_training(data, observer, run.labels)
        if source.fingerprint != run.facts["data_fingerprint"]:
            raise ValueError(f"{data} is not what this run began with ({run.data}); start a new run with another --out")
    else:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(f"{directory} exists already; choose another --out, or add --resume to go on with it")
        source, pixels = open_for_training(data, observer, options.labels)
        # A budget of time becomes steps once the rate is known; until then one step stands for them.
        run = plan(replace(options, steps=1, budget=None) if options.budget else options, source, pixels)
    budget = None if resume else options.budget
    # How many steps fit is worth a twentieth of the time to find out.
    training, rate = _ready(run, source, pixels, directory, 1.0 if budget is None else min(10.0, max(1.0, budget / 20)))
    if budget is not None:
        steps = max(1, int(budget * rate / run.images_per_step))
        run = plan(replace(options, steps=steps, budget=None), source, pixels)
        del training  # before the next one takes as much memory again
        training, rate = _ready(run, source, pixels, directory)
    lines = summary(run, source, training, rate)
    observer.planned(run, lines)
    if not resume:
        directory.mkdir(parents=True, exist_ok=True)
        run.write(directory / "run.json")
        (directory / "plan.txt").write_text("".join(f"{k}: {v}\n" for k, v in lines), "utf-8")
        _write_skipped(directory, source)
    training.fit(observer.progress, resume=resume)
    return run


def _write_skipped(directory: Path, source: Source) -> None:
    with (directory / "skipped.jsonl").open("w", encoding="utf-8") as file:
        for image, name, reason in source.skipped:
            file.write(json.dumps({"step": 0, "id": image, "name": name, "reason": reason}) + "\n")


def _ready(
    run: Run, source: Source, pixels: Tensor | None, directory: Path, seconds: float = 1.0
) -> tuple[Training, float]:
    """The training, and the images/s a copy of it reached. ValueError where the networks do not suit the images."""
    try:
        training = Training(run, source, pixels, directory)
        return training, training.measure_rate(seconds)
    except torch.OutOfMemoryError:
        raise ValueError(
            f"{run.batch_size} images of {run.image_size} px at a time do not fit in the memory of {run.device}; use a "
            "smaller --batch-size, and --accumulate to make up for it"
        ) from None
    except (TypeError, RuntimeError, AssertionError, IndexError, ArithmeticError) as error:
        if ":" in run.method:  # a method of one's own: its author needs the traceback
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(f"{run.backbone} cannot take {run.image_size} px images: {reason}") from error


def summary(run: Run, source: Source, training: Training, rate: float) -> list[tuple[str, str]]:
    """What the run will do, for people: printed, and kept as plan.txt. rate: images/s."""
    seconds = run.total_steps * run.images_per_step / rate
    epochs = run.total_steps * run.images_per_step / training.num_train
    skipped = f", {len(source.skipped):,} skipped" if source.skipped else ""
    held = f"; {training.num_held:,} held out for diagnosis" if training.num_held else "; none held out"
    arguments = ", ".join(f"{k}={v}" for k, v in run.method_args.items())
    structure = ", ".join(f"{k}={v}" for k, v in run.backbone_args.items())
    stem = "3x3 stem without max-pool (small images)" if run.stem == "3x3" else "its own stem"
    lines = [
        (
            "data",
            f"{source.name}: {len(source):,} images of {source.height} x {source.width} px{skipped}{held}",
        ),
        ("method", run.method + (f" ({arguments})" if arguments else "")),
        ("backbone", f"{run.backbone}{f' ({structure})' if structure else ''}, {stem}"),
        ("parameters", f"{training.parameters():,} trained"),
        ("views", f"{run.image_size} px, {run.channels} channel{'s' if run.channels > 1 else ''}"),
        *((f"view {i}", describe(View(**fields))) for i, fields in enumerate(run.views, start=1)),
        ("steps", f"{run.total_steps:,} of {run.images_per_step} images = {epochs:.1f} epochs"),
        ("warm-up", f"{run.warmup_steps:,} steps"),
        *((("batch rule", ", ".join(run.facts["moved"])),) if run.facts.get("moved") else ()),
        (
            "optimizer",
            f"{run.optimizer}, learning rate {run.peak_lr:.4g} (= {run.base_lr:g} x {run.images_per_step}/256), "
            f"weight decay {run.weight_decay:g}"
            + (f"; {' and '.join(run.constant_lr)} at a constant rate" if run.constant_lr else "")
            + "".join(f"; {part} at {scale:g} times the rate" for part, scale in run.lr_scales.items())
            + (f"; biases and norms at {run.bias_lr:g} of the rate" if run.bias_lr != 1 else ""),
        ),
        ("precision", f"{run.precision} on {run.device}"),
        ("expected", f"{rate:,.0f} images/s, about {duration(seconds)}"),
    ]
    stem_is_new = run.stem == "3x3" and isinstance(training.method.encoder.model.conv1, nn.Conv2d)
    if run.init is not None and run.init.startswith(PRETRAINED) and stem_is_new:
        lines.append(("note", "the 3x3 stem is new: of the pretrained weights all but the first layer are used"))
    if run.accumulate > 1 and training.method.across_batch:
        lines.append(
            (
                "note",
                f"{run.method} compares the images of one forward pass: it sees batches of {run.batch_size}, and "
                f"{run.accumulate} of them a step are not one of {run.images_per_step}",
            )
        )
    if uses_labels(type(training.method)):
        lines.append(("note", "this method learns from the labels: its results are not self-supervised ones"))
    if run.channels != 3:
        lines.append(
            (
                "note",
                "the images are not RGB: hue, saturation and grayscale changes are left out of the views",
            )
        )
    return lines


def duration(seconds: float) -> str:
    """A time span for people: 45 s, 12 min, 3.4 h, 2.1 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if name != "h" else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} days"


def facts_for_json(run: Run, directory: Path) -> dict[str, Any]:
    """What `pretrain --json` prints."""
    last: dict[str, Any] = {}
    for line in (directory / "metrics.jsonl").read_text("utf-8").splitlines():
        last |= json.loads(line)
    return {
        "run": str(directory),
        "backbone": str(directory / "backbone.safetensors"),
        "steps": run.total_steps,
        "last_metrics": last,
    }


def views_sheet(data: str, path: Path, options: Options, *, num_images: int = 8, epochs: int = 3) -> Path:
    """Draw what the network will see: images, and pairs of their views over some epochs."""
    options = options.checked()
    source, pixels = open_for_training(data, Silent())
    chosen = chosen_views(options, source)
    size = image_size(options, source)
    loader = Loader(
        source,
        chosen,
        pixels=pixels,
        size=size,
        batch_size=num_images,
        normalization=Normalization((0.0,) * source.channels, (1.0,) * source.channels),
        seed=options.seed,
    )
    originals: dict[int, Any] = {}
    for start in pictures.sample_rows(num_images, len(source)).tolist():
        for row in range(start, len(source)):  # the next one where an image cannot be read
            with contextlib.suppress(Unusable):
                originals.setdefault(row, source.read(int(source.ids[row])))
                break
    rows = torch.tensor(list(originals))
    views = [view for epoch in range(epochs) for view in loader.batch_of(rows, torch.full_like(rows, epoch)).views]
    name = f"{source.name}: what {options.method} sees at {size} px in {epochs} epochs"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.views_grid(list(originals.values()), views, path, title=name, views_per_epoch=len(chosen))
    return path


def open_parts(
    data: str,
    test: str | None,
    *,
    channels: int | None,
    labels: str | None = None,
    groups: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Parts:
    """Labelled training images, and test images that are read when they are asked for. test: other data to test on;
    else the test part of `data`, or a fifth of it where it has none. channels: that the encoder takes, where the source
    may choose. labels: a file that names them. groups: what images belong together, see `with_groups`."""

    def prepared(source: Source) -> Source:
        if labels is not None:
            source = with_labels(source, labels, say=say)
        if groups is not None:
            source = with_groups(source, groups, labels)
        return labelled_of(source)

    opened = open_source(data, part="train", channels=channels)
    source = prepared(opened)
    name = test or data
    if test is None and not source.has_test_part:
        fit, held = apart(source, TEST_SHARE, seed=0)
        return Parts(load_part(source.subset(fit)), cache(lambda: load_part(source.subset(held))), name)

    def open_test() -> Labelled:
        found = prepared(open_source(name, part="all" if test else "test", channels=opened.channels))
        return load_part(with_classes_of(source, found, name))

    return Parts(load_part(source), cache(open_test), name)


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
    features: FeatureCache | None = None,
    write: bool = True,
) -> Evaluated:
    """Evaluate a run's backbone on labelled data, beside what it must beat; keeps the result in the run (if write).

    test, labels, groups: see `open_parts`; parts: what that gave, where it was called before. columns: of the table, to
    leave out baselines. baselines: further ones, see `baseline`, or "supervised", training from scratch on the labels.
    features: where they are kept.
    """
    observer = observer or Silent()
    settings = settings or Settings()
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = replace(settings, device=device, flip=_flip(run_directory))
    description = read_description(run_directory)
    encoder = load(run_directory)
    spec = encoder.spec
    # Of a list of runs on the same images one would be told the same again and again.
    look_for_duplicates = parts is None
    if parts is None:
        channels = spec.channels if spec.channels in (1, 3) else None
        parts = open_parts(data, test, channels=channels, labels=labels, groups=groups, say=observer.say)
    normalization = description["normalization"]
    own = backbone(encoder, normalization["mean"], normalization["std"])
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
    columns = (BACKBONE,) if "none" in baselines else COLUMNS
    others = tuple(name for name in baselines if name != "none")
    found = []
    for i, place in enumerate(data):
        if len(data) > 1:
            observer.say(f"{i + 1} of {len(data)}: {place}")
        chosen = settings.protocols or (("linear",) if len(data) > 1 else (*USUAL, "views"))
        chosen = tuple(dict.fromkeys("linear" if name == "transfer" else name for name in chosen))
        trained = tuple(name for name in chosen if name != "views")
        if not settings.protocols and labels is None and not _has_labels(place):
            observer.say(f"{place} has no labels: measured is what can be without")
            trained = ()
        result: dict[str, Any] = {"run": str(run_directory), "data": place}
        drawn: list[str] = []
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
                features=features,
            )
            result = evaluated.found
            drawn += draw(evaluated, run_directory)
        if "views" in chosen:
            result["unlabelled"] = without_labels(run_directory, place, columns=columns, observer=observer)
        if suggest is not None:
            result["suggested"], sheet = worth_labelling(
                run_directory, place, suggest, seed=settings.seed, features=features
            )
            drawn.append(sheet)
        result["pictures"] = drawn
        _write_evaluation(run_directory, result)
        found.append(result)
    return found


def _has_labels(data: str) -> bool:
    source = open_source(data, part="train")
    return source.labels is not None and bool((source.labels >= 0).any())


def without_labels(
    run_directory: Path, data: str, *, columns: tuple[str, ...] = COLUMNS, observer: Observer | None = None
) -> dict[str, Any]:
    """Numbers that need no labels, of the backbone, raw pixels and the untrained network (the better one by view
    retrieval): see `byol.evaluate.unlabelled`. The views are the run's own, drawn anew."""
    observer = observer or Silent()
    description, encoder = read_description(run_directory), load(run_directory)
    spec, run = encoder.spec, Run.read(run_directory / "run.json")
    source = open_source(data, part="train", channels=spec.channels if spec.channels in (1, 3) else None)
    if source.has_test_part:  # images that a run on the training part never saw
        source = open_source(data, part="test", channels=source.channels)
    pixels = None
    if fits_memory(source):
        source, pixels, _ = load_pixels(source)
    views = tuple(View(**fields) for fields in run.views)
    rows, first, second = view_pairs(source, pixels, views, size=spec.image_size, seed=run.seed)
    plain = evaluation_images(source, pixels, rows, spec.image_size)
    normalization = description["normalization"]
    own = backbone(encoder, normalization["mean"], normalization["std"])

    def numbers(column: Column) -> Numbers:
        observer.say(f"without labels: {column.name}")
        return unlabelled_numbers(column.network, plain, first, second, normalization=column.normalization)

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
    run_directory: Path, data: str, count: int, *, seed: int = 0, features: FeatureCache | None = None
) -> tuple[list[str], str]:
    """(names of `count` images worth labelling first, the picture of them): writes suggested.csv and .png."""
    description, encoder = read_description(run_directory), load(run_directory)
    source = open_source(
        data, part="train", channels=encoder.spec.channels if encoder.spec.channels in (1, 3) else None
    )
    part = load_part(replace(source, labels=None, classes=()))
    normalization = description["normalization"]
    own = backbone(encoder, normalization["mean"], normalization["std"])
    part, found = all_features([own], part, Settings(), features)
    rows = suggest(found[own.name], count, seed=seed)
    names = [part.source.name_of(int(part.source.ids[row])) for row in rows]
    with (run_directory / "suggested.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([name, ""] for name in names)
    images = [part.source.read(int(part.source.ids[row])) for row in rows[:100]]
    title = f"{Path(data).name}: the images worth labelling first"
    pictures.suggested_sheet(images, names[:100], run_directory / "suggested.png", title=title)
    return names, "suggested.png"


def draw(evaluated: Evaluated, run_directory: Path) -> list[str]:
    """The pictures of an evaluation, into the run's directory; their names."""
    found, test = evaluated.found, evaluated.test
    title = f"{Path(found['run']).name} on {Path(found['data']).name}"
    title += " (trained with labels)" if found.get("used_labels") else ""
    pictures.results_chart(pictures.result_rows(found), run_directory / "results.png", title=title)
    drawn = ["results.png"]
    single = [(row, name) for row, name in evaluated.predictions if name == BACKBONE]
    best = next((key for key in single if key[0].startswith("linear")), single[0] if single else None)
    if best is not None and test.targets is None and evaluated.predictions[best].ndim == 1:
        said, y = evaluated.predictions[best], test.labels
        counts = scores.confusion(y, said, len(test.classes))
        pictures.confusion_matrix(counts, test.classes, run_directory / "confusion.png", title=f"{title}: {best[0]}")
        rows = []
        for label, name in enumerate(test.classes):
            of_class = said[y == label] == label
            if len(of_class):
                low, high = binomtest(int(of_class.sum()), len(of_class)).proportion_ci(method="wilson")
                rows.append((name, float(of_class.mean()), float(low), float(high), len(of_class)))
        other = evaluated.predictions.get((best[0], UNTRAINED))
        baseline_scores = None
        if other is not None:
            baseline_scores = {
                name: float((other[y == label] == label).mean())
                for label, name in enumerate(test.classes)
                if (y == label).any()
            }
        pictures.per_class(rows, run_directory / "per-class.png", title=f"{title}: {best[0]}", baseline=baseline_scores)
        drawn += ["confusion.png", "per-class.png"]
    if BACKBONE in evaluated.features:
        _draw_neighbours(evaluated, run_directory / "neighbours.png", title)
        drawn.append("neighbours.png")
    curves: dict[str, list[tuple[int, float, float, float]]] = {}
    for row in found["rows"]:
        if row["protocol"] == "semi":
            for name, numbers in row["columns"].items():
                curves.setdefault(name, []).append((row["labels"], numbers["score"], *numbers["interval_95"]))
    if any(len(points) > 1 for points in curves.values()):
        ordered = {name: sorted(points) for name, points in curves.items()}
        pictures.label_efficiency(ordered, run_directory / "labels.png", title=f"{title}: fine-tuned on few labels")
        drawn.append("labels.png")
    return drawn


def _draw_neighbours(evaluated: Evaluated, path: Path, title: str) -> None:
    """Some test images, and the training images whose features are nearest."""
    train, test = evaluated.train, evaluated.test
    rows = pictures.sample_rows(8, len(test)).numpy()
    train_x, test_x = evaluated.features[BACKBONE]
    _, neighbours = nearest(train_x, np.asarray(test_x[rows]), 8)

    def image(part: Labelled, row: int) -> np.ndarray:
        return part.source.read(int(part.source.ids[row]))

    known = test.targets is None
    pictures.neighbour_sheet(
        [image(test, row) for row in rows],
        [[image(train, int(n)) for n in near] for near in neighbours],
        [
            [bool(train.labels[int(n)] == test.labels[row]) for n in near]
            for row, near in zip(rows, neighbours, strict=True)
        ]
        if known
        else None,
        [test.classes[test.labels[row]] if known else "" for row in rows],
        path,
        title=f"{title}: nearest training images",
    )


def baseline(name: str, like: Column) -> Column:
    """A network to stand beside a backbone: a run, timm:NAME.TAG, or NAME=FILE.safetensors, a timm model with local
    weights. like: the backbone, whose input size and, but for a run, normalisation it gets."""
    if (Path(name) / DESCRIPTION).is_file():
        about = read_description(Path(name))["normalization"]
        return backbone(load(name), about["mean"], about["std"], Path(name).resolve().name)
    assert isinstance(like.network, Encoder)
    model, equals, file = name.partition("=")
    if name.startswith(PRETRAINED):
        model = split_tag(name)[0]
    elif not equals:
        raise ValueError(f"--baseline {name} is no run, timm:NAME.TAG, NAME=FILE.safetensors, supervised or none")
    if model not in backbones():
        raise ValueError(unknown("backbone", model, backbones()))
    channels = like.network.spec.channels
    encoder = start_from(Encoder(EncoderSpec(model, like.size, channels)), file if equals else name)
    rgb = channels == 3
    return Column(
        model, encoder.eval(), Normalization(IMAGENET_MEAN, IMAGENET_STD) if rgb else like.normalization, like.size
    )


def _flip(run_directory: Path) -> float:
    """Images of things that a mirror changes, such as letters, are not mirrored: where the run's own views are not."""
    if not (run_directory / "run.json").is_file():
        return View().flip
    views = Run.read(run_directory / "run.json").views
    return View().flip if any(view["flip"] > 0 for view in views) else 0.0


def _keep(run_directory: Path, evaluated: Evaluated) -> dict[str, Any]:
    """Write what was found, with the rows that earlier evaluations of the same kind found; returns all of it."""
    found = evaluated.found
    same = ("data", "test", "labels_file", "grouped_by", "metric", "seed", "format")
    hashes = found["hashes"]
    identity = [*(found[name] for name in same), hashes["columns"].get(BACKBONE), hashes["train"], hashes["test"]]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    found["kept_as"] = f"{re.sub(r'[^A-Za-z0-9]+', '-', Path(found['data']).name).strip('-')}-{digest}"
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
