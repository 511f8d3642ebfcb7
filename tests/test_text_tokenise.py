import time

import nltk.data
import pytest

from crnn.text import sentences, tokenise, words
from crnn.text.tokenise import _before_stops, installed_punkt, split_paragraphs, train_punkt

DOCUMENTS = ["Hello there, World! How ARE you?", "", "It's fine.\n\nA new paragraph\nruns on"]
CUT = [
    ["hello", "there", ",", "world", "!"],
    ["how", "are", "you", "?"],
    ["it", "'s", "fine", "."],
    ["a", "new", "paragraph", "runs", "on"],
]


def test_sentences_and_words():
    assert sentences(DOCUMENTS) == CUT


def test_case_is_kept_when_asked():
    assert sentences(DOCUMENTS, lowercase=False)[1] == ["How", "ARE", "you", "?"]


def test_a_generator_is_read_once_and_completely(monkeypatch):
    monkeypatch.setattr("crnn.text.tokenise.TRAINING_CHARACTERS", 20)
    seen = []

    def generate():
        for text in DOCUMENTS:
            seen.append(text)
            yield text

    assert sentences(generate()) == CUT
    assert seen == DOCUMENTS


def test_equal_words_share_one_object():
    first, second = sentences(["zebra runs.", "zebra runs."])
    assert all(a is b for a, b in zip(first, second, strict=True))


def test_character_level_keeps_every_character_and_empty_documents():
    assert sentences(["Ab c", "", "\tD"], level="character") == [["a", "b", " ", "c"], [], ["\t", "d"]]


def test_whitespace_level():
    texts = ["no it was n't <unk> \n next line ", "", "N"]
    assert sentences(texts, level="whitespace", lowercase=False) == [
        ["no", "it", "was", "n't", "<unk>"],
        ["next", "line"],
        ["N"],
    ]


def test_one_word_sentences_stay():
    assert sentences(["Yes. No."]) == [["yes", "."], ["no", "."]]
    assert sentences(["Go"]) == [["go"]]


@pytest.mark.parametrize("level", ["word", "character", "whitespace"])
@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_empty_corpus(level, documents):
    with pytest.raises(ValueError, match=rf"corpus is empty \({len(documents)} documents"):
        sentences(documents, level=level)


def test_blank_documents_are_empty_words():
    with pytest.raises(ValueError, match="corpus is empty"):
        sentences(["  \n \n", "\t"])


def test_wrong_arguments():
    with pytest.raises(TypeError, match="one string"):
        sentences("Hello.")
    with pytest.raises(TypeError, match="document 1 is int"):
        sentences(["a", 3])
    with pytest.raises(ValueError, match="level"):
        sentences(["a"], level="syllable")
    with pytest.raises(TypeError, match="text"):
        words(["a"])
    with pytest.raises(ValueError, match="level"):
        words("a", level="syllable")


def test_words_of_a_prompt():
    assert words("Don't stop. Go") == ["do", "n't", "stop.", "go"]
    assert words("Ab", level="character", lowercase=False) == ["A", "b"]
    assert words(" A  b ", level="whitespace") == ["a", "b"]


def test_progress_ends_with_the_number_of_sentences():
    calls = []
    result = sentences([f"Sentence {i}. Another." for i in range(600)], progress=calls.append)
    assert calls[-1] == len(result)
    assert len(calls) == 3


def test_paragraphs():
    assert split_paragraphs("a\nb\n \n\nc\r\n\r\nd") == ["a\nb", "c", "d"]
    assert split_paragraphs(" \n ") == []


def abbreviation_corpus():
    for number in range(40):
        yield f"We met qnty. {number} people near the river. They were kind. Then qnty. half of them left us."
        yield "The qnty. value is enough. Nobody asked for more."


def test_punkt_learns_abbreviations_from_the_corpus(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    assert installed_punkt() is None
    splitter = train_punkt(abbreviation_corpus())
    assert list(splitter.tokenize("It took qnty. ten days. Fine.")) == ["It took qnty. ten days.", "Fine."]
    assert ["the", "qnty", ".", "value", "is", "enough", "."] not in sentences(abbreviation_corpus())
    assert ["the", "qnty.", "value", "is", "enough", "."] in sentences(abbreviation_corpus())


def test_punkt_learns_from_the_first_characters_alone(monkeypatch):
    learned = []

    def train(texts):
        learned.extend(texts)
        return train_punkt(learned)

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(tokenise, "TRAINING_CHARACTERS", 20)
    monkeypatch.setattr(tokenise, "train_punkt", train)
    documents = ["It is a dog.", "That is one huge document. It goes on and on.", "The last."]
    assert len(sentences(iter(documents))) == 4
    assert learned == ["It is a dog.", "That is "]


def test_short_texts_teach_no_abbreviations(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    assert sentences(["I think this is it. Really!"]) == [
        ["i", "think", "this", "is", "it", "."],
        ["really", "!"],
    ]
    assert sentences(["Ask Dr. Miller about it. He knows."])[0] == ["ask", "dr.", "miller", "about", "it", "."]


def test_the_installed_model_is_used(tmp_path, monkeypatch):
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("qnty\n", encoding="utf-8")
    for name in ("sent_starters.txt", "collocations.tab", "ortho_context.tab"):
        (folder / name).write_text("", encoding="utf-8")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert sentences(["It took qnty. ten days. Fine."]) == [
        ["it", "took", "qnty.", "ten", "days", "."],
        ["fine", "."],
    ]


def test_a_damaged_model_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert sentences(DOCUMENTS) == CUT


def test_what_stands_before_stops():
    text = 'Mr. Smith (e.g. "J. R.") said ... .net is it.or.so now,yes. end'
    assert list(_before_stops(text)) == ["mr", "e.g", "j", "r", "..", "it.or", "yes"]


def test_a_text_without_blanks_takes_linear_time():
    """Backtracking from every character took 17 s for 80,000 characters of base64."""
    started = time.perf_counter()
    assert list(_before_stops("x" * 300_000)) == []
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\r\r", "\n \t\n", "\r \r"])
def test_a_blank_line_ends_a_sentence_whatever_ends_lines(blank):
    assert sentences([f"one two{blank}three"]) == [["one", "two"], ["three"]]
