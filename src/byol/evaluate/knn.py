"""Nearest-neighbour classification: what an embedding knows before any training on labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SIMILARITIES_AT_ONCE = 2**24
"""Similarities held in memory at a time: 64 MiB in float32."""


@torch.no_grad()
def weighted_knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Predicted classes, int64 [Q], by a weighted vote of nearest neighbours. Wu et al. 2018, section 3.4.

    Each of the k bank rows of highest cosine similarity s to a query votes for its class with weight
    exp(s / temperature); k above N counts as N. On a tie the lowest label wins; which of several bank
    rows with the k-th similarity gets a vote is torch.topk's choice. The temperature is the paper's, whose k
    is 200.

    bank: [N, D] and queries: [Q, D], floating, of any scale (rows are L2-normalised here), on one device.
    bank_labels: [N] int, at least 0.
    """
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank is {list(bank.shape)} and queries {list(queries.shape)}; use [N, D] and [Q, D]")
    if len(bank) == 0 or bank_labels.shape != (len(bank),):
        raise ValueError(f"bank has {len(bank)} rows and {bank_labels.numel()} labels; give each row one label")
    if k < 1:
        raise ValueError(f"k={k} is not allowed; use 1 or more")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} is not allowed; use a positive number")
    if bank_labels.min() < 0:
        raise ValueError(f"a label is {int(bank_labels.min())}: unknown; leave images without a label out of the bank")
    classes, labels = bank_labels.long().unique(return_inverse=True)
    bank = F.normalize(bank.float(), dim=1)
    queries = F.normalize(queries.float(), dim=1)
    k = min(k, len(bank))
    predictions = [torch.empty(0, dtype=torch.int64, device=queries.device)]
    for chunk in queries.split(max(1, SIMILARITIES_AT_ONCE // len(bank))):
        similarities, neighbours = (chunk @ bank.T).topk(k, dim=1)
        # One factor per query leaves the vote as it is, and exp(1 / temperature) would overflow at 0.01.
        weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
        votes = weights.new_zeros(len(chunk), len(classes)).scatter_add_(1, labels[neighbours], weights)
        predictions.append(classes[votes.argmax(dim=1)])
    return torch.cat(predictions)
