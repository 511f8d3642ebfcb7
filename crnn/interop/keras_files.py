"""Keras 3 files: recurrent layers in and out of `.weights.h5` and `.keras`.

A `.weights.h5` file is an HDF5 tree that follows the model: a layer is a group, its arrays are `0`, `1`, `2` (kernel,
recurrent kernel, bias) in `cell/vars`, a bidirectional layer holds the groups `forward_layer` and `backward_layer`,
and the attribute `name` of a layer's `vars` is the name it has in Keras. It does not say what the layers are; a
`.keras` file does: it is a ZIP archive of such a tree, `config.json` and `metadata.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crnn.atomic import atomic_write
from crnn.interop._weights import Kind, Layer, agreed, gates_of, kind_of, widened
from crnn.layers import GRU, RNN

__all__ = ["from_file", "to_file"]

_CLASS: dict[Kind, str] = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
_GROUP: dict[Kind, str] = {"rnn": "simple_rnn", "lstm": "lstm", "gru": "gru"}
_WEIGHTS = "model.weights.h5"  # its name inside a .keras archive
_LIMIT, _SMALL = 100_000_000, 1_000_000  # bytes of a member and of an array that may be stored much compressed


@dataclasses.dataclass(frozen=True)
class _Found:
    """One recurrent Keras layer in a file."""

    path: str  # of its HDF5 group
    name: str | None  # in Keras, where the file says it
    weights: list[Any]  # in the order of get_weights(); HDF5 datasets until the layer is chosen
    bidirectional: bool
    arrays_per_cell: int

    @property
    def kind(self) -> Kind:
        recurrent = np.broadcast_to(np.float32(0), self.weights[1].shape)
        return gates_of(f"{self.path}: the transposed recurrent kernel", recurrent.T)

    def __str__(self) -> str:
        place = f"{self.path}, {_CLASS[self.kind]}"
        return f"({place})" if self.name is None else f"{self.name!r} ({place})"


_Configs = list[tuple[str | None, dict[str, Any]]]  # of recurrent layers, with the paths of their groups where known


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
        A `.weights.h5` or `.keras` file. It is read as data: nothing in it is executed. The HDF5 library that reads it
        may end the process over a file that is damaged with intent.
    layer
        The layer's name in Keras, or its group's path in the file. May be left out where there is only one. A
        `.weights.h5` file of Keras before 3.6 has paths only.
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
        it, the layer has settings that crnn does not compute (each is named), or a `.keras` file does not say for
        certain which settings are the layer's: those of a class that is not Keras' own are never known.
    ModuleNotFoundError
        h5py is not installed.
    """
    from crnn.interop.keras import from_weights

    source = Path(path)
    chosen, config = _read(source, layer)
    kind = chosen.kind
    if config is not None:
        said_reset, said_activation = _settings(chosen, kind, config)
        reset_after = agreed("reset_after", reset_after, said_reset)
        nonlinearity = agreed("nonlinearity", nonlinearity, said_activation)
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


def _read(source: Path, layer: str | None) -> tuple[_Found, dict[str, Any] | None]:
    """The chosen layer with its arrays and, from a .keras file, its configuration."""
    import h5py

    configs: _Configs | None = None
    with contextlib.ExitStack() as opened:
        stream: Any = opened.enter_context(open(source, "rb"))
        with _naming_damage(source):
            if zipfile.is_zipfile(stream):
                with zipfile.ZipFile(stream) as archive:
                    configs = list(_recurrent_configs(json.loads(_member(archive, "config.json")), ""))
                    stream = io.BytesIO(_member(archive, _WEIGHTS))
            stream.seek(0)
            file = opened.enter_context(h5py.File(stream, "r"))
            found = sorted(_layers(file, h5py, "", set()), key=lambda one: one.path)
        names = {path: entry["config"].get("name") for path, entry in configs or []}
        # Keras before 3.6 writes no names, but its paths follow from the configuration
        found = [dataclasses.replace(one, name=names.get(one.path)) if one.name is None else one for one in found]
        chosen = _choose(source, found, layer)
        config = None if configs is None else _config_of(source, chosen, found, configs)
        with _naming_damage(source):
            return dataclasses.replace(chosen, weights=list(map(_array, chosen.weights))), config


