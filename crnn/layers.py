"""The layers: RNN, LSTM and GRU over dense, padded or ragged batches, with training and streaming calls.

What a caller sees is NumPy arrays in the form in which they came; what the kernels see is packed rows (`crnn.packed`).
`_Recurrent` stands between the two and is shared by all cells. A layer owns its parameters, or works on a part of a
bigger model's (`_Recurrent._over`), in which case the model calls `_forward_packed` and `_backward_packed` directly.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from crnn import _kernels, bptt, cells, config
from crnn.packed import Batch, Packed, as_real, dense, read_form
from crnn.parameters import Parameters, Spec

__all__ = ["GRU", "LAYERS", "LSTM", "RNN", "Backward", "Run"]

assert config  # imported for its effect: the kernels start with the default thread count

State = np.ndarray | tuple[np.ndarray, np.ndarray]
_States = tuple[np.ndarray | None, np.ndarray | None]  # (h, c) as the kernels take them


def _size(value: object, argument: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{argument} must be a whole number, not a bool")
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{argument} must be a whole number, not {type(value).__name__}") from None
    if size < 1:
        raise ValueError(f"{argument} must be at least 1, got {size}")
    return size


def _flag(value: object, argument: str) -> bool:
    if not isinstance(value, (bool, np.bool)):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return bool(value)


def _choice(value: object, choices: Sequence[str], argument: str) -> str:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def _is_finite(array: np.ndarray) -> bool:
    """Whether all values of a C-contiguous array are finite, at the price of one sum."""
    if math.isfinite(_kernels.sum_squares(array.reshape(-1))):
        return True
    return bool(np.isfinite(array).all())  # the sum of squares may overflow where no value does


def _check_finite(rows: np.ndarray, batch: Batch, name: str) -> None:
    if not _is_finite(rows):
        row, column = np.argwhere(~np.isfinite(rows))[0].tolist()
        raise ValueError(f"{name} must be finite, got {rows[row, column]} at {name}{batch.place(row, column)}")


class Backward:
    """Gradients of one backward pass.

    Attributes
    ----------
    input : numpy.ndarray or list of numpy.ndarray
        With respect to x, in the form of x; zero beyond a sequence's length.
    state : numpy.ndarray or tuple of numpy.ndarray
        With respect to the initial state, (layers*directions, batch, hidden); ``(h, c)`` for an LSTM.
    params : Parameters
        With respect to the parameters: a dict with the names and shapes of ``layer.params``.
    """

    __slots__ = ("input", "params", "state")

    def __init__(self, input: Any, state: State, params: Parameters) -> None:  # noqa: A002
        self.input = input
        self.state = state
        self.params = params

    def __repr__(self) -> str:
        return f"Backward(input, state, params of {len(self.params)} tensors)"


class Run:
    """One forward pass that remembers what its backward pass needs.

    Attributes
    ----------
    output : numpy.ndarray or list of numpy.ndarray
        Hidden states of the last layer, in the form of x, with directions*hidden features. Several dense sequences come
        back time-major in memory (not C-contiguous), as in ``torch`` with ``batch_first``.
    state : numpy.ndarray or tuple of numpy.ndarray
        The state after each sequence's last step, (layers*directions, batch, hidden); ``(h, c)`` for an LSTM.
    """

    __slots__ = ("_batch", "_layer", "_tape", "output", "state")

    def __init__(self, layer: _Recurrent, batch: Batch, tape: Any, output: Any, state: State) -> None:
        self._layer = layer
        self._batch = batch
        self._tape = tape
        self.output = output
        self.state = state

    def backward(self, d_output: Any, d_state: Any = None, truncation: bptt.Truncation | None = None) -> Backward:
        """Back-propagate through time.

        The pass uses the layer's parameters as they are now: change them only afterwards. It may be called again, with
        other gradients or another truncation.

        Parameters
        ----------
        d_output : array, list of arrays or None
            Gradient with respect to `output`, in its form; values beyond a sequence's length are ignored. None means
            zero, and then `d_state` is needed.
        d_state : array or tuple of arrays, optional
            Gradient with respect to `state`, in its form. None means zero. For an LSTM either part may be None.
        truncation : crnn.bptt.Full, crnn.bptt.Window or crnn.bptt.Chunk, optional
            How far back a loss reaches; None is `Full`. The final state counts as an output of the last step.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit, holds values that are not finite, both gradients are None, or the layer is
            bidirectional and `truncation` is not `Full`.
        """
        layer, batch = self._layer, self._batch
        schedule = layer._schedule(truncation)
        if d_output is None:
            if d_state is None:
                raise ValueError("d_output and d_state are both None: there is nothing to propagate back")
            dy = None
        else:
            dy = batch.pack(d_output, layer.output_size, layer.dtype, "d_output")
            _check_finite(dy, batch, "d_output")
        dh_n, dc_n = layer._read_state(d_state, batch.geometry, "d_state")
        params = layer.params.like()
        dx, dh0, dc0 = layer._backward_packed(
            self._tape, batch.geometry, dy, dh_n, dc_n, schedule, layer._kernel_list(params)
        )
        return Backward(batch.unpack(dx), layer._write_state(dh0, dc0, batch.geometry), params)

    def __repr__(self) -> str:
        geometry = self._batch.geometry
        return f"Run({geometry.batch_size} sequences, {geometry.rows} steps in all, of {self._layer!r})"


class _Recurrent:
    """What the layers share: construction, checking, the forms of arrays, and the calls into the kernels.

    Attributes
    ----------
    params : Parameters
        Live dict of arrays under PyTorch's names: write into an array and the layer changes.
    input_size, hidden_size, num_layers, output_size, directions : int
    bidirectional, bias : bool
    dropout : float
    dtype : numpy.dtype
    """

    kind: ClassVar[str]

    params: Parameters

    def __init__(self) -> None:
        raise TypeError("construct crnn.RNN, crnn.LSTM or crnn.GRU")

    # ------------------------------------------------------------------------------------------------ construction

    def _configure(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        reset_after: bool = False,
        z_weighs: str = "candidate",
    ) -> None:
        """Check and keep the hyper-parameters; those that a cell does not have keep their defaults."""
        self._cell = cells.CELLS[self.kind]
        self.input_size = _size(input_size, "input_size")
        self.hidden_size = _size(hidden_size, "hidden_size")
        self.num_layers = _size(num_layers, "num_layers")
        self.bias = _flag(bias, "bias")
        self.bidirectional = _flag(bidirectional, "bidirectional")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float, np.integer, np.floating)):
            raise TypeError(f"dropout must be a number, not {type(dropout).__name__}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability of at least 0 and less than 1, got {dropout}")
        self.dropout = float(dropout)
        self._nonlinearity = _choice(nonlinearity, cells.NONLINEARITIES, "nonlinearity")
        self._reset_after = _flag(reset_after, "reset_after")
        self._z_weighs = _choice(z_weighs, cells.Z_WEIGHS, "z_weighs")
        self.directions = 2 if self.bidirectional else 1
        self.output_size = self.hidden_size * self.directions

    def _bind(self, params: Parameters, rng: Any, onehot: bool) -> None:
        """Attach parameters and build the kernels' stack over them."""
        self.params = params
        self.dtype = params.dtype
        self._rng = np.random.default_rng(rng)
        self._onehot = onehot
        self._names = [name if shape else None for name, shape in self._tensors()]
        # One-hot words read a column of weight_ih_l0, which is a row of it as stored.
        weights = self._kernel_list(params)
        if onehot:
            weights[0] = params.storage("weight_ih_l0")
        self._stack = _kernels.Stack(
            cells.kernel_name(self._cell, self._nonlinearity),
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.directions,
            weights,
            reset_after=self._reset_after,
            z_state=self._z_weighs == "state",
            onehot=onehot,
        )

    def _own(self, dtype: Any, rng: Any) -> None:
        """Make this a layer of its own: parameters of its own, drawn from `rng`."""
        generator = np.random.default_rng(rng)
        params = Parameters([Spec(name, shape) for name, shape in self._tensors() if shape], dtype)
        self._bind(params, generator, onehot=False)
        self._initialise(generator)

    def _tensors(self) -> list[tuple[str, tuple[int, ...] | None]]:
        return list(
            cells.tensors(
                self._cell,
                self.input_size,
                self.hidden_size,
                self.num_layers,
                bidirectional=self.bidirectional,
                bias=self.bias,
            )
        )

    @classmethod
    def _specs(
        cls,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        prefix: str = "",
        onehot: bool = False,
    ) -> list[Spec]:
        """The tensors that a layer inside a bigger model needs, named with `prefix`, as neighbours in this order.

        With `onehot` the first layer's ``weight_ih_l0`` is stored transposed: a word's column is one contiguous row.
        """
        shapes = cells.tensors(
            cells.CELLS[cls.kind], input_size, hidden_size, num_layers, bidirectional=bidirectional, bias=bias
        )
        return [
            Spec(prefix + name, shape, transposed=onehot and name == "weight_ih_l0") for name, shape in shapes if shape
        ]

    @classmethod
    def _over(
        cls,
        params: Parameters,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        rng: Any = None,
        onehot: bool = False,
        **options: Any,
    ) -> Self:
        """A layer over a part of a bigger model's parameters.

        Parameters
        ----------
        params : Parameters
            ``model_params.part("rnn.")``: the tensors of `_specs`, without the prefix. Left as they are; call
            `_initialise` to draw them.
        onehot : bool
            Input rows are ids (int64, in range) instead of vectors; bidirectional layers have no such form.
        rng : numpy.random.Generator, int or None
            For dropout.
        **options
            The public constructor's remaining keywords, except dtype, which is the parameters'.
        """
        layer = cls.__new__(cls)
        layer._configure(input_size, hidden_size, num_layers, **options)
        if onehot and layer.bidirectional:
            raise ValueError("a bidirectional layer cannot take one-hot ids")
        layer._bind(params, rng, onehot)
        return layer

    def _initialise(self, rng: np.random.Generator) -> None:
        """Draw all parameters in place by PyTorch's rule, in the order of their names."""
        for tensor in self.params.values():
            cells.initialise(tensor, self.hidden_size, rng)

    def _kernel_list(self, params: Parameters) -> list[np.ndarray | None]:
        """Weights or gradients in the kernels' order, None for absent biases and for a one-hot layer's weight_ih_l0.

        Gradients of one-hot input weights are row-sparse: `_backward_packed` returns a row per token instead.
        """
        arrays = [None if name is None else params[name] for name in self._names]
        if self._onehot:
            arrays[0] = None
        return arrays

    # ------------------------------------------------------------------------------------------- calls on packed rows

    def _forward_packed(
        self,
        rows: np.ndarray,
        geometry: Packed,
        h0: np.ndarray | None,
        c0: np.ndarray | None,
        keep: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Any]:
        """Run the stack over packed rows; nothing is checked or copied.

        Parameters
        ----------
        rows : numpy.ndarray
            (R, input) of the layer's dtype, or (R,) int64 ids for a one-hot layer; C-contiguous. With `keep` it must
            not change before the backward pass.
        geometry : Packed
        h0, c0 : numpy.ndarray or None
            (layers*directions, B, H) in sorted order, C-contiguous; None is zero. `c0` only for an LSTM.
        keep : bool
            Record a tape for `_backward_packed`. Without it there is no dropout.
        rng : numpy.random.Generator or None
            Draws the dropout masks; the layer's own by default.

        Returns
        -------
        y, h_n, c_n, tape
            (R, directions*H); states as `h0`, ``c_n`` None unless LSTM; the tape, None without `keep` or without rows.
        """
        dtype = self.dtype
        state_shape = (self.num_layers * self.directions, geometry.batch_size, self.hidden_size)
        y = np.empty((geometry.rows, self.output_size), dtype)
        h_n = np.empty(state_shape, dtype)
        c_n = np.empty(state_shape, dtype) if self.kind == "lstm" else None
        if geometry.rows == 0:  # no step is taken: the states pass through
            for final, initial in ((h_n, h0), (c_n, c0)):
                if final is not None:
                    final[...] = 0 if initial is None else initial
            return y, h_n, c_n, None
        masks = None
        if keep and self.dropout and self.num_layers > 1:
            masks = self._masks(geometry.rows, self._rng if rng is None else rng)
        tape = self._stack.forward(rows, geometry.offsets, h0, c0, y, h_n, c_n, keep, masks)
        return y, h_n, c_n, tape

    def _backward_packed(
        self,
        tape: Any,
        geometry: Packed,
        dy: np.ndarray | None,
        dh_n: np.ndarray | None,
        dc_n: np.ndarray | None,
        schedule: tuple[int, int, int],
        grads: list[np.ndarray | None],
        *,
        want_input: bool = True,
        want_state: bool = True,
        accumulate: bool = False,
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Back-propagate through a run of `_forward_packed`; nothing is checked.

        Parameters
        ----------
        tape, geometry
            Of the forward run.
        dy, dh_n, dc_n : numpy.ndarray or None
            Gradients of its results, in sorted order, C-contiguous; None is zero.
        schedule : tuple of int
            ``truncation.schedule``, see `crnn.bptt`.
        grads : list of numpy.ndarray or None
            From `_kernel_list`: overwritten, or added to with `accumulate`; None where not wanted.
        want_input, want_state : bool
            Whether to compute the gradients with respect to rows and initial states.

        Returns
        -------
        dx, dh0, dc0
            ``dx`` is (R, input), or (R, G*H) for a one-hot layer: the row that each token adds to the stored
            ``weight_ih_l0``. None where not wanted.
        """
        dtype, lstm = self.dtype, self.kind == "lstm"
        state_shape = (self.num_layers * self.directions, geometry.batch_size, self.hidden_size)
        width = len(self._cell.gates) * self.hidden_size if self._onehot else self.input_size
        dx = np.empty((geometry.rows, width), dtype) if want_input else None
        dh0 = np.empty(state_shape, dtype) if want_state else None
        dc0 = np.empty(state_shape, dtype) if want_state and lstm else None
        if geometry.rows == 0:
            for initial, final in ((dh0, dh_n), (dc0, dc_n)):
                if initial is not None:
                    initial[...] = 0 if final is None else final
            if not accumulate:
                for array in grads:
                    if array is not None:
                        array[...] = 0
            return dx, dh0, dc0
        self._stack.backward(tape, dy, dh_n, dc_n, schedule, dx, dh0, dc0, grads, accumulate)
        return dx, dh0, dc0

    def _masks(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Inverted dropout between layers: (layers-1, rows, directions*H) of 0 and 1/(1-p)."""
        shape = (self.num_layers - 1, rows, self.output_size)
        keep = rng.random(shape, np.float32) >= self.dropout  # float32 draws for both dtypes: the same masks
        return keep * self.dtype.type(1.0 / (1.0 - self.dropout))

    def _schedule(self, truncation: bptt.Truncation | None) -> tuple[int, int, int]:
        scheme = bptt.resolve(truncation)
        if self.bidirectional and not isinstance(scheme, bptt.Full):
            raise ValueError(
                f"truncation {scheme} has no agreed meaning in a bidirectional layer, whose backward direction runs "
                "against time: use Full()"
            )
        return scheme.schedule

    # ------------------------------------------------------------------------------------------------ public calls

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Inference: remembers nothing, applies no dropout, may be called from many threads at once.

        Parameters
        ----------
        x : array or list of arrays
            ``(batch, time, features)``, ``(time, features)`` for one sequence, or a list of ``(time_i, features)``. Any
            real dtype is converted to the layer's; any memory layout will do (time-major memory needs no copy). Time
            and batch may be 0.
        state : array or tuple of arrays, optional
            Initial state (layers*directions, batch, hidden), batch 1 for one sequence; ``(h, c)`` for an LSTM, either
            of which may be None. None is zero.
        lengths : array_like of int, optional
            (batch,) lengths of the sequences in a padded `x`, in any order, 0 allowed. What lies beyond is ignored.

        Returns
        -------
        y : array or list of arrays
            In the form of `x`, with directions*hidden features; zero beyond a sequence's length.
        state : array or tuple of arrays
            After each sequence's last step, in the form of `state`.

        Raises
        ------
        TypeError
            If an argument is of the wrong type or holds something else than real numbers.
        ValueError
            If shapes do not fit, or a value is NaN or infinite.
        """
        _, _, output, final = self._run(x, state, lengths, False)
        return output, final

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Run:
        """Training: as the call, with dropout between layers, and remembering what `Run.backward` needs.

        Dropout masks are drawn from the layer's own generator, the `rng` that the layer was made with.
        """
        return Run(self, *self._run(x, state, lengths, True))

    def _run(self, x: Any, state: Any, lengths: Any, keep: bool) -> tuple[Batch, Any, Any, Any]:
        batch = read_form(x, lengths)
        # The tape refers to the rows until the backward pass, and x belongs to the caller.
        rows = batch.pack(x, self.input_size, self.dtype, "x", own=keep)
        _check_finite(rows, batch, "x")
        geometry = batch.geometry
        h0, c0 = self._read_state(state, geometry, "state", own=keep)
        y, h_n, c_n, tape = self._forward_packed(rows, geometry, h0, c0, keep)
        return batch, tape, batch.unpack(y), self._write_state(h_n, c_n, geometry)

    def step(self, x_t: Any, state: Any = None) -> tuple[np.ndarray, Any]:
        """One time step, for streaming: feed the returned state to the next call.

        Parameters
        ----------
        x_t : array
            ``(batch, features)``, or ``(features,)`` for one sequence.
        state : array or tuple of arrays, optional
            As in the call; None is zero.

        Returns
        -------
        y_t : numpy.ndarray
            ``(batch, hidden)`` or ``(hidden,)``.
        state : array or tuple of arrays

        Raises
        ------
        TypeError, ValueError
            As the call; and ValueError for a bidirectional layer, which needs the whole sequence.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional layer cannot step: its backward direction starts at the end")
        x = as_real(x_t, self.dtype, "x_t")
        single = x.ndim == 1
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(f"x_t must have shape (batch, {self.input_size}) or ({self.input_size},), got {x.shape}")
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned):
            x = np.array(x, order="C")
        if not _is_finite(x):
            at = np.argwhere(~np.isfinite(x))[0]
            raise ValueError(f"x_t must be finite, got {x[tuple(at)]} at x_t{at.tolist()}")
        geometry = dense(1 if single else x.shape[0], 1)
        h0, c0 = self._read_state(state, geometry, "state")
        y, h_n, c_n, _ = self._forward_packed(x.reshape(1, -1) if single else x, geometry, h0, c0, False)
        return (y[0] if single else y), (h_n if c_n is None else (h_n, c_n))

    # --------------------------------------------------------------------------------------------------- states

    def _read_state(self, state: Any, geometry: Packed, name: str, *, own: bool = False) -> _States:
        """The caller's state (or a gradient of it), checked, as the kernels want it: sorted (h, c)."""
        if state is None:
            return None, None
        if self.kind != "lstm":
            if isinstance(state, tuple):
                raise TypeError(f"{name} of a {type(self).__name__} must be one array, not a tuple")
            return self._read_part(state, geometry, name, own), None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            what = f"{len(state)} parts" if isinstance(state, (tuple, list)) else type(state).__name__
            raise TypeError(f"{name} of an LSTM must be a tuple (h, c) of two arrays, not {what}")
        h, c = state
        return (
            None if h is None else self._read_part(h, geometry, f"{name}[0]", own),
            None if c is None else self._read_part(c, geometry, f"{name}[1]", own),
        )

    def _read_part(self, value: Any, geometry: Packed, name: str, own: bool) -> np.ndarray:
        array = as_real(value, self.dtype, name)
        wanted = (self.num_layers * self.directions, geometry.batch_size, self.hidden_size)
        if array.shape != wanted:
            raise ValueError(f"{name} must have shape (layers*directions, batch, hidden) = {wanted}, got {array.shape}")
        array = geometry.sort(array)
        flags = array.flags
        if own or not (flags.c_contiguous and flags.aligned):
            array = np.array(array, order="C")
        if not _is_finite(array):
            raise ValueError(f"{name} must be finite, but holds NaN or infinite values")
        return array

    def _write_state(self, h: np.ndarray, c: np.ndarray | None, geometry: Packed) -> State:
        h = geometry.unsort(h)
        return h if c is None else (h, geometry.unsort(c))

    # ---------------------------------------------------------------------------------------------- looks and copies

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON types, without rng."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            **{name: getattr(self, name) for name in self._switches},
            "bias": self.bias,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
            "dtype": self.dtype.name,
        }

    _switches: ClassVar[tuple[str, ...]] = ()  # constructor keywords that only this cell has

    def __repr__(self) -> str:
        defaults = {
            "num_layers": 1,
            "nonlinearity": "tanh",
            "reset_after": False,
            "z_weighs": "candidate",
            "bias": True,
            "dropout": 0.0,
            "bidirectional": False,
            "dtype": "float32",
        }
        settings = [f"{key}={value!r}" for key, value in self.config().items() if defaults.get(key, value) != value]
        arguments = ", ".join([str(self.input_size), str(self.hidden_size), *settings])
        return f"<crnn.{type(self).__name__}({arguments}): {self.params.size:,} parameters>"

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.config(), self.params.copy(), self._rng, self._onehot)


