"""The layers as callers meet them: forms, shapes, states, dropout, copies, threads and errors.

Numbers are tested in test_layers_numeric.py and test_gradients.py.
"""

from __future__ import annotations

import copy
import json
import pickle
import threading

import numpy as np
import pytest

import crnn
from crnn.layers import LAYERS
from crnn.packed import Packed
from crnn.parameters import Parameters, Spec

KINDS = {"rnn": crnn.RNN, "lstm": crnn.LSTM, "gru": crnn.GRU}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "lstm", input_size: int = 3, hidden_size: int = 4, num_layers: int = 1, **options: object):
    return KINDS[kind](input_size, hidden_size, num_layers, **{"rng": 1, "dtype": np.float64, **options})


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.6, 0.9, shape)


def parts(state: object) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def state_for(layer: object, batch: int, seed: int = 5) -> object:
    shape = (layer.num_layers * layer.directions, batch, layer.hidden_size)
    h, c = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    return (h, c) if layer.kind == "lstm" else h


def tensors_of(result: object) -> list[np.ndarray]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


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


# ------------------------------------------------------------------------------------------------ forms and states


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_output_state_and_gradients_have_the_form_of_what_came_in(kind, bidirectional, num_layers):
    layer = make(kind, num_layers=num_layers, bidirectional=bidirectional)
    width, depth = 4 * (1 + bidirectional), num_layers * (1 + bidirectional)
    padded = draw(3, 5, 3)
    for x, lengths, batch, y_shape in (
        (draw(5, 3), None, 1, (5, width)),
        (draw(5, 3), [2], 1, (5, width)),
        (padded, None, 3, (3, 5, width)),
        (padded, [2, 5, 0], 3, (3, 5, width)),
        (padded, np.array([5, 5, 5], np.uint8), 3, (3, 5, width)),
        (padded[:1], None, 1, (1, 5, width)),
        (padded[:1], [3], 1, (1, 5, width)),
        (padded[:, :1], None, 3, (3, 1, width)),
        ([padded[0], padded[1, :2], padded[2, :0]], None, 3, [(5, width), (2, width), (0, width)]),
        ((padded[0],), None, 1, [(5, width)]),
    ):
        state = state_for(layer, batch)
        run = layer.forward(x, state, lengths)
        back = run.backward(run.output, run.state)
        for y in (run.output, back.input):
            if isinstance(y_shape, list):
                assert type(y) is list
                assert [a.shape[0] for a in y] == [shape[0] for shape in y_shape]
            else:
                assert type(y) is np.ndarray
                assert y.shape[:-1] == y_shape[:-1]
        assert all(a.shape[-1] == width for a in tensors_of(run.output) if a.ndim)
        assert all(a.shape[-1] == 3 for a in tensors_of(back.input))
        for s in (run.state, back.state):
            assert isinstance(s, tuple) == (kind == "lstm")
            for part in parts(s):
                assert part.shape == (depth, batch, 4)
                assert part.dtype == np.float64
        assert list(back.params) == list(layer.params)
        assert all(back.params[name].shape == layer.params[name].shape for name in layer.params)
        y, final = layer(x, state, lengths)
        for a, b in zip([*tensors_of(y), *parts(final)], [*tensors_of(run.output), *parts(run.state)]):
            assert a.tobytes() == b.tobytes()


@every_kind
def test_padding_is_ignored_on_the_way_in_and_zero_on_the_way_out(kind):
    layer, x, lengths = make(kind, bidirectional=True), draw(4, 6, 3), [3, 6, 0, 1]
    beyond = np.arange(6)[None, :] >= np.array(lengths)[:, None]
    dirty = np.where(beyond[..., None], np.nan, x)
    run, clean = layer.forward(dirty, None, lengths), layer.forward(x, None, lengths)
    np.testing.assert_array_equal(run.output, clean.output)
    assert not run.output[beyond].any()
    d_output = draw(4, 6, 8, seed=2)
    back = run.backward(np.where(beyond[..., None], np.inf, d_output))
    np.testing.assert_array_equal(back.input, clean.backward(d_output).input)
    assert not back.input[beyond].any()
    assert back.input[~beyond].all()


