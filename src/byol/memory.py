"""What methods remember between steps: a queue of keys, and a bank with a row for each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from byol.losses import l2_normalize


class Queue(nn.Module):
    """The last `length` keys, oldest overwritten first. He et al. 2020, arXiv:1911.05722, section 3.2.

    keys: [dim, length], columns of length 1, at first random directions.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.register_buffer("keys", l2_normalize(torch.randn(length, dim)).T.contiguous())
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """keys: [B, dim], rows of length 1, the same in every process; B divides the length."""
        length = self.keys.shape[1]
        check_queue(length, len(keys))
        places = self.pointer + torch.arange(len(keys), device=keys.device)
        self.keys.index_copy_(1, places, keys.T.to(self.keys.dtype))
        self.pointer.add_(len(keys)).remainder_(length)


def check_queue(length: int, keys: int) -> None:
    """ValueError where a queue of `length` keys does not take `keys` at a time."""
    if length < keys or length % keys:
        low = max(1, length // keys) * keys
        near = f"use queue={low} or {low + keys}"
        raise ValueError(f"queue={length} is not a multiple of the {keys} keys of a step; {near}")


class Bank(nn.Module):
    """A feature for each image: row i <- normalise(momentum row_i + (1 - momentum) feature). Wu et al. 2018,
    arXiv:1805.01978, section 3.2.

    rows: [num, dim], at first uniform in +-1/sqrt(dim / 3), as in the authors' code.
    """

    rows: Tensor

    def __init__(self, num: int, dim: int, momentum: float) -> None:
        super().__init__()
        bound = (dim / 3) ** -0.5
        self.register_buffer("rows", torch.empty(num, dim).uniform_(-bound, bound))
        self.momentum = momentum

    @torch.no_grad()
    def update(self, ids: Tensor, features: Tensor) -> None:
        """ids: [B] int64. features: [B, dim], rows of length 1. Both the same in every process. An image that comes
        twice counts with its mean."""
        # Where each image comes first; not `unique`, whose number of results the host would wait for.
        places = torch.arange(len(ids), device=ids.device)
        first = torch.where(ids[:, None] == ids, places, len(ids)).amin(1)
        features = features.to(self.rows.dtype)
        total = torch.zeros_like(features).index_add_(0, first, features)
        count = features.new_zeros(len(ids)).index_add_(0, first, features.new_ones(len(ids)))
        moved = self.momentum * self.rows[ids] + (1 - self.momentum) * (total / count[:, None])[first]
        self.rows[ids] = l2_normalize(moved)
