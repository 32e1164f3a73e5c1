"""torch's optimizers, whose steps load no compiler."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import optim


def eager(kind: type[optim.Optimizer]) -> Any:
    """The same optimizer without what its methods do for a compiled step, which no step of ours is.

    At the first of them torch imports its compiler: 1.3 s of every process.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    own = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**own, "step": torch.no_grad()(inspect.unwrap(kind.step))})


SGD, Adam, AdamW, LBFGS = map(eager, (optim.SGD, optim.Adam, optim.AdamW, optim.LBFGS))
