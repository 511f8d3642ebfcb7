"""Text files as the commands read them: which files there are, their sentences, and the ids of these."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crnn.cli.options import progress_bar

if TYPE_CHECKING:
    from crnn.data import TokenData
    from crnn.text import Vocabulary

__all__ = ["Files", "Reading", "find_files"]

# A line is a unit of its own where a file holds a sentence a line, or where its characters are modelled.
_UNITS = {"word": "paragraph", "character": "line", "whitespace": "line"}
_PARTS = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
_SUFFIXES = ("txt", "text", "csv", "tsv", "raw", "tokens")


@dataclass(frozen=True)
class Files:
    """The parts of a corpus; None: cut from `train`, or (for `train` itself) the default corpus."""

    train: Path | None = None
    valid: Path | None = None
    test: Path | None = None


@dataclass(frozen=True)
class Reading:
    """How files become sentences."""

    column: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    header: bool = True
    level: str = "word"
    lowercase: bool = True
    quiet: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace, level: str, lowercase: bool, quiet: bool = False) -> Reading:
        """From the options that `add_reading_options` adds."""
        return cls(options.column, options.encoding, options.delimiter, not options.no_header, level, lowercase, quiet)

    def sentences(self, path: Path | None) -> list[list[str]]:
        """The tokenised sentences of a file, or of the default corpus; a bar shows how far reading has come.

        Raises
        ------
        OSError, ValueError
            What the library says of the file; a column of a text that has none.
        """
        from crnn import text

        if self.column is not None and (path is None or path.name.lower().removesuffix(".gz").endswith(".txt")):
            raise ValueError(
                f"--column: {'the default corpus' if path is None else path} is plain text without columns"
            )
        source = "Python's own documentation" if path is None else path.name
        with progress_bar(f"reading {source}", "files" if path is None else "B", self.quiet) as update:
            documents: Iterable[str]
            if path is None:
                documents = text.default_documents(progress=update)
            elif self.column is not None:
                # a column makes a CSV file of any name but .txt
                documents = text.read_csv(
                    path,
                    self.column,
                    encoding=self.encoding,
                    delimiter=self.delimiter,
                    header=self.header,
                    progress=update,
                )
            else:
                documents = text.read_documents(
                    path,
                    unit=_UNITS[self.level],
                    encoding=self.encoding,
                    delimiter=self.delimiter,
                    header=self.header,
                    progress=update,
                )
            try:
                return text.sentences(documents, level=self.level, lowercase=self.lowercase)
            except ValueError as error:
                if path is None or str(path) in str(error):
                    raise
                raise ValueError(f"{path}: {error}") from None


    def sentences_of(self, content: str) -> list[list[str]]:
        """The tokenised sentences of a text that was typed, cut as those of a text file with this content.

        Raises
        ------
        ValueError
            No word in it.
        """
        from crnn import text

        if _UNITS[self.level] == "line":
            documents = [line.rstrip("\r\n") for line in io.StringIO(content, newline="")]
        else:
            documents = [content]
        return text.sentences(documents, level=self.level, lowercase=self.lowercase)


def find_files(path: Path | None) -> Files:
    """A file is a corpus to be split; a folder holds files named after their parts (``ptb.train.txt``).

    Files with a suffix that no text has, such as ``valid.csv.bak``, are left alone.

    Raises
    ------
    FileNotFoundError
        Nothing at `path`, or a folder without a training file.
    ValueError
        A folder with two files for one part.
    """
    if path is None:
        return Files()
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        return Files(path)
    parts: dict[str, Path | None] = {}
    for part, names_of_part in _PARTS.items():
        found = sorted(p for p in path.iterdir() if p.is_file() and _is_part(p.name, names_of_part))
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise ValueError(f"{path}: several {part} files ({names}); name them with --train, --valid and --test")
        parts[part] = found[0] if found else None
    if parts["train"] is None:
        raise FileNotFoundError(
            f"{path}: no file like ptb.train.txt or train.csv in this folder "
            f"(suffixes: {', '.join(_SUFFIXES)}, also .gz)"
        )
    return Files(**parts)


def _is_part(name: str, names_of_part: tuple[str, ...]) -> bool:
    """Whether a file holds that part of a corpus; a name without a suffix, like ``ptb.train``, counts too."""
    pieces = name.lower().removesuffix(".gz").split(".")
    return pieces[-1] in (*_SUFFIXES, *names_of_part) and any(piece in names_of_part for piece in pieces)


def is_stream(vocabulary: Vocabulary) -> bool:
    """Whether the model reads a text as one stream: then one marker stands between sentences, not one on each side."""
    return vocabulary.start_token == vocabulary.end_token


def unknown_tokens(vocabulary: Vocabulary, data: Iterable[Any]) -> int:
    """How many ids in the rows of `data` stand for words outside the vocabulary."""
    return sum(int((row == vocabulary.unknown_id).sum()) for row in data)


def evaluation_data(vocabulary: Vocabulary, sentences: list[list[str]], stream: bool) -> tuple[TokenData, int]:
    """Sentences as data to evaluate on, as one text with carried state or each for itself; and the unknown tokens."""
    from crnn.data import Sentences, Stream

    if stream:
        row = vocabulary.encode_stream(sentences)
        return Stream(row, batch_size=1), unknown_tokens(vocabulary, [row])
    rows = [vocabulary.encode(sentence) for sentence in sentences]
    return Sentences(rows), unknown_tokens(vocabulary, rows)
