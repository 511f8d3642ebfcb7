"""Small foreign ONNX models to read."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx IS NOT INSTALLED: ONNX models were NOT tested")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def single_node(
    kind="LSTM", gates=4, hidden=4, ways=1, constant=("W", "R", "B"), inputs=None, shapes=None, **attributes
):
    """A model of one node with random weights; `inputs` names the node's inputs, `shapes` replaces weight shapes."""
    rng = np.random.default_rng(5)
    sizes = {
        "W": (ways, gates * hidden, 3),
        "R": (ways, gates * hidden, hidden),
        "B": (ways, 2 * gates * hidden),
        "P": (ways, 3 * hidden),
        "initial_h": (ways, 1, hidden),
        **(shapes or {}),
    }
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    node = helper.make_node(kind, inputs or ["X", "W", "R", "B"], ["Y"], name="cell", hidden_size=hidden, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ("t", "b", 3))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ("t", ways, "b", hidden))],
        [numpy_helper.from_array(weights[name], name) for name in constant],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def two_nodes(link):
    """Two LSTM nodes, the second fed from the first through `link`: (op, attributes, constant or None) each."""
    first, second = single_node(), single_node(shapes={"W": (1, 16, 4)})
    nodes, initializers, name = [first.graph.node[0]], list(first.graph.initializer), "Y"
    nodes[0].name = "lower"
    for i, (op, attributes, constant) in enumerate(link):
        inputs = [name]
        if constant is not None:
            initializers.append(numpy_helper.from_array(np.array(constant, np.int64), f"k{i}"))
            inputs.append(f"k{i}")
        name = f"link{i}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
    upper = helper.make_node("LSTM", [name, "W2", "R2", "B2"], ["Y2"], name="upper", hidden_size=4)
    for tensor in second.graph.initializer:
        tensor.name += "2"
        initializers.append(tensor)
    graph = helper.make_graph([*nodes, upper], "g", first.graph.input, first.graph.output, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
