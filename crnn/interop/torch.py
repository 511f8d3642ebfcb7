"""PyTorch weights in and out: `nn.RNN`, `nn.LSTM`, `nn.GRU` and the three `*Cell`s.

PyTorch's names, shapes and gate order are our own, so this is checking and copying. torch itself is never imported:
state dicts may hold NumPy arrays or tensors (anything with `detach()`/`numpy()`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt

from crnn.interop import safetensors
from crnn.interop._weights import Layer, Problems, agreed, as_arrays, build, gates_of, kind_of, state_form
from crnn.layers import GRU, RNN

__all__ = ["from_safetensors", "from_state_dict", "to_state_dict", "to_torch"]

_STACKED = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)(_reverse)?")
_CELL = frozenset({"weight_ih", "weight_hh", "bias_ih", "bias_hh"})


def from_state_dict(
    state_dict: Mapping[str, Any],
    prefix: str = "",
    nonlinearity: str = "tanh",
    *,
    dtype: npt.DTypeLike | None = None,
) -> Layer:
    """A layer with the weights of a PyTorch module; the kind of cell follows from the shapes.

    Parameters
    ----------
    state_dict
        `module.state_dict()`, or a dict of arrays with the same names: `weight_ih_l0` (G*H, input), `weight_hh_l0`
        (G*H, H), `bias_ih_l0`, `bias_hh_l0` (G*H each), `_l1`..., `..._reverse`; or a cell's four names without `_l0`.
    prefix
        Where the module sits in the dict, for example "encoder.rnn."; a missing final dot is added. Only names under
        the prefix are looked at, and all of them must belong to the module.
    nonlinearity
        Of an RNN: "tanh", "relu" (or "sigmoid", which PyTorch has not). A state dict does not record it.
    dtype
        None keeps the weights' dtype. float32 or float64 converts (rounding when narrower).

    Returns
    -------
    RNN | LSTM | GRU
        A GRU has `reset_after=True` and `z_weighs="state"`, as in PyTorch. The weights are copied.

    Raises
    ------
    ValueError
        Keys are missing, unexpected or misshapen (all listed at once), the number of gate blocks is not 1, 3 or 4, the
        module has `proj_size`, or nothing lies under the prefix.
    TypeError
        A value is not an array, has an integer or complex dtype, or the dtypes are mixed.

    Examples
    --------
    >>> import numpy as np, crnn
    >>> weights = {"weight_ih": np.zeros((12, 3), np.float32), "weight_hh": np.zeros((12, 4), np.float32)}
    >>> layer = crnn.interop.torch.from_state_dict(weights)
    >>> type(layer).__name__, layer.input_size, layer.hidden_size
    ('GRU', 3, 4)
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: got {type(state_dict).__name__}, wanted a dict of name -> array")
    return _from_state_dict(state_dict, _whole(prefix, state_dict), nonlinearity, dtype)


def _from_state_dict(
    state_dict: Mapping[str, Any],
    prefix: str,
    nonlinearity: str,
    dtype: npt.DTypeLike | None,
    *,
    mapped: bool = False,
    reset_after: bool = True,
    z_weighs: str = "state",
) -> Layer:
    found = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    projected = [name for name in found if name.startswith("weight_hr")]
    if projected:
        raise ValueError(
            f"{', '.join(prefix + name for name in sorted(projected))}: the module is an LSTM with proj_size; "
            "projected LSTMs are not supported"
        )
    if "weight_hh" in found or "weight_ih" in found:
        found = {f"{name}_l0" if name in _CELL else name: value for name, value in found.items()}
    arrays = _recurrent(found, prefix)
    matches = [match for match in map(_STACKED.fullmatch, arrays) if match]
    num_layers = max(int(match[2]) for match in matches) + 1
    if num_layers > len(matches):  # a stray _l999999 must not ask for a million layers
        raise ValueError(
            f"state_dict: the names reach layer {num_layers - 1}, but there are only {len(matches)} of them"
        )
    if "weight_hh_l0" not in arrays:
        raise ValueError(f"state_dict: {prefix}weight_hh_l0 is missing, so the kind of cell cannot be told")
    kind = gates_of(f"{prefix}weight_hh_l0", arrays["weight_hh_l0"])
    if kind != "rnn" and nonlinearity != "tanh":
        raise ValueError(
            f"nonlinearity: got {nonlinearity!r} for weights of a {kind.upper()}, which has none to choose"
        )
    return build(
        kind,
        arrays,
        num_layers=num_layers,
        bidirectional=any(match[3] for match in matches),
        bias=any(match[1].startswith("bias") for match in matches),
        dtype=dtype,
        nonlinearity=nonlinearity,
        reset_after=reset_after,
        z_weighs=z_weighs,
        label=lambda name: prefix + name,
        mapped=mapped,
    )


def _whole(prefix: str, names: Collection[str]) -> str:
    """The prefix with its final dot, once something lies under it."""
    if prefix and not prefix.endswith(".") and not any(name.startswith(prefix + "weight") for name in names):
        prefix += "."
    if not any(name.startswith(prefix) for name in names):
        raise ValueError(f"prefix: no key starts with {prefix!r}; recurrent layers lie under {_places(names)}")
    return prefix


