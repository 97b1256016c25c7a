"""Functions called in processes of their own, which end with this one, however this one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class Apart:
    """A process that calls one function after another; a new one where it died. Use as a context manager.

    threads: that torch may use there; None leaves it to torch. device: the one CUDA device that it sees, by number.
    """

    def __init__(self, threads: int | None = None, device: str | None = None) -> None:
        self._threads = threads
        self._device = device
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns or raises there; BrokenProcessPool where its process died."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(self._threads, self._device))
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            self._end()
            raise

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin(threads: int | None, device: str | None) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)  # a run there would note a gentler one, and go on

    threading.Thread(target=wait, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)
