"""ONNX graphs: which nodes form a stack, where states come from, and models that ask for much."""

from __future__ import annotations

import numpy as np
import pytest

import crnn
from crnn.interop.onnx import from_node, from_onnx

onnx = pytest.importorskip("onnx", reason="onnx IS NOT INSTALLED: ONNX models were NOT tested")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import single_node, two_nodes  # noqa: E402

SWAP = ("Transpose", {"perm": [0, 2, 1, 3]}, None)


@pytest.mark.parametrize(
    ("link", "shape"),
    [
        ([("Squeeze", {}, [1])], None),
        ([SWAP, ("Reshape", {}, [0, 0, -1])], None),
        ([("Squeeze", {}, [1]), ("Identity", {}, None)], None),
        ([SWAP, ("Reshape", {}, [5, 2, 4])], (5, 1, 2, 4)),
        ([("Reshape", {}, [5, -1, 4])], (5, 1, "b", 4)),
    ],
)
def test_stacks(link, shape):
    model = two_nodes(link)
    if shape is not None:
        model.graph.value_info.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape))
    layer = from_onnx(model)
    assert layer.num_layers == 2
    assert (from_onnx(model, "upper").params["weight_ih_l0"] == layer.params["weight_ih_l1"]).all()
    assert (from_onnx(model, 0).params["weight_hh_l0"] == layer.params["weight_hh_l0"]).all()


@pytest.mark.parametrize(
    "link",
    [
        [("Squeeze", {}, [1]), ("Relu", {}, None)],
        [("Squeeze", {}, [1]), ("Transpose", {"perm": [1, 0, 2]}, None)],
        [("Transpose", {"perm": [2, 0, 1, 3]}, None), ("Reshape", {}, [0, 0, -1])],
        [("Reshape", {}, [0, 0, -1])],  # (time, 1, batch * hidden)
        [SWAP, ("Reshape", {}, [2, 5, 4])],
        [SWAP, ("Reshape", {"allowzero": 1}, [0, 0, -1])],
    ],
)
def test_nodes_that_form_no_stack(link):
    model = two_nodes(link)
    model.graph.value_info.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, (5, 1, 2, 4)))
    with pytest.raises(ValueError, match="form no stack, say which one: lower, upper"):
        from_onnx(model)
    assert from_onnx(model, "lower").num_layers == 1
    with pytest.raises(ValueError, match="node: got 'middle', the recurrent nodes are lower, upper"):
        from_onnx(model, "middle")
    with pytest.raises(ValueError, match="node: got 2"):
        from_onnx(model, 2)


@pytest.mark.parametrize(("last", "stack"), [(3, True), (2, False)])
def test_a_stack_whose_shapes_are_computed(last, stack):
    """As torch's exporter writes it for a dynamic batch: (time, batch, directions * hidden) out of the shape itself."""
    model = two_nodes([SWAP, ("Reshape", {}, [0])])
    for i in range(5):
        model.graph.initializer.append(numpy_helper.from_array(np.array([i]), f"i{i}"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "minus"))
    shape = [helper.make_node("Shape", ["link0"], ["shape"], start=0)]
    for name, start in (("time", 0), ("batch", 1), ("ways", 2), ("hidden", last)):
        shape.append(helper.make_node("Slice", ["shape", f"i{start}", f"i{start + 1}"], [name]))
    shape.append(helper.make_node("Mul", ["ways", "hidden"], ["product"]))
    shape.append(helper.make_node("Reshape", ["product", "minus"], ["width"]))
    shape.append(helper.make_node("Concat", ["time", "batch", "width"], ["joined"], axis=0))
    for node in shape:
        model.graph.node.append(node)
    next(node for node in model.graph.node if node.output[0] == "link1").input[1] = "joined"
    if stack:
        assert from_onnx(model).num_layers == 2
    else:
        with pytest.raises(ValueError, match="form no stack"):
            from_onnx(model)


def starting_from(*nodes, **stored):
    """A model of one LSTM whose initial_h is the last output of `nodes`, which work on `stored` and the input `fed`."""
    model = single_node(inputs=["X", "W", "R", "B", "", "state"])
    for i, (op, inputs, attributes) in enumerate(nodes):
        name = "state" if i == len(nodes) - 1 else f"n{i}"
        model.graph.node.insert(i, helper.make_node(op, inputs, [name], **attributes))
    for name, value in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.FLOAT, (1, "b", 4)))
    return model


