"""Rows and numbers of all processes, with the right gradient; on one process, the identity.

The convention: every process computes the loss of the global batch from what it gathered, and the mean over processes
of its parameters' gradients, which is what DistributedDataParallel takes, is that loss's gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""How long the processes that are left wait for each other to say that they are."""


def world_size() -> int:
    """Processes that train together; 1 where torch.distributed was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def agreed(value: T) -> T:
    """What the first process has, on all of them. For plain values, seldom."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def together(call: Callable[[], T]) -> T:
    """call() on every process; a ValueError or OSError of any of them is raised by the first, and the others leave in
    silence. For what people can set right: one line, whatever the number of processes."""
    if world_size() == 1:
        return call()
    result, error = None, None
    try:
        result = call()
    except (ValueError, OSError) as raised:
        error = raised
    line = met(error)
    if line is None:
        return result  # type: ignore[return-value]
    if rank() > 0:
        raise SystemExit(2)
    raise error or ValueError(line)


def met(error: Exception | None) -> str | None:
    """What the first process that has an error says of it, on all of them; None where none has one."""
    return met_with(error, 0)[0]


def met_with(error: Exception | None, number: int) -> tuple[str | None, int]:
    """(what `met` gives, the largest number that any process has).

    Asked of the processors: no GPU is waited for, and where there is no error it costs two numbers' exchange.
    """
    if world_size() == 1:
        return None if error is None else str(error), number
    both = torch.tensor([error is not None, number], dtype=torch.int32)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    somebody, largest = both.tolist()
    if not somebody:
        return None, largest
    lines: list[str | None] = [None] * world_size()
    dist.all_gather_object(lines, None if error is None else str(error))
    first, line = next((number, line) for number, line in enumerate(lines) if line is not None)
    return (line if first == 0 else f"process {first}: {line}"), largest


def lost(error: Exception) -> bool:
    """Whether an error is that another process went away."""
    return world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def missing(error: Exception, kind: type[Exception], line: str) -> BaseException:
    """What to raise where an exchange failed because another process ended or hangs: on the first of those that are
    left an error of that kind, which names it; on the others a silent end. line: what a person needs to know besides.
    """
    here = list[int]()
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
        store.set(f"byol/here/{rank()}", "")
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(here) < world_size() and time.monotonic() < deadline:
            here = [each for each in range(world_size()) if store.check([f"byol/here/{each}"])]
            time.sleep(0.1)
    except RuntimeError:  # the first process keeps the store, and does not answer either
        here = [rank()]
        gone = "the first process ended or hangs"
    else:
        away = [str(each) for each in range(world_size()) if each not in here]
        one = len(away) == 1
        gone = f"process{'' if one else 'es'} {', '.join(away)} ended or hang{'s' if one else ''}"
        if not away:
            gone = f"the processes lost each other: {(str(error).splitlines() or [''])[0]}"
    return kind(f"{gone}, {line}") if rank() == here[0] else SystemExit(1)


def everywhere(error: Exception, code: int = 1) -> BaseException:
    """What to raise for an error that every process has: it on the first, and on the others a silent end with that
    exit code."""
    return error if rank() == 0 else SystemExit(code)


def collected(values: list[T]) -> list[T]:
    """The values of all processes, in order of their ranks. For plain values, seldom."""
    if world_size() == 1:
        return values
    lists: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, values)
    return [value for each in lists for value in each]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes in rank order: [B, ...] -> [W B, ...], B being the same everywhere.

    Every process uses all rows, so each row's gradient is the sum of what the processes have for it. (A gather that
    keeps a process's own part alone loses the others' and is off by a factor and more.)
    """
    return x if world_size() == 1 else _Gather.apply(x)


def mean(x: Tensor) -> Tensor:
    """The mean over processes of a scalar, each one's mean over its own images: that of the global batch."""
    return x if world_size() == 1 else gather(x[None]).mean()


def own(rows: Tensor) -> Tensor:
    """This process's part of gathered rows: [W B, ...] -> [B, ...]."""
    return rows.chunk(world_size())[rank()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        # A copy: autograd may hand the same tensor to others.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return own(total)
