"""Packed rows: the order of rows and states, and the three forms of arrays going in and out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crnn.packed import Batch, Packed, as_real, dense, read_form

FLOAT = np.dtype(np.float64)
lengths_lists = st.lists(st.integers(0, 9), max_size=9)


def rows_by_hand(lengths: list[int]) -> list[tuple[int, int]]:
    """(sequence, step) of every packed row, from the definition."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [(i, t) for t in range(max(lengths, default=0)) for i in order if lengths[i] > t]


def test_by_hand():
    packed = Packed([2, 0, 3, 2])
    assert packed.order.tolist() == [2, 0, 3, 1]
    assert packed.places.tolist() == [1, 3, 0, 2]
    assert not packed.in_order
    assert packed.offsets.tolist() == [0, 3, 6, 7]
    assert (packed.batch_size, packed.steps, packed.rows) == (4, 3, 7)
    assert packed.sequence.tolist() == [2, 0, 3, 2, 0, 3, 2]
    assert packed.step.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert packed.joined.tolist() == [2, 0, 5, 3, 1, 6, 4]


@given(lengths_lists)
def test_rows_are_time_major_and_sorted_by_length(lengths):
    packed = Packed(lengths)
    wanted = rows_by_hand(lengths)
    assert list(zip(packed.sequence.tolist(), packed.step.tolist())) == wanted
    assert packed.rows == sum(lengths) == len(wanted)
    assert packed.steps == max(lengths, default=0)
    assert packed.offsets.dtype == np.int64
    assert packed.offsets.shape == (packed.steps + 1,)
    for t in range(packed.steps):
        assert packed.offsets[t + 1] - packed.offsets[t] == sum(length > t for length in lengths)
    assert packed.in_order == (packed.order.tolist() == list(range(len(lengths))))


@given(lengths_lists)
def test_pack_and_unpack_are_inverse_for_features_and_ids(lengths):
    packed = Packed(lengths)
    if not lengths:
        return
    ids = [np.arange(length) + 100 * i for i, length in enumerate(lengths)]
    rows = packed.pack(ids)
    assert rows.tolist() == [100 * i + t for i, t in rows_by_hand(lengths)]
    assert [back.tolist() for back in packed.unpack(rows)] == [array.tolist() for array in ids]
    features = [np.stack([array, -array], axis=1) for array in ids]
    for back, array in zip(packed.unpack(packed.pack(features)), features):
        np.testing.assert_array_equal(back, array)


@given(lengths_lists)
def test_sort_and_unsort_states(lengths):
    packed = Packed(lengths)
    state = np.random.default_rng(1).random((2, len(lengths), 3))
    by_length = packed.sort(state)
    assert by_length.flags.c_contiguous
    for place, i in enumerate(packed.order):
        np.testing.assert_array_equal(by_length[:, place], state[:, i])
    np.testing.assert_array_equal(packed.unsort(by_length), state)
    assert packed.unsort(by_length).flags.c_contiguous


@pytest.mark.parametrize("lengths", [[4], [2, 5, 3], [3, 3]])
def test_packed_rows_are_contiguous_whatever_came(lengths):
    arrays = [np.asfortranarray(x) for x in arrays_of(lengths)]
    rows = Packed(lengths).pack(arrays)
    assert rows.flags.c_contiguous
    assert not any(np.shares_memory(rows, x) for x in arrays)


def test_shared_geometries_are_read_only_and_reused():
    assert dense(3, 4) is dense(3, 4)
    for array in (dense(3, 4).offsets, dense(3, 4).order, dense(3, 4).lengths, dense(3, 4).sequence):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_large_geometries_are_not_remembered():
    for batch, steps in ((1, 10_000), (10_000, 1), (100, 100), (10_000, 0)):
        assert dense(batch, steps) is not dense(batch, steps)
        x = np.zeros((batch, steps, 1))
        assert read_form(x).geometry is not read_form(x).geometry
    assert read_form(np.zeros((10_000, 1))).geometry is not read_form(np.zeros((10_000, 1))).geometry
    assert read_form(np.zeros((2, 30, 1))) is read_form(np.zeros((2, 30, 1)))


# --------------------------------------------------------------------------------------------------- forms of arrays


def rows_of(form: Batch, value, name: str = "x") -> np.ndarray:
    """What `form.read` finds, as packed rows: by the definition, where it is sequences."""
    found, geometry = form.read(value, 3, FLOAT, name), form.geometry
    if isinstance(found, np.ndarray) and found.ndim == 2:
        assert found.shape == (geometry.rows, 3)
        assert found.dtype == FLOAT
        assert found.flags.c_contiguous
        assert found.flags.aligned
        return found
    if isinstance(found, list):
        assert len({part.strides[0] for part in found if len(part) > 1}) <= 1
    assert all(part.strides[-1] == part.itemsize for part in found if part.size)
    assert all(part.dtype == FLOAT for part in found)
    return np.stack([found[s][t] for s, t in zip(geometry.sequence, geometry.step)])


