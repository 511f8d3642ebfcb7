"""Generation: what is drawn and how often, what is never drawn, lengths, prompts, seeds."""

from __future__ import annotations

import numpy as np
import pytest

import crnn
from crnn.generation import _generators, choose, nucleus

SENTENCES = [["the", "cat", "sat", "on", "it", "."], ["a", "dog", "did", "n't", "run", "."], ["the", "dog", "sat"]]


@pytest.fixture
def vocabulary() -> crnn.Vocabulary:
    return crnn.Vocabulary.build(SENTENCES, size=14)


def make(vocabulary: crnn.Vocabulary | int, **options) -> crnn.LanguageModel:
    model = crnn.LanguageModel(vocabulary, hidden_size=9, rng=3, **options)
    model.initialise(3, scale=0.8)
    return model


def bigram_model(vocabulary: crnn.Vocabulary, successors: dict[str, dict[str, float]]) -> crnn.LanguageModel:
    """A model whose next word depends on the last one alone: hidden unit = word, output weights = log probabilities."""
    size = len(vocabulary)
    model = crnn.LanguageModel(vocabulary, hidden_size=size, nonlinearity="relu", bias=False, dtype=np.float64)
    model.params["rnn.weight_ih_l0"][:] = np.eye(size)
    model.params["rnn.weight_hh_l0"][:] = 0.0
    table = np.full((size, size), -10_000.0)
    for word, following in successors.items():
        for successor, probability in following.items():
            table[vocabulary.id(successor), vocabulary.id(word)] = np.log(probability)
    model.params["output.weight"][:] = table
    return model


CHAIN = {
    "SENTENCE_START": {"the": 0.75, "a": 0.25},
    "the": {"cat": 0.6, "dog": 0.4},
    "a": {"dog": 1.0},
    "cat": {"sat": 1.0},
    "dog": {"did": 1.0},
    "did": {"n't": 1.0},
    "n't": {"run": 0.9, "SENTENCE_START": 0.05, "UNKNOWN_TOKEN": 0.05},
    "run": {".": 1.0},
    "sat": {"SENTENCE_END": 0.5, ".": 0.5},
    ".": {"SENTENCE_END": 1.0},
}


# ----------------------------------------------------------------------------------------------------- whole sentences


def test_sentences_follow_the_model(vocabulary: crnn.Vocabulary) -> None:
    model = bigram_model(vocabulary, CHAIN)
    written = model.generate(4000, seed=5)
    share = {text: written.count(text) / len(written) for text in set(written)}
    expected = {
        "the cat sat": 0.75 * 0.6 * 0.5,
        "the cat sat.": 0.75 * 0.6 * 0.5,
        "the dog didn't run.": 0.75 * 0.4,
        "a dog didn't run.": 0.25,
    }
    assert set(share) == set(expected)
    for text, probability in expected.items():
        assert share[text] == pytest.approx(probability, abs=4 * np.sqrt(probability / len(written)))


def test_greedy_is_the_most_probable_path(vocabulary: crnn.Vocabulary) -> None:
    assert bigram_model(vocabulary, CHAIN).generate(2, greedy=True)[1].startswith("the cat sat")
    model = make(vocabulary, cell="gru", num_layers=2)
    (text,) = model.generate(greedy=True, min_length=5, max_length=5, allow_unknown=True)
    ids = [vocabulary.start_id]
    for _ in range(5):
        p = model.probabilities(ids)[-1]
        p[[vocabulary.start_id, vocabulary.end_id]] = 0.0
        ids.append(int(p.argmax()))
    assert text == vocabulary.text(ids[1:])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_side_by_side_equals_one_by_one(cell: str, vocabulary: crnn.Vocabulary) -> None:
    model = make(vocabulary, cell=cell, num_layers=2, embedding_size=4)
    together = model.generate(12, seed=8, max_length=15)
    assert together[:5] == model.generate(5, seed=8, max_length=15)
    assert together[0] == model.generate(seed=8, max_length=15)[0]
    assert len(set(together)) > 6
    assert together != model.generate(12, seed=9, max_length=15)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_sentences_go_on_from_their_own_words_when_others_have_ended(cell: str) -> None:
    """Word by word from the model's predictions over the sentence's own beginning, drawn by its own generator."""
    vocabulary = crnn.Vocabulary.build([[a, b] for a in "abcdef" for b in "ghijkl"], size=40)
    model = crnn.LanguageModel(vocabulary, cell, 24, rng=2)
    for view in model.params.values():
        view[...] *= 3.0  # so that what was read long ago still matters
    model.params["output.weight"][...] *= 1.5
    expected = []
    for generator in _generators(np.random.default_rng(1), 20):
        ids = [vocabulary.start_id]
        while len(ids) <= 12:
            p = model.probabilities(ids)[-1:].copy()
            p[:, [vocabulary.unknown_id, vocabulary.start_id]] = 0.0
            if len(ids) == 1:  # no sentence is empty
                p[:, vocabulary.end_id] = 0.0
            word = int(choose(p, np.array([generator.random()]))[0])
            if word == vocabulary.end_id:
                break
            ids.append(word)
        expected.append(ids[1:])
    assert len({len(ids) for ids in expected}) > 3
    assert model.generate(20, seed=1, max_length=12) == [vocabulary.text(ids) for ids in expected]


