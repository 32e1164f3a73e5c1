"""The memory that a process has freed: glibc's malloc, told to keep it."""

from __future__ import annotations

import contextlib
import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST_KEPT = 2**30  # bytes of freed memory that stay with the process
# and of one piece of it; before glibc 2.35 it allowed no larger one than the second
LARGEST_KEPT = (2**28, 2**25)
# In the environment of a process that works in another thread than its first, as Ray's do: the memory of other threads
# stands in heaps of 64 MiB, which are returned when they are empty, whatever is asked for.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


@functools.cache
def keep_freed_memory() -> None:
    """What a step or a batch has freed stays with this process for the next one; to be called where both will come.

    Else glibc returns it to the kernel, which clears every page anew: a fifth of a small network's step on a CPU, a
    third of its passes. In other threads than the first it holds with ONE_ARENA alone. Nothing happens where there is
    no glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_KEPT):
            mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
