"""What the files of a run say, gathered for its page. Nothing is computed again, and no image is opened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from byol.diagnose import COLLAPSED_RANK, COLLAPSED_STD_RATIO
from byol.embeddings import Embeddings
from byol.embeddings import read as read_embeddings
from byol.export import DESCRIPTION, WEIGHTS, digest, read_description
from byol.files import json_lines, read_json
from byol.metrics import METRICS as LINES
from byol.metrics import SKIPPED
from byol.names import METHODS, METRICS, method_summary
from byol.online import ADVICE
from byol.pipeline import duration
from byol.run import RUN, Run
from byol.views.view import View, describe

EMBEDDING, VIEWS = "embedding.parquet", "views.json"
MOST_POINTS = 400
"""Of a curve."""
MOST_SKIPPED = 200
Line = dict[str, Any]
NAMED = {"untrained": "the untrained network", "supervised": "training from scratch on the labels"}
"""How a sentence calls what stands beside a backbone."""


def percent(share: float) -> str:
    return f"{share * 100:.1f} %"


@dataclass(frozen=True)
class Verdict:
    """A sentence, its details, and how it is meant: "good", "warn", "bad" or ""."""

    kind: str
    word: str
    head: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Facts:
    """Of one run. run: None of a backbone that came without its run. lines: of metrics.jsonl."""

    directory: Path
    run: Run | None
    description: dict[str, Any] | None
    lines: list[Line]
    evaluation: dict[str, Any] | None
    embedding: Embeddings | None
    views: dict[str, Any] | None
    skipped: list[Line]
    outdated: bool = False
    """Whether the evaluation is of earlier weights."""

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def feature_dim(self) -> str:
        return str((self.description or {}).get("feature_dim", "D"))

    @property
    def step(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    @property
    def seconds(self) -> float:
        return max((line.get("seconds", 0.0) for line in self.lines), default=0.0)

    @property
    def done(self) -> bool:
        return self.run is None or self.step >= self.run.total_steps

    def summary(self) -> str:
        """What was trained on what, in plain words."""
        if self.run is None:
            about = self.description or {}
            return f"A {about.get('name', 'network')} from {about.get('method', 'elsewhere')}, for images of " + (
                f"{about.get('image_size')} px; it came without the run that trained it."
            )
        run = self.run
        images = run.facts.get("images_trained_on", 0)
        labels = "without labels" if not (self.description or {}).get("used_labels") else "with their labels"
        colour = {1: "gray ", 3: "colour "}.get(run.channels, f"{run.channels}-channel ")
        epochs = self.step * run.images_per_step / images if images else 0
        where = f"{run.facts.get('processes', 1)} processes on " if run.facts.get("processes", 1) > 1 else ""
        where += "a GPU" if run.device == "cuda" else "CPU"
        return (
            f"{run.backbone} learned from {images:,} {colour}images of {Path(run.data).name or run.data}, {labels}, "
            f"with {run.method} at {run.image_size} px: {self.step:,} steps of {run.images_per_step:,} images, "
            f"{epochs:,.1f} times over all of them, in {duration(self.seconds)} on {where}."
        )

    def method(self) -> str:
        # Of a method of one's own the file would be looked for, on the word of a run's file.
        return method_summary(self.run.method) if self.run is not None and self.run.method in METHODS else ""

    def health(self) -> Verdict | None:
        looks = [line for line in self.lines if "held_out/verdict" in line]
        if not looks:
            return None
        last, word = looks[-1], looks[-1]["held_out/verdict"]
        heads = {
            "healthy": ("good", "its embedding uses many directions and tells images apart."),
            "narrow": ("warn", "the embedding uses few directions, or most of it is common to all images."),
            "collapsed": ("bad", ADVICE + "."),
            "early": ("", "too few steps to tell."),
        }
        kind, head = heads.get(word, ("", ""))
        numbers = (
            f"Spread {last['held_out/std_ratio']:.2f} (1: even, below {COLLAPSED_STD_RATIO:g}: collapsed), effective "
            f"rank {last['held_out/effective_rank']:.1f}, on images held out of training after step {last['step']:,}.",
        )
        return Verdict(kind, word, head, numbers)

    def quality(self) -> Verdict:
        """How good the backbone is beside what it must beat, as far as it was measured."""
        rows = (self.evaluation or {}).get("rows", [])
        rows = [row for row in rows if "backbone" in row.get("columns", {})]
        if self.outdated:
            how = self._how((self.evaluation or {}).get("data", "LABELLED"))
            return Verdict(
                "warn", "", "It was trained on since it was measured: the numbers are of earlier weights.", (how,)
            )
        if rows:
            return self._measured(next((row for row in rows if row["protocol"] == "linear"), rows[0]))
        if found := (self.evaluation or {}).get("unlabelled", {}).get("backbone"):
            others = [(name, each) for name, each in self.unlabelled() if name != "backbone"]
            beside = ", ".join(f"{NAMED.get(name, name)} {percent(each['view_retrieval'])}" for name, each in others)
            share = percent(found["view_retrieval"])
            head = f"Of {found['num_images']:,} images it finds {share} again by another random view"
            return Verdict("", "", f"{head}{f' ({beside})' if beside else ''}.", (self._how("LABELLED"),))
        knn = [line["held_out/knn"] for line in self.lines if "held_out/knn" in line]
        if knn:
            head = f"kNN named {percent(knn[-1])} of the held-out images, while it trained. That is no comparison yet."
            return Verdict("", "", head, (self._how(self.run.data if self.run else "LABELLED"),))
        return Verdict("", "", "How good it is was not measured.", (self._how("LABELLED"),))

    def _how(self, data: str) -> str:
        return f"`byol evaluate {self.directory} {data}` measures it beside raw pixels and the untrained network."

    def _measured(self, row: Line) -> Verdict:
        found, own = self.evaluation or {}, row["columns"]["backbone"]
        measured = METRICS.get(found.get("metric", ""), "accuracy")
        low, high = own["interval_95"]
        images = found.get("test_images", own.get("n", 0))
        head = (
            f"{row['name'][:1].upper()}{row['name'][1:]}: {percent(own['score'])} {measured} on {images:,} test images "
            f"(95 % interval {low * 100:.1f} to {high * 100:.1f})."
        )
        kinds, said = [], []
        for name, each in row.get("differences", {}).items():
            low, high = each["interval_95"]
            points = f"{abs(each['difference']) * 100:.1f} points"
            between = f"95 % interval of the difference {low * 100:+.1f} to {high * 100:+.1f}"
            if low > 0:
                said.append(f"{points} better than {NAMED.get(name, name)} ({between}).")
            elif high < 0:
                said.append(f"{points} worse than {NAMED.get(name, name)} ({between}).")
            else:
                said.append(f"Not to be told from {NAMED.get(name, name)} ({between}).")
            # Training from scratch on all labels is what one hopes to come near, not what one must beat.
            if not name.startswith("supervised"):
                kinds.append("good" if low > 0 else "bad" if high < 0 else "warn")
        kind = next((kind for kind in ("bad", "warn", "good") if kind in kinds), "")
        words = {
            "good": "It learned something.",
            "warn": "Not shown to have learned.",
            "bad": "Worse than doing nothing.",
        }
        return Verdict(kind, words.get(kind, ""), head, (*said, *found.get("warnings", ())))

    def results(self) -> list[dict[str, Any]]:
        """A row a protocol: its name, what it is, and its columns' (name, score, low, high)."""
        rows = []
        for row in (self.evaluation or {}).get("rows", []):
            columns = [(name, each["score"], *each["interval_95"]) for name, each in row["columns"].items()]
            rows.append({"name": row["name"], "about": row.get("about", ""), "columns": columns})
        return rows

    def unlabelled(self) -> list[tuple[str, dict[str, Any]]]:
        return list((self.evaluation or {}).get("unlabelled", {}).items())

    def label_curves(self) -> dict[str, list[list[float]]]:
        """Of each column, [labels, None, score, low, high] of linear evaluation on frozen features, and of fine-tuning
        on few labels, where these were measured for two numbers of labels and more."""
        curves: dict[str, list[list[float]]] = {}
        for row in (self.evaluation or {}).get("rows", []):
            kind = {"semi": "fine-tuned", "fewshot": "frozen", "linear": "frozen"}.get(row["protocol"])
            for name, each in row["columns"].items() if kind else ():
                point = [row["labels"], None, each["score"], *each["interval_95"]]
                curves.setdefault(f"{name}, {kind}", []).append(point)
        return {name: sorted(points, key=lambda p: p[0]) for name, points in curves.items() if len(points) > 1}

    def curve(self, name: str) -> list[list[float]]:
        """[step, seconds, value] of a number, evenly thinned to MOST_POINTS."""
        points = [[line["step"], line.get("seconds"), line[name]] for line in self.lines if name in line]
        keep = -(-len(points) // MOST_POINTS) or 1
        return points[::-1][::keep][::-1]

    def settings(self) -> list[tuple[str, str]]:
        """Every setting by its name, nested ones with dots."""
        if self.run is None:
            return list(_flat(self.description or {}))
        values = asdict(self.run)
        for name in ("options", "facts", "views"):
            values.pop(name)
        views = [(f"view {i}", describe(View(**fields))) for i, fields in enumerate(self.run.views, start=1)]
        return [*_flat(values), *views]

    def found(self) -> list[tuple[str, str]]:
        """What was found and not chosen: versions, counts, device."""
        return list(_flat(self.run.facts)) if self.run is not None else []


CURVES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "Loss",
        {"lines": (("loss", ""),), "about": "What is minimised; what it can reach differs from method to method."},
    ),
    ("Learning rate", {"lines": (("lr", ""),), "zero": True, "about": ""}),
    ("tau", {"lines": (("tau", ""),), "about": "How much of itself the target keeps at each step."}),
    (
        "Spread of the embedding",
        {
            "lines": (("held_out/std_ratio", ""),),
            "zero": True,
            "marks": [[COLLAPSED_STD_RATIO, "collapsed below"]],
            "about": "Standard deviation of held-out images; 1 is even, 0 the same answer for all.",
        },
    ),
    (
        "Effective rank",
        {
            "lines": (("held_out/effective_rank", ""),),
            "zero": True,
            "marks": [[COLLAPSED_RANK, ""]],
            "about": "How many directions the embedding uses.",
        },
    ),
    (
        "Probes on held-out images",
        {
            "lines": (("held_out/knn", "kNN"), ("held_out/classifier", "linear")),
            "percent": True,
            "about": "Accuracy of classifiers that look on while it trains; kNN, and a linear one.",
        },
    ),
)
"""(title, how it is drawn): the names of metrics.jsonl, and what each is called where there are several."""


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found.append((f"{prefix}{name}", text if len(text) <= 300 else f"{text[:300]} ..."))
    return found


def read(directory: Path) -> Facts:
    """What a run's directory says. ValueError or FileNotFoundError, in one line, where it is none."""
    has_run = (directory / RUN).is_file()
    if not has_run and not (directory / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{directory} holds no {RUN}; name the --out of a pretrain")
    run = Run.read(directory / RUN) if has_run else None
    description = read_description(directory) if (directory / DESCRIPTION).is_file() else None
    lines = list(json_lines(directory / LINES)) if (directory / LINES).is_file() else []
    evaluation = read_json(directory / "evaluation.json") if (directory / "evaluation.json").is_file() else None
    embedding = read_embeddings(directory / EMBEDDING) if (directory / EMBEDDING).is_file() else None
    views = read_json(directory / VIEWS) if (directory / VIEWS).is_file() else None
    skipped = list(json_lines(directory / SKIPPED)) if (directory / SKIPPED).is_file() else []
    weights = (evaluation or {}).get("weights")
    outdated = weights is not None and (directory / WEIGHTS).is_file() and digest(directory) != weights
    return Facts(directory, run, description, lines, evaluation, embedding, views, skipped, outdated)
