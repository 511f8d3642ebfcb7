"""Sentences and Stream: every prediction once, in packed rows, and the same again after a resume."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crnn.bptt import Chunk, Full, Window
from crnn.data import Sentences, Stream, TokenBatch, generator_state
from crnn.packed import dense


def rows(batch: TokenBatch) -> list[list[tuple[int, int]]]:
    """The (input, target) pairs of each sequence, in order, read off the packed rows."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(batch.sequences)]
    for step in range(batch.packed.steps):
        first, last = batch.packed.offsets[step], batch.packed.offsets[step + 1]
        for i in range(last - first):
            found[batch.packed.order[i]].append((int(batch.x[first + i]), int(batch.y[first + i])))
    return found


def pairs(ids) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in itertools.pairwise(ids)]


def test_one_sentence_at_a_time_by_hand() -> None:
    data = Sentences([[3, 1, 4], [1, 5]])
    batches = list(data.batches())
    assert [b.x.tolist() for b in batches] == [[3, 1], [1]]
    assert [b.y.tolist() for b in batches] == [[1, 4], [5]]
    assert [b.tokens for b in batches] == [2, 1]
    assert not any(b.carry for b in batches)
    assert (data.tokens, data.sequences, len(data), data.largest_id) == (3, 2, 2, 5)
    assert data.position == 0


def test_a_ragged_batch_by_hand() -> None:
    batch = next(Sentences([[1, 2], [3, 4, 5, 6], [7, 8, 9]], batch_size=3).batches())
    assert batch.packed.order.tolist() == [1, 2, 0]
    assert batch.x.tolist() == [3, 7, 1, 4, 8, 5]
    assert batch.y.tolist() == [4, 8, 2, 5, 9, 6]
    assert batch.packed.offsets.tolist() == [0, 3, 5, 6]
    assert batch.x.dtype == batch.y.dtype == np.int64


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 50), max_size=7), min_size=1, max_size=20),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_every_prediction_exactly_once_in_every_epoch(sequences, batch_size, shuffle, bucket) -> None:
    wanted = Counter(tuple(pairs(s)) for s in sequences if len(s) > 1)
    if not wanted:
        with pytest.raises(ValueError, match="nothing to predict"):
            Sentences(sequences, batch_size)
        return
    data = Sentences(sequences, batch_size, shuffle, 3, bucket)
    assert data.left_out == sum(len(s) < 2 for s in sequences)
    for _ in range(2):
        batches = list(data.batches())
        assert Counter(tuple(s) for batch in batches for s in rows(batch)) == wanted
        assert sum(batch.tokens for batch in batches) == data.tokens
        assert len(batches) == data.steps_per_epoch()
        assert all(batch.sequences == batch_size for batch in batches) or data.sequences % batch_size
    assert Counter(tuple(s) for batch in data.evaluation_batches() for s in rows(batch)) == wanted


def test_shuffling_draws_a_new_order_every_epoch_from_its_generator() -> None:
    sequences = [[i, i + 1] for i in range(30)]
    orders = []
    for seed in (1, 1, 2):
        data = Sentences(sequences, shuffle=True, rng=seed)
        orders.append([[int(b.x[0]) for b in data.batches()] for _ in range(2)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert orders[0][0] != list(range(30))


def test_without_shuffling_the_order_stays_and_batches_are_made_once() -> None:
    data = Sentences([[1, 2], [3, 4, 5], [6, 7]], batch_size=2)
    first, second = list(data.batches()), list(data.batches())
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert [b.x.tolist() for b in first] == [[3, 1, 4], [6]]


def test_shuffled_single_sentences_are_packed_once() -> None:
    data = Sentences([[i, i + 1, i + 2] for i in range(9)], shuffle=True, rng=0)
    first = {id(batch) for batch in data.batches()}
    assert {id(batch) for batch in data.batches()} == first


def test_buckets_hold_like_lengths(rng) -> None:
    sequences = [rng.integers(0, 9, length) for length in rng.integers(2, 40, 64)]
    bucketed = Sentences(sequences, 8, shuffle=True, rng=0, bucket=True)
    batches = list(bucketed.batches())
    spreads = [batch.packed.lengths.max() - batch.packed.lengths.min() for batch in batches]
    longest = sorted((batch.packed.steps for batch in batches), reverse=True)
    lengths = sorted((len(s) - 1 for s in sequences), reverse=True)
    assert longest == lengths[::8]
    assert max(spreads) < 15
    assert [b.packed.steps for b in batches] != longest


def test_evaluation_does_not_move_the_position() -> None:
    data = Sentences([[1, 2, 3]] * 5)
    epoch = data.batches()
    next(epoch)
    list(data.evaluation_batches())
    assert data.position == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "nothing to predict"),
        (([[1], []],), ValueError, r"nothing to predict \(2 shorter ones\)"),
        (([[1, 2], [1.5, 2.0]],), TypeError, r"sequences_of_ids\[1\]: got float64"),
        (([[1, -2]],), ValueError, r"sequences_of_ids\[0\]: got the id -2"),
        (([[[1, 2], [3, 4]]],), ValueError, r"shape \(2, 2\)"),
        (([[1, 2]], 0), ValueError, "batch_size"),
        (([[1, 2]], 2.0), TypeError, "batch_size"),
    ],
)
def test_sentences_check_their_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        Sentences(*arguments)


