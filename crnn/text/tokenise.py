"""Documents to tokenised sentences, with NLTK's sentence and word tokenisers.

Sentences are found by Punkt, which has to know a language's abbreviations. Where NLTK's English model is installed it
is used; everywhere else Punkt learns the abbreviations from the corpus at hand, without supervision, which is what the
algorithm was made for (Kiss & Strunk 2006, Computational Linguistics 32(4)). Nothing is downloaded.

Sentences are cut before the text is lower-cased, because capital letters are part of Punkt's evidence.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from typing import Any, Protocol

from crnn.text.vocabulary import LEVELS

__all__ = ["SentenceSplitter", "installed_punkt", "sentences", "split_paragraphs", "train_punkt", "words"]

# Punkt's statistics settle long before this; more text only costs time (3 s per 1.5 million characters).
TRAINING_CHARACTERS = 2_000_000
# What a short text makes Punkt believe about a word seen once or twice is noise.
LEAST_OCCURRENCES = 3
# Known without evidence, so that a prompt or a short text is cut sensibly too.
_ABBREVIATIONS = {"a.m", "al", "approx", "cf", "dr", "e.g", "etc", "gen", "i.e", "inc", "jr", "ltd", "mr", "mrs"} | {
    *("ms", "p.m", "prof", "rep", "rev", "sen", "sr", "st", "u.k", "u.s", "vs")
}
_PROGRESS_EVERY = 256
_RUN = re.compile(r"[^\s\"'()\[\]{}“”‘’,;:!?]+")
_BLANK_LINE = re.compile(r"\r?\n[ \t]*\r?\n\s*|\r[ \t]*\r\s*")


class SentenceSplitter(Protocol):
    """What is wanted of a sentence tokeniser; NLTK's have it."""

    def tokenize(self, text: str) -> Iterable[str]:
        """Cut a text into sentences."""


