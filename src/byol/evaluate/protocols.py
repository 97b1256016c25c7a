"""The field's protocols, each in two phases: what is fitted to training images, and what that says of test images.

No phase-one function can see a test image: it is not among its arguments.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol.data.source import DataError
from byol.evaluate import scores, subsets
from byol.evaluate.columns import SUPERVISED, UNTRAINED, Column
from byol.evaluate.fewshot import fit_fewshot
from byol.evaluate.finetune import SEMI, SEMI_SMALL, TRANSFER, TRANSFER_SMALL, Grid, finetune
from byol.evaluate.knn import weighted_knn
from byol.evaluate.labelled import Labelled, apart
from byol.evaluate.linear import fit_linear
from byol.evaluate.multilabel import fit_multilabel
from byol.evaluate.sgd import BASE_LRS, fit_sgd_linear
from byol.names import PROTOCOLS
from byol.views.view import View

VALIDATION_SHARE = 0.2
"""Share of the labelled training images on which a protocol chooses, class by class."""
FEWEST_TO_CHOOSE = 3
"""Labels of the largest class with which a validation part can be held out."""
METRICS: dict[str, Callable[..., Any]] = {
    "top1": scores.accuracy,
    "mean-per-class": scores.mean_per_class,
    "map": scores.map_11,
}
"""What a source is scored by, and what its protocols choose by."""


Working = Callable[[str, int, int], None]
"""(what is being done, how much of it is, how much there is)."""


def idle(what: str, done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Settings:
    """What was decided about an evaluation; where the defaults are not the papers', docs/evaluation.md says so."""

    protocols: tuple[str, ...] = ("knn", "linear", "fewshot")
    metric: str = "top1"
    seed: int = 0
    seeds: int = 1
    """Fits of the protocols that train by gradient descent."""
    shots: int = 5
    draws: int = 20
    amounts: tuple[str | int, ...] = ("1%", "10%")
    """Of labels, for semi-supervised evaluation: shares of each class, images per class, or a list's path."""
    epochs: int = 80
    """Of the linear classifier that SGD trains."""
    full_grid: bool = False
    """The papers' whole grids for fine-tuning, in place of the short ones."""
    flip: float = 0.5
    """Probability of a flip in the views of the protocols that train on views."""
    workers: int = 0
    device: str | None = None
    """None: where the caller decides, a GPU if there is one."""

    @property
    def view(self) -> View:
        return View(jitter=0.0, gray=0.0, blur=0.0, flip=self.flip)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What phase one gives. predict: phase two, (test images, their features) -> what it says of each.

    Predictions are classes [N] int64, [draws, N] of repeated fits, or, for several labels an image, scores [N, K].
    facts: what was chosen, for people and JSON.
    """

    predict: Callable[[Labelled, np.ndarray | None], np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the table: one number for each column. name: for people. about: the protocol in full."""

    protocol: str
    name: str
    about: str
    labels: int
    """Labelled images that it trains on."""
    fitted: dict[str, Fitted]
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    """Which training images it used, where not all: a name -> rows."""


