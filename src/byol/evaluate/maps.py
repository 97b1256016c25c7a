"""A map of an embedding: each image a point of the plane, near those that are like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

Method = Literal["auto", "tsne", "pca", "none"]

MOST_EXACT = 10_000
"""Images up to which scikit-learn's t-SNE draws the map: a minute on two cores."""
MOST_FITTED = 100_000
"""Images that openTSNE fits; it places all others among them."""
COMPONENTS = 50
"""Principal components that t-SNE sees: van der Maaten & Hinton 2008, section 4.2, take 30, Kobak & Berens 2019 50."""
PERPLEXITY = 30.0
ONE_THREAD = 2_000
"""Images up to which one thread is quicker than two."""
ITERATIONS, EVERY = 750, 50
"""Of openTSNE, as it has them, and how often it tells of them."""
MOST_JUDGED = 3_000
"""Images that trustworthiness is measured on: the work grows with their square."""
NEIGHBOURS = 10
"""Of an image, that trustworthiness compares."""


@dataclass(frozen=True, eq=False)
class Map:
    """positions: [N, 2] float32. method: in words. trustworthiness: in [0, 1], see `trust`, on `judged` images; None
    of fewer than 21, where it is not defined."""

    positions: np.ndarray
    method: str
    seed: int
    trustworthiness: float | None
    judged: int


def chosen(method: Method, num_images: int) -> tuple[Method, str]:
    """(the method that `auto` means for so many images, what to say of it: "" where all is as wished)."""
    lacking = num_images > MOST_EXACT and find_spec("openTSNE") is None
    if method == "auto" and lacking:
        return "pca", f"the map of {num_images:,} images is by PCA; for t-SNE of more than {MOST_EXACT:,}: {INSTALL}"
    if method == "tsne" and lacking:
        raise ValueError(f"t-SNE of more than {MOST_EXACT:,} images needs openTSNE; run: {INSTALL}, or use --map pca")
    return ("tsne" if method == "auto" else method), ""


INSTALL = "pip install openTSNE"


def draw_map(
    features: np.ndarray,
    method: Method = "auto",
    *,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Map:
    """The map of features [N, D] float32, compared by their directions (cosine).

    tsne: van der Maaten & Hinton 2008 of the first COMPONENTS principal components, begun at the first two (Kobak &
    Berens 2019), with perplexity 30 or a third of the images; scikit-learn's to MOST_EXACT images, openTSNE's above.
    pca: the first two principal components. progress: (done, total) of openTSNE's iterations. ValueError where openTSNE
    is needed and not there.
    """
    from sklearn.decomposition import PCA

    method, _ = chosen(method, len(features))
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    most = min(COMPONENTS, *unit.shape)
    reduced = np.zeros((len(unit), most))
    if np.ptp(unit, axis=0).any():
        reduced = PCA(most, random_state=seed).fit_transform(unit)
    plane = np.zeros((len(unit), 2), np.float32)
    plane[:, : min(2, most)] = reduced[:, :2]
    said = "PCA"
    # Of so few images, or of features that are all one, there is nothing to arrange.
    if method == "tsne" and len(unit) > 4 and plane[:, 0].any():
        exact = len(unit) <= MOST_EXACT
        plane = _exact(reduced, seed) if exact else _fitted(reduced, seed, progress)
        said = f"t-SNE ({'scikit-learn' if exact else 'openTSNE'}) of {most} principal components"
    judged = np.unique(np.linspace(0, len(unit) - 1, min(len(unit), MOST_JUDGED)).astype(int))
    return Map(plane, said, seed, trust(unit[judged], plane[judged]), len(judged))


def trust(features: np.ndarray, positions: np.ndarray) -> float | None:
    """Trustworthiness of a map, in [0, 1]: how far neighbours on it are neighbours in the features (Venna & Kaski
    2001), NEIGHBOURS of each. None where it is not defined, of fewer than 2 NEIGHBOURS + 1 images."""
    from sklearn.manifold import trustworthiness

    if len(features) < 2 * NEIGHBOURS + 1:
        return None
    return float(trustworthiness(features, positions, n_neighbors=NEIGHBOURS, metric="cosine"))


def _perplexity(num_images: int) -> float:
    return min(PERPLEXITY, (num_images - 1) / 3)


def _exact(reduced: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    tsne = TSNE(2, perplexity=_perplexity(len(reduced)), init="pca", random_state=seed)
    # Of few images, threads wait for each other longer than they work.
    with threadpool_limits(1 if len(reduced) <= ONE_THREAD else None):
        return np.asarray(tsne.fit_transform(reduced.astype(np.float32)), np.float32)


def _fitted(reduced: np.ndarray, seed: int, progress: Callable[[int, int], object] | None) -> np.ndarray:
    import openTSNE
    import torch

    fitted = np.unique(np.linspace(0, len(reduced) - 1, min(len(reduced), MOST_FITTED)).astype(int))
    done = 0

    def tell(*_: Any) -> None:
        nonlocal done
        done = min(done + EVERY, ITERATIONS)  # placing others among them calls it too
        if progress is not None:
            progress(done, ITERATIONS)

    tsne = openTSNE.TSNE(
        perplexity=PERPLEXITY,
        random_state=seed,
        n_jobs=torch.get_num_threads(),
        callbacks=tell,
        callbacks_every_iters=EVERY,
    )
    found = tsne.fit(reduced[fitted])
    plane = np.zeros((len(reduced), 2), np.float32)
    plane[fitted] = found
    others = np.setdiff1d(np.arange(len(reduced)), fitted)
    if len(others):
        plane[others] = found.transform(reduced[others])
    return plane
