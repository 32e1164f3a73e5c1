"""Compiled code is kept for other processes under the state of its sources, and runs where it cannot be kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import caching

from raysurl import compiled as module
from raysurl.compiled import PACKAGE, SOURCES, compiled

SHORT = """
import numpy as np
from raysurl.hierarchy.forest import ascending
ascending(np.ones(2))
print(sum(ascending.stats.cache_hits.values()))
"""


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


def test_a_copy_of_the_package_finds_what_was_compiled_and_changed_code_does_not(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    for path in PACKAGE.rglob("*.py"):
        target = copy / "raysurl" / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)

    def hits(folder: Path) -> int:
        environment = os.environ | {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
        run = subprocess.run(
            [sys.executable, "-c", SHORT],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(run.stdout)

    assert (hits(PACKAGE.parent), hits(copy)) == (0, 1)
    # another file, whose functions it might have taken in
    changed = copy / "raysurl" / "hierarchy" / "turns.py"
    changed.write_text(changed.read_text() + "\n")
    assert (hits(copy), hits(copy)) == (0, 1)


def test_an_unwritable_place_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    file = str(PACKAGE / "hierarchy" / "forest.py")
    assert module.ByState.from_function(half, file) is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert module.ByState.from_function(half, file)
    assert module.ByState.from_function(half, __file__) is None


def test_all_that_is_compiled_counts_among_the_sources() -> None:
    named = {path for pattern in SOURCES for path in PACKAGE.glob(pattern)}
    using = {path for path in PACKAGE.rglob("*.py") if "import compiled\n" in path.read_text()}
    assert using <= named
