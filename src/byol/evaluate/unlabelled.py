"""How good is a frozen network, without labels? What its features say of plain images and of two views of each.

Each number stands beside that of the raw pixels (`columns.Pixels`) and of the untrained network, from the same images;
`correlations` says over many runs which of the numbers goes with accuracy, and how surely.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import binomtest, rankdata
from torch import Tensor, nn

from byol.data.loader import HOLD_OUT_EPOCH, Loader, Normalization
from byol.data.source import DataError, Source
from byol.diagnose import alignment, effective_rank, uniformity
from byol.evaluate.features import extract
from byol.pictures import sample_rows
from byol.views.view import View

MOST_IMAGES = 2048
"""Images that the numbers are taken over, at most: retrieval compares each with all others, and the rank's singular
values take N^2 D operations."""

VIEWS_AT_ONCE = 256
"""Images whose views are made at a time."""

WORTH = Path(__file__).with_name("worth.json")
"""Written by benchmarks/unlabelled.py; see `worth`."""

FEWEST_RUNS = 3
"""Below this, ranks correlate perfectly or say nothing."""

RESAMPLES = 1000
"""Of the runs, for the interval of a correlation."""


@dataclass(frozen=True)
class Numbers:
    """What `unlabelled_numbers` measured."""

    effective_rank: float
    """Of the features of plain images; see byol.diagnose. In [1, min(N - 1, D)], or 0; higher uses more directions."""
    alignment: float
    """Mean squared distance of an image's two views, L2-normalised; see byol.diagnose. In [0, 4]; lower is better."""
    uniformity: float
    """Of the first views; see byol.diagnose. In [-8, 0]; lower is more uniform."""
    view_retrieval: float
    """Share of the images whose first view is nearer to their own second view than to all others; see `retrieved`."""
    interval_95: tuple[float, float]
    """Wilson's, of `view_retrieval`: over the choice of images, each taken as a trial of its own."""
    num_images: int
    """N."""
    chance: float
    """`view_retrieval` of a network that knows nothing: 1 / N. Shares compare at equal N alone."""