def sentences(
    documents: Iterable[str],
    *,
    level: str = "word",
    lowercase: bool = True,
    splitter: SentenceSplitter | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Cut documents into sentences and these into tokens, without markers (`Vocabulary.encode` adds them).

    Parameters
    ----------
    documents
        Strings. Read once; Punkt learns from the first two million characters, and the documents that hold them are
        kept meanwhile.
    level
        "word": NLTK's sentence and word tokenisation; blank lines always end a sentence. "character": a sentence is a
        whole document, its tokens are the characters. "whitespace": a sentence is a line, its tokens are what blanks
        separate, for text that has been tokenised already; empty lines are left out.
    lowercase
        Lower-case every token.
    splitter
        A sentence tokeniser. None: NLTK's installed English Punkt model, else Punkt trained on `documents`.
    progress
        Called as ``progress(sentences_so_far)`` every few hundred documents and at the end.

    Returns
    -------
    list of list of str
        Equal tokens are one string object, so a text costs about 8 bytes per token.

    Raises
    ------
    TypeError
        `documents` is one string, or holds something that is not a string.
    ValueError
        An unknown `level`, or no token in all the documents.
    """
    if isinstance(documents, str):
        raise TypeError("documents: got one string, wanted several, for example [text]")
    if level not in LEVELS:
        raise ValueError(f"level: got {level!r}, wanted one of {', '.join(map(repr, LEVELS))}")
    texts = _checked(documents)
    if level == "word":
        if splitter is None:
            splitter, texts = _punkt_for(texts)
        cut = _word_cutter(splitter, lowercase)
    else:
        cut = _character_cutter(lowercase) if level == "character" else _whitespace_cutter(lowercase)
    result: list[list[str]] = []
    count = 0
    for count, text in enumerate(texts, start=1):
        result.extend(cut(text))
        if progress is not None and count % _PROGRESS_EVERY == 0:
            progress(len(result))
    if progress is not None:
        progress(len(result))
    if not any(result):
        raise ValueError(f"documents: the corpus is empty ({count} documents, no word in any of them)")
    return result


def words(text: str, *, level: str = "word", lowercase: bool = True) -> list[str]:
    """The tokens of one piece of text that is not to be cut into sentences, such as a prompt.

    Raises
    ------
    TypeError, ValueError
        `text` is not a string, or an unknown `level`.
    """
    if not isinstance(text, str):
        raise TypeError(f"text: got {type(text).__name__}, wanted a string")
    if level not in LEVELS:
        raise ValueError(f"level: got {level!r}, wanted one of {', '.join(map(repr, LEVELS))}")
    text = text.lower() if lowercase else text
    if level == "character":
        return list(text)
    if level == "whitespace":
        return text.split()
    return [str(word) for word in _word_tokeniser().tokenize(text)]


def split_paragraphs(text: str) -> list[str]:
    """The parts of a text between blank lines, empty ones left out."""
    return [part for part in _BLANK_LINE.split(text.strip()) if part]


# ---------------------------------------------------------------------------------------------------- Punkt


def installed_punkt() -> SentenceSplitter | None:
    """NLTK's English Punkt model when this machine has it (``punkt_tab``: tables of text, no pickle), else None."""
    import nltk.data
    from nltk.tokenize import punkt

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
        model: SentenceSplitter = punkt.PunktTokenizer("english")
    except (LookupError, OSError, ValueError, AttributeError):
        return None  # absent or damaged: the corpus itself is the way on
    return model


def train_punkt(texts: Iterable[str]) -> SentenceSplitter:
    """A sentence tokeniser that has learned abbreviations and sentence starters from `texts`.

    A word counts as an abbreviation where Punkt says so and the text has it with a full stop three times at least; the
    commonest English ones are known in any case.
    """
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    text = "\n\n".join(texts)
    trainer = PunktTrainer()
    trainer.train(text, finalize=False)
    trainer.finalize_training()
    parameters = trainer.get_params()
    seen = Counter(_before_stops(text))
    learned = {word for word in parameters.abbrev_types if seen[word] >= LEAST_OCCURRENCES}
    parameters.abbrev_types = learned | _ABBREVIATIONS
    splitter: SentenceSplitter = PunktSentenceTokenizer(parameters)
    return splitter


def _before_stops(text: str) -> Iterator[str]:
    """What stands before the last stop of each run of letters, lower-cased; linear, however long a run is."""
    for run in _RUN.finditer(text):
        before, stop, _ = run.group().rpartition(".")
        if stop and before:
            yield before.lower()


def _punkt_for(texts: Iterator[str]) -> tuple[SentenceSplitter, Iterator[str]]:
    """The splitter for these texts, and the texts again from the start."""
    model = installed_punkt()
    if model is not None:
        return model, texts
    taken: list[str] = []
    sample: list[str] = []
    left = TRAINING_CHARACTERS
    for text in texts:
        taken.append(text)
        sample.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    return train_punkt(sample), chain(_drain(taken), texts)


def _drain(items: list[str]) -> Iterator[str]:
    items.reverse()
    while items:
        yield items.pop()


# ---------------------------------------------------------------------------------------------------- cutters


@cache
def _word_tokeniser() -> Any:
    # word_tokenize would look for sentences once more, and for an installed model each time
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _word_cutter(splitter: SentenceSplitter, lowercase: bool) -> Callable[[str], Iterator[list[str]]]:
    tokenize = _word_tokeniser().tokenize

    def cut(text: str) -> Iterator[list[str]]:
        for paragraph in split_paragraphs(text):
            for sentence in splitter.tokenize(paragraph):
                tokens = tokenize(sentence.lower() if lowercase else sentence)
                if tokens:
                    yield [sys.intern(token) for token in tokens]

    return cut


def _character_cutter(lowercase: bool) -> Callable[[str], Iterator[list[str]]]:
    def cut(text: str) -> Iterator[list[str]]:
        yield [sys.intern(character) for character in (text.lower() if lowercase else text)]

    return cut


def _whitespace_cutter(lowercase: bool) -> Callable[[str], Iterator[list[str]]]:
    def cut(text: str) -> Iterator[list[str]]:
        for line in text.splitlines():
            tokens = (line.lower() if lowercase else line).split()
            if tokens:
                yield [sys.intern(token) for token in tokens]

    return cut


def _checked(documents: Iterable[str]) -> Iterator[str]:
    for number, document in enumerate(documents):
        if not isinstance(document, str):
            raise TypeError(f"documents: document {number} is {type(document).__name__}, wanted a string")
        yield document
