"""Initial weights from a random stream of their own.

`torch.nn` draws weights from the stream that the whole process shares: whoever seeds it changes what other threads
draw. Within `drawn_from(generator)` the random operations of this thread take `generator` instead.
"""

from __future__ import annotations

from typing import Any

import torch

from raysurl.nets.eager import Mode


class drawn_from(Mode):  # noqa: N801 a context manager, named as what it says
    """`with drawn_from(generator): nn.Linear(3, 4)`; the numbers are those after `torch.manual_seed` with its seed."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            # randn and its like take a generator in another overload
            func = func if _takes_generator(func) else func.overloadpacket.generator
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)