@dataclass(frozen=True, eq=False)
class Training:
    """All that phase one may see. features: of a column, [N, D] float16 or float32, row i = image i."""

    train: Labelled
    settings: Settings
    features: Callable[[Column], np.ndarray]
    columns: Sequence[Column]
    scratch: Column | None
    """The network that training from scratch on the labels starts with."""
    supervised: bool
    """Whether training from scratch is also compared with protocols that leave the backbone as it is."""
    say: Callable[[str], None]
    note: Callable[[str], None]
    working: Working

    def starts(self) -> list[Column]:
        """The networks that fine-tuning starts from. The untrained one's column is that of training from scratch."""
        own = [column for column in self.columns if column.trainable and column.name != UNTRAINED]
        return own + ([] if self.scratch is None else [self.scratch])

    def score(self) -> Callable[[np.ndarray, np.ndarray], float]:
        return METRICS[self.settings.metric]

    def on_views(self, column: Column, seed: int, doing: str) -> dict[str, Any]:
        """What both protocols that train on views are given. doing: for the progress bar."""
        return {
            "normalization": column.normalization,
            "size": column.size,
            "seed": seed,
            "device": self.settings.device or "cpu",
            "view": self.settings.view,
            "workers": self.settings.workers,
            "score": self.score(),
            "progress": partial(self.working, doing),
        }

    def split(self, seed: int, part: Labelled | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(fit, validation) rows of the training images, or of a part of them."""
        return apart((part or self.train).source, VALIDATION_SHARE, seed=seed)

    def split_of_few(self, seed: int, part: Labelled) -> tuple[np.ndarray, np.ndarray]:
        """The same; all in the fit part where the labels are too few, or the groups too large, to choose with."""
        if np.bincount(part.labels).max() >= FEWEST_TO_CHOOSE:
            with suppress(DataError):
                return self.split(seed, part)
        return np.arange(len(part)), np.empty(0, np.int64)


def score_of(found: dict[str, Any], protocol: str, column: str) -> float | None:
    """The score of a protocol's first row in what `evaluate` found; None where it has none."""
    rows = (row for row in found["rows"] if row["protocol"] == protocol and column in row["columns"])
    row = next(rows, None)
    return None if row is None else row["columns"][column]["score"]


def fit_rows(training: Training) -> tuple[list[Row], dict[str, Exception]]:
    """Phase one of every protocol, and the errors of those that failed: the others go on."""
    rows: list[Row] = []
    failed: dict[str, Exception] = {}
    for protocol in training.settings.protocols:
        try:
            rows += _FITS[protocol](training)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # else it would hold the memory that the next one needs
            failed[protocol] = error
            training.say(f"{protocol} failed: {error or type(error).__name__}")
    return rows, failed


def _knn(training: Training) -> list[Row]:
    fitted: dict[int, dict[str, Fitted]] = {20: {}, 200: {}}
    labels = torch.from_numpy(training.train.labels)
    for column in training.columns:
        bank = training.features(column)
        for k, columns in fitted.items():

            def predict(test: Labelled, x: np.ndarray | None, bank: np.ndarray = bank, k: int = k) -> np.ndarray:
                assert x is not None
                return weighted_knn(bank, labels, x, k=k).numpy()

            columns[column.name] = Fitted(predict)
    about = "cosine similarity, votes weighted by exp(s / 0.07); nothing is chosen"
    return [Row("knn", f"kNN, k={k}", about, len(labels), columns) for k, columns in fitted.items()]


def _linear(training: Training) -> list[Row]:
    train, settings = training.train, training.settings
    split = training.split(settings.seed)
    fitted = {}
    for column in training.columns:
        training.note(f"linear: {column.name}")
        x = training.features(column)
        score = training.score()
        if train.targets is not None:
            found = fit_multilabel(x, train.targets, split=split, score=score)
        else:
            found = fit_linear(x, train.labels, split=split, score=score)
        facts = {
            "penalty": found.penalty,
            "validation": {f"{k:g}": v for k, v in found.validation_scores.items()},
            "converged": found.converged,
        }
        classifier = found.classifier
        multi = train.targets is not None

        def predict(test: Labelled, x: np.ndarray | None, c: Any = classifier, multi: bool = multi) -> np.ndarray:
            assert x is not None
            return c.scores(x) if multi else c.predict(x)

        fitted[column.name] = Fitted(predict, facts)
    about = (
        f"logistic regression on standardised frozen features: L-BFGS, 45 penalties from 1e-6 to 1e5, chosen by "
        f"{settings.metric} on {VALIDATION_SHARE:.0%} of the training images, then fitted to all of them"
    )
    if training.scratch is not None and training.supervised and train.targets is None:
        grid = TRANSFER if settings.full_grid else TRANSFER_SMALL
        # Once, whatever the seeds: it stands beside a fit that has none.
        fitted[SUPERVISED] = _finetuned(training, training.scratch, grid, [np.arange(len(train))])
        about += f"; {SUPERVISED}: {grid.about()}"
    return [Row("linear", "linear, all labels", about, len(train), fitted)]


def _fewshot(training: Training) -> list[Row]:
    settings = training.settings
    labels = training.train.labels
    fitted = {}
    for column in training.columns:
        training.note(f"few-shot: {column.name}")
        found = fit_fewshot(
            training.features(column),
            labels,
            shots=settings.shots,
            draws=settings.draws,
            seed=settings.seed,
            # Without groups it splits so that each class keeps its shots.
            split=None if training.train.source.groups is None else training.split(settings.seed),
            score=training.score(),
        )
        facts = {
            "penalty": found.penalty,
            "shots": settings.shots,
            "draws": settings.draws,
            "converged": found.converged,
        }

        def predict(test: Labelled, x: np.ndarray | None, models: Any = found.models) -> np.ndarray:
            assert x is not None
            return np.stack([model.predict(x) for model in models])

        fitted[column.name] = Fitted(predict, facts)
    about = (
        f"logistic regression on {settings.shots} labels a class, mean over {settings.draws} draws of them; features "
        "standardised and the penalty chosen with all training images"
    )
    number = settings.shots * len(training.train.classes)
    return [Row("fewshot", f"few-shot, {settings.shots} per class", about, number, fitted)]


def _linear_sgd(training: Training) -> list[Row]:
    settings, train = training.settings, training.train
    fitted = {}
    about = ""
    for column in training.columns:
        models = []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            models.append(
                fit_sgd_linear(
                    column.network,
                    train.source,
                    train.pixels,
                    split=training.split(seed),
                    epochs=settings.epochs,
                    **training.on_views(column, seed, f"linear by SGD: {column.name}"),
                )
            )
        facts = {
            "base_lr": [model.base_lr for model in models],
            "steps": models[0].steps,
            "batch": models[0].batch_size,
        }
        fitted[column.name] = Fitted(_said_by(models), facts)
        about = (
            f"one linear layer on frozen features of crop + flip views: SGD, Nesterov momentum 0.9, no decay, "
            f"{settings.epochs} epochs in batches of {models[0].batch_size}, cosine from one of {len(BASE_LRS)} "
            f"rates (0.05 to 0.4 x batch/256) chosen on {VALIDATION_SHARE:.0%} of the training images, then all"
        )
    if training.scratch is not None and training.supervised:
        grid = Grid(
            BASE_LRS,
            (0.0,),
            lengths=(settings.epochs,),
            unit="epochs",
            batch_size=models[0].batch_size,
            slow_batch_norm=False,
        )
        fitted[SUPERVISED] = _finetuned(training, training.scratch, grid, None)
    return [Row("linear-sgd", "linear by SGD, all labels", about, len(train), fitted)]


def _finetune(training: Training) -> list[Row]:
    grid = TRANSFER if training.settings.full_grid else TRANSFER_SMALL
    fitted = {column.name: _finetuned(training, column, grid, None) for column in training.starts()}
    return [Row("finetune", "fine-tuned, all labels", grid.about(), len(training.train), fitted)]


def _semi(training: Training) -> list[Row]:
    settings, source = training.settings, training.train.source
    grid = SEMI if settings.full_grid else SEMI_SMALL
    rows = []
    seeds = range(settings.seed, settings.seed + settings.seeds)

    def choices(amount: str | int) -> list[np.ndarray]:
        if isinstance(amount, str) and not amount.endswith("%"):  # a list: the same images for every seed
            return [subsets.read_list(amount, [source.name_of(int(i)) for i in source.ids])] * settings.seeds
        labels, classes = training.train.labels, training.train.classes
        return [subsets.choose(labels, amount, seed=s, groups=source.groups, classes=classes) for s in seeds]

    # All before the first training: what is wrong with an amount is said at once.
    for amount, chosen in [(amount, choices(amount)) for amount in settings.amounts]:
        fitted = {column.name: _finetuned(training, column, grid, chosen) for column in training.starts()}
        name = f"fine-tuned, {subsets.words(amount)}"
        short = Path(str(amount)).stem if not str(amount).endswith("%") else amount
        lists = {f"{short}-seed{seed}": part for seed, part in zip(seeds, chosen, strict=True)}
        rows.append(Row("semi", name, grid.about(), len(chosen[0]), fitted, lists))
    return rows


def _finetuned(training: Training, column: Column, grid: Grid, chosen: list[np.ndarray] | None) -> Fitted:
    """All weights trained, once a seed on all training images, or once on each choice of them."""
    settings, models = training.settings, []
    for i in range(settings.seeds if chosen is None else len(chosen)):
        seed = settings.seed + i
        part = training.train if chosen is None else training.train.subset(chosen[i])
        split = training.split_of_few(seed, part)
        models.append(
            finetune(
                column.network,
                part.source,
                part.pixels,
                grid=grid if len(split[1]) else grid.middle(),
                split=split,
                **training.on_views(column, seed, f"fine-tuning on {len(part):,} labels: {column.name}"),
            )
        )
    facts = {
        "point": [asdict(model.point) for model in models],
        "chosen_on_validation": [bool(model.validation_scores) for model in models],
    }
    return Fitted(_said_by(models), facts)


def _said_by(models: Sequence[Any]) -> Callable[[Labelled, np.ndarray | None], np.ndarray]:
    def predict(test: Labelled, x: np.ndarray | None) -> np.ndarray:
        said = []
        for model in models:
            rows, logits = model.scores(test.source, test.pixels)
            if len(rows) < len(test):  # those that never could were left out before
                gone = len(test) - len(rows)
                raise DataError(f"{test.source.name}: {gone} images can no longer be read; is the disk whole?")
            said.append(logits.argmax(axis=1))
        return np.stack(said) if len(said) > 1 else said[0]

    return predict


_FITS: dict[str, Callable[[Training], list[Row]]] = {
    "knn": _knn,
    "linear": _linear,
    "fewshot": _fewshot,
    "linear-sgd": _linear_sgd,
    "finetune": _finetune,
    "semi": _semi,
}
assert tuple(_FITS) == PROTOCOLS
