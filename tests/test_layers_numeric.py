"""crnn's layers against the oracle: cells, switches, dtypes, stacks, directions, ragged lengths, truncation, threads,
instruction sets, at the sizes around every vector width.

Every case runs with one and with two threads, which must agree in every bit.
"""

from __future__ import annotations

import dataclasses
import itertools

import grid
import numpy as np
import pytest
import reference
from grid import KINDS, Case

import crnn
from crnn import _kernels

WIDTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
BATCHES = (1, 2, 3, 5, 6, 7, 8, 9, 13, 20)
STEPS = (1, 2, 3, 7)
DTYPES = ("float32", "float64")
SCHEMES = [("full",), ("window", 1), ("window", 2), ("window", 3), ("chunk", 2, 2), ("chunk", 2, 3), ("chunk", 3, 7)]


def small_grid() -> list[Case]:
    """Everything with everything, at one small odd size."""
    stacks = [(1, False), (2, False), (1, True), (2, True)]
    cases = []
    for kind, dtype, (layers, both) in itertools.product(KINDS, DTYPES, stacks):
        for scheme in [("full",)] if both else [("full",), ("window", 2), ("chunk", 2, 3)]:
            cases.append(Case(kind, 3, 5, (2, 0, 5, 1, 5, 3, 4), layers, both, True, dtype, scheme))
    return cases


def width_grid() -> list[Case]:
    """Every cell at every hidden width; the other sizes are drawn."""
    rng = np.random.default_rng(20_151)
    cases = []
    for kind, hidden in itertools.product(KINDS, WIDTHS):
        batch, steps = int(rng.choice(BATCHES)), int(rng.choice(STEPS))
        lengths = (steps,) * batch
        cases.append(Case(kind, int(rng.choice(WIDTHS)), hidden, lengths, dtype=DTYPES[len(cases) % 2]))
    return cases


def batch_grid() -> list[Case]:
    """Every cell at every batch size: the rows of a block run through every tail of the row tiles."""
    return [
        Case(kind, 4, 17, (2,) * batch, dtype=DTYPES[(i + j) % 2])
        for i, kind in enumerate(KINDS)
        for j, batch in enumerate(BATCHES)
    ]


def sampled_grid(count: int) -> list[Case]:
    """A random sample of the whole grid."""
    rng = np.random.default_rng(1_990)
    cases = {}
    while len(cases) < count:
        batch, steps = int(rng.choice(BATCHES)), int(rng.choice(STEPS))
        ragged = rng.random() < 0.7
        both = bool(rng.random() < 0.25)
        case = Case(
            kind=str(rng.choice(list(KINDS))),
            input_size=int(rng.choice(WIDTHS)),
            hidden_size=int(rng.choice(WIDTHS)),
            lengths=tuple(int(n) for n in rng.integers(0, steps + 1, batch)) if ragged else (steps,) * batch,
            num_layers=int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])),
            bidirectional=both,
            bias=bool(rng.random() < 0.8),
            dtype=str(rng.choice(DTYPES)),
            scheme=("full",) if both else SCHEMES[rng.integers(len(SCHEMES))],
        )
        cases[case.id] = case
    return list(cases.values())


def wide_grid() -> list[Case]:
    """More than 1 MB of recurrent weights: one sequence, few rows and more than shortcuts are for; a few sequences."""
    wide = {"rnn_tanh": 520, "lstm": 262, "gru": 300, "gru_after": 304}
    return [
        Case(kind, width, hidden, lengths, dtype="float32", scheme=scheme)
        for kind, hidden in wide.items()
        for lengths, width, scheme in (
            ((3,), 260, ("window", 2)),
            ((11,), 150, ("chunk", 4, 6)),
            ((170,), 270, ("full",)),
            ((5, 4, 0, 3), 530, ("chunk", 2, 3)),
            ((12, 9, 9), 260, ("full",)),
            ((28, 20, 20), 260, ("full",)),
            ((14, 13, 11), 620, ("full",)),
        )
    ] + [
        # input gradients of several blocks of rows, from weights as they lie: into a caller's rows, of a layer below
        Case(kind, 530, wide[kind], lengths, layers, both, dtype="float32", scheme=("full",))
        for kind in ("rnn_tanh", "lstm")
        for lengths, layers, both in (((53, 0, 48), 1, True), ((25,) * 4, 2, False))
    ]


def far_grid() -> list[Case]:
    """One sequence, weights far enough for one thread to ask for the next ones, but for two to be near."""
    far = {"rnn_tanh": 581, "lstm": 371, "gru": 406, "gru_after": 350}
    return [Case(kind, 9, hidden, (5,), dtype="float32", scheme=("full",)) for kind, hidden in far.items()] + [
        Case("lstm", 7, 272, (14,), dtype="float64", scheme=("full",)),
        Case("gru_after", 530, 352, (13,), dtype="float32", scheme=("chunk", 5, 8)),
    ]


