"""Random streams: one per (seed, name, numbers), and nothing else in the package draws or seeds.

The key of a stream is a hash of its whole name, so that no two streams share bits whatever their numbers are. A name is
what the numbers are for ("order", "weights"); the numbers say which one (epoch, step, view …). NumPy streams are
counter-based (Philox), torch streams are the Mersenne twister of a CPU generator.

Runs that began before this (recipe.streams=1) hand in a `FirstSeed` and are given the keys that they began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

VERSION = 2  # of the keys; a checkpoint carries it


class FirstSeed(int):
    """A seed under which all streams have the keys of version 1."""


def key(seed: int, *name: str | int) -> int:
    """128 bits of a hash of `seed/name/…`."""
    text = "/".join(map(str, (int(seed), *name)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def numpy_stream(seed: int, *name: str | int) -> np.random.Generator:
    """The NumPy generator of a stream."""
    if isinstance(seed, FirstSeed) and name[0] in _FIRST:
        found: np.random.Generator = _FIRST[name[0]](int(seed), *name[1:])
        return found
    return np.random.Generator(np.random.Philox(key=key(seed, *name)))


def raw_bits(count: int, seed: int, *name: str | int) -> NDArray[np.uint64]:
    """(count,) random bits of a stream, the same in every version of NumPy."""
    bits: NDArray[np.uint64] = numpy_stream(seed, *name).bit_generator.random_raw(count)
    return bits


def integer(seed: int, *name: str | int) -> int:
    """A seed of 31 bits for a library that takes one."""
    if isinstance(seed, FirstSeed):
        found: int = _FIRST_INTEGERS[name[0]](int(seed), *name[1:])
        return found
    return key(seed, *name) >> 97


def torch_stream(seed: int, *name: str | int) -> torch.Generator:
    """The torch generator of a stream, on the CPU."""
    import torch

    number = integer(seed, *name) if isinstance(seed, FirstSeed) else key(seed, *name) >> 65
    return torch.Generator().manual_seed(number)


def _philox(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))


_FIRST: dict[str | int, Callable[..., Any]] = {
    "order": lambda seed, epoch, purpose: _philox(seed, (epoch << 8) | purpose),
    "rcl keys": lambda seed, step, view: _philox(seed, step * 2 + view),
    "limit": lambda seed: _philox(seed, 0x6C696D6974),
    "node split": lambda seed: _philox(seed, 0x73706C6974),
    "contact sheet": lambda seed: np.random.Generator(np.random.Philox(key=seed)),
    "reworked clusters": lambda seed, step, level: np.random.Generator(
        np.random.Philox(key=(seed * 1_000_003 + step) * 16 + level)
    ),
    "recall": lambda seed: np.random.default_rng(seed),
}
_FIRST_INTEGERS: dict[str | int, Callable[..., int]] = {
    "weights": lambda seed: seed,
    "queue": lambda seed: seed,
    "bank": lambda seed: seed,
    "linear probe": lambda seed: seed,
    "penalty": lambda seed: seed,
    "unread rows": lambda seed: 0,
    "kmeans": lambda seed, level: seed + level,
    "shuffled batch norm": lambda seed, step: seed * 1_000_003 + step,
    "negatives": lambda seed, step: seed * 1_000_003 + step,
    "dropout": lambda seed, step, rank: (seed * 1_000_003 + step) * 1_009 + rank,
}
