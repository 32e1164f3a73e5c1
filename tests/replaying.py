"""A CUDA graph's semantics on CPU tensors: every operation is taped with the tensors that it saw, and done again.

A replay reads and writes the recorded addresses and knows nothing of Python, so a number that the step takes from the
host is frozen here as it is on a GPU. What a GPU could not do while it records, reading a value, raises.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class ReplayedGraph:
    """Twin of train.recording.CudaGraph; recording does the work, so that the first replay has nothing to do."""

    def aside(self, body):
        return body()

    def record(self, body):
        with Tape() as tape:
            out = body()
        self.calls, self.done = tape.calls, True
        return out

    @torch.no_grad()
    def replay(self):
        if self.done:
            self.done = False
            return
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


def tensors(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]
