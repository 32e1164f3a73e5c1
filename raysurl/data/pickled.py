"""Arrays of numbers out of a pickle, without running anything that it asks for.

A pickle is a program. This one knows the instructions for numbers, texts, tuples, lists and dictionaries; what it calls
by name are plain values here, and making an array or a sparse matrix of its parts is done, and checked, by this module.
No class or function can be reached, so that nothing can be called and nothing changed.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from raysurl.errors import printable

MOST_ITEMS = 2**25  # instructions; PubMed's graph has 0.2 million


@dataclass(frozen=True)
class _Name:
    """A name that the pickle asks for."""

    of: str


@dataclass
class _Part:
    """An array, its type or a matrix in the making: what it is made with, then its state."""

    of: str
    arguments: tuple[Any, ...]
    state: Any = field(default=None)


_NAMES = {  # as old and new versions of these packages call them
    **dict.fromkeys(("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"), "array"),
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    **dict.fromkeys(("scipy.sparse.csr csr_matrix", "scipy.sparse._csr csr_matrix"), "matrix"),
    "scipy.sparse csr_matrix": "matrix",
    "collections defaultdict": "dictionary",
    "__builtin__ list": "list",
    "builtins list": "list",
    "_codecs encode": "encode",
    "__builtin__ bytes": "bytes",
}
_MARK = object()


def arrays_of_pickle(content: bytes) -> Any:
    """Arrays of numbers (N, …), CSR matrices, and lists and dictionaries of plain values. Raises ValueError."""
    try:
        return _finished(_Machine().run(content))
    except ValueError:
        raise
    except Exception as error:  # of whatever comes of instructions that do not fit one another
        raise ValueError(f"its instructions make no sense ({type(error).__name__})") from None


class _Machine:
    """The stack and the memo of a pickle's instructions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count > MOST_ITEMS:
                raise ValueError(f"it has more than {MOST_ITEMS:,} instructions")
            if code.name == "STOP":
                return self.stack.pop()
            self._do(code.name, argument)
        raise ValueError("it has no end")

    def _do(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _PUSHED:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code]())
        elif code in _TUPLES:
            stack[len(stack) - _TUPLES[code] :] = [tuple(stack[len(stack) - _TUPLES[code] :])]
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code in _OF_CONTAINERS:
            _OF_CONTAINERS[code](self)
        elif code == "GLOBAL":
            stack.append(_named(argument))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_named(f"{module} {name}"))
        elif code in ("REDUCE", "NEWOBJ"):
            arguments, made = stack.pop(), stack.pop()
            stack.append(_made(made, arguments))
        elif code == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Part) or stack[-1].state is not None:
                raise ValueError("it sets the state of what has none")
            stack[-1].state = state
        elif code not in ("PROTO", "FRAME"):
            raise ValueError(f"its instruction {code} is none of arrays and lists")

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def append(self) -> None:
        value = self.stack.pop()
        _a(list, self.stack[-1]).append(value)

    def appends(self) -> None:
        items = self.to_mark()
        _a(list, self.stack[-1]).extend(items)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _a(dict, self.stack[-1])[_key(key)] = value

    def set_items(self) -> None:
        items = self.to_mark()
        _a(dict, self.stack[-1]).update(
            (_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)
        )

    def new_tuple(self) -> None:
        self.stack.append(tuple(self.to_mark()))

    def new_list(self) -> None:
        self.stack.append(self.to_mark())


_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING")
_PUSHED = frozenset((*_NUMBERS, *_TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"))
_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OF_CONTAINERS = {
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "TUPLE": _Machine.new_tuple,
    "LIST": _Machine.new_list,
}


def _a(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"it fills what is no {kind.__name__}")
    return value


def _key(key: Any) -> Any:
    if type(key) not in (int, str):
        raise ValueError("a key is neither a number nor text")
    return key


def _named(name: str) -> _Name:
    if name not in _NAMES:
        raise ValueError(f"it asks for {printable(name.replace(' ', '.'))}")
    return _Name(_NAMES[name])


def _made(made: Any, arguments: Any) -> Any:
    if not isinstance(made, _Name) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no name")
    if made.of == "dictionary":
        return {}
    if made.of == "encode":
        return str(arguments[0]).encode("latin1")
    if made.of == "bytes" and not arguments:
        return b""
    if made.of not in ("array", "dtype", "matrix"):
        raise ValueError(f"it makes a {made.of} of its own")
    return _Part(made.of, arguments)


# -------------------------------------------------------------------- arrays of their parts


def _finished(value: Any) -> Any:
    """A value whose top is an array or a matrix, or a container of plain values, which is checked by its reader."""
    if not isinstance(value, _Part):
        return value
    if value.of == "array":
        return _array(value)
    if value.of == "matrix":
        return _matrix(value)
    raise ValueError("it is no array")


def _array(part: Any) -> NDArray[Any]:
    if (
        not isinstance(part, _Part)
        or part.of != "array"
        or type(part.state) is not tuple
        or len(part.state) != 5
    ):
        raise ValueError("an array misses its parts")
    _, shape, kind, fortran, content = part.state
    dtype = _dtype(kind)
    if isinstance(content, str):
        content = content.encode("latin1")
    if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("an array has no shape")
    count = 1
    for size in shape:
        count *= size
    if type(content) is not bytes or len(content) != count * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} does not hold as many numbers")
    array: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))


def _dtype(part: Any) -> np.dtype[Any]:
    if not isinstance(part, _Part) or part.of != "dtype" or type(part.arguments[0]) is not str:
        raise ValueError("an array has no type")
    name = part.arguments[0]
    order = part.state[1] if type(part.state) is tuple and len(part.state) > 1 else "="
    if len(name) > 3 or name[:1] not in "biuf" or order not in ("<", ">", "|", "="):
        raise ValueError(f"its arrays hold {printable(name[:20])}, not numbers")
    return np.dtype(name).newbyteorder(">" if order == ">" else "<")


def _matrix(part: _Part) -> Any:
    """A CSR matrix, all of whose indices lie in it."""
    state = part.state
    if type(state) is not dict:
        raise ValueError("a sparse matrix misses its parts")
    shape = state.get("_shape", state.get("shape"))
    if (
        type(shape) is not tuple
        or len(shape) != 2
        or any(type(size) is not int or size < 0 for size in shape)
    ):
        raise ValueError("a sparse matrix has no shape")
    values, indices, starts = (_array(state[name]) for name in ("data", "indices", "indptr"))
    if any(array.ndim != 1 for array in (values, indices, starts)):
        raise ValueError("a sparse matrix is not made of rows of numbers")
    if indices.dtype.kind not in "iu" or starts.dtype.kind not in "iu" or len(values) != len(indices):
        raise ValueError("the values and indices of a sparse matrix do not fit")
    starts, indices = starts.astype(np.int64), indices.astype(np.int64)
    if (
        len(starts) != shape[0] + 1
        or starts[0] != 0
        or starts[-1] != len(indices)
        or (np.diff(starts) < 0).any()
    ):
        raise ValueError("the rows of a sparse matrix do not fit its indices")
    if len(indices) and not (indices.min() >= 0 and indices.max() < shape[1]):
        wrong = int(indices.max() if indices.min() >= 0 else indices.min())
        raise ValueError(f"a sparse matrix of {shape[1]} columns has the column {wrong}")
    return scipy.sparse.csr_matrix((values, indices, starts), shape=shape)
