"""The network of a language model on packed batches: forward, gradients, plain SGD steps, evaluation.

`WordNetwork` is what the trainer drives; `crnn.language_model.LanguageModel` is a network with a vocabulary and the
calls that people use. Ids come checked or are checked here once per batch; states and gradients follow
`crnn.layers`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _kernels, config
from .arguments import as_generator
from .bptt import Truncation, resolve
from .cells import CELLS, draw_uniform, initialise, kernel_name, tensors
from .dropout import draw_mask
from .model_configuration import Configuration
from .packed import Packed, dense
from .parameters import Parameters, Spec
from .token_batch import TokenBatch
from .token_sequences import check_batch

__all__ = ["GradientSet", "State", "WordNetwork"]

assert config  # imported for its effect: the kernels start with the default thread count

Array = NDArray[Any]
Ids = NDArray[np.int64]
State = Array | tuple[Array, Array]
"""(layers, sequences, hidden), or a pair (h, c) of them for the LSTM; sequences in the caller's order."""

_EMBEDDING_BOUND = 0.1


class GradientSet:
    """The gradients of one model, allocated once and used for many steps.

    Attributes
    ----------
    dense : Parameters
        A twin of the model's parameters. The tensors named in `sparse` are never touched in it (untouched zero pages
        cost no memory).
    sparse : dict
        Name -> (ids, rows): sorted unique word ids (n,) int64, and the gradient rows (n, width) of
        ``dense.storage(name)``; every other row's gradient is zero. One-hot ``rnn.weight_ih_l0`` or an untied
        ``embedding.weight``; empty with tied weights.
    """

    __slots__ = ("dense", "sparse")

    def __init__(self, parameters: Parameters) -> None:
        self.dense = parameters.like()
        self.sparse: dict[str, tuple[Ids, Array]] = {}


