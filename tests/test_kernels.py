"""The door to C beneath the layers: one-hot input, dropout masks, wanted and unwanted gradients, sums of squares."""

from __future__ import annotations

import dataclasses
import time

import grid
import numpy as np
import pytest
import reference
import tolerances
from grid import KINDS, Case

from crnn import _kernels
from crnn.layers import LAYERS
from crnn.packed import Packed
from crnn.parameters import Parameters, Spec

DTYPES = ("float32", "float64")


def stack_of(case: Case, params: dict[str, np.ndarray], onehot: bool = False) -> tuple[object, list]:
    """A kernel stack over `params`, and the list of its weights."""
    net = case.net
    weights = [
        params.get(name)
        for layer in range(net.num_layers)
        for direction in range(net.directions)
        for name in reference.parameter_names(layer, direction)
    ]
    if onehot:
        weights[0] = params.storage("weight_ih_l0")
    stack = _kernels.Stack(
        f"rnn_{net.nonlinearity}" if net.cell == "rnn" else net.cell,
        case.input_size,
        case.hidden_size,
        net.num_layers,
        net.directions,
        weights,
        reset_after=net.reset_after,
        z_state=net.z_weighs == "state",
        onehot=onehot,
    )
    return stack, weights


@dataclasses.dataclass
class Pass:
    """One forward and backward through a kernel stack, in packed rows."""

    geometry: Packed
    stack: object
    tape: object
    y: np.ndarray
    final: tuple[np.ndarray, ...]

    def backward(self, case: Case, p: grid.Problem, grads: list, dx: np.ndarray | None, **options: object) -> tuple:
        dy = self.geometry.pack(p.d_outputs)
        d_final = [self.geometry.sort(part) for part in p.d_state] + [None] * (2 - len(p.d_state))
        d_initial = [np.full_like(part, 7.0) for part in p.state] + [None] * (2 - len(p.state))
        self.stack.backward(self.tape, dy, *d_final, case.truncation.schedule, dx, *d_initial, grads, **options)
        return tuple(self.geometry.unsort(part) for part in d_initial if part is not None)


def run(case: Case, p: grid.Problem, stack: object, rows: np.ndarray, masks: np.ndarray | None = None) -> Pass:
    geometry = Packed(np.array(case.lengths))
    initial = [np.ascontiguousarray(geometry.sort(part)) for part in p.state] + [None] * (2 - len(p.state))
    y = np.full((geometry.rows, case.net.directions * case.hidden_size), 7.0, case.dtype)
    final = [np.full_like(part, 7.0) for part in p.state] + [None] * (2 - len(p.state))
    tape = stack.forward(rows, geometry.offsets, *initial, y, *final, True, masks)
    return Pass(geometry, stack, tape, y, tuple(geometry.unsort(part) for part in final if part is not None))


ONEHOT = [
    Case(kind, words, hidden, (4, 0, 7, 1), layers, bias=bias, dtype=dtype, scheme=scheme)
    for kind in KINDS
    for words, hidden, layers, bias, dtype, scheme in [
        (11, 17, 1, True, "float32", ("window", 3)),
        (40, 8, 2, True, "float64", ("full",)),
        (3, 33, 1, False, "float64", ("chunk", 2, 3)),
        (500, 5, 2, False, "float32", ("full",)),
    ]
]


@pytest.mark.parametrize("case", ONEHOT, ids=lambda case: case.id)
def test_ids_equal_one_hot_vectors(case, isa, threads, rng):
    drawn = grid.problem_of(case)
    specs = [Spec(name, value.shape, name == "weight_ih_l0") for name, value in drawn.params.items()]
    params = Parameters(specs, case.dtype)
    params.assign(drawn.params)
    ids = [rng.integers(0, case.input_size, length) for length in case.lengths]
    vectors = [np.eye(case.input_size)[i] for i in ids]
    forward = reference.forward(case.net, drawn.params, vectors, drawn.state)
    expected = reference.backward(case.net, drawn.params, forward, drawn.d_outputs, drawn.d_state, case.reach)

    found = []
    for count in (1, 2):
        threads(count)
        stack, weights = stack_of(case, params, onehot=True)
        geometry = Packed(np.array(case.lengths))
        rows = geometry.pack(ids)
        done = run(case, drawn, stack, rows)
        grads = [None if w is None else np.full_like(w, 7.0) for w in weights]
        grads[0] = None
        gates = drawn.params["weight_ih_l0"].shape[0]
        dx = np.full((geometry.rows, gates), 7.0, case.dtype)
        d_state = done.backward(case, drawn, grads, dx)
        d_words = np.zeros((case.input_size, gates))
        np.add.at(d_words, rows, dx.astype(np.float64))
        named = dict(zip((name for name in expected.params if name != "weight_ih_l0"), grads_of(grads)))
        results = grid.Results(geometry.unpack(done.y), done.final, [], d_state, named)
        checked = dataclasses.replace(results, d_params={"weight_ih_l0": d_words.T.astype(case.dtype), **named})
        grid.check(case, checked, grid.Results(forward.outputs, forward.state, [], expected.state, expected.params))
        found.append((results, dx))
    grid.identical(found[0][0], found[1][0])
    assert found[0][1].tobytes() == found[1][1].tobytes()


