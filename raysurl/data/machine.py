"""What this machine has to give."""

from __future__ import annotations

import os


def free_memory() -> int:
    """Bytes that may be taken without pushing anything out."""
    try:
        with open("/proc/meminfo") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        return kilobytes * 1024
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
