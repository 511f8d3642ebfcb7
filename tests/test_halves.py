"""Batches of narrow layers are computed in two halves (csrc/sequence/halves.h): the results of either half alone, and
gradients of the parameters that are their sum to the last bit, for every number of threads and form of the batch.

Whether the halves are right is for the oracle to say; the cases are small enough for a half not to be halved again.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from grid import KINDS, Case, Problem, identical, layer_of, library, parts, problem_of, public
from test_kernels import run, stack_of

import crnn
from crnn import _kernels
from crnn.packed import Packed

RAGGED = (*(2 + 5 * i % 13 for i in range(36)), 0, 0)
EQUAL = (8,) * 36
HIDDEN = {"rnn": 17, "lstm": 8, "gru": 9}  # 100,000 multiply-adds and more, but less than twice as many
WIDER = {"rnn": 48, "lstm": 24, "gru": 28}  # with twice as many rows, worth waking a thread for
SCHEMES = [("full",), ("window", 3), ("chunk", 2, 4)]


def case_of(kind: str, lengths: tuple[int, ...], scheme: tuple = ("full",), layers: int = 1) -> Case:
    return Case(kind, 5, HIDDEN[KINDS[kind].cell], lengths, layers, dtype="float32", scheme=scheme)


def halves_of(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The sequences of each half: sorted, the longest first, and cut where a sequence ends next to half of the rows."""
    order = np.argsort(-np.array(lengths), kind="stable")
    long = np.array(lengths)[order]
    first = int(np.argmax(2 * np.cumsum(long) - long > sum(lengths)))
    return order[:first], order[first:]