def grads_of(grads: list) -> list[np.ndarray]:
    return [gradient for gradient in grads if gradient is not None]


MASKED = [
    Case(kind, 5, 17, (4, 0, 7, 1, 2), layers, both, dtype=dtype, scheme=scheme)
    for kind in KINDS
    for layers, both, dtype, scheme in [
        (2, False, "float32", ("window", 3)),
        (3, False, "float64", ("window", 2)),
        (3, False, "float64", ("full",)),
        (2, True, "float32", ("full",)),
    ]
]


@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.id)
def test_masks_multiply_the_input_of_upper_layers(case, isa, threads, rng):
    p = grid.problem_of(case)
    width = case.net.directions * case.hidden_size
    masks = [
        [((rng.random((steps, width)) > 0.3) * 1.25).astype(case.dtype) for steps in case.lengths]
        for _ in range(case.num_layers - 1)
    ]
    forward = reference.forward(case.net, p.params, p.xs, p.state, masks)
    expected = reference.backward(case.net, p.params, forward, p.d_outputs, p.d_state, case.reach)
    wanted = grid.Results(forward.outputs, forward.state, expected.inputs, expected.state, expected.params)
    for count in (1, 2):
        threads(count)
        stack, weights = stack_of(case, p.params)
        geometry = Packed(np.array(case.lengths))
        packed_masks = np.stack([geometry.pack(layer) for layer in masks])
        done = run(case, p, stack, geometry.pack(p.xs), packed_masks)
        grads = [np.full_like(w, 7.0) for w in weights]
        dx = np.full((geometry.rows, case.input_size), 7.0, case.dtype)
        d_state = done.backward(case, p, grads, dx)
        found = grid.Results(
            geometry.unpack(done.y), done.final, geometry.unpack(dx), d_state, dict(zip(p.params, grads))
        )
        grid.check(case, found, wanted)