def test_seed_and_rng(vocabulary: crnn.Vocabulary) -> None:
    model = make(vocabulary)
    assert model.generate(3, seed=4) == model.generate(3, rng=np.random.default_rng(4)) == model.generate(3, rng=4)
    rng = np.random.default_rng(4)
    assert model.generate(3, rng=rng) != model.generate(3, rng=rng)
    assert model.generate(3) != model.generate(3)


def test_unknown_only_when_asked(vocabulary: crnn.Vocabulary) -> None:
    chain = {**CHAIN, "SENTENCE_START": {"UNKNOWN_TOKEN": 0.9, "the": 0.1}, "UNKNOWN_TOKEN": {"sat": 1.0}}
    model = bigram_model(vocabulary, chain)
    assert not any("UNKNOWN" in text for text in model.generate(200, seed=1))
    share = np.mean(["UNKNOWN_TOKEN" in text for text in model.generate(400, seed=1, allow_unknown=True)])
    assert share == pytest.approx(0.9, abs=0.06)


def test_markers_are_never_written(vocabulary: crnn.Vocabulary) -> None:
    for text in make(vocabulary).generate(300, seed=2):
        assert "SENTENCE" not in text


# ------------------------------------------------------------------------------------------------- lengths and prompts


@pytest.mark.parametrize(("least", "most"), [(0, 3), (1, 1), (4, 9), (7, 7)])
def test_lengths(least: int, most: int, vocabulary: crnn.Vocabulary) -> None:
    level = crnn.Vocabulary(vocabulary.tokens, level="whitespace")
    lengths = {len(text.split()) for text in make(level).generate(300, seed=6, min_length=least, max_length=most)}
    assert lengths == set(range(least, most + 1))


def test_a_prompt_begins_the_sentence(vocabulary: crnn.Vocabulary) -> None:
    model = bigram_model(vocabulary, CHAIN)
    assert set(model.generate(40, seed=1, prompt="The CAT")) == {"the cat sat", "the cat sat."}
    assert set(model.generate(40, seed=1, prompt=["the", "cat"])) == {"the cat sat", "the cat sat."}
    ids = vocabulary.encode(["a", "dog"], markers=False)
    assert set(model.generate(3, seed=1, prompt=ids)) == {"a dog didn't run."}
    assert model.generate(1, prompt="Didn't") == ["didn't run."]
    for empty in ("", [], None):
        assert model.generate(2, seed=3, prompt=empty) == model.generate(2, seed=3)


def test_unknown_words_of_a_prompt_are_kept_as_written(vocabulary: crnn.Vocabulary) -> None:
    model = bigram_model(vocabulary, {**CHAIN, "UNKNOWN_TOKEN": {"sat": 1.0}})
    assert set(model.generate(20, seed=0, prompt="the platypus")) == {"the platypus sat", "the platypus sat."}


def test_the_prompt_counts_among_the_words(vocabulary: crnn.Vocabulary) -> None:
    level = crnn.Vocabulary(vocabulary.tokens, level="whitespace")
    written = make(level).generate(50, seed=1, prompt="the dog sat", min_length=5, max_length=6)
    assert {len(text.split()) for text in written} == {5, 6}


def test_character_level() -> None:
    vocabulary = crnn.Vocabulary.build(["ab", "ba", "abba"], size=9, level="character")
    for text in make(vocabulary).generate(50, seed=1, prompt="ab", min_length=4, max_length=8):
        assert text.startswith("ab")
        assert set(text) <= {"a", "b"}
        assert 4 <= len(text) <= 8


def test_a_stream_goes_on_through_its_markers() -> None:
    vocabulary = crnn.Vocabulary.build(["ab", "ba"], size=9, level="character", start="\n", end="\n")
    text = make(vocabulary).generate(seed=1, until_end=False, max_length=200)[0]
    assert len(text.split("\n")) > 3
    assert set(text) == {"a", "b", "\n"}


def test_a_model_over_bare_ids() -> None:
    model = make(6)
    written = model.generate(20, prompt=[2, 3], max_length=7, seed=1)
    assert all(ids[:2] == [2, 3] and len(ids) == 7 for ids in written)
    assert {word for ids in written for word in ids} == set(range(6))
    assert all(isinstance(word, int) for word in written[0])


# ------------------------------------------------------------------------------------------------------------- choosing


P = np.array([[0.05, 0.4, 0.05, 0.3, 0.2], [0.7, 0.0, 0.1, 0.2, 0.0]])


def shares(**options) -> np.ndarray:
    uniform = (np.arange(10_000) + 0.5) / 10_000
    return np.array([np.bincount(choose(np.tile(p, (10_000, 1)), uniform, **options), minlength=5) for p in P]) / 10_000