def part_of(case: Case, p: Problem, chosen: np.ndarray) -> tuple[Case, Problem]:
    def some(arrays: list) -> list:
        return [arrays[i] for i in chosen]

    def states(given: tuple) -> tuple:
        return tuple(np.ascontiguousarray(part[:, chosen]) for part in given)

    own = dataclasses.replace(case, lengths=tuple(some(list(case.lengths))))
    return own, dataclasses.replace(
        p, xs=some(p.xs), state=states(p.state), d_outputs=some(p.d_outputs), d_state=states(p.d_state)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("lengths", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_are_a_batch(kind, scheme, lengths, count, threads):
    case = case_of(kind, lengths, scheme)
    p = problem_of(case)
    threads(count)
    whole = library(case, p)
    chosen = halves_of(lengths)
    one, two = (library(*part_of(case, p, half)) for half in chosen)
    for name in ("outputs", "d_inputs"):
        for half, results in zip(chosen, (one, two)):
            for i, array in zip(half, getattr(results, name)):
                assert getattr(whole, name)[i].tobytes() == array.tobytes(), f"{name}[{i}]"
    for name in ("state", "d_state"):
        for all_of_it, a, b in zip(getattr(whole, name), getattr(one, name), getattr(two, name)):
            assert all_of_it[:, np.concatenate(chosen)].tobytes() == np.concatenate([a, b], axis=1).tobytes(), name
    for name, gradient in whole.d_params.items():
        assert gradient.tobytes() == (one.d_params[name] + two.d_params[name]).tobytes(), name


@pytest.mark.parametrize("lengths", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize("kind", KINDS)
def test_forms_and_instruction_sets(kind, lengths, isa, threads):
    """A padded array, a list of sequences and packed rows, on one to four threads: the same bits; two layers."""
    lengths = 2 * lengths
    case = dataclasses.replace(case_of(kind, lengths, layers=2), hidden_size=WIDER[KINDS[kind].cell])
    p = problem_of(case)
    layer = layer_of(case, p.params)
    x, dy = (np.zeros((len(lengths), max(lengths), rows[0].shape[1]), "float32") for rows in (p.xs, p.d_outputs))
    for i, steps in enumerate(lengths):
        x[i, :steps], dy[i, :steps] = p.xs[i], p.d_outputs[i]
    expected = None
    for count in (1, 2, 4):
        threads(count)
        listed = library(case, p)
        expected = expected or listed
        identical(listed, expected)
        padded = layer.forward(x, public(p.state), lengths=lengths)
        back = padded.backward(dy, public(p.d_state), case.truncation)
        outputs = [y[:steps] for y, steps in zip(padded.output, lengths)]
        inputs = [d[:steps] for d, steps in zip(back.input, lengths)]
        found = dataclasses.replace(listed, outputs=outputs, d_inputs=inputs, state=parts(padded.state))
        identical(dataclasses.replace(found, d_state=parts(back.state), d_params=dict(back.params)), expected)

        geometry = Packed(np.array(lengths))
        stack, weights = stack_of(case, p.params)
        done = run(case, p, stack, geometry.pack(p.xs))
        grads = [np.full_like(w, 7.0) for w in weights]
        dx = np.full((geometry.rows, 5), 7.0, "float32")
        d_state = done.backward(case, p, grads, dx)
        packed = dataclasses.replace(expected, outputs=geometry.unpack(done.y), d_inputs=geometry.unpack(dx))
        named = dict(zip(p.params, grads, strict=True))
        identical(dataclasses.replace(packed, state=done.final, d_state=d_state, d_params=named), expected)

        again = [g.copy() for g in grads]
        done.backward(case, p, again, None, accumulate=True)
        for name, once, twice in zip(p.params, grads, again):
            np.testing.assert_allclose(twice, 2 * once, rtol=1e-6, atol=1e-6 * np.abs(once).max(), err_msg=name)
        one = [np.full_like(w, 7.0) if i == 1 else None for i, w in enumerate(weights)]
        done.backward(case, p, one, None)
        assert one[1].tobytes() == grads[1].tobytes()


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_value_that_is_not_finite_is_named(count, threads, rng):
    threads(count)
    layer = crnn.LSTM(5, 8, rng=1)
    x = rng.standard_normal((36, 8, 5)).astype("float32")
    run_of = layer.forward(x)
    for i in (0, 17, 18, 35):
        bad = x.copy()
        bad[i, 3, 2] = bad[35, 5, 0] = np.nan  # of two, the earlier step's
        for call in (layer, layer.forward):
            with pytest.raises(ValueError, match=rf"at x\[{i}, 3, 2\]"):
                call(bad)
        d = np.zeros((36, 8, 8), "float32")
        d[i, 3, 2] = np.inf
        with pytest.raises(ValueError, match=rf"\[{i}, 3, 2\]"):
            run_of.backward(d)


@pytest.mark.parametrize("count", [1, 2])
def test_of_values_in_both_halves_that_are_not_finite_the_earlier_steps_is_named(count, threads, rng):
    threads(count)
    layer = crnn.LSTM(5, 8, rng=1)
    x = rng.standard_normal((36, 8, 5)).astype("float32")
    run_of = layer.forward(x)
    d = np.zeros((36, 8, 8), "float32")
    for first, second, named in (((2, 5), (33, 3), "33, 3"), ((2, 3), (33, 5), "2, 3"), ((2, 4), (33, 4), "2, 4")):
        bad, bad_d = x.copy(), d.copy()
        for array in (bad, bad_d):
            array[(*first, 1)] = array[(*second, 1)] = np.nan
        with pytest.raises(ValueError, match=rf"at x\[{named}, 1\]"):
            layer.forward(bad)
        with pytest.raises(ValueError, match=rf"\[{named}, 1\]"):
            run_of.backward(bad_d)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_results_of_a_batch_in_halves_lie_one_sequence_after_the_other(kind, threads, rng):
    threads(2)
    narrow, wide = getattr(crnn, kind)(20, 32, rng=1), getattr(crnn, kind)(20, 400, rng=1)
    x = rng.standard_normal((20, 30, 20)).astype("float32")
    for layer, expected in ((narrow, True), (wide, False)):
        done = layer.forward(x)
        back = done.backward(np.ones_like(done.output))
        for array in (done.output, back.input):
            assert array.flags.c_contiguous == expected
            assert array.transpose(1, 0, 2).flags.c_contiguous != expected
        inferred, _ = layer(x)
        assert inferred.tobytes() == done.output.tobytes()
        time_major = np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
        assert layer(time_major)[0].tobytes() == done.output.tobytes()
    single = narrow.forward(x[0])
    assert single.output.flags.c_contiguous
    assert single.backward(np.ones_like(single.output)).input.flags.c_contiguous


def test_what_goes_in_halves_is_a_matter_of_shapes(threads):
    dense = Packed([30] * 20)
    for count in (1, 2):
        threads(count)
        stack = crnn.RNN(20, 32)._stack
        assert stack.in_halves(dense.offsets, 20, False, True)
        assert not stack.in_halves(dense.offsets, 20, True, True)  # masked
        assert not stack.in_halves(Packed([30] * 7).offsets, 7, False, True)
        assert not stack.in_halves(Packed([1] * 20).offsets, 20, False, True)
        assert not crnn.RNN(20, 32, bidirectional=True)._stack.in_halves(dense.offsets, 20, False, True)
        assert not crnn.RNN(20, 400)._stack.in_halves(dense.offsets, 20, False, True)
        long = Packed([200] * 20)
        assert stack.in_halves(long.offsets, 20, False, False) == (count == 2)  # inference: where two threads share it
    with pytest.raises(ValueError, match="offsets"):
        stack.in_halves(dense.offsets.astype(float), 20, False, True)
    assert not stack.in_halves(np.zeros(1, np.int64), 0, False, True)


@pytest.mark.parametrize(
    ("kind", "inputs", "hidden", "lengths"),
    [
        ("RNN", 800, 8, (2,) * 8),  # a half of eight rows is a small call
        ("LSTM", 1200, 8, (2, 2, 2, 2, 2, 1, 1, 1)),
        ("RNN", 4096, 70, (30,) * 10),  # a half of 150 rows reads W_ih as it lies, all 300 pack it
        ("GRU", 2048, 26, tuple(range(9, 21)) * 2),  # one of 128 and less, likewise
    ],
)
def test_inference_has_the_bits_of_training_whether_halved_or_not(kind, inputs, hidden, lengths, threads, rng):
    """Whether inference pays in halves depends on how far apart the threads are, which may not change a bit."""
    layer = getattr(crnn, kind)(inputs, hidden, rng=1)
    x = [rng.standard_normal((n, inputs)).astype("float32") for n in lengths]
    threads(1)
    expected = layer.forward(x).output
    for count in (1, 2, 4):
        threads(count)
        for seconds in (1e-7, 0.25):
            _kernels.assume_handover(seconds)
            found, _ = layer(x)
            for i, (one, other) in enumerate(zip(found, expected, strict=True)):
                assert one.tobytes() == other.tobytes(), f"{count} threads, {seconds} s apart, sequence {i}"
