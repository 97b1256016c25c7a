"""Signals that ask a run to end: while it trains they are noted, so that it ends after its step and loses nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from byol.launch import launched

Handler = Callable[[int, Any], None] | signal.Handlers
ENDING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what a SLURM job asks for before its time is over: `#SBATCH --signal=USR1@120`."""


class Asked(KeyboardInterrupt):
    """A signal asked a run to end that was not yet, or no more, training. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def at_once() -> Iterator[None]:
    """Within it signals raise `Asked`, but for Ctrl-C, which raises what it always does. In another thread than the
    main one nothing changes."""
    own = os.getpid()

    def ask(number: int, _: Any) -> None:
        if os.getpid() != own:  # of a process forked meanwhile it is the end
            os._exit(128 + number)
        raise Asked(number)

    with _handled(ask, tuple(number for number in ENDING if number != signal.SIGINT)):
        yield


@contextmanager
def ignored() -> Iterator[None]:
    """Within it signals change nothing, also in processes that are started there."""
    with _handled(signal.SIG_IGN, ENDING):
        yield


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
    with _handled(found.note, ENDING):
        yield found


@contextmanager
def _handled(handler: Handler, numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


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