@every_kind
def test_list_padded_and_single_calls_agree(kind):
    layer, lengths = make(kind, num_layers=2), [3, 6, 0, 1]
    x, state = draw(4, 6, 3), state_for(make(kind, num_layers=2), 4)
    y, final = layer(x, state, lengths)
    ys, finals = layer([row[:length] for row, length in zip(x, lengths)], state)
    for a, b in zip(parts(final), parts(finals)):
        np.testing.assert_array_equal(a, b)
    for i, length in enumerate(lengths):
        np.testing.assert_array_equal(ys[i], y[i, :length])
        one = tuple(part[:, i : i + 1] for part in parts(state))
        alone, own = layer(x[i, :length], one if kind == "lstm" else one[0])
        np.testing.assert_allclose(alone, ys[i], rtol=1e-12, atol=1e-14)
        for a, b in zip(parts(own), parts(final)):
            np.testing.assert_allclose(a[:, 0], b[:, i], rtol=1e-12, atol=1e-14)


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("x", "lengths", "batch"),
    [
        (np.zeros((0, 3)), None, 1),
        (np.zeros((2, 0, 3)), None, 2),
        (np.zeros((0, 5, 3)), None, 0),
        (np.zeros((0, 5, 3)), [], 0),
        (np.full((2, 5, 3), np.nan), [0, 0], 2),
        ([], None, 0),
        ([np.zeros((0, 3))] * 3, None, 3),
    ],
    ids=["T=0", "B=2,T=0", "B=0", "B=0,lengths", "zero lengths", "empty list", "empty arrays"],
)
def test_nothing_to_do_passes_the_state_through(kind, bidirectional, x, lengths, batch):
    layer = make(kind, num_layers=2, bidirectional=bidirectional)
    state, d_state = state_for(layer, batch), state_for(layer, batch, seed=8)
    run = layer.forward(x, state, lengths)
    assert not any(np.any(a) for a in tensors_of(run.output))
    for final, initial in zip(parts(run.state), parts(state)):
        np.testing.assert_array_equal(final, initial)
    for back in (run.backward(run.output, d_state), run.backward(None, d_state)):
        for d_initial, d_final in zip(parts(back.state), parts(d_state)):
            np.testing.assert_array_equal(d_initial, d_final)
        assert not back.params.flat.any()
        assert all(a.size == 0 or not a.any() for a in tensors_of(back.input))
    assert not any(part.any() for part in parts(layer(x, None, lengths)[1]))
    assert not any(part.any() for part in parts(run.backward(run.output).state))


def test_the_state_of_an_empty_sequence_among_others_passes_through():
    layer, lengths = make("lstm", num_layers=2), [0, 3, 0, 2]
    state, d_state = state_for(layer, 4), state_for(layer, 4, seed=8)
    run = layer.forward(draw(4, 3, 3), state, lengths)
    back = run.backward(run.output, d_state)
    for final, initial, d_initial, d_final in zip(run.state, state, back.state, d_state):
        np.testing.assert_array_equal(final[:, [0, 2]], initial[:, [0, 2]])
        np.testing.assert_array_equal(d_initial[:, [0, 2]], d_final[:, [0, 2]])
        assert not np.isclose(final[:, [1, 3]], initial[:, [1, 3]]).any()


def test_either_part_of_an_lstm_state_may_be_missing():
    layer, x = make("lstm"), draw(2, 5, 3)
    h, c = state_for(layer, 2)
    zero = np.zeros_like(h)
    for given, whole in (((h, None), (h, zero)), ((None, c), (zero, c)), ((None, None), None), ([h, c], (h, c))):
        np.testing.assert_array_equal(layer(x, given)[0], layer(x, whole)[0])
        run = layer.forward(x)
        np.testing.assert_array_equal(
            run.backward(x.repeat(2, -1)[..., :4], given).input, run.backward(x.repeat(2, -1)[..., :4], whole).input
        )


@every_kind
def test_backward_from_the_state_alone_equals_zero_output_gradients(kind):
    layer, x = make(kind, num_layers=2), draw(3, 5, 3)
    run, d_state = layer.forward(x, None, [2, 5, 4]), state_for(make(kind, num_layers=2), 3)
    one, other = run.backward(None, d_state), run.backward(np.zeros((3, 5, 4)), d_state)
    np.testing.assert_array_equal(one.input, other.input)
    np.testing.assert_array_equal(one.params.flat, other.params.flat)
    assert one.params.flat.any()


@every_kind
def test_a_run_can_be_propagated_back_again(kind):
    run = make(kind).forward(draw(2, 6, 3))
    d_output = draw(2, 6, 4, seed=3)
    first, window = run.backward(d_output), run.backward(d_output, truncation=crnn.bptt.Window(2))
    again = run.backward(d_output)
    assert first.params.flat.tobytes() == again.params.flat.tobytes()
    assert first.input.tobytes() == again.input.tobytes()
    assert not np.allclose(first.params.flat, window.params.flat)