@pytest.mark.parametrize("scheme", [("full",), ("window", 2), ("chunk", 2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulate_adds_and_unwanted_gradients_stay_away(kind, scheme, isa):
    case = Case(kind, 5, 17, (4, 0, 3), num_layers=2, dtype="float64", scheme=scheme)
    p, expected = grid.problem_of(case), grid.oracle(case)
    stack, weights = stack_of(case, p.params)
    geometry = Packed(np.array(case.lengths))
    done = run(case, p, stack, geometry.pack(p.xs))
    grads = [np.full_like(w, 0.25) for w in weights]
    done.backward(case, p, grads, None, accumulate=True)
    for (name, e), gradient in zip(expected.d_params.items(), grads):
        tolerances.assert_close(gradient, e + 0.25, "d_params", terms=case.terms, steps=case.steps, what=name)
    # One gradient at a time, and none at all, must be the same numbers as all together.
    for chosen in range(len(weights)):
        one = [np.full_like(w, 7.0) if i == chosen else None for i, w in enumerate(weights)]
        done.backward(case, p, one, None)
        tolerances.assert_close(
            one[chosen], list(expected.d_params.values())[chosen], "d_params", terms=case.terms, steps=case.steps
        )
    dx = np.full((geometry.rows, 5), 7.0)
    d_state = done.backward(case, p, [None] * len(weights), dx)
    for a, e in zip([*geometry.unpack(dx), *d_state], [*expected.d_inputs, *expected.d_state], strict=True):
        tolerances.assert_close(a, e, "d_input", terms=case.terms, steps=case.steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [("full",), ("window", 2)])
def test_missing_upstream_gradients_are_zero(kind, scheme, isa):
    case = Case(kind, 3, 9, (4, 0, 3), dtype="float64", scheme=scheme)
    p = grid.problem_of(case)
    stack, weights = stack_of(case, p.params)
    geometry = Packed(np.array(case.lengths))
    done = run(case, p, stack, geometry.pack(p.xs))
    zeros = dataclasses.replace(p, d_outputs=[0 * d for d in p.d_outputs], d_state=tuple(0 * d for d in p.d_state))
    two = len(p.state) == 2
    for given, dy in ((dataclasses.replace(zeros, d_state=p.d_state), None), (zeros, geometry.pack(zeros.d_outputs))):
        explicit, implicit = ([np.full_like(w, 7.0) for w in weights] for _ in range(2))
        dx_a, dx_b = (np.full((geometry.rows, 3), 7.0) for _ in range(2))
        d_a = done.backward(case, given, explicit, dx_a)
        d_final = [geometry.sort(d) for d in given.d_state] if dy is None else [None, None]
        d_b = [np.full_like(part, 7.0) for part in p.state]
        done.stack.backward(
            done.tape, dy, *[*d_final, None][:2], case.truncation.schedule, dx_b,
            d_b[0], d_b[1] if two else None, implicit,
        )  # fmt: skip
        for a, b in zip([*explicit, dx_a, *d_a], [*implicit, dx_b, *map(geometry.unsort, d_b)], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 100_003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_squares_and_scale(dtype, n, isa, threads, rng):
    a = grid.asymmetric(rng, (n,), dtype, 3.0)
    exact = float((a.astype(np.longdouble) ** 2).sum())
    threads(1)
    one = _kernels.sum_squares(a)
    assert one == pytest.approx(exact, rel=1e-13)
    threads(2)
    assert _kernels.sum_squares(a) == one
    scaled = a.copy()
    _kernels.scale(scaled, -0.3)
    np.testing.assert_allclose(scaled, -0.3 * a.astype(np.float64), rtol=2 * np.finfo(dtype).eps)


def test_sum_squares_of_float32_accumulates_in_float64(isa):
    a = np.full(2_000_000, 1e-3, np.float32)
    assert _kernels.sum_squares(a) == pytest.approx(2_000_000 * float(np.float32(1e-3)) ** 2, rel=1e-10)
    assert _kernels.sum_squares(np.array([np.nan, 1.0], np.float32)) != _kernels.sum_squares(np.ones(2, np.float32))
    assert not np.isfinite(_kernels.sum_squares(np.array([1.0, np.inf, 2.0])))


def test_sum_squares_of_more_than_256_pieces(isa, rng):
    a = np.zeros((256 + 2) * 65536 + 5, np.float32)  # untouched pages cost nothing
    a[3], a[256 * 65536 :] = 2.0, grid.asymmetric(rng, (2 * 65536 + 5,), "float32")
    exact = 4.0 + float((a[256 * 65536 :].astype(np.float64) ** 2).sum())
    assert _kernels.sum_squares(a) == pytest.approx(exact, rel=1e-12)


def test_sum_squares_of_large_float32_values_does_not_overflow(isa):
    assert _kernels.sum_squares(np.full(9, 1e30, np.float32)) == pytest.approx(9e60, rel=1e-6)


# ---------------------------------------------------------------------------------------------- memory, ids, sequences


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (300, 70), (2, 150, 40)])
def test_arrays_from_the_cache_are_like_any_other(dtype, shape):
    held = [_kernels.empty(shape, np.dtype(dtype)) for _ in range(4)]
    for number, array in enumerate(held):
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert array.flags.writeable
        array[...] = number
    for number, array in enumerate(held):  # no two share memory
        assert (array == number).all()
    part = held.pop()[..., 1:] if shape else held.pop()
    before = part.copy()
    del array
    _kernels.empty(shape, np.dtype(dtype))[...] = -1.0  # a view keeps its memory
    np.testing.assert_array_equal(part, before)


def test_arrays_that_no_memory_holds_are_refused():
    with pytest.raises(MemoryError, match="too large"):
        _kernels.empty((2**40, 2**40), np.dtype(np.float32))
    with pytest.raises(MemoryError, match=r"too large|not enough memory"):
        _kernels.empty((2**58,), np.dtype(np.float64))


@pytest.mark.parametrize("lengths", [(3, 0, 1), (4, 9, 0, 7, 2), (*(1 + 7 * i % 40 for i in range(40)), 0, 0)], ids=len)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 2)])
def test_results_are_zero_where_sequences_are_over(lengths, count, gap, layers, directions, isa, threads):
    """Few rows, a batch as a whole, and (one direction, many lengths) in halves; arrays longer than sequences."""
    case = Case("lstm", 5, 9, lengths, layers, bidirectional=directions == 2, dtype="float32")
    p = grid.problem_of(case)
    stack, weights = stack_of(case, p.params)
    geometry, width = Packed(np.array(lengths)), 9 * directions
    threads(count)
    rows = [geometry.pack(arrays) for arrays in (p.xs, p.d_outputs)]
    results = [np.full((len(lengths), geometry.steps + 2, w + gap), 7.0, "float32") for w in (width, 5)]
    y, dx = (array[:, :, gap:] for array in results)
    packed = [np.empty((geometry.rows, w), "float32") for w in (width, 5)]
    states = [np.empty((layers * directions, len(lengths), 9), "float32") for _ in range(4)]
    grads = [np.empty_like(w) for w in weights]
    for into_y, into_dx in ((y, dx), packed):
        tape = stack.forward(rows[0], geometry.offsets, None, None, into_y, *states[:2], True, None, geometry.order)
        schedule = (0, 0, 0)
        stack.backward(tape, rows[1], None, None, schedule, into_dx, *states[2:], grads, False, geometry.order)
    for array, expected in zip((y, dx), packed):
        for found, wanted, length in zip(array, geometry.unpack(expected), lengths):
            assert found[:length].tobytes() == wanted.tobytes()
            assert not found[length:].any()
    for array in results:
        assert (array[:, :, :gap] == 7).all()


