"""torch's optimizers and dispatch modes, of which none loads torch's compiler.

Nothing that goes through them is compiled. At the first optimizer, and at the first operation within a mode, torch
imports its compiler all the same: 1.3 s of every process.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import optim
from torch.utils._python_dispatch import TorchDispatchMode


def eager(kind: type[optim.Optimizer]) -> Any:
    """The same optimizer without what its methods do for a compiled step."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    own = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**own, "step": torch.no_grad()(inspect.unwrap(kind.step))})


SGD, Adam, AdamW, LBFGS = map(eager, (optim.SGD, optim.Adam, optim.AdamW, optim.LBFGS))


class Mode(TorchDispatchMode):
    """A mode whose `__torch_dispatch__` torch does not keep its compiler away from."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
