"""The run of the notes: the same weights, gradients and losses as the NumPy code that the tutorial describes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from notes_rnn import NotesRNN

import crnn
from crnn.bptt import Full, Window

WORDS, HIDDEN = 300, 20


def pair(truncate: int | None, dtype: type = np.float64) -> tuple[NotesRNN, crnn.LanguageModel]:
    """The notes' model, and ours with the same initial weights."""
    notes = NotesRNN(WORDS, HIDDEN, bptt_truncate=truncate, rng=np.random.default_rng(10))
    model = crnn.LanguageModel(WORDS, "rnn", HIDDEN, bias=False, dtype=dtype)
    model.params["rnn.weight_ih_l0"][:] = notes.U
    model.params["rnn.weight_hh_l0"][:] = notes.W
    model.params["output.weight"][:] = notes.V
    return notes, model


@pytest.fixture
def sentences(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """25 sentences of one to 30 words; frequent words repeat within a sentence."""
    made = []
    for length in [1, 2, 3, 4, 5, *rng.integers(6, 31, 20)]:
        ids = np.minimum(rng.geometric(0.03, length + 1), WORDS) - 1
        made.append((ids[:-1], ids[1:]))
    return made


@pytest.mark.parametrize("truncate", [None, 1, 4, 7])
def test_gradients_equal_the_notes(truncate: int | None, sentences) -> None:
    notes, model = pair(truncate)
    scheme = Full() if truncate is None else Window(truncate)
    for x, y in sentences:
        d_U, d_V, d_W = notes.back_propagation(x, y)
        found = model.gradients(x, y, scheme)
        for name, expected in (("rnn.weight_ih_l0", d_U), ("output.weight", d_V), ("rnn.weight_hh_l0", d_W)):
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("truncate", [None, 4])
@pytest.mark.parametrize("rate", [0.005, 0.1])
def test_weights_after_25_steps_equal_the_notes(truncate: int | None, rate: float, sentences) -> None:
    notes, model = pair(truncate)
    scheme = Full() if truncate is None else Window(truncate)
    for x, y in sentences:
        loss = notes.calculate_total_loss([x], [y])
        notes.sgd_step(x, y, rate)
        assert model.sgd_step(x, y, rate, scheme) == pytest.approx(loss, abs=1e-10)
    for name, expected in (("rnn.weight_ih_l0", notes.U), ("output.weight", notes.V), ("rnn.weight_hh_l0", notes.W)):
        np.testing.assert_allclose(model.params[name], expected, rtol=0, atol=1e-10, err_msg=name)


def test_the_trainer_takes_the_notes_steps(sentences) -> None:
    notes, model = pair(4)
    losses = notes.train_with_sgd(
        [x for x, _ in sentences], [y for _, y in sentences], learning_rate=0.02, nepoch=3, evaluate_loss_after=1
    )
    whole = [np.append(x, y[-1]) for x, y in sentences]
    history = crnn.Trainer(model, optimizer=crnn.optim.SGD(0.02), truncation=Window(4)).fit(
        crnn.data.Sentences(whole), epochs=3
    )
    assert len(history) == len(losses) == 3
    for name, expected in (("rnn.weight_ih_l0", notes.U), ("output.weight", notes.V), ("rnn.weight_hh_l0", notes.W)):
        np.testing.assert_allclose(model.params[name], expected, rtol=0, atol=1e-10, err_msg=name)


def test_outputs_and_losses_equal_the_notes(sentences) -> None:
    notes, model = pair(4)
    xs, ys = [x for x, _ in sentences], [y for _, y in sentences]
    for x in xs:
        np.testing.assert_allclose(model.probabilities(x), notes.forward_propagation(x)[0], rtol=1e-12)
        np.testing.assert_array_equal(model.predict(x), notes.predict(x))
    assert model.total_loss(xs, ys) == pytest.approx(notes.calculate_total_loss(xs, ys), rel=1e-13)
    assert model.loss(xs, ys) == pytest.approx(notes.calculate_loss(xs, ys), rel=1e-13)


def test_float32_follows_the_notes_for_25_steps(sentences) -> None:
    notes, model = pair(4, np.float32)
    for x, y in sentences:
        notes.sgd_step(x, y, 0.005)
        model.sgd_step(x, y, 0.005, Window(4))
    np.testing.assert_allclose(model.params["output.weight"], notes.V, rtol=0, atol=2e-6)
    np.testing.assert_allclose(model.params["rnn.weight_hh_l0"], notes.W, rtol=0, atol=2e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_first_loss_is_that_of_guessing(cell: str, rng: np.random.Generator) -> None:
    model = crnn.LanguageModel(8000, cell, 100, bias=False, rng=1)
    x, y = rng.integers(0, 8000, (2, 400))
    assert model.loss(x, y) == pytest.approx(math.log(8000), abs=0.02)