def view_pairs(
    source: Source,
    pixels: Tensor | None,
    views: tuple[View, ...],
    *,
    size: int,
    seed: int,
    num_images: int = MOST_IMAGES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of images evenly spaced over a source: (rows [N] int64, first, second [N, C, size, size] in 0-255).

    The views are drawn as of HOLD_OUT_EPOCH: no training has seen them, though it may have seen the images. They are
    rounded to whole levels, uint8, as plain images are, but those of deep images. Images that turn out unusable are
    left out.

    pixels: [N, C, H, W] uint8 where they are in memory, else None. views: a run's own; of more than two the first
    two count, and of one a second is drawn. size: of the views, px. num_images: 2 to MOST_IMAGES.
    """
    if not 2 <= num_images <= MOST_IMAGES:
        raise ValueError(f"num_images={num_images} is not allowed; use 2 to {MOST_IMAGES}")
    as_it_is = Normalization((0.0,) * source.channels, (1.0,) * source.channels)
    loader = Loader(
        source,
        (views * 2)[:2],
        pixels=pixels,
        size=size,
        batch_size=VIEWS_AT_ONCE,
        normalization=as_it_is,
        seed=seed,
    )
    rows, made = [], []
    for part in sample_rows(num_images, len(source)).split(VIEWS_AT_ONCE):
        batch = loader.batch_of(part, torch.full_like(part, HOLD_OUT_EPOCH))
        # What stands in for an unusable image may be among the others already.
        own = batch.ids == loader.ids[part]
        rows.append(part[own])
        levels = torch.stack(batch.views)[:, own].mul(255)
        made.append(levels if source.deep else levels.round().to(torch.uint8))
    if sum(map(len, rows)) < 2:
        raise DataError(f"{source.name} has fewer than 2 usable images to tell apart; give it more")
    first, second = torch.cat(made, dim=1)
    return torch.cat(rows), first, second


def unlabelled_numbers(
    network: nn.Module,
    plain: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    normalization: Normalization,
    device: str | torch.device = "cpu",
) -> Numbers:
    """All numbers of a network's features, in inference mode; its training mode is as before afterwards.

    network: on `device`; normalised images [B, C, S, S] float32 -> [B, D]. plain, first, second: [N, C, S, S] uint8,
    0-255, N from 2 to MOST_IMAGES: row i of each is image i, as it is and as two views (see `view_pairs`).
    """
    if not len(plain) == len(first) == len(second):
        raise ValueError(
            f"there are {len(plain)} images, {len(first)} first and {len(second)} second views; row i of "
            "all must be image i"
        )
    if not 2 <= len(plain) <= MOST_IMAGES:
        raise ValueError(f"there are {len(plain)} images; use 2 to {MOST_IMAGES}")
    y, y1, y2 = (
        extract(network, images, mean=normalization.mean, std=normalization.std, size=None, device=device)
        for images in (plain, first, second)
    )
    num, found = len(y), int(retrieved(y1, y2).sum())
    interval = binomtest(found, num).proportion_ci(0.95, method="wilson")
    return Numbers(
        effective_rank=effective_rank(y),
        alignment=alignment(y1, y2),
        uniformity=uniformity(y1),
        view_retrieval=found / num,
        interval_95=(float(interval.low), float(interval.high)),
        num_images=num,
        chance=1 / num,
    )


def retrieved(first: Tensor, second: Tensor) -> Tensor:
    """Whether row i of second is the row of highest cosine similarity to row i of first: [N] bool.

    One direction: first views ask, second views answer. A tie, up to rounding, is no answer: where all rows are equal
    none is retrieved. first, second: [N, D] floating, of any scale, computed in float64.
    """
    similarities = F.normalize(first.double(), dim=1) @ F.normalize(second.double(), dim=1).T
    own = similarities.diagonal().clone()
    others = similarities.fill_diagonal_(-torch.inf).amax(dim=1)
    return own - others > torch.finfo(torch.float64).eps * first.shape[1]


def correlations(
    runs: Sequence[Mapping[str, float]], target: str = "knn", *, seed: int = 0
) -> dict[str, tuple[float, float, float, int] | None]:
    """Spearman's correlation of each number with `target` over runs: name -> (rho, low, high, n).

    rho in [-1, 1]; equal values share their mean rank. low, high: 95 % percentile bootstrap over the runs, from
    RESAMPLES resamples less those in which a column is constant; with few runs it is too narrow (runs in perfect order
    give [1, 1]). n: runs that have both values, finite; the others are left out. None where n < FEWEST_RUNS or a
    column is constant over the n: there is no correlation then. Alignment and uniformity are better where they are
    lower: a useful one has rho < 0.
    """
    if not any(target in run for run in runs):
        raise ValueError(f"none of the {len(runs)} runs has {target!r}, which the numbers would be compared with")
    names = dict.fromkeys(name for run in runs for name in run if name != target)
    return {
        name: _correlation(np.array([(run[name], run[target]) for run in runs if {name, target} <= run.keys()]), seed)
        for name in names
    }


def worth() -> dict[str, dict[str, list[float] | None]]:
    """What `correlations` found over the runs of docs/experiments: data -> number -> [rho, low, high, n]."""
    return json.loads(WORTH.read_text("utf-8")) if WORTH.is_file() else {}


def _correlation(pairs: np.ndarray, seed: int) -> tuple[float, float, float, int] | None:
    """pairs: [n, 2]."""
    pairs = pairs.reshape(-1, 2).astype(np.float64)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    num = len(pairs)
    if num < FEWEST_RUNS or (np.ptp(pairs, axis=0) == 0).any():
        return None
    resamples = pairs[np.random.default_rng(seed).integers(num, size=(RESAMPLES, num))]
    resamples = resamples[(np.ptp(resamples, axis=1) > 0).all(axis=1)]
    low, high = np.quantile(_spearman(resamples), (0.025, 0.975))
    return float(_spearman(pairs)), float(low), float(high), num


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks: [..., n, 2] -> [...]. As scipy's spearmanr, for many samples at a time."""
    ranks = rankdata(pairs, axis=-2)
    x, y = np.moveaxis(ranks - ranks.mean(axis=-2, keepdims=True), -1, 0)
    return (x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