def small_stack(dtype=np.float32):
    weights = [np.full(shape, 0.1, dtype) for shape in ((4, 4), (4, 4), (4,), (4,))]
    return _kernels.Stack("rnn_tanh", 4, 4, 1, 1, weights), weights


def test_sequences_that_the_kernels_would_crash_on_are_refused():
    order, offsets = np.array([1, 0]), np.array([0, 2, 3])
    rows = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
    stack, weights = small_stack()
    y, h_n = np.zeros((3, 4), np.float32), np.zeros((1, 2, 4), np.float32)
    tape = stack.forward(rows, offsets, None, None, y, h_n, None, True)

    def forward(x, out, order=order, offsets=offsets):
        stack.forward(x, offsets, None, None, out, h_n, None, False, None, order)

    def backward(dy, dx, order=order):
        stack.backward(tape, dy, None, None, (0, 0, 0), dx, None, None, [None] * len(weights), False, order)

    def apart():
        return [np.zeros((1, 4), np.float32), np.zeros((2, 4), np.float32)]

    packed, found = np.zeros((3, 4), np.float32), apart()
    forward([rows[[1]], rows[[0, 2]]], found)
    np.testing.assert_array_equal(found[1], y[[0, 2]])
    np.testing.assert_array_equal(found[0], y[[1]])
    backward(rows, packed)
    backward([rows[[1]], rows[[0, 2]]], found)
    np.testing.assert_array_equal(found[1], packed[[0, 2]])
    np.testing.assert_array_equal(found[0], packed[[1]])

    read_only = apart()
    read_only[1].flags.writeable = False
    misaligned = np.frombuffer(bytearray(33), np.uint8)[1:].view(np.float32).reshape(2, 4)
    unequal = [np.ones((2, 4), np.float32), np.ones((2, 8), np.float32)[:, :4]]
    with pytest.raises(ValueError, match="steps 32 bytes apart"):
        forward(np.zeros((4, 4), np.float32), unequal, offsets=np.array([0, 2, 4]))
    good = apart()
    cannot_be_read = (
        good[::-1],  # too few steps
        [good[0], good[1].astype(np.float64)],
        [good[0], good[1][:, :3]],
        [good[0], np.ones((2, 8), np.float32)[:, ::2]],
        [good[0], np.ones(8, np.float32)],
        np.ones((3, 2, 4), np.float32),
        np.ones((2, 1, 4), np.float32),
    )
    for wrong in (*cannot_be_read, read_only, [good[0], misaligned]):
        with pytest.raises(ValueError, match="sequences"):
            forward(rows, wrong)
        with pytest.raises(ValueError, match="sequences"):
            backward(rows, wrong)
    for wrong in cannot_be_read:
        with pytest.raises(ValueError, match="sequences"):
            forward(wrong, y)
        with pytest.raises(ValueError, match="sequences"):
            backward(wrong, packed)
    forward(read_only, [good[0], good[1]])
    forward([good[0], misaligned], y)
    for call in (forward, backward):
        with pytest.raises(ValueError, match="order"):
            call(rows, good, order=np.array([1, 2]))
        with pytest.raises(ValueError, match="elements of the call's dtype"):
            call(rows[:2], good)
        with pytest.raises(ValueError, match="elements of the call's dtype"):
            call(rows, packed[:2])
        with pytest.raises(ValueError, match="an array"):
            call(rows, good, order=None)


