"""What must hold whatever the numbers are: for every cell, without an oracle."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import threading
import time
from pathlib import Path

import grid
import numpy as np
import pytest
import tolerances
from grid import KINDS, Case

import crnn
from crnn import _kernels

SCHEMES = [("full",), ("window", 2), ("chunk", 2, 3)]
LENGTHS = (5, 0, 3, 7, 1, 7, 2, 4)


def results_of(run: object, back: object) -> grid.Results:
    return grid.Results(
        list(run.output), grid.parts(run.state), list(back.input), grid.parts(back.state), dict(back.params)
    )


def cases(dtype: str = "float32", **options: object) -> list[Case]:
    return [
        Case(kind, 5, 17, LENGTHS, num_layers=2, dtype=dtype, scheme=s, **options) for kind in KINDS for s in SCHEMES
    ]


all_cells = pytest.mark.parametrize("kind", KINDS)
all_cases = pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)


@all_cases
def test_zero_upstream_gradient_gives_zero_gradients(case):
    p = grid.problem_of(case)
    run = grid.layer_of(case, p.params).forward(p.xs, grid.public(p.state))
    back = run.backward([np.zeros_like(d) for d in p.d_outputs], None, case.truncation)
    for gradient in (*back.params.values(), *back.input, *grid.parts(back.state)):
        assert not gradient.any()


@all_cases
def test_backward_is_linear_in_the_upstream_gradient(case):
    p = grid.problem_of(case)
    q = grid.draw(case, seed=4)
    run = grid.layer_of(case, p.params).forward(p.xs, grid.public(p.state))

    def back(a: float, b: float) -> list[np.ndarray]:
        d_outputs = [(a * d + b * e).astype(d.dtype) for d, e in zip(p.d_outputs, q.d_outputs)]
        d_state = tuple((a * d + b * e).astype(d.dtype) for d, e in zip(p.d_state, q.d_state))
        result = run.backward(d_outputs, grid.public(d_state), case.truncation)
        return [*result.params.values(), *result.input, *grid.parts(result.state)]

    for mixed, one, other in zip(back(2.0, -3.0), back(1.0, 0.0), back(0.0, 1.0), strict=True):
        expected = 2.0 * one.astype(np.float64) - 3.0 * other.astype(np.float64)
        tolerances.assert_close(mixed, expected, "d_params", terms=case.terms, steps=case.steps)


@all_cases
def test_backward_twice_gives_the_same(case):
    p = grid.problem_of(case)
    run = grid.layer_of(case, p.params).forward(p.xs, grid.public(p.state))
    one, other = (results_of(run, run.backward(p.d_outputs, grid.public(p.d_state), case.truncation)) for _ in range(2))
    grid.identical(one, other)


@all_cases
def test_threads_do_not_change_a_bit(case, threads):
    wide = Case(case.kind, 20, 40, tuple(range(1, 24)), num_layers=2, dtype=case.dtype, scheme=case.scheme)
    threads(1)
    one = grid.library(wide)
    for count, handover in itertools.product((2, 3, 4, 7), (1e-7, 4e-7)):  # on near cores and on far ones
        threads(count)
        _kernels.assume_handover(handover)
        grid.identical(one, grid.library(wide))


@all_cells
@pytest.mark.parametrize("lengths", [(100,) * 5, (120, 110, 60, 31, 30, 4), (250, 240)], ids=str)
def test_few_sequences_of_narrow_layers_do_not_change_a_bit(kind, lengths, threads):
    """All threads project the input of some steps, then each takes its sequences through them, in inference too."""
    case = Case(kind, 90, 33, lengths)
    p = grid.problem_of(case)
    layer = grid.layer_of(case, p.params)
    threads(1)
    one, outputs = grid.library(case), layer(p.xs)[0]
    for count, handover in itertools.product((2, 3, 4), (1e-8, 1e-7, 4e-7)):
        threads(count)
        _kernels.assume_handover(handover)
        grid.identical(one, grid.library(case))
        for y, again in zip(outputs, layer(p.xs)[0], strict=True):
            np.testing.assert_array_equal(y, again)


@all_cells
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [tuple(range(1, 24)), (30,), (9,) * 12, (2, 3, 3)], ids=str)
def test_directions_apart_do_not_change_a_bit(kind, dtype, lengths, threads):
    """An even number of threads walks the directions at the same time, an odd one after the other."""
    case = Case(kind, 90, 70, lengths, num_layers=2, dtype=dtype, bidirectional=True)
    threads(1)
    one = grid.library(case)
    for count, handover in itertools.product((2, 3, 4, 6), (1e-8, 1e-7, 4e-7)):
        threads(count)
        _kernels.assume_handover(handover)
        grid.identical(one, grid.library(case))


@pytest.mark.parametrize("row", [0, 3, 7])
def test_a_gradient_that_is_not_finite_is_found_in_either_direction(row, threads):
    """Directions read their halves of it at the same time; the first row is told, whichever has found it."""
    layer = crnn.LSTM(64, 48, bidirectional=True, rng=3)
    x = np.random.default_rng(4).standard_normal((16, 8, 64)).astype(np.float32)
    for count, half in itertools.product((1, 2, 4), (0, 1)):
        threads(count)
        _kernels.assume_handover(1e-7)
        run = layer.forward(x)  # the backward pass takes as many threads
        dy = np.ones((16, 8, 96), np.float32)
        dy[5, row, half * 48 + 7] = np.inf
        dy[9, 7, (1 - half) * 48 + 2] = np.nan
        with pytest.raises(ValueError, match=rf"\[5, {row}, {half * 48 + 7}\]"):
            run.backward(dy)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="NO LIST OF THREADS ON THIS SYSTEM")
def test_threads_that_are_no_longer_wanted_go(threads):
    """They would have a part in every later call, and where they are more than the cores nobody would ever get two."""
    layer, x = crnn.LSTM(40, 64, rng=0), np.random.default_rng(0).random((16, 30, 40), np.float32)
    wanted = layer(x)[0].tobytes()

    def running(count: int, expected: int | None = None) -> int:
        """How many threads there are after calls that `count` share, once they are as many as expected."""
        threads(count)
        deadline = time.monotonic() + 20
        while True:
            for _ in range(20):
                assert layer(x)[0].tobytes() == wanted
            found = len(list(Path("/proc/self/task").iterdir()))
            if expected in (None, found) or time.monotonic() > deadline:
                return found
            time.sleep(0.01)  # a pause after bad calls, or a thread on its way out

    running(2)
    time.sleep(0.2)
    two = running(2)
    assert running(4, two + 2) == two + 2
    assert running(2, two) == two


@all_cells
@pytest.mark.parametrize("scheme", [("window", 7), ("window", 8), ("window", 1000), ("chunk", 7, 7), ("chunk", 9, 20)])
def test_a_scheme_that_cuts_nothing_is_full_bit_by_bit(kind, scheme):
    full = Case(kind, 5, 17, LENGTHS, num_layers=2, dtype="float32")
    p = grid.problem_of(full)
    cut = Case(kind, 5, 17, LENGTHS, num_layers=2, dtype="float32", scheme=scheme)
    grid.identical(grid.library(full, p), grid.library(cut, p))


@all_cells
@pytest.mark.parametrize("both", [False, True])
def test_batch_order_does_not_matter(kind, both, rng):
    case = Case(kind, 5, 9, LENGTHS, num_layers=2, bidirectional=both, dtype="float64")
    p = grid.problem_of(case)
    order = rng.permutation(len(LENGTHS))
    shuffled = grid.Problem(
        p.params,
        [p.xs[i] for i in order],
        tuple(part[:, order] for part in p.state),
        [p.d_outputs[i] for i in order],
        tuple(part[:, order] for part in p.d_state),
    )
    a, b = grid.library(case, p), grid.library(case, shuffled)
    restored = grid.Results(
        [b.outputs[i] for i in np.argsort(order)],
        tuple(part[:, np.argsort(order)] for part in b.state),
        [b.d_inputs[i] for i in np.argsort(order)],
        tuple(part[:, np.argsort(order)] for part in b.d_state),
        b.d_params,
    )
    grid.check(case, restored, a)


@all_cells
@pytest.mark.parametrize("both", [False, True])
def test_each_sequence_alone_equals_its_slice_of_the_batch(kind, both):
    case = Case(kind, 5, 17, LENGTHS, num_layers=2, bidirectional=both, dtype="float32")
    p, whole = grid.problem_of(case), grid.library(case)
    total = {name: np.zeros(value.shape) for name, value in p.params.items()}
    for i, length in enumerate(LENGTHS):
        one = Case(kind, 5, 17, (length,), num_layers=2, bidirectional=both, dtype="float32")
        own = grid.Problem(
            p.params,
            [p.xs[i]],
            tuple(part[:, i : i + 1] for part in p.state),
            [p.d_outputs[i]],
            tuple(part[:, i : i + 1] for part in p.d_state),
        )
        alone = grid.library(one, own)
        for name, gradient in alone.d_params.items():
            total[name] += gradient
        expected = grid.Results(
            [whole.outputs[i]],
            tuple(part[:, i : i + 1] for part in whole.state),
            [whole.d_inputs[i]],
            tuple(part[:, i : i + 1] for part in whole.d_state),
            alone.d_params,
        )
        grid.check(one, alone, expected)
    for name, expected in total.items():
        tolerances.assert_close(
            whole.d_params[name], expected, "d_params", terms=case.terms, steps=case.steps, what=name
        )


@all_cells
@pytest.mark.parametrize("hidden", [29, 44, 75, 104])
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(kind, hidden, isa, threads):
    """Alone it takes several tiles at once (csrc/simd/chains.h); every sum is the same chain."""
    threads(1)
    pair = Case(kind, 6, hidden, (12, 12), dtype="float32")
    p, both = grid.problem_of(pair), grid.library(pair)
    for i in range(2):
        own = grid.Problem(
            p.params,
            [p.xs[i]],
            tuple(part[:, i : i + 1] for part in p.state),
            [p.d_outputs[i]],
            tuple(part[:, i : i + 1] for part in p.d_state),
        )
        alone = grid.library(Case(kind, 6, hidden, (12,), dtype="float32"), own)
        np.testing.assert_array_equal(alone.outputs[0], both.outputs[i])
        for one, two in zip(alone.state + alone.d_state, both.state + both.d_state, strict=True):
            np.testing.assert_array_equal(one[:, 0], two[:, i])


@all_cells
def test_padding_does_not_matter(kind, rng):
    case = Case(kind, 4, 9, (3, 5, 0, 1), dtype="float32")
    p = grid.problem_of(case)
    layer = grid.layer_of(case, p.params)
    lengths = np.array(case.lengths)
    results = []
    for width, fill in ((5, 0.0), (5, np.nan), (9, -7.0)):
        x = np.full((4, width, 4), fill, np.float32)
        d_y = np.full((4, width, 9), fill, np.float32)
        for i, length in enumerate(lengths):
            x[i, :length], d_y[i, :length] = p.xs[i], p.d_outputs[i]
        run = layer.forward(x, grid.public(p.state), lengths=lengths)
        back = run.backward(d_y, grid.public(p.d_state))
        results.append(
            grid.Results(
                [run.output[i, :n] for i, n in enumerate(lengths)],
                grid.parts(run.state),
                [back.input[i, :n] for i, n in enumerate(lengths)],
                grid.parts(back.state),
                back.params,
            )
        )
    grid.identical(results[0], results[1])
    grid.identical(results[0], results[2])


@all_cells
@pytest.mark.parametrize("layers", [1, 2])
def test_chunks_with_carried_state_equal_the_whole(kind, layers):
    """Forward by carrying the state; backward, from the last chunk to the first, by carrying its gradient."""
    case = Case(kind, 5, 17, (7, 7, 7), num_layers=layers, dtype="float64")
    p, whole = grid.problem_of(case), grid.library(case)
    layer = grid.layer_of(case, p.params)
    x, d_y = np.stack(p.xs), np.stack(p.d_outputs)
    state, runs = grid.public(p.state), []
    cuts = [slice(0, 3), slice(3, 4), slice(4, 7)]
    for cut in cuts:
        runs.append(layer.forward(x[:, cut], state))
        state = runs[-1].state
    d_state, d_params, d_x = grid.public(p.d_state), dict.fromkeys(p.params, 0.0), np.empty_like(x)
    for cut, run in reversed(list(zip(cuts, runs))):
        back = run.backward(d_y[:, cut], d_state)
        d_state, d_x[:, cut] = back.state, back.input
        d_params = {name: d_params[name] + gradient for name, gradient in back.params.items()}
    outputs = list(np.concatenate([run.output for run in runs], axis=1))
    grid.check(case, grid.Results(outputs, grid.parts(state), list(d_x), grid.parts(d_state), d_params), whole)


@all_cells
def test_chunk_equals_separate_calls_without_carried_gradients(kind):
    """Chunk(k) over a sequence is the gradient of the chunks run one by one, the state between them a constant."""
    case = Case(kind, 5, 17, (7, 7), num_layers=2, dtype="float64", scheme=("chunk", 3, 3))
    p = grid.problem_of(case)
    cut_inside = grid.library(case)
    layer = grid.layer_of(case, p.params)
    x, d_y = np.stack(p.xs), np.stack(p.d_outputs)
    state, total, first = grid.public(p.state), dict.fromkeys(p.params, 0.0), None
    for start in (0, 3, 6):
        run = layer.forward(x[:, start : start + 3], state)
        back = run.backward(d_y[:, start : start + 3], grid.public(p.d_state) if start == 6 else None)
        state, first = run.state, back.state if first is None else first
        total = {name: total[name] + gradient for name, gradient in back.params.items()}
    for name, expected in total.items():
        np.testing.assert_allclose(cut_inside.d_params[name], expected, err_msg=name, **tolerances.SAME_FORMULA)
    for a, e in zip(cut_inside.d_state, grid.parts(first)):
        np.testing.assert_allclose(a, e, **tolerances.SAME_FORMULA)


@all_cells
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_equal_the_sequence(kind, dtype, isa):
    case = Case(kind, 5, 17, (6, 6, 6), num_layers=2, dtype=dtype)
    p = grid.problem_of(case)
    layer = grid.layer_of(case, p.params)
    outputs, final = layer(np.stack(p.xs), grid.public(p.state))
    state, steps = grid.public(p.state), []
    for t in range(6):
        y, state = layer.step(np.stack(p.xs)[:, t], state)
        steps.append(y)
    tolerances.assert_close(
        np.stack(steps, axis=1), outputs.astype(np.float64), "output", terms=case.terms, steps=case.steps
    )
    for a, e in zip(grid.parts(state), grid.parts(final)):
        tolerances.assert_close(a, e.astype(np.float64), "state", terms=case.terms, steps=case.steps)

    one = grid.public(tuple(part[:, :1] for part in p.state))
    y_batch, _ = layer.step(p.xs[0][:1], one)
    y_single, _ = layer.step(p.xs[0][0], one)
    assert y_single.shape == (17,)
    assert y_single.tobytes() == y_batch.tobytes()


@all_cells
def test_inference_leaves_state_and_parameters_alone(kind):
    case = Case(kind, 5, 9, LENGTHS, dtype="float32")
    p = grid.problem_of(case)
    layer = grid.layer_of(case, p.params)
    before = [array.copy() for array in (*p.xs, *p.state, *layer.params.values())]
    layer(p.xs, grid.public(p.state))
    run = layer.forward(p.xs, grid.public(p.state))
    run.backward(p.d_outputs, grid.public(p.d_state))
    layer.step(p.xs[0][:1], grid.public(tuple(part[:, :1] for part in p.state)))
    for a, b in zip(before, (*p.xs, *p.state, *layer.params.values()), strict=True):
        assert a.tobytes() == b.tobytes()


@all_cells
def test_parameters_are_live(kind):
    """Writing into layer.params changes every later call, and nothing stale is kept."""
    case = Case(kind, 5, 17, LENGTHS, num_layers=2, dtype="float32")
    layer = grid.layer_of(case, grid.problem_of(case).params)
    other = grid.draw(case, seed=9)
    layer(other.xs)
    layer.step(other.xs[0][:1], None)
    for name, value in other.params.items():
        layer.params[name][...] = value
    fresh = grid.layer_of(case, other.params)
    for a, b in zip(layer(other.xs)[0], fresh(other.xs)[0], strict=True):
        assert a.tobytes() == b.tobytes()
    a, b = layer.step(other.xs[0][:1], None)[0], fresh.step(other.xs[0][:1], None)[0]
    assert a.tobytes() == b.tobytes()


def misaligned(array: np.ndarray) -> np.ndarray:
    buffer = np.empty(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned or view.size == 0
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def strided(array: np.ndarray) -> np.ndarray:
    view = np.full((*array.shape[:-1], 2 * array.shape[-1]), 5, array.dtype)[..., ::2]
    view[...] = array
    return view


def spaced(array: np.ndarray) -> np.ndarray:
    view = np.full((*array.shape[:-1], array.shape[-1] + 3), np.nan, array.dtype)[..., :-3]
    view[...] = array
    return view


def backwards(array: np.ndarray) -> np.ndarray:
    return array[:, ::-1].copy()[:, ::-1]


def time_major(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(np.swapaxes(array, 0, 1).copy(), 0, 1)


@all_cells
@pytest.mark.parametrize("batch", [3, 9])
@pytest.mark.parametrize(
    "change",
    [misaligned, read_only, strided, spaced, backwards, time_major, np.asfortranarray],
    ids=lambda f: f.__name__,
)
def test_unusual_arrays_give_the_same(kind, change, batch):
    case = Case(kind, 5, 17, (4,) * batch, dtype="float32")
    p = grid.problem_of(case)
    x, d_y = np.stack(p.xs), np.stack(p.d_outputs)
    layer = grid.layer_of(case, p.params)

    def results(f: object) -> grid.Results:
        run = layer.forward(f(x), grid.public(tuple(f(part) for part in p.state)))
        return results_of(run, run.backward(f(d_y), grid.public(tuple(f(part) for part in p.d_state))))

    grid.identical(results(np.ascontiguousarray), results(change))


@all_cells
@pytest.mark.parametrize("axis", [0, 1])
def test_a_gradient_may_be_the_same_memory_for_all_steps_or_sequences(kind, axis):
    case = Case(kind, 5, 17, (4,) * 9, dtype="float32")
    p = grid.problem_of(case)
    one = np.stack(p.d_outputs).take([0], axis)
    run = grid.layer_of(case, p.params).forward(np.stack(p.xs), grid.public(p.state))
    repeated = np.broadcast_to(one, (9, 4, 17))
    grid.identical(results_of(run, run.backward(repeated.copy())), results_of(run, run.backward(repeated)))


@all_cells
def test_concurrent_inference_equals_serial(kind):
    case = Case(kind, 16, 32, (9, 3, 0, 12), num_layers=2, dtype="float32")
    layer = grid.layer_of(case, grid.problem_of(case).params)
    problems = [grid.draw(case, seed) for seed in range(8)]
    serial = [layer(p.xs, grid.public(p.state)) for p in problems]
    gate = threading.Barrier(8)

    def work(index: int) -> bool:
        gate.wait(timeout=30)
        for turn in range(20):
            at = (index + turn) % len(problems)
            outputs, state = layer(problems[at].xs, grid.public(problems[at].state))
            arrays = zip([*outputs, *grid.parts(state)], [*serial[at][0], *grid.parts(serial[at][1])])
            if any(a.tobytes() != b.tobytes() for a, b in arrays):
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_concurrent_training_of_several_layers_equals_serial(threads):
    """Python threads that all want the kernels' threads: some get them, some go on alone, none gets other numbers."""
    threads(2)
    wide = [Case(kind, 40, 96, (12,) * rows, num_layers=2, dtype="float32") for kind in KINDS for rows in (3, 40)]
    layers = [grid.layer_of(case, grid.problem_of(case).params) for case in wide]
    xs = [np.stack(grid.problem_of(case).xs) for case in wide]

    def train(index: int) -> tuple[bytes, bytes]:
        run = layers[index].forward(xs[index])
        back = run.backward(run.output, truncation=crnn.bptt.Window(3))
        return run.output.tobytes(), back.params.flat.tobytes()

    serial = [train(index) for index in range(len(wide))]

    def work(start: int) -> bool:
        return all(train(i % len(wide)) == serial[i % len(wide)] for i in range(start, start + len(wide)))

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(0, 18, 3)))


