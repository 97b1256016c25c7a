"""Nearest-neighbour classification: what an embedding knows before any training on labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SIMILARITIES_AT_ONCE = 2**24
"""Similarities held in memory at a time: 64 MiB in float32."""
VALUES_AT_ONCE = 2**26
"""Values of features held in memory at a time as float32, of the bank and of the queries each: 256 MiB."""


@torch.no_grad()
def nearest(bank: Tensor | np.ndarray, queries: Tensor | np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """(cosine similarities [Q, k] float32, rows of the bank [Q, k] int64) of each query's k nearest, nearest first.

    bank: [N, D] and queries: [Q, D], floating, of any scale, on one device; or arrays, of which only blocks are read
    into memory. k above N counts as N. Which of several rows with the k-th similarity is found is torch.topk's choice.
    """
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank is {list(bank.shape)} and queries {list(queries.shape)}; use [N, D] and [Q, D]")
    if k < 1:
        raise ValueError(f"k={k} is not allowed; use 1 or more")
    k = min(k, len(bank))
    block = max(k, VALUES_AT_ONCE // bank.shape[1])
    found = []
    for start in range(0, len(queries), block):
        query = _unit(queries[start : start + block])
        best = (
            torch.empty(len(query), 0, device=query.device),
            torch.empty(len(query), 0, dtype=torch.int64, device=query.device),
        )
        for first in range(0, len(bank), block):
            rows = _unit(bank[first : first + block])
            here = [
                (chunk @ rows.T).topk(min(k, len(rows)), dim=1)
                for chunk in query.split(max(1, SIMILARITIES_AT_ONCE // len(rows)))
            ]
            similarities = torch.cat([best[0], torch.cat([h.values for h in here])], dim=1)
            neighbours = torch.cat([best[1], torch.cat([h.indices for h in here]) + first], dim=1)
            kept = similarities.topk(min(k, similarities.shape[1]), dim=1)
            best = kept.values, neighbours.gather(1, kept.indices)
        found.append(best)
    if not found:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    return torch.cat([s for s, _ in found]), torch.cat([n for _, n in found])


@torch.no_grad()
def weighted_knn(
    bank: Tensor | np.ndarray,
    bank_labels: Tensor,
    queries: Tensor | np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Predicted classes, int64 [Q], by a weighted vote of nearest neighbours. Wu et al. 2018, section 3.4.

    Each of the k bank rows of highest cosine similarity s to a query votes for its class with weight
    exp(s / temperature); see `nearest`. On a tie the lowest label wins. The temperature is the paper's, whose k is 200.

    bank: [N, D] and queries: [Q, D], as for `nearest`. bank_labels: [N] int, at least 0.
    """
    if len(bank) == 0 or bank_labels.shape != (len(bank),):
        raise ValueError(f"bank has {len(bank)} rows and {bank_labels.numel()} labels; give each row one label")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} is not allowed; use a positive number")
    if bank_labels.min() < 0:
        raise ValueError(f"a label is {int(bank_labels.min())}: unknown; leave images without a label out of the bank")
    classes, labels = bank_labels.long().unique(return_inverse=True)
    similarities, neighbours = nearest(bank, queries, k)
    if len(similarities) == 0:
        return torch.empty(0, dtype=torch.int64)
    # One factor per query leaves the vote as it is, and exp(1 / temperature) would overflow at 0.01.
    weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
    votes = weights.new_zeros(len(weights), len(classes)).scatter_add_(1, labels[neighbours], weights)
    return classes[votes.argmax(dim=1)]


def _unit(rows: Tensor | np.ndarray) -> Tensor:
    """Rows as float32, scaled to length 1."""
    tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, dtype=np.float32))
    return F.normalize(tensor.float(), dim=1)