class _TiedView(Mapping[str, Array]):
    """Parameters with ``embedding.weight`` as a second name of ``output.weight``'s memory."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    @staticmethod
    def _owner(name: str) -> str:
        return "output.weight" if name == "embedding.weight" else name

    def __getitem__(self, name: str) -> Array:
        return self._parameters[self._owner(name)]

    def __setitem__(self, name: str, value: Array) -> None:
        self._parameters[self._owner(name)] = value

    def update(self, *tensors: Any, **named: Any) -> None:
        """As `Parameters.update`; of two values for the shared matrix the later one counts."""
        self._parameters.update({self._owner(name): value for name, value in dict(*tensors, **named).items()})

    def __iter__(self) -> Iterator[str]:
        return iter(("embedding.weight", *self._parameters))

    def __len__(self) -> int:
        return len(self._parameters) + 1

    def __repr__(self) -> str:
        return f"{self._parameters!r}\n  embedding.weight: tied to output.weight"


class WordNetwork:
    """Words to probabilities: embedding or one-hot words, recurrent layers, softmax output.

    Parameters
    ----------
    configuration : Configuration
    rng : numpy.random.Generator
        Draws the dropout masks. The parameters are zero until `initialise` draws them or the caller fills them.
    weights : numpy.ndarray, optional
        A buffer for `crnn.parameters.Parameters` that holds them already, such as a mapped file.

    Attributes
    ----------
    params, parameters, configuration, rng
        See `crnn.LanguageModel`.

    Notes
    -----
    The trainer's interface, on packed batches (`crnn.data.TokenBatch`):

    - ``new_gradients()`` -> `GradientSet`, to be kept and reused;
    - ``loss_and_gradients(batch, gradients, truncation, scale, state, training, accumulate)`` -> (total loss in nats,
      final state): the gradient of scale * total loss goes into the `GradientSet`;
    - ``fused_sgd(batch, learning_rate, truncation, scale, state)`` -> the same pair: plain SGD, where the output
      layer's update is part of its gradient product where the logits of a batch fit 16 MiB;
    - ``evaluate(batches, carry_state)`` -> (total loss in nats, tokens).

    States are (layers, sequences, hidden) in the batch's own order of sequences, a pair (h, c) for the LSTM.
    """

    def __init__(
        self, configuration: Configuration, rng: np.random.Generator, weights: Array | None = None
    ) -> None:
        c = self.configuration = configuration
        self.rng = rng
        self.dtype = np.dtype(c.dtype)
        self._cell = CELLS[c.cell]
        shapes = list(tensors(self._cell, c.input_size, c.hidden_size, c.num_layers, bidirectional=False, bias=c.bias))
        # In buffer order: the tensor with row-sparse gradients first, then the recurrent ones as neighbours.
        specs = []
        if c.embedding_size is not None and not c.tie_weights:
            specs.append(Spec("embedding.weight", (c.vocabulary_size, c.embedding_size)))
        for name, shape in shapes:
            if shape is not None:
                specs.append(Spec(f"rnn.{name}", shape, transposed=c.onehot and name == "weight_ih_l0"))
        specs.append(Spec("output.weight", (c.vocabulary_size, c.hidden_size), transposed=True))
        if c.bias:
            specs.append(Spec("output.bias", (c.vocabulary_size,)))
        self.parameters = parameters = Parameters(specs, self.dtype, weights)
        self.params = self._named(parameters)
        self._names = [None if shape is None else f"rnn.{name}" for name, shape in shapes]
        self._stack = _kernels.Stack(
            kernel_name(self._cell, c.nonlinearity),
            c.input_size,
            c.hidden_size,
            c.num_layers,
            1,
            [None if name is None else parameters.storage(name) for name in self._names],
            reset_after=c.reset_after,
            z_state=c.z_weighs == "state",
            onehot=c.onehot,
        )
        self._output = parameters.storage("output.weight")
        self._bias = parameters.get("output.bias")
        # Whose gradient has a row per word, and how wide it is: nothing for tied weights, whose gradient is dense.
        self._sparse = None if c.tie_weights else "rnn.weight_ih_l0" if c.onehot else "embedding.weight"
        self._sparse_storage = None if self._sparse is None else parameters.storage(self._sparse)
        # The gradient row of a token: of all gates' pre-activations, or of the embedded word.
        self._row_width = len(self._cell.gates) * c.hidden_size if c.onehot else c.input_size
        self._fused: _Fused | None = None

    def initialise(self, rng: np.random.Generator | int | None = None, scale: float | None = None) -> None:
        """Draw all parameters anew.

        By default: one-hot input weights from U(-1/sqrt(V), 1/sqrt(V)), the embedding from U(-0.1, 0.1), all other
        recurrent tensors and the output weights from U(-1/sqrt(H), 1/sqrt(H)), the output bias zero. Tied weights are
        drawn as output weights.

        Parameters
        ----------
        rng
            Generator or seed; None: fresh entropy.
        scale
            Draw every parameter, biases included, from U(-scale, scale) instead (Zaremba et al.: 0.1).
        """
        if scale is not None and not 0.0 < scale < math.inf:
            raise ValueError(f"scale: got {scale}, wanted a positive, finite number")
        self.parameters.check_writable()
        c = self.configuration
        generator = as_generator(rng, "rng")
        for name, view in self.parameters.items():
            if scale is not None:
                draw_uniform(view, scale, generator)
            elif name == "embedding.weight":
                draw_uniform(view, _EMBEDDING_BOUND, generator)
            elif name == "output.bias":
                view[...] = 0.0
            elif name == "rnn.weight_ih_l0" and c.onehot:
                initialise(view, c.vocabulary_size, generator)
            else:
                initialise(view, c.hidden_size, generator)

    def _named(self, parameters: Parameters) -> Mapping[str, Array]:
        """This model's parameters, or a twin of them, under all names."""
        return _TiedView(parameters) if self.configuration.tie_weights else parameters

    def new_gradients(self) -> GradientSet:
        """Room for this model's gradients."""
        return GradientSet(self.parameters)

    def loss_and_gradients(
        self,
        batch: TokenBatch,
        gradients: GradientSet,
        truncation: Truncation | None = None,
        scale: float = 1.0,
        state: State | None = None,
        training: bool = True,
        accumulate: bool = False,
    ) -> tuple[float, State]:
        """Loss and gradients of one packed batch.

        Parameters
        ----------
        batch
            Ids and geometry.
        gradients
            Where the gradient of ``scale * total loss`` goes.
        truncation
            None: full.
        scale
            For example 1 / sequences.
        state
            What the batch starts from; None: zeros. It is a constant: no gradient reaches it.
        training
            Whether dropout is applied.
        accumulate
            Add to what `gradients` holds instead of replacing it.

        Returns
        -------
        float
            Total loss of the batch, unscaled, in nats.
        State
            The final state, in the batch's order of sequences.
        """
        schedule = resolve(truncation).schedule
        hidden, tape, final, masks = self._forward(batch, state, training)
        named = gradients.dense
        grad_w = named.storage("output.weight")
        d_hidden = np.empty_like(hidden)
        loss = _kernels.softmax_loss(
            hidden,
            self._output,
            self._bias,
            batch.y,
            dh=d_hidden,
            grad_w=grad_w,
            grad_b=named.get("output.bias"),
            scale=scale,
            accumulate=accumulate,
        )
        grads = [None if name is None or name == self._sparse else named[name] for name in self._names]
        d_rows = self._backward(tape, d_hidden, masks, schedule, grads, accumulate)
        if self._sparse is None:
            _kernels.add_columns(grad_w, batch.x, d_rows, 1.0)
        else:
            before = gradients.sparse.get(self._sparse) if accumulate else None
            gradients.sparse[self._sparse] = _unique_rows(batch.x, d_rows, before)
        return loss, final

    def fused_sgd(
        self,
        batch: TokenBatch,
        learning_rate: float,
        truncation: Truncation | None = None,
        scale: float = 1.0,
        state: State | None = None,
    ) -> tuple[float, State]:
        """One step of plain SGD, ``params -= learning_rate * gradient(scale * total loss)``, with dropout if any.

        The same step as `loss_and_gradients` and an update, up to rounding. The gradient of the output weights is never
        stored while the logits of the batch fit 16 MiB; else it is computed in one array and subtracted.

        Returns
        -------
        tuple
            Total loss before the step (unscaled, nats) and final state.

        Raises
        ------
        MemoryError
            There is no room for the backward pass; the output weights may have taken their part of the step by then.
        """
        self.parameters.check_writable()
        schedule = resolve(truncation).schedule
        fused = self._fused
        if fused is None:
            fused = self._fused = _Fused(self)
        hidden, tape, final, masks = self._forward(batch, state, True)
        d_hidden = np.empty_like(hidden)
        loss = _kernels.softmax_loss(
            hidden, self._output, self._bias, batch.y, dh=d_hidden, sgd_rate=learning_rate, scale=scale
        )
        d_rows = self._backward(tape, d_hidden, masks, schedule, fused.grads, False)
        if self._sparse_storage is None:
            _kernels.add_columns(self._output, batch.x, d_rows, -learning_rate)
        else:
            _kernels.add_rows(self._sparse_storage, batch.x, d_rows, -learning_rate)
        _kernels.sgd(fused.recurrent, fused.gradients, learning_rate)
        return loss, final

    def evaluate(self, batches: Iterable[TokenBatch], carry_state: bool = True) -> tuple[float, int]:
        """Total loss (nats) and number of tokens of packed batches, without dropout.

        Parameters
        ----------
        batches
            For example ``crnn.data.Sentences(...).evaluation_batches()``.
        carry_state
            Whether a batch marked ``carry`` starts from the final state of the batch before it.
        """
        total, tokens = 0.0, 0
        state: State | None = None
        for batch in batches:
            start = state if carry_state and batch.carry else None
            hidden, _, state, _ = self._forward(batch, start, False, keep=False)
            total += _kernels.softmax_loss(hidden, self._output, self._bias, batch.y)
            tokens += batch.tokens
        return total, tokens

    # ---------------------------------------------------------------------------------------------------- the passes

    def _forward(
        self, batch: TokenBatch, state: State | None, training: bool, keep: bool = True
    ) -> tuple[Array, Any, State, _Masks | None]:
        """Words to the rows (R, hidden) that enter the output layer, with what the backward pass needs."""
        c = self.configuration
        check_batch(batch, c.vocabulary_size)
        masks = self._draw_masks(batch.tokens) if training and c.dropout else None
        x = batch.x if c.onehot else self._embed(batch.x)
        if masks is not None and masks.words is not None:
            x *= masks.words
        between = None if masks is None else masks.between
        packed = batch.packed
        shape = (c.num_layers, packed.batch_size, c.hidden_size)
        h0, c0 = self._read_state(state, packed, shape)
        hidden = np.empty((batch.tokens, c.hidden_size), self.dtype)
        h_n = np.empty(shape, self.dtype)
        c_n = np.empty(shape, self.dtype) if self._cell.kind == "lstm" else None
        tape = self._stack.forward(x, packed.offsets, h0, c0, hidden, h_n, c_n, keep, between)
        if masks is not None:
            hidden = hidden * masks.output  # a copy: the tape may refer to the stack's own output
        final = packed.unsort(h_n) if c_n is None else (packed.unsort(h_n), packed.unsort(c_n))
        return hidden, tape, final, masks

    def _backward(
        self,
        tape: Any,
        d_hidden: Array,
        masks: _Masks | None,
        schedule: tuple[int, int, int],
        grads: list[Array | None],
        accumulate: bool,
    ) -> Array:
        """From the output layer's input down to the words; returns the gradient row of every token, (R, row width)."""
        if masks is not None:
            d_hidden *= masks.output
        d_rows = np.empty((len(d_hidden), self._row_width), self.dtype)
        self._stack.backward(tape, d_hidden, None, None, schedule, d_rows, None, None, grads, accumulate)
        if masks is not None and masks.words is not None:
            d_rows *= masks.words
        return d_rows

    def _embed(self, ids: Ids) -> Array:
        x = np.empty((len(ids), self.configuration.input_size), self.dtype)
        if self._sparse_storage is None:
            _kernels.take_columns(self._output, ids, x)
        else:
            _kernels.take_rows(self._sparse_storage, ids, x)
        return x

    def _advance(self, ids: Ids, packed: Packed, state: State | None) -> tuple[Array, State]:
        """Inference over packed ids: rows (R, hidden), and the final state."""
        hidden, _, final, _ = self._forward(TokenBatch.over(ids, ids, packed), state, False, keep=False)
        return hidden, final

    def _hidden(self, ids: Ids) -> Array:
        return self._advance(ids, dense(1, len(ids)), None)[0]

    def _softmax(self, hidden: Array) -> Array:
        out = np.empty((len(hidden), self.configuration.vocabulary_size), self.dtype)
        _kernels.softmax_probabilities(hidden, self._output, self._bias, out)
        return out

    def _draw_masks(self, rows: int) -> _Masks:
        c = self.configuration

        def mask(*shape: int) -> Array:
            return draw_mask(self.rng, c.dropout, shape, self.dtype)

        return _Masks(
            None if c.onehot else mask(rows, c.input_size),
            mask(c.num_layers - 1, rows, c.hidden_size) if c.num_layers > 1 else None,
            mask(rows, c.hidden_size),
        )

    def _read_state(
        self, state: State | None, packed: Packed, shape: tuple[int, int, int]
    ) -> tuple[Array | None, Array | None]:
        """A state in the caller's order as the kernels take it: h and c, sorted, C-contiguous."""
        if state is None:
            return None, None
        parts = state if isinstance(state, tuple) else (state,)
        wanted = self._cell.states
        if len(parts) != len(wanted):
            raise ValueError(f"state: got {len(parts)} arrays, wanted {len(wanted)} ({', '.join(wanted)})")
        for name, part in zip(wanted, parts, strict=True):
            if part.shape != shape or part.dtype != self.dtype:
                raise ValueError(f"state: {name} is {part.dtype} {part.shape}, wanted {self.dtype} {shape}")
        h, *c = (np.ascontiguousarray(packed.sort(part)) for part in parts)
        return h, c[0] if c else None


