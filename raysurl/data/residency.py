"""Rules of opening data: resident or streaming, and how many samples may be unreadable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raysurl.data.dataset import Samples, Unreadable
from raysurl.data.machine import free_memory
from raysurl.data.manifest import Saved
from raysurl.errors import InputError
from raysurl.recipe import Data

Mode = Literal["resident", "streaming"]

STORE_SHARE = 0.3  # of available memory, as Ray sizes its object store: both runtimes then choose alike


def available_memory() -> int:
    """Bytes that resident data could be given on this machine before `data.resident_share` is applied."""
    return int(free_memory() * STORE_SHARE)


def choose_mode(data: Data, samples: Samples, memory: int, saved: Saved | None = None) -> tuple[Mode, str]:
    """The mode and a phrase that says why, decided before anything but a few probes is decoded.

    `memory`: bytes of the store that resident data would share. The mode fixes the order of the samples, so
    a resumed run keeps its own. Raises InputError where resident is asked for, or kept, and does not fit.
    """
    needed, limit = samples.nbytes_estimate(), int(data.resident_share * memory)
    fits = needed <= limit
    allowed = f"{gigabytes(limit)} allowed (data.resident_share={data.resident_share:g})"
    size = f"about {gigabytes(needed)} decoded, {allowed}"
    if saved and data.mode not in ("auto", saved.mode):
        raise InputError(
            f"the run began with data.mode={saved.mode}; data.mode={data.mode} cannot continue it"
        )
    mode = saved.mode if saved else data.mode
    if mode == "resident" and not fits:
        raise InputError(f"data.mode=resident does not fit: {size}; use data.mode=streaming or more memory")
    if mode == "streaming" or (mode == "auto" and not fits):
        return "streaming", f"streaming ({'as asked' if mode == 'streaming' else size})"
    return "resident", f"resident ({size})"


def check_unreadable(skipped: Sequence[Unreadable], num_samples: int, most: float) -> None:
    """InputError where more than the share `most` of the samples is unreadable.

    What could not be listed counts with the samples that it is thought to hold; `num_samples` are those listed.
    """
    lost = sum(sample.samples for sample in skipped)
    total = num_samples + sum(sample.samples for sample in skipped if sample.index < 0)
    if lost > most * total:
        shown = ", ".join(map(str, skipped[:3])) + (", …" if len(skipped) > 3 else "")
        about = "about " if any(sample.samples > 1 for sample in skipped) else ""
        raise InputError(
            f"{about}{lost:,} of {total:,} samples are unreadable, more than"
            f" data.max_unreadable={most:g} allows: {shown}"
        )


def same_readable(samples: Samples, saved: Saved, readable: NDArray[np.bool_]) -> list[Unreadable]:
    """What a resumed run skips: what it skipped before. InputError where it has since lost one."""
    lost = np.flatnonzero(saved.readable & ~readable)
    if len(lost):
        raise InputError(
            f"{len(lost)} samples that the run began with are now unreadable, first"
            f" {samples.name_of(int(lost[0]))}; restore them or start a new run"
        )
    return saved.unreadable(samples.listing)


def gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e7 else f"{nbytes / 1e6:.1f} MB"
