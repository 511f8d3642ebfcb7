"""ONNX in and out: the standard's own node tests, ONNX Runtime, the reference evaluator, torch exports, refusals."""

from __future__ import annotations

import importlib
import itertools
import warnings

import numpy as np
import pytest
from tolerances import assert_close

import crnn
from crnn.interop import Reversed
from crnn.interop.onnx import from_node, from_onnx, to_model, to_onnx

onnx = pytest.importorskip("onnx", reason="onnx IS NOT INSTALLED: ONNX models were NOT tested")
from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx_models import single_node  # noqa: E402

KINDS = {
    "rnn": (crnn.RNN, {}),
    "rnn_relu": (crnn.RNN, {"nonlinearity": "relu"}),
    "rnn_sigmoid": (crnn.RNN, {"nonlinearity": "sigmoid"}),
    "lstm": (crnn.LSTM, {}),
    "gru": (crnn.GRU, {}),
    "gru_after": (crnn.GRU, {"reset_after": True}),
    "gru_state": (crnn.GRU, {"z_weighs": "state"}),
    "gru_after_state": (crnn.GRU, {"reset_after": True, "z_weighs": "state"}),
}
KINDS_OF_NODES = {"RNN", "LSTM", "GRU"}
SHAPES = list(itertools.product((1, 3), (False, True), (True, False)))  # layers, bidirectional, bias


def runtime(model):
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime IS NOT INSTALLED: exports were NOT run in it")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def random_layer(kind, sizes, num_layers, bidirectional, bias, dtype, rng):
    cls, options = KINDS[kind]
    layer = cls(*sizes, num_layers, bidirectional=bidirectional, bias=bias, dtype=dtype, rng=rng, **options)
    for value in layer.params.values():
        value[...] = rng.normal(size=value.shape) / np.sqrt(value.shape[-1] if value.ndim == 2 else 4)
    return layer


def random_call(layer, batch, steps, rng):
    x = rng.normal(size=(batch, steps, layer.input_size)).astype(layer.dtype)
    shape = (layer.num_layers * layer.directions, batch, layer.hidden_size)
    parts = [rng.normal(size=shape).astype(layer.dtype) for _ in range(2 if layer.kind == "lstm" else 1)]
    return x, parts, dict(zip(("x", "h_0", "c_0"), (x, *parts)))


def joined(parts):
    return tuple(parts) if len(parts) == 2 else parts[0]


def split(state):
    return list(state) if isinstance(state, tuple) else [state]


def assert_outputs(actual, layer, y, state, steps):
    size = {"terms": layer.input_size + 2 * layer.hidden_size, "steps": steps * layer.num_layers, "dtype": layer.dtype}
    for name, ours, theirs in zip(("y", "h_n", "c_n"), [y, *split(state)], actual, strict=False):
        quantity = "output" if name == "y" else "state"
        assert_close(ours, np.asarray(theirs, np.float64), quantity, what=name, **size)
    assert len(actual) == 1 + len(split(state))


# --------------------------------------------------------------------------------------------------- ONNX's own tests


def node_tests():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in ("rnn", "lstm", "gru"):  # a case registers when its module is imported for the first time
            importlib.import_module(f"onnx.backend.test.case.node.{op}")
        cases = collect_testcases("RNN")
    return sorted((case for case in cases if case.model.graph.node[0].op_type in KINDS_OF_NODES), key=lambda c: c.name)


NODE_TESTS = node_tests()


def test_the_standard_has_its_node_tests():
    assert len(NODE_TESTS) >= 12
    assert {case.model.graph.node[0].op_type for case in NODE_TESTS} == KINDS_OF_NODES


