"""Keras 3 weights: lists against the equations, round trips; and Keras itself, with files, where it is installed."""

from __future__ import annotations

import itertools
import os
import warnings

import numpy as np
import pytest
import reference
from tolerances import assert_close

import crnn
from crnn.interop.keras import from_file, from_weights, to_file, to_weights

# Keras' variables convert to arrays in the way NumPy 1 wanted it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = {
    "rnn": (crnn.RNN, {}),
    "lstm": (crnn.LSTM, {}),
    "gru": (crnn.GRU, {"z_weighs": "state"}),
    "gru_after": (crnn.GRU, {"z_weighs": "state", "reset_after": True}),
}
SHAPES = list(itertools.product((1, 3), (False, True), (True, False)))  # layers, bidirectional, bias
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def random_weights(kind, rng, width=3, units=5, bias=True, reset_after=True, dtype=np.float64):
    """One Keras layer's list."""
    gates = GATES[kind]
    shapes = [(width, gates * units), (units, gates * units)]
    if bias:
        shapes.append((2, gates * units) if kind == "gru" and reset_after else (gates * units,))
    return [(rng.normal(size=shape) / 2).astype(dtype) for shape in shapes]


def keras_equations(kind, weights, x, reset_after):
    """The cells as Keras' sources define them, one sequence (T, input), in Keras' own layout and gate order."""
    kernel, recurrent, bias = weights
    units = recurrent.shape[0]
    h = c = np.zeros(units)
    outputs = []

    def gates(values):
        return np.split(values, values.shape[-1] // units, axis=-1)

    for x_t in x:
        if kind == "rnn":
            h = np.tanh(x_t @ kernel + h @ recurrent + bias)
        elif kind == "lstm":
            i, f, g, o = gates(x_t @ kernel + h @ recurrent + bias)
            c = reference.sigmoid(f) * c + reference.sigmoid(i) * np.tanh(g)
            h = reference.sigmoid(o) * np.tanh(c)
        else:
            input_bias, recurrent_bias = bias if reset_after else (bias, np.zeros_like(bias))
            x_z, x_r, x_h = gates(x_t @ kernel + input_bias)
            z_r, r_r, h_r = gates(h @ recurrent + recurrent_bias)
            z, r = reference.sigmoid(x_z + z_r), reference.sigmoid(x_r + r_r)
            inner = r * h_r if reset_after else (r * h) @ gates(recurrent)[2]
            h = z * h + (1 - z) * np.tanh(x_h + inner)
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("kind", GATES)
def test_numbers_agree_with_the_equations(kind, reset_after, rng):
    weights = random_weights(kind, rng, reset_after=reset_after)
    layer = from_weights(kind, weights, reset_after=reset_after)
    x = rng.normal(size=(7, 3))
    assert_close(layer(x)[0], keras_equations(kind, weights, x, reset_after), "output", terms=8, steps=7)


@pytest.mark.parametrize("kind", GATES)
def test_bidirectional_lists_are_forward_then_backward(kind, rng):
    forward, backward = random_weights(kind, rng), random_weights(kind, rng)
    layer = from_weights(kind, [*forward, *backward], bidirectional=True)
    x = rng.normal(size=(6, 3))
    both = [keras_equations(kind, forward, x, True), keras_equations(kind, backward, x[::-1], True)[::-1]]
    assert_close(layer(x)[0], np.concatenate(both, axis=1), "output", terms=8, steps=6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", GATES)
def test_lists_come_back_bit_for_bit(kind, dtype, reset_after, bias, rng):
    stack = random_weights(kind, rng, 3, 5, bias, reset_after, dtype)
    stack += random_weights(kind, rng, 5, 5, bias, reset_after, dtype)
    layer = from_weights(kind, stack, reset_after=reset_after)
    assert (layer.num_layers, layer.bias, layer.dtype.name) == (2, bias, dtype)
    again = to_weights(layer)
    assert [w.tobytes() for w in again] == [w.tobytes() for w in stack]
    assert [w.shape for w in again] == [w.shape for w in stack]


@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_come_back_as_the_same_function(kind, num_layers, bidirectional, bias, rng):
    cls, options = KINDS[kind]
    layer = cls(3, 5, num_layers, bidirectional=bidirectional, bias=bias, dtype=np.float64, rng=rng, **options)
    again = from_weights(
        layer.kind, to_weights(layer), reset_after=options.get("reset_after", False), bidirectional=bidirectional
    )
    x = rng.normal(size=(2, 4, 3))
    assert_close(again(x)[0], layer(x)[0], "output", terms=13, steps=12)
    if kind == "gru_after" or not bias:
        assert all((again.params[name] == value).all() for name, value in layer.params.items())


def test_candidate_form_becomes_the_same_function(rng):
    layer = crnn.GRU(3, 5, dtype=np.float64, rng=rng)
    again = from_weights("gru", to_weights(layer), reset_after=False)
    assert (layer.z_weighs, again.z_weighs) == ("candidate", "state")
    x = rng.normal(size=(2, 4, 3))
    assert_close(again(x)[0], layer(x)[0], "output", terms=8, steps=4)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_all_wrong_shapes_are_listed_at_once(rng):
    kernel, recurrent, bias = random_weights("lstm", rng)
    with pytest.raises(ValueError, match=r"Keras' LSTM with 5 units: 4 gate blocks.*weights\[0\].*weights\[2\]"):
        from_weights("lstm", [kernel[:, 1:], recurrent, bias[:4]])
    with pytest.raises(ValueError, match=r"weights\[1\] \(recurrent kernel\) is \(5, 20\), wanted \(5, 15\)"):
        from_weights("gru", [kernel, recurrent, bias])
    with pytest.raises(ValueError, match=r"reset_after=True.*\(15,\), wanted \(2, 15\)"):
        from_weights("gru", random_weights("gru", rng, reset_after=False))
    with pytest.raises(ValueError, match=r"reset_after=False.*\(2, 15\), wanted \(15,\)"):
        from_weights("gru", random_weights("gru", rng, reset_after=True), reset_after=False)
    with pytest.raises(ValueError, match=r"weights\[3\] \(kernel\) is \(3, 20\), wanted \(5, 20\)"):
        from_weights("lstm", random_weights("lstm", rng) + random_weights("lstm", rng))


def test_wrong_numbers_of_arrays(rng):
    weights = random_weights("lstm", rng)
    for wrong in (weights[:1], [*weights, weights[2]][:4] + weights[:1], []):
        with pytest.raises(ValueError, match=f"weights: got {len(wrong)} arrays"):
            from_weights("lstm", wrong)
    with pytest.raises(ValueError, match=r"got 3 arrays, wanted 6 for each layer.*forward then backward"):
        from_weights("lstm", weights, bidirectional=True)


def test_lists_that_could_mean_two_things(rng):
    """Two units: a GRU's (2, 3u) bias has the shape of a recurrent kernel."""
    three = [rng.normal(size=(2, 6)) for _ in range(6)]
    with pytest.raises(ValueError, match="say use_bias="):
        from_weights("gru", three)
    assert from_weights("gru", three, use_bias=True).num_layers == 2
    assert from_weights("gru", three, use_bias=False).num_layers == 3


def test_other_wrong_arguments(rng):
    weights = random_weights("lstm", rng)
    with pytest.raises(ValueError, match="kind: got 'conv'"):
        from_weights("conv", weights)
    with pytest.raises(ValueError, match="nonlinearity"):
        from_weights("lstm", weights, nonlinearity="relu")
    with pytest.raises(TypeError, match="weights: got ndarray"):
        from_weights("lstm", weights[0])
    with pytest.raises(TypeError, match=r"weights\[1\]: got int8"):
        from_weights("lstm", [weights[0], weights[1].astype(np.int8), weights[2]])
    with pytest.raises(TypeError, match="layer: got list"):
        to_weights(weights)


# --------------------------------------------------------------------------------------------------------- Keras itself


@pytest.fixture(scope="module")
def keras():
    """Keras on whichever backend is there; a loud skip without it."""
    for backend in ("jax", "torch", "tensorflow"):
        try:
            __import__(backend)
        except ImportError:
            continue
        os.environ.setdefault("KERAS_BACKEND", backend)
        break
    return pytest.importorskip("keras", reason="Keras IS NOT INSTALLED: its own numbers were NOT compared")


def keras_layer(keras, kind, units, bidirectional=False, bias=True, **options):
    classes = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    layer = classes[kind](units, return_sequences=True, use_bias=bias, **options)
    return keras.layers.Bidirectional(layer) if bidirectional else layer


def set_random(layer, rng):
    layer.set_weights([(rng.normal(size=w.shape) / 2).astype(np.float32) for w in layer.get_weights()])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rnn", {}),
        ("rnn", {"activation": "relu"}),
        ("lstm", {}),
        ("gru", {"reset_after": True}),
        ("gru", {"reset_after": False}),
    ],
)
def test_numbers_agree_with_keras(keras, kind, options, bidirectional, bias, rng):
    theirs = keras_layer(keras, kind, 5, bidirectional, bias, **options)
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    theirs(x)
    set_random(theirs, rng)
    ours = from_weights(
        kind,
        theirs.get_weights(),
        reset_after=options.get("reset_after", True),
        bidirectional=bidirectional,
        nonlinearity=options.get("activation", "tanh"),
    )
    expected = np.asarray(keras.ops.convert_to_numpy(theirs(x)), np.float64)
    assert_close(ours(x)[0], expected, "output", terms=13, steps=6, dtype=np.float32)
    for got, given in zip(to_weights(ours), theirs.get_weights(), strict=True):
        assert got.tobytes() == given.tobytes()


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_files_from_keras(keras, bidirectional, ending, rng, tmp_path):
    pytest.importorskip("h5py", reason="h5py IS NOT INSTALLED: Keras files were NOT tested")
    lower, upper = (
        keras_layer(keras, "gru", 4, bidirectional, reset_after=False),
        keras_layer(keras, "rnn", 5, activation="sigmoid"),
    )
    model = keras.Sequential([keras.Input((None, 3)), lower, keras.layers.Dense(2), upper])
    for layer in (lower, upper):
        set_random(layer, rng)
    path = tmp_path / f"m{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own
        model.save(path) if ending == ".keras" else model.save_weights(path)
    ours = from_file(path, lower.name)
    assert ours.reset_after is False
    assert [w.tobytes() for w in to_weights(ours)] == [w.tobytes() for w in lower.get_weights()]
    top = from_file(path, upper.name, nonlinearity="sigmoid")
    assert [w.tobytes() for w in to_weights(top)] == [w.tobytes() for w in upper.get_weights()]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_files_for_keras(keras, kind, bidirectional, rng, tmp_path):
    pytest.importorskip("h5py", reason="h5py IS NOT INSTALLED: Keras files were NOT tested")
    cls, options = KINDS[kind]
    layer = cls(3, 4, 2, bidirectional=bidirectional, rng=rng, **options)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    y = layer(x)[0].astype(np.float64)
    to_file(layer, tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    built = [keras_layer(keras, layer.kind, 4, bidirectional, **_keras_options(layer)) for _ in range(2)]
    model = keras.Sequential([keras.Input((None, 3)), *built])
    to_file(layer, tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")
    for theirs in (loaded, model):
        got = np.asarray(keras.ops.convert_to_numpy(theirs(x)))
        assert_close(got, y, "output", terms=12, steps=10, dtype=np.float32)


def _keras_options(layer):
    return {"reset_after": layer.reset_after} if layer.kind == "gru" else {}
