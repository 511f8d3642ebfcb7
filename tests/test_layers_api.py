"""The layers as objects: construction, dropout, copies, threads, looks, and their place in a bigger model.

Calls are tested in test_layers_calls.py, numbers in test_layers_numeric.py and test_gradients.py.
"""

from __future__ import annotations

import copy
import json
import pickle
import threading

import numpy as np
import pytest
from layer_cases import GATES, KINDS, draw, every_kind, make, parts

import crnn
from crnn.layers import LAYERS
from crnn.packed import Packed

# -------------------------------------------------------------------------------------------------------- construction


@every_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_parameters_have_pytorchs_names_shapes_and_order(kind, bias, bidirectional):
    layer = make(kind, num_layers=2, bias=bias, bidirectional=bidirectional)
    rows, names = GATES[kind] * 4, []
    for k in range(2):
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            width = 3 if k == 0 else 4 * (1 + bidirectional)
            shapes = {"weight_ih": (rows, width), "weight_hh": (rows, 4), "bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in list(shapes.items())[: 4 if bias else 2]:
                names.append(f"{name}_l{k}{suffix}")
                assert layer.params[names[-1]].shape == shape
    assert list(layer.params) == names
    assert isinstance(layer.params, dict)


@every_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64, "float32"])
def test_initial_parameters_are_pytorchs_uniform(kind, dtype):
    layer = KINDS[kind](30, 49, 2, dtype=dtype, rng=7)
    for name, tensor in layer.params.items():
        assert tensor.dtype == dtype
        assert np.abs(tensor).max() <= 1 / 7
        assert np.abs(tensor).max() > 0.9 / 7, name
        assert abs(tensor.mean()) < 0.04, name


@every_kind
def test_rng_decides_the_parameters_and_both_dtypes_draw_the_same(kind):
    one = KINDS[kind](3, 5, rng=4)
    assert one.dtype == np.float32
    other = KINDS[kind](3, 5, rng=np.random.default_rng(4), dtype=np.float64)
    for name, tensor in one.params.items():
        np.testing.assert_array_equal(tensor, other.params[name].astype(np.float32))
    assert not np.array_equal(one.params.flat, KINDS[kind](3, 5, rng=5).params.flat)
    assert not np.array_equal(KINDS[kind](3, 5).params.flat, KINDS[kind](3, 5).params.flat)


def test_initialisation_in_blocks_equals_one_draw(monkeypatch):
    whole = make("gru", 7, 5)
    monkeypatch.setattr("crnn.cells._DRAW_BLOCK", 16)
    np.testing.assert_array_equal(make("gru", 7, 5).params.flat, whole.params.flat)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_models_are_initialised_by_the_same_blocks(scale, monkeypatch):
    drawn = []

    class Recorder(np.random.Generator):
        def uniform(self, low, high, size):
            drawn.append(int(np.prod(size)))
            return super().uniform(low, high, size)

    model = crnn.LanguageModel(40, "gru", 5, embedding_size=3)
    model.initialise(Recorder(np.random.PCG64(2)), scale)
    whole = model.parameters.flat.copy()
    assert max(drawn) == 200
    drawn.clear()
    monkeypatch.setattr("crnn.cells._DRAW_BLOCK", 16)
    model.initialise(Recorder(np.random.PCG64(2)), scale)
    assert max(drawn) <= 16
    np.testing.assert_array_equal(model.parameters.flat, whole)


@every_kind
def test_params_are_live(kind):
    layer, x = make(kind), draw(5, 3)
    before, _ = layer(x)
    layer.params["weight_hh_l0"][1, 2] += 0.5
    changed, _ = layer(x)
    assert not np.array_equal(changed, before)
    layer.params["weight_hh_l0"] = layer.params["weight_hh_l0"] - np.eye(GATES[kind] * 4, 4)[::-1]
    assert not np.array_equal(layer(x)[0], changed)
    with pytest.raises(AttributeError, match="params"):
        layer.params = {}


