"""All parameters of a model in one flat buffer, and a dict of views into it.

One buffer means one update, one clip and one write for the whole model, whatever it is made of. The same class holds
gradients and optimiser moments: `Parameters.like` makes a twin with the same layout, so that ``p.flat`` and ``g.flat``
line up element by element.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from crnn import _kernels

__all__ = ["Parameters", "Spec"]

_LINE = 64  # bytes: one cache line, and one AVX-512 register
_LARGE_PAGE = 2 << 20  # bytes
_MOST = 1 << 62  # bytes
_GUARD = 128  # zero bytes behind the last tensor: kernels may read (never write) whole registers past its end

_Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor to be stored.

    Parameters
    ----------
    name : str
        Public name, e.g. ``"rnn.weight_ih_l0"``.
    shape : tuple of int
        Public shape.
    transposed : bool
        Store a matrix of public shape (n, m) as (m, n) with padded rows: column j of the public view is then one
        contiguous, cache-line aligned run of memory.
    """

    name: str
    shape: _Shape
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.transposed and len(self.shape) != 2:
            raise ValueError(f"Spec {self.name}: only a matrix can be stored transposed, got shape {self.shape}")
        if any(size < 1 for size in self.shape):
            raise ValueError(f"Spec {self.name}: every dimension must be at least 1, got shape {self.shape}")


class _Slot(NamedTuple):
    """Where a tensor stands in the buffer."""

    spec: Spec
    offset: int  # bytes
    stored: _Shape  # of the stored array, without row padding
    stored_strides: _Shape  # bytes
    strides: _Shape  # of the public view


