"""A GPU that is not there: CPU tensors that say they are on `cuda` and keep to its rules.

`Cuda` tensors hold real values, so everything computes. An operation that mixes them with CPU tensors is a mixture; one
that makes the host wait for the device is a wait (a value read, a boolean mask, a copy that blocks, pageable memory).
Both are noted with the lines of raysurl that did them, while `watched` is on. Kernels are counted: every operation but
views, a list of tensors as one.
"""

import contextlib
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

PACKAGE = str(Path(__file__).parents[1] / "raysurl") + "/"
CUDA = torch.device("cuda", 0)
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "histc", "is_nonzero", "_linalg_svd", "linalg_qr", "_linalg_eigh",
}  # fmt: skip
VIEWS = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "unbind", "split", "split_with_sizes", "reshape", "diagonal", "unfold", "empty",
    "empty_like", "new_empty", "lift_fresh", "_reshape_alias", "view_as_real", "real", "imag", "empty_strided",
    "new_empty_strided", "resize_", "unflatten", "chunk", "narrow", "movedim",
}  # fmt: skip
MIX_SCALARS = {"masked_fill", "masked_fill_", "where", "lerp", "lerp_", "fill_", "fill", "copy_", "_to_copy",
               "index_put_", "_index_put_impl_", "full_like"}  # fmt: skip
LIBRARYS = {
    "_embedding_bag_forward_only"
}  # torch makes an argument of it where it believes the tensors to be
INDEXED = {"index", "index_put_", "index_put", "_index_put_impl_"}
FACTORIES = {
    "tensor",
    "as_tensor",
    "full",
    "zeros",
    "ones",
    "empty",
    "arange",
    "eye",
    "linspace",
    "rand",
    "randn",
}


class Seen:
    """What was noted: (what, where) -> times; kernels by operation."""

    def __init__(self):
        self.notes, self.kernels, self.watched = Counter(), Counter(), False

    def note(self, what):
        if self.watched:
            self.notes[f"{what}, at {_where()}"] += 1

    def launch(self, name):
        if self.watched:
            self.kernels[name] += 1


SEEN = Seen()


def _where():
    own = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
    return " < ".join(f"{f.filename.removeprefix(PACKAGE)}:{f.lineno}" for f in reversed(own[-3:])) or "torch"


