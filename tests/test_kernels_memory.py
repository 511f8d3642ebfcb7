"""Arrays that the kernels hand out or take in place: results, views over one buffer, a caller's arrays."""

import itertools

import numpy as np
import pytest

from crnn import _kernels

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def placed(value, *, batch, steps, rows, width, axes=3, dtype=F32):
    return _kernels.placed(value, dtype, axes, batch, steps, rows, width)


def packed(x, lengths):
    """The rows as the kernels count them: step by step, longest sequence first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rows = [x[i, t] for t in range(max(lengths)) for i in order if lengths[i] > t]
    return np.array(rows)


def with_axes_in_order(x, order):
    """The same values in memory whose axes lie in this order, outermost first."""
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", list(itertools.product([1, 2, 3], [1, 2, 5], [1, 2, 4])))
def test_a_batch_is_found_in_place_or_not_at_all(dtype, shape, rng):
    batch, steps, width = shape
    values = rng.standard_normal(shape).astype(dtype)
    lengths = sorted(rng.integers(1, steps + 1, batch).tolist(), reverse=True)
    for wanted in (lengths, [steps] * batch):
        for order in itertools.permutations(range(3)):
            x = with_axes_in_order(values, order)
            rows = sum(wanted)
            found = placed(x, batch=batch, steps=steps, rows=rows, width=width, dtype=dtype)
            if found is None:
                assert width > 1
                assert x.strides[2] != dtype.itemsize
                continue
            assert found.dtype is dtype
            assert np.shares_memory(found, x)
            if found.ndim == 2:
                assert found.flags.c_contiguous
                np.testing.assert_array_equal(found, packed(x, wanted))
            else:
                assert found.shape == shape
                assert width == 1 or found.strides[2] == dtype.itemsize
                np.testing.assert_array_equal(found, x)


def test_time_major_batches_and_single_sequences_are_packed_already(rng):
    time_major = rng.standard_normal((4, 3, 5)).astype(F32)
    assert placed(time_major.transpose(1, 0, 2), batch=3, steps=4, rows=12, width=5).shape == (12, 5)
    assert placed(time_major.transpose(1, 0, 2), batch=3, steps=4, rows=11, width=5).shape == (3, 4, 5)
    single = time_major[:, 0].copy()
    assert placed(single, batch=1, steps=4, rows=4, width=5, axes=2) is single
    assert placed(single, batch=1, steps=4, rows=3, width=5, axes=2).shape == (3, 5)
    assert placed(single[None], batch=1, steps=4, rows=3, width=5).shape == (3, 5)
    spread = placed(time_major[:, 0], batch=1, steps=4, rows=3, width=5, axes=2)
    assert spread.shape == (1, 4, 5)
    np.testing.assert_array_equal(spread[0], time_major[:, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_packed_rows_that_are_not_finite_are_not_placed(bad, rng):
    x = rng.standard_normal((4, 5)).astype(F32)
    x[2, 3] = bad
    assert placed(x, batch=1, steps=4, rows=4, width=5, axes=2) is None
    assert placed(x, batch=1, steps=4, rows=2, width=5, axes=2) is not None  # beyond the sequence's length
    assert placed(x[None], batch=1, steps=4, rows=3, width=5) is None


def test_other_shapes_types_and_layouts_are_not_placed(rng):
    x = rng.standard_normal((2, 3, 4)).astype(F32)
    right = {"batch": 2, "steps": 3, "rows": 6, "width": 4}
    assert placed(x, **right) is x
    for name in ("batch", "steps", "width"):
        assert placed(x, **{**right, name: right[name] + 1}) is None
    assert placed(x, **{**right, "rows": 0}) is None
    assert placed(x, **right, axes=2) is None
    assert placed(x, **right, dtype=F64) is None
    assert placed(x.astype(F64), **right) is None
    assert placed(x.astype(">f4"), **right) is None
    assert placed(np.ma.array(x), **right) is None
    assert placed(x.tolist(), **right) is None
    assert placed(None, **right) is None


def test_values_that_are_not_aligned_are_left_as_sequences(rng):
    raw = np.zeros(4 * 6 + 1, np.uint8)
    x = np.ndarray((2, 3), F32, raw, 1)
    found = placed(x, batch=1, steps=2, rows=2, width=3, axes=2)
    assert found.shape == (1, 2, 3)
    assert not found.flags.aligned


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 4), (4, 3, 0), (2, 3, 4), (5, 60, 70)])
def test_time_major_results_are_one_memory_in_two_forms(dtype, shape):
    batch, steps, width = shape
    rows, form = _kernels.time_major(steps, batch, width, dtype)
    assert rows.shape == (steps * batch, width)
    assert form.shape == shape
    assert {rows.dtype, form.dtype} == {dtype}
    assert rows.flags.c_contiguous
    assert rows.flags.writeable
    assert form.flags.writeable
    rows[...] = np.arange(rows.size).reshape(rows.shape)
    np.testing.assert_array_equal(form, rows.reshape(steps, batch, width).transpose(1, 0, 2))
    kept = form.copy()
    del rows  # the form keeps the memory
    _kernels.time_major(steps, batch, width, dtype)[0][...] = -1
    np.testing.assert_array_equal(form, kept)


def test_views_refuse_what_leaves_their_buffer():
    good = [("a", 0, (2, 3), (12, 4))]
    _kernels.Views(F32, 6, 1, good, [(24, 4, 0, 1)])
    bad = [(4, (2, 3), (12, 4)), (-4, (1,), (4,)), (0, (2, 0), (12, 4)), (0, (2, 3), (12, -4)), (0, (2,), (12, 4))]
    for offset, sizes, strides in [*bad, (0, (1,) * 5, (4,) * 5)]:
        with pytest.raises(ValueError, match="a: "):
            _kernels.Views(F32, 6, 1, [("a", offset, sizes, strides)], [])
    for gap in ((24, 8, 0, 1), (20, 4, 4, 3), (-4, 4, 0, 1), (0, -4, 0, 1), (0, 4, -4, 1), (0, 4, 0, 0)):
        with pytest.raises(ValueError, match=r"gaps\[0\]: outside"):
            _kernels.Views(F32, 6, 1, good, [gap])
    for dtype, elements, guard in ((np.dtype(object), 6, 1), (F32, -5, 6), (F32, 6, -1), (F32, 2**62, 0)):
        with pytest.raises(ValueError, match="elements, guard: got"):
            _kernels.Views(dtype, elements, guard, [], [])
    with pytest.raises(ValueError, match="a: sizes"):
        _kernels.Views(F32, 6, 1, [("a", 0, (2**40, 2), (2**30, 4))], [])
    with pytest.raises(ValueError, match=r"gaps\[0\]: outside"):
        _kernels.Views(F32, 6, 1, good, [(0, 4, 2**62, 5)])


def test_views_are_attached_to_the_buffer_they_describe():
    views = _kernels.Views(F32, 6, 0, [("a", 0, (2,), (4,)), ("b", 8, (2, 2), (8, 4))], [])
    flat, into = np.arange(6, dtype=F32), {}
    views.attach(into, flat)
    np.testing.assert_array_equal(into["a"], [0, 1])
    np.testing.assert_array_equal(into["b"], [[2, 3], [4, 5]])
    del flat  # the views keep it
    assert into["b"].sum() == 14
    with pytest.raises(ValueError, match="flat"):
        views.attach({}, np.zeros(5, F32))
    with pytest.raises(ValueError, match="flat"):
        views.attach({}, np.zeros(6, F64))
    with pytest.raises(TypeError, match="into: got list, wanted a dict"):
        views.attach([], np.zeros(6, F32))


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_states_are_those_of_the_cell(cell):
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    weights = [np.zeros(shape, F64) for shape in ((gates * 3, 2), (gates * 3, 3), (gates * 3,), (gates * 3,))]
    h, c = _kernels.Stack(cell, 2, 3, 1, 1, weights).states(5)
    assert h.shape == (1, 5, 3)
    assert h.dtype == F64
    assert (c is None) == (cell != "lstm")
    assert c is None or (c.shape, c.dtype) == (h.shape, h.dtype)