def near_grid() -> list[Case]:
    """One sequence by recurrent weights that the first level holds, in pairs of tiles of every width, or does not."""
    cases = [
        Case(kind, 3, hidden, (11,), dtype="float32", scheme=("full",))
        for kind in ("rnn_tanh", "lstm", "gru", "gru_after_state")
        for hidden in (18, 29, 33, 40, 52, 66, 75, 81, 90, 97, 112)
    ]
    cases += [Case(kind, 5, 21, (10, 3), 2, True, dtype="float64", scheme=("full",)) for kind in KINDS]
    return cases + [Case(kind, 4, 34, (13, 2, 1), dtype="float32", scheme=("chunk", 3, 5)) for kind in KINDS]


CASES = [*small_grid(), *width_grid(), *batch_grid(), *sampled_grid(150), *wide_grid(), *far_grid(), *near_grid()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_layer_agrees_with_the_oracle(case, isa, threads):
    threads(1)
    one = grid.library(case)
    grid.check(case, one, grid.oracle(case))
    threads(2)
    grid.identical(one, grid.library(case))


# Small work stays on one thread, and few sequences or many split the work differently (by units, by sequences): sizes
# on both sides of these decisions, and wide enough for several tiles.
SHARED_WORK = [
    Case(kind, inputs, hidden, lengths, layers, both, dtype=dtype, scheme=scheme)
    for kind in KINDS
    for inputs, hidden, lengths, layers, both, dtype, scheme in [
        (17, 33, (1, 0, 2, 3) * 11, 1, False, "float32", ("full",)),
        (9, 33, (3, 1, 2) * 12, 2, False, "float64", ("window", 2)),
        (33, 17, (2, 3) * 20, 2, False, "float32", ("chunk", 1, 2)),
        (5, 130, (4, 2, 3), 1, False, "float32", ("full",)),
        (3, 100, (4, 1), 2, False, "float64", ("window", 2)),
        (7, 97, (3, 4, 1, 4), 1, False, "float64", ("chunk", 2, 3)),
        (65, 70, (5,), 1, True, "float32", ("full",)),
        (4, 40, (2, 1) * 17, 2, True, "float64", ("full",)),
        (60, 14, (9, 6, 8) * 40, 1, True, "float32", ("full",)),  # fewer vectors of units than threads
        (9, 70, (60, 25, 70, 2) * 6, 1, False, "float32", ("full",)),  # several chunks, threads at their own pace
        (70, 6, (9,) * 130, 2, False, "float64", ("window", 2)),
        (139, 150, (9, 6, 8) * 17, 1, False, "float32", ("full",)),  # weight gradients in blocks of rows and of units
    ]
]


@pytest.mark.parametrize("case", SHARED_WORK, ids=lambda case: case.id)
def test_work_shared_by_threads(case, isa, threads):
    threads(1)
    one = grid.library(case)
    grid.check(case, one, grid.oracle(case))
    for count in (2, 3, 4):
        threads(count)
        grid.identical(one, grid.library(case))


# Wide input, few units, few sequences: all threads project the rows, one walks the steps, in several chunks. The oracle
# would take a minute for each; these kernels agree with it above.
ALONE = [
    Case(kind, inputs, hidden, lengths, layers, dtype=dtype, scheme=scheme)
    for kind in KINDS
    for inputs, hidden, lengths, layers, dtype, scheme in [
        (300, 7, (700, 600, 550, 450), 1, "float32", ("full",)),
        (400, 3, (900, 800), 2, "float64", ("chunk", 50, 60)),
        (40, 6, (1900, 1900, 1900, 1900), 1, "float32", ("full",)),
    ]
]


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.id)
def test_rows_shared_where_one_thread_walks_the_steps(case, isa, threads):
    p = grid.problem_of(case)
    layer = grid.layer_of(case, p.params)
    threads(1)
    one, y = grid.library(case), layer(p.xs, grid.public(p.state))[0]
    for count in (2, 3):
        threads(count)
        grid.identical(one, grid.library(case))
        for a, b in zip(layer(p.xs, grid.public(p.state))[0], y, strict=True):
            assert a.tobytes() == b.tobytes()


# One thread has a sequence more than the others, who take half of its sequences when they are done. How often that
# happens is the machine's business; what comes out is not. Narrower layers would go in two halves of the batch.
HANDED_OVER = [
    Case(kind, 24, hidden, lengths, dtype=dtype)
    for kind, hidden in [("lstm", 144), ("gru", 144), ("gru_after", 144), ("rnn_tanh", 200)]
    for lengths, dtype in [((60,) * 17, "float32"), ((60,) * 9 + (12,) * 8, "float64")]
]


