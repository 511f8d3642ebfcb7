"""Steps of several sequences with wide layers: whatever tiles their products take, the same numbers and bits."""

from __future__ import annotations

import numpy as np
import pytest
from test_streaming import LAYERS, make
from tolerances import assert_close

from crnn import _kernels


@pytest.mark.parametrize("kind", LAYERS)
def test_turned_rows_have_the_bits_of_packed_weights(kind, isa, rng):
    """16 rows fill the lanes of AVX's vectors (simd/turned.h); 40 are too many for anything but packed weights."""
    if isa not in ("avx2", "avx512"):
        pytest.skip(f"NOTHING IS TURNED WITH {isa}")
    layer = make(kind, sizes=(31, 50), dtype=np.float32)
    x = rng.normal(size=(2, 40, 31)).astype(np.float32)
    few, many = layer.stream(16), layer.stream(40)
    for step in x:
        assert (few.step(np.ascontiguousarray(step[:16])) == many.step(step)[:16]).all()


BEYOND_CACHES = {"rnn": (5, 2173), "lstm": (150, 1021), "gru": (200, 1163), "gru_after_state": (203, 1161)}


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_beyond_the_caches(kind, isa, threads, rng):
    """19 MB, asked for in advance, by up to three rows two columns at a time, by some in slabs: the same bits."""
    layer = make(kind, sizes=BEYOND_CACHES[kind], num_layers=1, dtype=np.float32)
    x = rng.normal(size=(3, 9, BEYOND_CACHES[kind][0])).astype(np.float32)
    outputs = {}
    for count in (1, 4):
        threads(count)
        for rows in (1, 2, 3, 4, 6, 8, 9):
            stream = layer.stream(rows)
            outputs[count, rows] = np.stack([stream.step(np.ascontiguousarray(step[:rows])) for step in x])
    for (count, rows), y in outputs.items():
        if rows <= 8 or isa != "avx512":
            assert (y[:, :6] == outputs[4, 6][:, :rows]).all(), (count, rows)
        assert (y == outputs[1, rows]).all(), (count, rows)
    whole, _ = layer(x.transpose(1, 0, 2))
    wanted = whole.transpose(1, 0, 2).astype(np.float64)
    assert_close(outputs[1, 9], wanted, "output", terms=2178, steps=3, dtype="float32")


@pytest.mark.parametrize("hidden", [33, 36, 37, 46])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", LAYERS)
def test_long_rows(kind, dtype, hidden, isa, rng):
    """In one tile, in slabs or as ever (simd/columns.h), with every number of columns left for the last tiles."""
    bytes_each = np.dtype(dtype).itemsize
    for inputs in (3200, 4200, 5200, 7100, 14000):
        width = inputs // bytes_each - hidden
        layer = make(kind, sizes=(width, hidden), num_layers=1, dtype=dtype)
        x = rng.normal(size=(2, 8, width)).astype(dtype)
        streams = {rows: layer.stream(rows) for rows in (1, 3, 4, 5, 6, 7, 8)}
        for t, step in enumerate(x):
            y = {rows: stream.step(np.ascontiguousarray(step[:rows])) for rows, stream in streams.items()}
            assert all((y[rows] == y[8][:rows]).all() for rows in y), (inputs, t)
        whole, _ = layer(x.transpose(1, 0, 2))
        wanted = whole[:, -1].astype(np.float64)
        assert_close(y[8], wanted, "output", terms=width + hidden, steps=2, dtype=dtype)