@dataclasses.dataclass(frozen=True, slots=True)
class _Masks:
    """One batch's dropout masks: 0 or 1 / (1 - dropout)."""

    words: Array | None  # (R, embedding): on the embedded words
    between: Array | None  # (layers - 1, R, hidden): on the input of layers 1...
    output: Array  # (R, hidden): on the input of the output layer


class _Fused:
    """What `WordNetwork.fused_sgd` keeps from step to step: the small, dense gradients of the recurrent tensors."""

    def __init__(self, model: WordNetwork) -> None:
        specs = [spec for spec in model.parameters.specs if spec.name.startswith("rnn.") and spec.name != model._sparse]
        twin = Parameters(specs, model.dtype)
        self.grads = [None if name is None else twin.get(name) for name in model._names]
        # The recurrent tensors are neighbours in the model's buffer, so the twin's buffer lines up with a part of it.
        flat = model.parameters.flat
        start = (model.parameters[specs[0].name].ctypes.data - flat.ctypes.data) // flat.itemsize
        self.recurrent = flat[start : start + twin.flat.size]
        self.gradients = twin.flat


def _unique_rows(ids: Ids, rows: Array, before: tuple[Ids, Array] | None) -> tuple[Ids, Array]:
    """Sum the rows of equal ids: sorted unique ids, and one row for each. `before` is such a pair, to be added to."""
    if before is not None:
        ids, rows = np.concatenate([before[0], ids]), np.concatenate([before[1], rows])
    return _kernels.sum_by_id(ids, rows)