@every_kind
def test_a_run_keeps_its_own_copies(kind):
    layer, x = make(kind), draw(6, 3)
    state = state_for(layer, 1)
    d_output = draw(6, 4, seed=3)
    wanted = layer.forward(x.copy(), copy.deepcopy(state)).backward(d_output)
    run = layer.forward(x, state)
    x[...] = 7
    run.output[...] = 7
    for part in (*parts(state), *parts(run.state)):
        part[...] = 7
    back = run.backward(d_output)
    assert back.params.flat.tobytes() == wanted.params.flat.tobytes()
    for a, b in zip(parts(back.state), parts(wanted.state)):
        assert a.tobytes() == b.tobytes()


@every_kind
def test_any_memory_layout_and_real_dtype_will_do(kind):
    layer = make(kind, dtype=np.float32)
    x = np.round(draw(3, 5, 3) * 64).astype(np.float32)
    wanted, state = layer(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    given_state = tuple(np.asfortranarray(part).astype(np.float64) for part in parts(state))
    given_state = given_state if kind == "lstm" else given_state[0]
    for variant in (
        read_only,
        misaligned,
        np.asfortranarray(x),
        x[:, ::-1].copy()[:, ::-1],
        x.astype(np.float64),
        x.astype(np.float16),
        x.astype(np.int8),
        x.astype(">f4"),
        x.tolist() and np.array(x.tolist()),
    ):
        y, final = layer(variant)
        np.testing.assert_array_equal(y, wanted)
        assert y.dtype == np.float32
        run = layer.forward(variant, given_state)
        np.testing.assert_array_equal(run.output, layer(x, state)[0])
        np.testing.assert_array_equal(run.backward(np.asfortranarray(wanted)).input, run.backward(wanted).input)
        for a, b in zip(parts(final), parts(state)):
            np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((2, 5, 4)), ValueError, r"x must have shape \(2, 5, 3\), got \(2, 5, 4\)"),
        (np.zeros((5, 4)), ValueError, r"x must have shape \(5, 3\), got \(5, 4\)"),
        ([np.zeros((5, 3)), np.zeros((5, 4))], ValueError, r"x\[1\] must have shape \(5, 3\), got \(5, 4\)"),
        (np.zeros((2, 5, 3), complex), TypeError, "x must hold real numbers, got dtype complex128"),
        (np.full((5, 3), "a"), TypeError, "x must hold real numbers, got dtype <U1"),
        (np.full((5, 3), None), TypeError, "x must hold real numbers, got dtype object"),
        (None, ValueError, r"x must be \(batch, time, features\)"),
    ],
)
def test_bad_inputs_are_refused(x, error, message):
    layer = make("gru")
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(value):
    layer, x = make("lstm"), draw(3, 5, 3)
    x[1, 4, 2] = value
    message = str(value).replace("-", "\\-")
    for call in (layer, layer.forward):
        with pytest.raises(ValueError, match=rf"x must be finite, got {message} at x\[1, 4, 2\]"):
            call(x)
        with pytest.raises(ValueError, match=r"at x\[1\]\[4, 2\]"):
            call([x[0, :2], x[1]])
        with pytest.raises(ValueError, match=r"at x\[4, 2\]"):
            call(x[1])
        call(x, None, [5, 4, 5])
    with pytest.raises(ValueError, match=r"x_t must be finite, got .* at x_t\[1, 2\]"):
        layer.step(x[:, 4])
    run = layer.forward(x[0])
    d_output = np.zeros((5, 4))
    d_output[2, 3] = value
    with pytest.raises(ValueError, match=r"d_output must be finite, got .* at d_output\[2, 3\]"):
        run.backward(d_output)
    h, c = state_for(layer, 1)
    c[0, 0, 1] = value
    with pytest.raises(ValueError, match=r"state\[1\] must be finite, got .* at state\[1\]\[0, 0, 1\]"):
        layer(x[0], (h, c))
    with pytest.raises(ValueError, match=r"d_state\[1\] must be finite"):
        run.backward(None, (h, c))


