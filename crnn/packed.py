"""Ragged batches as packed rows: sorted by length, time-major, no padding.

A batch of B sequences is sorted by length, longest first (equal lengths keep their order). Block t holds the ``b_t``
sequences still running at step t, so row (t, i) sits at ``offsets[t] + i`` and there are R = sum of lengths rows.
Sequences of length zero sort last: they own no row, but they own a state.

`Packed` is that arrangement, the geometry of a batch. `Batch` is a geometry together with the form in which the
caller's arrays come and go.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from crnn import _kernels

__all__ = ["Batch", "Packed", "as_real", "dense", "finite", "read_form"]

_REAL_KINDS = "fiub"


def as_real(value: Any, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """`value` as an array of `dtype`: any real number type is converted, everything else is refused.

    Raises
    ------
    TypeError
        For complex numbers, strings, objects and other types that are not real numbers.
    ValueError
        For nested sequences that do not form an array.
    """
    if type(value) is np.ndarray:
        array = value
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name}: not an array of numbers ({error})") from None
        except RuntimeError as error:  # a PyTorch tensor that requires gradients
            raise TypeError(f"{name}: not an array of numbers ({error})") from None
    if array.dtype is dtype:
        return array
    if array.dtype.kind not in _REAL_KINDS:
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # a value too large for float32 becomes inf, and is refused as such
        return array.astype(dtype)


def finite(array: np.ndarray, name: str) -> np.ndarray:
    """An array of float32 or float64 as the kernels take it: itself if it is C-contiguous and aligned, else a copy.

    Raises
    ------
    ValueError
        For a value that is NaN or infinite: names it and its place.
    """
    flags = array.flags
    plain = array if flags.c_contiguous and flags.aligned else np.array(array, order="C")
    if not (math.isfinite(plain.item()) if plain.size == 1 else _kernels.all_finite(plain)):
        at = np.argwhere(~np.isfinite(plain))[0].tolist()
        raise ValueError(f"{name} must be finite, got {plain[tuple(at)]} at {name}{at}")
    return plain


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class Packed:
    """Where the steps of B sequences stand among the packed rows.

    Parameters
    ----------
    lengths : array_like
        (B,) whole numbers, none negative, in the caller's order.

    Attributes
    ----------
    lengths : numpy.ndarray
        (B,) int64, as given.
    batch_size, steps, rows : int
        B; T, the longest length; R, the sum of lengths.
    offsets : numpy.ndarray
        (T + 1,) int64: block t is rows ``offsets[t]:offsets[t + 1]``.
    order : numpy.ndarray
        (B,) int64: sorted position -> the caller's position.
    places : numpy.ndarray
        (B,) int64: the caller's position -> sorted position.
    in_order : bool
        Whether the two are the same, that is, the lengths came sorted.

    Examples
    --------
    >>> packed = Packed([1, 3, 2])
    >>> packed.offsets.tolist(), packed.order.tolist()
    ([0, 3, 5, 6], [1, 2, 0])
    >>> packed.pack([np.array([10]), np.array([20, 21, 22]), np.array([30, 31])]).tolist()
    [20, 30, 10, 21, 31, 22]
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray) -> None:
        self.lengths = _read_only(np.array(lengths, np.int64))
        self.batch_size = len(self.lengths)
        self.offsets, self.order, self.places, self.in_order = _kernels.arrange(self.lengths)
        self.steps = len(self.offsets) - 1
        self.rows = int(self.offsets[-1])

    @functools.cached_property
    def step(self) -> np.ndarray:
        """(R,) int64: the time step of each row."""
        return _read_only(np.repeat(np.arange(self.steps), np.diff(self.offsets)))

    @functools.cached_property
    def sequence(self) -> np.ndarray:
        """(R,) int64: the sequence of each row, as the caller counts them."""
        place = np.arange(self.rows) - self.offsets[self.step]
        return _read_only(self.order[place])

    @functools.cached_property
    def joined(self) -> np.ndarray:
        """(R,) int64: where each row stands when the sequences are joined end to end in the caller's order."""
        starts = np.cumsum(self.lengths) - self.lengths
        return _read_only(starts[self.sequence] + self.step)

    def pack(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Packed rows (R, ...) of arrays (length_i, ...), features or ids: C-contiguous, in memory of their own."""
        if self.batch_size == 1:
            return np.array(sequences[0], order="C")
        return np.concatenate(sequences).take(self.joined, axis=0)

    def unpack(self, rows: np.ndarray) -> list[np.ndarray]:
        """The inverse of `pack`: arrays (length_i, ...), views of one new buffer."""
        joined = np.empty_like(rows)
        joined[self.joined] = rows
        ends = np.cumsum(self.lengths)
        return [joined[end - length : end] for end, length in zip(ends.tolist(), self.lengths.tolist())]

    def sort(self, state: np.ndarray) -> np.ndarray:
        """A state (N, B, H) from the caller's order to the sorted one; `state` itself where they are the same."""
        return state if self.in_order else state.take(self.order, axis=1)

    def unsort(self, state: np.ndarray) -> np.ndarray:
        """The inverse of `sort`."""
        return state if self.in_order else state.take(self.places, axis=1)


class Batch:
    """A geometry, and the form of the arrays that the caller passes and gets back.

    Attributes
    ----------
    geometry : Packed
    form : str
        ``"single"``: one sequence (T, F); ``"padded"``: (B, T, F), steps beyond a sequence's length ignored on the way
        in and zero on the way out; ``"list"``: B arrays (T_i, F).
    steps : int
        T of the padded form, which may exceed every length.
    """

    __slots__ = ("form", "geometry", "steps")

    def __init__(self, geometry: Packed, form: str, steps: int) -> None:
        self.geometry = geometry
        self.form = form
        self.steps = steps

    def shape(self, width: int) -> str:
        """The shape of an array of this form, in words."""
        if self.form == "list":
            return f"a list of {self.geometry.batch_size} arrays (length_i, {width})"
        sizes = (self.steps, width) if self.form == "single" else (self.geometry.batch_size, self.steps, width)
        return f"shape {sizes}"

    def read(self, value: Any, width: int, dtype: np.dtype[Any], name: str) -> np.ndarray | list[np.ndarray]:
        """Check an array (or list) of this form, and say where the kernels find it: nothing is copied without need.

        Parameters
        ----------
        value : array or list of arrays
            In this batch's form.
        width : int
            Expected features per step.
        dtype : numpy.dtype
            Dtype of the rows; real numbers of other types are converted.
        name : str
            The argument's name, for errors.

        Returns
        -------
        numpy.ndarray or list of numpy.ndarray
            Packed rows (R, width), C-contiguous, aligned and all finite, where they lie so; else sequences that nobody
            has looked into yet, (B, T, width) or B arrays (T_i, width), whose steps are equally far apart. Whoever
            finds a row of them that is not finite calls `refuse`. Memory may be shared with `value`.

        Raises
        ------
        TypeError, ValueError
            Where `value` is not what this form wants, or rows hold values that are not finite.
        """
        if self.form == "list":
            arrays = self._read_list(value, width, dtype, name)
            return _side_by_side(arrays) if self.geometry.rows else np.empty((0, width), dtype)
        rows = self._placed(value, width, dtype)
        if rows is not None:
            return rows
        array = as_real(value, dtype, name)
        wanted = (self.steps, width) if self.form == "single" else (self.geometry.batch_size, self.steps, width)
        if array.shape != wanted:
            raise ValueError(f"{name} must have {self.shape(width)}, got {array.shape}")
        if not self.geometry.rows:
            return np.empty((0, width), dtype)
        rows = self._placed(array, width, dtype)
        if rows is None:
            array = array.copy(order="C")
            rows = self._placed(array, width, dtype)
        if rows is None:
            values = array.reshape(-1, width)
            row, column = np.argwhere(~np.isfinite(values[: self.geometry.rows]))[0].tolist()
            self._refuse_value(values[row, column], row, column, name)
        return rows

    def _placed(self, value: Any, width: int, dtype: np.dtype[Any]) -> np.ndarray | None:
        geometry = self.geometry
        axes = 2 if self.form == "single" else 3
        return _kernels.placed(value, dtype, axes, geometry.batch_size, self.steps, geometry.rows, width)

    def refuse(self, sequences: Any, row: int, name: str) -> NoReturn:
        """Raise ValueError for a packed row that is not finite, naming the place where the caller finds the value."""
        values = sequences[int(self.geometry.sequence[row])][int(self.geometry.step[row])]
        column = int(np.argmin(np.isfinite(values)))
        self._refuse_value(values[column], row, column, name)

    def _refuse_value(self, value: Any, row: int, column: int, name: str) -> NoReturn:
        raise ValueError(f"{name} must be finite, got {value} at {name}{self.place(row, column)}")

    def _read_list(self, value: Any, width: int, dtype: np.dtype[Any], name: str) -> list[np.ndarray]:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be {self.shape(width)}, not {type(value).__name__}")
        lengths = self.geometry.lengths.tolist()
        if len(value) != len(lengths):
            raise ValueError(f"{name} must be {self.shape(width)}, got {len(value)} arrays")
        arrays = []
        for i, (item, length) in enumerate(zip(value, lengths)):
            array = as_real(item, dtype, f"{name}[{i}]")
            if array.shape != (length, width):
                raise ValueError(f"{name}[{i}] must have shape {(length, width)}, got {array.shape}")
            arrays.append(array)
        return arrays

    @property
    def is_dense(self) -> bool:
        """Whether it is an array of several sequences, all as long as the array."""
        geometry = self.geometry
        return self.form == "padded" and geometry.rows == geometry.batch_size * self.steps

    def results(
        self, width: int, dtype: np.dtype[Any], apart: bool = False
    ) -> tuple[np.ndarray | list[np.ndarray], Any]:
        """Memory for results of `width` features per step, which the kernels are to fill.

        Where all sequences are equally long the rows are packed, and the memory of several sequences is time-major (in
        the caller's form it is not C-contiguous), which costs nothing on the way out and nothing on the way back in;
        unless they are to lie `apart`, one sequence after the other.

        Returns
        -------
        rows : numpy.ndarray or list of numpy.ndarray
            Packed rows (R, width), or sequences, (B, T, width) or B arrays (T_i, width).
        form : numpy.ndarray or list of numpy.ndarray
            The same memory in the caller's form; kernels that write an array make it zero beyond a sequence's length.
        """
        geometry = self.geometry
        if self.form == "list":
            joined = _kernels.empty((geometry.rows, width), dtype)
            ends = np.cumsum(geometry.lengths).tolist()
            parts = [joined[end - length : end] for end, length in zip(ends, geometry.lengths.tolist())]
            return parts, parts
        if self.is_dense:
            if apart:
                rows = _kernels.empty((geometry.batch_size, self.steps, width), dtype)
                return rows, rows
            return _kernels.time_major(self.steps, geometry.batch_size, width, dtype)
        if self.form == "single" and geometry.rows == self.steps:
            rows = _kernels.empty((self.steps, width), dtype)
            return rows, rows
        shape = (geometry.batch_size, self.steps, width)
        padded = _kernels.empty(shape, dtype) if geometry.rows else np.zeros(shape, dtype)
        return padded, padded[0] if self.form == "single" else padded

    def place(self, row: int, column: int) -> str:
        """Where the caller finds an element of the packed rows."""
        sequence, step = int(self.geometry.sequence[row]), int(self.geometry.step[row])
        if self.form == "list":
            return f"[{sequence}][{step}, {column}]"
        return f"[{step}, {column}]" if self.form == "single" else f"[{sequence}, {step}, {column}]"


def _side_by_side(sequences: list[np.ndarray]) -> list[np.ndarray]:
    """The same values, if need be copied, so that those of a step are neighbours and steps equally far apart."""
    steps = {array.strides[0] for array in sequences if len(array) > 1}
    if len(steps) <= 1 and all(a.strides[1] == a.itemsize for a in sequences if a.size and a.shape[1] > 1):
        return sequences
    return [array.copy(order="C") for array in sequences]


# Of small geometries the last 256 of each kind are remembered. Making a larger one takes 3 to 20 us, which its call
# does not feel, and would keep its memory for good.
_SMALL = 8192  # (sequences + 1) * (steps + 1): few of both, and few rows


def dense(batch: int, steps: int) -> Packed:
    """The geometry of `batch` sequences of `steps` steps each."""
    if (batch + 1) * (steps + 1) > _SMALL:
        return Packed(np.full(batch, steps, np.int64))
    return _remembered(batch, steps)


@functools.lru_cache(maxsize=256)
def _remembered(batch: int, steps: int) -> Packed:
    return Packed(np.full(batch, steps, np.int64))


@functools.lru_cache(maxsize=256)
def _dense_batch(batch: int, steps: int) -> Batch:
    return Batch(dense(batch, steps), "padded", steps)


@functools.lru_cache(maxsize=256)
def _single(steps: int) -> Batch:
    return Batch(dense(1, steps), "single", steps)


def _read_lengths(lengths: Any, batch: int, steps: int) -> np.ndarray:
    try:
        array = np.asarray(lengths)
    except ValueError as error:
        raise ValueError(f"lengths: not an array of whole numbers ({error})") from None
    if array.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), one for each sequence, got {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"lengths must be whole numbers, got dtype {array.dtype}")
    values = array.astype(np.int64)  # what does not fit becomes negative
    i = _kernels.first_outside(values, steps + 1)
    if i >= 0:
        raise ValueError(f"lengths must lie between 0 and the {steps} steps of x, got lengths[{i}] = {array[i]}")
    return values


