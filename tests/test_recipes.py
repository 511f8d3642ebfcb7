"""Recipes: published set-ups as values, and everything they build."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from crnn import bptt, optim, recipes, schedules
from crnn.data import Sentences, Stream


def test_the_recipes_there_are() -> None:
    assert list(recipes.RECIPES) == ["notes", "zaremba-small", "zaremba-medium", "pytorch-word-lm", "char-rnn"]
    assert all(recipe.name == name for name, recipe in recipes.RECIPES.items())


def test_the_examples_in_the_module() -> None:
    assert doctest.testmod(recipes).failed == 0


def test_the_notes() -> None:
    r = recipes.get("notes")
    assert (r.cell, r.hidden_size, r.num_layers, r.vocabulary_size, r.bias) == ("rnn", 100, 1, 8000, False)
    assert (r.embedding_size, r.layout, r.batch_size, r.epochs) == (None, "sentences", 1, 10)
    assert r.truncation == bptt.Window(4)
    assert repr(r.optimizer) == "SGD(learning_rate=0.005, momentum=0.0, weight_decay=0.0)"
    assert r.schedule == schedules.HalveOnIncrease(0.5)


@pytest.mark.parametrize(
    ("name", "units", "unroll", "scale", "dropout", "constant", "factor", "epochs"),
    [("zaremba-small", 200, 20, 0.1, 0.0, 4, 2.0, 13), ("zaremba-medium", 650, 35, 0.05, 0.5, 6, 1.2, 39)],
)
def test_zaremba(name, units, unroll, scale, dropout, constant, factor, epochs) -> None:
    r = recipes.get(name)
    assert (r.cell, r.num_layers, r.hidden_size, r.embedding_size, r.batch_size) == ("lstm", 2, units, units, 20)
    assert (r.init_scale, r.dropout, r.epochs, r.clip_norm, r.normalise) == (scale, dropout, epochs, 5.0, "sequences")
    assert r.truncation == bptt.Chunk(unroll)
    rates = [r.schedule.rate(r.optimizer.learning_rate, epoch, 0) for epoch in range(1, epochs + 1)]
    expected = [factor ** -max(0, epoch - constant) for epoch in range(1, epochs + 1)]
    assert rates == pytest.approx(expected)
    model = r.override(vocabulary_size=50, hidden_size=8, embedding_size=8).model(50, rng=0)
    for tensor in model.params.values():
        assert np.abs(tensor).max() <= scale
        assert np.abs(tensor).max() > 0.5 * scale


def test_pytorch_word_lm() -> None:
    r = recipes.get("pytorch-word-lm")
    assert (r.hidden_size, r.num_layers, r.batch_size, r.dropout, r.clip_norm) == (200, 2, 20, 0.2, 0.25)
    assert (r.optimizer.learning_rate, r.truncation, r.normalise) == (20.0, bptt.Chunk(35), "tokens")
    assert r.schedule == schedules.Plateau(factor=0.25, patience=0)
    tied = r.override(tie_weights=True).model(30, rng=0)
    assert tied.params["embedding.weight"] is tied.params["output.weight"]


def test_char_rnn() -> None:
    r = recipes.get("char-rnn")
    assert (r.level, r.hidden_size, r.num_layers, r.batch_size, r.clip_value) == ("character", 128, 2, 50, 5.0)
    assert isinstance(r.optimizer, optim.RMSprop)
    assert (r.optimizer.learning_rate, r.optimizer.alpha, r.truncation) == (2e-3, 0.95, bptt.Chunk(50))
    rates = [r.schedule.rate(1.0, epoch, 0) for epoch in (1, 10, 11, 12)]
    assert rates == pytest.approx([1.0, 1.0, 0.97, 0.97**2])
    model = r.model(20, rng=0)
    for layer in (0, 1):
        total = model.params[f"rnn.bias_ih_l{layer}"] + model.params[f"rnn.bias_hh_l{layer}"]
        np.testing.assert_array_equal(total[128:256], 1.0)
        assert np.abs(total[:128]).max() <= 0.16


def test_override_replaces_values_and_knows_the_names() -> None:
    r = recipes.get("notes").override(cell="gru", hidden_size=7)
    assert (r.cell, r.hidden_size, recipes.get("notes").cell) == ("gru", 7, "rnn")
    with pytest.raises(TypeError, match="no value 'hidden'; did you mean hidden_size"):
        r.override(hidden=7)
    with pytest.raises(TypeError, match="no value 'zzz'; there are name"):
        r.override(zzz=7)
    with pytest.raises(ValueError, match="level: got 'letters'"):
        r.override(level="letters")
    with pytest.raises(ValueError, match="for a stream, wanted Chunk"):
        r.override(layout="stream")
    with pytest.raises(ValueError, match="forget_bias"):
        r.override(forget_bias=1.0)
    with pytest.raises(ValueError, match="got 'zaremba', wanted one of notes, zaremba-small"):
        recipes.get("zaremba")


def test_every_value_is_visible() -> None:
    text = recipes.get("zaremba-small").describe()
    for name in recipes.get("zaremba-small").values():
        assert f"  {name} " in text
    assert "StepDecay(factor=0.5, after=4, every=1)" in text
    assert "valid 120.7" in text


def test_trainers_do_not_share_memory() -> None:
    recipe = recipes.get("char-rnn").override(hidden_size=4, epochs=1)
    data = recipe.training_data(np.arange(300) % 9)
    first, second = (recipe.trainer(recipe.model(9, rng=0)) for _ in range(2))
    first.fit(data, epochs=1)
    assert first.optimizer.steps > 0
    assert second.optimizer.steps == recipe.optimizer.steps == 0
    assert first.schedule is not second.schedule


def test_options_replace_a_recipes_settings() -> None:
    recipe = recipes.get("zaremba-small")
    trainer = recipe.trainer(recipe.override(hidden_size=4, embedding_size=3).model(9), clip_norm=1.0, rng=2)
    assert trainer.clip_norm == 1.0
    assert trainer.truncation == bptt.Chunk(20)


def test_data() -> None:
    stream = recipes.get("zaremba-small")
    ids = np.arange(500) % 9
    assert isinstance(stream.training_data(ids), Stream)
    assert stream.training_data(ids).batch_size == 20
    assert stream.evaluation_data(ids).tokens == 499
    shuffled = recipes.get("notes").override(shuffle=True, batch_size=3, bucket=True)
    data = shuffled.training_data([[1, 2, 3], [4, 5]], rng=4)
    assert isinstance(data, Sentences)
    assert (data.batch_size, data.shuffle, data.bucket) == (3, True, True)
    assert shuffled.evaluation_data([[1, 2, 3], [4, 5]]).tokens == 3


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_each_recipe_learns_a_pattern(name) -> None:
    """A made-up language in which each word follows from the last: after a short run the model knows it."""
    recipe = recipes.get(name)
    small = {"hidden_size": 16} if recipe.embedding_size is None else {"hidden_size": 16, "embedding_size": 16}
    if recipe.layout == "stream":
        small |= {"batch_size": 4, "truncation": bptt.Chunk(10)}
    recipe = recipe.override(**small)
    words = 12
    if recipe.layout == "stream":
        text = (np.arange(12_000) * 5) % words
        train, valid = recipe.training_data(text), recipe.evaluation_data(text[:500])
    else:
        sequences = [(np.arange(20) * 5 + start) % words for start in range(words)] * 60
        train, valid = recipe.training_data(sequences), recipe.evaluation_data(sequences[:5])
    history = recipe.trainer(recipe.model(words, rng=1), rng=2).fit(train, valid, epochs=2)
    assert history[-1]["valid_loss"] < 0.8 * np.log(words)


@pytest.mark.parametrize("level", ["word", "whitespace"])
def test_a_vocabulary_without_room_for_a_word_is_refused_before_any_text_is_read(level):
    with pytest.raises(ValueError, match="vocabulary_size: got 3, wanted at least 4"):
        recipes.get("notes").override(level=level, vocabulary_size=3)
    recipes.get("notes").override(level="character", vocabulary_size=3)
