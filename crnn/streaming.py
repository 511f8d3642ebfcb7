"""Streaming: recurrent layers and language models fed one step at a time, with states and buffers of their own.

A stream shares its model's weights (live) and owns everything that changes: the states of its rows, and output
buffers. Thousands of streams may stand on one model, and many threads may step different streams at once; one stream
belongs to one thread at a time.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from crnn import _kernels
from crnn.arguments import whole_number
from crnn.atomic import atomic_write
from crnn.packed import as_real, finite

if TYPE_CHECKING:
    from crnn.language_model import LanguageModel
    from crnn.layers import Recurrent

__all__ = ["LayerStream", "ModelStream"]

Array = npt.NDArray[Any]
_STEPPERS = 4  # numbers of rows, fewer than all, that a stream is prepared for at a time


class _Stream(_kernels.Steps):
    """States of a fixed number of rows over one kernel stack: what both kinds of stream share."""

    __slots__ = ("_dtype", "_has_c", "_some", "_stack", "batch")

    def __init__(self, stack: Any, states: tuple[str, ...], dtype: np.dtype[Any], batch: int) -> None:
        self.batch = whole_number(batch, "batch")
        super().__init__(stack, self.batch)
        self._stack = stack
        self._has_c = len(states) == 2
        self._dtype = dtype
        self._some: dict[int, _kernels.Stepper] = {}  # for steps of fewer rows, by their number

    def _step_some(self, x: Array, index: npt.NDArray[np.int64]) -> Array:
        n = len(index)
        work = self._some.pop(n, None)
        if work is None:
            work = _kernels.Stepper(self._stack, n)
        self._some[n] = work  # as the last one used
        while len(self._some) > _STEPPERS:
            self._some.pop(next(iter(self._some)), None)
        own = self._stepper.entering
        for all_rows, some in zip(own, work.entering):
            some[...] = all_rows[:, index]
        y = _stepped(work, x)
        for all_rows, some in zip(own, work.entering):
            all_rows[:, index] = some
        return y

    def _read_rows(self, rows: Any) -> npt.NDArray[np.int64]:
        index = np.asarray(rows)
        if index.ndim != 1:
            raise ValueError(f"rows: got shape {index.shape}, wanted a list of row numbers")
        if index.size == 0:
            return np.empty(0, np.int64)
        if index.dtype.kind not in "iu":
            raise TypeError(f"rows: got dtype {index.dtype}, wanted whole numbers")
        wrong = index[(index < 0) | (index >= self.batch)]
        if wrong.size:
            raise ValueError(f"rows: got {int(wrong[0])}, the stream's rows are 0 to {self.batch - 1}")
        if len(np.unique(index)) != len(index):
            raise ValueError("rows: a row occurs more than once, and can take only one step at a time")
        return index.astype(np.int64, copy=False)

    # --------------------------------------------------------------------------------------------------------- state

    @property
    def state(self) -> Any:
        """A copy of all rows' states: (layers, batch, hidden), or a tuple (h, c) of two for an LSTM.

        Assigning copies into the stream: the form that reading gives, which is also what a layer's call returns; None
        is zero. ValueError or TypeError if it does not fit, and nothing has changed then.
        """
        parts = [part.copy() for part in self._stepper.entering]
        return tuple(parts) if self._has_c else parts[0]

    @state.setter
    def state(self, value: Any) -> None:
        own = self._stepper.entering
        if value is None:
            self.reset()
            return
        given = value if isinstance(value, list | tuple) else (value,)
        if self._has_c != isinstance(value, list | tuple) or len(given) != len(own):
            wanted = "a tuple (h, c) of two arrays" if self._has_c else "one array"
            raise TypeError(f"state: got {type(value).__name__}, wanted {wanted}")
        names = ("state[0]", "state[1]") if self._has_c else ("state",)
        arrays = [as_real(part, self._dtype, name) for part, name in zip(given, names)]
        for array, name in zip(arrays, names):
            if array.shape != own[0].shape:
                raise ValueError(f"{name}: got shape {array.shape}, wanted (layers, batch, hidden) = {own[0].shape}")
            finite(array, name)
        for part, array in zip(own, arrays):
            part[...] = array

    def reset(self, rows: Any = None) -> None:
        """Set the states of some rows, or of all, back to zero.

        Parameters
        ----------
        rows
            Row indices, a boolean mask (batch,), or None for all rows.

        Raises
        ------
        ValueError, TypeError
            A row that does not exist or occurs twice, a mask of another length, or something else.
        """
        chosen: Any = slice(None)
        if rows is not None:
            given = np.atleast_1d(np.asarray(rows))
            if given.dtype == np.bool:
                if given.shape != (self.batch,):
                    raise ValueError(f"rows: got a mask of shape {given.shape}, wanted ({self.batch},)")
                chosen = given
            else:
                chosen = self._read_rows(given)
        for part in self._stepper.entering:
            part[:, chosen] = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the states (not the weights) to an `.npz` file, atomically.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        parts: dict[str, Any] = dict(zip("hc", self._stepper.entering))
        with atomic_write(path) as stream:
            np.savez(stream, **parts)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read states that `save` wrote; the stream must have as many rows, over layers of the same shape.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It holds no states, or states of another shape; nothing has changed then.
        """
        wanted = list("hc" if self._has_c else "h")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                names = sorted(stored.files)
                parts = [stored[name] for name in wanted if name in names]
        except (ValueError, EOFError, AttributeError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(f"path: {os.fspath(path)} holds no states of a stream ({error})") from None
        if names != sorted(wanted):
            raise ValueError(f"path: {os.fspath(path)} holds {names}, wanted the states {wanted}")
        self.state = tuple(parts) if self._has_c else parts[0]

    # -------------------------------------------------------------------------------------------------------- copies

    @property
    def _owner(self) -> Any:
        """The layer or the model."""
        raise NotImplementedError

    def copy(self) -> Self:
        """A stream over the same weights with states of its own, equal to this one's now."""
        twin: Self = _restored(type(self), self._owner, self.batch, self._stepper.entering)
        return twin

    __copy__ = copy

    def __reduce__(self) -> Any:
        """For pickle and deepcopy, which copy the layer or the model as well."""
        return _restored, (type(self), self._owner, self.batch, tuple(part.copy() for part in self._stepper.entering))


class LayerStream(_Stream):
    """A layer fed step by step; made by `layer.stream(batch)`.

    Parameters
    ----------
    layer
        A one-directional RNN, LSTM or GRU. Its weights are used in place: change them and the next step sees it.
    batch
        Number of rows, that is, of independent sequences. Every row starts with a zero state.

    Raises
    ------
    ValueError
        The layer is bidirectional, or `batch` is less than 1.
    TypeError
        `batch` is not a whole number.

    Notes
    -----
    In its usual loop a step makes one kernel call and allocates no array. Inputs are not searched for NaN, unlike in
    `layer.step`: a NaN stays in its row until `reset`.

    Examples
    --------
    >>> import numpy as np, crnn
    >>> stream = crnn.GRU(3, 4, rng=0).stream(batch=2)
    >>> stream.step(np.ones((2, 3), np.float32)).shape
    (2, 4)
    >>> stream.reset(rows=[1])
    >>> bool(stream.state[0, 0].any()), bool(stream.state[0, 1].any())
    (True, False)
    """

    __slots__ = ("_shape", "layer")

    def __init__(self, layer: Recurrent, batch: int = 1) -> None:
        if layer.bidirectional:
            raise ValueError("a bidirectional layer cannot stream: its backward direction starts at the end")
        super().__init__(layer._stack, layer._cell.states, layer.dtype, batch)
        self.layer = layer
        self._shape = (self.batch, layer.input_size)

    def _prepared(self, x: Any, rows: Any) -> Array:
        """A step (`step`) whose input the kernels do not take as it is."""
        array = as_real(x, self._dtype, "x")
        if rows is not None:
            index = self._read_rows(rows)
            array = self._read(array, len(index))
            return self._step_some(array, index) if len(index) else np.empty((0, self.layer.hidden_size), self._dtype)
        single = array.ndim == 1 and self.batch == 1
        y = _stepped(self._stepper, self._read(array, self.batch, single))
        return y[0] if single else y

    def _read(self, array: Array, count: int, single: bool = False) -> Array:
        wanted = (count, self._shape[1])
        rows = array[None] if single else array
        if rows.shape != wanted:
            other = f", or ({wanted[1]},) for the one row" if self.batch == 1 else ""
            raise ValueError(f"x: got shape {array.shape}, wanted (rows, features) = {wanted}{other}")
        return np.require(rows, requirements=["C", "A"])

    @property
    def _owner(self) -> Any:
        return self.layer

    def __repr__(self) -> str:
        return f"LayerStream({self.layer!r}, batch={self.batch})"


class ModelStream(_Stream):
    """A language model fed word by word; made by `model.stream(batch)`.

    Parameters
    ----------
    model
        The language model. Its weights are used in place.
    batch
        Number of rows, that is, of independent texts. Every row starts with a zero state.

    Raises
    ------
    ValueError
        `batch` is less than 1.
    TypeError
        `batch` is not a whole number.

    Examples
    --------
    >>> import crnn
    >>> stream = crnn.LanguageModel(7, "lstm", hidden_size=4, rng=0).stream(batch=2)
    >>> stream.step([3, 5]).shape
    (2, 7)
    """

    __slots__ = ("_outputs", "model")

    def __init__(self, model: LanguageModel, batch: int = 1) -> None:
        c = model.configuration
        super().__init__(model._stack, model._cell.states, model.dtype, batch)
        self.model = model
        self._outputs = _kernels.Outputs(self.batch, c.vocabulary_size, model.dtype)

    def step(self, ids: Any, rows: Any = None) -> Array:
        """Read one word in each row and predict the next.

        Parameters
        ----------
        ids
            (batch,) word ids, or one id when there is one row.
        rows
            Indices of the rows that read a word, each at most once; ids is then (len(rows),). None: all rows.

        Returns
        -------
        numpy.ndarray
            (batch, vocabulary) probabilities of the next word; (len(rows), vocabulary) with `rows`; (vocabulary,) for
            one id without a batch axis. The array is the caller's, as in `LayerStream.step`.

        Raises
        ------
        ValueError
            An id outside the vocabulary, the wrong number of ids, or a row that does not exist or occurs twice. No
            state has changed then.
        TypeError
            Ids or rows that are not whole numbers.
        """
        given = np.asarray(ids)
        single = given.ndim == 0 and self.batch == 1 and rows is None
        index = None if rows is None else self._read_rows(rows)
        words = self._read(given[None] if single else given, self.batch if index is None else len(index))
        model = self.model
        x = words if model.configuration.onehot else model._embed(words)
        y = self._outputs.take() if index is None else np.empty((len(words), len(model)), self._dtype)
        if len(words):
            hidden = _stepped(self._stepper, x) if index is None else self._step_some(x, index)
            _kernels.softmax_probabilities(hidden, model._output, model._bias, y)
        return y[0] if single else y

    def _read(self, ids: Array, count: int) -> npt.NDArray[np.int64]:
        if ids.shape != (count,):
            raise ValueError(f"ids: got shape {ids.shape}, wanted ({count},), one id for each row")
        if ids.size and ids.dtype.kind not in "iu":
            raise TypeError(f"ids: got {ids.dtype}, wanted whole numbers")
        size = len(self.model)
        own = ids.astype(np.int64)  # what is checked is what the kernels index with
        wrong = ids[(own < 0) | (own >= size)]
        if wrong.size:
            raise ValueError(f"ids: got {int(wrong[0])}, which is outside the vocabulary of {size} words")
        return own

    @property
    def _owner(self) -> Any:
        return self.model

    def __repr__(self) -> str:
        return f"ModelStream({self.model!r}, batch={self.batch})"


def _stepped(stepper: _kernels.Stepper, x: Array) -> Array:
    """A step whose input has the form that the stepper takes."""
    y = stepper.step(x)
    assert y is not None
    return y


def _restored(kind: Any, owner: Any, batch: int, states: Sequence[Array]) -> Any:
    """Either kind of stream over its layer or model, with these states."""
    stream = kind(owner, batch)
    for own, theirs in zip(stream._stepper.entering, states):
        own[...] = theirs
    return stream
