"""ONNX models in and out: `RNN`, `LSTM` and `GRU` nodes. Needs the onnx package, imported when first used.

How a node's tensors relate to ours, for D directions and H hidden units:

- `W` (D, G*H, input), `R` (D, G*H, H) and `B` (D, 2*G*H) hold our weight_ih, weight_hh and the two biases; gate blocks
  stand as i, o, f, c in an LSTM (ours: i, f, g, o) and z, r, h in a GRU (ours: r, z, n): a permutation of rows;
- `linear_before_reset` 1 is our `reset_after=True`, 0 (ONNX's default) is `reset_after=False`;
- the update gate weighs the old state: `z_weighs="state"`.

Import is in this module and `crnn.interop.onnx_graph`, export in `crnn.interop.onnx_export`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crnn.cells import CELLS, NONLINEARITIES
from crnn.interop._weights import Kind, Layer, Problems, as_array, build, reorder_gates, suffixes, z_rows_negated
from crnn.interop.onnx_export import GATES, KINDS, Z_WEIGHS_KEY, to_model, to_onnx
from crnn.interop.onnx_graph import Graph, attributes
from crnn.interop.reverse import Reversed

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["from_node", "from_onnx", "to_model", "to_onnx"]

_ACTIVATIONS = {"rnn": ["tanh"], "lstm": ["sigmoid", "tanh", "tanh"], "gru": ["sigmoid", "tanh"]}
_TIME, _BATCH = 1009, 1013  # stand for sizes that the model leaves open
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a node's attributes ask for; nodes of one stack must agree in all of it."""

    kind: Kind
    direction: str
    nonlinearity: str
    reset_after: bool
    bias: bool
    layout: int


def from_onnx(
    model: str | os.PathLike[str] | bytes | ModelProto,
    node: str | int | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
) -> Layer | Reversed:
    """A layer with the weights of the recurrent nodes of an ONNX model.

    Parameters
    ----------
    model
        A file, its bytes, or a loaded model. Weights that are stored in files beside it need the file.
    node
        Name or position (among the recurrent nodes) of the one node to take. None: all of them, which must be one node
        or a stack, each fed by the one before in the way exporters write it.
    dtype
        None keeps the weights' dtype. float32 or float64 converts (rounding when narrower).

    Returns
    -------
    RNN | LSTM | GRU | Reversed
        A GRU has `z_weighs="state"` (or what it was exported from) and `reset_after` according to
        `linear_before_reset`; `Reversed` for direction "reverse". Initial states and `sequence_lens` are arguments of
        the layer's calls, so in the graph the states must be fed in, zero, or come from another recurrent node; what
        stands around the nodes is not imported.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        Not an ONNX model; no recurrent node, or several that form no stack (all are named); attributes, activations or
        inputs that crnn does not compute (all are named); weights that are not constants, or misshapen.
    TypeError
        `model` is none of the above, or weights have a dtype that cannot be used.
    ModuleNotFoundError
        The onnx package is not installed.
    """
    proto = _load(model)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    graph = Graph({tensor.name: tensor for tensor in proto.graph.initializer}, proto.graph.node, opsets)
    nodes = [one for one in proto.graph.node if one.op_type in KINDS and one.domain in ("", "ai.onnx")]
    if not nodes:
        raise ValueError("model: no RNN, LSTM or GRU node in its graph")
    names = [one.name or f"#{i}" for i, one in enumerate(nodes)]
    if node is not None:
        position = node if isinstance(node, int) else names.index(node) if node in names else -1
        if not 0 <= position < len(nodes):
            raise ValueError(f"node: got {node!r}, the recurrent nodes are {', '.join(names)}")
        nodes = [nodes[position]]
    elif not _is_stack(nodes, proto, graph):
        raise ValueError(f"node: the model's recurrent nodes form no stack, say which one: {', '.join(names)}")
    marks = {entry.key: entry.value for entry in proto.metadata_props}
    return _from_nodes(nodes, graph, dtype, marks.get(Z_WEIGHS_KEY, "state"))