def test_stream_by_hand() -> None:
    data = Stream(np.arange(12), batch_size=2)
    batches = list(data.batches(Chunk(2)))
    # 11 predictions, 5 for each stream, one left over: 0..4 -> 1..5 beside 5..9 -> 6..10
    assert [b.x.tolist() for b in batches] == [[0, 5, 1, 6], [2, 7, 3, 8], [4, 9]]
    assert [b.y.tolist() for b in batches] == [[1, 6, 2, 7], [3, 8, 4, 9], [5, 10]]
    assert [b.carry for b in batches] == [False, True, True]
    assert [b.sequences for b in batches] == [2, 2, 2]
    assert (data.tokens, data.steps_per_epoch(Chunk(2)), data.largest_id) == (10, 3, 11)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(0, 80), st.integers(1, 9))
def test_streams_laid_end_to_end_are_the_text(batch_size, extra, k1) -> None:
    ids = np.arange(batch_size + 1 + extra)
    data = Stream(ids, batch_size)
    seen: list[list[tuple[int, int]]] = [[] for _ in range(batch_size)]
    for number, batch in enumerate(data.batches(Chunk(k1))):
        assert batch.carry == (number > 0)
        assert batch.packed.steps <= k1
        for stream, new in zip(seen, rows(batch), strict=True):
            stream += new
    joined = [pair for stream in seen for pair in stream]
    assert joined == pairs(ids)[: data.tokens]
    assert len(ids) - 1 - data.tokens < batch_size


def test_streams_evaluate_whole_in_few_batches() -> None:
    ids = np.arange(10_001)
    batches = list(Stream(ids, 1).evaluation_batches())
    assert len(batches) == 3
    np.testing.assert_array_equal(np.concatenate([b.y for b in batches]), ids[1:])
    assert [b.carry for b in batches] == [False, True, True]


def test_steps_of_its_own_go_with_any_truncation() -> None:
    data = Stream(np.arange(30), 2, steps=7)
    for truncation in (None, Full(), Window(3), Chunk(2, 4)):
        assert [b.packed.steps for b in data.batches(truncation)] == [7, 7]


def test_stream_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match="got 3 ids for 3 streams, wanted at least 4"):
        Stream([1, 2, 3], 3)
    with pytest.raises(TypeError, match="ids: got float64"):
        Stream([0.5, 1.0, 2.0], 1)
    with pytest.raises(ValueError, match="steps"):
        Stream(range(9), 1, steps=0)
    data = Stream(range(9), 1)
    with pytest.raises(ValueError, match=r"got Full\(\) for a Stream, wanted Chunk"):
        next(data.batches(Full()))
    with pytest.raises(ValueError, match=r"Chunk\(k1=2, k2=6\) reaches back 6 steps from chunks of 2"):
        next(data.batches(Chunk(2, 6)))


def contents(batches) -> list[tuple[list[int], list[int], bool]]:
    return [(b.x.tolist(), b.y.tolist(), b.carry) for b in batches]


