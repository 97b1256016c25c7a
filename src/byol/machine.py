"""What the machine gives a process: memory, taken and left."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path


def process_memory() -> int | None:
    """The most memory this process has had resident, bytes; None where nobody knows."""
    # Where it is known, not getrusage: on Linux a process that another one started begins with the other's peak there.
    if (own := _status("VmHWM")) is not None:
        return own
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int | None:
    """The memory this process has resident now, bytes; None where nobody knows."""
    return _status("VmRSS")


def available_memory() -> int | None:
    """Memory that processes may still take, bytes: of the machine, and of the container where there is one; None where
    nobody knows."""
    left = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        left.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::"))
        group = Path("/sys/fs/cgroup") / own
        left += [room for each in (group, *group.parents) if (room := _room(each)) is not None]
    if not left:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
            left.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(left, default=None)


def _room(group: Path) -> int | None:
    """Bytes that a control group leaves; None where it sets no limit."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limit, used = (int((group / name).read_text("utf-8")) for name in ("memory.max", "memory.current"))
        # Files that were read count as used until something else wants the memory.
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text("utf-8"), re.MULTILINE)
        return limit - used + (int(cached[1]) if cached else 0)
    return None


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        if found := re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8")):
            return int(found[1]) * 1024
    return None