class Cuda(Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _function(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _operation(func, args, kwargs or {})

    def __deepcopy__(self, memo):
        with _raw():
            copy = Tensor._make_subclass(Cuda, self.detach().as_subclass(Tensor).clone(), self.requires_grad)
        memo[id(self)] = copy
        return copy


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return Tensor._make_subclass(Cuda, x.detach().clone())

    @staticmethod
    def backward(ctx, grad):
        return grad


@contextlib.contextmanager
def _raw():
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunctionSubclass():
        yield


def _wrap(x):
    if not isinstance(x, Tensor) or isinstance(x, Cuda):
        return x
    return x.as_subclass(Cuda) if x.requires_grad else Tensor._make_subclass(Cuda, x)


# -------------------------------------------------------------------- operations


def _operation(func, args, kwargs):
    name = func._schema.name.split("::")[1]
    tensors = list(_tensors([*args, *kwargs.values()]))
    ours = [x for x in tensors if isinstance(x, Cuda)]
    plain = [x for x in tensors if not isinstance(x, Cuda)]
    if name in ("copy_", "_copy_from"):
        if isinstance(args[0], Cuda) != isinstance(args[1], Cuda):
            _copied(args[1], (len(args) > 2 and args[2]) or kwargs.get("non_blocking", False))
    elif name in INDEXED:
        _indexed(name, args)
    elif plain and ours and name not in LIBRARYS:
        scalars = torch.Tag.pointwise in func.tags or name in MIX_SCALARS
        if any(x.dim() or not scalars for x in plain):
            SEEN.note(f"mixture: {name} of tensors on the CPU and on the GPU")
    if ours and (name in READS or (name == "repeat_interleave" and not kwargs.get("output_size"))):
        SEEN.note(f"wait: {name}")
    if name not in VIEWS:
        SEEN.launch(name)
    with torch._C._DisableTorchDispatch():
        out = func(*args, **kwargs)
    if name == "_local_scalar_dense":
        return out
    # most operations give one tensor
    return _on_cuda(out) if isinstance(out, Tensor) else tree_map(_on_cuda, out)


def _on_cuda(x):
    return Tensor._make_subclass(Cuda, x) if type(x) is Tensor else x


def _tensors(values):
    """Those among arguments of an operation, and in their lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _indexed(name, args):
    values = args[2] if len(args) > 2 else None
    if not isinstance(args[0], Cuda):
        SEEN.note(f"mixture: {name} of a CPU tensor with GPU indices or values")
    for index in (i for i in args[1] if i is not None):
        masks = index.dtype in (torch.bool, torch.uint8)
        if masks and not (values is not None and values.numel() == 1):
            SEEN.note(f"wait: {name} with a boolean mask")
        if not isinstance(index, Cuda):
            SEEN.note(f"wait: {name} with an index on the CPU")
    if values is not None and not isinstance(values, Cuda) and values.dim():
        SEEN.note(f"mixture: {name} of a GPU tensor with CPU values")


def _copied(source, non_blocking):
    """A copy between host and device. To the device it must come from pinned memory and not block."""
    SEEN.launch("memcpy")
    if isinstance(source, Cuda):
        if not non_blocking:
            SEEN.note("wait: a copy to the CPU that blocks")
    elif not non_blocking or not getattr(source, "pretends_pinned", False):
        SEEN.note(
            f"wait: a copy to the GPU of {source.numel() * source.element_size()} bytes, pageable or blocking"
        )


# -------------------------------------------------------------------- functions


def _is_cuda(device):
    try:
        return device is not None and torch.device(device).type == "cuda"
    except (RuntimeError, TypeError):
        return False


def _function(func, args, kwargs):
    """What never reaches the dispatcher: properties of the device, moves, and devices among the arguments."""
    x = args[0] if args else None
    name = getattr(func, "__name__", str(func))
    if func in _PROPERTIES:
        return _PROPERTIES[func](isinstance(x, Cuda))
    if func is Tensor.get_device:
        return 0 if isinstance(x, Cuda) else -1
    if func in (Tensor.cpu, Tensor.cuda, Tensor.to) and (target := _target(func, args, kwargs)) is not None:
        return _moved(func, x, target, args, kwargs)
    if func in (Tensor.numpy, Tensor.__array__, Tensor.tolist) and isinstance(x, Cuda):
        SEEN.note(f"wait: {name} of a tensor on the GPU")
        with _raw():
            return getattr(x.detach().as_subclass(Tensor), name)()
    if func is Tensor.data_ptr:
        with _raw():
            return x.data_ptr()
    pins = kwargs.pop("pin_memory", False) if name in FACTORIES or name.endswith("_like") else False
    made = _is_cuda(kwargs.get("device"))
    on_host = kwargs.get("device") is not None and not made
    if made:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        if func in (torch.tensor, torch.as_tensor):
            SEEN.note(f"wait: torch.{name} of host values on the GPU")
        if name in FACTORIES:
            SEEN.launch(name)
    with torch._C.DisableTorchFunctionSubclass():
        out = func(*args, **kwargs)
    if name.endswith("_like") and on_host:
        with _raw():
            out = torch.empty(x.shape, dtype=x.dtype)
        out.pretends_pinned = pins
    elif made or (name.endswith("_like") and isinstance(x, Cuda)):
        out = tree_map(_wrap, out)
    return out


def _target(func, args, kwargs):
    if func is not Tensor.to:
        return CUDA if func is Tensor.cuda else torch.device("cpu")
    found = kwargs.get("device")
    for a in args[1:]:
        if isinstance(a, torch.device | str):
            found = torch.device(a)
        elif isinstance(a, Tensor):
            found = CUDA if isinstance(a, Cuda) else torch.device("cpu")
    if isinstance(kwargs.get("other"), Tensor):
        found = CUDA if isinstance(kwargs["other"], Cuda) else torch.device("cpu")
    return None if found is None else torch.device(found)


def _moved(func, x, target, args, kwargs):
    rest = {k: v for k, v in kwargs.items() if k in ("dtype", "copy", "memory_format")}
    for a in args[1:] if func is Tensor.to else ():
        if isinstance(a, torch.dtype):
            rest["dtype"] = a
        elif isinstance(a, Tensor):
            rest["dtype"] = a.dtype
        elif isinstance(a, torch.memory_format):
            rest["memory_format"] = a
    here, there = isinstance(x, Cuda), target.type == "cuda"
    if here == there:
        with torch._C.DisableTorchFunctionSubclass():
            return Tensor.to(x, **rest) if rest else x
    _copied(x, kwargs.get("non_blocking", False) or any(a is True for a in args[1:]))
    rest.pop("copy", None)
    with torch._C.DisableTorchFunctionSubclass():
        out = Tensor.to(x, **rest) if rest else x
        if not there:
            with torch._C._DisableTorchDispatch():
                return out.detach().as_subclass(Tensor).clone()
        if out.requires_grad and not out.is_leaf:
            return _ToCuda.apply(out)
        moved = Tensor._make_subclass(Cuda, out.detach().clone(), False)
        return moved.requires_grad_() if x.requires_grad else moved


_PROPERTIES = {
    Tensor.device.__get__: lambda ours: CUDA if ours else torch.device("cpu"),
    Tensor.is_cuda.__get__: lambda ours: ours,
    Tensor.is_cpu.__get__: lambda ours: not ours,
}


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _function(func, args, dict(kwargs or {}))


# -------------------------------------------------------------------- the library around


class _Autocast(torch.autocast):
    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class _Stream:
    def __init__(self, device=None):
        pass

    def wait_event(self, event):
        pass


class _Event:
    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


def _pinned(x):
    if isinstance(x, Cuda):
        SEEN.note("mixture: pin_memory of a tensor on the GPU")
    out = x.clone()
    out.pretends_pinned = True
    return out


_group = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists, *args):
    """As torch, which sees through the pretence, groups lists of tensors for an optimizer."""
    found = _group(lists, *args)
    if not isinstance(lists[0][0], Cuda):
        return found
    return {(CUDA, dtype): group for (_, dtype), group in found.items()}


@contextlib.contextmanager
def pretended(monkeypatch):
    """Within it `cuda` is a device; yields what is noted while `watched` is set."""
    monkeypatch.setattr(torch, "autocast", _Autocast)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**34, 2**34))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU that is not there")
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
    monkeypatch.setattr(Tensor, "pin_memory", _pinned)
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    SEEN.__init__()
    try:
        with Mode():
            yield SEEN
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