ZEROS, LEARNED = np.zeros((1, 1, 4), np.float32), np.arange(4, dtype=np.float32).reshape(1, 1, 4)
ONES = numpy_helper.from_array(np.ones(1, np.float32))


@pytest.mark.parametrize(
    "model",
    [
        starting_from(("Identity", ["fed"], {})),
        starting_from(("Shape", ["fed"], {}), ("Expand", ["h", "n0"], {}), h=ZEROS),
        starting_from(("Shape", ["fed"], {}), ("ConstantOfShape", ["n0"], {}), ("Slice", ["n1", "k", "k"], {}), k=[1]),
        starting_from(("Concat", ["fed", "h"], {"axis": 0}), h=ZEROS),
    ],
)
def test_states_that_are_fed_in_or_zero(model):
    assert isinstance(from_onnx(model), crnn.LSTM)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (starting_from(("Shape", ["fed"], {}), ("Expand", ["h", "n0"], {}), h=LEARNED), "a constant that is not zero"),
        (starting_from(("Concat", ["fed", "h"], {"axis": 0}), h=LEARNED), "a constant that is not zero"),
        (starting_from(("ConstantOfShape", ["k"], {"value": ONES}), k=[1, 2, 4]), "a constant that is not zero"),
        (starting_from(("Tanh", ["fed"], {}), ("Identity", ["n0"], {})), "what the Tanh node '' computes"),
    ],
)
def test_learned_initial_states_are_not_dropped(model, match):
    with pytest.raises(ValueError, match=f"initial_h is {match}"):
        from_onnx(model)
    assert isinstance(from_node(next(n for n in model.graph.node if n.op_type == "LSTM"), weights_of(model)), crnn.LSTM)


def weights_of(model):
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: stored[name] for name in "WRB"}


def test_states_of_another_recurrent_node():
    """A decoder that starts where its encoder ends: the caller's to give, but not a stack."""
    model = two_nodes([("Squeeze", {}, [1])])
    encoder, decoder = model.graph.node[0], model.graph.node[-1]
    encoder.output.append("Y_h")
    decoder.input.extend(["", "Y_h"])
    assert from_onnx(model, "upper").num_layers == 1
    with pytest.raises(ValueError, match="initial_h is what the LSTM node 'lower' computes"):
        from_onnx(model)


@pytest.mark.parametrize(("name", "fits"), [("unused", True), ("W", False)])
def test_small_models_that_would_become_large(name, fits):
    """Constants are computed where they are needed, and never much larger than what is stored."""
    model = single_node()
    for i in range(40):
        names = [f"W{i}" if i else "first"] * 2
        model.graph.node.insert(i, helper.make_node("Concat", names, [f"W{i + 1}" if i < 39 else name], axis=0))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "first"))
    if fits:
        assert isinstance(from_onnx(model), crnn.LSTM)
    else:
        del model.graph.initializer[0]
        with pytest.raises(ValueError, match=r"W \(W\) must be constants"):
            from_onnx(model)


def test_long_rows_of_nodes_and_weights_that_are_assembled():
    for length, fits in ((50, True), (20_000, False)):
        model = single_node()
        for i in range(length):
            model.graph.node.insert(
                i, helper.make_node("Identity", [f"W{i}"], [f"W{i + 1}" if i < length - 1 else "W"])
            )
        model.graph.initializer[0].name = "W0"
        if fits:
            assert isinstance(from_onnx(model), crnn.LSTM)
        else:
            with pytest.raises(ValueError, match=r"W \(W\) must be constants"):
                from_onnx(model)


def test_weights_in_another_file_are_not_looked_for(rng, tmp_path, monkeypatch):
    """What lies in the current folder under that name has nothing to do with the bytes."""
    monkeypatch.chdir(tmp_path)
    model, path = single_node(), tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="m.data")
    assert isinstance(from_onnx(path), crnn.LSTM)
    for wrong in (path.read_bytes(), onnx.load(path, load_external_data=False)):
        with pytest.raises(ValueError, match="'W' is stored in another file: give the path"):
            from_onnx(wrong)
    (tmp_path / "m.data").unlink()
    with pytest.raises((ValueError, OSError), match=r"m\.data"):
        from_onnx(path)


def test_a_graph_that_goes_round_in_circles():
    model = two_nodes([("Squeeze", {}, [1])])
    model.graph.node[1].input[0] = "link0"
    with pytest.raises(ValueError, match="form no stack"):
        from_onnx(model)
