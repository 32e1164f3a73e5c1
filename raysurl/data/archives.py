"""Arrays of .npy and .npz files, whose heads are read first: what an array takes is known before it is read.

An archive of a few megabytes may unpack to gigabytes, and the head of an array may claim any shape.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from raysurl.data import storage
from raysurl.data.machine import free_memory
from raysurl.errors import InputError

SMALL_BYTES = 2**28  # that an archive may unpack to, however well it is packed
MOST_PACKED = (
    200  # times that larger arrays may be packed; images are packed two or three times, zeros a thousand
)


@dataclass(frozen=True)
class Head:
    """What an array is, from its first bytes; `stored`: packed bytes, `nbytes`: unpacked ones."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    stored: int


def heads(path: str, where: str) -> dict[str | None, Head]:
    """Name → head of each array of an .npz file; a .npy file has one, named None. Raises InputError.

    `where`: what messages call the file, as `data.path=FILE`.
    """
    try:
        with _file(path) as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return {None: _head(file, None, where)}
            with zipfile.ZipFile(file) as archive:
                return {
                    info.filename.removesuffix(".npy"): _head(member, info, where)
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                    for member in [archive.open(info)]
                }
    except InputError:
        raise
    except Exception as error:  # NumPy and zipfile raise a dozen unrelated types on damaged files
        raise InputError(f"{where} is not a .npy or .npz file that can be read: {_why(error)}") from None


def check_size(found: dict[str | None, Head], names: list[str | None], where: str) -> None:
    """InputError where these arrays would unpack to more than memory holds, or to suspiciously much."""
    packed = [found[name] for name in names if name is not None]
    nbytes, stored = sum(head.nbytes for head in packed), sum(head.stored for head in packed)
    if nbytes > free_memory():
        raise InputError(
            f"{where} unpacks to {nbytes / 1e9:.1f} GB, more than memory holds; save its images as a .npy file, which"
            " is read as it is needed"
        )
    if nbytes > SMALL_BYTES and nbytes > MOST_PACKED * stored:
        raise InputError(
            f"{where} unpacks from {stored / 1e6:.1f} MB to {nbytes / 1e9:.1f} GB, as no images do; if that is meant"
            " save it unpacked with np.savez"
        )


def load(path: str, member: str | None) -> NDArray[Any]:
    """The array of a .npy file (mapped, where it is local), or one of an .npz file. Pickled objects are refused.

    Raises OSError or ValueError.
    """
    if not storage.is_uri(path):
        if member is None:
            loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[member])
    content = np.load(io.BytesIO(storage.read_bytes(path, "")), allow_pickle=False)
    return np.asarray(content if member is None else content[member])


def read(path: str, member: str | None, where: str) -> NDArray[Any]:
    """As `load`; raises InputError."""
    try:
        return load(path, member)
    except Exception as error:
        raise InputError(f"{where} cannot be read: {_why(error)}") from None


def _file(path: str) -> Any:
    name = storage.local_file(path, "")
    return io.BytesIO(storage.read_bytes(path, "")) if name is None else storage.open_local(name)


def _head(file: Any, info: zipfile.ZipInfo | None, where: str) -> Head:
    version = npy.read_magic(file)
    readers = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
        (3, 0): npy.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"arrays of format {version} are not known")
    shape, _, dtype = readers[version](file)
    name = "" if info is None else f" (array {info.filename.removesuffix('.npy')})"
    if dtype.hasobject:
        raise InputError(f"{where}{name} holds Python objects, which are not read; save arrays of numbers")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    nbytes = dtype.itemsize
    for size in shape:
        nbytes *= size
    if info is not None:
        there = info.file_size - file.tell()
        stored = info.compress_size
    else:
        begin = file.tell()
        there = stored = file.seek(0, io.SEEK_END) - begin
    if nbytes > there:
        raise InputError(
            f"{where}{name} claims {dtype} of shape {shape}, {nbytes:,} bytes, and holds {there:,}"
        )
    return Head(tuple(shape), dtype, nbytes, stored)


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