def _recurrent(found: Mapping[str, Any], prefix: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays, once every name is one that a recurrent module has."""
    problems = Problems()
    problems.unexpected = [prefix + name for name in found if not _STACKED.fullmatch(name)]
    if problems.unexpected:
        places = _places(found)
        if places != "no prefix":
            problems.other.append(f"recurrent layers lie under {places}")
    problems.raise_if_any(f"a recurrent module under prefix {prefix!r}")
    return as_arrays(found)


def _places(names: Collection[str]) -> str:
    """The prefixes under which recurrent modules seem to lie, for error messages."""
    places = sorted(
        {
            key[: key.rindex("weight_hh")]
            for key in names
            if "weight_hh" in key and (_STACKED.fullmatch(key[key.rindex("weight_hh") :]) or key.endswith("weight_hh"))
        }
    )
    return ", ".join(map(repr, places)) if places else "no prefix"


def to_state_dict(layer: Layer, prefix: str = "", *, cell: bool = False) -> dict[str, npt.NDArray[Any]]:
    """The weights of a layer as PyTorch names them; new arrays.

    Parameters
    ----------
    layer
        A layer that PyTorch can express: any LSTM; an RNN with "tanh" or "relu"; a GRU with `reset_after=True`. Of a
        GRU with `z_weighs="candidate"` the z rows come out negated, which is the same function in PyTorch's form.
    prefix
        Put before every name, a missing final dot is added.
    cell
        Names of `RNNCell`, `LSTMCell`, `GRUCell` (without `_l0`); only for one layer in one direction.

    Returns
    -------
    dict
        Name -> array, in the order of `module.state_dict()`.

    Raises
    ------
    ValueError
        PyTorch has no module that computes what this layer computes.
    TypeError
        `layer` is not a crnn layer.
    """
    kind_of(layer)
    if isinstance(layer, GRU) and not layer.reset_after:
        raise ValueError("layer: a GRU with reset_after=False has no counterpart in PyTorch, whose GRU resets after")
    if isinstance(layer, RNN) and layer.nonlinearity == "sigmoid":
        raise ValueError("layer: PyTorch's RNN has only 'tanh' and 'relu', this one has nonlinearity='sigmoid'")
    if cell and (layer.num_layers > 1 or layer.bidirectional):
        raise ValueError("cell: a cell is one layer in one direction, this layer has more")
    if prefix and not prefix.endswith("."):
        prefix += "."
    arrays = state_form(layer)
    return {prefix + (name.removesuffix("_l0") if cell else name): array for name, array in arrays.items()}


def to_torch(layer: Layer, prefix: str = "", *, cell: bool = False) -> dict[str, Any]:
    """Like `to_state_dict`, with tensors: what `module.load_state_dict(..., strict=True)` takes.

    torch is not imported here; the tensors are made by the torch that the caller has imported, and share memory with
    new arrays, not with the layer.

    Raises
    ------
    RuntimeError
        torch has not been imported in this process.
    ValueError, TypeError
        As in `to_state_dict`.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        raise RuntimeError("to_torch: import torch first, or use to_state_dict, which needs no torch")
    return {name: torch.from_numpy(array) for name, array in to_state_dict(layer, prefix, cell=cell).items()}


def from_safetensors(
    path: str | os.PathLike[str],
    prefix: str = "",
    nonlinearity: str | None = None,
    *,
    mmap: bool = False,
    dtype: npt.DTypeLike | None = None,
) -> Layer:
    """`from_state_dict` straight from a `.safetensors` file.

    Parameters
    ----------
    path
        The file. It holds data only; nothing in it is executed. May be a model file of crnn's own (not a mappable
        one), whose layer lies under "rnn." and has the switches of the model.
    prefix, dtype
        As in `from_state_dict`; only tensors under the prefix are read.
    nonlinearity
        As in `from_state_dict`. None: what a model file of crnn's own says, else "tanh".
    mmap
        Use the file's bytes in place, read-only: all processes that map the file share one copy in memory. The layer
        is for inference, writing into its parameters raises ValueError, and the file must stay as it is while the
        layer lives. Needs weights in the dtype of the layer, so `dtype` cannot convert.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is not a safetensors file, is damaged, its weights do not fit (see `from_state_dict`), or
        `nonlinearity` contradicts it.
    TypeError
        A tensor is stored in a dtype that cannot be used.
    """
    names, metadata = safetensors.describe(path)
    switches = _switches(path, metadata)
    nonlinearity = agreed("nonlinearity", nonlinearity, switches.pop("nonlinearity", None)) or "tanh"
    prefix = _whole(prefix, names)
    stored = safetensors.read(path, mmap=mmap, wanted=lambda name: name.startswith(prefix))
    return _from_state_dict(stored, prefix, nonlinearity, dtype, mapped=mmap, **switches)


def _switches(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a model file of crnn's own says about its cell."""
    from crnn.model_file import FORMAT, read_configuration

    if metadata.get("format") != FORMAT:
        return {}
    try:
        c = read_configuration(metadata)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    if c.cell == "gru":
        return {"reset_after": c.reset_after, "z_weighs": c.z_weighs}
    return {"nonlinearity": c.nonlinearity} if c.cell == "rnn" else {}