@contextlib.contextmanager
def _naming_damage(source: Path) -> Iterator[None]:
    """What h5py, zipfile and json raise for other and damaged files, as one error."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{source}: not a Keras 3 file, or a damaged one ({error})") from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > max(_LIMIT, 4 * info.compress_size):  # Keras does not compress
        raise ValueError(f"{name} is {info.compress_size} bytes that would become {info.file_size}")
    return archive.read(name)


def _array(dataset: Any) -> npt.NDArray[Any]:
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} is stored in another file")
    if dataset.nbytes > max(_SMALL, 4 * dataset.id.get_storage_size()):
        raise ValueError(f"{dataset.name} has shape {dataset.shape}, which is more than the file stores")
    array: npt.NDArray[Any] = np.asarray(dataset)
    if dataset.attrs.get("dtype") == "bfloat16" and array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return widened(array.view("<u2"))
    return array


def _inside(group: Any, h5py: Any, wanted: Any) -> dict[str, Any]:
    """The groups, or the datasets, of a group by name; links that lead out of it are not followed."""
    links = {name: group.get(name, getlink=True) for name in group}
    own = [name for name, link in links.items() if isinstance(link, h5py.HardLink)]
    return {name: group[name] for name in own if group.get(name, getclass=True) is wanted}


def _layers(group: Any, h5py: Any, path: str, seen: set[int]) -> Iterator[_Found]:
    """Walk the tree, each group once; a layer's own groups are not searched further."""
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return
    seen.add(address)
    inside = _inside(group, h5py, h5py.Group)
    name = inside["vars"].attrs.get("name") if "vars" in inside else None
    directions = [inside[way] for way in ("forward_layer", "backward_layer") if way in inside]
    cells = [arrays for place in directions or [group] if (arrays := _cells(place, h5py))]
    if cells and len(cells) == max(1, len(directions)):
        weights = [array for cell in cells for array in cell[0]]
        yield _Found(path or "/", name if isinstance(name, str) else None, weights, len(directions) == 2, cells[0][1])
        return
    for child, value in inside.items():
        yield from _layers(value, h5py, f"{path}/{child}".lstrip("/"), seen)


def _cells(group: Any, h5py: Any) -> tuple[list[Any], int] | None:
    """The arrays of a layer's cell, or of the cells of a `StackedRNNCells` one after the other; None if it has none."""
    cell = _inside(group, h5py, h5py.Group).get("cell")
    if cell is None:
        return None
    inside = _inside(cell, h5py, h5py.Group)
    inner = [inside]
    if "cells" in inside:
        stacked = _inside(inside["cells"], h5py, h5py.Group)
        inner = [_inside(stacked[key], h5py, h5py.Group) for key in sorted(stacked, key=_number)]
    variables = [_inside(one["vars"], h5py, h5py.Dataset) for one in inner if "vars" in one]
    arrays = [[one[key] for key in sorted(one, key=int)] for one in variables]
    if len(arrays) != len(inner) or {len(one) for one in arrays} not in ({2}, {3}):
        return None
    if any(one[1].ndim != 2 for one in arrays):
        return None
    return [array for one in arrays for array in one], len(arrays[0])


def _number(group: str) -> int:
    """The place of `lstm_cell`, `lstm_cell_1`... `lstm_cell_10` among its siblings, which HDF5 sorts as text."""
    ending = group.rsplit("_", 1)[-1]
    return int(ending) if ending.isdigit() else 0


