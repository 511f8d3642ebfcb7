"""From word ids to batches of packed rows: `Sentences` (one sequence each) and `Stream` (one long text).

Both hand out `TokenBatch` objects, know their place within an epoch, and can be saved and resumed there.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import as_generator, flag, whole_number
from .bptt import Chunk, Truncation
from .packed import Packed, dense
from .token_batch import EVALUATION_ROWS, TokenBatch, as_ids, of_like_length

__all__ = ["Sentences", "Stream", "TokenBatch", "TokenData", "generator_state"]

class TokenData(ABC):
    """What the trainer needs of training data.

    Attributes
    ----------
    tokens
        Predictions per epoch.
    sequences
        Sequences per epoch (for a stream: parallel streams).
    largest_id
        The largest id, so that a vocabulary's size can be checked once and not in every step.
    position
        Batches already handed out in the running epoch; 0 between epochs.
    rng
        The generator that shuffles, or None.
    """

    tokens: int
    sequences: int
    largest_id: int
    position: int
    rng: np.random.Generator | None

    @abstractmethod
    def batches(self, truncation: Truncation | None = None) -> Iterator[TokenBatch]:
        """The rest of the running epoch (all of it at position 0). Exhausting the iterator ends the epoch."""

    @abstractmethod
    def steps_per_epoch(self, truncation: Truncation | None = None) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def evaluation_batches(self) -> Iterator[TokenBatch]:
        """Every token once, in batches of any convenient size; the epoch's position is not touched."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What two data sets must agree on for a run to continue on the other, as JSON types."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The place within the epoch and the generator, as JSON types."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place that `state_dict` described."""


