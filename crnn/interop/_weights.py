"""Foreign arrays, checked: the one way from named arrays to a layer, shared by all converters.

Decisions that hold everywhere:

- float32 and float64 are taken as they are; float16 and bfloat16 are widened to float32, which is exact; every other
  dtype is refused by name, because an integer weight means nothing without the scale it was quantised with;
- one layer has one dtype: a mixture of float32 and float64 is refused unless the caller names the dtype to use;
- everything that is wrong with a set of weights is reported in one error, and no layer is made before all is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crnn.cells import CELLS, tensors
from crnn.interop.mapped import MappedParameters
from crnn.layers import GRU, LAYERS, LSTM, RNN
from crnn.parameters import Parameters

Kind = Literal["rnn", "lstm", "gru"]
Layer = RNN | LSTM | GRU

KIND_OF_GATES: dict[int, Kind] = {1: "rnn", 4: "lstm", 3: "gru"}


class Problems:
    """Collects what is wrong with a set of weights, so that one error can name all of it."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.misshapen: list[str] = []
        self.other: list[str] = []

    def check_shape(self, name: str, array: npt.NDArray[Any], wanted: tuple[int, ...]) -> None:
        """Note `name` if its array does not have the wanted shape."""
        if array.shape != wanted:
            self.misshapen.append(f"{name} is {array.shape}, wanted {wanted}")

    def raise_if_any(self, what: str) -> None:
        """Raise one ValueError that lists everything noted so far; do nothing when there is nothing.

        Parameters
        ----------
        what
            What the weights were meant to be, for the first line of the message.
        """
        parts = []
        for title, entries in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.misshapen),
            ("also", self.other),
        ):
            if entries:
                parts.append(f"{title}: {'; '.join(sorted(entries))}")
        if parts:
            raise ValueError(f"the weights do not fit {what}; " + "; ".join(parts))