def from_node(node: NodeProto, constants: Mapping[str, Any], *, dtype: npt.DTypeLike | None = None) -> Layer | Reversed:
    """A layer from one `RNN`, `LSTM` or `GRU` node and its weights.

    Parameters
    ----------
    node
        The node.
    constants
        Arrays under the names that the node's inputs W, R and B have; further entries are ignored.
    dtype
        As in `from_onnx`.

    Returns
    -------
    RNN | LSTM | GRU | Reversed

    Raises
    ------
    ValueError, TypeError
        As `from_onnx`.
    """
    if node.op_type not in KINDS:
        raise ValueError(f"node: got a {node.op_type}, wanted an RNN, LSTM or GRU")
    return _from_nodes([node], Graph(constants), dtype, "state")


def _load(model: Any) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, str | os.PathLike | bytes | bytearray):
        raise TypeError(f"model: got {type(model).__name__}, wanted a path, bytes or a ModelProto")
    try:
        loaded = onnx.load(model) if isinstance(model, str | os.PathLike) else onnx.load_model_from_string(bytes(model))
    except DecodeError as error:
        raise ValueError(f"model: not an ONNX model ({error})") from None
    except onnx.checker.ValidationError as error:
        raise ValueError(f"model: {error}") from None  # of weights in another file
    if not loaded.graph.node:
        raise ValueError("model: not an ONNX model, or one without nodes")
    return loaded


def _is_stack(nodes: Sequence[NodeProto], proto: ModelProto, graph: Graph) -> bool:
    """Whether each node reads the whole output of the one before, laid out as (time, batch, D*H)."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.value_info}

    def linked(before: NodeProto, after: NodeProto) -> bool:
        declared = [dim.dim_value for dim in shapes.get(before.output[0], ())] if before.output else []
        time, batch = (declared[0], declared[2]) if len(declared) == 4 else (0, 0)
        return _links(before, after, graph, time or _TIME, batch or _BATCH)

    return all(linked(before, after) for before, after in itertools.pairwise(nodes))


def _links(before: NodeProto, after: NodeProto, graph: Graph, time: int, batch: int) -> bool:
    steps: list[NodeProto] = []  # from the later node back
    name = after.input[0] if after.input else ""
    for _ in range(5):
        node = graph.producers.get(name)
        if node is None or node is before or not node.input:
            break
        if node.op_type not in ("Identity", "Dropout"):
            steps.append(node)
        elif name != node.output[0]:
            return False
        name = node.input[0]
    if not before.output or name != before.output[0]:
        return False
    ways, hidden = 2 if _direction(before) == "bidirectional" else 1, _hidden(before)
    match [step.op_type for step in steps]:
        case ["Squeeze"]:
            axes = graph.get(steps[0].input[1]) if len(steps[0].input) > 1 else attributes(steps[0]).get("axes")
            return ways == 1 and axes is not None and np.asarray(axes).tolist() == [1]
        case ["Reshape"] if ways == 1:
            shape = (time, 1, batch, hidden)
        case ["Reshape", "Transpose"] if attributes(steps[1]).get("perm") == [0, 2, 1, 3]:
            shape = (time, batch, ways, hidden)
        case _:
            return False
    return graph.reshaped(steps[0], shape) == [time, batch, ways * hidden]


def _direction(node: NodeProto) -> str:
    return str(attributes(node).get("direction", "forward"))


def _hidden(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "hidden_size"), 0)


def _settings(node: NodeProto, graph: Graph, own: set[str]) -> _Settings:
    """A node's attributes, once none of them asks for something that crnn does not compute."""
    kind = KINDS[node.op_type]
    values = attributes(node)
    known = {"direction", "hidden_size", "layout", "activations", "linear_before_reset", "output_sequence"}
    refused = []
    direction = _direction(node)
    if direction not in ("forward", "reverse", "bidirectional"):
        refused.append(f"direction={direction!r}")
    directions = 2 if direction == "bidirectional" else 1
    default = _ACTIVATIONS[kind] * directions
    activations = [str(name).lower() for name in values.get("activations") or default]
    if kind == "rnn":
        if len(activations) != directions or len(set(activations)) != 1 or activations[0] not in NONLINEARITIES:
            refused.append(f"activations={activations} (only Tanh, Sigmoid or Relu, the same in both directions)")
    elif activations != default:
        refused.append(f"activations={activations} (only {_ACTIVATIONS[kind]} in each direction)")
    for name in sorted(set(values) - known):
        if name == "input_forget" and values[name] == 0:
            continue
        if name in ("activation_alpha", "activation_beta") and not values[name]:
            continue
        refused.append(f"{name}={values[name]!r}")
    given = dict(zip(_INPUTS, node.input, strict=False))
    if given.get("P"):
        refused.append("the input P (peepholes)")
    for name in ("initial_h", "initial_c"):
        if problem := graph.state_problem(given.get(name, ""), own):
            refused.append(f"{name} is {problem} (a crnn layer takes its initial state in each call)")
    if refused:
        where = f"{node.op_type} node {node.name!r}" if node.name else f"the {node.op_type} node"
        raise ValueError(f"{where} asks for what crnn does not compute: {'; '.join(refused)}")
    reset_after = kind == "gru" and bool(values.get("linear_before_reset", 0))
    return _Settings(kind, direction, activations[0], reset_after, bool(given.get("B")), int(values.get("layout", 0)))