@pytest.mark.parametrize("case", NODE_TESTS, ids=lambda case: case.name)
def test_node_tests_of_the_standard(case):
    (node,) = case.model.graph.node
    (inputs, outputs) = case.data_sets[0]
    given = {value.name: np.asarray(array) for value, array in zip(case.model.graph.input, inputs, strict=True)}
    wanted = {value.name: np.asarray(array) for value, array in zip(case.model.graph.output, outputs, strict=True)}
    roles = dict(zip(("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"), node.input, strict=False))
    if roles.get("P"):
        with pytest.raises(ValueError, match="peepholes"):
            from_node(node, given)
        return
    layer = from_node(node, given)
    batch_first = any(a.name == "layout" and a.i == 1 for a in node.attribute)

    state = [
        np.transpose(given[roles[name]], (1, 0, 2)) if batch_first else given[roles[name]]
        for name in ("initial_h", "initial_c")
        if roles.get(name)
    ]
    lengths = given[roles["sequence_lens"]] if roles.get("sequence_lens") else None
    x = given[roles["X"]] if batch_first else np.transpose(given[roles["X"]], (1, 0, 2))
    y, final = layer(x, joined(state) if state else None, lengths)
    steps = y.shape[1]
    results = dict(zip(("Y", "Y_h", "Y_c"), node.output, strict=False))
    size = {"terms": 16, "steps": steps, "dtype": np.float32}
    if results.get("Y"):
        expected = wanted[results["Y"]]  # (time, directions, batch, hidden), or (batch, time, directions, hidden)
        expected = expected if batch_first else np.transpose(expected, (2, 0, 1, 3))
        assert_close(y, expected.reshape(y.shape).astype(np.float64), "output", **size)
    for name, part in zip(("Y_h", "Y_c"), split(final)):
        if results.get(name):
            expected = wanted[results[name]].astype(np.float64)
            assert_close(part, np.transpose(expected, (1, 0, 2)) if batch_first else expected, "state", **size)


# ------------------------------------------------------------------------------------------------------ exported layers


@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_exported_layers_in_onnx_runtime(kind, num_layers, bidirectional, bias, rng):
    layer = random_layer(kind, (3, 5), num_layers, bidirectional, bias, np.float32, rng)
    session = runtime(to_model(layer))
    for batch, steps in ((1, 1), (4, 6)):  # batch and time are dynamic
        x, parts, feeds = random_call(layer, batch, steps, rng)
        assert_outputs(session.run(None, feeds), layer, *layer(x, joined(parts)), steps)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gru_after_state"])
def test_exported_layers_in_float64(kind, rng):
    """In ONNX's reference evaluator, since ONNX Runtime has no float64 kernels; it runs one direction, and no relu."""
    layer = random_layer(kind, (3, 4), 2, False, True, np.float64, rng)
    x, parts, feeds = random_call(layer, 2, 5, rng)
    assert_outputs(ReferenceEvaluator(to_model(layer)).run(None, feeds), layer, *layer(x, joined(parts)), 5)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru_after"])
def test_exported_lengths(kind, rng):
    layer = random_layer(kind, (3, 5), 2, True, True, np.float32, rng)
    x, parts, feeds = random_call(layer, 4, 6, rng)
    lengths = np.array([6, 1, 4, 3], np.int32)
    actual = runtime(to_model(layer, lengths=True)).run(None, {**feeds, "lengths": lengths})
    assert_outputs(actual, layer, *layer(x, joined(parts), lengths), 6)


@pytest.mark.parametrize("kind", ["rnn_relu", "lstm", "gru"])
def test_reversed_layers(kind, rng):
    layer = random_layer(kind, (3, 5), 2, False, True, np.float32, rng)
    reverse = Reversed(layer)
    x, parts, feeds = random_call(layer, 4, 6, rng)
    model = to_model(reverse)
    assert_outputs(runtime(model).run(None, feeds), layer, *reverse(x, joined(parts)), 6)
    again = from_onnx(model)
    assert isinstance(again, Reversed)
    assert (again(x)[0] == reverse(x)[0]).all()


