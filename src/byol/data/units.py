"""What is read unit by unit, held while its rows are wanted, and read ahead."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from multiprocessing.util import Finalize
from threading import RLock
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from byol.data.decode import Unusable

T = TypeVar("T")


def some_rows(bounds: np.ndarray, most: int, of_a_unit: int) -> np.ndarray:
    """At most `most` rows, evenly over all that there are and in few units: `of_a_unit` of each of some of them, or
    more where there are not so many units. bounds: [U + 1], the first row of each unit and the end of the last."""
    filled = np.flatnonzero(np.diff(bounds))
    in_one = min(of_a_unit, bounds[-1] / max(1, len(filled)))
    units = filled[_evenly(len(filled), math.ceil(most / max(1, in_one)))]
    each = -(-most // max(1, len(units)))
    rows = [bounds[unit] + _evenly(int(bounds[unit + 1] - bounds[unit]), each) for unit in units]
    found = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64)
    return found[_evenly(len(found), most)]


def _evenly(num: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, num - 1, min(num, most)).astype(np.int64))


class UnitCache(Generic[T]):
    """The last units that were asked for, each read once, in threads of this process. capacity: how many are held;
    others stay as long as somebody keeps what `expect` gave. Several threads may ask."""

    def __init__(self, read: Callable[[int], T], capacity: int = 4) -> None:
        self.capacity = capacity
        self._read = read
        self._forget()

    def _forget(self) -> None:
        self._held: OrderedDict[int, Future[T]] = OrderedDict()
        self._kept: WeakValueDictionary[int, Future[T]] = WeakValueDictionary()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._lock = RLock()  # the collector of garbage may close a reader, which rests, in the middle of `expect`

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "_read": self._read}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def expect(self, unit: int) -> Future[T]:
        """Begin to read a unit that is wanted soon, unless that has been done."""
        if self._process != os.getpid():  # threads do not survive a fork
            self._forget()
        with self._lock:
            found = self._kept.get(unit)
            if found is None:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(4, thread_name_prefix="units")
                    Finalize(self, self._pool.shutdown, (False,), {"cancel_futures": True}, exitpriority=0)
                found = self._kept[unit] = self._pool.submit(self._read, unit)
            self._held[unit] = found
            self._held.move_to_end(unit)
            while len(self._held) > self.capacity:
                self._held.popitem(last=False)
            return found

    def __getitem__(self, unit: int) -> T:
        found = self.expect(unit)
        try:
            if found.done() and not isinstance(found.exception(), (type(None), Unusable)):
                self._drop(unit, found)  # it failed when it was read ahead, and storage may answer by now
                found = self.expect(unit)
            error = found.exception()
        except CancelledError:  # another reader of the same units has come to its end
            self._drop(unit, found)
            return self[unit]
        if error is not None:
            raise error.with_traceback(None)  # it is raised again and again, and would keep all frames it passed
        return found.result()

    def _drop(self, unit: int, found: Future[T]) -> None:
        with self._lock:
            if self._kept.get(unit) is found:
                del self._kept[unit]
            if self._held.get(unit) is found:
                del self._held[unit]

    def rest(self) -> None:
        """Forget what has not begun to be read: Python ends only when all that threads were given is done."""
        with self._lock:
            for unit, found in [*self._kept.items()]:
                if found.cancel():
                    self._drop(unit, found)