MAKERS = {
    "one by one": lambda seed: Sentences([[i, i + 1, 2] for i in range(13)]),
    "one by one, shuffled": lambda seed: Sentences([[i, i + 1, 2] for i in range(13)], 1, True, seed),
    "batches, shuffled": lambda seed: Sentences([[i] * (2 + i % 5) for i in range(13)], 3, True, seed),
    "buckets": lambda seed: Sentences([[i] * (2 + i % 5) for i in range(13)], 3, True, seed, True),
    "legacy generator": lambda seed: Sentences(
        [[i, i + 1] for i in range(13)], 3, True, np.random.Generator(np.random.MT19937(seed))
    ),
    "stream": lambda seed: Stream(np.arange(50), 4),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_resuming_goes_on_with_the_same_batches(kind, done) -> None:
    make = MAKERS[kind]
    data, chunk = make(1), Chunk(3)
    list(data.batches(chunk))
    epoch = data.batches(chunk)
    for _ in range(done):
        next(epoch)
    state = data.state_dict()
    other = make(2)
    other.load_state_dict(state)
    assert contents(other.batches(chunk)) == contents(epoch)
    assert contents(other.batches(chunk)) == contents(data.batches(chunk))


def test_states_that_do_not_fit_are_refused() -> None:
    data = Sentences([[1, 2]] * 3)
    with pytest.raises(ValueError, match="position 4 is outside an epoch of 3"):
        data.load_state_dict({"position": 4, "rng": None, "epoch_rng": None})
    with pytest.raises(ValueError, match="keys"):
        data.load_state_dict({"position": 1})


def test_fingerprints_tell_data_apart() -> None:
    sets = [
        Sentences([[1, 2, 3], [4, 5]]),
        Sentences([[1, 2, 3], [5, 4]]),
        Sentences([[1, 2], [3, 4, 5]]),
        Sentences([[1, 2, 3], [4, 5]], 2),
        Stream([1, 2, 3, 4, 5], 1),
        Stream([1, 2, 3, 4, 5], 2),
        Stream([1, 2, 3, 5, 4], 1),
    ]
    prints = [str(data.fingerprint()) for data in sets]
    assert len(set(prints)) == len(prints)
    assert prints[0] == str(Sentences([[1, 2, 3], [4, 5]]).fingerprint())


def test_from_sequences() -> None:
    batch = TokenBatch.from_sequences([[1], [2, 3, 4], []], [[9], [8, 7, 6], []])
    assert rows(batch) == [[(1, 9)], [(2, 8), (3, 7), (4, 6)], []]
    assert (batch.tokens, batch.sequences) == (4, 3)
    with pytest.raises(ValueError, match=r"ys\[1\]: got 1 ids, wanted 2"):
        TokenBatch.from_sequences([[1], [2, 3]], [[1], [2]])
    with pytest.raises(ValueError, match="ys: got 1 sequences"):
        TokenBatch.from_sequences([[1], [2]], [[1]])
    assert TokenBatch.from_sequences([], []).tokens == 0


def test_representations() -> None:
    assert repr(Sentences([[1, 2], [3]], 2, True, 0, True)) == (
        "Sentences(1 sequences, 1 tokens, batch_size=2, shuffle, bucket, left_out=1)"
    )
    assert repr(Stream(range(9), 2, steps=3)) == "Stream(8 tokens, batch_size=2, steps=3)"
    assert "carried" in repr(list(Stream(range(9), 2).batches(Chunk(2)))[1])


def test_generator_states_survive_json() -> None:
    import json

    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64):
        rng = np.random.Generator(kind(3))
        rng.random(7)
        state = json.loads(json.dumps(generator_state(rng)))
        other = np.random.Generator(kind(4))
        other.bit_generator.state = state
        assert other.random() == rng.random()


def test_a_batch_owns_its_ids() -> None:
    """Kernels index with ids that have been checked: what the caller's array holds later must not matter."""
    x, y = np.array([1, 2, 3]), np.array([2, 3, 4])
    batch = TokenBatch(x, y, dense(1, 3))
    x[:] = y[:] = 1 << 40
    assert batch.x.tolist() == [1, 2, 3]
    assert batch.y.tolist() == [2, 3, 4]
    with pytest.raises(AttributeError):
        batch.x = x  # type: ignore[misc]
    ids = np.array([1, 2, 3])
    batches = [next(Sentences([ids]).batches()), next(Stream(ids, 1, steps=2).batches())]
    ids[:] = 1 << 40
    for batch in batches:
        assert batch.x.tolist() == [1, 2]
        with pytest.raises(ValueError, match="read-only"):
            batch.x[0] = 7


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1, 2], ValueError, "x: got 2 ids, wanted 3"),
        ([1, 2, -1], ValueError, "x: got the id -1"),
        ([1.0, 2.0, 3.0], TypeError, "x: got float64"),
        (np.array([1, 2, 1 << 63], np.uint64), ValueError, "x: got the id 9223372036854775808"),
    ],
)
def test_a_batch_checks_its_ids(x, error, message) -> None:
    with pytest.raises(error, match=message):
        TokenBatch(x, [1, 2, 3], dense(1, 3))
