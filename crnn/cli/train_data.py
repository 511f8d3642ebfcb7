"""From text files to training, validation and test data, as a recipe wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crnn.cli.corpus import Files, Reading, unknown_tokens

if TYPE_CHECKING:
    from crnn.data import TokenData
    from crnn.recipes import Recipe
    from crnn.text import Vocabulary

__all__ = ["Prepared", "prepare", "split"]

Sentence = Sequence[str]

# The one marker between sentences where a text is read as a stream: what stands there in the text anyway.
_STREAM_MARKERS = {"character": "\n", "whitespace": "<eos>", "word": "SENTENCE_END"}


@dataclass
class Prepared:
    """Everything that a training run reads.

    Attributes
    ----------
    vocabulary
        Built from the training part.
    train, valid, test
        The data; None where there is none.
    sentences
        Of each part, by name.
    unknown
        Fraction of each part's tokens that are outside the vocabulary, by name.
    """

    vocabulary: Vocabulary
    train: TokenData
    valid: TokenData | None
    test: TokenData | None
    sentences: dict[str, int]
    unknown: dict[str, float]


def prepare(
    files: Files, reading: Reading, recipe: Recipe, *, first: int | None, valid_on_train: bool, seed: int
) -> Prepared:
    """Read the files and make the data.

    Parameters
    ----------
    files, reading, recipe
        What, how, and for what.
    first
        Train on the first so many sentences only; the vocabulary comes from all of them.
    valid_on_train
        The training data validates too.
    seed
        For the order of the sentences, where the recipe shuffles.

    Raises
    ------
    OSError, ValueError
        Files that cannot be read or used, one pipe for two parts, nothing left to train on, a part for validation that
        is not between none and half of the text.
    """
    if not 0.0 <= recipe.valid_fraction <= 0.5:
        raise ValueError(f"--valid-fraction: got {recipe.valid_fraction}, wanted 0 (none) to 0.5")
    _check_pipes(files)
    parts: dict[str, list[list[str]]] = {"train": reading.sentences(files.train)}
    if files.valid is not None:
        parts["valid"] = reading.sentences(files.valid)
    elif recipe.valid_fraction > 0.0 and not valid_on_train:
        pieces = 0 if recipe.layout != "stream" else recipe.batch_size if recipe.valid_split == "streams" else 1
        parts["train"], parts["valid"] = split(parts["train"], recipe.valid_fraction, pieces)
    if files.test is not None:
        parts["test"] = reading.sentences(files.test)
    vocabulary = _vocabulary(parts["train"], recipe, reading.lowercase)
    if first is not None:
        if first < 1:
            raise ValueError(f"--sentences: got {first}, wanted at least 1")
        del parts["train"][first:]
    counts = {name: len(sentences) for name, sentences in parts.items()}
    unknown: dict[str, float] = {}
    data: dict[str, TokenData] = {}
    for name in tuple(parts):
        # one part after the other: a part's words are given up once it has ids
        ids = _encode(vocabulary, parts.pop(name), recipe)
        rows = [ids] if recipe.layout == "stream" else ids
        unknown[name] = unknown_tokens(vocabulary, rows) / sum(map(len, rows))
        data[name] = recipe.training_data(ids, seed) if name == "train" else recipe.evaluation_data(ids)
        if name == "train" and valid_on_train:
            data["valid"] = recipe.evaluation_data(ids)
    return Prepared(vocabulary, data["train"], data.get("valid"), data.get("test"), counts, unknown)


def _check_pipes(files: Files) -> None:
    """A pipe gives its text once: two parts cannot come from it."""
    pipes = [path for path in (files.train, files.valid, files.test) if path is not None and path.is_fifo()]
    for first, second in combinations(pipes, 2):
        if first.samefile(second):
            raise ValueError(f"{second}: a pipe can be read only once, but two parts of the corpus are to come from it")


def split(sentences: list[list[str]], fraction: float, pieces: int) -> tuple[list[list[str]], list[list[str]]]:
    """Training and validation sentences: every n-th (`pieces` 0), or the end of each of so many pieces of the text.

    `fraction` is above 0 and at most 0.5.

    Raises
    ------
    ValueError
        Too few sentences to split.
    """
    if len(sentences) < 2:
        raise ValueError(
            f"the text has {len(sentences)} sentence(s), too few to keep a part for validation: use --valid-fraction 0 "
            "(sentences are found by their punctuation and capitals; --level whitespace takes a line for one)"
        )
    if not pieces:
        step = round(min(1.0 / fraction, len(sentences)))
        valid = sentences[step - 1 :: step]
        del sentences[step - 1 :: step]
        return sentences, valid
    ends = list(accumulate(len(sentence) + 1 for sentence in sentences))
    piece = ends[-1] / pieces
    # a sentence belongs where its last token stands
    held_out = [(end - 1) % piece >= (1.0 - fraction) * piece for end in ends]
    if not any(held_out):
        held_out[-1] = True
    if all(held_out):
        held_out[0] = False
    return [s for s, out in zip(sentences, held_out) if not out], [s for s, out in zip(sentences, held_out) if out]


def _vocabulary(sentences: list[list[str]], recipe: Recipe, lowercase: bool) -> Vocabulary:
    from crnn.text import SENTENCE_END, SENTENCE_START, UNKNOWN_TOKEN, Vocabulary

    marker = _STREAM_MARKERS[recipe.level] if recipe.layout == "stream" else None
    return Vocabulary.build(
        sentences,
        recipe.vocabulary_size,
        start=marker or SENTENCE_START,
        end=marker or SENTENCE_END,
        unknown="<unk>" if recipe.level == "whitespace" else UNKNOWN_TOKEN,
        level=recipe.level,
        lowercase=lowercase,
    )


def _encode(vocabulary: Vocabulary, sentences: list[list[str]], recipe: Recipe) -> Any:
    if recipe.layout == "stream":
        return vocabulary.encode_stream(sentences)
    return [vocabulary.encode(sentence) for sentence in sentences]


def describe_source(files: Files) -> str:
    """Where the text comes from, for people."""
    if files.train is None:
        return "Python's own documentation (the language reference and the standard library's docstrings)"
    others = [f"{name} {path}" for name, path in (("valid", files.valid), ("test", files.test)) if path is not None]
    return ", ".join([str(Path(files.train)), *others])
