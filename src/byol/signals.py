"""Signals that ask a run to end: noted, so that it ends after its step and loses nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from byol.launch import launched

ENDING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what a SLURM job asks for before its time is over: `#SBATCH --signal=USR1@120`."""


class Noted:
    """number: of the first signal that came, or 0."""

    number = 0

    def note(self, number: int, _: Any) -> None:
        # A launcher hands on the Ctrl-C that its processes had from the terminal as well.
        if self.number and number == signal.SIGINT and launched()[0] == 1:
            raise KeyboardInterrupt
        self.number = self.number or number


@contextmanager
def noted() -> Iterator[Noted]:
    """Within it signals are noted; a second Ctrl-C interrupts at once. In another thread than the main one nothing
    is."""
    found = Noted()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found.note) for number in ENDING}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def of_a_worker(_: int = 0) -> None:
    """In a worker: what a terminal or SLURM sends to all processes is for the one that it works for, which ends it; by
    SIGTERM, where it must."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def of_workers() -> None:
    """In the process that they work for: torch would raise an error between any two lines of it when one dies; without
    that, it is noticed where the next batch is waited for."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