def as_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Turn an array or a tensor (anything with `numpy()` or `__array__`) into a native float32 or float64 array.

    Parameters
    ----------
    name
        How the error names the value.
    value
        A NumPy array or a tensor; tensors may require gradients and live on any device.

    Returns
    -------
    numpy.ndarray
        float32 or float64 in native byte order. Shares memory with `value` where nothing had to be converted.

    Raises
    ------
    TypeError
        `value` is not an array, or its dtype is not a floating-point one of at most 64 bits.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "detach") and hasattr(value, "numpy"):
        tensor = value.detach()
        if hasattr(tensor, "cpu"):
            tensor = tensor.cpu()
        if str(tensor.dtype).endswith("bfloat16"):  # NumPy has no such dtype; widening to float32 is exact
            tensor = tensor.float()
        array = np.asarray(tensor.numpy())
    elif hasattr(value, "numpy"):
        array = np.asarray(value.numpy())
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
    else:
        raise TypeError(f"{name}: got {type(value).__name__}, wanted an array or a tensor")
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name}: got {array.dtype}, wanted float32 or float64 (float16 and bfloat16 are widened to float32; "
            "integer weights need the scale they were quantised with, so dequantise them first)"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def widened(bits: npt.NDArray[np.uint16]) -> npt.NDArray[Any]:
    """bfloat16, as the integers of the same bits, in float32, which is exact: it is the upper half of one."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_arrays(weights: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """`as_array` over a mapping; a TypeError lists every value that was refused."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    refused = []
    for name, value in weights.items():
        try:
            arrays[name] = as_array(name, value)
        except TypeError as error:
            refused.append(str(error))
    if refused:
        raise TypeError("; ".join(refused))
    return arrays


def common_dtype(arrays: Mapping[str, npt.NDArray[Any]], dtype: npt.DTypeLike | None) -> np.dtype[Any]:
    """The dtype a layer of these weights will have: the one asked for, else the one they all share.

    Raises
    ------
    TypeError
        `dtype` is neither float32 nor float64, or is None while the arrays mix both.
    """
    if dtype is not None:
        wanted = np.dtype(dtype)
        if wanted not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype: got {wanted}, wanted float32 or float64")
        return wanted
    found = sorted({array.dtype.name for array in arrays.values()})
    if len(found) != 1:
        groups = ", ".join(f"{name}: {sorted(k for k, a in arrays.items() if a.dtype.name == name)}" for name in found)
        raise TypeError(f"the weights mix dtypes ({groups}); say which one is meant with dtype=")
    return np.dtype(found[0])


def gates_of(name: str, weight_hh: npt.NDArray[Any]) -> Kind:
    """The kind of cell that a recurrent matrix of shape (G*H, H) belongs to.

    Raises
    ------
    ValueError
        The matrix is not two-dimensional or G is not 1 (RNN), 3 (GRU) or 4 (LSTM).
    """
    if weight_hh.ndim == 2 and weight_hh.shape[1] > 0:
        gates, rest = divmod(weight_hh.shape[0], weight_hh.shape[1])
        if rest == 0 and gates in KIND_OF_GATES:
            return KIND_OF_GATES[gates]
    raise ValueError(
        f"{name} is {weight_hh.shape}, wanted (G*H, H) with G = 1 gate block for an RNN, 3 for a GRU, 4 for an LSTM"
    )


def reorder_gates(array: npt.NDArray[Any], came: Sequence[str], wanted: Sequence[str]) -> npt.NDArray[Any]:
    """Put the gate blocks along the first axis into another order; a pure permutation of rows.

    Parameters
    ----------
    array
        (G*H, ...) whose G blocks stand in the order of `came`.
    came, wanted
        The same gate letters in two orders, one for each block.

    Returns
    -------
    numpy.ndarray
        (G*H, ...), a C-contiguous copy.
    """
    blocks = array.reshape(len(came), -1, *array.shape[1:])
    return np.ascontiguousarray(blocks[[came.index(gate) for gate in wanted]]).reshape(array.shape)


def suffixes(num_layers: int, bidirectional: bool) -> list[str]:
    """The endings of parameter names, layer by layer, forward before reverse: `_l0`, `_l0_reverse`, `_l1`..."""
    return [f"_l{k}{way}" for k in range(num_layers) for way in (("", "_reverse") if bidirectional else ("",))]


def build(
    kind: Kind,
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    dtype: npt.DTypeLike | None,
    nonlinearity: str = "tanh",
    reset_after: bool = True,
    z_weighs: str = "state",
    label: Callable[[str], str] = str,
    mapped: bool = False,
) -> Layer:
    """Make a layer from parameters in PyTorch's names and layout, after checking every one of them.

    Parameters
    ----------
    kind
        "rnn", "lstm" or "gru".
    arrays
        Name without prefix -> float32 or float64 array.
    num_layers, bidirectional, bias, nonlinearity, reset_after, z_weighs
        What the layer is to be.
    dtype
        None: the dtype of the arrays.
    label
        How error messages call a parameter, where the caller's name for it differs.
    mapped
        Use the arrays themselves, read-only, instead of copying them into a buffer.

    Raises
    ------
    ValueError
        Parameters are missing, unexpected or misshapen, or hold NaN or infinity; all of them are listed.
    TypeError
        The arrays mix dtypes, or mapped ones would need conversion.
    """
    problems = Problems()
    first, recurrent = arrays.get("weight_ih_l0"), arrays.get("weight_hh_l0")
    hidden_size = recurrent.shape[1] if recurrent is not None and recurrent.ndim == 2 else 0
    input_size = first.shape[1] if first is not None and first.ndim == 2 else 0
    cell = CELLS[kind]
    shapes = tensors(cell, input_size, hidden_size, num_layers, bidirectional=bidirectional, bias=bias)
    wanted = {name: shape for name, shape in shapes if shape is not None}
    for name, shape in wanted.items():
        if name not in arrays:
            problems.missing.append(label(name))
        else:
            problems.check_shape(label(name), arrays[name], shape)
    problems.unexpected += [label(name) for name in arrays if name not in wanted]
    article = "a" if kind == "gru" else "an"
    layout = f"{num_layers} layer{'s' if num_layers > 1 else ''}{', bidirectional' if bidirectional else ''}"
    sizes = f"input {input_size}, hidden {hidden_size}{'' if bias else ', no bias'}"
    what = f"{article} {kind.upper()} of {layout}, {sizes}"
    if input_size < 1 or hidden_size < 1:
        problems.other.append("weight_ih_l0 must be (G*H, input) and weight_hh_l0 (G*H, H), input and H at least 1")
    problems.raise_if_any(what)
    used = common_dtype(arrays, dtype)
    cls = LAYERS[kind]
    shape_of_stack = (input_size, hidden_size, num_layers)
    if mapped:
        if any(array.dtype != used for array in arrays.values()):
            raise TypeError(f"dtype: mapped weights cannot be converted to {used}")
        params: Parameters = MappedParameters({name: arrays[name] for name in wanted}, used)
    else:
        params = Parameters(cls._specs(*shape_of_stack, bias=bias, bidirectional=bidirectional), used)
        params.assign(arrays)
    options: dict[str, Any] = {}
    if kind == "rnn":
        options = {"nonlinearity": nonlinearity}
    if kind == "gru":
        options = {"reset_after": reset_after, "z_weighs": z_weighs}
    layer: Any = cls._over(params, *shape_of_stack, bias=bias, bidirectional=bidirectional, **options)
    return layer


def kind_of(layer: Any) -> Kind:
    """Whether a layer is an "rnn", an "lstm" or a "gru".

    Raises
    ------
    TypeError
        `layer` is not one of crnn's layers.
    """
    if isinstance(layer, RNN | LSTM | GRU):
        return layer.kind  # type: ignore[return-value]
    raise TypeError(f"layer: got {type(layer).__name__}, wanted a crnn.RNN, crnn.LSTM or crnn.GRU")


def z_rows_negated(params: Mapping[str, npt.NDArray[Any]], hidden_size: int) -> dict[str, npt.NDArray[Any]]:
    """A GRU's parameters with every z row negated: what turns one meaning of `z_weighs` into the other.

    One update gate is the other's 1 - z, and 1 - sigmoid(a) is sigmoid(-a). A sign changes, no digit does.
    """
    turned = {}
    for name, array in params.items():
        turned[name] = np.array(array, order="C")
        rows = turned[name][hidden_size : 2 * hidden_size]
        np.negative(rows, out=rows)
    return turned


def state_form(layer: Layer) -> dict[str, npt.NDArray[Any]]:
    """Copies of a layer's parameters in the form every other library uses, where z weighs the old state.

    Of a GRU with `z_weighs="candidate"` the z rows come negated; all else is copied as it is.
    """
    if isinstance(layer, GRU) and layer.z_weighs == "candidate":
        return z_rows_negated(layer.params, layer.hidden_size)
    return {name: np.array(value, order="C") for name, value in layer.params.items()}


def sum_biases(ours: Mapping[str, npt.NDArray[Any]], suffix: str) -> npt.NDArray[Any]:
    """bias_ih + bias_hh for libraries that keep one bias; bias_ih itself, bit for bit, where bias_hh is zero."""
    first, second = ours[f"bias_ih{suffix}"], ours[f"bias_hh{suffix}"]
    return first + second if second.any() else first


def agreed(name: str, given: Any, said: Any) -> Any:
    """What the file says, unless the caller says otherwise, which is an error."""
    if given is not None and said is not None and given != said:
        raise ValueError(f"{name}: got {given!r}, but the file says {said!r}")
    return said if given is None else given


def require_sequence(name: str, value: Any) -> Sequence[Any]:
    """A list or tuple, or a TypeError that names it."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted a list of arrays")
    return value