def test_the_gil_is_released():
    """While one thread sits in a long C call, another one runs Python: it is seen alive all along the call."""
    layer = crnn.LSTM(64, 256, dtype=np.float32, rng=0)
    x = np.zeros((8, 3000, 64), np.float32)
    ends: list[float] = []

    def long_call() -> None:
        ends.append(time.perf_counter())
        layer(x)
        ends.append(time.perf_counter())

    worker = threading.Thread(target=long_call)
    worker.start()
    alive = set()
    while len(ends) < 2:
        alive.add(int(time.perf_counter() * 200))  # 5 ms: one switch interval, what a held GIL would leave us at most
    worker.join()
    slots = range(int(ends[0] * 200), int(ends[1] * 200) + 1)
    assert len(slots) > 16, "the call was too short to tell"
    assert len(alive.intersection(slots)) > len(slots) / 4


def in_child(layer: object, x: np.ndarray, queue: object) -> None:
    outputs, _ = layer(x)
    run = layer.forward(x)
    back = run.backward(np.ones_like(run.output))
    queue.put((outputs.tobytes(), back.params["weight_hh_l0"].tobytes()))


@pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")  # from JAX, where a neighbour imported it
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="THIS SYSTEM CANNOT FORK")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@all_cells
def test_fork_after_use(kind, threads):
    """A child forked after the parent used two threads computes the same bits, and does not hang."""
    threads(2)
    case = Case(kind, 16, 40, (9,) * 8, dtype="float32")
    p = grid.problem_of(case)
    layer, x = grid.layer_of(case, p.params), np.stack(p.xs)
    outputs, _ = layer(x)
    run = layer.forward(x)
    expected = (outputs.tobytes(), run.backward(np.ones_like(run.output)).params["weight_hh_l0"].tobytes())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(layer, x, queue))
    child.start()
    try:
        assert queue.get(timeout=30) == expected
        child.join(timeout=30)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
    assert layer(x)[0].tobytes() == expected[0]
