"""Reading `.safetensors` files as arrays, by copy or as views of a read-only memory map.

The format is a length (8 bytes, little-endian), a JSON header of that length, then the tensors' bytes. It is small
enough to be read here, which is what makes mapping possible: the safetensors package always copies into NumPy arrays.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap as mmap_module
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crnn.interop._weights import widened

__all__ = ["describe", "read"]

_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit, so that a damaged length cannot ask for all memory
_DIMENSIONS = 32  # more than any weight has, and what every NumPy can make
_GUARD = 128  # bytes that kernels may read behind a tensor; beyond the file they exist only up to the page's end
_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def read(
    path: str | os.PathLike[str],
    *,
    mmap: bool = False,
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file as arrays.

    Parameters
    ----------
    path
        The file.
    mmap
        False: arrays own their memory. True: read-only views of a memory map, shared between processes; a tensor
        that ends less than 128 bytes before the end of the file's last page is copied, because kernels may read a
        register's width past the end; so is one that is not aligned to its dtype.
    wanted
        Called with each tensor's name; the others are not read.

    Returns
    -------
    dict
        Name -> float16, float32 or float64 array. bfloat16 is widened to float32, exactly.

    Raises
    ------
    OSError
        The file cannot be opened or mapped.
    ValueError
        The file is not a safetensors file, or is truncated or damaged.
    TypeError
        A wanted tensor has an integer, boolean or 8-bit dtype.
    """
    source = Path(path)
    with open(source, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        header, start = _header(source, stream.read(8), size, stream.read)
        header.pop("__metadata__", None)
        entries = {name: _entry(source, name, value, size - start) for name, value in header.items() if wanted(name)}
        _check_apart(source, entries)
        usable = {*_DTYPES, "BF16"}
        refused = [f"{name} is {dtype}" for name, (dtype, *_) in entries.items() if dtype not in usable]
        if refused:
            raise TypeError(f"{source}: wanted F64, F32, F16 or BF16 tensors, but {'; '.join(sorted(refused))}")
        if mmap:
            # the views keep the map alive; it goes when the last of them does
            data = memoryview(mmap_module.mmap(stream.fileno(), 0, access=mmap_module.ACCESS_READ))
            page = mmap_module.PAGESIZE
            safe = -(-size // page) * page - _GUARD
            return {
                name: _array(data[start + begin : start + end], dtype, shape, copy=start + end > safe)
                for name, (dtype, shape, begin, end) in entries.items()
            }
        arrays = {}
        for name, (dtype, shape, begin, end) in entries.items():
            stream.seek(start + begin)
            arrays[name] = _array(stream.read(end - begin), dtype, shape, copy=True)
        return arrays


def describe(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, str]]:
    """The names of a file's tensors, and its metadata. Errors as `read`."""
    source = Path(path)
    with open(source, "rb") as stream:
        header, _ = _header(source, stream.read(8), os.fstat(stream.fileno()).st_size, stream.read)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{source}: the header's metadata are not strings")
    return list(header), metadata


def _header(source: Path, prefix: bytes, size: int, read_bytes: Callable[[int], bytes]) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the tensors' bytes begin."""
    length = int.from_bytes(prefix, "little") if len(prefix) == 8 else 0
    if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
        raise ValueError(f"{source}: not a safetensors file, or cut off inside its header ({size} bytes)")
    try:
        header = json.loads(read_bytes(length).decode("utf-8"), object_pairs_hook=_without_repetitions)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not a safetensors file, its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{source}: not a safetensors file, its header is not a JSON object")
    return header, 8 + length


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name!r} stands there twice")
    return values


def _check_apart(source: Path, entries: Mapping[str, tuple[str, tuple[int, ...], int, int]]) -> None:
    """No two tensors may share bytes."""
    places = sorted((begin, end, name) for name, (_, _, begin, end) in entries.items() if begin < end)
    for (_, end, name), (begin, _, other) in itertools.pairwise(places):
        if begin < end:
            raise ValueError(f"{source}: {name!r} and {other!r} overlap")


def _entry(source: Path, name: str, value: Any, available: int) -> tuple[str, tuple[int, ...], int, int]:
    """dtype name, shape, first and last byte of one tensor, checked against the file's length."""
    try:
        dtype, shape, (begin, end) = str(value["dtype"]), tuple(value["shape"]), value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{source}: the header's entry for {name!r} is damaged") from None
    numbers = (*shape, begin, end)
    if not all(type(number) is int and number >= 0 for number in numbers) or begin > end or len(shape) > _DIMENSIONS:
        raise ValueError(f"{source}: the header's entry for {name!r} is damaged")
    if end > available:
        raise ValueError(f"{source}: cut off, {name!r} ends {end - available} bytes behind the end of the file")
    itemsize = 2 if dtype == "BF16" else _DTYPES[dtype].itemsize if dtype in _DTYPES else None
    absurd = math.prod(filter(None, shape)) > sys.maxsize // 8  # only where another dimension is 0
    if itemsize is not None and (math.prod(shape) * itemsize != end - begin or absurd):
        raise ValueError(f"{source}: {name!r} has {end - begin} bytes, which is not shape {shape} of {dtype}")
    return dtype, shape, begin, end


def _array(data: bytes | memoryview, dtype: str, shape: tuple[int, ...], copy: bool) -> npt.NDArray[Any]:
    if dtype == "BF16":
        return widened(np.frombuffer(data, "<u2")).reshape(shape)
    array = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    return array.copy() if copy or not array.flags.aligned else array
