"""Files to documents: one string per CSV row, line, paragraph or file, read lazily, decoded strictly."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

__all__ = ["Documents", "detect_encoding", "read_csv", "read_documents", "read_text"]

Progress = Callable[[int, int], None]

_BOMS = (
    # UTF-32's little-endian mark begins with UTF-16's, so it is asked first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_FIELD = 1 << 26  # characters; a field beyond this is a quotation mark that nobody closed
_PROGRESS_EVERY = 256
_CHUNK = 1 << 16
_BLANK_LINE = re.compile(r"(?:\r\n|\r|\n)[ \t]*(?:\r\n|\r|\n)\s*")
_UNITS = ("paragraph", "line", "file")


class Documents:
    """The documents of a file: an iterable of strings that reads the file anew on every loop.

    Nothing is kept in memory but the row at hand. Made by `read_csv`, `read_text` and `read_documents`.

    Attributes
    ----------
    path : pathlib.Path
    encoding : str
        The one that was given or detected.
    columns : tuple of str
        The names in the header of a CSV file, empty otherwise.
    """

    def __init__(
        self,
        path: Path,
        encoding: str,
        rows: Callable[[IO[str]], Iterator[str]],
        columns: tuple[str, ...] = (),
        progress: Progress | None = None,
    ) -> None:
        self.path = path
        self.encoding = encoding
        self.columns = columns
        self._rows = rows
        self._progress = progress

    def __iter__(self) -> Iterator[str]:
        total = self.path.stat().st_size
        with _open(self.path) as (raw, binary), io.TextIOWrapper(binary, self.encoding, newline="") as stream:
            try:
                for number, document in enumerate(self._rows(stream)):
                    if self._progress is not None and number % _PROGRESS_EVERY == 0:
                        self._progress(raw.tell(), total)
                    yield document
            except UnicodeDecodeError as error:
                raise _decoding_error(self.path, self.encoding, error) from None
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise OSError(f"{self.path}: damaged gzip file ({error})") from None
        if self._progress is not None:
            self._progress(total, total)

    def __repr__(self) -> str:
        return f"Documents({os.fspath(self.path)!r}, encoding={self.encoding!r})"


def read_csv(
    path: str | os.PathLike[str],
    column: int | str = 0,
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    header: bool = True,
    progress: Progress | None = None,
) -> Documents:
    """One column of a CSV file, a document per row; quoted fields may hold newlines and doubled quotes.

    Parameters
    ----------
    path
        The file; compressed with gzip or not (the content decides, not the name). A ``.txt`` file has no columns and
        is read by `read_text` instead.
    column
        A name in the header, or a number counted from 0. A string of digits counts as a number unless the header has
        that very name.
    encoding
        A Python codec name. None: UTF-8, or what the byte order mark at the start says (UTF-8, UTF-16, UTF-32).
    delimiter
        One character. None: a tab for ``.tsv``, a comma otherwise.
    header
        Whether the first row names the columns and is no document.
    progress
        Called as ``progress(bytes_done, bytes_in_file)`` every few hundred documents and at the end.

    Returns
    -------
    Documents
        Lazy; every loop reads the file again. Empty rows are left out.

    Raises
    ------
    OSError
        The file is missing, unreadable, or a damaged gzip file.
    ValueError
        A column that is not there (the error names those that are), an empty file, bytes that are not in the encoding
        (the error names the position), a row that is too short, a quotation mark that is never closed.
    TypeError
        `column` is neither a string nor an integer.
    """
    path = Path(path)
    if _suffix(path) == ".txt":
        return read_text(path, encoding=encoding, progress=progress)
    if isinstance(column, bool) or not isinstance(column, (int, str)):
        raise TypeError(f"column: got {column!r}, wanted a name or a number counted from 0")
    if delimiter is None:
        delimiter = "\t" if _suffix(path) == ".tsv" else ","
    if len(delimiter) != 1:
        raise ValueError(f"delimiter: got {delimiter!r}, wanted one character")
    encoding = _encoding_of(path, encoding)
    first = next(iter(Documents(path, encoding, lambda stream: _first_row(path, stream, delimiter))), None)
    if first is None:
        raise ValueError(f"{path}: the file is empty")
    # the probe joins the fields with a character that no decoded CSV field can hold unescaped
    fields = tuple(first.split(_JOINT))
    index = _column_index(path, column, fields, header)
    columns = tuple(name.strip() for name in fields) if header else ()
    return Documents(path, encoding, lambda stream: _rows(path, stream, delimiter, index, header), columns, progress)


def read_text(
    path: str | os.PathLike[str],
    *,
    unit: str = "paragraph",
    encoding: str | None = None,
    progress: Progress | None = None,
) -> Documents:
    """A plain text file.

    Parameters
    ----------
    path
        The file; compressed with gzip or not.
    unit
        What counts as a document: "paragraph" (blank lines between them; lines inside are running text), "line"
        (every line, also an empty one: for files with a sentence a line, and for character models) or "file".
    encoding, progress
        As for `read_csv`.

    Returns
    -------
    Documents

    Raises
    ------
    OSError, ValueError
        As for `read_csv`; ValueError also for an unknown `unit`.
    """
    path = Path(path)
    if unit not in _UNITS:
        raise ValueError(f"unit: got {unit!r}, wanted one of {', '.join(map(repr, _UNITS))}")
    split = {"paragraph": _paragraphs, "line": _lines, "file": _whole}[unit]
    return Documents(path, _encoding_of(path, encoding), split, progress=progress)


def read_documents(
    path: str | os.PathLike[str],
    column: int | str = 0,
    *,
    unit: str = "paragraph",
    encoding: str | None = None,
    delimiter: str | None = None,
    header: bool = True,
    progress: Progress | None = None,
) -> Documents:
    """A file by its name: ``.csv`` and ``.tsv`` (also with ``.gz``) as CSV, everything else as plain text.

    The parameters are those of `read_csv` and `read_text`; those of the other kind of file are ignored.
    """
    if _suffix(Path(path)) in (".csv", ".tsv"):
        return read_csv(path, column, encoding=encoding, delimiter=delimiter, header=header, progress=progress)
    return read_text(path, unit=unit, encoding=encoding, progress=progress)


def detect_encoding(path: str | os.PathLike[str]) -> str:
    """The encoding of a file by its byte order mark; UTF-8 without one.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        No mark, but zero bytes near the start: UTF-16 or UTF-32 without a mark, or not a text at all.
    """
    path = Path(path)
    with _open(path) as (_, binary):
        try:
            head = binary.read(_CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"{path}: damaged gzip file ({error})") from None
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    zero = head.find(b"\0")
    if zero >= 0:
        raise ValueError(
            f"{path}: zero byte at byte {zero}: not UTF-8 text. If it is UTF-16 without a byte order mark, give the "
            f"encoding, for example {_ENCODING_HINT.format('utf-16-le')}"
        )
    return "utf-8"


# ---------------------------------------------------------------------------------------------------- opening

_ENCODING_HINT = "encoding={0!r} (--encoding {0})"


class _open:
    """Opens a file and sees through gzip. Gives (the file itself, for its position; the decompressed bytes)."""

    def __init__(self, path: Path) -> None:
        self.raw: IO[bytes] = open(path, "rb")  # noqa: SIM115  closed by __exit__
        compressed = self.raw.read(2) == b"\x1f\x8b"
        self.raw.seek(0)
        self.binary: IO[bytes] = gzip.GzipFile(fileobj=self.raw) if compressed else self.raw

    def __enter__(self) -> tuple[IO[bytes], IO[bytes]]:
        return self.raw, self.binary

    def __exit__(self, *exception: object) -> None:
        self.binary.close()
        self.raw.close()


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _encoding_of(path: Path, encoding: str | None) -> str:
    if encoding is None:
        return detect_encoding(path)
    try:
        info = codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"encoding: Python knows no encoding {encoding!r}") from None
    if not info._is_text_encoding:
        raise ValueError(f"encoding: {encoding!r} is not a text encoding")
    with open(path, "rb"):
        pass  # a missing file is an error of this call, not of the first loop
    # "utf-8" would leave the byte order mark in the first word
    return "utf-8-sig" if info.name == "utf-8" else encoding


def _decoding_error(path: Path, encoding: str, error: UnicodeDecodeError) -> ValueError:
    """The stream decoder counts from its own chunk; decode again to find the position in the whole file."""
    position, reason = error.start, error.reason
    decoder = codecs.getincrementaldecoder(encoding)()
    with _open(path) as (_, binary):
        base = 0
        while True:
            chunk = binary.read(_CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as found:
                position, reason = base - pending + found.start, found.reason
                break
            if not chunk:
                break
            base += len(chunk)
    shown = encoding.removesuffix("-sig")
    return ValueError(
        f"{path}: byte {position} is not {shown} ({reason}). Give the file's own encoding, for example "
        f"{_ENCODING_HINT.format('latin-1' if shown != 'latin-1' else 'utf-8')}"
    )


# ---------------------------------------------------------------------------------------------------- CSV

_JOINT = "\0\n"


def _reader(stream: IO[str], delimiter: str) -> Iterator[list[str]]:
    # the module's limit of 131,072 characters is per process and too small for long posts
    csv.field_size_limit(max(csv.field_size_limit(), min(_LONGEST_FIELD, sys.maxsize)))
    return csv.reader(stream, delimiter=delimiter, skipinitialspace=True)


def _csv_error(path: Path, line: int, error: csv.Error) -> ValueError:
    return ValueError(f"{path}: line {line}: {error}; is a quotation mark never closed?")


def _first_row(path: Path, stream: IO[str], delimiter: str) -> Iterator[str]:
    reader = _reader(stream, delimiter)
    try:
        for row in reader:
            if row:
                yield _JOINT.join(row)
                return
    except csv.Error as error:
        raise _csv_error(path, reader.line_num, error) from None  # type: ignore[attr-defined]


def _rows(path: Path, stream: IO[str], delimiter: str, index: int, header: bool) -> Iterator[str]:
    reader = _reader(stream, delimiter)
    skip = header
    try:
        for row in reader:
            if not row:
                continue
            if skip:
                skip = False
                continue
            if len(row) <= index:
                raise ValueError(
                    f"{path}: line {reader.line_num}: the row has {len(row)} field(s), "  # type: ignore[attr-defined]
                    f"column {index} (counted from 0) was wanted"
                )
            yield row[index]
    except csv.Error as error:
        raise _csv_error(path, reader.line_num, error) from None  # type: ignore[attr-defined]


def _column_index(path: Path, column: int | str, fields: tuple[str, ...], header: bool) -> int:
    names = [field.strip() for field in fields]
    if isinstance(column, str):
        if header and names.count(column) > 1:
            raise ValueError(f"column: {path} has {names.count(column)} columns named {column!r}; give the number")
        if header and column in names:
            return names.index(column)
        if not column.isdecimal():
            if not header:
                raise ValueError(f"column: got the name {column!r}, but the file is read without a header")
            raise ValueError(f"column: {path} has no column {column!r}; its columns are {_listing(names)}")
        column = int(column)
    if not 0 <= column < len(names):
        described = f"; its columns are {_listing(names)}" if header else ""
        raise ValueError(f"column: {path} has {len(names)} column(s), 0 to {len(names) - 1}, not {column}{described}")
    return column


def _listing(names: list[str], most: int = 30) -> str:
    shown = [f"{name[:60]!r} ({number})" for number, name in enumerate(names[:most])]
    if len(names) > most:
        shown.append(f"and {len(names) - most} more")
    return ", ".join(shown)


# ---------------------------------------------------------------------------------------------------- plain text


def _lines(stream: IO[str]) -> Iterator[str]:
    # newline="" leaves \r\n to us; a text's own \r is a line end as well
    for line in stream:
        yield line.rstrip("\r\n")


def _whole(stream: IO[str]) -> Iterator[str]:
    yield stream.read()


def _paragraphs(stream: IO[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in stream:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).strip()
            paragraph = []
    if paragraph:
        yield "".join(paragraph).strip()


def split_paragraphs(document: str) -> list[str]:
    """The parts of a document between blank lines, empty ones left out."""
    return [part for part in _BLANK_LINE.split(document.strip()) if part]
