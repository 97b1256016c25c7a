"""The model card: what was trained on what, how, with which numbers, and how to load it. Markdown, as the Hugging Face
hub reads it."""

from __future__ import annotations

import math
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from byol.export import parameter_count
from byol.files import read_json
from byol.formats.backbone import Backbone, Form
from byol.names import METRICS
from byol.run import RUN, Run
from byol.views.view import View, describe

TEMPLATE = Path(__file__).with_name("card.md.jinja")
EVALUATION = "evaluation.json"
MOST_CHARACTERS = 300
"""Of one text of a run that a card repeats."""


class Markdown(str):
    """Text of this package's own, which a card takes as it is."""


def plain(value: object) -> str:
    """Any text as one line without what cannot be printed, or turns the direction of writing."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: 4 * MOST_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


def escaped(value: object) -> str:
    """Text that Markdown shows as it is: neither links, HTML, code nor a cell's end."""
    if isinstance(value, Markdown):
        return str(value)
    text = re.sub(r"([^\w\s,./()%+=;'\"?-]|_)", r"\\\1", plain(value))
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", text)


def card(
    run_directory: Path,
    backbone: Backbone,
    form: Form,
    kind: str,
    difference: float,
    licence: str | None,
) -> str:
    """The card of a backbone that was written in a format. What its run knew comes along, where that is there: settings
    of run.json, numbers of evaluation.json. ValueError, in one line, where one of these is damaged."""
    about = backbone.description
    run = Run.read(run_directory / RUN) if (run_directory / RUN).is_file() else None
    path = run_directory / EVALUATION
    evaluation = _evaluation(path, read_json(path)) if path.is_file() else None
    data = plain(run.data if run else evaluation["data"] if evaluation else "unknown data")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=escaped)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        header=Markdown(_header(backbone, form, evaluation, licence)),
        about={"evaluation_input": "unknown", "steps": "?", "used_labels": False, **about, "method": _method(about)},
        data=data,
        parameters=Markdown(f"{parameter_count(backbone.encoder):,}"),
        dim=backbone.encoder.dim,
        images=Markdown(f"{run.fact('images_trained_on', int):,}") if run else "",
        needs=Markdown(" ".join(form.needs)),
        code=Markdown(form.code.strip()),
        note=Markdown(form.note),
        kind=kind,
        difference=Markdown(f"{difference:.1e}"),
        size=backbone.size,
        channels=backbone.channels,
        value_range=backbone.value_range,
        mean=", ".join(f"{each:g}" for each in backbone.mean),
        std=", ".join(f"{each:g}" for each in backbone.std),
        run=run,
        settings=_settings(run) if run else [],
        views=[describe(View(**fields)) for fields in run.views] if run else [],
        evaluation=evaluation,
        limitations=_limitations(about, backbone, evaluation),
        licence=licence,
        version=metadata.version("byol"),
    )


def _method(about: dict[str, Any]) -> str:
    return plain(about.get("method", "an unknown method"))


def _header(backbone: Backbone, form: Form, evaluation: dict[str, Any] | None, licence: str | None) -> str:
    """What the hub reads, as YAML."""
    about = backbone.description
    tags = ["image-feature-extraction", "self-supervised", "byol", form.library, _method(about)]
    results = evaluation["results"] if evaluation else []
    found = ModelCardData(
        license=(licence or "unknown").lower(),
        library_name=form.library,
        pipeline_tag="image-feature-extraction",
        tags=list(dict.fromkeys(tags)),
        model_name=f"{backbone.encoder.spec.name} by {_method(about)}" if results else None,
        eval_results=results or None,
    )
    return found.to_yaml()


