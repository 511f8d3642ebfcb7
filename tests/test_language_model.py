"""The language model against the oracle: probabilities, losses, gradients, steps; states, dropout, bad input."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tolerances
from language_oracle import Oracle

import crnn
from crnn.bptt import Chunk, Full, Window
from crnn.data import Sentences, Stream, TokenBatch
from crnn.token_sequences import read_ids

WORDS = 13
XS = [[0, 3, 12, 3, 5], [7], [1, 1, 1, 2, 9, 11, 4], [6, 0, 6]]
YS = [[3, 12, 3, 5, 8], [2], [1, 1, 2, 9, 11, 4, 0], [0, 6, 10]]
TOKENS = sum(map(len, YS))

CELLS = {
    "rnn": {"cell": "rnn"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "gru-torch": {"cell": "gru", "reset_after": True, "z_weighs": "state"},
}
WORD_FORMS = {
    "onehot": {},
    "embedding": {"embedding_size": 5},
    "tied": {"embedding_size": 7, "tie_weights": True},
    "onehot-nobias": {"bias": False},
    "tied-nobias": {"embedding_size": 7, "tie_weights": True, "bias": False},
}
SCHEMES = [None, Full(), Window(1), Window(3), Chunk(2), Chunk(2, 4)]


def make(seed: int = 1, dtype: type = np.float64, **options) -> crnn.LanguageModel:
    """A small model whose weights, biases included, are large enough to make every term count."""
    options = {"hidden_size": 7, **options}
    model = crnn.LanguageModel(WORDS, dtype=dtype, rng=seed, **options)
    model.initialise(seed, scale=0.6)
    return model


def batch_of(xs=XS, ys=YS) -> TokenBatch:
    return TokenBatch.from_sequences(xs, ys)


# ------------------------------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("words", WORD_FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_the_oracle_s(cell: str, words: str, layers: int) -> None:
    model = make(num_layers=layers, **CELLS[cell], **WORD_FORMS[words])
    oracle = Oracle(model, XS)
    for truncation in SCHEMES:
        expected = oracle.gradients(YS, truncation)
        found = model.gradients(XS, YS, truncation)
        assert list(found) == list(model.params) == list(expected)
        for name, gradient in found.items():
            assert gradient.shape == model.params[name].shape
            np.testing.assert_allclose(
                gradient, expected[name], **tolerances.SAME_FORMULA, err_msg=f"{name} {truncation}"
            )


@pytest.mark.parametrize("words", WORD_FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_float32_gradients_are_the_oracle_s(cell: str, words: str) -> None:
    model = make(dtype=np.float32, num_layers=2, **CELLS[cell], **WORD_FORMS[words])
    expected = Oracle(model, XS).gradients(YS, Window(3))
    for name, gradient in model.gradients(XS, YS, Window(3)).items():
        assert gradient.dtype == np.float32
        tolerances.assert_close(gradient, expected[name], "d_params", terms=TOKENS + 2 * WORDS, steps=7, what=name)


@pytest.mark.parametrize("words", WORD_FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_losses_and_probabilities_are_the_oracle_s(cell: str, words: str) -> None:
    model = make(num_layers=2, **CELLS[cell], **WORD_FORMS[words])
    oracle = Oracle(model, XS)
    losses = oracle.losses(YS)
    total = sum(float(loss.sum()) for loss in losses)
    assert model.total_loss(XS, YS) == pytest.approx(total, rel=1e-12)
    assert model.loss(XS, YS) == pytest.approx(total / TOKENS, rel=1e-12)
    assert model.perplexity(XS, YS) == pytest.approx(math.exp(total / TOKENS), rel=1e-11)
    for i, (x, y) in enumerate(zip(XS, YS)):
        p = model.probabilities(x)
        assert p.shape == (len(x), WORDS)
        np.testing.assert_allclose(p, oracle.probabilities(i), **tolerances.SAME_FORMULA)
        np.testing.assert_array_equal(model.predict(x), oracle.probabilities(i).argmax(axis=1))
        np.testing.assert_allclose(model.token_losses(x, y), losses[i], **tolerances.SAME_FORMULA)


def test_one_sequence_may_come_without_a_list() -> None:
    model = make()
    assert model.total_loss(XS[0], YS[0]) == model.total_loss([XS[0]], [YS[0]])
    assert model.loss(np.array(XS[2], np.uint8), tuple(YS[2])) == model.loss([XS[2]], [YS[2]])
    without_axes = [np.array(word) for word in XS[2]]  # as the elements of a PyTorch tensor are
    assert model.loss(without_axes, YS[2]) == model.loss(XS[2], YS[2])
    for name, gradient in model.gradients(XS[0], YS[0]).items():
        np.testing.assert_array_equal(gradient, model.gradients([XS[0]], [YS[0]])[name])


def test_many_sequences_are_cut_into_batches_without_a_difference(rng: np.random.Generator) -> None:
    model = make()
    lengths = rng.integers(1, 40, 400)
    xs = [rng.integers(0, WORDS, n) for n in lengths]
    ys = [rng.integers(0, WORDS, n) for n in lengths]
    assert lengths.sum() > 4096, "wanted more rows than one evaluation batch takes"
    one_by_one = sum(model.total_loss([x], [y]) for x, y in zip(xs, ys))
    assert model.total_loss(xs, ys) == pytest.approx(one_by_one, rel=1e-12)
    swap = rng.permutation(len(xs))
    assert model.total_loss([xs[i] for i in swap], [ys[i] for i in swap]) == pytest.approx(one_by_one, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------- SGD steps


@pytest.mark.parametrize("words", WORD_FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_subtracts_the_gradient(cell: str, words: str) -> None:
    model = make(num_layers=2, **CELLS[cell], **WORD_FORMS[words])
    before = {name: view.copy() for name, view in model.params.items()}
    gradients, loss = model.gradients(XS, YS, Window(2)), model.total_loss(XS, YS)
    assert model.sgd_step(XS, YS, 0.1, Window(2)) == pytest.approx(loss, rel=1e-12)
    for name, view in model.params.items():
        np.testing.assert_allclose(view, before[name] - 0.1 * gradients[name], **tolerances.SAME_FORMULA, err_msg=name)


def test_fused_step_scales_the_gradient_and_continues_the_state() -> None:
    model = make(cell="lstm", num_layers=2, embedding_size=4)
    twin, gradients = model.copy(), model.new_gradients()
    first, second = batch_of(), batch_of(YS, XS)
    _, state = model.loss_and_gradients(first, gradients, Full(), 0.25, training=False)
    expected = {name: view.copy() for name, view in model.parameters.items()}
    for name, gradient in gradients.dense.items():
        expected[name] -= 0.3 * gradient
    for name, (ids, rows) in gradients.sparse.items():
        expected[name][ids] -= 0.3 * rows
    loss, fused_state = twin.fused_sgd(first, 0.3, Full(), 0.25)
    for name, view in twin.parameters.items():
        np.testing.assert_allclose(view, expected[name], **tolerances.SAME_FORMULA, err_msg=name)
    for part, fused in zip(state, fused_state, strict=True):
        np.testing.assert_array_equal(part, fused)
    model.parameters.flat[:] = twin.parameters.flat
    wanted = sum(float(losses.sum()) for losses in Oracle(model, YS, state).losses(XS))
    assert twin.fused_sgd(second, 0.3, state=fused_state)[0] == pytest.approx(wanted, rel=1e-12)
    assert loss == pytest.approx(make(cell="lstm", num_layers=2, embedding_size=4).total_loss(XS, YS), rel=1e-12)


def test_a_step_of_rate_zero_changes_nothing() -> None:
    model = make(cell="gru")
    before = model.parameters.flat.copy()
    assert model.sgd_step(XS, YS, 0.0) == model.total_loss(XS, YS)
    np.testing.assert_array_equal(model.parameters.flat, before)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_smallest_model_there_is(cell: str) -> None:
    model = crnn.LanguageModel(1, cell, 1, rng=0)
    assert model.loss([0], [0]) == 0.0
    assert model.probabilities([0, 0]).tolist() == [[1.0], [1.0]]
    assert model.gradient_check([0, 0], [0, 0], Window(1)).passed


@pytest.mark.parametrize("words", WORD_FORMS)
def test_padding_of_the_flat_buffer_stays_zero(words: str) -> None:
    model = make(cell="gru", **WORD_FORMS[words])
    for _ in range(3):
        model.sgd_step(XS, YS, 0.5, Chunk(2))
    values = np.sort(np.concatenate([view.reshape(-1) for view in model.parameters.values()]))
    flat = np.sort(model.parameters.flat)
    np.testing.assert_array_equal(flat[flat != 0.0], values[values != 0.0])


# -------------------------------------------------------------------------------------- the trainer's interface


@pytest.mark.parametrize("words", ["onehot", "embedding"])
def test_word_gradients_are_rows(words: str) -> None:
    model = make(**WORD_FORMS[words])
    gradients = model.new_gradients()
    model.loss_and_gradients(batch_of(), gradients)
    name = {"onehot": "rnn.weight_ih_l0", "embedding": "embedding.weight"}[words]
    assert list(gradients.sparse) == [name]
    ids, rows = gradients.sparse[name]
    assert ids.dtype == np.int64
    assert ids.tolist() == sorted({word for x in XS for word in x})
    assert not gradients.dense[name].any(), "the dense gradient of the words must not be touched"
    dense = np.zeros_like(gradients.dense.storage(name))
    dense[ids] = rows
    expected = Oracle(model, XS).gradients(YS)[name]
    np.testing.assert_allclose(dense.T if words == "onehot" else dense, expected, **tolerances.SAME_FORMULA)


@pytest.mark.parametrize("words", WORD_FORMS)
def test_accumulating_parts_gives_the_whole(words: str) -> None:
    model = make(cell="gru", num_layers=2, **WORD_FORMS[words])
    whole, parts = model.new_gradients(), model.new_gradients()
    total, _ = model.loss_and_gradients(batch_of(), whole, Window(2), 0.5)
    losses = [
        model.loss_and_gradients(batch_of(XS[i : i + 2], YS[i : i + 2]), parts, Window(2), 0.5, accumulate=i > 0)[0]
        for i in (0, 2)
    ]
    assert sum(losses) == pytest.approx(total, rel=1e-12)
    for name in whole.dense:
        np.testing.assert_allclose(parts.dense[name], whole.dense[name], **tolerances.SAME_FORMULA, err_msg=name)
    for name, (ids, rows) in whole.sparse.items():
        np.testing.assert_array_equal(parts.sparse[name][0], ids)
        np.testing.assert_allclose(parts.sparse[name][1], rows, **tolerances.SAME_FORMULA)
    once = {name: array.copy() for name, array in whole.dense.items()}
    model.loss_and_gradients(batch_of(), whole, Window(2), 0.5)
    for name, array in once.items():
        np.testing.assert_array_equal(whole.dense[name], array, err_msg=f"{name}: replaced, not added to")


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_stream_in_chunks_equals_the_whole(cell: str, rng: np.random.Generator) -> None:
    model = make(cell=cell, num_layers=2, embedding_size=3)
    stream = Stream(rng.integers(0, WORDS, 61), batch_size=3)
    whole = model.evaluate(stream.evaluation_batches())
    chunks = list(stream.batches(Chunk(7)))
    assert [chunk.carry for chunk in chunks] == [False, True, True]
    total, tokens = model.evaluate(chunks)
    assert tokens == whole[1] == 60
    assert total == pytest.approx(whole[0], rel=1e-12)
    forgetful, _ = model.evaluate(chunks, carry_state=False)
    assert abs(forgetful - total) > 1e-6
    gradients, state, trained = model.new_gradients(), None, 0.0
    for chunk in chunks:
        loss, state = model.loss_and_gradients(chunk, gradients, Chunk(7), state=state if chunk.carry else None)
        trained += loss
    assert trained == pytest.approx(total, rel=1e-12)


def test_a_state_keeps_the_order_of_ragged_sequences() -> None:
    model = make(cell="lstm", num_layers=2)
    _, state = model.loss_and_gradients(batch_of(), model.new_gradients())
    for i, (x, y) in enumerate(zip(XS, YS)):
        _, alone = model.loss_and_gradients(batch_of([x], [y]), model.new_gradients())
        for part, single in zip(state, alone, strict=True):
            np.testing.assert_allclose(part[:, i], single[:, 0], **tolerances.SAME_FORMULA)
    following = model.loss_and_gradients(batch_of(YS, XS), model.new_gradients(), state=state)[0]
    wanted = sum(float(losses.sum()) for losses in Oracle(model, YS, state).losses(XS))
    assert following == pytest.approx(wanted, rel=1e-12)


def test_evaluation_never_holds_tokens_times_vocabulary() -> None:
    words, tokens = 20_000, 2_000
    model = crnn.LanguageModel(words, hidden_size=8, rng=0)
    ids = np.arange(tokens + 1) % words
    data = Sentences([ids])
    gradients = model.new_gradients()
    tracemalloc.start()
    try:
        model.evaluate(data.evaluation_batches())
        model.predict(ids[:-1])
        model.loss_and_gradients(next(data.batches()), gradients, Window(3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < tokens * words * 4 / 10


def test_two_threads_do_not_change_a_bit(threads) -> None:
    found = []
    for count in (1, 2):
        threads(count)
        model = make(cell="gru", dtype=np.float32, embedding_size=7, tie_weights=True)
        for _ in range(3):
            model.sgd_step(XS, YS, 0.2, Window(2))
        found.append(model.parameters.flat.copy())
    np.testing.assert_array_equal(found[0], found[1])


def test_inference_from_many_threads() -> None:
    model = make(cell="lstm", num_layers=2, dtype=np.float32)
    expected = [model.probabilities(x) for x in XS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.probabilities, XS * 25))
    for i, p in enumerate(found):
        np.testing.assert_array_equal(p, expected[i % len(XS)])


# ------------------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("words", ["onehot", "embedding", "tied"])
def test_gradients_with_dropout_match_finite_differences(words: str) -> None:
    model = make(cell="lstm", num_layers=2, dropout=0.4, **WORD_FORMS[words])
    before = model.rng.bit_generator.state
    gradients = model.new_gradients()
    loss, _ = model.loss_and_gradients(batch_of(), gradients)
    assert abs(loss - model.total_loss(XS, YS)) > 1e-2
    scrap = model.new_gradients()

    def loss_with_the_same_masks() -> float:
        model.rng.bit_generator.state = before
        return model.loss_and_gradients(batch_of(), scrap)[0]

    assert loss_with_the_same_masks() == loss
    for name, view in model.parameters.items():
        gradient = gradients.dense[name]
        if name in gradients.sparse:
            ids, rows = gradients.sparse[name]
            gradients.dense.storage(name)[ids] = rows
        for at in {(0,) * view.ndim, tuple(n - 1 for n in view.shape), tuple(n // 2 for n in view.shape)}:
            value, found = view[at], {}
            for step in (-2, -1, 1, 2):
                view[at] = value + step * 1e-3
                found[step] = loss_with_the_same_masks()
            view[at] = value
            numeric = (8 * (found[1] - found[-1]) - (found[2] - found[-2])) / 12e-3
            assert gradient[at] == pytest.approx(numeric, rel=1e-7, abs=1e-9), f"{name}{at}"


def test_fused_step_with_dropout_equals_gradient_and_update() -> None:
    model = make(cell="gru", num_layers=2, dropout=0.5, embedding_size=4)
    twin, gradients = model.copy(), model.new_gradients()
    loss, _ = model.loss_and_gradients(batch_of(), gradients)
    assert twin.fused_sgd(batch_of(), 0.1)[0] == loss
    for name, (ids, rows) in gradients.sparse.items():
        gradients.dense.storage(name)[ids] = rows
    for name, view in twin.parameters.items():
        expected = model.parameters[name] - 0.1 * gradients.dense[name]
        np.testing.assert_allclose(view, expected, **tolerances.SAME_FORMULA, err_msg=name)


def test_dropout_drops_at_its_rate_and_only_in_training() -> None:
    model = crnn.LanguageModel(WORDS, "lstm", 40, 3, embedding_size=30, dropout=0.3, rng=0)
    masks = model._draw_masks(500)
    assert masks.words.shape == (500, 30)
    assert masks.between.shape == (2, 500, 40)
    assert masks.output.shape == (500, 40)
    for mask in (masks.words, masks.between, masks.output):
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.7)}
        assert (mask == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert crnn.LanguageModel(WORDS, dropout=0.3, rng=0)._draw_masks(4).words is None, "one-hot words are not dropped"
    state = model.rng.bit_generator.state
    model.loss(XS, YS)
    model.gradients(XS, YS)
    assert model.rng.bit_generator.state == state


# -------------------------------------------------------------------------------------- construction and copies


def test_names_and_shapes() -> None:
    shapes = {name: view.shape for name, view in make(cell="lstm", num_layers=2, embedding_size=5).params.items()}
    assert shapes == {
        "embedding.weight": (13, 5),
        "rnn.weight_ih_l0": (28, 5),
        "rnn.weight_hh_l0": (28, 7),
        "rnn.bias_ih_l0": (28,),
        "rnn.bias_hh_l0": (28,),
        "rnn.weight_ih_l1": (28, 7),
        "rnn.weight_hh_l1": (28, 7),
        "rnn.bias_ih_l1": (28,),
        "rnn.bias_hh_l1": (28,),
        "output.weight": (13, 7),
        "output.bias": (13,),
    }
    notes = make(bias=False)
    assert {name: view.shape for name, view in notes.params.items()} == {
        "rnn.weight_ih_l0": (7, 13),
        "rnn.weight_hh_l0": (7, 7),
        "output.weight": (13, 7),
    }


def test_params_are_live() -> None:
    model = make()
    model.params["output.bias"][:] = 0.0
    model.params["output.weight"] = np.zeros((WORDS, 7))
    np.testing.assert_allclose(model.probabilities([1, 2]), 1 / WORDS, rtol=1e-12)


def test_tied_weights_are_one_matrix() -> None:
    model = make(embedding_size=7, tie_weights=True)
    assert np.shares_memory(model.params["embedding.weight"], model.params["output.weight"])
    assert len(model.params) == len(list(model.params)) == len(model.parameters) + 1
    model.params["embedding.weight"] = np.full((WORDS, 7), 0.25)
    assert (model.params["output.weight"] == 0.25).all()
    gradients, before = model.gradients(XS, YS), model.params["output.weight"].copy()
    model.params.update({name: view - 0.1 * gradients[name] for name, view in model.params.items()})
    np.testing.assert_array_equal(model.params["embedding.weight"], before - 0.1 * gradients["output.weight"])
    with pytest.raises(ValueError, match="nonsense: unexpected"):
        model.params.update(nonsense=1.0)


def test_initial_weights() -> None:
    model = crnn.LanguageModel(400, "gru", 25, 2, rng=3)
    for name, bound in (("rnn.weight_ih_l0", 1 / 20), ("rnn.weight_hh_l0", 1 / 5), ("rnn.weight_ih_l1", 1 / 5)):
        largest = np.abs(model.params[name]).max()
        assert 0.97 * bound < largest <= bound
    assert np.abs(model.params["output.weight"]).max() <= 1 / 5
    assert not model.params["output.bias"].any()
    assert np.abs(crnn.LanguageModel(400, embedding_size=9, rng=3).params["embedding.weight"]).max() <= 0.1
    wide = crnn.LanguageModel(400, "gru", 25, 2, rng=3, dtype=np.float64)
    for name, view in model.params.items():
        np.testing.assert_array_equal(view, wide.params[name].astype(np.float32), err_msg=name)
    model.initialise(7, scale=0.05)
    for view in model.params.values():
        assert 0.0 < np.abs(view).max() <= 0.05
    assert model.loss(XS, YS) == pytest.approx(math.log(400), abs=0.05)


def test_copy_pickle_and_dtype() -> None:
    model = make(cell="gru", num_layers=2, dropout=0.2, embedding_size=4)
    for twin in (model.copy(), pickle.loads(pickle.dumps(model))):
        assert twin.configuration == model.configuration
        assert not np.shares_memory(twin.parameters.flat, model.parameters.flat)
        np.testing.assert_array_equal(twin.parameters.flat, model.parameters.flat)
        assert twin.rng.random() == model.copy().rng.random()
    narrow = model.copy(np.float32)
    assert narrow.params["output.bias"].dtype == np.float32
    assert narrow.loss(XS, YS) == pytest.approx(model.loss(XS, YS), rel=1e-5)


def test_repr_and_length() -> None:
    assert repr(make()) == "LanguageModel(13 words one-hot, rnn 1 x 7, float64, 258 parameters)"
    assert "embedded in 7, tied" in repr(make(embedding_size=7, tie_weights=True))
    assert len(make()) == WORDS


def test_overflowing_perplexity_is_infinite() -> None:
    model = make()
    model.params["output.bias"][:] = 0.0
    model.params["output.bias"][0] = 5000.0
    assert model.perplexity([[1, 2]], [[3, 4]]) == math.inf


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("xs", "ys", "error", "match"),
    [
        ([[1, 13]], [[1, 1]], ValueError, r"xs\[0\]: got the id 13.*vocabulary of 13 words.*position 1"),
        ([[1, 2], [3]], [[1, 1], [-4]], ValueError, r"ys\[1\]: got the id -4.*13 words.*position 0"),
        ([[1, 2]], [[1]], ValueError, r"ys\[0\]: got 1 ids, wanted 2"),
        ([[1, 2]], [[1, 2], [3]], ValueError, "ys: got 2 sequences, wanted 1"),
        ([[1], []], [[1], []], ValueError, r"xs\[1\]: got an empty sequence"),
        ([], [], ValueError, "no sequence"),
        ([[1.5, 2.0]], [[1, 2]], TypeError, "float64, wanted integer ids"),
        ([["a", "b"]], [[1, 2]], TypeError, "wanted integer ids"),
        ("text", [[1]], TypeError, "xs: got str"),
        ([[1]], 3, TypeError, "ys: got int"),
        ([1, 2], [[1, 2]], ValueError, "ys: got several sequences"),
        ([[[1, 2]]], [[1, 2]], ValueError, r"xs\[0\]: got an array of shape \(1, 2\)"),
        ([[1, [2]]], [[1, 2]], ValueError, r"xs\[0\]: not one sequence"),
    ],
)
def test_bad_sequences(xs, ys, error, match) -> None:
    model = make()
    before = model.parameters.flat.copy()
    for call in (model.total_loss, model.gradients, lambda x, y: model.sgd_step(x, y, 0.1)):
        with pytest.raises(error, match=match):
            call(xs, ys)
    np.testing.assert_array_equal(model.parameters.flat, before)


def test_bad_ids_in_packed_batches() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"batch.y: got the id 99.*at step 1 of sequence 3"):
        model.fused_sgd(batch_of(XS, [*YS[:3], [0, 99, 1]]), 0.1)
    with pytest.raises(ValueError, match=r"ids: got the id 13.*position 2"):
        model.probabilities([0, 1, 13])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"vocabulary_or_size": 0}, ValueError, "vocabulary_size"),
        ({"vocabulary_or_size": "words"}, TypeError, "vocabulary_or_size: got str"),
        ({"vocabulary_or_size": True}, TypeError, "vocabulary_or_size"),
        ({"cell": "transformer"}, ValueError, "cell.*'rnn', 'lstm', 'gru'"),
        ({"hidden_size": 0}, ValueError, "hidden_size"),
        ({"hidden_size": 2.5}, TypeError, "hidden_size"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"embedding_size": 0}, ValueError, "embedding_size"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"dropout": "half"}, TypeError, "dropout"),
        ({"tie_weights": True}, ValueError, "tie_weights.*embedding_size equal to hidden_size = 100.*None"),
        ({"tie_weights": True, "embedding_size": 50}, ValueError, "got embedding_size=50"),
        ({"bias": "yes"}, TypeError, "bias"),
        ({"nonlinearity": "gelu"}, ValueError, "nonlinearity"),
        ({"z_weighs": "both"}, ValueError, "z_weighs"),
        ({"dtype": np.float16}, ValueError, "float16"),
        ({"dtype": "complicated"}, TypeError, "dtype"),
        ({"dtype": None}, TypeError, "dtype: got None, wanted float32 or float64"),
    ],
)
def test_bad_construction(options, error, match) -> None:
    with pytest.raises(error, match=match):
        crnn.LanguageModel(**{"vocabulary_or_size": WORDS, **options})


def test_bad_options() -> None:
    model = make()
    with pytest.raises(ValueError, match="learning_rate: got nan"):
        model.sgd_step(XS, YS, math.nan)
    for rate, error in (("0.1", TypeError), (None, TypeError), (10**400, ValueError)):
        with pytest.raises(error, match="learning_rate must be a number"):
            model.sgd_step(XS, YS, rate)
    with pytest.raises(TypeError, match="truncation"):
        model.gradients(XS, YS, 4)
    with pytest.raises(ValueError, match="scale"):
        model.initialise(0, scale=-1.0)
    with pytest.raises(ValueError, match=r"state: h is float32 .*, wanted float64 \(1, 4, 7\)"):
        model.fused_sgd(batch_of(), 0.1, state=np.zeros((1, 4, 7), np.float32))
    with pytest.raises(ValueError, match="state: got 2 arrays, wanted 1"):
        model.fused_sgd(batch_of(), 0.1, state=(np.zeros((1, 4, 7)), np.zeros((1, 4, 7))))


def test_ids_that_change_meanwhile_cannot_lead_the_kernels_astray() -> None:
    """What is checked is a copy: another thread may write into the caller's array between check and use."""
    ids = np.array([1, 2, 3])
    checked = read_ids(ids, 5, "ids")
    ids[:] = 1 << 40
    assert checked.tolist() == [1, 2, 3]
    assert not np.shares_memory(checked, ids)
