"""Keras 3 files: recurrent layers in and out of `.weights.h5` and `.keras`.

A `.weights.h5` file is an HDF5 tree that follows the model: a layer is a group, its arrays are `0`, `1`, `2` (kernel,
recurrent kernel, bias) in `cell/vars`, a bidirectional layer holds the groups `forward_layer` and `backward_layer`,
and the attribute `name` of a layer's `vars` is the name it has in Keras. It does not say what the layers are; a
`.keras` file does: it is a ZIP archive of such a tree, `config.json` and `metadata.json`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crnn.atomic import atomic_write
from crnn.interop._weights import Kind, Layer, gates_of, kind_of
from crnn.layers import GRU, RNN

__all__ = ["from_file", "to_file"]

_CLASS: dict[Kind, str] = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
_GROUP: dict[Kind, str] = {"rnn": "simple_rnn", "lstm": "lstm", "gru": "gru"}
_WEIGHTS = "model.weights.h5"  # its name inside a .keras archive


@dataclasses.dataclass(frozen=True)
class _Found:
    """One recurrent Keras layer in a file."""

    path: str  # of its HDF5 group
    name: str  # in Keras
    weights: list[npt.NDArray[Any]]  # in the order of get_weights()
    bidirectional: bool
    arrays_per_cell: int

    @property
    def kind(self) -> Kind:
        return gates_of(f"{self.path}: the transposed recurrent kernel", self.weights[1].T)


def from_file(
    path: str | os.PathLike[str],
    layer: str | None = None,
    *,
    reset_after: bool | None = None,
    nonlinearity: str | None = None,
    dtype: npt.DTypeLike | None = None,
) -> Layer:
    """A layer with the weights of one recurrent layer in a Keras 3 file. Needs h5py.

    Parameters
    ----------
    path
        A `.weights.h5` or `.keras` file. It is read as data: nothing in it is executed.
    layer
        The layer's name in Keras, or its group's path in the file. May be left out where there is only one.
    reset_after
        Of a GRU. None: what a `.keras` file says; else what the bias' shape says; a GRU without biases in a
        `.weights.h5` file needs it.
    nonlinearity
        Keras' `activation` of a `SimpleRNN`. None: what a `.keras` file says, else "tanh".
    dtype
        None keeps the weights' dtype. float32 or float64 converts (rounding when narrower).

    Returns
    -------
    RNN | LSTM | GRU

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not a Keras 3 file, has no such layer or several to choose from (all are named), an argument contradicts
        it, or the layer has settings that crnn does not compute (each is named).
    ModuleNotFoundError
        h5py is not installed.
    """
    from crnn.interop.keras import from_weights

    source = Path(path)
    found, configs = _open(source)
    chosen = _choose(source, found, layer)
    config = configs.get(chosen.name)
    kind = chosen.kind
    if config is not None:
        said_reset, said_activation = _settings(chosen, kind, config)
        reset_after = _agreed("reset_after", reset_after, said_reset)
        nonlinearity = _agreed("nonlinearity", nonlinearity, said_activation)
    if kind == "gru" and reset_after is None:
        if chosen.arrays_per_cell < 3:
            raise ValueError(f"reset_after: {chosen.path} is a GRU without biases, and the file does not say; pass it")
        reset_after = chosen.weights[2].ndim == 2
    return from_weights(
        kind,
        chosen.weights,
        reset_after=reset_after is not False,
        bidirectional=chosen.bidirectional,
        use_bias=chosen.arrays_per_cell == 3,
        nonlinearity=nonlinearity or "tanh",
        dtype=dtype,
    )


def _agreed(name: str, given: Any, said: Any) -> Any:
    """What the file says, unless the caller says otherwise, which is an error."""
    if given is not None and said is not None and given != said:
        raise ValueError(f"{name}: got {given!r}, but the file says {said!r}")
    return said if given is None else given


def _open(source: Path) -> tuple[list[_Found], dict[str, dict[str, Any]]]:
    """All recurrent layers in the file and, from a .keras file, the layers' configurations by name."""
    import h5py

    with open(source, "rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            return _read_tree(source, stream, h5py), {}
        try:
            with zipfile.ZipFile(stream) as archive:
                config = json.loads(archive.read("config.json"))
                tree = io.BytesIO(archive.read(_WEIGHTS))
        except (KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{source}: not a Keras 3 file, or a damaged one ({error})") from None
    configs: dict[str, dict[str, Any]] = {}
    for entry in _recurrent_configs(config):
        name = entry["config"].get("name")
        if name in configs and configs[name] != entry:
            raise ValueError(f"{source}: several recurrent layers are called {name!r}, save them under their own names")
        configs[name] = entry
    return _read_tree(source, tree, h5py), configs


def _read_tree(source: Path, stream: Any, h5py: Any) -> list[_Found]:
    try:
        with h5py.File(stream, "r") as file:
            return sorted(_layers(file, h5py), key=lambda found: found.path)
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # what h5py raises for other and damaged files
        raise ValueError(f"{source}: not a Keras 3 weights file, or a damaged one ({error})") from None


def _layers(group: Any, h5py: Any, path: str = "") -> Iterator[_Found]:
    """Walk the tree; a layer's own groups are not searched further."""
    name = path.rsplit("/", 1)[-1]
    if "vars" in group and "name" in group["vars"].attrs:
        name = str(group["vars"].attrs["name"])
    directions = [group[way] for way in ("forward_layer", "backward_layer") if way in group]
    cells = [arrays for place in directions or [group] if (arrays := _cells(place))]
    if cells and len(cells) == max(1, len(directions)):
        weights = [array for cell in cells for array in cell[0]]
        yield _Found(path or "/", name, weights, len(directions) == 2, cells[0][1])
        return
    for child, value in group.items():
        if isinstance(value, h5py.Group):
            yield from _layers(value, h5py, f"{path}/{child}".lstrip("/"))


def _cells(group: Any) -> tuple[list[npt.NDArray[Any]], int] | None:
    """The arrays of a layer's cell, or of the cells of a `StackedRNNCells` one after the other; None if it has none."""
    if "cell" not in group:
        return None
    cell = group["cell"]
    inner = [cell["cells"][key] for key in sorted(cell["cells"], key=_number)] if "cells" in cell else [cell]
    arrays = [[np.asarray(one["vars"][key]) for key in sorted(one["vars"], key=int)] for one in inner if "vars" in one]
    if len(arrays) != len(inner) or not arrays or any(len(one) not in (2, 3) or one[1].ndim != 2 for one in arrays):
        return None
    return [array for one in arrays for array in one], len(arrays[0])


def _number(group: str) -> int:
    """The place of `lstm_cell`, `lstm_cell_1`... `lstm_cell_10` among its siblings, which HDF5 sorts as text."""
    ending = group.rsplit("_", 1)[-1]
    return int(ending) if ending.isdigit() else 0


def _choose(source: Path, found: list[_Found], layer: str | None) -> _Found:
    if not found:
        raise ValueError(f"{source}: no recurrent layer of Keras 3 in it")
    names = ", ".join(f"{one.name!r} ({one.path}, {_CLASS[one.kind]})" for one in found)
    matches = [one for one in found if layer is None or layer in (one.name, one.path)]
    if not matches:
        raise ValueError(f"layer: no recurrent layer {layer!r} in {source}; there are {names}")
    if len(matches) > 1:
        raise ValueError(f"layer: {source} holds several that fit, say which by path: {names}")
    return matches[0]


def _recurrent_configs(node: Any) -> Iterator[dict[str, Any]]:
    """The outermost recurrent layers anywhere in a model's configuration."""
    if isinstance(node, dict):
        if node.get("class_name") in {*_CLASS.values(), "Bidirectional", "RNN"} and isinstance(
            node.get("config"), dict
        ):
            yield node
            return
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _recurrent_configs(child)


def _settings(found: _Found, kind: Kind, entry: dict[str, Any]) -> tuple[bool | None, str | None]:
    """`reset_after` and the RNN's activation out of a configuration; refuses, by name, what crnn does not compute."""
    config = entry["config"]
    parts = [entry]
    refused = []
    if entry["class_name"] == "Bidirectional":
        parts = [part for part in (config.get("layer"), config.get("backward_layer")) if isinstance(part, dict)]
        if config.get("merge_mode", "concat") != "concat":
            refused.append(f"merge_mode={config['merge_mode']!r} (only 'concat')")
    cells = [cell for i, part in enumerate(parts) for cell in _cell_configs(part, backward=i == 1, refused=refused)]
    activations = set()
    for cell in cells:
        activation = cell.get("activation", "tanh")
        activations.add(activation)
        if kind == "rnn" and activation not in ("tanh", "sigmoid", "relu"):
            refused.append(f"activation={activation!r} (only 'tanh', 'sigmoid', 'relu')")
        if kind != "rnn" and activation != "tanh":
            refused.append(f"activation={activation!r} (only 'tanh')")
        if kind != "rnn" and cell.get("recurrent_activation", "sigmoid") != "sigmoid":
            refused.append(f"recurrent_activation={cell['recurrent_activation']!r} (only 'sigmoid')")
    resets = {cell.get("reset_after", True) for cell in cells} if kind == "gru" else {None}
    if len(activations) > 1 or len(resets) > 1:
        refused.append("cells that differ in activation or reset_after")
    if refused:
        raise ValueError(f"the Keras layer {found.name!r} has settings crnn does not compute: {'; '.join(refused)}")
    return resets.pop(), activations.pop() if kind == "rnn" else None


def _cell_configs(part: dict[str, Any], backward: bool, refused: list[str]) -> list[dict[str, Any]]:
    config = part.get("config", {})
    if bool(config.get("go_backwards", False)) != backward:
        refused.append(f"go_backwards={config.get('go_backwards')!r}")
    if part.get("class_name") != "RNN":
        return [config]
    cell = config.get("cell", {})
    inner = cell.get("config", {})
    return [one.get("config", {}) for one in inner["cells"]] if "cells" in inner else [inner]


def to_file(layer: Layer, path: str | os.PathLike[str]) -> None:
    """Write a layer as a Keras 3 model: its layers one after the other, returning sequences. Needs h5py.

    Parameters
    ----------
    layer
        Any RNN, LSTM or GRU; what becomes of biases and z is said in `to_weights`.
    path
        "*.weights.h5": for `load_weights` of a `keras.Sequential` of as many layers, of the same kind, as `layer` has.
        "*.keras": for `keras.saving.load_model`, which builds that model; its input is (batch, time, features).
        Written atomically.

    Raises
    ------
    ValueError
        Another ending.
    TypeError
        `layer` is not a crnn layer.
    OSError
        The file cannot be written.
    ModuleNotFoundError
        h5py is not installed.
    """
    kind_of(layer)
    name = os.fspath(path)
    if not name.endswith((".weights.h5", ".keras")):
        raise ValueError(f"path: got {name!r}, wanted a name that ends with .weights.h5 or .keras")
    tree = _tree(layer)
    with atomic_write(path) as stream:
        if name.endswith(".h5"):
            stream.write(tree)
            return
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
            archive.writestr("config.json", json.dumps(_model_config(layer)))
            archive.writestr(_WEIGHTS, tree)


def _names(layer: Layer) -> list[str]:
    """What Keras calls the groups of a Sequential's layers: class name, then _1, _2..."""
    first = "bidirectional" if layer.bidirectional else _GROUP[kind_of(layer)]
    return [first if k == 0 else f"{first}_{k}" for k in range(layer.num_layers)]


def _tree(layer: Layer) -> bytes:
    import h5py

    from crnn.interop.keras import to_weights

    weights = to_weights(layer)
    each = 3 if layer.bias else 2
    ways = ("forward_layer/", "backward_layer/") if layer.bidirectional else ("",)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for k, name in enumerate(_names(layer)):
            file.create_group(f"layers/{name}/vars").attrs["name"] = name
            for d, way in enumerate(ways):
                group = file.create_group(f"layers/{name}/{way}cell/vars")
                first = (k * len(ways) + d) * each
                for i, array in enumerate(weights[first : first + each]):
                    group[str(i)] = array
    return buffer.getvalue()


def _model_config(layer: Layer) -> dict[str, Any]:
    dtype = layer.params["weight_hh_l0"].dtype.name

    def keras_object(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
        return {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}

    own: dict[str, Any] = {"units": layer.hidden_size, "use_bias": layer.bias, "return_sequences": True, "dtype": dtype}
    if isinstance(layer, GRU):
        own["reset_after"] = layer.reset_after
    if isinstance(layer, RNN):
        own["activation"] = layer.nonlinearity
    layers = [keras_object("InputLayer", {"batch_shape": [None, None, layer.input_size], "dtype": dtype, "name": "x"})]
    for name in _names(layer):
        class_name = _CLASS[kind_of(layer)]
        if not layer.bidirectional:
            layers.append(keras_object(class_name, {"name": name, **own}))
            continue
        inner = [
            keras_object(class_name, {"name": f"{way}_{name}", "go_backwards": way == "backward", **own})
            for way in ("forward", "backward")
        ]
        wrapper = {"name": name, "merge_mode": "concat", "layer": inner[0], "backward_layer": inner[1], "dtype": dtype}
        layers.append(keras_object("Bidirectional", wrapper))
    config = {"name": "crnn", "trainable": True, "dtype": dtype, "layers": layers}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None}
