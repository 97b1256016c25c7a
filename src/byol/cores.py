"""Work side by side, each piece on one core."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")


def each(work: Callable[[int], T], num: int) -> list[T]:
    """[work(0), ..., work(num - 1)], in as many threads as PyTorch has here, where it has one in each of them.

    For pieces too small to be shared among cores, such as one image: decoders and PyTorch's operations let other
    threads go on meanwhile. With one thread (as in a loader's worker) one comes after the other, in this one.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(i) for i in range(num)]
    return list(_pool(os.getpid(), threads).map(work, range(num)))


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """process: threads do not survive a fork."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="cores", initializer=_begin)
    all_began = Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(all_began.wait)
    all_began.wait()
    torch.set_num_threads(threads)  # what they set is also what threads of PyTorch's own would begin with
    return pool


def _begin() -> None:
    torch.get_num_threads()  # in a new thread the first question for it undoes what was set
    torch.set_num_threads(1)
