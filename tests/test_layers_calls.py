"""The layers as callers meet them: forms, shapes, states, steps and errors.

Numbers are tested in test_layers_numeric.py and test_gradients.py; construction, copies and threads in
test_layers_api.py.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
from layer_cases import draw, every_kind, make, parts, state_for, tensors_of

import crnn

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


@every_kind
@pytest.mark.parametrize("which", ["x", "d_output"])
def test_arrays_of_a_list_may_have_steps_differently_far_apart(kind, which):
    def spread(arrays):
        """The same values; from one step to the next it is as far as the row is wide, then 2, 3 and 4 times as far."""
        wide = [np.full((len(array), i, array.shape[1]), 7.0) for i, array in enumerate(arrays, start=1)]
        for room, array in zip(wide, arrays):
            room[:, 0] = array
        return [room[:, 0] for room in wide]

    layer = make(kind)
    xs = [draw(steps, 3, seed=steps) for steps in (4, 6, 3, 5)]
    d_outputs = [draw(len(x), 4, seed=9 + len(x)) for x in xs]
    wanted = layer.forward(xs)
    back = wanted.backward(d_outputs)
    run = layer.forward(spread(xs) if which == "x" else xs)
    found = run.backward(spread(d_outputs) if which == "d_output" else d_outputs)
    for a, b in zip([*run.output, *found.input], [*wanted.output, *back.input], strict=True):
        np.testing.assert_array_equal(a, b)
    for name, gradient in back.params.items():
        np.testing.assert_array_equal(found.params[name], gradient, err_msg=name)


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