def _from_nodes(
    nodes: Sequence[NodeProto], graph: Graph, dtype: npt.DTypeLike | None, z_weighs: str
) -> Layer | Reversed:
    own = {name for node in nodes for name in node.output}
    settings = _settings(nodes[0], graph, own)
    for node in nodes[1:]:
        if _settings(node, graph, own) != settings:
            raise ValueError(
                f"node: {node.name or node.op_type} differs in kind or attributes from the one before; say which"
            )
    kind, bidirectional = settings.kind, settings.direction == "bidirectional"
    ways = 2 if bidirectional else 1
    ours: dict[str, npt.NDArray[Any]] = {}
    for k, node in enumerate(nodes):
        for d, (weight_ih, weight_hh, biases) in enumerate(_directions(node, kind, ways, settings.bias, graph)):
            suffix = suffixes(len(nodes), bidirectional)[k * ways + d]
            ours[f"weight_ih{suffix}"], ours[f"weight_hh{suffix}"] = weight_ih, weight_hh
            if biases is not None:
                ours[f"bias_ih{suffix}"], ours[f"bias_hh{suffix}"] = biases
    if kind == "gru" and z_weighs == "candidate":
        ours = z_rows_negated(ours, ours["weight_hh_l0"].shape[1])
    layer = build(
        kind,
        ours,
        num_layers=len(nodes),
        bidirectional=bidirectional,
        bias=settings.bias,
        dtype=dtype,
        nonlinearity=settings.nonlinearity if kind == "rnn" else "tanh",
        reset_after=settings.reset_after,
        z_weighs=z_weighs if z_weighs == "candidate" else "state",
    )
    return Reversed(layer) if settings.direction == "reverse" else layer


def _directions(
    node: NodeProto, kind: Kind, ways: int, bias: bool, graph: Graph
) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any], list[npt.NDArray[Any]] | None]]:
    """weight_ih, weight_hh and the two biases of each direction, in our gate order; checked against each other."""
    given = dict(zip(_INPUTS, node.input, strict=False))
    where = f"{node.op_type} node {node.name!r}" if node.name else f"the {node.op_type} node"
    wanted_names = ["W", "R", *(["B"] if bias else [])]
    found = {name: graph.get(given.get(name, "")) for name in wanted_names}
    loose = [f"{name} ({given.get(name) or 'absent'})" for name, array in found.items() if array is None]
    if loose:
        raise ValueError(f"{where}: {', '.join(loose)} must be constants of the model, and are computed or fed in")
    arrays = {name: as_array(f"{where}, {name}", array) for name, array in found.items()}
    gates, recurrent, width = len(GATES[kind]), arrays["R"], arrays["W"].shape[-1] if arrays["W"].ndim == 3 else 0
    hidden = _hidden(node) or (recurrent.shape[-1] if recurrent.ndim == 3 else 0)
    problems = Problems()
    problems.check_shape("W", arrays["W"], (ways, gates * hidden, width))
    problems.check_shape("R", recurrent, (ways, gates * hidden, hidden))
    if bias:
        problems.check_shape("B", arrays["B"], (ways, 2 * gates * hidden))
    problems.raise_if_any(f"{where}: {ways} direction(s), {gates} gate block(s), hidden {hidden}")

    def ordered(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return reorder_gates(array, GATES[kind], CELLS[kind].gates)

    return [
        (
            ordered(arrays["W"][d]),
            ordered(recurrent[d]),
            [ordered(half) for half in np.split(arrays["B"][d], 2)] if bias else None,
        )
        for d in range(ways)
    ]
