"""The nearest neighbours of every image among all: exact to EXACT_UP_TO images, above by FAISS, with its recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch

from byol.evaluate.knn import nearest

EXACT_UP_TO = 200_000
"""Images: N^2 D operations, a quarter of an hour of 512 features on two cores."""
AT_ONCE = 4096
"""Images whose neighbours are looked for at a time."""
JUDGED = 1000
"""Images whose neighbours are looked for exactly as well, to say FAISS's recall."""
LINKS, EFFORT = 32, 128
"""Of FAISS's graph (HNSW: Malkov & Yashunin 2018): links of a node, and nodes looked at when building and searching."""
INSTALL = "pip install faiss-cpu"


@dataclass(frozen=True, eq=False)
class Neighbours:
    """rows: [N, k] int64, nearest first, never the image itself. distances: [N, k] float32, 1 - cosine similarity, in
    [0, 2]. method: in words. recall: share of the true neighbours among those found, of JUDGED images; 1 if exact."""

    rows: np.ndarray
    distances: np.ndarray
    method: str
    recall: float


def missing(num_images: int) -> str:
    """What to say where neighbours among so many images cannot be found here; else ""."""
    if num_images <= EXACT_UP_TO or find_spec("faiss") is not None:
        return ""
    return f"neighbours among {num_images:,} images, more than {EXACT_UP_TO:,}, need FAISS; run: {INSTALL}"


def neighbours_of_all(
    features: np.ndarray, k: int, *, exact: bool | None = None, progress: Callable[[int, int], object] | None = None
) -> Neighbours:
    """The k nearest other images of each by cosine similarity.

    features: [N, D] float32, N at least 2; k above N - 1 counts as N - 1. exact: whether all are compared; by default
    to EXACT_UP_TO. progress: (done, N). ValueError where FAISS is needed and not there.
    """
    k = min(k, len(features) - 1)
    if exact if exact is not None else len(features) <= EXACT_UP_TO:
        found = []
        for start in range(0, len(features), AT_ONCE):
            rows = np.arange(start, min(start + AT_ONCE, len(features)))
            found.append(_exact(features, rows, k))
            if progress is not None:
                progress(int(rows[-1]) + 1, len(features))
        near, similarities = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Neighbours(near, _distances(similarities), "exact", 1.0)
    if find_spec("faiss") is None:
        raise ValueError(missing(len(features)) or f"FAISS is not installed; run: {INSTALL}")
    near, similarities = _by_graph(features, k, progress)
    judged = np.unique(np.linspace(0, len(features) - 1, JUDGED).astype(int))
    true, _ = _exact(features, judged, k)
    hits = [len(np.intersect1d(a, b)) for a, b in zip(true, near[judged], strict=True)]
    return Neighbours(near, _distances(similarities), "FAISS HNSW", sum(hits) / true.size)


def _exact(features: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    bank = torch.from_numpy(features)
    similarities, near = nearest(bank, bank[rows], k + 1)
    return _without_self(rows, near.numpy(), similarities.numpy())


def _by_graph(
    features: np.ndarray, k: int, progress: Callable[[int, int], object] | None
) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    index = faiss.IndexHNSWFlat(unit.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = index.hnsw.efSearch = EFFORT
    blocks = [slice(start, start + AT_ONCE) for start in range(0, len(unit), AT_ONCE)]
    for done, block in enumerate(blocks, start=1):
        index.add(unit[block])
        if progress is not None:
            progress(done, 2 * len(blocks))
    found = []
    for done, block in enumerate(blocks, start=1):
        similarities, near = index.search(unit[block], k + 1)
        found.append(_without_self(np.arange(len(unit))[block], near, similarities))
        if progress is not None:
            progress(len(blocks) + done, 2 * len(blocks))
    near, similarities = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return near, similarities


def _without_self(rows: np.ndarray, near: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, k] of [B, k + 1]: without the image itself, or, where equal ones pushed it out, without the last."""
    own = near == rows[:, None]
    own[~own.any(axis=1), -1] = True
    kept = ~own
    return near[kept].reshape(len(rows), -1), similarities[kept].reshape(len(rows), -1)


def _distances(similarities: np.ndarray) -> np.ndarray:
    return (1 - similarities).clip(0, 2).astype(np.float32)