@pytest.mark.parametrize(
    ("rows", "width"),
    [(16, 1024), (30, 1024), (14, 1024), (16, 1037), (16, 2048), (10, 2100), (21, 1600), (41, 2048), (190, 1024)],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_turned_rows_of_wide_layers(kind, rows, width, isa, rng):
    """Rows of W whole pages apart, slabs of turned rows, empty lanes; in a single slab the bits of packed weights."""
    layer = make(kind, sizes=(width, 45), num_layers=1, dtype=np.float32)
    x = rng.normal(size=(2, 193, width)).astype(np.float32)
    few, alone, many = layer.stream(rows), layer.stream(1), layer.stream(193)
    for t, step in enumerate(x):
        y, packed = few.step(np.ascontiguousarray(step[:rows])), many.step(step)
        one = alone.step(np.ascontiguousarray(step[3:4])).astype(np.float64)
        assert_close(y[3:4], one, "output", terms=width + 45, steps=t + 1, dtype="float32")
        assert_close(y, packed[:rows].astype(np.float64), "output", terms=width + 45, steps=t + 1, dtype="float32")
        if isa == "avx512" and width <= 1024:
            assert (y == packed[:rows]).all()


@pytest.mark.parametrize("hidden", [33, 39, 45, 58])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", LAYERS)
def test_any_number_of_turned_rows(kind, dtype, hidden, isa, rng):
    """Whole vectors, halves and quarters of one, one block of rows and several, all numbers of units left for the last
    tiles: the bits of packed weights, which 70 rows have (and these without AVX-512, mostly)."""
    layer = make(kind, sizes=(190 - hidden, hidden), num_layers=1, dtype=dtype)
    x = rng.normal(size=(70, 190 - hidden)).astype(dtype)
    packed = layer.stream(70).step(x)
    for rows in range(13, 64):
        assert (layer.stream(rows).step(x[:rows]) == packed[:rows]).all(), rows


@pytest.mark.parametrize("rows", [20, 33, 60])
@pytest.mark.parametrize("kind", LAYERS)
def test_turned_rows_by_any_number_of_threads(kind, rows, isa, threads, rng):
    """Units shared by threads, or rows, where there are no units to share: one layer after another, forth and back."""
    for hidden in (9, 150):
        layer = make(kind, sizes=(190, hidden), num_layers=2, dtype=np.float32)
        x = rng.normal(size=(3, rows, 190)).astype(np.float32)
        outputs = []
        for count in (1, 2, 3, 4):
            threads(count)
            _kernels.assume_handover(1e-7)
            stream = layer.stream(rows)
            outputs.append(np.stack([stream.step(step) for step in x]))
        assert all((y == outputs[0]).all() for y in outputs), hidden
        whole, _ = layer(x.transpose(1, 0, 2))
        wanted = whole.transpose(1, 0, 2).astype(np.float64)
        assert_close(outputs[0], wanted, "output", terms=190 + hidden, steps=3, dtype="float32")


def test_turned_rows_of_weights_in_memory(isa, threads, rng):
    """27 MB, asked for by tiles of eight; in 2600 numbers of a row there are three slabs."""
    layer = make("rnn", sizes=(7, 2600), num_layers=1, dtype=np.float32)
    x = rng.normal(size=(3, 40, 7)).astype(np.float32)
    whole, _ = layer(x.transpose(1, 0, 2))
    wanted = whole.transpose(1, 0, 2).astype(np.float64)
    for rows in (16, 20, 40):
        outputs = []
        for count in (1, 2):
            threads(count)
            stream = layer.stream(rows)
            outputs.append(np.stack([stream.step(np.ascontiguousarray(step[:rows])) for step in x]))
        assert (outputs[0] == outputs[1]).all(), rows
        assert_close(outputs[0], wanted[:, :rows], "output", terms=2607, steps=3, dtype="float32")


@pytest.mark.parametrize(
    ("rows", "width", "hidden"),
    [
        (9, 900, 70),
        (12, 680, 70),
        (14, 800, 70),
        (17, 500, 70),
        (23, 360, 70),
        (24, 900, 70),
        (17, 2100, 15),
        (24, 870, 15),
        (18, 420, 70),
        (10, 700, 70),
        (37, 700, 15),
        (60, 1100, 15),
        (97, 400, 40),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", LAYERS)
def test_more_rows_in_slabs(kind, dtype, rows, width, hidden, isa, threads, rng):
    """Input by input, slab by slab (simd/columns.h): one order of sums for all rows and any number of threads, of which
    a single vector of units leaves each some of the rows."""
    layer = make(kind, sizes=(width, hidden), num_layers=1, dtype=dtype)
    x = rng.normal(size=(2, rows, width)).astype(dtype)
    outputs = []
    for count, handover in ((1, 1e-7), (2, 1e-7), (2, 4e-7), (3, 1e-7)):
        threads(count)
        _kernels.assume_handover(handover)
        stream = layer.stream(rows)
        outputs.append(np.stack([stream.step(step) for step in x]))
    reversed_rows, alone = layer.stream(rows), layer.stream(1)
    for t, step in enumerate(x):
        y = reversed_rows.step(np.ascontiguousarray(step[::-1]))[::-1]
        assert all((other[t] == y).all() for other in outputs), t
        one = alone.step(np.ascontiguousarray(step[5:6])).astype(np.float64)
        assert_close(y[5:6], one, "output", terms=width + hidden, steps=t + 1, dtype=dtype)