@pytest.mark.parametrize(
    ("kind", "arguments", "options", "error", "message"),
    [
        ("rnn", (0, 4), {}, ValueError, "input_size must be at least 1, got 0"),
        ("rnn", (3, -4), {}, ValueError, "hidden_size must be at least 1, got -4"),
        ("rnn", (3, 4, 0), {}, ValueError, "num_layers must be at least 1, got 0"),
        ("lstm", (3.0, 4), {}, TypeError, "input_size must be a whole number, not float"),
        ("lstm", (3, True), {}, TypeError, "hidden_size must be a whole number, not a bool"),
        ("lstm", (3, 4), {"dropout": 1.0}, ValueError, "dropout must be a probability of at least 0 and less than 1"),
        ("lstm", (3, 4), {"dropout": -0.1}, ValueError, "dropout must be a probability"),
        ("lstm", (3, 4), {"dropout": float("nan")}, ValueError, "dropout must be a probability"),
        ("lstm", (3, 4), {"dropout": "0.5"}, TypeError, "dropout must be a number, not str"),
        ("gru", (3, 4), {"bias": 1}, TypeError, "bias must be True or False, got 1"),
        ("gru", (3, 4), {"bidirectional": "yes"}, TypeError, "bidirectional must be True or False"),
        ("gru", (3, 4), {"reset_after": None}, TypeError, "reset_after must be True or False"),
        (
            "gru",
            (3, 4),
            {"z_weighs": "hidden"},
            ValueError,
            "z_weighs must be one of 'candidate', 'state', got 'hidden'",
        ),
        ("rnn", (3, 4), {"nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of 'tanh', 'sigmoid', 'relu'"),
        ("rnn", (3, 4), {"dtype": np.float16}, ValueError, "dtype must be float32 or float64"),
        ("rnn", (3, 4), {"dtype": int}, ValueError, "dtype must be float32 or float64"),
        ("lstm", (3, 4), {"nonlinearity": "relu"}, TypeError, "nonlinearity"),
        ("rnn", (3, 4, 1, "relu"), {}, TypeError, "positional"),
    ],
)
def test_bad_hyper_parameters_are_refused(kind, arguments, options, error, message):
    with pytest.raises(error, match=message):
        KINDS[kind](*arguments, **options)


# ------------------------------------------------------------------------------------------------------------ dropout


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_acts_between_layers_in_training_only(kind, bidirectional):
    layer = make(kind, 3, 16, 2, dropout=0.25, bidirectional=bidirectional)
    plain = make(kind, 3, 16, 2, bidirectional=bidirectional)
    x = draw(2, 9, 3)
    np.testing.assert_array_equal(layer(x)[0], plain(x)[0])
    first, second = layer.forward(x), layer.forward(x)
    assert not np.array_equal(first.output, second.output)
    depth = 1 + bidirectional
    for a, b in zip(parts(first.state), parts(plain(x)[1])):
        np.testing.assert_array_equal(a[:depth], b[:depth])  # the first layer is not touched
        assert not np.array_equal(a[depth:], b[depth:])
    single = make(kind, dropout=0.5)
    np.testing.assert_array_equal(single.forward(x).output, make(kind)(x)[0])


def test_dropout_masks_are_reproducible_inverted_and_the_same_for_both_dtypes():
    layer = make("gru", 3, 50, 3, dropout=0.25)
    masks = layer._masks(2000, np.random.default_rng(3))
    assert masks.shape == (2, 2000, 50)
    assert masks.dtype == np.float64
    assert np.unique(masks).tolist() == [0.0, 1 / 0.75]
    assert abs((masks == 0).mean() - 0.25) < 0.005
    single = make("gru", 3, 50, 3, dropout=0.25, dtype=np.float32)._masks(2000, np.random.default_rng(3))
    assert single.dtype == np.float32
    assert np.array_equal(single == 0, masks == 0)
    x = draw(5, 3)
    np.testing.assert_array_equal(
        make("gru", num_layers=2, dropout=0.5, rng=3).forward(x).output,
        make("gru", num_layers=2, dropout=0.5, rng=3).forward(x).output,
    )


# ------------------------------------------------------------------------------------------- copies, threads, looks


@every_kind
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same_and_own_their_parameters(kind, duplicate):
    options = {"rnn": {"nonlinearity": "sigmoid"}, "gru": {"reset_after": True, "z_weighs": "state"}}.get(kind, {})
    layer = make(kind, num_layers=2, dropout=0.5, bidirectional=True, bias=False, **options)
    twin, x = duplicate(layer), draw(2, 5, 3)
    assert type(twin) is type(layer)
    assert twin.config() == layer.config()
    assert twin(x)[0].tobytes() == layer(x)[0].tobytes()
    assert twin.forward(x).output.tobytes() == layer.forward(x).output.tobytes()  # the generator was copied too
    before = layer(x)[0]
    twin.params.flat[:] = 0
    np.testing.assert_array_equal(layer(x)[0], before)


@every_kind
def test_config_is_json_and_makes_the_layer_again(kind):
    layer = make(kind, num_layers=2, dropout=0.25, bidirectional=True)
    config = json.loads(json.dumps(layer.config()))
    assert config == layer.config()
    again = KINDS[kind](**config, rng=1)
    np.testing.assert_array_equal(again.params.flat, layer.params.flat)


@every_kind
def test_many_threads_may_call_one_layer(kind):
    layer = make(kind, 8, 24, 2)
    xs = [draw(4, 20, 8, seed=seed) for seed in range(8)]
    wanted = [layer(x, None, [20, 3, 0, 11])[0] for x in xs]
    results: dict[int, list[np.ndarray]] = {}
    start = threading.Barrier(len(xs))

    def work(i: int) -> None:
        start.wait()
        results[i] = [layer(xs[i], None, [20, 3, 0, 11])[0] for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, y in enumerate(wanted):
        assert len(results[i]) == 10
        for other in results[i]:
            assert other.tobytes() == y.tobytes()


def test_repr_and_summary():
    assert repr(crnn.LSTM(3, 4)) == "<crnn.LSTM(3, 4): 144 parameters>"
    gru = crnn.GRU(3, 4, 2, reset_after=True, bidirectional=True, bias=False, dtype=np.float64)
    assert repr(gru) == (
        "<crnn.GRU(3, 4, num_layers=2, reset_after=True, bias=False, bidirectional=True, dtype='float64'): "
        "456 parameters>"
    )
    assert repr(crnn.RNN(3, 4, nonlinearity="relu")).startswith("<crnn.RNN(3, 4, nonlinearity='relu'): ")
    lines = crnn.LSTM(3, 4).summary().splitlines()
    assert lines[0] == "<crnn.LSTM(3, 4): 144 parameters>"
    assert lines[1].split() == ["weight_ih_l0", "16x3", "48"]
    assert lines[-2].split() == ["total", "float32", "144"]
    assert lines[-1] == "576 bytes"
    run = crnn.LSTM(3, 4).forward([np.zeros((2, 3)), np.zeros((4, 3))])
    assert "2 sequences, 6 steps in all" in repr(run)
    assert "4 parameter tensors" in repr(run.backward(run.output))


# ---------------------------------------------------------------------- inside a bigger model: packed rows, one-hot


def test_without_rows_packed_gradients_are_zeroed_or_kept():
    layer = make("gru")
    geometry, grads = Packed([0, 0]), layer.params.like()
    grads.flat[:] = 3
    arguments = (None, geometry, None, None, None, (0, 0, 0), layer._kernel_list(grads))
    assert layer._backward_packed(*arguments, accumulate=True)[0].shape == (0, 3)
    assert (grads["weight_hh_l0"] == 3).all()
    layer._backward_packed(*arguments)
    assert not grads["weight_hh_l0"].any()


def test_public_names_load_on_demand():
    assert crnn.LSTM is LAYERS["lstm"]
    assert {"RNN", "LSTM", "GRU", "bptt", "show_config"} <= set(dir(crnn))
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        crnn.Transformer  # noqa: B018


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_a_pair_of_states_is_refused_by_a_step_as_by_a_call(kind):
    layer = make(kind)
    h = np.zeros((1, 1, layer.hidden_size), layer.dtype)
    for state in ((h, None), (None, None), (h, h)):
        with pytest.raises(TypeError, match="must be one array, not a tuple"):
            layer.step(np.zeros((1, 3)), state)
        with pytest.raises(TypeError, match="must be one array, not a tuple"):
            layer.step(np.zeros((1, 3), layer.dtype), state)


def test_a_window_of_any_length_will_do():
    layer = make("gru")
    run = layer.forward(draw(2, 4, 3))
    dy = draw(2, 4, layer.output_size, seed=2)
    wanted = run.backward(dy).params.flat
    for scheme in (crnn.bptt.Window(10**30), crnn.bptt.Chunk(10**30), crnn.bptt.Chunk(4, 10**30)):
        np.testing.assert_array_equal(run.backward(dy, truncation=scheme).params.flat, wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: crnn.GRU(2, 3, dtype="foo"), ValueError, "dtype must be float32 or float64, got 'foo'"),
        (lambda: crnn.GRU(2, 3, dropout=10**400), ValueError, "dropout must be a number within"),
        (lambda: crnn.GRU(2, 3, rng="x"), TypeError, "rng must be a seed"),
        (lambda: crnn.GRU(2, 3)(np.zeros((2, 2, 2)), lengths=[[1], [1, 2]]), ValueError, "lengths: not an array"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
