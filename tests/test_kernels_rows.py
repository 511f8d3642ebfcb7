"""The door to C: rows and columns by id, the order of ragged batches."""

from __future__ import annotations

import grid
import numpy as np
import pytest

from crnn import _kernels

DTYPES = ("float32", "float64")


@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 17, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_columns(dtype, width, isa, rng):
    table = np.full((9, width + 3), 5.0, dtype)[:, :width]
    table[...] = grid.asymmetric(rng, table.shape, dtype)
    ids = np.array([8, 0, 3, 3, 8], np.int64)
    out = np.full((5, width), 7.0, dtype)
    _kernels.take_rows(np.ascontiguousarray(table), ids, out)
    np.testing.assert_array_equal(out, table[ids])
    _kernels.take_columns(table, ids % width, columns := np.full((5, 9), 7.0, dtype))
    np.testing.assert_array_equal(columns, table[:, ids % width].T)

    rows = grid.asymmetric(rng, (5, width), dtype)
    expected = table.astype(np.float64)
    np.add.at(expected, ids, -0.5 * rows)
    _kernels.add_rows(table, ids, rows, -0.5)
    np.testing.assert_allclose(table, expected, rtol=0, atol=4 * np.finfo(dtype).eps)
    columns = grid.asymmetric(rng, (5, 9), dtype)
    np.add.at(expected.T, ids % width, 0.25 * columns)
    _kernels.add_columns(table, ids % width, columns, 0.25)
    np.testing.assert_allclose(table, expected, rtol=0, atol=16 * np.finfo(dtype).eps)
    assert (table.base[:, width:] == 5.0).all(), "the padding between rows was written"


@pytest.mark.parametrize("words", [1, 3, 2047, 2048, 2049, 10_000, 2**22 + 1, 2**63 - 1])
@pytest.mark.parametrize("n", [0, 1, 2, 40, 5_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_equal_ids_are_summed(dtype, n, words, isa, rng):
    ids = rng.integers(0, words, n)
    ids[n // 2 : n // 2 + 3] = words - 1
    rows = grid.asymmetric(rng, (n, 5), dtype)
    unique, summed = _kernels.sum_by_id(ids, rows)
    wanted, place = np.unique(ids, return_inverse=True)
    exact = np.zeros((len(wanted), 5))
    np.add.at(exact, place, rows.astype(np.float64))
    size = np.zeros((len(wanted), 5))
    np.add.at(size, place, abs(rows.astype(np.float64)))
    np.testing.assert_array_equal(unique, wanted)
    most = np.bincount(place, minlength=1).max()
    # a sum of `most` terms, one after the other
    assert (abs(summed - exact) <= most * np.finfo(dtype).eps * size).all()
    assert (unique.dtype, summed.dtype) == (np.dtype(np.int64), np.dtype(dtype))


def test_rows_of_equal_ids_are_added_in_their_order():
    big = np.float32(2.0**24)
    rows = np.array([[big, 1.0], [7.0, 7.0], [1.0, 1.0], [-big, 2.0**24]], np.float32)
    unique, summed = _kernels.sum_by_id(np.array([4, 2, 4, 4]), rows)
    assert unique.tolist() == [2, 4]
    # big + 1 is big: another order would leave 1
    assert summed.tolist() == [[7.0, 7.0], [0.0, 2.0**24 + 2.0]]


def test_rows_without_or_with_bad_ids_are_refused():
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="ids: id -1 at 1 is negative"):
        _kernels.sum_by_id(np.array([0, -1]), rows)
    with pytest.raises(ValueError, match="rows"):
        _kernels.sum_by_id(np.array([0, 1, 2]), rows)
    with pytest.raises(ValueError, match="ids"):
        _kernels.sum_by_id(np.array([0.0, 1.0]), rows)
    with pytest.raises(ValueError, match="rows"):
        _kernels.sum_by_id(np.array([0, 1]), rows[:, ::2])


def test_the_first_id_outside_is_found():
    ids = np.array([0, 5, 9, 10, -1], np.int64)
    assert _kernels.first_outside(ids, 11) == 4
    assert _kernels.first_outside(ids[:4], 11) == -1
    assert _kernels.first_outside(ids, 10) == 3
    assert _kernels.first_outside(ids, 5) == 1
    assert _kernels.first_outside(ids[:0], 1) == -1


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [3], [2, 0, 3, 2, 7, 1, 0, 7], [5, 5, 4, 0], list(range(40))])
def test_sequences_are_arranged_by_falling_length(lengths):
    offsets, order, places, in_order = _kernels.arrange(np.array(lengths, np.int64))
    wanted = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: equal lengths keep their order
    assert order.tolist() == wanted
    assert [wanted[place] for place in places] == list(range(len(lengths)))
    assert in_order == (wanted == list(range(len(lengths))))
    running = [sum(length > t for length in lengths) for t in range(max(lengths, default=0))]
    assert offsets.tolist() == [sum(running[:t]) for t in range(len(running) + 1)]
    assert {array.dtype for array in (offsets, order, places)} == {np.dtype(np.int64)}
    assert not any(array.flags.writeable for array in (offsets, order, places))


def test_lengths_that_cannot_be_arranged_are_refused():
    with pytest.raises(ValueError, match="lengths: -2 at 1 is negative"):
        _kernels.arrange(np.array([3, -2]))
    with pytest.raises(ValueError, match="lengths"):
        _kernels.arrange(np.array([3.0, 2.0]))
