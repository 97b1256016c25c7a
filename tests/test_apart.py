"""Processes of their own: what they return and raise, how they die, and that they end with this one."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from byol.apart import Apart


def test_a_call_returns_and_raises_what_it_does_there():
    with Apart() as process:
        there = process.call(os.getpid)
        assert there != os.getpid()
        assert process.call(os.getpid) == there
        with pytest.raises(ZeroDivisionError):
            process.call(divmod, 1, 0)
        assert process.call(os.getpid) == there


def test_after_a_death_the_next_call_has_a_new_process():
    with Apart() as process:
        first = process.call(os.getpid)
        with pytest.raises(BrokenProcessPool):
            process.call(os._exit, 3)
        assert process.call(os.getpid) != first


def test_it_ends_with_the_process_that_began_it():
    run = "import time; print('begun', flush=True); time.sleep(600)"
    program = f"from byol.apart import Apart; Apart().call(exec, {run!r})"
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    parent.kill()
    # The end of its output comes only when the last process that could write to it is gone.
    parent.communicate(timeout=60)
    assert parent.returncode == -signal.SIGKILL


def test_threads_are_limited_where_it_is_asked():
    with Apart(threads=1) as process:
        assert process.call(_threads) == 1


def _threads():
    import torch

    return torch.get_num_threads()
