"""What is read unit by unit, held while its rows are wanted, and read ahead."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class UnitCache(Generic[T]):
    """The last units that were asked for, each read once, in threads of this process. capacity: how many are held."""

    def __init__(self, read: Callable[[int], T], capacity: int = 4) -> None:
        self.capacity = capacity
        self._read = read
        self._forget()

    def _forget(self) -> None:
        self._held: OrderedDict[int, Future[T]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "_read": self._read}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def expect(self, unit: int) -> Future[T]:
        """Begin to read a unit that is wanted soon, unless that has been done."""
        if self._process != os.getpid():  # threads do not survive a fork
            self._forget()
        if unit in self._held:
            self._held.move_to_end(unit)
            return self._held[unit]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(4, thread_name_prefix="units")
        self._held[unit] = self._pool.submit(self._read, unit)
        while len(self._held) > self.capacity:
            self._held.popitem(last=False)
        return self._held[unit]

    def __getitem__(self, unit: int) -> T:
        return self.expect(unit).result()