def _settings(run: Run) -> list[tuple[str, Any]]:
    """What determined the run, for people; run.json has all of it."""
    arguments = ", ".join(f"{name}={value}" for name, value in run.method_args.items())
    backbone = ", ".join(f"{name}={value}" for name, value in run.backbone_args.items())
    versions = run.fact("versions", dict)
    held_out = f", {run.hold_out:.0%} of them held out for diagnosis" if run.hold_out else ""
    return [
        ("data", f"{run.data}, {run.fact('images_usable', int):,} images{held_out}"),
        ("fingerprint of the data", run.fact("data_fingerprint", str)),
        ("method", f"{run.method} ({arguments})"),
        ("backbone", f"{run.backbone} ({backbone})" if backbone else run.backbone),
        ("stem", "3x3, stride 1, no max-pool" if run.stem == "3x3" else "the architecture's own"),
        ("weights at the start", run.init or "random"),
        ("steps", f"{run.total_steps:,} of {run.images_per_step:,} images, {run.warmup_steps:,} of them warm-up"),
        ("optimizer", f"{run.optimizer}, learning rate {run.peak_lr:g}, weight decay {run.weight_decay:g}"),
        ("precision", f"{run.precision} on {run.device} ({run.fact('device_name', str)})"),
        ("seed", run.seed),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("commit", run.facts.get("git_commit") or "unknown"),
    ]


def _evaluation(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation, as a table and as the hub takes them."""
    try:
        rows = found.get("rows", [])
        columns = list(dict.fromkeys(name for row in rows for name in row["columns"]))
        against = list(dict.fromkeys(name for row in rows for name in row["differences"]))
        table = [
            (
                row["name"],
                [_number(row["columns"].get(name), "score", "") for name in columns]
                + [_number(row["differences"].get(name), "difference", "+") for name in against],
            )
            for row in rows
        ]
        unlabelled = {
            name: {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}
            for name, numbers in found.get("unlabelled", {}).items()
        }
        metric = METRICS[found["metric"]] if rows else ""
        return {
            "data": plain(found["data"]),
            "train_images": int(found["train_images"]) if rows else 0,
            "test_images": int(found["test_images"]) if rows else 0,
            "metric": metric,
            "columns": columns,
            "against": against,
            "rows": table,
            "unlabelled": unlabelled,
            "measures": list(dict.fromkeys(key for numbers in unlabelled.values() for key in numbers)),
            "warnings": [str(warning) for warning in found.get("warnings", [])],
            "results": [_result(found["data"], row, metric) for row in rows if "backbone" in row["columns"]],
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged; restore it from a copy, or evaluate once more") from error


def _number(found: dict[str, Any] | None, what: str, sign: str) -> Markdown:
    """A value with its 95 % interval."""
    if found is None:
        return Markdown("-")
    low, high = (float(end) for end in found["interval_95"])
    return Markdown(f"{float(found[what]):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})")


def _result(data: str, row: dict[str, Any], metric: str) -> EvalResult:
    score = float(row["columns"]["backbone"]["score"])
    if not math.isfinite(score):
        raise ValueError("a score that is no number")
    return EvalResult(
        task_type="image-classification",
        dataset_type=re.sub(r"[^a-z0-9]+", "-", plain(data).lower()).strip("-") or "data",
        dataset_name=plain(data),
        metric_type=metric.replace(" ", "-").lower(),
        metric_name=plain(f"{row['name']}, {metric}"),
        metric_value=score,
    )


def _limitations(about: dict[str, Any], backbone: Backbone, evaluation: dict[str, Any] | None) -> list[str]:
    found = [
        "It has learned what distinguishes the images it was trained on, with what is wrong or one-sided in them; on "
        "other images measure it first.",
        f"Its input is {backbone.size} x {backbone.size} px; details that are lost at that size it cannot see.",
        "Features are not comparable with those of another run, nor are distances between them probabilities.",
    ]
    if about.get("used_labels"):
        found.append("It learned from labels: numbers on images whose labels it saw say little.")
    if evaluation:
        found.append("The numbers above are of one run and of one split of the images.")
    if backbone.value_range is not None:
        found.append("Its images are no 8-bit images: values are read as they are, in the ranges above.")
    return found