def test_choosing_by_probability() -> None:
    np.testing.assert_allclose(shares(), P, atol=1e-4)
    np.testing.assert_allclose(shares(top_k=99, top_p=1.0), P, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.25, 0.7, 3.0])
def test_temperature(temperature: float) -> None:
    expected = P ** (1 / temperature)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares(temperature=temperature), expected, atol=2e-4)


def test_a_very_low_temperature_is_greedy_and_does_not_underflow() -> None:
    tiny = np.array([[1e-30, 2e-30, 0.0]], np.float32)
    assert choose(tiny, np.array([0.999]), temperature=1e-3).tolist() == [1]
    assert choose(tiny, np.array([0.0]), greedy=True).tolist() == [1]


def test_top_k() -> None:
    np.testing.assert_allclose(shares(top_k=2), [[0, 4 / 7, 0, 3 / 7, 0], [7 / 9, 0, 0, 2 / 9, 0]], atol=2e-4)
    np.testing.assert_array_equal(nucleus(P, 4, None)[0], [True, True, False, True, True])  # the tie: the lower id


def test_top_p() -> None:
    np.testing.assert_array_equal(nucleus(P, None, 0.65), [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(nucleus(P, None, 0.75), [[0, 1, 0, 1, 1], [1, 0, 0, 1, 0]])
    np.testing.assert_array_equal(nucleus(P, None, 1e-9), [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(nucleus(P, 2, 0.99), [[0, 1, 0, 1, 0], [1, 0, 0, 1, 0]])


def test_impossible_words_are_never_chosen() -> None:
    p = np.array([[0.0, 0.5, 0.0, 0.5, 0.0, 0.0]])
    for u, expected in ((0.0, 1), (0.49999, 1), (0.5, 3), (1.0 - 2**-53, 3), (1.0, 3)):
        assert choose(p, np.array([u])).tolist() == [expected]


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n": 0}, ValueError, "n must be at least 1"),
        ({"n": 1.5}, TypeError, "n must be a whole number"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive.*greedy=True"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature"),
        ({"top_k": 0}, ValueError, "top_k"),
        ({"top_p": 0.0}, ValueError, "top_p"),
        ({"top_p": 1.5}, ValueError, "top_p"),
        ({"min_length": -1}, ValueError, "min_length"),
        ({"min_length": 9, "max_length": 8}, ValueError, "max_length must be at least min_length = 9, got 8"),
        ({"prompt": "the cat sat", "max_length": 3}, ValueError, "prompt has 3 words, but max_length is 3"),
        ({"prompt": [1, 99]}, ValueError, "prompt: got the id 99"),
        ({"prompt": 7}, TypeError, "prompt"),
        ({"seed": 1, "rng": np.random.default_rng(1)}, ValueError, "seed and rng"),
        ({"rng": "dice"}, TypeError, "rng must be a seed or a numpy.random.Generator, got 'dice'"),
        ({"rng": -1}, ValueError, "rng must be a seed"),
        ({"greedy": "no"}, TypeError, "greedy"),
        ({"allow_unknown": 2}, TypeError, "allow_unknown"),
        ({"colour": "blue"}, TypeError, "colour"),
    ],
)
def test_bad_options(options, error, match, vocabulary: crnn.Vocabulary) -> None:
    with pytest.raises(error, match=match):
        make(vocabulary).generate(**options)


def test_bare_ids_need_a_prompt() -> None:
    for prompt in (None, "text"):
        with pytest.raises(ValueError, match="prompt: a model without a vocabulary needs ids"):
            make(6).generate(prompt=prompt)


def test_broken_models_are_told(vocabulary: crnn.Vocabulary) -> None:
    model = make(vocabulary)
    model.params["output.bias"][2] = np.nan
    with pytest.raises(ValueError, match="probabilities are NaN"):
        model.generate()
    with pytest.raises(ValueError, match="no word is left to draw"):
        bigram_model(vocabulary, {"SENTENCE_START": {"UNKNOWN_TOKEN": 1.0}}).generate()


def test_what_goes_on_beyond_the_end_has_the_start_marker_too(vocabulary: crnn.Vocabulary) -> None:
    chain = {"SENTENCE_START": {"the": 1.0}, "the": {"cat": 1.0}, "cat": {"SENTENCE_END": 1.0}}
    model = bigram_model(vocabulary, {**chain, "SENTENCE_END": {"SENTENCE_START": 1.0}})
    [text] = model.generate(seed=1, until_end=False, max_length=6)
    assert text.split() == ["the", "cat", "SENTENCE_END", "SENTENCE_START", "the", "cat"]


def test_what_top_p_reaches_exactly_leaves_out_the_next_word() -> None:
    p = np.array([[0.25, 0.5, 0.125, 0.125]])
    assert nucleus(p, None, 0.5).tolist() == [[False, True, False, False]]
    assert nucleus(p, None, 0.75).tolist() == [[True, True, False, False]]
