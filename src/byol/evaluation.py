"""From a run's backbone to numbers: how good it is beside what it must beat, with labels or without."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from byol.data.source import Source
from byol.draw import confusion, draw
from byol.evaluate.cache import FeatureCache
from byol.evaluate.columns import (
    BACKBONE,
    RAW_PIXELS,
    SUPERVISED,
    UNTRAINED,
    raw_pixels,
)
from byol.evaluate.labelled import Parts
from byol.evaluate.protocols import Settings
from byol.evaluate.subsets import write_list
from byol.evaluate.table import Evaluated, evaluate, stronger_untrained
from byol.export import digest, range_of
from byol.files import read_json, write_json
from byol.pipeline import Observer, Silent
from byol.subject import COLUMNS, baseline, device_of, open_images, open_parts, read_backbone, views_of
from byol.unlabelled import without_labels, worth_labelling
from byol.views.view import View

USUAL = ("knn", "linear", "fewshot")
"""Protocols where none was asked for: those that take minutes at most."""
ALL_LABELS = ("linear", "linear-sgd", "finetune", "semi")
"""Protocols beside whose numbers those of training from scratch on the same labels can stand."""


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
        like: dict[str, Any] = {"channels": spec.channels, "value_range": range_of(description)}
        parts = open_parts(data, test, **like, labels=labels, groups=groups, say=observer.warn)
    scratch = None
    if UNTRAINED in columns or SUPERVISED in baselines:
        observer.say("the untrained network")
        scratch = stronger_untrained(spec, description["seed"], own, parts.train, settings, features)
    found_columns = [own] if BACKBONE in columns else []
    found_columns += [raw_pixels(spec.image_size, spec.channels)] if RAW_PIXELS in columns else []
    found_columns += [scratch] if scratch is not None and UNTRAINED in columns else []
    found_columns += [baseline(name, own, range_of(description)) for name in baselines if name != SUPERVISED]
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
        say=observer.warn,
        note=observer.say,
        working=observer.working,
    )
    used = {"used_labels": True} if description.get("used_labels") else {}
    if used and test is None and not parts.train.source.has_test_part:
        line = f"the backbone learned from labels, perhaps those of the test images: {data} has no test part of its own"
        evaluated.found["warnings"].append(f"{line}; give other images with --test")
    if (counts := confusion(evaluated)) is not None:
        evaluated.found["confusion"] = counts
    about = {
        "run": str(run_directory),
        "weights": digest(run_directory),
        "data": data,
        "test": test,
        "labels_file": labels,
        "grouped_by": groups,
    }
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
) -> tuple[list[dict[str, Any]], Exception | None]:
    """What `byol evaluate` does: every protocol that was asked for on every source, with its pictures.

    settings.protocols: none for the usual ones, which without labels are those that need none. metrics: one, or one a
    source. suggest: how many images worth labelling to name. Returns what was found on each, and the first error of a
    protocol that failed: all else is done before.
    """
    observer = observer or Silent()
    settings = replace(settings, device=device_of(settings))
    columns = (BACKBONE,) if "none" in baselines else COLUMNS
    description, spec, own = read_backbone(run_directory)
    others = tuple(name for name in baselines if name != "none")
    found: list[dict[str, Any]] = []
    failed: list[Exception] = []
    # All before the first evaluation: what is wrong with one is said at once.
    given: dict[str, Any] = {"labels": labels, "groups": groups, "say": observer.warn}
    like: dict[str, Any] = {"channels": spec.channels, "value_range": range_of(description)}
    sources = [open_images(place, **like, **given) for place in data]
    for place, source in zip(data, sources, strict=True):
        if suggest is not None and suggest > len(source):
            raise ValueError(f"{place} has {len(source):,} images; use --suggest {len(source)} or less")
    for i, (place, source) in enumerate(zip(data, sources, strict=True)):
        if len(data) > 1:
            observer.say(f"{i + 1} of {len(data)}: {place}")
        chosen = settings.protocols or (("linear",) if len(data) > 1 else (*USUAL, "views"))
        chosen = tuple(dict.fromkeys("linear" if name == "transfer" else name for name in chosen))
        if not settings.protocols and not _has_labels(source):
            observer.warn(f"{place} has no labels: measured is what can be without")
            chosen = ("views",)
        trained = tuple(name for name in chosen if name != "views")
        digest = hashlib.sha256(f"{place} {own.content()}".encode()).hexdigest()[:8]
        result: dict[str, Any] = {"run": str(run_directory), "data": place, "kept_as": f"{_slug(place)}-{digest}"}
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
                parts=open_parts(place, test, labels=labels, groups=groups, say=observer.warn, opened=source),
                features=features,
            )
            result = evaluated.found
            failed += evaluated.failed.values()
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
    return found, failed[0] if failed else None


def _has_labels(source: Source) -> bool:
    return source.targets is not None or (source.labels is not None and bool((source.labels >= 0).any()))


def _flip(run_directory: Path) -> float:
    """Images of things that a mirror changes, such as letters, are not mirrored: where the run's own views are not."""
    views = views_of(run_directory)
    return View().flip if not views or any(view.flip > 0 for view in views) else 0.0


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
        before = read_json(path)
        new, known = {row["name"] for row in found["rows"]}, before["hashes"]["columns"]
        other = {name for name, content in hashes["columns"].items() if known.get(name, content) != content}
        kept = [row for row in before["rows"] if row["name"] not in new and not other & set(row["columns"])]
        found["hashes"] = {**hashes, "columns": known | hashes["columns"]}
        found = {**before, **found, "rows": kept + found["rows"]}
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
        write_json(place, found)
