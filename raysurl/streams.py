"""Random streams: one per (seed, name, numbers), and nothing else in the package draws or seeds.

The key of a stream is a hash of its whole name, so that no two streams share bits whatever their numbers are. A name is
what the numbers are for ("order", "weights"); the numbers say which one (epoch, step, view …). NumPy streams are
counter-based (Philox), torch streams are generators of their own, so that no thread shares one with another.

Runs that began before this (recipe.streams=1) hand in a `FirstSeed` and are given the keys that they began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

VERSION: Literal[2] = 2  # of the keys; recipe and checkpoint of a run carry it


class FirstSeed(int):
    """A seed under which all streams have the keys of version 1."""


def key(seed: int, *name: str | int) -> int:
    """128 bits of a hash of `seed/name/…`."""
    text = "/".join(map(str, (int(seed), *name)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def numpy_stream(seed: int, *name: str | int) -> np.random.Generator:
    """The NumPy generator of a stream."""
    if isinstance(seed, FirstSeed) and name[0] in _FIRST:
        return _philox(_FIRST[name[0]](int(seed), *name[1:]))
    return _philox(key(seed, *name))


def _philox(number: int) -> np.random.Generator:
    import numpy as np

    return np.random.Generator(np.random.Philox(key=number))


def raw_bits(count: int, seed: int, *name: str | int) -> NDArray[np.uint64]:
    """(count,) random bits of a stream, the same in every version of NumPy."""
    bits: NDArray[np.uint64] = numpy_stream(seed, *name).bit_generator.random_raw(count)
    return bits


def integer(seed: int, *name: str | int) -> int:
    """A seed of 31 bits for a library that takes one."""
    if isinstance(seed, FirstSeed) and name[0] in _FIRST_INTEGERS:
        return _FIRST_INTEGERS[name[0]](int(seed), *name[1:])
    return key(seed, *name) >> 97


def torch_stream(seed: int, *name: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """The torch generator of a stream, on `device`."""
    import torch

    return torch.Generator(device).manual_seed(integer(seed, *name))


# -------------------------------------------------------------------- version 1


def _two(seed: int, number: int) -> int:
    """The key [seed, number] of two words."""
    return seed | number << 64


def _of_step(seed: int, step: int) -> int:
    return seed * 1_000_003 + step


def _of_level(seed: int, step: int, level: int) -> int:
    return _of_step(seed, step) * 16 + level


# NumPy streams; those that are not here had a key of their own, or are as they were
_FIRST: dict[str | int, Callable[..., int]] = {
    "order": lambda seed, epoch, part: _two(seed, (epoch << 8) | part),
    "rcl keys": lambda seed, step, view: _two(seed, step * 2 + view),
    "limit": lambda seed: _two(seed, 0x6C696D6974),
    "node split": lambda seed, draw: _two(draw, 0x73706C6974),
    "contact sheet": lambda seed: seed,
    "reworked clusters": _of_level,
}
_FIRST_INTEGERS: dict[str | int, Callable[..., int]] = {
    "weights": lambda seed: seed,
    "queue": lambda seed: seed,
    "bank": lambda seed: seed,
    "linear probe": lambda seed: seed,
    "penalty": lambda seed: seed,
    "cells": lambda seed: seed,
    "kmeans": lambda seed, level: seed + level,
    "split core": _of_level,
    "shuffled batch norm": _of_step,
    "negatives": _of_step,
    "dropout": lambda seed, step, rank: _of_step(seed, step) * 1_009 + rank,
}
