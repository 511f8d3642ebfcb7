"""Streams: the same numbers as whole sequences, rows that come and go, states that travel, no memory per step."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from tolerances import assert_close

import crnn
from crnn import _kernels
from crnn.streaming import LayerStream

LAYERS = {
    "rnn": (crnn.RNN, {"nonlinearity": "relu"}),
    "lstm": (crnn.LSTM, {}),
    "gru": (crnn.GRU, {}),
    "gru_after_state": (crnn.GRU, {"reset_after": True, "z_weighs": "state"}),
}


def make(kind, sizes=(3, 5), num_layers=2, dtype=np.float64, seed=4):
    cls, options = LAYERS[kind]
    return cls(*sizes, num_layers, dtype=dtype, rng=seed, **options)


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("batch", [1, 2, 7, 17])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", LAYERS)
def test_steps_equal_the_whole_sequence(kind, dtype, batch, rng):
    layer = make(kind, dtype=dtype)
    x = rng.normal(size=(batch, 9, 3)).astype(dtype)
    whole, final = layer(x)
    stream = layer.stream(batch)
    for t in range(9):
        y = stream.step(np.ascontiguousarray(x[:, t]))
        size = {"terms": 13, "steps": 2 * (t + 1), "dtype": dtype}
        assert_close(y, whole[:, t].astype(np.float64), "output", **size)
    for ours, wanted in zip(parts(stream.state), parts(final), strict=True):
        assert_close(ours, wanted.astype(np.float64), "state", terms=13, steps=18, dtype=dtype)


@pytest.mark.parametrize("kind", LAYERS)
def test_steps_equal_layer_step_to_the_bit(kind, rng):
    layer = make(kind, dtype=np.float32)
    stream, state = layer.stream(3), None
    for _ in range(5):
        x = rng.normal(size=(3, 3)).astype(np.float32)
        y, state = layer.step(x, state)
        assert (stream.step(x) == y).all()
    assert all((a == b).all() for a, b in zip(parts(stream.state), parts(state), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [5, 32, 49, 64, 125, 129, 150])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_row_does_not_depend_on_its_neighbours(kind, hidden, dtype, rng):
    """To the bit, for every number of rows that steps by whole dot products: 8, or more of wide layers.

    Rows that fill a vector's lanes are summed up in another order, which is the same for them all, and so are more than
    8 rows whose inputs are too long to be taken at once (test_wide_steps.py)."""
    layer = make(kind, sizes=(hidden + 3, hidden), dtype=dtype)
    x = rng.normal(size=(4, 18, hidden + 3)).astype(dtype)
    streams = {n: layer.stream(n) for n in (1, 2, 3, 5, 8)}
    if hidden == 150 and (dtype == "float32" or _kernels.isa() != "avx512"):
        streams[18] = layer.stream(18)
    for step in x:
        outputs = {n: stream.step(np.ascontiguousarray(step[:n])) for n, stream in streams.items()}
        for n, y in outputs.items():
            assert (y[0] == outputs[1][0]).all(), n
            assert (y[: min(n, 8)] == outputs[8][:n]).all(), n
    alone, whole, turned = layer.stream(1), layer.stream(16), layer.stream(16)
    for t, step in enumerate(x):
        y = whole.step(np.ascontiguousarray(step[:16]))
        assert (turned.step(np.ascontiguousarray(step[15::-1]))[::-1] == y).all()
        one = alone.step(np.ascontiguousarray(step[3:4])).astype(np.float64)
        assert_close(y[3:4], one, "output", terms=2 * hidden + 3, steps=t + 1, dtype=dtype)


@pytest.mark.parametrize("hidden", [15, 33, 130])
@pytest.mark.parametrize("kind", LAYERS)
def test_threads_do_not_change_a_bit_of_a_step(kind, hidden, isa, threads, rng):
    """However they share rows and units: the order of sums is that of the number of rows in all."""
    layer = make(kind, sizes=(hidden - 3, hidden), dtype=np.float32)
    x = rng.normal(size=(3, 32, hidden - 3)).astype(np.float32)
    for rows in (8, 15, 16, 32):
        steps = [np.ascontiguousarray(step[:rows]) for step in x]
        outputs = []
        for count, handover in ((1, 1e-7), (2, 1e-7), (2, 4e-7), (3, 1e-7)):  # on near cores and on far ones
            threads(count)
            _kernels.assume_handover(handover)
            stream = layer.stream(rows)
            outputs.append([stream.step(step) for step in steps])
        assert all(np.array_equal(outputs[0], other) for other in outputs[1:]), rows


@pytest.mark.parametrize("kind", LAYERS)
def test_threads_may_change_between_steps(kind, isa, threads, rng):
    """A stream made for some threads has rooms for no more: others share one."""
    layer = make(kind, sizes=(70, 130), dtype=np.float32)
    x = rng.normal(size=(6, 8, 70)).astype(np.float32)
    _kernels.assume_handover(1e-7)
    outputs = []
    for made, counts in ((1, (1,) * 6), (1, (1, 3, 2, 2, 3, 1)), (2, (2, 3, 1, 3, 2, 2)), (3, (2, 3, 3, 1, 2, 3))):
        threads(made)
        stream = layer.stream(8)
        outputs.append([])
        for step, count in zip(x, counts, strict=True):
            threads(count)
            outputs[-1].append(stream.step(step).copy())
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_step_reads_other_forms_as_its_own(kind, rng):
    layer = make(kind, dtype=np.float32)
    x = rng.normal(size=(3, 3)).astype(np.float32)
    y, state = layer.step(x)
    for other in (x.astype(np.float64), x.tolist(), np.asfortranarray(x)):
        again, same = layer.step(other)
        assert (again == y).all()
        assert all((a == b).all() for a, b in zip(parts(same), parts(state), strict=True))
    y, following = layer.step(x, state)
    stored = tuple(part.astype(np.float64) for part in state) if isinstance(state, tuple) else state.tolist()
    again, same = layer.step(x, stored)
    assert (again == y).all()
    assert all((a == b).all() for a, b in zip(parts(same), parts(following), strict=True))
    alone = tuple(part[:, 1:2] for part in parts(state))
    single, _ = layer.step(x[1], alone if isinstance(state, tuple) else alone[0])
    assert (single == y[1]).all()


def test_layer_step_refuses_what_is_not_finite(rng):
    layer = make("lstm", dtype=np.float32)
    x = rng.normal(size=(3, 3)).astype(np.float32)
    _, (h, c) = layer.step(x)
    c[1, 2, 0] = np.inf
    with pytest.raises(ValueError, match="state"):
        layer.step(x, (h, c))
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"x_t\[2, 1\]"):
        layer.step(x)


def test_one_row_without_a_batch_axis(rng):
    layer = make("lstm")
    x = rng.normal(size=(6, 3))
    stream = layer.stream()
    y = np.stack([stream.step(row) for row in x])
    assert y.shape == (6, 5)
    assert_close(y, layer(x)[0], "output", terms=13, steps=12)


def test_one_row_without_a_batch_axis_is_read_in_place(rng):
    """To the bit what a row with a batch axis gives, and outputs that are kept stay."""
    layer = make("lstm", dtype=np.float32)
    plain, batched = layer.stream(), layer.stream()
    x = rng.normal(size=(7, 3)).astype(np.float32)
    kept = [plain.step(row) for row in x]
    copies = [y.copy() for y in kept]
    expected = [batched.step(row[None])[0] for row in x]
    plain.step(x[0])
    assert all(y.shape == (5,) and y.base is None for y in kept)
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(kept, copies, expected, strict=True))
    with pytest.raises(ValueError, match=r"x: got shape \(4,\)"):
        plain.step(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"x: got shape \(3,\)"):
        layer.stream(3).step(np.zeros(3, np.float32))


def test_inputs_of_other_dtypes_and_orders(rng):
    layer = make("gru", dtype=np.float32)
    x = rng.integers(-3, 4, (4, 3))
    expected = layer.stream(4).step(x.astype(np.float32))
    for same in (x, x.astype(np.float16), np.asfortranarray(x, np.float32), x.astype(">f4"), x.tolist()):
        assert (layer.stream(4).step(same) == expected).all()
    readonly = x.astype(np.float32)
    readonly.flags.writeable = False
    assert (layer.stream(4).step(readonly) == expected).all()


def test_outputs_that_are_kept_do_not_change(rng):
    layer = make("rnn")
    stream = layer.stream(2)
    kept = [stream.step(x) for x in rng.normal(size=(7, 2, 3))]
    copies = [y.copy() for y in kept]
    views = [stream.step(x)[0] for x in rng.normal(size=(5, 2, 3))]
    view_copies = [v.copy() for v in views]
    for x in rng.normal(size=(4, 2, 3)):
        stream.step(x)
    assert all((a == b).all() for a, b in zip(kept + views, copies + view_copies, strict=True))
    assert len({y.ctypes.data for y in kept}) == 7


def test_the_usual_loop_allocates_no_arrays(rng):
    layer = make("lstm", sizes=(64, 256), num_layers=1, dtype=np.float32)
    stream = layer.stream(32)
    x = rng.normal(size=(32, 64)).astype(np.float32)
    places = set()
    for _ in range(4):
        y = stream.step(x)
        places.add(y.ctypes.data)
    assert len(places) == 2
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(50):
            y = stream.step(x)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(50):
            y = stream.step(x)
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert y.nbytes == 32 * 256 * 4
    assert peak - before < 4096  # bytes: a few Python objects, where one output alone would be 32 KiB
    assert current - before < 1024


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_come_and_go(kind, rng):
    """Sessions of different lengths, joining at different times, against each one run alone."""
    layer = make(kind)
    lengths, starts = [5, 9, 1, 7], [0, 2, 3, 1]
    xs = [rng.normal(size=(length, 3)) for length in lengths]
    stream = layer.stream(4)
    outputs = [[] for _ in xs]
    for now in range(12):
        present = [i for i in (2, 0, 3, 1) if starts[i] <= now < starts[i] + lengths[i]]
        x = np.array([xs[i][now - starts[i]] for i in present]).reshape(len(present), 3)
        for i, y in zip(present, stream.step(x, rows=present), strict=True):
            outputs[i].append(y)
    for i, x in enumerate(xs):
        whole, final = layer(x)
        assert_close(np.array(outputs[i]), whole, "output", terms=13, steps=18)
        for ours, wanted in zip(parts(stream.state), parts(final), strict=True):
            assert_close(ours[:, i], wanted[:, 0], "state", terms=13, steps=18)


def test_rows_that_wait_keep_every_bit(rng):
    stream = make("lstm").stream(5)
    stream.step(rng.normal(size=(5, 3)))
    before = stream.state
    stream.step(rng.normal(size=(2, 3)), rows=np.array([3, 0], np.int32))
    for old, new in zip(before, stream.state, strict=True):
        assert (old[:, [1, 2, 4]] == new[:, [1, 2, 4]]).all()
        assert (old[:, [0, 3]] != new[:, [0, 3]]).any(axis=(0, 2)).all()
    assert stream.step(np.empty((0, 3)), rows=[]).shape == (0, 5)


@pytest.mark.parametrize("rows", [[1, 3], np.array([3, 1]), np.array([False, True, False, True]), np.uint8([1, 3])])
def test_reset_of_some_rows(rows, rng):
    layer = make("lstm")
    stream = layer.stream(4)
    x = rng.normal(size=(3, 4, 3))
    stream.step(x[0])
    stream.reset(rows)
    fresh = layer.stream(4)
    y, first = stream.step(x[1]), fresh.step(x[1])
    assert (y[[1, 3]] == first[[1, 3]]).all()
    assert (y[[0, 2]] != first[[0, 2]]).any()
    stream.reset()
    assert not any(part.any() for part in stream.state)
    stream.reset(2)
    assert (stream.step(x[2]) == layer.stream(4).step(x[2])).all()


def test_state_in_and_out(rng):
    layer = make("gru")
    x = rng.normal(size=(6, 2, 3))
    _, state = layer(x[:3].transpose(1, 0, 2))
    stream = layer.stream(2)
    stream.state = state
    got = stream.state
    assert (got == state).all()
    got[:] = 0  # a copy
    assert (stream.state == state).all()
    whole, _ = layer(x.transpose(1, 0, 2))
    for t in range(3, 6):
        assert_close(stream.step(x[t]), whole[:, t], "output", terms=13, steps=12)
    stream.state = None
    assert not stream.state.any()


def test_copies_go_their_own_way(rng):
    stream = make("lstm").stream(2)
    stream.step(rng.normal(size=(2, 3)))
    for make_twin in (type(stream).copy, copy.copy):
        twin = make_twin(stream)
        x = rng.normal(size=(2, 3))
        assert twin.layer is stream.layer
        before = stream.state
        y = twin.step(x)
        assert all((a == b).all() for a, b in zip(before, stream.state, strict=True))
        assert (stream.step(x) == y).all()


def test_states_in_a_file(rng, tmp_path):
    layer = make("lstm", dtype=np.float32)
    stream = layer.stream(3)
    stream.step(rng.normal(size=(3, 3)))
    stream.save(tmp_path / "states.npz")
    again = layer.stream(3)
    again.load(tmp_path / "states.npz")
    x = rng.normal(size=(3, 3))
    assert (again.step(x) == stream.step(x)).all()
    untouched = layer.stream(2)
    untouched.step(x[:2])
    before = untouched.state
    with pytest.raises(ValueError, match=r"state\[0\]: got shape"):
        untouched.load(tmp_path / "states.npz")
    with pytest.raises(ValueError, match=r"holds \['c', 'h'\], wanted the states \['h'\]"):
        make("gru").stream(3).load(tmp_path / "states.npz")
    for content in (b"", b"PK\x03\x04 broken", b"something else", b"\x93NUMPY"):
        (tmp_path / "junk").write_bytes(content)
        with pytest.raises(ValueError, match="holds no states of a stream"):
            untouched.load(tmp_path / "junk")
    np.save(tmp_path / "array.npy", before[0])
    with pytest.raises(ValueError, match="holds no states of a stream"):
        untouched.load(tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError):
        untouched.load(tmp_path / "absent.npz")
    assert all((a == b).all() for a, b in zip(before, untouched.state, strict=True))


def test_weights_are_shared_and_live(rng):
    layer = make("rnn", num_layers=1)
    streams = [layer.stream() for _ in range(1000)]
    x = rng.normal(size=(1, 3))
    first = streams[0].step(x)
    layer.params["weight_ih_l0"][...] *= 2
    layer.params["bias_ih_l0"][...] += 0.5
    second = streams[999].step(x)
    assert (first != second).any()
    assert (second == layer.step(x)[0]).all()
    assert sys.getsizeof(streams[0]) < 1000


def test_many_threads_on_one_layer(rng):
    layer = make("lstm", sizes=(8, 32), dtype=np.float32)
    x = rng.normal(size=(6, 40, 1, 8)).astype(np.float32)
    expected = [[layer_y.copy() for layer_y in run(layer, own)] for own in x]
    results = [None] * len(x)

    def work(i):
        results[i] = run(layer, x[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((a == b).all() for own, wanted in zip(results, expected, strict=True) for a, b in zip(own, wanted))


def run(layer, xs):
    stream = layer.stream()
    return [stream.step(x) for x in xs]


def test_a_nan_stays_in_its_row(rng):
    layer = make("gru")
    stream, clean = layer.stream(3), layer.stream(3)
    x = rng.normal(size=(2, 3, 3))
    dirty = x[0].copy()
    dirty[1, 2] = np.nan
    stream.step(dirty)
    clean.step(x[0])
    stream.reset([1])
    y, wanted = stream.step(x[1]), clean.step(x[1])
    assert (y[[0, 2]] == wanted[[0, 2]]).all()
    assert np.isfinite(y).all()


@pytest.mark.parametrize("options", [{}, {"embedding_size": 4}, {"embedding_size": 6, "tie_weights": True}])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_language_models(cell, options, rng):
    model = crnn.LanguageModel(9, cell, hidden_size=6, num_layers=2, dtype=np.float64, rng=rng, **options)
    ids = rng.integers(0, 9, (3, 7))
    stream, alone = model.stream(3), model.stream()
    kept = [stream.step(ids[:, t]) for t in range(7)]
    for row in range(3):
        whole = model.probabilities(ids[row])
        assert_close(np.array([p[row] for p in kept]), whole, "probability", terms=24, steps=14)
    single = np.array([alone.step(int(number)) for number in ids[1]])
    assert_close(single, model.probabilities(ids[1]), "probability", terms=24, steps=14)
    twin = stream.copy()
    p = twin.step([4, 1], rows=[2, 0])
    q = stream.step([1, 3, 4])
    assert_close(p, q[[2, 0]], "probability", terms=24, steps=16)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_stream_that_was_never_initialised():
    with pytest.raises(AttributeError):
        LayerStream.__new__(LayerStream).step(np.zeros((1, 3), np.float32))


def test_streams_that_cannot_be():
    with pytest.raises(ValueError, match="bidirectional layer cannot stream"):
        crnn.LSTM(3, 4, bidirectional=True).stream()
    for batch, error, match in (
        (0, ValueError, "batch must be at least 1, got 0"),
        (-2, ValueError, "batch must be at least 1"),
        (1.0, TypeError, "batch must be a whole number, not float"),
        (True, TypeError, "batch must be a whole number, not a bool"),
        (np.True_, TypeError, "batch must be a whole number, not a bool"),
    ):
        with pytest.raises(error, match=match):
            crnn.LSTM(3, 4).stream(batch)


@pytest.mark.parametrize(
    ("x", "rows", "error", "match"),
    [
        (np.zeros((4, 2)), None, ValueError, r"x: got shape \(4, 2\), wanted \(rows, features\) = \(4, 3\)"),
        (np.zeros((3, 3)), None, ValueError, r"got shape \(3, 3\)"),
        (np.zeros(3), None, ValueError, r"got shape \(3,\)"),
        (np.zeros((4, 3), complex), None, TypeError, "x"),
        (np.zeros((4, 3)), [0, 1], ValueError, r"wanted \(rows, features\) = \(2, 3\)"),
        (np.zeros((2, 3)), [0, 4], ValueError, "rows: got 4, the stream's rows are 0 to 3"),
        (np.zeros((2, 3)), [0, -1], ValueError, "rows: got -1"),
        (np.zeros((2, 3)), [1, 1], ValueError, "more than once"),
        (np.zeros((2, 3)), [0.0, 1.0], TypeError, "rows: got dtype float64"),
        (np.zeros((1, 3)), 2, ValueError, r"rows: got shape \(\)"),
    ],
)
def test_wrong_steps_change_nothing(x, rows, error, match, rng):
    stream = make("lstm").stream(4)
    stream.step(rng.normal(size=(4, 3)))
    before = stream.state
    with pytest.raises(error, match=match):
        stream.step(x, rows)
    assert all((a == b).all() for a, b in zip(before, stream.state, strict=True))


def test_wrong_states_change_nothing(rng):
    stream = make("lstm").stream(4)
    stream.step(rng.normal(size=(4, 3)))
    before = stream.state
    good = np.ones((2, 4, 5))
    bad = np.ones((2, 4, 5))
    bad[1, 2, 3] = np.inf
    for value, error, match in (
        (good, TypeError, r"wanted a tuple \(h, c\)"),
        ((good,), TypeError, r"wanted a tuple \(h, c\)"),
        ((good, good[:, :3]), ValueError, r"got shape \(2, 3, 5\), wanted \(layers, batch, hidden\) = \(2, 4, 5\)"),
        ((good, bad), ValueError, r"state\[1\] must be finite, got inf at state\[1\]\[1, 2, 3\]"),
    ):
        with pytest.raises(error, match=match):
            stream.state = value
    with pytest.raises(TypeError, match="wanted one array"):
        make("gru").stream(4).state = (good, good)
    with pytest.raises(ValueError, match=r"mask of shape \(3,\)"):
        stream.reset(np.array([True, False, True]))
    with pytest.raises(ValueError, match="rows: got 9"):
        stream.reset([9])
    assert all((a == b).all() for a, b in zip(before, stream.state, strict=True))


def test_wrong_ids(rng):
    stream = crnn.LanguageModel(9, hidden_size=6, rng=rng).stream(2)
    for ids, error, match in (
        ([1], ValueError, r"ids: got shape \(1,\), wanted \(2,\)"),
        (3, ValueError, r"ids: got shape \(\)"),
        ([1, 9], ValueError, "ids: got 9, which is outside the vocabulary of 9 words"),
        ([-1, 0], ValueError, "ids: got -1"),
        ([0.5, 1.0], TypeError, "ids: got float64"),
    ):
        with pytest.raises(error, match=match):
            stream.step(ids)
    assert not stream.state.any()


def test_representations():
    layer = make("gru")
    assert repr(layer.stream(3)) == f"LayerStream({layer!r}, batch=3)"
    model = crnn.LanguageModel(9, hidden_size=6, rng=0)
    assert repr(model.stream()) == f"ModelStream({model!r}, batch=1)"