@pytest.mark.parametrize("case", HANDED_OVER, ids=lambda case: case.id)
def test_sequences_change_hands(case, isa, threads):
    p = grid.problem_of(case, margin=0)
    layer = grid.layer_of(case, p.params)
    threads(1)
    one, y = grid.library(case), layer(p.xs)[0]
    for count in (2, 3):
        threads(count)
        grid.identical(one, grid.library(case))
        for a, b in zip(layer(p.xs)[0], y, strict=True):
            assert a.tobytes() == b.tobytes()


# Inference copies the rows of a chunk of steps to where those of the chunk or the call before were: all threads
# some of them, or each its own.
TAKEN_LATE = [
    (300, 300, (30, 30)),
    (300, 300, (9,) * 33),  # weights beyond the second level: chunks of 256 rows
    (500, 40, (60,)),
    (300, 9, (5,) * 40),
    (300, 20, (60, 50, 40, *range(1, 40))),
]


@pytest.mark.parametrize("shape", TAKEN_LATE, ids=lambda shape: f"{shape[0]}-{shape[1]}-{len(shape[2])}")
@pytest.mark.parametrize("kind", KINDS)
def test_inference_reads_the_rows_of_this_call(kind, shape, isa, threads):
    case = Case(kind, *shape, dtype="float32")
    p = grid.problem_of(case, margin=0)
    layer = grid.layer_of(case, p.params)
    calls = [p.xs, [x[::-1] * np.float32(0.5) for x in p.xs]]
    threads(1)
    wanted = [layer(xs)[0] for xs in calls]
    for count in (2, 3):
        threads(count)
        for _ in range(3):
            for xs, ys in zip(calls, wanted, strict=True):
                for a, b in zip(layer(xs)[0], ys, strict=True):
                    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 8, 15, 16, 17, 32, 41])
def test_every_value_is_looked_at(width, dtype, isa):
    layer = crnn.RNN(width, 3, dtype=dtype, rng=1)
    for k, bad in itertools.product(range(width), (np.nan, np.inf, -np.inf)):
        x = np.full((3, 20, width), np.finfo(dtype).max, dtype)
        layer(x)
        x[1, 13, k] = bad
        for call in (layer, layer.forward):
            with pytest.raises(ValueError, match=rf"at x\[1, 13, {k}\]"):
                call(x)


INFERENCE = [
    Case(kind, 5, hidden, lengths, layers, both, dtype=dtype)
    for kind in KINDS
    for hidden, lengths, layers, both, dtype in [
        (17, (3, 0, 7, 1, 2, 2), 2, False, "float32"),
        (8, (4, 4, 4), 1, True, "float64"),
        (33, (1,), 1, False, "float32"),
        (64, (20, 33, 5, 0, 33) * 5, 1, False, "float32"),  # two halves
        (200, (20, 33, 5, 0, 33) * 5, 1, False, "float32"),  # several chunks of steps, whose gates inference forgets
        (65, (40,) * 9, 2, False, "float64"),
    ]
] + [
    Case(kind, 300, 300, lengths, dtype="float32")  # weights beyond the second level: chunks of 256 rows
    for kind in ("lstm", "gru", "gru_after")
    for lengths in ((30,) * 10, (9,) * 33, (*range(1, 25), 0, 3, 14))
]


@pytest.mark.parametrize("case", INFERENCE, ids=lambda case: case.id)
def test_inference_agrees_with_training_bit_by_bit(case, isa, threads):
    p = grid.problem_of(case)
    layer = grid.layer_of(case, p.params)
    for count in (1, 2):
        threads(count)
        run = layer.forward(p.xs, grid.public(p.state))
        outputs, state = layer(p.xs, grid.public(p.state))
        for a, b in zip([*outputs, *grid.parts(state)], [*run.output, *grid.parts(run.state)], strict=True):
            assert a.tobytes() == b.tobytes()


def streaming_grid() -> list[Case]:
    """Every cell at every hidden width and beyond, few rows at a time: steps read the weights their own way."""
    rng = np.random.default_rng(1_997)
    return [
        Case(
            kind,
            int(rng.choice((*WIDTHS, 100, 130))),
            hidden,
            (3,) * int(rng.choice([1, 1, 2, 3, 4, 5])),
            layers,
            dtype=dtype,
        )
        for kind in KINDS
        for hidden in (*WIDTHS, 100, 128, 130)
        for layers, dtype in [(int(rng.integers(1, 3)), str(rng.choice(DTYPES)))]
    ]