class Sentences(TokenData):
    """Independent sequences of ids: x = ids[:-1], y = ids[1:] of each.

    Parameters
    ----------
    sequences_of_ids
        Sequences of integer ids, 1-D each. Those with fewer than two ids have nothing to predict; they are left out
        and counted in `left_out`.
    batch_size
        Sequences per batch. Batches are packed rows: no padding is stored or computed, whatever the lengths.
    shuffle
        Draw a new order every epoch.
    rng
        Seed or generator for `shuffle`.
    bucket
        Put sequences of like length into one batch. Every time step then keeps the whole batch busy. With `shuffle`
        equal lengths are mixed and the batches come in random order.

    Raises
    ------
    TypeError
        Ids that are not integers.
    ValueError
        No sequence with two ids, a negative id, or a batch size below 1.
    """

    def __init__(
        self,
        sequences_of_ids: Iterable[ArrayLike],
        batch_size: int = 1,
        shuffle: bool = False,
        rng: np.random.Generator | int | None = None,
        bucket: bool = False,
    ) -> None:
        self.batch_size = whole_number(batch_size, "batch_size")
        self.shuffle = flag(shuffle, "shuffle")
        self.bucket = flag(bucket, "bucket")
        self.rng = as_generator(rng, "rng") if shuffle else None
        kept = []
        self.left_out = 0
        for i, sequence in enumerate(sequences_of_ids):
            ids = as_ids(sequence, f"sequences_of_ids[{i}]")
            if len(ids) < 2:
                self.left_out += 1
            else:
                kept.append(ids)
        if not kept:
            raise ValueError(
                "sequences_of_ids: got no sequence of at least two ids, so there is nothing to predict"
                + (f" ({self.left_out} shorter ones)" if self.left_out else "")
            )
        counts = np.array([len(ids) for ids in kept], np.int64)
        self._ids = np.concatenate(kept)
        self._ids.flags.writeable = False
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self._lengths = counts - 1
        self.sequences = len(kept)
        self.largest_id = int(self._ids.max())
        self.tokens = int(self._lengths.sum())
        self.position = 0
        self._fixed: list[TokenBatch] | None = None
        self._evaluation: list[TokenBatch] | None = None
        self._order: list[NDArray[np.int64]] | NDArray[np.int64] | None = None
        self._epoch_rng: dict[str, Any] | None = None

    def __repr__(self) -> str:
        options = [f"batch_size={self.batch_size}"]
        options += [name for name in ("shuffle", "bucket") if getattr(self, name)]
        options += [f"left_out={self.left_out}"] if self.left_out else []
        return f"Sentences({self.sequences} sequences, {self.tokens} tokens, {', '.join(options)})"

    def __len__(self) -> int:
        return self.steps_per_epoch()

    def steps_per_epoch(self, truncation: Truncation | None = None) -> int:
        return -(-self.sequences // self.batch_size)

    def batches(self, truncation: Truncation | None = None) -> Iterator[TokenBatch]:
        if self.position == 0:
            self._begin_epoch()
        if self._membership_is_fixed:
            fixed = self._fixed_batches()
            order = self._order
            count = len(fixed)
            while self.position < count:
                index = self.position if order is None else order[self.position]
                self.position += 1
                yield fixed[index]
        else:
            groups = self._order
            assert groups is not None
            while self.position < len(groups):
                group = groups[self.position]
                self.position += 1
                yield self._pack(group)
        self.position = 0

    def evaluation_batches(self) -> Iterator[TokenBatch]:
        if self._evaluation is None:
            self._evaluation = [self._pack(group) for group in of_like_length(self._lengths)]
        return iter(self._evaluation)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "Sentences",
            "sequences": self.sequences,
            "tokens": self.tokens,
            "crc32": zlib.crc32(self._lengths.data, zlib.crc32(self._ids.data)),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "bucket": self.bucket,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "rng": None if self.rng is None else generator_state(self.rng),
            "epoch_rng": self._epoch_rng if self.position else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_position(state, self.steps_per_epoch())
        if self.rng is not None:
            if state["epoch_rng"] is not None:
                self.rng.bit_generator.state = state["epoch_rng"]
                self._begin_epoch()
            self.rng.bit_generator.state = state["rng"]
        elif state["position"]:
            self._begin_epoch()
        self.position = state["position"]

    @property
    def _membership_is_fixed(self) -> bool:
        """Whether every epoch has the same batches, only their order may change."""
        return self.batch_size == 1 or self.rng is None

    def _fixed_batches(self) -> list[TokenBatch]:
        if self._fixed is None:
            self._fixed = [self._pack(group) for group in self._groups(np.arange(self.sequences))]
        return self._fixed

    def _groups(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut an order of sequences into batches, by like length where that is wanted."""
        if self.bucket:
            order = order[np.argsort(-self._lengths[order], kind="stable")]
        return [order[i : i + self.batch_size] for i in range(0, self.sequences, self.batch_size)]

    def _begin_epoch(self) -> None:
        """Draw the order of the epoch that starts now."""
        self._order = None
        if self.rng is not None:
            self._epoch_rng = generator_state(self.rng)
            order = self.rng.permutation(self.sequences)
            if self._membership_is_fixed:
                self._order = order
            else:
                groups = self._groups(order)
                if self.bucket:
                    groups = [groups[i] for i in self.rng.permutation(len(groups))]
                self._order = groups

    def _pack(self, group: NDArray[np.int64]) -> TokenBatch:
        if len(group) == 1:
            start, length = int(self._starts[group[0]]), int(self._lengths[group[0]])
            ids = self._ids[start : start + length + 1]
            return TokenBatch.over(ids[:-1], ids[1:], dense(1, length))
        packed = Packed(self._lengths[group])
        rows = self._starts[group][packed.sequence] + packed.step
        return TokenBatch.over(self._ids[rows], self._ids[rows + 1], packed)


class Stream(TokenData):
    """One text cut into contiguous streams that run side by side, their state carried from step to step.

    Stream i holds the predictions i * n ... (i + 1) * n - 1 of the text's len(ids) - 1, n = (len(ids) - 1) //
    batch_size; the fewer than `batch_size` predictions that are left over at the end of the text are not used.

    Parameters
    ----------
    ids
        The whole text as integer ids, 1-D.
    batch_size
        Number of parallel streams (Zaremba: 20).
    steps
        Time steps per training step. By default k1 of the `Chunk` truncation that the trainer was given. Set it to
        train with another truncation: the gradient is then cut by that scheme within each training step and always
        at its edge.

    Raises
    ------
    TypeError
        Ids that are not integers.
    ValueError
        Fewer than batch_size + 1 ids, a negative id, or a batch size or step count below 1.
    """

    rng = None

    def __init__(self, ids: ArrayLike, batch_size: int = 20, steps: int | None = None) -> None:
        self.batch_size = whole_number(batch_size, "batch_size")
        self.steps = None if steps is None else whole_number(steps, "steps")
        text = as_ids(ids, "ids")
        length = (len(text) - 1) // self.batch_size
        if length < 1:
            raise ValueError(
                f"ids: got {len(text)} ids for {self.batch_size} streams, wanted at least {self.batch_size + 1}"
            )
        self.sequences = self.batch_size
        self.largest_id = int(text.max())
        self.tokens = length * self.batch_size
        self.position = 0
        self.length = length
        # Time-major, so that any span of time steps is one contiguous run of packed rows.
        self._x = np.ascontiguousarray(text[: self.tokens].reshape(self.batch_size, length).T).reshape(-1)
        self._y = np.ascontiguousarray(text[1 : self.tokens + 1].reshape(self.batch_size, length).T).reshape(-1)

    def __repr__(self) -> str:
        steps = "" if self.steps is None else f", steps={self.steps}"
        return f"Stream({self.tokens} tokens, batch_size={self.batch_size}{steps})"

    def steps_per_epoch(self, truncation: Truncation | None = None) -> int:
        return -(-self.length // self._span(truncation))

    def batches(self, truncation: Truncation | None = None) -> Iterator[TokenBatch]:
        span = self._span(truncation)
        count = -(-self.length // span)
        while self.position < count:
            first = self.position * span
            self.position += 1
            yield self._cut(first, min(first + span, self.length))
        self.position = 0

    def evaluation_batches(self) -> Iterator[TokenBatch]:
        span = max(1, EVALUATION_ROWS // self.batch_size)
        for first in range(0, self.length, span):
            yield self._cut(first, min(first + span, self.length))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "Stream",
            "sequences": self.sequences,
            "tokens": self.tokens,
            "crc32": zlib.crc32(self._y.data, zlib.crc32(self._x.data)),
            "batch_size": self.batch_size,
            "steps": self.steps,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "rng": None, "epoch_rng": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_position(state, self.length)
        self.position = state["position"]

    def _span(self, truncation: Truncation | None) -> int:
        if self.steps is not None:
            return self.steps
        if not isinstance(truncation, Chunk):
            raise ValueError(
                f"truncation: got {truncation!r} for a Stream, wanted Chunk(k1), which says how many time steps one "
                "training step takes; or give the Stream its own steps=..."
            )
        if truncation.k2 != truncation.k1:
            raise ValueError(
                f"truncation: {truncation!r} reaches back {truncation.k2} steps from chunks of {truncation.k1}, but a "
                f"training step of a Stream holds {truncation.k1} time steps; use Stream(..., steps=n), n a multiple "
                f"of {truncation.k1}, which cuts the gradient at every n-th step only"
            )
        return truncation.k1

    def _cut(self, first: int, last: int) -> TokenBatch:
        rows = slice(first * self.batch_size, last * self.batch_size)
        return TokenBatch.over(self._x[rows], self._y[rows], dense(self.batch_size, last - first), carry=first > 0)


def check_data(data: object, words: int, name: str) -> None:
    """Training data must be a data set whose ids are all below `words`.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(data, TokenData):
        raise TypeError(f"{name}: got {type(data).__name__}, wanted crnn.data.Sentences(...) or crnn.data.Stream(...)")
    if data.largest_id >= words:
        raise ValueError(
            f"{name}: got the id {data.largest_id}, but the model's vocabulary has {words} words (ids 0 to {words - 1})"
        )


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of a generator as JSON types, to be assigned to `rng.bit_generator.state` again."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    return dict(plain(rng.bit_generator.state))


def _check_position(state: dict[str, Any], count: int) -> None:
    if set(state) != {"position", "rng", "epoch_rng"}:
        raise ValueError(f"state of the data: got the keys {sorted(state)}, wanted position, rng and epoch_rng")
    if not 0 <= state["position"] <= count:
        raise ValueError(f"state of the data: position {state['position']} is outside an epoch of {count} batches")