def results_of(form: Batch, rows: np.ndarray):
    """What the caller gets of packed rows, filled in as the kernels do it, by the definition."""
    room, result = form.results(rows.shape[1], rows.dtype)
    if isinstance(room, np.ndarray) and room.ndim == 2:
        assert room.shape == rows.shape
        room[...] = rows
        assert np.shares_memory(room, result) or not rows.size
    else:
        for row, s, t in zip(rows, form.geometry.sequence, form.geometry.step):
            room[s][t] = row
        for sequence, length in zip(room, form.geometry.lengths):
            sequence[length if len(rows) else len(sequence) :] = 0  # without rows no kernel is called
    return result


def arrays_of(lengths: list[int], width: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.random((length, width)) for length in lengths]


@given(lengths_lists, st.integers(0, 3))
@settings(max_examples=60)
def test_padded_and_list_forms_give_the_same_rows(lengths, beyond):
    xs = arrays_of(lengths)
    steps = max(lengths, default=0) + beyond
    padded = np.full((len(lengths), steps, 3), np.nan)
    for row, x in zip(padded, xs):
        row[: len(x)] = x
    as_list, as_padded = read_form(xs), read_form(padded, lengths)
    rows = rows_of(as_list, xs)
    np.testing.assert_array_equal(rows_of(as_padded, padded), rows)
    assert rows.flags.c_contiguous
    assert rows.dtype == FLOAT
    for back, x in zip(results_of(as_list, rows), xs, strict=True):
        np.testing.assert_array_equal(back, x)
    back = results_of(as_padded, rows)
    np.testing.assert_array_equal(back, np.nan_to_num(padded))


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_dense_form(batch, steps):
    x = np.random.default_rng(3).random((batch, steps, 3))
    form = read_form(x)
    rows = rows_of(form, x)
    np.testing.assert_array_equal(rows, x.transpose(1, 0, 2).reshape(-1, 3))
    np.testing.assert_array_equal(results_of(form, rows), x)
    assert form.results(3, FLOAT)[0].shape == rows.shape  # packed: nobody copies


def test_time_major_memory_is_not_copied():
    time_major = np.random.default_rng(3).random((4, 5, 3))
    x = time_major.transpose(1, 0, 2)
    assert np.shares_memory(rows_of(read_form(x), x), time_major)
    single = time_major[:, 0].copy()
    assert rows_of(read_form(single), single) is single


@pytest.mark.parametrize("lengths", [None, [3], [0], [4]])
@pytest.mark.parametrize("three_dimensional", [False, True])
def test_one_sequence_with_and_without_a_length(lengths, three_dimensional):
    x = np.random.default_rng(3).random((4, 3))
    length = 4 if lengths is None else lengths[0]
    given_x = x[None] if three_dimensional else x
    form = read_form(given_x, lengths)
    rows = rows_of(form, given_x)
    np.testing.assert_array_equal(rows, x[:length])
    wanted = np.where(np.arange(4)[:, None] < length, x, 0)
    np.testing.assert_array_equal(results_of(form, rows), wanted[None] if three_dimensional else wanted)


def variants(x: np.ndarray) -> dict[str, np.ndarray]:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(x.dtype).reshape(x.shape)
    misaligned[...] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return {
        "read_only": read_only,
        "misaligned": misaligned,
        "fortran": np.asfortranarray(x),
        "strided": wide[..., ::2],
        "backwards": x[::-1].copy()[::-1],
        "big_endian": x.astype(x.dtype.newbyteorder(">")),
        "list": x.tolist(),
    }


@pytest.mark.parametrize("kind", variants(np.zeros((1, 1))))
@pytest.mark.parametrize("shape", [(5, 3), (1, 5, 3), (4, 5, 3)])
def test_any_memory_layout_will_do(kind, shape):
    x = np.random.default_rng(5).random(shape)
    form = read_form(x)
    given_x = variants(x)[kind]
    rows = rows_of(form, given_x)
    np.testing.assert_array_equal(rows, rows_of(form, x))
    assert rows.flags.c_contiguous
    assert rows.flags.aligned
    assert rows.dtype == FLOAT
    if len(shape) == 3:
        lengths = [3, 5, 0, 4][: shape[0]]
        ragged = read_form(x, lengths)
        ragged_rows = rows_of(ragged, given_x)
        np.testing.assert_array_equal(ragged_rows, rows_of(ragged, x))
        assert ragged_rows.flags.c_contiguous


