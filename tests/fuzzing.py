"""What the searches of tests/fuzz*.py share: damage to bytes and to trees, and what an error must look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Flips = list[tuple[int, int]]
FLIPS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4)
CUT = st.one_of(st.none(), st.integers(0, 2**16))

# what stands where something else was: of every type, of every size
ODD = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 10**400, -(2**63), 1e308, float("inf"), float("nan"), "", "\0", "é\n", [], {}]
    ),
    st.sampled_from(
        [[1, 2], ["a"], {"a": 1}, {"": None}, [[[]]], "2024-02-30", "*x", "ressl", "\ud800", "<b>", "1e9"]
    ),
    st.integers(-(10**6), 10**6),
    st.floats(),
    st.text(max_size=8),
)
Change = tuple[int, str, Any]  # which place, what is done there, with what
CHANGES = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(["set", "set", "drop", "rename", "wrap"]), ODD),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, flips: Flips, cut: int | None) -> bytes:
    changed = bytearray(content)
    for at, value in flips:
        if changed:
            changed[at % len(changed)] = value
    return bytes(changed[: len(changed) if cut is None else cut % (len(changed) + 1)])


def changed(tree: Any, changes: list[Change]) -> Any:
    """A copy of a tree of mappings and lists in which some places hold something else, or are gone."""
    tree = _copy(tree)
    for at, what, value in changes:
        places = list(_places(tree))
        if not places:
            return value
        holder, key = places[at % len(places)]
        if what == "set":
            holder[key] = value
        elif what == "wrap":
            holder[key] = [holder[key]]
        elif what == "drop" or isinstance(holder, list):
            del holder[key]
        else:
            holder[f"{key}_"] = holder.pop(key)
    return tree


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            yield from _places(value)


def is_one_sentence(error: Exception) -> None:
    text = str(error)
    assert text
    assert "\n" not in text, text
