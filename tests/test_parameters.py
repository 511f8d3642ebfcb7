"""The flat buffer: layout, views, copying in, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from crnn.parameters import Parameters, Spec

DTYPES = (np.float32, np.float64)
LINE = 64


def specs() -> list[Spec]:
    return [
        Spec("rnn.weight_ih_l0", (12, 5), transposed=True),
        Spec("rnn.weight_hh_l0", (12, 3)),
        Spec("rnn.bias_ih_l0", (12,)),
        Spec("output.weight", (37, 3), transposed=True),
        Spec("output.bias", (37,)),
    ]


def filled(dtype: type = np.float32) -> Parameters:
    p = Parameters(specs(), dtype)
    rng = np.random.default_rng(4)
    for view in p.values():
        view[...] = rng.uniform(-0.6, 0.9, view.shape)
    return p


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_has_its_public_shape_and_starts_on_a_cache_line(dtype):
    p = Parameters(specs(), dtype)
    assert list(p) == [spec.name for spec in specs()]
    for spec in specs():
        assert p[spec.name].shape == spec.shape
        assert p[spec.name].dtype == dtype
        assert p[spec.name].ctypes.data % LINE == 0
        assert not p[spec.name].any()
    assert p.specs == tuple(specs())
    assert p.size == 12 * 5 + 12 * 3 + 12 + 37 * 3 + 37


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 8000])
def test_transposed_rows_take_an_odd_number_of_cache_lines(dtype, columns):
    p = Parameters([Spec("w", (columns, 3), transposed=True)], dtype)
    stored = p.storage("w")
    assert stored.shape == (3, columns)
    assert stored.strides[1] == np.dtype(dtype).itemsize
    lines, rest = divmod(stored.strides[0], LINE)
    assert rest == 0
    assert lines % 2 == 1
    needed = -(-columns * np.dtype(dtype).itemsize // LINE)
    assert lines in (needed, needed + 1)
    stored[1, columns - 1] = 3
    assert p["w"][columns - 1, 1] == 3
    assert np.shares_memory(p["w"], stored)


@pytest.mark.parametrize("dtype", DTYPES)
def test_guard_of_zeros_behind_the_last_tensor(dtype):
    p = filled(dtype)
    base = p.flat
    while base.base is not None:
        base = base.base
    end = p.flat.ctypes.data + p.flat.nbytes
    guard = base.ctypes.data + base.nbytes - end
    assert guard >= 128
    assert not base.view(np.uint8)[base.nbytes - guard :].any()


def test_padding_is_zero_and_everything_else_is_a_view_of_flat():
    p = filled()
    assert np.count_nonzero(p.flat) == p.size
    p.flat[:] = 0
    assert not any(view.any() for view in p.values())
    p["output.weight"][36, 2] = 5
    assert np.count_nonzero(p.flat == 5) == 1


def test_storage_of_a_plain_tensor_is_its_view():
    p = filled()
    assert p.storage("rnn.weight_hh_l0").ctypes.data == p["rnn.weight_hh_l0"].ctypes.data
    assert p.storage("rnn.weight_hh_l0").flags.c_contiguous
    with pytest.raises(KeyError):
        p.storage("nothing")


def test_like_is_a_zeroed_twin_that_lines_up():
    p = filled()
    twin = p.like()
    assert list(twin) == list(p)
    assert twin.flat.shape == p.flat.shape
    assert not twin.flat.any()
    twin.flat[:] = p.flat
    for name in p:
        np.testing.assert_array_equal(twin[name], p[name])
        assert twin[name].ctypes.data % LINE == 0
        assert twin[name].strides == p[name].strides
    twin["output.bias"][0] += 1
    assert twin["output.bias"][0] != p["output.bias"][0]


def test_assigning_to_flat_copies():
    p = filled()
    flat, view = p.flat, p["output.bias"]
    p.flat = 2 * flat
    assert p.flat is flat
    np.testing.assert_array_equal(view, 2 * filled()["output.bias"])
    p.flat -= p.flat
    assert not view.any()
    with pytest.raises(ValueError, match=r"flat: shape \(3,\), wanted"):
        p.flat = np.zeros(3, np.float32)


@pytest.mark.parametrize("shape", [(10**7, 10**7), (10**18, 10**3)])
def test_more_than_there_is_memory_is_one_clear_error(shape):
    with pytest.raises(MemoryError, match=r"parameters take [0-9,]+ bytes"):
        Parameters([Spec("weight", shape)])


def test_assigning_to_a_name_copies():
    p = filled()
    given = np.arange(37, dtype=np.float64)
    view = p["output.bias"]
    p["output.bias"] = given
    assert p["output.bias"] is view
    np.testing.assert_array_equal(view, given.astype(np.float32))
    given[0] = 99
    assert view[0] == 0
    p["output.bias"] *= 2
    assert view[36] == 72
    p["rnn.weight_ih_l0"] = np.asfortranarray(np.arange(60.0).reshape(12, 5))
    np.testing.assert_array_equal(p.storage("rnn.weight_ih_l0")[4], np.arange(4.0, 60.0, 5.0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(36), r"output.bias: shape \(36,\), wanted \(37,\)"),
        (1.0, r"output.bias: shape \(\), wanted \(37,\)"),
        (np.ones(37, int), "output.bias: dtype int64, wanted floating-point"),
        (np.ones(37, complex), "output.bias: dtype complex128"),
        (np.array(["x"] * 37), "output.bias: dtype <U1"),
        (np.full(37, np.nan), r"output.bias: nan at \[0\]"),
        (np.full(37, 1e300), r"output.bias: inf at \[0\] in float32"),
        ([[1.0], [1.0, 2.0]], "output.bias: not an array"),
    ],
)
def test_assigning_what_does_not_fit_is_refused(value, message):
    p = filled()
    before = p.flat.copy()
    with pytest.raises(ValueError, match=message):
        p["output.bias"] = value
    np.testing.assert_array_equal(p.flat, before)


def test_assigning_to_an_unknown_name_lists_the_names():
    p = filled()
    with pytest.raises(KeyError, match=r"bias: no such tensor; there are rnn\.weight_ih_l0, "):
        p["bias"] = np.ones(37)
    assert "bias" not in p


def test_assign_lists_all_problems_at_once_and_copies_nothing():
    p = filled()
    before = p.flat.copy()
    given = {name: np.zeros(view.shape) for name, view in p.items()}
    del given["rnn.bias_ih_l0"]
    given["extra"] = np.zeros(3)
    given["output.bias"] = np.zeros(36)
    given["output.weight"] = np.zeros((37, 3), np.int8)
    given["rnn.weight_hh_l0"][11, 2] = np.inf
    with pytest.raises(ValueError, match="parameters do not fit") as caught:
        p.assign(given)
    lines = str(caught.value).splitlines()[1:]
    assert lines == [
        "  rnn.bias_ih_l0: missing, wanted shape (12,)",
        "  rnn.weight_hh_l0: inf at [11, 2] in float32, wanted finite numbers",
        "  output.weight: dtype int8, wanted floating-point numbers",
        "  output.bias: shape (36,), wanted (37,)",
        "  extra: unexpected",
    ]
    np.testing.assert_array_equal(p.flat, before)
    with pytest.raises(TypeError, match="mapping"):
        p.assign([np.zeros(3)])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_assign_converts_floating_point_numbers(dtype):
    p, q = filled(np.float64), Parameters(specs(), np.float64)
    given = {name: view.astype(dtype) for name, view in p.items()}
    q.assign(given)
    for name, view in q.items():
        np.testing.assert_array_equal(view, given[name].astype(np.float64))


def test_update_may_leave_names_out_but_is_all_or_nothing():
    p = filled()
    p.update({"output.bias": np.full(37, 2.0)})
    assert (p["output.bias"] == 2).all()
    p |= {"output.bias": np.full(37, 3.0)}
    assert (p["output.bias"] == 3).all()
    with pytest.raises(ValueError, match="nothing: unexpected"):
        p.update({"output.bias": np.zeros(37), "nothing": np.zeros(1)})
    assert (p["output.bias"] == 3).all()


def test_names_are_fixed():
    p = filled()
    for call in (
        lambda: p.pop("output.bias"),
        lambda: p.popitem(),
        lambda: p.clear(),
        lambda: p.setdefault("x", np.zeros(1)),
        lambda: p.__delitem__("output.bias"),
    ):
        with pytest.raises(TypeError, match="names of Parameters are fixed"):
            call()
    assert len(p) == 5


@pytest.mark.parametrize(
    "duplicate",
    [Parameters.copy, copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))],
    ids=["copy", "copy.copy", "deepcopy", "pickle"],
)
def test_copies_own_their_memory(duplicate):
    p = filled()
    twin = duplicate(p)
    assert type(twin) is Parameters
    assert twin.specs == p.specs
    assert twin.dtype == p.dtype
    np.testing.assert_array_equal(twin.flat, p.flat)
    assert not np.shares_memory(twin.flat, p.flat)
    twin["output.bias"][:] = 9
    assert not (p["output.bias"] == 9).any()


def test_a_parameters_is_a_dict():
    p = filled()
    assert isinstance(p, dict)
    assert {**p}.keys() == p.keys()
    assert "37x3" in repr(p)


def test_no_tensors_at_all():
    p = Parameters([])
    assert p.flat.size == p.size == len(p) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.int32, ">f4", None])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        Parameters(specs(), dtype)


def test_bad_specs_are_refused():
    with pytest.raises(ValueError, match="same name 'a'"):
        Parameters([Spec("a", (1,)), Spec("a", (2,))])
    with pytest.raises(ValueError, match="only a matrix"):
        Spec("a", (3,), transposed=True)
    with pytest.raises(ValueError, match="at least 1"):
        Spec("a", (3, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("width", "rest"), [(1, 90_000), (63, 90_000), (300, 90_000), (2, 5), (5, 500)])
def test_a_blank_twin_has_the_layout_and_zero_padding_whatever_lay_there_before(dtype, width, rest):
    p = Parameters([Spec("a", (width, 7)), Spec("b", (200, width), transposed=True), Spec("c", (rest,))], dtype)
    for _ in range(3):  # memory that was used before comes back: it is full of NaN the second time
        twin = p.blank()
        assert twin.specs == p.specs
        assert twin.flat.shape == p.flat.shape
        for name, view in twin.items():
            assert view.shape == p[name].shape
            assert view.strides == p[name].strides
            assert view.ctypes.data % 64 == p[name].ctypes.data % 64
            assert view.ctypes.data - twin.flat.ctypes.data == p[name].ctypes.data - p.flat.ctypes.data
            view[...] = 0
        guarded = np.lib.stride_tricks.as_strided(twin.flat, (twin.flat.size + twin.guard,))
        assert not guarded.any()
        guarded[...] = np.nan
        del twin, view, guarded


def test_views_of_read_only_memory_are_read_only():
    p = Parameters(specs())
    p.flat[...] = 0.5
    buffer = np.concatenate([p.flat, np.zeros(p.guard, p.dtype)])
    raw = np.zeros(buffer.size + 16, p.dtype)
    start = -raw.ctypes.data % 64 // p.dtype.itemsize
    over = raw[start : start + buffer.size]
    over[...] = buffer
    over.flags.writeable = False
    mapped = Parameters(specs(), over=over)
    for name, view in mapped.items():
        assert not view.flags.writeable
        np.testing.assert_array_equal(view, p[name])


@pytest.mark.parametrize("copy_in", [Parameters.assign, Parameters.update])
def test_tensors_of_these_very_parameters_may_change_places(copy_in):
    p = Parameters([Spec("a", (3, 5)), Spec("b", (3, 5))], np.float32)
    p.flat[:] = np.random.default_rng(0).normal(size=p.flat.size)
    a, b = p["a"].copy(), p["b"].copy()
    copy_in(p, {"a": p["b"], "b": p["a"]})
    np.testing.assert_array_equal(p["a"], b)
    np.testing.assert_array_equal(p["b"], a)
