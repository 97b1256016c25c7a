"""Work side by side, each piece on one core."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
AHEAD = 4
"""Pieces of each thread that have begun or wait, while the first of them is not done."""


def each(work: Callable[[int], T], num: int, before: Callable[[int], object] = lambda i: None) -> list[T]:
    """[work(0), ..., work(num - 1)], in as many threads as PyTorch has here, where it has one in each of them.

    For pieces too small to be shared among cores, such as one image: decoders and PyTorch's operations let other
    threads go on meanwhile. With one thread (as in a loader's worker) one comes after the other, in this one.
    before: called in this thread, in order, before each piece; what it returns is kept until the piece is done.
    """
    threads = torch.get_num_threads()
    found = list[T]()
    if threads == 1:
        for i in range(num):
            kept = before(i)
            found.append(work(i))
            del kept
        return found
    pool = _pool(os.getpid(), threads)
    going = deque[tuple[Future[T], object]]()
    try:
        for i in range(num):
            if len(going) == AHEAD * threads:
                found.append(going[0][0].result())
                going.popleft()
            kept = before(i)
            going.append((pool.submit(work, i), kept))
        found += [piece.result() for piece, _ in going]
    finally:
        for piece, _ in going:
            piece.cancel()
    return found


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """process: threads do not survive a fork."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="cores", initializer=_begin)
    all_began = Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(all_began.wait)
        all_began.wait()
    except BaseException:  # no more threads, or an interrupt: those that wait would wait for ever
        all_began.abort()
        pool.shutdown(wait=False)
        raise
    torch.set_num_threads(threads)  # what they set is also what threads of PyTorch's own would begin with
    return pool


def _begin() -> None:
    torch.get_num_threads()  # in a new thread the first question for it undoes what was set
    torch.set_num_threads(1)
