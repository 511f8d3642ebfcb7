import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crnn
from crnn.text import SENTENCE_END, SENTENCE_START, UNKNOWN_TOKEN, Vocabulary

SENTENCES = [["b", "a", "c"], ["a", "b"], ["a", "d"], ["e"]]


def test_order_by_count_then_alphabet_with_unknown_last():
    vocabulary = crnn.Vocabulary.build(SENTENCES, size=100)
    # counts: the markers 4 each, a 3, b 2, and c, d, e one each
    assert vocabulary.tokens == (SENTENCE_END, SENTENCE_START, "a", "b", "c", "d", "e", UNKNOWN_TOKEN)
    assert vocabulary.counts == {SENTENCE_END: 4, SENTENCE_START: 4, "a": 3, "b": 2, "c": 1, "d": 1, "e": 1}
    assert (vocabulary.end_id, vocabulary.start_id, vocabulary.unknown_id) == (0, 1, 7)


def test_the_order_of_the_text_does_not_matter():
    shuffled = [list(sentence) for sentence in SENTENCES]
    random.Random(5).shuffle(shuffled)
    for sentence in shuffled:
        sentence.reverse()
    for size in range(4, 9):
        assert Vocabulary.build(shuffled, size).tokens == Vocabulary.build(SENTENCES, size).tokens


def test_size_counts_everything():
    vocabulary = Vocabulary.build(SENTENCES, size=6)
    assert vocabulary.tokens == (SENTENCE_END, SENTENCE_START, "a", "b", "c", UNKNOWN_TOKEN)
    assert len(vocabulary) == 6
    assert vocabulary.words_found == 5
    assert vocabulary.note() is None


def test_markers_stay_in_when_words_are_more_frequent():
    vocabulary = Vocabulary.build([["x", "y", "z"] * 5], size=4)
    assert vocabulary.tokens == ("x", SENTENCE_END, SENTENCE_START, UNKNOWN_TOKEN)


def test_larger_than_the_corpus_is_the_corpus():
    vocabulary = Vocabulary.build(SENTENCES, size=50)
    assert len(vocabulary) == 8
    assert vocabulary.note() == ("the text has only 5 different tokens, so the vocabulary has 8 entries instead of 50")


def test_no_size_means_all():
    vocabulary = Vocabulary.build(SENTENCES, size=None)
    assert vocabulary.tokens == Vocabulary.build(SENTENCES, size=100).tokens
    assert vocabulary.note() is None


