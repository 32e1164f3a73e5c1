"""One value of many by its rank, for compiled code."""

from __future__ import annotations

from raysurl.compiled import compiled
from raysurl.hierarchy.forest import Rows


@compiled
def ranked(values: Rows, rank: int) -> float:
    """The value (n,) that stands at `rank` of the sorted ones (Hoare's selection, which reorders them).

    What np.partition finds, which takes numba three seconds to compile.
    """
    low, high = 0, len(values) - 1
    while low < high:
        a, b, c = values[low], values[(low + high) // 2], values[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]