def test_what_the_machine_reaches_is_measured(threads):
    threads(2)
    assert _kernels.read_bandwidth(100_000, 2, 1e-3) > 0.1  # GB/s
    assert _kernels.fma_peak("float32", 2, 1e-3) > 0.1
    _kernels.assume_handover(0.25)
    assert _kernels.handover(2) == 0.25
    with pytest.raises(ValueError, match=r"seconds: got -1\.0, wanted at least 0"):
        _kernels.assume_handover(-1)
    with pytest.raises(ValueError, match="size: got 0 bytes"):
        _kernels.read_bandwidth(0, 1, 1e-3)


def test_what_is_no_object_of_its_kind_is_refused():
    stack = _kernels.Stack("gru", 2, 3, 1, 1, list(LAYERS["gru"](2, 3).params.values()))
    with pytest.raises(TypeError, match="stack"):
        _kernels.Stepper(None, 1)
    with pytest.raises(TypeError, match="tape"):
        stack.backward(None, None, None, None, (0, 0, 0), None, None, None, [None] * 4)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((0, 2, 1), "block 1 has -1 rows after 2"),
        ((0, 1, 3), "block 1 has 2 rows after 1"),
        ((0, 2, 4), "x: got NoneType"),
    ],
)
def test_what_a_forward_pass_would_crash_on_is_refused(offsets, message):
    stack = _kernels.Stack("gru", 2, 3, 1, 1, list(LAYERS["gru"](2, 3).params.values()))
    x = None if "None" in message else np.ones((max(offsets[-1], 0), 2), "float32")
    y, h_n = np.empty((offsets[-1], 3), "float32"), np.empty((1, 2, 3), "float32")
    with pytest.raises(ValueError, match=message):
        stack.forward(x, np.array(offsets), None, None, y, h_n, None, False)


def test_other_arrays_that_would_crash_are_refused():
    x = np.ones(3, "float32")
    with pytest.raises(ValueError, match="out: got NoneType"):
        _kernels.function("exp", x, None)
    with pytest.raises(ValueError, match=r"out: got .S1"):
        _kernels.take_rows(np.zeros((2, 1), "S64"), np.array([0]), np.zeros((1, 1), "S1"))
    with pytest.raises(ValueError, match="no objects"):
        _kernels.take_rows(np.zeros((2, 1), object), np.array([0]), np.zeros((1, 1), object))


def test_what_a_handover_takes_is_measured(threads):
    """Anew whenever the number of threads has changed; before the first time it is a constant."""
    _kernels.assume_handover(0)  # not what the fixture assumes
    threads(2)
    seen = {_kernels.handover(2)}
    give_up = time.monotonic() + 20  # others may keep the worker from answering for a while
    while len(seen) < 4 and time.monotonic() < give_up:
        threads(5 - _kernels.get_threads())
        before = time.perf_counter()
        seconds = _kernels.handover(2)
        assert seconds in seen or 0 < seconds < time.perf_counter() - before
        seen.add(seconds)
    assert len(seen) == 4


def test_a_handover_to_more_threads_than_there_may_be(threads):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"threads: got {wrong}, wanted at least 1"):
            _kernels.handover(wrong)
    _kernels.assume_handover(0)
    for n in (2, 3, 2):  # or it would not be measured, and no thread started
        threads(n)
        assert _kernels.handover(1000) > 0  # with as many as there may be: tests/c/test_threads.c counts them
