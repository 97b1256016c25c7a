"""The protocols side by side for a backbone and what it must beat: raw pixels, and itself untrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.loader import fits_memory, load_pixels
from byol.data.source import HOW_TO_LABEL, DataError, Source
from byol.diagnose import effective_rank
from byol.encoder import Encoder, EncoderSpec, initialize
from byol.evaluate.features import extract, raw_pixels
from byol.evaluate.fewshot import fewshot_evaluation
from byol.evaluate.images import evaluation_batches
from byol.evaluate.knn import weighted_knn
from byol.evaluate.linear import linear_evaluation, stratified_split
from byol.names import PROTOCOLS

COLUMNS = ("backbone", "raw pixels", "untrained")
SHOTS = 5
"""Labels per class in few-shot evaluation."""
RANK_IMAGES = 2048
"""Test images, the first ones, whose features' effective rank is taken."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled images as evaluation sees them. images: [N, C, S, S] uint8. labels: [N] int64, indices of classes."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_labelled(source: Source, size: int, *, workers: int = 0) -> Labelled:
    """The labelled images of a source. DataError where there are none."""
    if source.labels is None or not (source.labels >= 0).any():
        raise DataError(f"{source.name} has no labels to evaluate against; {HOW_TO_LABEL}")
    source = source.subset(np.flatnonzero(source.labels >= 0))
    pixels = None
    if fits_memory(source):
        source, pixels, _ = load_pixels(source)
    rows, images = zip(*evaluation_batches(source, pixels, size, workers=workers), strict=True)
    assert source.labels is not None, "checked above"
    labels = torch.from_numpy(source.labels)[torch.cat(rows)]
    classes = source.classes
    if classes is None:
        values, labels = labels.unique(return_inverse=True)
        classes = tuple(map(str, values.tolist()))
    return Labelled(torch.cat(images), labels, classes)


def split_labelled(whole: Labelled, *, test_share: float = 0.2, seed: int = 0) -> tuple[Labelled, Labelled]:
    """A fixed stratified split, for data that comes without a test part."""
    fit, held = stratified_split(whole.labels.numpy(), test_share, np.random.default_rng(seed))
    parts = (Labelled(whole.images[i], whole.labels[i], whole.classes) for i in map(torch.from_numpy, (fit, held)))
    train, test = parts
    return train, test


def with_classes_of(train: Labelled, test: Labelled, name: str) -> Labelled:
    """The test images with the training classes' numbers. DataError where a test class is not among them."""
    if train.classes == test.classes:
        return test
    if unknown := [c for c in test.classes if c not in train.classes]:
        raise DataError(f"{name} has a class {unknown[0]!r} that the training labels lack; name the classes alike")
    number = torch.tensor([train.classes.index(c) for c in test.classes])
    return replace(test, labels=number[test.labels], classes=train.classes)


def untrained(spec: EncoderSpec, seed: int, *, last_scale: int) -> Encoder:
    """The encoder before training. last_scale: of each residual block's last batch norm, 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(spec)
        initialize(encoder)
    if last_scale == 0:
        for part in encoder.modules():
            zero = getattr(part, "zero_init_last", None)  # of timm's residual blocks
            if callable(zero):
                zero()
    return encoder.eval()


def evaluate(
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    protocols: Sequence[str] = PROTOCOLS,
    columns: Sequence[str] = COLUMNS,
    seed: int = 0,
    network_seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """All protocols for the backbone, the raw pixels and the untrained backbone (or those of them in `columns`), as
    plain values for JSON; and the effective rank of the backbone's features.

    Test images are scored once for each number and choose nothing: penalties, and which of the two untrained
    networks is the stronger, are decided on parts of the training images. seed: of the draws of labels and the
    splits. network_seed: of the untrained networks' weights; the run's own makes them its first step's.
    """

    def features(network: Encoder, part: Labelled) -> Tensor:
        return extract(network, part.images, mean=mean, std=std, size=None, device=device)

    fewest = int(train.labels.unique(return_counts=True)[1].min())
    if "fewshot" in protocols and fewest < SHOTS:
        say(f"few-shot is left out: a class has {fewest} training images, and {SHOTS} are needed")
        protocols = [p for p in protocols if p != "fewshot"]
    if not protocols:
        raise DataError(f"few-shot needs {SHOTS} labelled training images of each class; one class has {fewest}")
    found: dict[str, Any] = {
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "classes": list(train.classes),
        "seed": seed,
        "results": {},
    }
    sets: dict[str, tuple[Tensor, Tensor]] = {}
    if "backbone" in columns:
        say("features of the backbone")
        sets["backbone"] = (features(encoder, train), features(encoder, test))
        found["effective_rank"] = effective_rank(sets["backbone"][1][:RANK_IMAGES])
    if "raw pixels" in columns:
        say("raw pixels")
        sets["raw pixels"] = (raw_pixels(train.images), raw_pixels(test.images))
    if "untrained" in columns:
        say("the untrained network")
        candidates = {}
        for last_scale in (0, 1):
            network = untrained(encoder.spec, network_seed, last_scale=last_scale)
            candidates[last_scale] = (network, features(network, train))
        stronger = max(candidates, key=lambda s: _validation_knn(candidates[s][1], train.labels, seed))
        network, train_features = candidates[stronger]
        sets["untrained"] = (train_features, features(network, test))
        found["untrained_last_bn_scale"] = stronger

    for protocol in protocols:
        for name, (train_x, test_x) in sets.items():
            say(f"{protocol}: {name}")
            result = _PROTOCOLS[protocol](train_x, train.labels, test_x, test.labels, seed)
            found["results"].setdefault(protocol, {})[name] = result
    return found


def _validation_knn(features: Tensor, labels: Tensor, seed: int) -> float:
    fit, held = (torch.from_numpy(i) for i in stratified_split(labels.numpy(), 0.2, np.random.default_rng(seed)))
    predictions = weighted_knn(features[fit], labels[fit], features[held], k=20)
    return float((predictions == labels[held]).float().mean())


def _knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, seed: int) -> dict[str, Any]:
    return {f"k={k}": float((weighted_knn(train_x, train_y, test_x, k=k) == test_y).float().mean()) for k in (20, 200)}


def _linear(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, seed: int) -> dict[str, Any]:
    result = linear_evaluation(train_x, train_y, test_x, test_y, seed=seed)
    return {
        "accuracy": result.accuracy,
        "penalty": result.penalty,
        "validation_accuracies": {f"{k:g}": v for k, v in result.validation_accuracies.items()},
        "converged": result.converged,
    }


def _fewshot(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, seed: int) -> dict[str, Any]:
    result = fewshot_evaluation(train_x, train_y, test_x, test_y, shots=SHOTS, draws=20, seed=seed)
    return {
        "accuracy": result.accuracy,
        "interval_95": list(result.interval),
        "penalty": result.penalty,
        "accuracies": list(map(float, result.accuracies)),
        "shots": result.shots,
        "draws": 20,
    }


_PROTOCOLS = {"knn": _knn, "linear": _linear, "fewshot": _fewshot}