def read_form(x: Any, lengths: Any = None) -> Batch:
    """Find out in which form a batch comes: (T, F), (B, T, F) with or without `lengths`, or a list of (T_i, F).

    Only shapes are looked at; `Batch.read` checks the rest.

    Raises
    ------
    TypeError, ValueError
        If `x` is none of these forms, or `lengths` does not fit it.
    """
    if isinstance(x, (list, tuple)):
        if lengths is not None:
            raise ValueError("lengths belongs to a padded array; a list of arrays has its lengths already")
        return Batch(Packed(np.array([_list_length(item, i) for i, item in enumerate(x)], np.int64)), "list", 0)
    shape = x.shape if type(x) is np.ndarray else np.shape(x)
    if len(shape) == 2:
        if lengths is None:
            steps = shape[0]
            return _single(steps) if 2 * (steps + 1) <= _SMALL else Batch(dense(1, steps), "single", steps)
        return Batch(Packed(_read_lengths(lengths, 1, shape[0])), "single", shape[0])
    if len(shape) != 3:
        raise ValueError(
            "x must be (batch, time, features), (time, features) or a list of (time_i, features) arrays, "
            f"got an array of shape {shape}"
        )
    if lengths is None:
        batch, steps = shape[0], shape[1]
        if (batch + 1) * (steps + 1) <= _SMALL:
            return _dense_batch(batch, steps)
        return Batch(dense(batch, steps), "padded", steps)
    return Batch(Packed(_read_lengths(lengths, shape[0], shape[1])), "padded", shape[1])


def _list_length(item: Any, i: int) -> int:
    try:
        shape = np.shape(item)
    except ValueError as error:
        raise ValueError(f"x[{i}]: not an array of numbers ({error})") from None
    if len(shape) != 2:
        raise ValueError(f"x[{i}] must be (time, features), got shape {shape}")
    return int(shape[0])