def test_large_finite_values_are_not_mistaken_for_infinite_ones():
    x = np.array([[1e300, -1e300, 1e200]])
    y, _ = make("rnn")(x)
    assert np.isfinite(y).all()
    with pytest.raises(ValueError, match=r"got inf at x\[0, 0\]"):
        make("rnn", dtype=np.float32)(x)
    y, _ = make("rnn", dtype=np.float32)(np.full((1, 3), 3e38, np.float32))
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("kind", "state", "error", "message"),
    [
        ("gru", np.zeros((1, 3, 4)), ValueError, r"state must have shape .* = \(1, 2, 4\), got \(1, 3, 4\)"),
        ("gru", np.zeros((2, 4)), ValueError, r"got \(2, 4\)"),
        ("gru", (np.zeros((1, 2, 4)), np.zeros((1, 2, 4))), TypeError, "state of a GRU must be one array, not a tuple"),
        ("rnn", np.zeros((1, 2, 4), complex), TypeError, "state must hold real numbers"),
        (
            "lstm",
            np.zeros((1, 2, 4)),
            TypeError,
            r"state of an LSTM must be a tuple \(h, c\) of two arrays, not ndarray",
        ),
        ("lstm", (np.zeros((1, 2, 4)),), TypeError, "not 1 parts"),
        ("lstm", (np.zeros((1, 2, 4)), np.zeros((1, 2, 5))), ValueError, r"state\[1\] must have shape"),
    ],
)
def test_bad_states_are_refused(kind, state, error, message):
    layer = make(kind)
    run = layer.forward(draw(2, 5, 3))
    with pytest.raises(error, match=message):
        layer(draw(2, 5, 3), state)
    with pytest.raises(error, match=message.replace("state", "d_state", 1)):
        run.backward(None, state)


def test_bad_gradients_are_refused():
    run = make("gru").forward([draw(5, 3), draw(2, 3)])
    with pytest.raises(ValueError, match="d_output and d_state are both None"):
        run.backward(None)
    with pytest.raises(TypeError, match="d_output must be a list of 2 arrays"):
        run.backward(np.zeros((2, 5, 4)))
    with pytest.raises(ValueError, match=r"d_output\[1\] must have shape \(2, 4\), got \(5, 4\)"):
        run.backward([np.zeros((5, 4)), np.zeros((5, 4))])
    with pytest.raises(TypeError, match="truncation must be None"):
        run.backward(run.output, truncation=4)


@every_kind
def test_a_bidirectional_layer_refuses_truncation_and_steps(kind):
    layer = make(kind, bidirectional=True)
    run = layer.forward(draw(5, 3))
    for truncation in (crnn.bptt.Window(9), crnn.bptt.Chunk(9)):
        with pytest.raises(ValueError, match="no agreed meaning in a bidirectional layer"):
            run.backward(run.output, truncation=truncation)
    assert run.backward(run.output, truncation=crnn.bptt.Full()).params.flat.any()
    with pytest.raises(ValueError, match="a bidirectional layer cannot step"):
        layer.step(draw(3))


# ------------------------------------------------------------------------------------------------------------- steps


@every_kind
def test_step_shapes(kind):
    layer = make(kind, num_layers=2)
    y, state = layer.step(draw(3))
    assert y.shape == (4,)
    assert all(part.shape == (2, 1, 4) for part in parts(state))
    y, state = layer.step(draw(5, 3), state_for(layer, 5))
    assert y.shape == (5, 4)
    assert all(part.shape == (2, 5, 4) for part in parts(state))
    state = state_for(layer, 0)
    y, final = layer.step(np.zeros((0, 3)), state)
    assert y.shape == (0, 4)
    assert all(part.shape == (2, 0, 4) for part in parts(final))


@every_kind
def test_steps_follow_the_sequence_and_leave_the_given_state_alone(kind):
    layer, x = make(kind, num_layers=2), draw(4, 6, 3)
    state = state_for(layer, 4)
    before = copy.deepcopy(state)
    wanted, final = layer(x, state)
    running = state
    for t in range(6):
        y, running = layer.step(x[:, t], running)
        np.testing.assert_allclose(y, wanted[:, t], rtol=1e-12, atol=1e-14)
    for a, b, kept, old in zip(parts(running), parts(final), parts(state), parts(before)):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(kept, old)


@pytest.mark.parametrize(
    ("x_t", "error", "message"),
    [
        (np.zeros(4), ValueError, r"x_t must have shape \(batch, 3\) or \(3,\), got \(4,\)"),
        (np.zeros((2, 1, 3)), ValueError, r"got \(2, 1, 3\)"),
        (3.0, ValueError, r"got \(\)"),
        (np.zeros(3, complex), TypeError, "x_t must hold real numbers"),
    ],
)
def test_bad_steps_are_refused(x_t, error, message):
    with pytest.raises(error, match=message):
        make("lstm").step(x_t)
    with pytest.raises(ValueError, match=r"= \(1, 2, 4\), got \(1, 1, 4\)"):
        make("gru").step(np.zeros((2, 3)), np.zeros((1, 1, 4)))


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
    np.testing.assert_array_equal(single == 0, masks == 0)
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


