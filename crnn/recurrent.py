"""What RNN, LSTM and GRU layers share: checking, the forms of arrays, and the calls into the kernels.

A caller sees NumPy arrays in the form in which they came; the kernels see packed rows (`crnn.packed`). This module
stands between the two. Nothing in it depends on the kind of cell beyond what `crnn.cells` says about it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from crnn import _kernels, cells, config
from crnn.arguments import as_generator, choice, flag, number, whole_number
from crnn.dropout import draw_mask
from crnn.packed import Batch, Packed, as_real, dense, finite, read_form
from crnn.parameters import Parameters, Spec
from crnn.runs import Run, State

if TYPE_CHECKING:
    from crnn.streaming import LayerStream

__all__ = ["Recurrent"]

assert config  # imported for its effect: the kernels start with the default thread count

_States = tuple[np.ndarray | None, np.ndarray | None]  # (h, c) as the kernels take them

_DEFAULTS = {
    "num_layers": 1,
    "nonlinearity": "tanh",
    "reset_after": False,
    "z_weighs": "candidate",
    "bias": True,
    "dropout": 0.0,
    "bidirectional": False,
    "dtype": "float32",
}


def _pass_through(given: _States, results: _States) -> None:
    """Without a single step a state, or a gradient of it, arrives as it came."""
    for source, target in zip(given, results):
        if target is not None:
            target[...] = 0 if source is None else source


class Recurrent:
    """The base of the layers; construct `crnn.RNN`, `crnn.LSTM` or `crnn.GRU`.

    Attributes
    ----------
    kind : str
        ``"rnn"``, ``"lstm"`` or ``"gru"``.
    input_size, hidden_size, num_layers : int
    directions, output_size : int
        2 if bidirectional, else 1; directions*hidden_size.
    bias, bidirectional : bool
    dropout : float
    dtype : numpy.dtype
    """

    kind: ClassVar[str]
    _switches: ClassVar[tuple[str, ...]] = ()  # constructor keywords that only this cell has

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        dtype: Any,
        rng: Any,
        **options: Any,
    ) -> None:
        self._configure(input_size, hidden_size, num_layers, **options)
        generator = as_generator(rng, "rng")
        self._bind(Parameters([Spec(name, shape) for name, shape in self._tensors() if shape], dtype), generator)
        self._initialise(generator)

    @classmethod
    def _over(
        cls,
        params: Parameters,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        rng: Any = None,
        **options: Any,
    ) -> Self:
        """A layer over parameters that exist already, left as they are: loaded or mapped ones.

        Parameters
        ----------
        params : Parameters
            The tensors of `_specs`, in any order.
        rng : numpy.random.Generator, int or None
            For dropout.
        **options
            The public constructor's other keywords, except dtype, which is the parameters'.
        """
        layer = cls.__new__(cls)
        layer._configure(input_size, hidden_size, num_layers, **options)
        layer._bind(params, as_generator(rng, "rng"))
        return layer

    @classmethod
    def _specs(
        cls,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        bidirectional: bool = False,
    ) -> list[Spec]:
        """The tensors that a layer has."""
        shapes = cells.tensors(
            cells.CELLS[cls.kind], input_size, hidden_size, num_layers, bidirectional=bidirectional, bias=bias
        )
        return [Spec(name, shape) for name, shape in shapes if shape]

    def _configure(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        reset_after: bool = False,
        z_weighs: str = "candidate",
    ) -> None:
        """Check and keep the hyper-parameters; those that a cell does not have stay at their defaults."""
        self.input_size = whole_number(input_size, "input_size")
        self.hidden_size = whole_number(hidden_size, "hidden_size")
        self.num_layers = whole_number(num_layers, "num_layers")
        self.bias = flag(bias, "bias")
        self.bidirectional = flag(bidirectional, "bidirectional")
        self.dropout = number(dropout, "dropout")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be a probability of at least 0 and less than 1, got {dropout}")
        self._nonlinearity = choice(nonlinearity, cells.NONLINEARITIES, "nonlinearity")
        self._reset_after = flag(reset_after, "reset_after")
        self._z_weighs = choice(z_weighs, cells.Z_WEIGHS, "z_weighs")
        self.directions = 2 if self.bidirectional else 1
        self.output_size = self.hidden_size * self.directions

    def _bind(self, params: Parameters, rng: np.random.Generator) -> None:
        """Attach parameters and build the kernels' stack over them."""
        self._cell = cells.CELLS[self.kind]
        self._params = params
        self.dtype = params.dtype
        self._rng = rng
        self._names = [name if shape else None for name, shape in self._tensors()]
        self._as_stored = self.bias and list(params) == self._names
        self._stack = _kernels.Stack(
            cells.kernel_name(self._cell, self._nonlinearity),
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.directions,
            self._kernel_list(params),
            reset_after=self._reset_after,
            z_state=self._z_weighs == "state",
        )

    def _tensors(self) -> list[tuple[str, tuple[int, ...] | None]]:
        return list(
            cells.tensors(
                cells.CELLS[self.kind],
                self.input_size,
                self.hidden_size,
                self.num_layers,
                bidirectional=self.bidirectional,
                bias=self.bias,
            )
        )

    def _initialise(self, rng: np.random.Generator) -> None:
        """Draw all parameters in place by PyTorch's rule, in the order of their names."""
        for tensor in self._params.values():
            cells.initialise(tensor, self.hidden_size, rng)

    def _kernel_list(self, params: Parameters) -> list[np.ndarray | None]:
        """Weights or gradients in the kernels' order, None for absent biases."""
        if self._as_stored:  # a third of a microsecond less in every call
            return [*params.values()]
        return [None if name is None else params[name] for name in self._names]

    # ------------------------------------------------------------------------------------------------- public calls

    @property
    def params(self) -> Parameters:
        """Live dict of arrays under PyTorch's names: write into an array or assign to a name, and the layer changes."""
        return self._params

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
        return self._run(x, state, lengths, False)[2:]

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Run:
        """Training: as the call, with dropout between layers, and remembering what `Run.backward` needs.

        Dropout masks are drawn from the layer's own generator, the `rng` that the layer was made with. The run keeps
        copies: `x` and `state` may be overwritten before the backward pass.
        """
        return Run(self, *self._run(x, state, lengths, True))

    def _run(self, x: Any, state: Any, lengths: Any, keep: bool) -> tuple[Batch, Any, Any, Any]:
        batch = read_form(x, lengths)
        rows = batch.read(x, self.input_size, self.dtype, "x")
        geometry = batch.geometry
        h0, c0 = self._read_state(state, geometry, "state")
        masked = self._masked(keep)
        apart = batch.is_dense and self._stack.in_halves(geometry.offsets, geometry.batch_size, masked, keep)
        y, output = batch.results(self.output_size, self.dtype, apart)
        try:
            _, h_n, c_n, tape = self._forward_packed(rows, geometry, h0, c0, keep, self._rng, y)
        except _kernels.NotFinite as found:
            batch.refuse(rows, found.row, "x")
        return batch, tape, output, self._write_state(h_n, c_n, geometry)

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
        h0, c0 = state if type(state) is tuple and len(state) == 2 and self.kind == "lstm" else (state, None)
        stepped = self._stack.step(x_t, h0, c0)
        if stepped is not None:  # all in the kernel's own form; else the long way, which converts or complains
            y, h_n, c_n = stepped
            return y, (h_n if c_n is None else (h_n, c_n))
        if self.bidirectional:
            raise ValueError("a bidirectional layer cannot step: its backward direction starts at the end")
        x = as_real(x_t, self.dtype, "x_t")
        single = x.ndim == 1
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(f"x_t must have shape (batch, {self.input_size}) or ({self.input_size},), got {x.shape}")
        x = finite(x, "x_t")
        rows = x.reshape(1, -1) if single else x
        geometry = dense(len(rows), 1)
        h0, c0 = self._read_state(state, geometry, "state")
        y, h_n, c_n, _ = self._forward_packed(rows, geometry, h0, c0, False)
        return (y[0] if single else y), (h_n if c_n is None else (h_n, c_n))

    def stream(self, batch: int = 1) -> LayerStream:
        """An object that owns the states and buffers of `batch` streams over this layer: see `crnn.streaming`."""
        from crnn.streaming import LayerStream

        return LayerStream(self, batch)

    # ----------------------------------------------------------------------------------------- calls on packed rows

    def _forward_packed(
        self,
        rows: np.ndarray | list[np.ndarray],
        geometry: Packed,
        h0: np.ndarray | None,
        c0: np.ndarray | None,
        keep: bool,
        rng: np.random.Generator | None = None,
        y: np.ndarray | list[np.ndarray] | None = None,
    ) -> tuple[Any, np.ndarray, np.ndarray | None, Any]:
        """Run the stack over packed rows; nothing is checked.

        Parameters
        ----------
        rows : numpy.ndarray or list of numpy.ndarray
            (R, input) of the layer's dtype, C-contiguous; or sequences as `crnn.packed.Batch.read` gives them.
        geometry : Packed
        h0, c0 : numpy.ndarray or None
            (layers*directions, B, H) in sorted order, C-contiguous; None is zero. `c0` only for an LSTM.
        keep : bool
            Record a tape for `_backward_packed`, which copies what it needs of the arguments.
        rng : numpy.random.Generator or None
            Draws the masks of the dropout between layers; None: no dropout. There is none without `keep` either.
        y : numpy.ndarray, list of numpy.ndarray or None
            Where the output goes, as `crnn.packed.Batch.results` gives it; None: packed rows of their own.

        Returns
        -------
        y, h_n, c_n, tape
            `y` or (R, directions*H); states as `h0`, ``c_n`` None unless LSTM; the tape, None without `keep` or
            without rows.
        """
        if y is None:
            y = _kernels.empty((geometry.rows, self.output_size), self.dtype)
        h_n, c_n = self._stack.states(geometry.batch_size)
        if geometry.rows == 0:
            _pass_through((h0, c0), (h_n, c_n))
            return y, h_n, c_n, None
        masks = None
        if rng is not None and self._masked(keep):
            masks = self._masks(geometry.rows, rng)
        tape = self._stack.forward(rows, geometry.offsets, h0, c0, y, h_n, c_n, keep, masks, geometry.order)
        return y, h_n, c_n, tape

    def _backward_packed(
        self,
        tape: Any,
        geometry: Packed,
        dy: np.ndarray | list[np.ndarray] | None,
        dh_n: np.ndarray | None,
        dc_n: np.ndarray | None,
        schedule: tuple[int, int, int],
        grads: list[np.ndarray | None],
        *,
        want_input: bool = True,
        want_state: bool = True,
        accumulate: bool = False,
        dx: np.ndarray | list[np.ndarray] | None = None,
    ) -> tuple[Any, np.ndarray | None, np.ndarray | None]:
        """Back-propagate through a run of `_forward_packed`; nothing is checked.

        Parameters
        ----------
        tape, geometry
            Of the forward run.
        dy, dh_n, dc_n : numpy.ndarray or None
            Gradients of its results, in sorted order, C-contiguous; None is zero. `dy` may be sequences, as `rows`
            of `_forward_packed`.
        schedule : tuple of int
            ``truncation.schedule``, see `crnn.bptt`.
        grads : list of numpy.ndarray or None
            From `_kernel_list`: overwritten, or added to with `accumulate`; None where not wanted.
        want_input, want_state : bool
            Whether to compute the gradients with respect to rows and initial states.
        dx : numpy.ndarray, list of numpy.ndarray or None
            Where the gradient with respect to rows goes, as `crnn.packed.Batch.results` gives it; None: packed rows of
            their own, if wanted.

        Returns
        -------
        dx, dh0, dc0
            ``dx`` is the argument or (R, input). None where not wanted.
        """
        if dx is None and want_input:
            dx = _kernels.empty((geometry.rows, self.input_size), self.dtype)
        dh0, dc0 = self._stack.states(geometry.batch_size) if want_state else (None, None)
        if geometry.rows:
            order = geometry.order
            self._stack.backward(tape, dy, dh_n, dc_n, schedule, dx, dh0, dc0, grads, accumulate, order)
            return dx, dh0, dc0
        _pass_through((dh_n, dc_n), (dh0, dc0))
        for gradient in grads:
            if gradient is not None and not accumulate:
                gradient[...] = 0
        return dx, dh0, dc0

    # ------------------------------------------------------------------------------------------------------- pieces

    def _masked(self, keep: bool) -> bool:
        return keep and self.dropout > 0 and self.num_layers > 1

    def _masks(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Inverted dropout between layers: (layers-1, rows, directions*H) of 0 and 1/(1-p)."""
        return draw_mask(rng, self.dropout, (self.num_layers - 1, rows, self.output_size), self.dtype)

    def _read_state(self, state: Any, geometry: Packed, name: str) -> _States:
        """The caller's state (or a gradient of it), checked, as the kernels want it: sorted (h, c)."""
        if state is None:
            return None, None
        if self.kind != "lstm":
            if isinstance(state, tuple):
                raise TypeError(f"{name} of a {type(self).__name__} must be one array, not a tuple")
            return self._read_part(state, geometry, name), None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            what = f"{len(state)} parts" if isinstance(state, (tuple, list)) else type(state).__name__
            raise TypeError(f"{name} of an LSTM must be a tuple (h, c) of two arrays, not {what}")
        h, c = state
        return (
            None if h is None else self._read_part(h, geometry, f"{name}[0]"),
            None if c is None else self._read_part(c, geometry, f"{name}[1]"),
        )

    def _read_part(self, value: Any, geometry: Packed, name: str) -> np.ndarray:
        array = as_real(value, self.dtype, name)
        wanted = (self.num_layers * self.directions, geometry.batch_size, self.hidden_size)
        if array.shape != wanted:
            raise ValueError(f"{name} must have shape (layers*directions, batch, hidden) = {wanted}, got {array.shape}")
        return geometry.sort(finite(array, name))

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

    def summary(self) -> str:
        """A table of the tensors: name, shape, number of values; and the total with its size in memory."""
        return f"{self!r}\n{self._params.table()}"

    def __repr__(self) -> str:
        changed = [f"{key}={value!r}" for key, value in self.config().items() if _DEFAULTS.get(key, value) != value]
        arguments = ", ".join([str(self.input_size), str(self.hidden_size), *changed])
        return f"<crnn.{type(self).__name__}({arguments}): {self._params.size:,} parameters>"

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # its own generator too: masks drawn here change nothing there

    def __reduce__(self) -> Any:
        own = vars(_restore(type(self), self.config(), self._params, self._rng))
        others = {name: value for name, value in vars(self).items() if name not in own}
        return _restore, (type(self), self.config(), self._params.copy(), self._rng), others or None


def _restore(
    kind: type[Recurrent], options: dict[str, Any], params: Parameters, rng: np.random.Generator
) -> Recurrent:
    return kind._over(params, rng=rng, **{k: v for k, v in options.items() if k != "dtype"})
