"""Words to ids and back.

The entries are numbered by how often they occur. The sentence markers count among the words, once per sentence each,
and the entry for unknown words comes last, so a vocabulary of 8000 holds 7999 entries that occur in the text plus
`UNKNOWN_TOKEN`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crnn.atomic import atomic_write

__all__ = ["LEVELS", "SENTENCE_END", "SENTENCE_START", "UNKNOWN_TOKEN", "Vocabulary"]

SENTENCE_START = "SENTENCE_START"
SENTENCE_END = "SENTENCE_END"
UNKNOWN_TOKEN = "UNKNOWN_TOKEN"

LEVELS = ("word", "character", "whitespace")

_FORMAT = "crnn-vocabulary"
_VERSION = 1


class _Ids(dict[str, int]):
    """Token -> id; every other string has the id `unknown`. The types of tokens are looked at on a miss only."""

    unknown: int

    def __missing__(self, token: object) -> int:
        if isinstance(token, str):
            return self.unknown
        raise TypeError(f"token: got {token!r}, wanted a string")


class Vocabulary:
    """An ordered set of tokens with ids 0 .. len-1.

    Parameters
    ----------
    tokens
        The entries in the order of their ids. Must contain the three special tokens; no entry twice.
    start, end, unknown
        The special tokens. `start` and `end` may be one and the same token: then a marker stands between sentences,
        which is how the Penn Treebank experiments (``"<eos>"``) and character models of whole texts (``"\\n"``) read
        a text as one stream.
    level
        How text was cut into these tokens, one of "word" (NLTK), "character", "whitespace". Needed again whenever
        raw text meets the model: prompts, evaluation, printing.
    lowercase
        Whether the text was lower-cased first.
    counts
        How often each entry occurred in the text, for entries where that is known.
    words_found
        How many different tokens the text had, before the cut to `size`. 0 when unknown.
    size_wanted
        The `size` that was asked for; larger than ``len(vocabulary)`` when the text had too few different tokens.

    Raises
    ------
    TypeError, ValueError
        An entry that is not a non-empty string, a repeated entry, a special token that is missing, an unknown level.
    """

    def __init__(
        self,
        tokens: Iterable[str],
        *,
        start: str = SENTENCE_START,
        end: str = SENTENCE_END,
        unknown: str = UNKNOWN_TOKEN,
        level: str = "word",
        lowercase: bool = True,
        counts: Mapping[str, int] | None = None,
        words_found: int = 0,
        size_wanted: int | None = None,
    ) -> None:
        if isinstance(tokens, str):
            raise TypeError("tokens: got one string, wanted a sequence of strings")
        self._tokens = tuple(tokens)
        for position, token in enumerate(self._tokens):
            if not isinstance(token, str):
                raise TypeError(f"tokens: entry {position} is {token!r}, wanted a string")
            if not token:
                raise ValueError(f"tokens: entry {position} is an empty string")
        if level not in LEVELS:
            raise ValueError(f"level: got {level!r}, wanted one of {', '.join(map(repr, LEVELS))}")
        self._ids = _Ids((token, number) for number, token in enumerate(self._tokens))
        if len(self._ids) != len(self._tokens):
            twice = next(token for number, token in enumerate(self._tokens) if self._ids[token] != number)
            raise ValueError(f"tokens: {twice!r} stands there more than once")
        for name, token in (("start", start), ("end", end), ("unknown", unknown)):
            if token not in self._ids:
                raise ValueError(f"{name}: the token {token!r} is not among the {len(self._tokens)} entries")
        if unknown in (start, end):
            raise ValueError(f"unknown: {unknown!r} is a sentence marker already")
        self.start_token = start
        self.end_token = end
        self.unknown_token = unknown
        self._ids.unknown = self._ids[unknown]
        self.level = level
        self.lowercase = bool(lowercase)
        self.counts: dict[str, int] = dict(counts or {})
        self.words_found = int(words_found)
        self.size_wanted = len(self._tokens) if size_wanted is None else int(size_wanted)

    # ------------------------------------------------------------------------------------------------ building

    @classmethod
    def build(
        cls,
        sentences: Iterable[Sequence[str]],
        size: int | None = 8000,
        *,
        start: str = SENTENCE_START,
        end: str = SENTENCE_END,
        unknown: str = UNKNOWN_TOKEN,
        level: str = "word",
        lowercase: bool = True,
    ) -> Vocabulary:
        """The `size` - 1 most frequent entries of a text, and the one for everything else.

        Entries are ordered by count, equal counts alphabetically (by code point), so the same text always gives the
        same ids. Both markers are always in, whatever `size` cuts off. When the text has fewer different tokens than
        `size`, the vocabulary is simply smaller; `note()` says so.

        Parameters
        ----------
        sentences
            Tokenised sentences without markers, as `crnn.text.sentences` gives them: one pass.
        size
            Entries wanted, unknown and markers included; at least 4 (markers, unknown, and a word). None: all.
        start, end, unknown
            The special tokens. An `unknown` that already occurs in the text (``"<unk>"`` in the Penn Treebank) takes
            its place by frequency instead of the last one.
        level, lowercase
            How `sentences` were made; remembered, not applied here.

        Raises
        ------
        TypeError
            A sentence that is a plain string (outside character level), a token that is not a string, a `size` that is
            not an integer.
        ValueError
            `size` below 4, or no token in the whole text.
        """
        if size is not None and (isinstance(size, bool) or not isinstance(size, (int, np.integer))):
            raise TypeError(f"size: got {size!r}, wanted an integer or None")
        if size is not None and size < 4:
            raise ValueError(f"size: got {size}, wanted at least 4 (two markers, {unknown!r} and one word)")
        counts: Counter[str] = Counter()
        number = 0
        for sentence in sentences:
            if isinstance(sentence, str) and level != "character":
                raise TypeError(
                    f"sentences: sentence {number} is the string {_shorten(sentence)}, wanted a list of words "
                    "(crnn.text.sentences makes them)"
                )
            seen = len(counts)
            try:
                counts.update(iter(sentence))
            except TypeError:
                _check_tokens(sentence, f"sentences: sentence {number}, ")
                raise
            if len(counts) > seen:
                _check_tokens(sentence, f"sentences: sentence {number}, ")
            number += 1
        if not counts:
            raise ValueError(f"sentences: the text is empty ({number} sentences, no word in any of them)")
        found = len(counts)
        markers = dict.fromkeys((start, end))
        for marker in markers:
            counts[marker] += number
        unknown_count = counts.get(unknown, 0)

        def order(token: str) -> tuple[int, str]:
            return -counts[token], token

        # the most frequent, then the alphabet: not the order of first appearance, which depends on the file's order
        ranked = sorted(counts, key=order)
        limit = len(ranked) + 1 if size is None else size
        kept = ranked[: limit if unknown_count else limit - 1]
        missing = [marker for marker in markers if marker not in kept]
        if unknown_count and unknown not in kept:
            missing.append(unknown)
        if missing:
            essential = {*markers, unknown}
            for token in reversed([token for token in kept if token not in essential][-len(missing) :]):
                kept.remove(token)
            kept = sorted(kept + missing, key=order)
        if not unknown_count:
            kept.append(unknown)
        known = {token: counts[token] for token in kept if token in counts}
        return cls(
            kept,
            start=start,
            end=end,
            unknown=unknown,
            level=level,
            lowercase=lowercase,
            counts=known,
            words_found=found,
            size_wanted=size,
        )

    # ------------------------------------------------------------------------------------------------ looking up

    @property
    def tokens(self) -> tuple[str, ...]:
        """All entries, position = id."""
        return self._tokens

    @property
    def start_id(self) -> int:
        """The id of the marker before a sentence."""
        return self._ids[self.start_token]

    @property
    def end_id(self) -> int:
        """The id of the marker after a sentence."""
        return self._ids[self.end_token]

    @property
    def unknown_id(self) -> int:
        """The id that stands for every token outside the vocabulary."""
        return self._ids[self.unknown_token]

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __getitem__(self, key: int | str) -> int | str:
        """The token of an id, or the id of a token (a token outside the vocabulary has the unknown id)."""
        if isinstance(key, str):
            return self.id(key)
        return self.token(key)

    def id(self, token: str) -> int:
        """The id of `token`; `unknown_id` when it is not in the vocabulary. TypeError for anything but a string."""
        return self._ids[token]

    def token(self, number: int) -> str:
        """The token with the id `number`.

        Raises
        ------
        ValueError
            An id outside 0 .. len-1.
        """
        if not 0 <= number < len(self._tokens):
            raise ValueError(f"number: the id {number} is outside the vocabulary (0 to {len(self._tokens) - 1})")
        return self._tokens[number]

    # ------------------------------------------------------------------------------------------------ ids

    def encode(self, sentence: Sequence[str], *, markers: bool = True) -> NDArray[np.int64]:
        """One tokenised sentence as ids, with the markers around it.

        With ``ids = vocabulary.encode(sentence)`` a model reads ``x = ids[:-1]`` and has to guess ``y = ids[1:]``: the
        first input is the start marker, the last target the end marker.

        Parameters
        ----------
        sentence
            Tokens without markers. At character level a plain string will do.
        markers
            False: only the tokens (a prompt, a piece of a stream).

        Returns
        -------
        numpy.ndarray
            int64, shape ``(len(sentence) + 2,)``, or ``(len(sentence),)`` without markers.

        Raises
        ------
        TypeError
            A plain string outside character level; a token that is not a string, which is named with its place.
        """
        if isinstance(sentence, str) and self.level != "character":
            raise TypeError(
                f"sentence: got the string {_shorten(sentence)}, wanted a list of words; "
                "crnn.text.sentences([text]) cuts raw text"
            )
        numbers = map(self._ids.__getitem__, sentence)
        try:
            if not markers:
                return np.fromiter(numbers, dtype=np.int64, count=len(sentence))
            ids = np.empty(len(sentence) + 2, dtype=np.int64)
            ids[0] = self.start_id
            ids[-1] = self.end_id
            ids[1:-1] = list(numbers)
        except TypeError:
            _check_tokens(sentence, "sentence: ")
            raise
        return ids

    def encode_stream(self, sentences: Iterable[Sequence[str]]) -> NDArray[np.int64]:
        """A whole text as one row of ids, the end marker after each sentence.

        Where start and end are different tokens, the start marker stands before each sentence too.

        Parameters
        ----------
        sentences
            Tokenised sentences without markers; read once.

        Returns
        -------
        numpy.ndarray
            int64, one-dimensional.
        """
        skip = 1 if self.start_token == self.end_token else 0
        # one growing block instead of a list of small arrays: the text exists twice at most
        row = np.empty(1 << 16, dtype=np.int64)
        used = 0
        for sentence in sentences:
            ids = self.encode(sentence)[skip:]
            if used + len(ids) > len(row):
                row = np.concatenate([row[:used], np.empty(max(used, len(ids)), dtype=np.int64)])
            row[used : used + len(ids)] = ids
            used += len(ids)
        return row[:used].copy()

    def decode(self, ids: Iterable[int] | NDArray[np.integer[Any]], *, markers: bool = True) -> list[str]:
        """The tokens of `ids`, one for one.

        Parameters
        ----------
        ids
            Integers from 0 to len-1.
        markers
            False: leave the sentence markers out.

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An id outside the vocabulary; its position is named.
        """
        numbers = np.asarray(ids if isinstance(ids, (np.ndarray, Sequence)) else list(ids))
        if numbers.size == 0:
            return []
        if numbers.dtype.kind not in "iu":
            raise TypeError(f"ids: got dtype {numbers.dtype}, wanted integers")
        if numbers.ndim != 1:
            raise ValueError(f"ids: got shape {numbers.shape}, wanted one row of ids")
        wrong = np.flatnonzero((numbers < 0) | (numbers >= len(self._tokens)))
        if wrong.size:
            raise ValueError(
                f"ids: {numbers[wrong[0]]} at position {wrong[0]} is outside the vocabulary "
                f"(0 to {len(self._tokens) - 1})"
            )
        words = [self._tokens[number] for number in numbers.tolist()]
        if markers:
            return words
        return [word for word in words if word != self.start_token and word != self.end_token]

    def text(self, ids: Iterable[int] | NDArray[np.integer[Any]]) -> str:
        """The ids as text for reading: no markers at word level, quotes and punctuation set as in print."""
        from crnn.text.detokenise import join

        # in a character model the marker between lines is a character of the text; invented markers are not
        keep = self.start_token == self.end_token and self.level == "character"
        return join(self.decode(ids, markers=keep), level=self.level)

    def note(self) -> str | None:
        """A sentence for the user when the text had fewer different tokens than were asked for, else None."""
        if self.size_wanted <= len(self._tokens):
            return None
        return (
            f"the text has only {self.words_found} different tokens, so the vocabulary has {len(self._tokens)} entries "
            f"instead of {self.size_wanted}"
        )

    # ------------------------------------------------------------------------------------------------ storage

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; `from_dict` is the way back."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "level": self.level,
            "lowercase": self.lowercase,
            "start": self.start_token,
            "end": self.end_token,
            "unknown": self.unknown_token,
            "words_found": self.words_found,
            "size_wanted": self.size_wanted,
            "tokens": list(self._tokens),
            "counts": [self.counts.get(token, 0) for token in self._tokens] if self.counts else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """A vocabulary from what `to_dict` gave.

        Raises
        ------
        ValueError
            Values of another kind, of a newer version, or incomplete.
        """
        if not isinstance(values, Mapping) or values.get("format") != _FORMAT:
            raise ValueError("values: this is not a stored crnn vocabulary")
        version = values.get("version")
        if not isinstance(version, int) or version > _VERSION:
            raise ValueError(f"values: vocabulary of version {version}, this crnn reads up to {_VERSION}: upgrade crnn")
        try:
            tokens = values["tokens"]
            counts = values["counts"]
            if not isinstance(tokens, list) or not isinstance(counts, (list, type(None))):
                raise ValueError("values: the stored vocabulary is damaged: tokens or counts are not a list")
            if counts is not None and len(counts) != len(tokens):
                raise ValueError("values: the stored vocabulary is damaged: tokens and counts do not match")
            numbers = [*(counts or ()), values["words_found"], values["size_wanted"]]
            if not all(type(number) is int for number in numbers) or type(values["lowercase"]) is not bool:
                raise ValueError("values: the stored vocabulary is damaged: its numbers or switches are none")
            return cls(
                tokens,
                start=values["start"],
                end=values["end"],
                unknown=values["unknown"],
                level=values["level"],
                lowercase=values["lowercase"],
                counts=None if counts is None else {t: c for t, c in zip(tokens, counts, strict=True) if c},
                words_found=values["words_found"],
                size_wanted=values["size_wanted"],
            )
        except KeyError as error:
            raise ValueError(f"values: the stored vocabulary is damaged: {error.args[0]!r} is missing") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as JSON, atomically. What is not ASCII is escaped: half an emoji has no UTF-8."""
        with atomic_write(path, "w") as stream:
            json.dump(self.to_dict(), stream)
            stream.write("\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is not a stored vocabulary, or a damaged one; the path is named.
        """
        with open(path, "rb") as stream:
            content = stream.read()
        try:
            return cls.from_dict(json.loads(content.decode("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)}: not a readable vocabulary file ({error})") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __repr__(self) -> str:
        head = ", ".join(repr(token) for token in self._tokens[:4])
        return f"Vocabulary({len(self)} entries, level={self.level!r}, [{head}, ...])"


def _check_tokens(sentence: Iterable[object], where: str) -> None:
    for place, token in enumerate(sentence):
        if not isinstance(token, str):
            raise TypeError(f"{where}token {place} is {token!r}, wanted a string")


def _shorten(text: str, width: int = 40) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