@every_kind
def test_a_layer_over_a_part_of_a_bigger_buffer_takes_one_hot_ids(kind):
    vocabulary, hidden = 7, 4
    cls = LAYERS[kind]
    specs = cls._specs(vocabulary, hidden, 2, prefix="rnn.", onehot=True)
    assert [spec.transposed for spec in specs] == [True] + [False] * 7
    params = Parameters([*specs, Spec("output.weight", (vocabulary, hidden), transposed=True)], np.float64)
    layer = cls._over(params.part("rnn."), vocabulary, hidden, 2, onehot=True)
    assert not params.flat.any()
    layer._initialise(np.random.default_rng(1))
    dense = make(kind, vocabulary, hidden, 2)
    for name, tensor in dense.params.items():
        np.testing.assert_array_equal(params[f"rnn.{name}"], tensor)

    geometry = Packed([3, 0, 5])
    ids = np.array([2, 6, 2, 0, 5, 6, 1, 2])
    x = np.eye(vocabulary)[ids]
    h0 = geometry.sort(draw(2, 3, hidden, seed=3))
    c0 = geometry.sort(draw(2, 3, hidden, seed=4)) if kind == "lstm" else None
    y, h_n, c_n, tape = layer._forward_packed(ids, geometry, h0, c0, True)
    wanted = dense._forward_packed(x, geometry, h0, c0, True)
    np.testing.assert_allclose(y, wanted[0], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(h_n, wanted[1], rtol=1e-13, atol=1e-15)
    assert (c_n is None) == (kind != "lstm")

    grads, dense_grads, dy = params.like(), dense.params.like(), draw(8, hidden, seed=6)
    schedule = crnn.bptt.Window(2).schedule
    rows, dh0, _ = layer._backward_packed(
        tape, geometry, dy, None, None, schedule, layer._kernel_list(grads.part("rnn."))
    )
    _, d_h0, _ = dense._backward_packed(
        wanted[3], geometry, dy, None, None, schedule, dense._kernel_list(dense_grads), want_input=False
    )
    assert rows.shape == (8, GATES[kind] * hidden)
    np.add.at(grads.storage("rnn.weight_ih_l0"), ids, rows)
    for name, gradient in dense_grads.items():
        np.testing.assert_allclose(grads[f"rnn.{name}"], gradient, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dh0, d_h0, rtol=1e-12, atol=1e-14)

    once = grads.copy()
    layer._backward_packed(
        tape,
        geometry,
        dy,
        None,
        None,
        schedule,
        layer._kernel_list(grads.part("rnn.")),
        want_input=False,
        want_state=False,
        accumulate=True,
    )
    np.testing.assert_allclose(grads["rnn.weight_hh_l1"], 2 * once["rnn.weight_hh_l1"], rtol=1e-12)
    np.testing.assert_array_equal(grads["rnn.weight_ih_l0"], once["rnn.weight_ih_l0"])


def test_without_rows_packed_gradients_are_zeroed_or_kept():
    layer = make("gru")
    geometry, grads = Packed([0, 0]), layer.params.like()
    grads.flat[:] = 3
    arguments = (None, geometry, None, None, None, (0, 0, 0), layer._kernel_list(grads))
    assert layer._backward_packed(*arguments, accumulate=True)[0].shape == (0, 3)
    assert (grads["weight_hh_l0"] == 3).all()
    layer._backward_packed(*arguments)
    assert not grads["weight_hh_l0"].any()


def test_one_hot_ids_and_two_directions_exclude_each_other():
    specs = LAYERS["gru"]._specs(5, 4, bidirectional=True, onehot=True)
    with pytest.raises(ValueError, match="bidirectional layer cannot take one-hot ids"):
        LAYERS["gru"]._over(Parameters(specs), 5, 4, bidirectional=True, onehot=True)


def test_public_names_load_on_demand():
    assert crnn.LSTM is LAYERS["lstm"]
    assert {"RNN", "LSTM", "GRU", "bptt", "show_config"} <= set(dir(crnn))
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        crnn.Transformer  # noqa: B018
