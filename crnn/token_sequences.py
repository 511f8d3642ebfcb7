"""Checked sequences of word ids: from what a caller passes to what a model computes with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _kernels
from .packed import dense
from .token_batch import Ids, TokenBatch, given_and_own, of_like_length

__all__ = ["as_sequences", "check_batch", "in_batches", "one_batch", "read_ids", "read_pairs"]


def read_ids(values: ArrayLike, words: int, name: str) -> Ids:
    """One sequence of ids, each below `words`: (T,) int64, at least one, in memory of their own.

    Raises
    ------
    TypeError
        Ids that are not integers.
    ValueError
        Not one-dimensional, empty, or an id outside the vocabulary: names the id, its position and the size.
    """
    given, ids = given_and_own(values, name)
    if ids.size == 0:
        raise ValueError(f"{name}: got an empty sequence, wanted at least one id")
    at = _kernels.first_outside(ids, words)
    if at >= 0:
        raise ValueError(f"{name}: {_outside(int(given[at]), words)} at position {at}")
    return ids


def as_sequences(xs: Any, ys: Any) -> tuple[Any, Any]:
    """Two lists of sequences; where a single sequence came (its first element is a number), a list of that one.

    Raises
    ------
    TypeError
        Something that is no sequence.
    ValueError
        One sequence on one side and several on the other.
    """
    for name, value in (("xs", xs), ("ys", ys)):
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
            raise TypeError(f"{name}: got {type(value).__name__}, wanted sequences of ids")
    single = [len(value) > 0 and _is_scalar(value[0]) for value in (xs, ys)]
    if single == [True, True]:
        return [xs], [ys]
    if any(single) and len(xs) and len(ys):
        raise ValueError(f"{'ys' if single[0] else 'xs'}: got several sequences, but one on the other side")
    return ([xs], [ys]) if any(single) else (xs, ys)


def _is_scalar(value: Any) -> bool:
    """Python's and NumPy's scalars, and arrays without axes, which elements of a PyTorch tensor are."""
    return np.isscalar(value) or getattr(value, "ndim", None) == 0


def read_pairs(xs: Sequence[ArrayLike], ys: Sequence[ArrayLike], words: int) -> tuple[list[Ids], list[Ids]]:
    """Inputs and targets, checked one by one and against each other.

    Raises
    ------
    TypeError, ValueError
        As `read_ids`; and ValueError for no sequence at all, or numbers or lengths that do not match.
    """
    if len(xs) != len(ys):
        raise ValueError(f"ys: got {len(ys)} sequences, wanted {len(xs)}, one for each sequence of xs")
    if not len(xs):
        raise ValueError("xs: got no sequence, wanted at least one")
    inputs, targets = [], []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        x_ids, y_ids = read_ids(x, words, f"xs[{i}]"), read_ids(y, words, f"ys[{i}]")
        if len(x_ids) != len(y_ids):
            raise ValueError(f"ys[{i}]: got {len(y_ids)} ids, wanted {len(x_ids)}, one for each id of xs[{i}]")
        inputs.append(x_ids)
        targets.append(y_ids)
    return inputs, targets


def one_batch(inputs: list[Ids], targets: list[Ids]) -> TokenBatch:
    """Checked pairs as one packed batch, in their order."""
    if len(inputs) == 1:
        return TokenBatch.over(inputs[0], targets[0], dense(1, len(inputs[0])))
    return TokenBatch.from_sequences(inputs, targets)


def in_batches(inputs: list[Ids], targets: list[Ids]) -> Iterator[TokenBatch]:
    """Checked pairs in batches of similar length and bounded size; the longest come first."""
    for group in of_like_length(np.array([len(x) for x in inputs], np.int64)):
        yield one_batch([inputs[i] for i in group], [targets[i] for i in group])


def check_batch(batch: TokenBatch, words: int) -> None:
    """The ids of a packed batch must be below `words`, because the kernels index with them.

    Raises
    ------
    ValueError
        Naming the id, the sequence and step where it stands, and the size.
    """
    for name, ids in (("x", batch.x), ("y", batch.y)):
        row = _kernels.first_outside(ids, words)
        if row >= 0:
            sequence, step = int(batch.packed.sequence[row]), int(batch.packed.step[row])
            raise ValueError(f"batch.{name}: {_outside(int(ids[row]), words)} at step {step} of sequence {sequence}")


def _outside(number: int, words: int) -> str:
    return f"got the id {number}, which is outside the vocabulary of {words} words (0 to {words - 1}),"