@pytest.mark.parametrize("case", streaming_grid(), ids=lambda case: case.id)
def test_steps_agree_with_the_oracle(case, isa, threads):
    p, expected = grid.problem_of(case), grid.oracle(case)
    layer = grid.layer_of(case, p.params)
    found = []
    for count in (1, 2):
        threads(count)
        state, outputs = grid.public(p.state), []
        for t in range(3):
            y, state = layer.step(np.stack([x[t] for x in p.xs]), state)
            outputs.append(y)
        results = grid.Results(list(np.stack(outputs, axis=1)), grid.parts(state), [], (), {})
        grid.check(case, results, grid.Results(expected.outputs, expected.state, [], (), {}))
        found.append(results)
    grid.identical(*found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rnn_relu"])
def test_saturated_gates(kind, dtype, isa):
    """Pre-activations of 1e30: every gate is fully open or shut, nothing overflows, and no gradient passes."""
    case = Case(kind, 5, 17, (4, 2, 3), dtype=dtype)
    p = grid.problem_of(case)
    loud = dataclasses.replace(p, xs=[(x * 1e30).astype(dtype) for x in p.xs])
    run = reference.forward(case.net, loud.params, loud.xs, loud.state)
    back = reference.backward(case.net, loud.params, run, loud.d_outputs, loud.d_state, case.reach)
    expected = grid.Results(run.outputs, run.state, back.inputs, back.state, back.params)
    grid.check(case, grid.library(case, loud), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_is_the_zero_state(kind, isa):
    case = Case(kind, 3, 9, (4, 0, 2), dtype="float32")
    p = grid.problem_of(case)
    zero = dataclasses.replace(p, state=tuple(np.zeros_like(part) for part in p.state))
    layer = grid.layer_of(case, p.params)
    run = layer.forward(p.xs)
    back = run.backward(p.d_outputs, grid.public(p.d_state))
    results = grid.Results(
        list(run.output), grid.parts(run.state), list(back.input), grid.parts(back.state), back.params
    )
    grid.identical(results, grid.library(case, zero))


@pytest.mark.parametrize("kind", KINDS)
def test_the_forms_of_input_agree(kind):
    """A list, a padded array with lengths, a dense array, and one sequence without a batch axis."""
    case = Case(kind, 3, 6, (4, 2, 0, 4), dtype="float64")
    p = grid.problem_of(case)
    layer = grid.layer_of(case, p.params)
    listed = layer.forward(p.xs, grid.public(p.state))
    d_listed = listed.backward(p.d_outputs, grid.public(p.d_state))

    def pad(sequences: list[np.ndarray], fill: float) -> np.ndarray:
        padded = np.full((len(sequences), 4, sequences[0].shape[1]), fill)
        for row, sequence in zip(padded, sequences):
            row[: len(sequence)] = sequence
        return padded

    padded = layer.forward(pad(p.xs, 9.0), grid.public(p.state), lengths=np.array(case.lengths))
    d_padded = padded.backward(pad(p.d_outputs, 7.0), grid.public(p.d_state))
    for i, length in enumerate(case.lengths):
        assert padded.output[i, :length].tobytes() == listed.output[i].tobytes()
        assert d_padded.input[i, :length].tobytes() == d_listed.input[i].tobytes()
        assert not d_padded.input[i, length:].any()
        assert not padded.output[i, length:].any()
    for name, gradient in d_listed.params.items():
        assert d_padded.params[name].tobytes() == gradient.tobytes()

    state = grid.public(tuple(part[:, :1] for part in p.state))
    dense = layer.forward(p.xs[0][None], state)
    d_dense = dense.backward(p.d_outputs[0][None])
    single_state = grid.public(tuple(part[:, :1] for part in p.state))
    single = layer.forward(p.xs[0], single_state)
    d_single = single.backward(p.d_outputs[0])
    assert single.output.shape == (4, 6)
    assert dense.output.shape == (1, 4, 6)
    assert single.output.tobytes() == dense.output.tobytes()
    assert d_single.input.tobytes() == d_dense.input.tobytes()


def test_every_available_instruction_set_was_exercised(capsys):
    """Switching works for each, each gives the oracle's numbers, and none that the machine has is left out."""
    case = Case("lstm", 5, 19, (3, 2, 0, 4), dtype="float32")
    before, exercised = _kernels.isa(), []
    try:
        for name in _kernels.available_isas():
            _kernels.set_isa(name)
            assert _kernels.isa() == name
            grid.check(case, grid.library(case), grid.oracle(case))
            exercised.append(name)
    finally:
        _kernels.set_isa(before)
    with capsys.disabled():
        print(f"\ninstruction sets exercised: {', '.join(exercised)}")
    assert exercised
    assert set(exercised) == set(_kernels.available_isas())
    assert "scalar" in exercised


def test_an_unknown_instruction_set_is_refused():
    before = _kernels.isa()
    with pytest.raises((ValueError, RuntimeError), match="sse9"):
        _kernels.set_isa("sse9")
    assert _kernels.isa() == before
