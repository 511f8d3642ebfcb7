"""Batches of word ids as packed rows, and how sequences are put into batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .packed import Packed

__all__ = ["EVALUATION_ROWS", "Ids", "TokenBatch", "as_ids", "given_and_own", "of_like_length"]

Ids = NDArray[np.int64]

EVALUATION_ROWS = 4096
"""Rows of an evaluation batch: enough for full-speed products, few enough that states and activations stay small."""


class TokenBatch:
    """One batch of inputs and targets as packed rows.

    The ids are the batch's own: kernels index with them once they have been checked, so nobody may change them after.

    Attributes
    ----------
    x, y
        (R,) int64, the input ids and the ids to predict, one packed row each.
    packed
        Where the steps of the sequences stand among the rows.
    carry
        True when the batch continues the sequences of the batch before it, so that its state carries over.
    tokens
        R, the number of predictions.
    sequences
        How many sequences the batch holds.

    Raises
    ------
    TypeError
        Ids that are not integers.
    ValueError
        x or y that is not one-dimensional, has a negative id, or has not one id for each row.
    """

    __slots__ = ("_x", "_y", "carry", "packed", "sequences", "tokens")

    def __init__(self, x: ArrayLike, y: ArrayLike, packed: Packed, carry: bool = False) -> None:
        self._x, self._y = as_ids(x, "x"), as_ids(y, "y")
        for name, ids in (("x", self._x), ("y", self._y)):
            if len(ids) != packed.rows:
                raise ValueError(f"{name}: got {len(ids)} ids, wanted {packed.rows}, one for each packed row")
        self._place(packed, carry)

    @classmethod
    def over(cls, x: Ids, y: Ids, packed: Packed, carry: bool = False) -> Self:
        """The same over arrays that nobody else can write, without a copy and without a look at them."""
        batch = cls.__new__(cls)
        batch._x, batch._y = x, y
        batch._place(packed, carry)
        return batch

    def _place(self, packed: Packed, carry: bool) -> None:
        self.packed = packed
        self.carry = carry
        self.tokens = packed.rows
        self.sequences = packed.batch_size

    @property
    def x(self) -> Ids:
        return self._x

    @property
    def y(self) -> Ids:
        return self._y

    @classmethod
    def from_sequences(cls, xs: Sequence[ArrayLike], ys: Sequence[ArrayLike]) -> Self:
        """Pack input sequences and their targets, given in any order of lengths.

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            Different numbers of sequences, or an x and a y of different lengths.
        """
        if len(xs) != len(ys):
            raise ValueError(f"ys: got {len(ys)} sequences, wanted one per input sequence ({len(xs)})")
        inputs = [as_ids(x, f"xs[{i}]") for i, x in enumerate(xs)]
        targets = [as_ids(y, f"ys[{i}]") for i, y in enumerate(ys)]
        for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
            if len(x) != len(y):
                raise ValueError(f"ys[{i}]: got {len(y)} ids, wanted {len(x)}, one per id of xs[{i}]")
        packed = Packed([len(x) for x in inputs])
        if not inputs:
            return cls.over(np.empty(0, np.int64), np.empty(0, np.int64), packed)
        return cls.over(packed.pack(inputs), packed.pack(targets), packed)

    def __repr__(self) -> str:
        return f"TokenBatch({self.sequences} sequences, {self.tokens} tokens{', carried' if self.carry else ''})"


def given_and_own(values: Any, name: str) -> tuple[NDArray[Any], Ids]:
    """One sequence of whole numbers: the caller's array, for messages, and a copy as int64.

    The copy is what is to be checked, because the kernels index with it and nobody else can write it; a uint64 beyond
    int64 is negative there.

    Raises
    ------
    TypeError
        Ids that are not integers.
    ValueError
        Not one-dimensional.
    """
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: not one sequence of ids ({error})") from None
    if given.ndim != 1:
        raise ValueError(f"{name}: got an array of shape {given.shape}, wanted one sequence of ids")
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"{name}: got {given.dtype}, wanted integer ids (Vocabulary.encode makes them from words)")
    return given, np.array(given, np.int64)


def as_ids(values: Any, name: str) -> Ids:
    """One sequence of ids, none negative, as an array of its own that cannot be written: (T,) int64.

    Raises
    ------
    TypeError
        Ids that are not integers.
    ValueError
        Not one-dimensional, or a negative id.
    """
    given, ids = given_and_own(values, name)
    if ids.size and ids.min() < 0:
        at = int(ids.argmin())
        raise ValueError(f"{name}: got the id {int(given[at])}, wanted ids from 0 on, below 2**63")
    ids.flags.writeable = False
    return ids


def of_like_length(lengths: NDArray[np.int64], rows: int = EVALUATION_ROWS) -> Iterator[NDArray[np.int64]]:
    """Indices of sequences, in groups of like length and no more than some `rows` steps; the longest come first."""
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        # The longest sequence leads, so its length bounds the group's rows.
        count = max(1, rows // int(lengths[order[first]]))
        yield order[first : first + count]
        first += count