@pytest.mark.parametrize("form", ["list", "padded", "single"])
def test_place_names_the_callers_index(form):
    lengths = [2, 0, 3]
    xs = arrays_of(lengths)
    if form == "list":
        batch = read_form(xs)
        assert [batch.place(row, 1) for row in range(5)] == [
            "[2][0, 1]",
            "[0][0, 1]",
            "[2][1, 1]",
            "[0][1, 1]",
            "[2][2, 1]",
        ]
    elif form == "padded":
        batch = read_form(np.zeros((3, 4, 3)), lengths)
        assert batch.place(1, 2) == "[0, 0, 2]"
        assert batch.place(4, 0) == "[2, 2, 0]"
    else:
        assert read_form(xs[2]).place(2, 1) == "[2, 1]"


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("x", "lengths", "error", "message"),
    [
        (np.zeros(3), None, ValueError, r"x must be \(batch, time, features\).* got an array of shape \(3,\)"),
        (np.zeros((1, 2, 3, 4)), None, ValueError, r"shape \(1, 2, 3, 4\)"),
        (3.0, None, ValueError, r"shape \(\)"),
        ([np.zeros((2, 3)), np.zeros(3)], None, ValueError, r"x\[1\] must be \(time, features\), got shape \(3,\)"),
        ([np.zeros((2, 3))], [2], ValueError, "lengths belongs to a padded array"),
        (np.zeros((2, 4, 3)), [1], ValueError, r"lengths must have shape \(2,\)"),
        (np.zeros((2, 4, 3)), [[1, 2]], ValueError, r"got \(1, 2\)"),
        (np.zeros((2, 4, 3)), [1, 5], ValueError, r"between 0 and the 4 steps of x, got lengths\[1\] = 5"),
        (np.zeros((2, 4, 3)), [-1, 5], ValueError, r"lengths\[0\] = -1"),
        (np.zeros((2, 4, 3)), np.array([4, 2**64 - 3], np.uint64), ValueError, r"lengths\[1\] = 18446744073709551613"),
        (np.zeros((2, 4, 3)), [1.0, 2.0], TypeError, "lengths must be whole numbers, got dtype float64"),
        (np.zeros((2, 4, 3)), [True, False], TypeError, "got dtype bool"),
        ([[[1.0], [1.0, 2.0]]], None, ValueError, r"x\[0\]: not an array of numbers"),
    ],
)
def test_what_is_no_batch_is_refused(x, lengths, error, message):
    with pytest.raises(error, match=message):
        read_form(x, lengths)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.zeros((2, 4, 2)), ValueError, r"d must have shape \(2, 4, 3\), got \(2, 4, 2\)"),
        (np.zeros((4, 2, 3)), ValueError, r"got \(4, 2, 3\)"),
        ([np.zeros((4, 3))], ValueError, r"got \(1, 4, 3\)"),
        (np.zeros((2, 4, 3), complex), TypeError, "d must hold real numbers, got dtype complex128"),
        (np.full((2, 4, 3), None), TypeError, "got dtype object"),
        (np.full((2, 4, 3), "1.0"), TypeError, "got dtype <U3"),
        ([[[1.0], [1.0, 2.0]]], ValueError, "d: not an array of numbers"),
    ],
)
def test_what_does_not_fit_a_padded_form_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        read_form(np.zeros((2, 4, 3))).read(value, 3, FLOAT, "d")


def test_what_does_not_fit_the_other_forms_is_refused():
    batch = read_form(arrays_of([2, 4]))
    with pytest.raises(TypeError, match=r"d must be a list of 2 arrays \(length_i, 3\), not ndarray"):
        batch.read(np.zeros((2, 4, 3)), 3, FLOAT, "d")
    with pytest.raises(ValueError, match="got 1 arrays"):
        batch.read([np.zeros((2, 3))], 3, FLOAT, "d")
    with pytest.raises(ValueError, match=r"d\[1\] must have shape \(4, 3\), got \(3, 3\)"):
        batch.read([np.zeros((2, 3)), np.zeros((3, 3))], 3, FLOAT, "d")
    with pytest.raises(TypeError, match=r"d\[0\] must hold real numbers"):
        batch.read([np.zeros((2, 3), complex), np.zeros((4, 3))], 3, FLOAT, "d")
    with pytest.raises(ValueError, match=r"d must have shape \(4, 3\), got \(5, 3\)"):
        read_form(np.zeros((4, 3))).read(np.zeros((5, 3)), 3, FLOAT, "d")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble, np.int8, np.uint64, np.bool, ">f8"])
def test_real_numbers_are_converted(dtype):
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    real = as_real(array, FLOAT, "x")
    assert real.dtype == FLOAT
    np.testing.assert_array_equal(real, [[0, 1], [1, 0]])


def test_the_right_dtype_is_not_copied_and_overflow_becomes_infinite():
    array = np.array([1e300, 1.0])
    assert as_real(array, FLOAT, "x") is array
    assert as_real(array, np.dtype(np.float32), "x").tolist() == [np.inf, 1.0]
