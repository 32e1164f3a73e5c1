"""Compiled code is kept for other processes where it can be, and runs where it cannot."""

import numba
import pytest
from numba.core import caching

from raysurl.compiled import compiled


def half(x):
    return x / 2


def test_without_a_place_for_it_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled(half)._cache.cache_path
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(half)
    assert compiled(half)(3.0) == 1.5


def test_a_division_by_zero_is_as_in_numpy() -> None:
    assert compiled(lambda x: 1 / x)(0.0) == float("inf")
