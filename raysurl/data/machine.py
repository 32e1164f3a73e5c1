"""What this machine has to give."""

from __future__ import annotations

import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time in a period


def free_memory() -> int:
    """Bytes that may be taken without pushing anything out."""
    try:
        with open("/proc/meminfo") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        return kilobytes * 1024
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def cores() -> int:
    """CPU cores that this process may keep busy: those that it may run on, within a container's quota and what
    OMP_NUM_THREADS asks for."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        found = min(found, max(int(quota) // int(period), 1))
    except (OSError, ValueError):  # no container, or one without a quota
        pass
    return min(found, asked_threads() or found)


def asked_threads() -> int | None:
    """OMP_NUM_THREADS, where it is a number."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isascii() and asked.isdigit() and int(asked) else None