def _restore(kind: type[_Recurrent], options: dict[str, Any], params: Parameters, rng: Any, onehot: bool) -> _Recurrent:
    return kind._over(params, rng=rng, onehot=onehot, **{k: v for k, v in options.items() if k != "dtype"})


class RNN(_Recurrent):
    """Vanilla recurrent network, ``h_t = f(U x_t + W h_{t-1} + b)``.

    Parameters
    ----------
    input_size : int
        Features per step.
    hidden_size : int
        H, units per layer and direction.
    num_layers : int
        Layers on top of each other.
    nonlinearity : {"tanh", "sigmoid", "relu"}
        f.
    bias : bool
        Whether there are bias_ih and bias_hh, which add up.
    dropout : float
        Probability with which a value between two layers is dropped in `forward`; no effect with one layer.
    bidirectional : bool
        Add a second direction that runs from the end; outputs are concatenated.
    dtype : numpy dtype
        float32 or float64.
    rng : numpy.random.Generator, int or None
        Draws the parameters from U(-1/sqrt(H), 1/sqrt(H)), and later the dropout masks.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those.
    """

    kind = "rnn"
    _switches = ("nonlinearity",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self._configure(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            nonlinearity=nonlinearity,
        )
        self._own(dtype, rng)

    @property
    def nonlinearity(self) -> str:
        """The cell's function f."""
        return self._nonlinearity


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; no peepholes).

    ``c_t = f_t * c_{t-1} + i_t * g_t``, ``h_t = o_t * tanh(c_t)``. States are tuples ``(h, c)``; the gates stand in
    the order i, f, g, o. Parameters are those of `RNN`, without nonlinearity.
    """

    kind = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self._configure(input_size, hidden_size, num_layers, bias=bias, dropout=dropout, bidirectional=bidirectional)
        self._own(dtype, rng)


class GRU(_Recurrent):
    """Gated recurrent unit, in all four forms in use. The gates stand in the order r, z, n.

    Parameters
    ----------
    reset_after : bool
        False (Cho et al. 2014): the reset gate multiplies the state before the product, ``W_n (r * h)``. True (PyTorch,
        Keras 3, cuDNN): it multiplies the product, ``r * (W_n h + b_hn)``.
    z_weighs : {"candidate", "state"}
        ``"candidate"`` (Chung et al. 2014): ``h_t = (1 - z) * h_{t-1} + z * n``. ``"state"`` (PyTorch, Keras, ONNX):
        ``h_t = z * h_{t-1} + (1 - z) * n``.

    The other parameters are those of `RNN`, without nonlinearity.
    """

    kind = "gru"
    _switches = ("reset_after", "z_weighs")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = False,
        z_weighs: str = "candidate",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self._configure(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            reset_after=reset_after,
            z_weighs=z_weighs,
        )
        self._own(dtype, rng)

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate multiplies the recurrent product instead of the state."""
        return self._reset_after

    @property
    def z_weighs(self) -> str:
        """What the update gate z weighs: the candidate or the old state."""
        return self._z_weighs


LAYERS: dict[str, type[_Recurrent]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