def _choose(source: Path, found: list[_Found], layer: str | None) -> _Found:
    if not found:
        raise ValueError(f"{source}: no recurrent layer of Keras 3 in it")
    matches = [one for one in found if layer is None or layer in (one.name, one.path)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(map(str, found))
    if not matches:
        raise ValueError(f"layer: no recurrent layer {layer!r} in {source}; there are {names}")
    raise ValueError(f"layer: {source} holds several that fit, say which by path: {names}")


def _recurrent_configs(node: Any, path: str | None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The outermost recurrent layers anywhere in a model's configuration, and where their groups are, if that is known.

    Keras calls the groups of a model's layers after their classes, then _1, _2... Of other containers it is not known.
    """
    if isinstance(node, dict):
        config = node.get("config")
        if isinstance(config, dict) and node.get("class_name") in (*_CLASS.values(), "Bidirectional", "RNN"):
            yield path, node
            return
        if path is not None and isinstance(config, dict) and isinstance(config.get("layers"), list):
            taken: Counter[str] = Counter()
            for child in config["layers"]:
                group = _snake_case(str(child.get("class_name"))) if isinstance(child, dict) else ""
                number = f"_{taken[group]}" if taken[group] else ""
                taken[group] += 1
                yield from _recurrent_configs(child, f"{path}/layers/{group}{number}".lstrip("/"))
            config = {key: value for key, value in config.items() if key != "layers"}
            node = {**node, "config": config}
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _recurrent_configs(child, None)


def _snake_case(name: str) -> str:
    """As Keras makes the names of groups out of the names of classes."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _config_of(source: Path, chosen: _Found, found: list[_Found], configs: _Configs) -> dict[str, Any]:
    """The one configuration that can be the layer's: weights without their settings may be another function."""
    named = [(path, entry) for path, entry in configs if entry["config"].get("name") == chosen.name]
    for path, entry in named:
        if path == chosen.path:
            return entry
    alone = chosen.name is not None and sum(one.name == chosen.name for one in found) == 1
    if alone and named and all(entry == named[0][1] for _, entry in named):
        return named[0][1]
    raise ValueError(
        f"{source}: its configuration has no SimpleRNN, LSTM, GRU, RNN or Bidirectional of Keras that is for certain "
        f"{chosen} (a layer of a class of its own?), so its settings are not known; if it computes what Keras' own "
        "does by default, give its weights to from_weights"
    )


def _settings(found: _Found, kind: Kind, entry: dict[str, Any]) -> tuple[bool | None, str | None]:
    """`reset_after` and the RNN's activation out of a configuration; refuses, by name, what crnn does not compute."""
    refused: list[str] = []
    parts: list[Any] = [entry]
    if found.bidirectional:
        config = _own(entry, ("Bidirectional",), refused)
        backward = config.get("backward_layer")
        parts = [config.get("layer")] if backward is None else [config.get("layer"), backward]
        if config.get("merge_mode", "concat") != "concat":
            refused.append(f"merge_mode={config['merge_mode']!r} (only 'concat')")
    cells = [cell for i, part in enumerate(parts) for cell in _cell_configs(kind, part, i == 1, refused)]
    activations = [_function(cell.get("activation", "tanh")) for cell in cells]
    for activation in activations:
        if kind == "rnn" and activation not in ("tanh", "sigmoid", "relu"):
            refused.append(f"activation={activation!r} (only 'tanh', 'sigmoid', 'relu')")
        if kind != "rnn" and activation != "tanh":
            refused.append(f"activation={activation!r} (only 'tanh')")
    for cell in cells:
        gates = _function(cell.get("recurrent_activation", "sigmoid"))
        if kind != "rnn" and gates != "sigmoid":
            refused.append(f"recurrent_activation={gates!r} (only 'sigmoid')")
    resets = {bool(cell.get("reset_after", True)) for cell in cells} if kind == "gru" else {None}
    if len(set(activations)) > 1 or len(resets) > 1:
        refused.append("cells that differ in activation or reset_after")
    if refused:
        which = "; ".join(dict.fromkeys(refused))
        raise ValueError(f"the Keras layer {(found.name or found.path)!r} has settings crnn does not compute: {which}")
    return resets.pop(), activations[0] if kind == "rnn" else None


def _cell_configs(kind: Kind, part: Any, backward: bool, refused: list[str]) -> list[dict[str, Any]]:
    config = _own(part, (_CLASS[kind], "RNN"), refused)
    if bool(config.get("go_backwards", False)) != backward:
        refused.append(f"go_backwards={config.get('go_backwards')!r}")
    if not isinstance(part, dict) or part.get("class_name") != "RNN":
        return [config]
    cell = config.get("cell")
    cells: Any = [cell]
    if isinstance(cell, dict) and cell.get("class_name") == "StackedRNNCells":
        cells = _own(cell, ("StackedRNNCells",), refused).get("cells")
    return [_own(one, (f"{_CLASS[kind]}Cell",), refused) for one in (isinstance(cells, list) and cells) or [None]]


def _own(node: Any, names: tuple[str, ...], refused: list[str]) -> dict[str, Any]:
    """The configuration of a layer or cell, which must be of one of these classes of Keras' own."""
    if not isinstance(node, dict) or not isinstance(node.get("config"), dict):
        refused.append(f"no configuration of a {' or '.join(names)}")
        return {}
    if node.get("class_name") not in names or node.get("module") != "keras.layers":
        refused.append(f"the class {_function(node)} of {node.get('module')} (only Keras' own {' or '.join(names)})")
    config: dict[str, Any] = node["config"]
    return config


def _function(value: Any) -> str:
    """The name of an activation, or of any other object that Keras describes by a string or a dict."""
    if isinstance(value, dict):
        config = value.get("config")
        value = value.get("registered_name") or (config if isinstance(config, str) else value.get("class_name"))
    return str(value)


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
