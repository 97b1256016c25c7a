"""Pieces of work on one core each, and what several threads of them share."""

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from byol import cores
from byol.data.decode import Unusable
from byol.data.units import UnitCache


@pytest.fixture(params=[1, 3])
def threads(request):
    own = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(own)


def test_pieces_come_in_their_order_from_as_many_threads_which_have_one_core_each(threads):
    together = threading.Barrier(threads)

    def work(i):
        if i < threads:
            together.wait(10)  # were they not side by side, nobody would go on
        return i, threading.get_ident(), torch.get_num_threads()

    numbers, idents, own = zip(*cores.each(work, 12), strict=True)
    assert numbers == tuple(range(12))
    assert len(set(idents)) <= threads
    assert set(own) == {1}
    assert (threading.get_ident() in idents) == (threads == 1)
    assert torch.get_num_threads() == threads
    later = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert later == [threads], "torch's threads begin as before"


def test_the_first_mistake_is_raised_and_work_goes_on_after_it(threads):
    def work(i):
        if i >= 2:
            raise ValueError(f"piece {i}")
        return i

    with pytest.raises(ValueError, match="piece 2"):
        cores.each(work, 5)
    assert cores.each(work, 2) == [0, 1]


def test_what_is_done_before_a_piece_is_done_in_order_and_kept_until_its_end(threads):
    order, kept, missing = [], weakref.WeakValueDictionary(), []

    class Kept:
        pass

    def before(i):
        order.append(i)
        kept[i] = made = Kept()
        return made

    def work(i):
        time.sleep(0.005 if i % 7 == 0 else 0.0)
        missing.extend([] if i in kept else [i])
        return i

    assert cores.each(work, 40, before) == order == list(range(40))
    assert missing == []
    assert len(kept) == 0


def test_where_threads_cannot_begin_nothing_waits_for_them():
    program = """
import threading
import torch
from byol import cores
start, begun = threading.Thread.start, []
def limited(self):
    if begun:
        raise RuntimeError("can't start new thread")
    begun.append(self)
    start(self)
threading.Thread.start = limited
torch.set_num_threads(3)
cores.each(str, 3)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert "can't start new thread" in ended.stderr
    assert ended.returncode == 1


def test_units_are_read_once_however_many_threads_ask():
    read = []

    def slowly(unit):
        read.append(unit)
        time.sleep(0.001)
        return unit

    units = UnitCache(slowly, capacity=50)
    mistakes = []

    def ask(seed):
        chosen = random.Random(seed)
        try:
            mistakes.extend(unit for _ in range(200) if units[unit := chosen.randrange(50)] != unit)
        except Exception as error:
            mistakes.append(error)

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert mistakes == []
    assert sorted(read) == sorted(set(read))


def test_a_unit_that_somebody_keeps_is_not_read_again():
    read = []
    units = UnitCache(lambda unit: read.append(unit) or unit, capacity=2)
    kept = units.expect(0)
    for unit in range(1, 6):
        assert units[unit] == unit
    assert units[0] == 0
    del kept
    for unit in range(1, 6):
        assert units[unit] == unit
    assert units[0] == 0
    assert read.count(0) == 2, "after it was let go"


def test_a_reader_that_ends_while_another_expects_stops_nobody():
    units = UnitCache(lambda unit: time.sleep(0.001) or unit, capacity=50)
    submit, resting = ThreadPoolExecutor.submit, []

    def collected(self, *arguments):
        if not resting:  # as where a collection of garbage closes an old reader just now
            resting.append(units.rest())
        return submit(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", collected)
        for unit in range(50):
            units.expect(unit)
    other = threading.Timer(0.003, units.rest)
    other.start()
    assert [units[unit] for unit in range(50)] == list(range(50))
    other.join()


def test_what_is_read_ahead_is_forgotten_at_the_end_unless_it_has_begun():
    goes_on, read = threading.Event(), []

    def waiting(unit):
        goes_on.wait(10)
        read.append(unit)
        return unit

    units = UnitCache(waiting, capacity=50)
    for unit in range(20):
        units.expect(unit)
    units.rest()
    goes_on.set()
    assert units[0] == 0
    assert units[19] == 19, "it is read anew"
    assert set(read) <= {0, 1, 2, 3, 19}, "four threads had begun with one each"


def test_what_could_not_be_read_ahead_is_tried_again_when_it_is_wanted():
    answers = iter([OSError("no answer"), Unusable("not an image")])

    def read(unit):
        if (error := next(answers, None)) is not None:
            raise error
        return unit

    units = UnitCache(read)
    units.expect(0).exception()
    for _ in range(2):
        with pytest.raises(Unusable, match="not an image"):
            assert units[0], "storage answered, and the image is what it is"


def test_a_unit_that_cannot_be_read_keeps_nothing_of_who_asked():
    class Batch:
        pass

    def unreadable(unit):
        raise OSError("it is gone")

    units, batches = UnitCache(unreadable), []

    def ask():
        batch = Batch()
        batches.append(weakref.ref(batch))
        return units[0]

    for _ in range(5):
        with pytest.raises(OSError, match="it is gone"):
            ask()
    gc.collect()
    assert sum(batch() is not None for batch in batches) <= 1
