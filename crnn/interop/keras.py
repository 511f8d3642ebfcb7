"""Keras 3 weights in and out: `SimpleRNN`, `LSTM`, `GRU`, their `Bidirectional` wrapper, lists and files.

How Keras' arrays relate to ours, for u units:

- `kernel` (input, G*u) and `recurrent_kernel` (u, G*u) are our matrices transposed;
- an LSTM's gate blocks stand in our order (Keras calls them i, f, c, o); a GRU's stand as z, r, h, ours as r, z, n:
  a permutation of rows, no number changes;
- there is one bias (G*u), which becomes `bias_ih` while `bias_hh` is zero, except for `GRU(reset_after=True)`, whose
  bias (2, 3u) holds both of ours. Written back, one bias is `bias_ih + bias_hh`, or `bias_ih` itself where `bias_hh`
  is zero, so weights that came from Keras return bit for bit;
- Keras' update gate weighs the old state (`z_weighs="state"`).

A stack of layers is the layers' lists one after the other, forward before backward in each: the order of
`model.get_weights()` for layers in sequence, and of `RNN([cells])`. Files are handled by `crnn.interop.keras_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crnn.cells import CELLS
from crnn.interop._weights import (
    Kind,
    Layer,
    Problems,
    as_arrays,
    build,
    kind_of,
    reorder_gates,
    require_sequence,
    state_form,
    suffixes,
    sum_biases,
)
from crnn.interop.keras_files import from_file, to_file
from crnn.layers import GRU

__all__ = ["from_file", "from_weights", "to_file", "to_weights"]

_GATES = {"rnn": CELLS["rnn"].gates, "lstm": CELLS["lstm"].gates, "gru": ("z", "r", "n")}


def from_weights(
    kind: Kind,
    weights: Sequence[Any],
    *,
    reset_after: bool = True,
    bidirectional: bool = False,
    use_bias: bool | None = None,
    nonlinearity: str = "tanh",
    dtype: npt.DTypeLike | None = None,
) -> Layer:
    """A layer with the weights of Keras layers.

    Parameters
    ----------
    kind
        "rnn" for `SimpleRNN`, "lstm", "gru".
    weights
        `keras_layer.get_weights()`: kernel (input, G*u), recurrent kernel (u, G*u), bias; with `bidirectional` the
        forward layer's arrays and then the backward layer's. Several layers' lists may follow one another.
    reset_after
        Of a GRU, as it was given to Keras (whose default is True). The bias is (2, 3u) if so, else (3u,).
    bidirectional
        The weights are those of `keras.layers.Bidirectional(...)` with `merge_mode="concat"`.
    use_bias
        None: follows from the number and shapes of the arrays, and is asked for where they leave it open.
    nonlinearity
        Keras' `activation` of a `SimpleRNN`: "tanh", "sigmoid" or "relu". Weights do not record it. LSTM and GRU are
        taken to have Keras' defaults, tanh and sigmoid.
    dtype
        None keeps the weights' dtype. float32 or float64 converts (rounding when narrower).

    Returns
    -------
    RNN | LSTM | GRU
        A GRU has `z_weighs="state"`.

    Raises
    ------
    ValueError
        An unknown kind, a wrong number of arrays, or arrays of wrong shapes (all listed at once).
    TypeError
        Not a list, or a value of a dtype that cannot be used.

    Examples
    --------
    >>> import numpy as np, crnn
    >>> weights = [np.zeros((3, 16), np.float32), np.zeros((4, 16), np.float32), np.zeros(16, np.float32)]
    >>> layer = crnn.interop.keras.from_weights("lstm", weights)
    >>> layer.input_size, layer.hidden_size
    (3, 4)
    """
    if kind not in _GATES:
        raise ValueError(f"kind: got {kind!r}, wanted 'rnn', 'lstm' or 'gru'")
    if kind != "rnn" and nonlinearity != "tanh":
        raise ValueError(f"nonlinearity: got {nonlinearity!r} for a {kind.upper()}, which has none to choose")
    named = as_arrays({f"weights[{i}]": value for i, value in enumerate(require_sequence("weights", weights))})
    arrays = list(named.values())
    directions = 2 if bidirectional else 1
    bias = _has_bias(kind, arrays, directions, reset_after) if use_bias is None else bool(use_bias)
    each = 3 if bias else 2
    num_layers, rest = divmod(len(arrays), each * directions)
    if rest or not arrays:
        raise ValueError(
            f"weights: got {len(arrays)} arrays, wanted {each * directions} for each layer"
            f" ({'kernel, recurrent kernel, bias' if bias else 'kernel, recurrent kernel'}"
            f"{', forward then backward' if bidirectional else ''})"
        )
    two_biases = kind == "gru" and reset_after
    _check_shapes(kind, arrays, num_layers, directions, bias, two_biases)
    ours: dict[str, npt.NDArray[Any]] = {}
    label: dict[str, str] = {}
    for index, suffix in enumerate(suffixes(num_layers, bidirectional)):
        kernel, recurrent, *own_bias = arrays[index * each : (index + 1) * each]
        found = {f"weight_ih{suffix}": _rows(kind, kernel.T), f"weight_hh{suffix}": _rows(kind, recurrent.T)}
        if own_bias:
            first, second = own_bias[0] if two_biases else (own_bias[0], np.zeros_like(own_bias[0]))
            found |= {f"bias_ih{suffix}": _rows(kind, first), f"bias_hh{suffix}": _rows(kind, second)}
        label |= {name: f"weights[{index * each + min(i, 2)}]" for i, name in enumerate(found)}
        ours |= found
    return build(
        kind,
        ours,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        dtype=dtype,
        nonlinearity=nonlinearity,
        reset_after=reset_after,
        label=label.__getitem__,
    )


def to_weights(layer: Layer) -> list[npt.NDArray[Any]]:
    """The weights of a layer as Keras' `set_weights` takes them; new arrays.

    Parameters
    ----------
    layer
        Any RNN, LSTM or GRU. Two biases become their sum except in a GRU with `reset_after=True`. Of a GRU with
        `z_weighs="candidate"` the z rows come out negated, which is the same function in Keras' form.

    Returns
    -------
    list
        For each layer and direction kernel (input, G*u), recurrent kernel (u, G*u) and, if the layer has biases, bias
        (G*u,) or (2, 3u): the list of one Keras layer, or of `Bidirectional`, after the other.

    Raises
    ------
    TypeError
        `layer` is not a crnn layer.
    """
    kind = kind_of(layer)
    ours = state_form(layer)
    theirs: list[npt.NDArray[Any]] = []
    for suffix in suffixes(layer.num_layers, layer.bidirectional):
        for name in ("weight_ih", "weight_hh"):
            theirs.append(np.ascontiguousarray(_columns(kind, ours[f"{name}{suffix}"]).T))
        if layer.bias and isinstance(layer, GRU) and layer.reset_after:
            theirs.append(np.stack([_columns(kind, ours[f"{name}{suffix}"]) for name in ("bias_ih", "bias_hh")]))
        elif layer.bias:
            theirs.append(_columns(kind, sum_biases(ours, suffix)))
    return theirs


def _rows(kind: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return reorder_gates(array, _GATES[kind], CELLS[kind].gates)


def _columns(kind: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return reorder_gates(array, CELLS[kind].gates, _GATES[kind])


def _bias_shape(kind: str, recurrent: npt.NDArray[Any], reset_after: bool) -> tuple[int, ...]:
    width = len(_GATES[kind]) * recurrent.shape[0]
    return (2, width) if kind == "gru" and reset_after else (width,)


def _has_bias(kind: str, arrays: list[npt.NDArray[Any]], directions: int, reset_after: bool) -> bool:
    """Whether the list is groups of three or of two; the shapes of the first group decide where both divide it."""
    threes, twos = len(arrays) % (3 * directions) == 0, len(arrays) % (2 * directions) == 0
    if threes != twos:
        return threes
    if not threes or not arrays:
        return True
    wanted = _bias_shape(kind, arrays[1], reset_after) if arrays[1].ndim == 2 else ()
    if arrays[2].shape != wanted:
        return arrays[2].ndim == 1
    if wanted == arrays[1].shape:  # (2, 3u) with u = 2: the array could as well be the second layer's kernel
        raise ValueError(
            f"weights: {len(arrays)} arrays of these shapes fit layers with and without biases; say use_bias="
        )
    return True


def _check_shapes(
    kind: Kind, arrays: list[npt.NDArray[Any]], num_layers: int, directions: int, bias: bool, two_biases: bool
) -> None:
    """Refuse arrays of wrong shapes in Keras' own terms, all at once."""
    gates = len(_GATES[kind])
    each = 3 if bias else 2
    units = arrays[1].shape[0] if arrays[1].ndim == 2 else 0
    width = arrays[0].shape[0] if arrays[0].ndim == 2 else 0
    problems = Problems()
    for index in range(num_layers * directions):
        entering = width if index < directions else units * directions
        wanted: list[tuple[int, ...]] = [(entering, gates * units), (units, gates * units)]
        if bias:
            wanted.append((2, gates * units) if two_biases else (gates * units,))
        for i, (name, shape) in enumerate(zip(("kernel", "recurrent kernel", "bias"), wanted, strict=False)):
            position = index * each + i
            problems.check_shape(f"weights[{position}] ({name})", arrays[position], shape)
    label = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": f"GRU(reset_after={two_biases})" if bias else "GRU"}[kind]
    problems.raise_if_any(f"Keras' {label} with {units} units: {gates} gate block{'s' if gates > 1 else ''}")
