"""Counter-based random numbers: the same integers for every device, in any order, for any batch.

A key is an int64 tensor [..., 2] of two 32-bit words. `fold` derives a key from a key and an integer, so that a
draw is named by what it is for (seed, epoch, image, view, operation) and never depends on what was drawn before.
The generator is Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry2x32(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Threefry-2x32-20 of Salmon et al. 2011: two 32-bit words from a key and a counter of two words each.

    All arguments are int64 tensors holding values in [0, 2**32), of shapes that broadcast together; what is on another
    device than the CPU decides where the words are made and returned. On the CPU that is in numpy's uint32, which
    wraps by itself: torch has few uint32 operations, and int64 with masks took three times as long.
    """
    words = (*key, *counter)
    elsewhere = [word.device for word in words if word.device.type != "cpu"]
    if elsewhere:
        return _in_int64([word.to(elsewhere[0], non_blocking=True) for word in words])
    x, y = _rounds([np.atleast_1d(word.numpy().astype(np.uint32)) for word in words], lambda value: value)
    shape = np.broadcast_shapes(*(word.shape for word in words))
    first, second = (torch.from_numpy(word.astype(np.int64)).view(shape) for word in (x, y))
    return first, second


def _in_int64(words: list[Tensor]) -> tuple[Tensor, Tensor]:
    return _rounds(words, lambda value: value & _MASK)


def _rounds(keys_and_counters: list[Any], wrapped: Callable[[Any], Any]) -> tuple[Any, Any]:
    """wrapped: makes sums and shifted words 32 bits again, where their type does not."""
    k0, k1, c0, c1 = keys_and_counters
    words = (k0, k1, k0 ^ k1 ^ _PARITY)
    x, y = wrapped(c0 + words[0]), wrapped(c1 + words[1])
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = wrapped(x + y)
            y = wrapped((y << rotation) | (y >> (32 - rotation))) ^ x
        x = wrapped(x + words[(block + 1) % 3])
        y = wrapped(y + words[(block + 2) % 3] + (block + 1))
    return x, y


class Purpose(IntEnum):
    """What a run's random numbers are for; each purpose has a key of its own."""

    VIEWS = 0
    ORDER = 1
    HOLD_OUT = 2
    REPLACEMENT = 3
    METHOD = 4


def key(seed: int, purpose: Purpose | None = None) -> Tensor:
    """The root key [2] of a seed, any integer in [0, 2**64), for one purpose of a run where one is given."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is out of range; use an integer from 0 to 2**64 - 1")
    root = torch.tensor([seed >> 32, seed & _MASK], dtype=torch.int64)
    return root if purpose is None else fold(root, int(purpose))


def fold(key: Tensor, data: int | Tensor) -> Tensor:
    """A new key for each integer in `data`.

    key: [..., 2] int64. data: an int or an int64 tensor of values in [0, 2**63) that broadcasts with key[..., 0].
    Returns [..., 2] int64, where the one of the two is that is not on the CPU.
    """
    data = torch.as_tensor(data, dtype=torch.int64)
    x, y = threefry2x32((key[..., 0], key[..., 1]), (data >> 32, data & _MASK))
    return torch.stack(torch.broadcast_tensors(x, y), dim=-1)


def bits(key: Tensor, num: int) -> Tensor:
    """`num` independent 32-bit words for each key. key: [..., 2] int64. Returns [..., num] int64 in [0, 2**32)."""
    # Bit 31 of the counter's first word keeps these counters apart from those of `fold`, which stay below 2**63.
    index = torch.arange((num + 1) // 2, dtype=torch.int64, device=key.device)
    first = torch.full_like(index, 1 << 31)
    x, y = threefry2x32((key[..., :1], key[..., 1:]), (first, index))
    return torch.stack((x, y), dim=-1).flatten(-2)[..., :num]


def uniform(key: Tensor, num: int) -> Tensor:
    """`num` uniform numbers for each key: 24 random bits x 2**-24, exact in every float type but the half ones.

    key: [..., 2] int64. Returns [..., num] float64 in [0, 1).
    """
    return (bits(key, num) >> 8).to(torch.float64) * 2.0**-24


def permutation(key: Tensor, num: int) -> Tensor:
    """A random order of 0 .. num-1. key: [2] int64. Returns [num] int64.

    Sorts 62-bit random words; equal words (probability about num**2 / 2**63) keep their order.
    """
    return by_words(bits(key, 2 * num).view(num, 2))


def by_words(words: Tensor) -> Tensor:
    """The order [N] int64 in which pairs of 32-bit words [N, 2], of keys for instance, ascend by 62 of their bits."""
    return torch.argsort((words[:, 0] >> 1 << 31) | (words[:, 1] >> 1), stable=True)
