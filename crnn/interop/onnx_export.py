"""Layers and language models as ONNX models, for ONNX Runtime and other inference engines.

Every export has dynamic batch and time, states as explicit inputs and outputs (so that a streaming loop feeds them
back), and `layout` 0 inside, because ONNX Runtime has no other. Tensors and their meaning are described in
`crnn.interop.onnx`. Opset 17, IR version 8: what runtimes since 2022 read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crnn.atomic import atomic_write
from crnn.cells import CELLS
from crnn.interop._weights import Kind, Layer, kind_of, reorder_gates, state_form, suffixes, z_rows_negated
from crnn.interop.reverse import Reversed
from crnn.layers import GRU, RNN

if TYPE_CHECKING:
    from onnx import ModelProto

    from crnn.language_model import LanguageModel

__all__ = ["GATES", "KINDS", "Z_WEIGHS_KEY", "to_model", "to_onnx"]

Array = npt.NDArray[Any]

KINDS: dict[str, Kind] = {"RNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
#: The order of gate blocks in a node's W, R and B.
GATES = {"rnn": CELLS["rnn"].gates, "lstm": ("i", "o", "f", "g"), "gru": ("z", "r", "n")}
#: Metadata entry that says what z weighed before export, so that import gives back the very layer.
Z_WEIGHS_KEY = "crnn.z_weighs"
_VOCABULARY_KEY = "crnn.vocabulary"
_OPSET, _IR_VERSION = 17, 8
_LIMIT = 2**31 - 1  # bytes; a protobuf message cannot be longer
_ACTIVATION = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"}


def to_onnx(
    model: Layer | Reversed | LanguageModel,
    path: str | os.PathLike[str],
    *,
    lengths: bool = False,
    output: str = "logits",
) -> None:
    """Write `to_model(model)` to a file, atomically.

    Parameters
    ----------
    model, lengths, output
        As in `to_model`.
    path
        The file to write.

    Raises
    ------
    OSError
        The file cannot be written.
    ValueError
        The model is larger than the 2 GB that a protobuf message holds; or as in `to_model`.
    TypeError, ModuleNotFoundError
        As in `to_model`.
    """
    proto = to_model(model, lengths=lengths, output=output)
    if proto.ByteSize() > _LIMIT:
        raise ValueError("model: larger than 2 GB, which is more than one ONNX file can hold")
    with atomic_write(path) as stream:
        stream.write(proto.SerializeToString())


def to_model(model: Layer | Reversed | LanguageModel, *, lengths: bool = False, output: str = "logits") -> ModelProto:
    """An ONNX model that computes what a layer or a language model computes. Needs the onnx package.

    Parameters
    ----------
    model
        A layer: inputs `x` (batch, time, features), `h_0` (layers*directions, batch, hidden) and, for an LSTM, `c_0`;
        outputs `y` (batch, time, directions*hidden), `h_n` and, for an LSTM, `c_n`.

        A language model: inputs `ids` (batch, time) int64, then the states; outputs `logits` (batch, time, vocabulary)
        or `probabilities`, then the states. One-hot words become a Gather of their columns of weight_ih, followed by a
        node whose own W is the identity.
    lengths
        Of a layer: add a last input `lengths` (batch,) int32; y is zero and states stand still beyond it.
    output
        Of a language model: "logits" or "probabilities".

    Returns
    -------
    onnx.ModelProto
        Checked by onnx's own checker. In the model's dtype; ONNX Runtime has float32 kernels only.

    Raises
    ------
    TypeError
        `model` is neither.
    ValueError
        `output` is neither, or `lengths` with a language model.
    ModuleNotFoundError
        The onnx package is not installed.

    Notes
    -----
    A GRU with `z_weighs="candidate"` is written with negated z rows, the same function in ONNX's form; the metadata
    says so, and `from_onnx` returns the original.
    """
    from crnn.language_model import LanguageModel

    if output not in ("logits", "probabilities"):
        raise ValueError(f"output: got {output!r}, wanted 'logits' or 'probabilities'")
    if isinstance(model, LanguageModel):
        if lengths:
            raise ValueError("lengths: language models are exported without lengths")
        return _language_model(model, output)
    return _layer(model, lengths)


class _Graph:
    """An ONNX graph under construction."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        import onnx

        self._onnx = onnx
        self.dtype = dtype
        self.real = int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def constant(self, name: str, value: Array) -> str:
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        return self.constant(name, np.array(values, np.int64))

    def node(self, op: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> str:
        """Add a node; returns its first output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        node_name = names[0] or names[1]
        self._nodes.append(self._onnx.helper.make_node(op, list(inputs), names, f"{op}_{node_name}", **attributes))
        return names[0]

    def input(self, name: str, shape: Sequence[int | str], element: int | None = None) -> str:
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, element or self.real, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, self.real, shape))

    def model(self, name: str, metadata: Mapping[str, str]) -> ModelProto:
        from crnn import __version__

        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        proto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="crnn",
            producer_version=__version__,
        )
        helper.set_model_props(proto, dict(metadata))
        if proto.ByteSize() <= _LIMIT:  # the checker serialises; what is too large for a file may still be looked at
            self._onnx.checker.check_model(proto, full_check=True)
        return proto


class _Stack:
    """What the nodes of a stack need to know, whichever object it came from."""

    def __init__(
        self,
        kind: Kind,
        hidden_size: int,
        num_layers: int,
        direction: str,
        bias: bool,
        nonlinearity: str,
        reset_after: bool,
    ) -> None:
        self.kind = kind
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.direction = direction
        self.ways = 2 if direction == "bidirectional" else 1
        self.bias = bias
        self.attributes: dict[str, Any] = {"hidden_size": hidden_size, "direction": direction}
        if kind == "rnn":
            self.attributes["activations"] = [_ACTIVATION[nonlinearity]] * self.ways
        if kind == "gru":
            self.attributes["linear_before_reset"] = int(reset_after)

    @property
    def states(self) -> tuple[str, ...]:
        return CELLS[self.kind].states

    @property
    def state_shape(self) -> tuple[int, str, int]:
        return self.num_layers * self.ways, "batch", self.hidden_size

    def weights(self, params: Mapping[str, Array], k: int) -> dict[str, Array]:
        """W, R and B of layer k, directions stacked, gate blocks in ONNX's order."""

        def ordered(name: str) -> list[Array]:
            ours, theirs = CELLS[self.kind].gates, GATES[self.kind]
            own = suffixes(self.num_layers, self.ways == 2)[k * self.ways : (k + 1) * self.ways]
            return [reorder_gates(params[f"{name}{suffix}"], ours, theirs) for suffix in own]

        found = {"W": np.stack(ordered("weight_ih")), "R": np.stack(ordered("weight_hh"))}
        if self.bias:
            found["B"] = np.concatenate([np.stack(ordered("bias_ih")), np.stack(ordered("bias_hh"))], axis=1)
        return found

    def add(self, graph: _Graph, x: str, params: Mapping[str, Array], lengths: str = "") -> str:
        """Nodes from `x` (time, batch, width) to (time, batch, directions*H); states in and out under their names."""
        entering = {s: self._split(graph, f"{s}_0") for s in self.states}
        leaving: dict[str, list[str]] = {s: [] for s in self.states}
        for k in range(self.num_layers):
            names = {part: graph.constant(f"{part}_l{k}", array) for part, array in self.weights(params, k).items()}
            inputs = [x, names["W"], names["R"], names.get("B", ""), lengths, *(entering[s][k] for s in self.states)]
            # one layer's final states need no joining: the node writes the model's outputs itself
            finals = [f"{s}_n" if self.num_layers == 1 else f"{s}_n_l{k}" for s in self.states]
            graph.node(self.kind.upper(), inputs, [f"Y_l{k}", *finals], **self.attributes)
            for s, name in zip(self.states, finals, strict=True):
                leaving[s].append(name)
            x = self._joined(graph, f"Y_l{k}", f"y_l{k}")
        if self.num_layers > 1:
            for s in self.states:
                graph.node("Concat", leaving[s], f"{s}_n", axis=0)
        return x

    def _split(self, graph: _Graph, name: str) -> list[str]:
        graph.input(name, self.state_shape)
        if self.num_layers == 1:
            return [name]
        sizes = graph.integers("directions_of_layers", [self.ways] * self.num_layers)
        parts = [f"{name}_l{k}" for k in range(self.num_layers)]
        graph.node("Split", [name, sizes], parts, axis=0)
        return parts

    def _joined(self, graph: _Graph, name: str, result: str) -> str:
        """(time, directions, batch, H) -> (time, batch, directions*H)."""
        if self.ways == 1:
            return graph.node("Squeeze", [name, graph.integers("axis_1", [1])], result)
        swapped = graph.node("Transpose", [name], f"{result}_swapped", perm=[0, 2, 1, 3])
        return graph.node("Reshape", [swapped, graph.integers("keep_keep_rest", [0, 0, -1])], result)

    def outputs(self, graph: _Graph) -> None:
        for s in self.states:
            graph.output(f"{s}_n", self.state_shape)


def _layer(model: Layer | Reversed, lengths: bool) -> ModelProto:
    layer = model.layer if isinstance(model, Reversed) else model
    kind = kind_of(layer)
    direction = "reverse" if isinstance(model, Reversed) else "bidirectional" if layer.bidirectional else "forward"
    stack = _Stack(
        kind,
        layer.hidden_size,
        layer.num_layers,
        direction,
        layer.bias,
        layer.nonlinearity if isinstance(layer, RNN) else "tanh",
        isinstance(layer, GRU) and layer.reset_after,
    )
    graph = _Graph(layer.dtype)
    graph.input("x", ("batch", "time", layer.input_size))
    x = graph.node("Transpose", ["x"], "x_time_major", perm=[1, 0, 2])
    y = stack.add(graph, x, state_form(layer), "lengths" if lengths else "")
    if lengths:
        graph.input("lengths", ("batch",), graph._onnx.TensorProto.INT32)
    graph.node("Transpose", [y], "y", perm=[1, 0, 2])
    graph.output("y", ("batch", "time", stack.ways * layer.hidden_size))
    stack.outputs(graph)
    return graph.model("layer", {Z_WEIGHS_KEY: layer.z_weighs} if isinstance(layer, GRU) else {})


def _language_model(model: LanguageModel, output: str) -> ModelProto:
    c = model.configuration
    kind: Kind = c.cell  # type: ignore[assignment]
    params: dict[str, Array] = {
        name.removeprefix("rnn."): np.array(value, order="C")
        for name, value in model.params.items()
        if name.startswith("rnn.")
    }
    if kind == "gru" and c.z_weighs == "candidate":
        params = z_rows_negated(params, c.hidden_size)
    graph = _Graph(model.dtype)
    graph.input("ids", ("batch", "time"), graph._onnx.TensorProto.INT64)
    ids = graph.node("Transpose", ["ids"], "ids_time_major", perm=[1, 0])
    weight = graph.constant("output.weight", model.params["output.weight"])
    if c.onehot:
        # The word's column of weight_ih is the whole input contribution: the node adds it as it is.
        columns = reorder_gates(params["weight_ih_l0"], CELLS[kind].gates, GATES[kind])
        table = graph.constant("weight_ih_columns", columns.T)
        params["weight_ih_l0"] = reorder_gates(np.eye(len(columns), dtype=model.dtype), GATES[kind], CELLS[kind].gates)
    elif c.tie_weights:
        table = weight
    else:
        table = graph.constant("embedding.weight", model.params["embedding.weight"])
    x = graph.node("Gather", [table, ids], "words", axis=0)
    stack = _Stack(kind, c.hidden_size, c.num_layers, "forward", c.bias, c.nonlinearity, c.reset_after)
    hidden = graph.node("Transpose", [stack.add(graph, x, params)], "hidden", perm=[1, 0, 2])
    transposed = graph.node("Transpose", [weight], "output.weight_t", perm=[1, 0])
    logits = graph.node("MatMul", [hidden, transposed], "products")
    if c.bias:
        logits = graph.node("Add", [logits, graph.constant("output.bias", model.params["output.bias"])], "sums")
    if output == "logits":
        graph.node("Identity", [logits], "logits")
    else:
        graph.node("Softmax", [logits], "probabilities", axis=-1)
    graph.output(output, ("batch", "time", c.vocabulary_size))
    stack.outputs(graph)
    metadata = {Z_WEIGHS_KEY: c.z_weighs} if kind == "gru" else {}
    if model.vocabulary is not None:
        words = model.vocabulary.decode(range(len(model.vocabulary)))
        metadata[_VOCABULARY_KEY] = json.dumps(words)  # escaped: half an emoji of a cut text has no UTF-8
    return graph.model("language_model", metadata)