def test_encode_puts_markers_around():
    vocabulary = Vocabulary.build(SENTENCES)
    ids = vocabulary.encode(["a", "nowhere", "b"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, 2, 7, 3, 0]
    assert vocabulary.decode(ids) == [SENTENCE_START, "a", UNKNOWN_TOKEN, "b", SENTENCE_END]
    assert vocabulary.decode(ids, markers=False) == ["a", UNKNOWN_TOKEN, "b"]
    assert vocabulary.encode(["a", "b"], markers=False).tolist() == [2, 3]
    assert vocabulary.encode([]).tolist() == [1, 0]


def test_text_for_reading():
    vocabulary = Vocabulary.build([["do", "n't", "go", "."]])
    assert vocabulary.text(vocabulary.encode(["do", "n't", "go", "."])) == "don't go."


def test_lookups():
    vocabulary = Vocabulary.build(SENTENCES)
    assert vocabulary["a"] == vocabulary.id("a") == 2
    assert vocabulary[2] == vocabulary.token(2) == "a"
    assert vocabulary.id("nowhere") == vocabulary.unknown_id
    assert "a" in vocabulary
    assert "nowhere" not in vocabulary
    assert list(vocabulary) == list(vocabulary.tokens)
    for number in (-1, 8):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            vocabulary.token(number)


def test_one_marker_for_both_ends_and_an_unknown_of_the_text():
    text = [["the", "<unk>", "sat"], ["the", "<unk>"], ["the"]]
    vocabulary = Vocabulary.build(text, start="<eos>", end="<eos>", unknown="<unk>", level="whitespace")
    assert vocabulary.tokens == ("<eos>", "the", "<unk>", "sat")
    assert vocabulary.encode_stream(text).tolist() == [1, 2, 3, 0, 1, 2, 0, 1, 0]
    assert vocabulary.encode(text[1]).tolist() == [0, 1, 2, 0]
    small = Vocabulary.build([["p", "q", "r", "<unk>"], ["p", "q", "r"]], size=4, start="$", end="$", unknown="<unk>")
    assert small.tokens == ("$", "p", "q", "<unk>")


def test_stream_with_two_markers_grows_over_its_first_block():
    text = [["w"] * 70_000, [], ["v"]]
    vocabulary = Vocabulary.build(text)
    row = vocabulary.encode_stream(text)
    assert row.dtype == np.int64
    assert np.array_equal(row, np.concatenate([vocabulary.encode(sentence) for sentence in text]))


def test_characters():
    vocabulary = Vocabulary.build(["ab\tb", "", "ba"], level="character", start="\n", end="\n")
    assert vocabulary.tokens == ("\n", "b", "a", "\t", UNKNOWN_TOKEN)
    row = vocabulary.encode_stream(["ab\tb", "", "ba"])
    assert vocabulary.text(row) == "ab\tb\n\nba\n"
    marked = Vocabulary.build(["ab"], level="character")
    assert marked.text(marked.encode("ba")) == "ba"


def test_round_trip_through_a_file(tmp_path):
    text = [["ü", "東京", "\u2028", '"', "a\\"], ["a"]]
    vocabulary = Vocabulary.build(text, size=30, lowercase=False)
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert loaded == vocabulary
    assert loaded.tokens == vocabulary.tokens
    assert loaded.counts == vocabulary.counts
    assert not loaded.lowercase
    assert loaded.note() == vocabulary.note()
    assert loaded != Vocabulary.build(text, size=30)


def test_half_an_emoji_in_a_file(tmp_path):
    vocabulary = Vocabulary.build([["ü", "\ud83d"]])
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary
    (tmp_path / "v.json").write_text(json.dumps(Vocabulary.build([["ü"]]).to_dict(), ensure_ascii=False), "utf-8")
    assert "ü" in Vocabulary.load(tmp_path / "v.json")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 99},
        {"version": None},
        {"tokens": None},
        {"tokens": ["a", "a"]},
        {"counts": [1]},
        {"counts": "many"},
        {"lowercase": "false"},
        {"words_found": float("inf")},
        {"size_wanted": None},
        {"unknown": "not there"},
        {"level": "syllable"},
    ],
)
def test_damaged_files(tmp_path, change):
    values = Vocabulary.build(SENTENCES).to_dict() | change
    (tmp_path / "v.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=r"v\.json: not a readable vocabulary"):
        Vocabulary.load(tmp_path / "v.json")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": "crnn-vocabulary", "version": 1}']
)
def test_foreign_files(tmp_path, content):
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.json: not a readable vocabulary"):
        Vocabulary.load(tmp_path / "v.json")


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=6).filter(any), st.integers(4, 30))
def test_any_text(text, size):
    vocabulary = Vocabulary.build(text, size)
    assert len(vocabulary) <= size
    assert {SENTENCE_START, SENTENCE_END, UNKNOWN_TOKEN} <= set(vocabulary)
    everything = Vocabulary.build(text, None)
    for sentence in text:
        assert everything.decode(everything.encode(sentence), markers=False) == [
            word for word in sentence if word not in (SENTENCE_START, SENTENCE_END)
        ]
        known = [word if word in vocabulary else UNKNOWN_TOKEN for word in sentence]
        assert vocabulary.decode(vocabulary.encode(sentence))[1:-1] == known
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"the text is empty \(2 sentences"):
        Vocabulary.build([[], []])
    with pytest.raises(ValueError, match="at least 4"):
        Vocabulary.build(SENTENCES, size=3)
    for size in (8.0, True, "8"):
        with pytest.raises(TypeError, match="size"):
            Vocabulary.build(SENTENCES, size=size)
    with pytest.raises(TypeError, match="sentence 1 is the string 'plain"):
        Vocabulary.build([["a"], "plain text"])
    with pytest.raises(TypeError, match="wanted a list of words"):
        Vocabulary.build(SENTENCES).encode("plain text")
    with pytest.raises(TypeError, match="one string"):
        Vocabulary("abc")
    with pytest.raises(TypeError, match="entry 1"):
        Vocabulary(["a", 3])
    with pytest.raises(ValueError, match="entry 0 is an empty string"):
        Vocabulary([""])
    with pytest.raises(ValueError, match="more than once"):
        Vocabulary(["a", "b", "a"])
    with pytest.raises(ValueError, match="start: the token"):
        Vocabulary(["a", SENTENCE_END, UNKNOWN_TOKEN])
    with pytest.raises(ValueError, match="sentence marker already"):
        Vocabulary(["a", "b"], start="a", end="b", unknown="a")


@pytest.mark.parametrize("markers", [True, False])
def test_only_strings_are_encoded(markers):
    vocabulary = Vocabulary.build(SENTENCES)
    for sentence, message in (
        (b"ab", "sentence: token 0 is 97, wanted a string"),
        ([b"a", b"b"], "sentence: token 0 is b'a', wanted a string"),
        (["a", "nowhere", None], "sentence: token 2 is None, wanted a string"),
        (np.array([2, 3]), r"sentence: token 0 is np\.int64\(2\), wanted a string"),
        (["a", ["b"]], r"sentence: token 1 is \['b'\], wanted a string"),
    ):
        with pytest.raises(TypeError, match=message):
            vocabulary.encode(sentence, markers=markers)
    assert vocabulary.encode(np.array(["a", "b"]), markers=False).tolist() == [2, 3]


def test_only_strings_are_counted():
    for sentence, message in (
        ([b"a"], "sentences: sentence 1, token 0 is b'a', wanted a string"),
        (["a", None], "sentences: sentence 1, token 1 is None, wanted a string"),
        ([1, 2], "sentences: sentence 1, token 0 is 1, wanted a string"),
        ([["a", "b"]], r"sentences: sentence 1, token 0 is \['a', 'b'\], wanted a string"),
    ):
        with pytest.raises(TypeError, match=message):
            Vocabulary.build([["a"], sentence, ["b"]])


def test_decode_refuses_foreign_ids():
    vocabulary = Vocabulary.build(SENTENCES)
    assert vocabulary.decode([]) == []
    assert vocabulary.decode(iter([2, 3])) == ["a", "b"]
    for wrong in (8, -1):
        with pytest.raises(ValueError, match=f"ids: {wrong} at position 1"):
            vocabulary.decode([0, wrong])
    with pytest.raises(TypeError, match="integers"):
        vocabulary.decode([0.5])
    with pytest.raises(ValueError, match="shape"):
        vocabulary.decode(np.zeros((2, 2), int))


def test_markers_in_the_text_count_as_well():
    vocabulary = Vocabulary.build([["a", SENTENCE_END, "b"], ["b", SENTENCE_END], ["b"]])
    assert vocabulary.counts == {SENTENCE_END: 5, SENTENCE_START: 3, "a": 1, "b": 3}