def test_a_streaming_loop_in_onnx_runtime_equals_ours(rng):
    layer = random_layer("lstm", (3, 5), 2, False, True, np.float32, rng)
    session = runtime(to_model(layer))
    x, (h, c), _ = random_call(layer, 2, 9, rng)
    whole, _ = layer(x, (h, c))
    for t in range(9):
        y, h, c = session.run(None, {"x": x[:, t : t + 1], "h_0": h, "c_0": c})
        assert_close(y[:, 0], whole[:, t].astype(np.float64), "output", terms=13, steps=18, dtype=np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_keeps_every_bit_and_switch(kind, num_layers, bidirectional, bias, dtype, rng, tmp_path):
    layer = random_layer(kind, (3, 5), num_layers, bidirectional, bias, dtype, rng)
    to_onnx(layer, tmp_path / "m.onnx")
    again = from_onnx(tmp_path / "m.onnx")
    assert again.config() == layer.config()
    for name, value in layer.params.items():
        assert again.params[name].tobytes() == value.tobytes(), name
    assert (from_onnx((tmp_path / "m.onnx").read_bytes()).params["weight_hh_l0"] == layer.params["weight_hh_l0"]).all()


# ---------------------------------------------------------------------------------------------------- language models


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "rnn"},
        {"cell": "lstm", "num_layers": 2, "dropout": 0.5},
        {"cell": "gru", "bias": False},
        {"cell": "gru", "embedding_size": 4, "reset_after": True, "z_weighs": "state"},
        {"cell": "lstm", "embedding_size": 6, "tie_weights": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_language_models(options, rng):
    model = crnn.LanguageModel(11, hidden_size=6, rng=rng, **options)
    session = runtime(to_model(model, output="probabilities"))
    ids = np.array([3, 7, 0, 10, 5, 5])
    shape = (model.configuration.num_layers, 1, 6)
    names = [value.name for value in session.get_inputs()]
    states = [np.zeros(shape, np.float32) for _ in names[1:]]
    assert names[0] == "ids"
    whole = session.run(None, dict(zip(names, [ids[None], *states])))[0][0]
    assert_close(whole, model.probabilities(ids).astype(np.float64), "probability", terms=24, steps=6, dtype="float32")
    stepped = []
    for number in ids:
        p, *states = session.run(None, dict(zip(names, [np.array([[number]]), *states])))
        stepped.append(p[0, 0])
    assert_close(np.array(stepped), whole.astype(np.float64), "probability", terms=24, steps=6, dtype=np.float32)


def test_language_model_logits_and_batches(rng):
    model = crnn.LanguageModel(9, "gru", hidden_size=5, rng=rng, dtype=np.float64)
    evaluator = ReferenceEvaluator(to_model(model))
    ids = rng.integers(0, 9, (3, 4))
    logits, _ = evaluator.run(None, {"ids": ids, "h_0": np.zeros((1, 3, 5))})
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    for row, own in zip(ids, exponentials / exponentials.sum(-1, keepdims=True)):
        assert_close(model.probabilities(row), own, "probability", terms=14, steps=4)


def test_the_vocabulary_travels_with_the_model():
    import json

    sentences = [["ein", "haus", "ist", "ein", "haus"], ["ein", "baum"]]
    vocabulary = crnn.Vocabulary.build(sentences, size=5)
    model = to_model(crnn.LanguageModel(vocabulary, hidden_size=4, rng=0))
    words = json.loads({entry.key: entry.value for entry in model.metadata_props}["crnn.vocabulary"])
    assert len(words) == len(vocabulary)
    assert "ein" in words


def test_half_an_emoji_travels_with_the_model(tmp_path):
    import json

    vocabulary = crnn.Vocabulary.build([["ü", "\ud83d"]])
    crnn.interop.onnx.to_onnx(crnn.LanguageModel(vocabulary, hidden_size=4, rng=0), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    words = json.loads({entry.key: entry.value for entry in model.metadata_props}["crnn.vocabulary"])
    assert words == list(vocabulary)


# ------------------------------------------------------------------------------------------------------ foreign models


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_models_exported_by_torch(kind, bidirectional, rng, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch IS NOT INSTALLED: its ONNX exports were NOT tested")
    module = getattr(torch.nn, kind)(3, 4, 2, bidirectional=bidirectional, batch_first=True)
    x = torch.from_numpy(rng.normal(size=(2, 5, 3)).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(module, (x,), tmp_path / "t.onnx", dynamo=False, opset_version=17)
    layer = from_onnx(tmp_path / "t.onnx")
    assert layer.num_layers == 2
    assert layer.bidirectional is bidirectional
    for name, value in module.state_dict().items():
        assert (layer.params[name] == value.numpy()).all()
    expected = module(x)[0].detach().numpy().astype(np.float64)
    assert_close(layer(x.numpy())[0], expected, "output", terms=12, steps=10, dtype=np.float32)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"clip=1\.5", {"clip": 1.5}),
        (r"input_forget=1", {"input_forget": 1}),
        (r"activation_alpha=\[0\.5", {"activation_alpha": [0.5]}),
        (r"activations=\['sigmoid', 'relu', 'tanh'\]", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
        (r"activations=\['tanh'\]", {"activations": ["Tanh"]}),
        (r"direction='sideways'", {"direction": "sideways"}),
        (r"surprise=3", {"surprise": 3}),
        (r"P \(peepholes\)", {"inputs": ["X", "W", "R", "B", "", "", "", "P"]}),
        (
            r"initial_h is a constant that is not zero",
            {"inputs": ["X", "W", "R", "B", "", "initial_h"], "constant": ["W", "R", "B", "initial_h"]},
        ),
        (r"B \(B\) must be constants", {"constant": ("W", "R")}),
        (r"W is \(1, 15, 3\), wanted \(1, 16, 3\)", {"shapes": {"W": (1, 15, 3)}}),
        (r"B is \(1, 31\).*R is \(2, 16, 4\)", {"shapes": {"R": (2, 16, 4), "B": (1, 31)}}),
        (r"LSTM node 'cell'.*clip=1\.0; input_forget=1", {"clip": 1.0, "input_forget": 1}),
    ],
)
def test_what_crnn_does_not_compute_is_named(match, options):
    with pytest.raises(ValueError, match=match):
        from_onnx(single_node(**options))


def test_rnn_activations():
    assert from_onnx(single_node("RNN", 1, activations=["Relu"])).nonlinearity == "relu"
    assert from_onnx(single_node("RNN", 1)).nonlinearity == "tanh"
    two = single_node("RNN", 1, ways=2, direction="bidirectional", activations=["Sigmoid", "Sigmoid"])
    assert from_onnx(two).nonlinearity == "sigmoid"
    for names, ways, direction in ((["Tanh", "Relu"], 2, "bidirectional"), (["Elu"], 1, "forward")):
        with pytest.raises(ValueError, match="only Tanh, Sigmoid or Relu"):
            from_onnx(single_node("RNN", 1, ways=ways, direction=direction, activations=names))


def test_harmless_attributes_are_accepted():
    layer = from_onnx(single_node(input_forget=0, layout=1, activations=["sigmoid", "TANH", "Tanh"]))
    assert isinstance(layer, crnn.LSTM)
    assert from_onnx(single_node("GRU", 3)).reset_after is False
    assert from_onnx(single_node("GRU", 3, linear_before_reset=1)).reset_after is True


def test_float16_is_widened_and_integers_are_refused():
    model = single_node()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    assert from_onnx(model).dtype == np.float32
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int8), tensor.name))
    with pytest.raises(TypeError, match="W: got int8"):
        from_onnx(model)


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="not an ONNX model"):
        from_onnx(tmp_path / "junk.onnx")
    with pytest.raises(ValueError, match="not an ONNX model"):
        from_onnx(b"")
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "absent.onnx")
    with pytest.raises(TypeError, match="model: got int"):
        from_onnx(3)
    identity = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    with pytest.raises(ValueError, match="no RNN, LSTM or GRU node"):
        from_onnx(helper.make_model(identity))
    with pytest.raises(ValueError, match="wanted an RNN, LSTM or GRU"):
        from_node(identity.node[0], {})


def test_damaged_models_are_refused_or_read(rng):
    """Whatever a bit flip does, the answer is a layer or one clear error."""
    whole = to_model(crnn.GRU(3, 4, 2, rng=0)).SerializeToString()
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            layer = from_onnx(bytes(damaged))
        except (ValueError, TypeError):
            refused += 1
        else:
            assert np.isfinite(layer(np.ones((2, 3)))[0]).all()
    assert refused > 50


def test_wrong_export_arguments(tmp_path):
    model = crnn.LanguageModel(5, hidden_size=3, rng=0)
    with pytest.raises(ValueError, match="output: got 'words'"):
        to_model(model, output="words")
    with pytest.raises(ValueError, match="lengths: language models"):
        to_model(model, lengths=True)
    with pytest.raises(TypeError, match="layer: got str"):
        to_onnx("model", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