def _padded(columns: int, itemsize: int) -> int:
    """Row length in elements: whole cache lines, an odd number of them.

    With an even number the rows of a tall matrix fall on few cache sets and a walk down a column evicts itself.
    """
    lines = -(-columns * itemsize // _LINE)
    return (lines | 1) * _LINE // itemsize


class _Slots(dict[str, _Slot]):
    """Where every tensor stands, and how the kernels make views of a buffer from it."""

    __slots__ = ("views",)

    views: _kernels.Views


def _layout(specs: Iterable[Spec], dtype: np.dtype[Any]) -> tuple[_Slots, int]:
    """Where every tensor stands, and the length of the buffer, in elements."""
    slots, item = _Slots(), dtype.itemsize
    gaps: list[tuple[int, int, int, int]] = []
    offset = 0
    for spec in specs:
        if spec.name in slots:
            raise ValueError(f"two tensors have the same name {spec.name!r}")
        stored = spec.shape[::-1] if spec.transposed else spec.shape
        rows = (*stored[:-1], _padded(stored[-1], item)) if spec.transposed else stored
        strides = tuple(math.prod(rows[i + 1 :]) * item for i in range(len(rows)))
        slots[spec.name] = _Slot(spec, offset, stored, strides, strides[::-1] if spec.transposed else strides)
        if spec.transposed and rows != stored:
            gaps.append((offset + stored[1] * item, (rows[1] - stored[1]) * item, strides[0], stored[0]))
        end = offset + math.prod(rows) * item
        offset = -(-end // _LINE) * _LINE
        if end < offset:
            gaps.append((end, offset - end, 0, 1))
    if offset > _MOST:
        raise _too_large(offset)
    gaps.append((offset, _GUARD, 0, 1))
    tensors = [(name, slot.offset, slot.spec.shape, slot.strides) for name, slot in slots.items()]
    slots.views = _kernels.Views(dtype, offset // item, _GUARD // item, tensors, gaps)
    return slots, offset // item


def _zeros(elements: int, dtype: np.dtype[Any]) -> np.ndarray:
    """A zeroed, cache-line aligned array of `elements`, with the guard behind it in the same allocation.

    A large one lies on large pages where the system has them: the output layer walks down the columns of its weights, a
    new small page with each step. Pages that nobody touches cost no memory.
    """
    size = elements * dtype.itemsize + _LINE + _GUARD
    raw: Any
    if size >= _LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            pages = mmap.mmap(-1, size + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            raise _too_large(size) from None
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(pages, np.uint8)
        return np.ndarray((elements,), dtype, raw, -raw.ctypes.data % _LARGE_PAGE)
    raw = np.zeros(size, np.uint8)
    return np.ndarray((elements,), dtype, raw, -raw.ctypes.data % _LINE)


def _too_large(size: int) -> MemoryError:
    return MemoryError(f"the parameters take {size:,} bytes, more than there are")


def _converted(name: str, value: Any, view: np.ndarray) -> np.ndarray:
    """`value` as an array that can be copied into `view` without guessing; ValueError says what is wrong with it."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: not an array ({error})") from None
    if array.shape != view.shape:
        raise ValueError(f"{name}: shape {array.shape}, wanted {view.shape}")
    if array.dtype.kind != "f":
        raise ValueError(f"{name}: dtype {array.dtype}, wanted floating-point numbers")
    if array.dtype != view.dtype:
        with np.errstate(over="ignore"):  # an overflow shows as inf and is refused by name below
            array = array.astype(view.dtype)
    if not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: {array[at]} at {list(at)} in {view.dtype}, wanted finite numbers")
    return array


class Parameters(dict[str, np.ndarray]):
    """Named tensors over one flat buffer: a dict of live, writable views.

    Write into a view (``p["output.bias"][:] = 0``) or assign to a name (``p["output.bias"] = array``, which copies
    after checking shape and dtype): whoever computes with these parameters sees the change at once. The set of names
    is fixed, so everything that would add or remove one raises TypeError.

    Each tensor starts on a 64-byte boundary; a transposed one (`Spec.transposed`) has rows padded to an odd number of
    64-byte lines; at least 128 zero bytes follow the last tensor. Padding is zero and must stay zero, which every
    element-wise update rule with zero gradients respects.

    Parameters
    ----------
    specs : iterable of Spec
        The tensors, in buffer order.
    dtype : numpy dtype
        float32 or float64.
    over : numpy.ndarray, optional
        A buffer that holds the values already, `guard` elements longer than `flat`, read-only if need be. By default
        new memory, all zero.

    Attributes
    ----------
    flat : numpy.ndarray
        The whole buffer, 1-D, padding between tensors included. Assigning to it copies.
    guard : int
        How many zero elements follow `flat` in its memory.
    dtype : numpy.dtype

    Examples
    --------
    >>> p = Parameters([Spec("weight", (2, 3)), Spec("bias", (2,))])
    >>> p["bias"] = [0.5, -0.5]
    >>> gradients = p.like()
    >>> gradients["bias"][:] = 1
    >>> p.flat -= 0.25 * gradients.flat
    >>> p["bias"]
    array([ 0.25, -0.75], dtype=float32)
    """

    __slots__ = ("_flat", "_slots", "dtype")

    _flat: np.ndarray
    dtype: np.dtype[Any]
    _slots: _Slots

    def __init__(self, specs: Iterable[Spec], dtype: Any = np.float32, over: np.ndarray | None = None) -> None:
        try:
            self.dtype = np.dtype(dtype)
        except TypeError:
            raise ValueError(f"dtype must be float32 or float64, got {dtype!r}") from None
        if dtype is None or self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}")
        self._slots, length = _layout(specs, self.dtype)
        if over is None:
            self._attach(_zeros(length, self.dtype))
            return
        wanted = length + self.guard
        if over.shape != (wanted,) or over.dtype != self.dtype or over.ctypes.data % _LINE:
            raise ValueError(f"a buffer of {over.dtype} {over.shape}, wanted {self.dtype} ({wanted},), 64-byte aligned")
        self._attach(over[:length])

    def _attach(self, flat: np.ndarray) -> None:
        self._flat = flat
        self._slots.views.attach(self, flat)

    @property
    def flat(self) -> np.ndarray:
        return self._flat

    @flat.setter
    def flat(self, values: Any) -> None:
        if values is not self._flat:  # `p.flat -= ...` ends here with the array it already changed
            self._flat[:] = _converted("flat", values, self._flat)

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The tensors in buffer order."""
        return tuple(slot.spec for slot in self._slots.values())

    def check_writable(self) -> None:
        """Raise ValueError for the weights of a model over a mapped file, which can be used but not trained."""
        if not self.flat.flags.writeable:
            raise ValueError(
                "the model's weights are mapped from a file, read-only: train model.copy(), or load it without mmap"
            )

    @property
    def guard(self) -> int:
        return _GUARD // self.dtype.itemsize

    @property
    def places(self) -> dict[str, int]:
        """Name -> where the tensor starts in `flat`, in elements."""
        return {name: slot.offset // self.dtype.itemsize for name, slot in self._slots.items()}

    @property
    def size(self) -> int:
        """Number of parameters, padding not counted."""
        return sum(view.size for view in self.values())

    def is_twin(self, other: object) -> bool:
        """Whether `other` has the same names, shapes, layout and dtype."""
        if not isinstance(other, Parameters) or other.dtype != self.dtype:
            return False
        return other._slots is self._slots or other.specs == self.specs

    def storage(self, name: str) -> np.ndarray:
        """The array as stored: (m, n) with padded rows for a transposed tensor of shape (n, m), else the view."""
        _, offset, stored, strides, _ = self._slots[name]
        return np.ndarray(stored, self.dtype, self.flat, offset, strides)

    def like(self) -> Parameters:
        """A zeroed twin with the same names and layout: for gradients and optimiser moments."""
        twin = Parameters.__new__(Parameters)
        twin.dtype = self.dtype
        twin._slots = self._slots
        twin._attach(_zeros(self.flat.size, self.dtype))
        return twin

    def blank(self) -> Parameters:
        """As `like`, for whoever overwrites every tensor: only the padding is sure to be zero."""
        twin = Parameters.__new__(Parameters)
        twin.dtype = self.dtype
        twin._slots = self._slots
        twin._flat = self._slots.views.blank(twin)
        return twin

    def assign(self, tensors: Mapping[str, Any]) -> None:
        """Copy every tensor from a mapping with exactly these names; all or nothing.

        float16, float32 and float64 arrays are converted. Integers are refused: quantised weights mean nothing without
        their scales.

        Raises
        ------
        TypeError
            If `tensors` is not a mapping.
        ValueError
            Listing missing, unexpected and misshapen tensors, wrong dtypes and non-finite values, ten at most.
        """
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors must be a mapping from names to arrays, not {type(tensors).__name__}")
        missing = [f"{name}: missing, wanted shape {view.shape}" for name, view in self.items() if name not in tensors]
        self._copy_in(tensors, missing)

    def update(self, *tensors: Any, **named: Any) -> None:
        """Copy some tensors, as `dict.update`; all or nothing, with the errors of `assign` (missing names are fine)."""
        self._copy_in(dict(*tensors, **named), [])

    def _copy_in(self, tensors: Mapping[str, Any], problems: list[str]) -> None:
        arrays: dict[str, np.ndarray] = {}
        for name, value in tensors.items():
            if name not in self:
                problems.append(f"{name}: unexpected")
                continue
            try:
                array = _converted(name, value, self[name])
            except ValueError as error:
                problems.append(str(error))
                continue
            # One of these very tensors may be written before it is read: two that change places, say.
            arrays[name] = array.copy() if np.may_share_memory(array, self.flat) else array
        if problems:
            rest = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
            raise ValueError("parameters do not fit:\n  " + "\n  ".join(problems[:10] + rest))
        for name, array in arrays.items():
            self[name][...] = array

    def __setitem__(self, name: str, value: Any) -> None:
        view = dict.get(self, name)
        if view is None:
            raise KeyError(f"{name}: no such tensor; there are {', '.join(self)}")
        if value is not view:  # `p[name] *= 2` ends here with the view it already changed
            view[...] = _converted(name, value, view)

    def copy(self) -> Parameters:
        """A snapshot: the same names and values in memory of its own."""
        twin = self.like()
        twin.flat[:] = self.flat
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameters:
        return self.copy()

    def __reduce__(self) -> Any:
        return _restore, (self.specs, self.dtype.str, {name: np.array(view) for name, view in self.items()})

    def __ior__(self, tensors: Any) -> Parameters:  # type: ignore[override,misc]
        self.update(tensors)
        return self

    def _fixed(self, *_args: Any, **_named: Any) -> NoReturn:
        raise TypeError("the names of Parameters are fixed: tensors can be written, not added or removed")

    __delitem__ = pop = popitem = clear = setdefault = _fixed

    def table(self) -> str:
        """A line for each tensor with name, shape and number of values, and the total with its size in memory."""
        rows = [(name, "x".join(map(str, view.shape)), f"{view.size:,}") for name, view in self.items()]
        rows.append(("total", self.dtype.name, f"{self.size:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {size:>{widths[2]}}" for name, shape, size in rows]
        return "\n".join([*lines, f"{sum(view.nbytes for view in self.values()):,} bytes"])

    def __repr__(self) -> str:
        lines = [f"  {name}: {'x'.join(map(str, view.shape))}" for name, view in self.items()]
        return "\n".join([f"Parameters({self.size:,} {self.dtype} values)", *lines])


def _restore(specs: tuple[Spec, ...], dtype: str, arrays: dict[str, np.ndarray]) -> Parameters:
    parameters = Parameters(specs, dtype)
    for name, array in arrays.items():
        dict.__getitem__(parameters, name)[...] = array
    return parameters
