"""How a worker tells the driver, in one sentence, that its run cannot go on: Ray Train would start it again.

The sentence is kept in Ray's own store of keys and values, because the disk may be what has failed. While it stands
there a worker group that is started again ends at once.
"""

from __future__ import annotations

import json

from ray.exceptions import RayError
from ray.experimental import internal_kv

from raysurl.errors import DivergedError, InputError, RunError, StorageError, UnhealthyError

_KINDS = (InputError, DivergedError, StorageError, UnhealthyError, RunError)
_NAMESPACE = "raysurl"


def tell(run: str, error: InputError | RunError) -> None:
    """By whichever worker of `run` found it; the first one is kept."""
    kind = next(kind for kind in _KINDS if isinstance(error, kind))
    said = json.dumps({"kind": kind.__name__, "message": str(error)})
    internal_kv._internal_kv_put(run, said, overwrite=False, namespace=_NAMESPACE)


def told(run: str) -> InputError | RunError | None:
    """What a worker of `run` has told."""
    said = internal_kv._internal_kv_get(run, namespace=_NAMESPACE)
    if said is None:
        return None
    failure = json.loads(said)
    kind = next(kind for kind in _KINDS if kind.__name__ == failure["kind"])
    return kind(failure["message"])


def told_if_ray_lives(run: str) -> InputError | RunError | None:
    """As `told`; None where it cannot be asked because Ray itself has ended."""
    try:
        return told(run)
    except (RuntimeError, RayError):
        return None


def forget(run: str) -> None:
    internal_kv._internal_kv_del(run, namespace=_NAMESPACE)
