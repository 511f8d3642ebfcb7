"""Files to documents: one string per CSV row, line, paragraph or file, read lazily, decoded strictly."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

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
_UNITS = ("paragraph", "line", "file")
_MARK = "\ufeff"
_DROPS_MARK = frozenset({"utf-8-sig", "utf-16", "utf-32"})  # the codecs that do so by themselves


@dataclass(frozen=True)
class _Source:
    """A file to be opened as often as wanted; `content` is what came out of a pipe, which gives it once only."""

    path: Path
    content: bytes | None = None

    @classmethod
    def of(cls, path: Path) -> _Source:
        with open(path, "rb") as raw:  # a missing file is an error of this call, not of the first loop
            return cls(path, None if raw.seekable() else raw.read())

    def open(self) -> IO[bytes]:
        return open(self.path, "rb") if self.content is None else io.BytesIO(self.content)

    def size(self) -> int:
        return self.path.stat().st_size if self.content is None else len(self.content)


class Documents:
    """The documents of a file: an iterable of strings that reads the file anew on every loop.

    Nothing is kept in memory but the row at hand; of a pipe, its bytes. Made by `read_csv`, `read_text` and
    `read_documents`.

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
        source: _Source,
        encoding: str,
        rows: Callable[[IO[str]], Iterator[str]],
        columns: tuple[str, ...] = (),
        progress: Progress | None = None,
    ) -> None:
        self.path = source.path
        self.encoding = encoding
        self._source = source
        self.columns = columns
        self._rows = rows
        self._progress = progress

    def __iter__(self) -> Iterator[str]:
        total = self._source.size()
        with _text_stream(self._source, self.encoding) as (raw, stream):
            for number, document in enumerate(self._rows(stream)):
                if self._progress is not None and number % _PROGRESS_EVERY == 0:
                    self._progress(raw.tell(), total)
                yield document
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
        is read by `read_text` instead. A pipe is read to its end by this call and kept in memory.
    column
        A name in the header, or a number counted from 0. A string of digits counts as a number unless the header has
        that very name.
    encoding
        A Python codec name. None: UTF-8, or what the byte order mark at the start says (UTF-8, UTF-16, UTF-32). A mark
        is no part of the text, whatever the encoding.
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
        (the error names the position), a row that is too short, a quotation mark that is not closed for 64 million
        characters.
    TypeError
        `column` is neither a string nor an integer.

    Warns
    -----
    UserWarning
        While looping: the file ends inside a quoted field, which therefore holds everything from its row on.
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
    source = _Source.of(path)
    encoding = _encoding_of(source, encoding)
    with _text_stream(source, encoding) as (_, stream):
        first = next(_rows(path, stream, delimiter), None)
    if first is None:
        raise ValueError(f"{path}: the file is empty")
    names = tuple(name.strip() for name in first)
    index = _column_index(path, column, names, header)

    def documents(stream: IO[str]) -> Iterator[str]:
        rows = _rows(path, stream, delimiter, index)
        if header:
            next(rows, None)
        return (row[index] for row in rows)

    return Documents(source, encoding, documents, names if header else (), progress)


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
        The file, also a pipe; compressed with gzip or not.
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
    source = _Source.of(path)
    return Documents(source, _encoding_of(source, encoding), split, progress=progress)


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
    """The encoding of a file by its byte order mark; UTF-8 without one. A pipe is used up by the look.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        No mark, but zero bytes near the start: UTF-16 or UTF-32 without a mark, or not a text at all.
    """
    return _detected(_Source.of(Path(path)))


def _detected(source: _Source) -> str:
    with _open(source) as (_, binary):
        head = binary.read(_CHUNK)
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    zero = head.find(b"\0")
    if zero >= 0:
        raise ValueError(
            f"{source.path}: zero byte at byte {zero}, as in UTF-16 without a byte order mark: give the encoding, for "
            f"example {_ENCODING_HINT.format('utf-16-le')}; if it is UTF-8 with a zero byte in it, "
            f"{_ENCODING_HINT.format('utf-8')}"
        )
    return "utf-8"


# ---------------------------------------------------------------------------------------------------- opening

_ENCODING_HINT = "encoding={0!r} (--encoding {0})"


@contextmanager
def _open(source: _Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file, gzip seen through: (the file itself, for its position; its decompressed bytes)."""
    with source.open() as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not compressed:
            yield raw, raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as binary:
                yield raw, cast(IO[bytes], binary)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"{source.path}: damaged gzip file ({error})") from None


@contextmanager
def _text_stream(source: _Source, encoding: str) -> Iterator[tuple[IO[bytes], IO[str]]]:
    """(The file itself; its decoded text.) Decoding errors are told with their position in the file."""
    with _open(source) as (raw, binary):
        stream = io.TextIOWrapper(binary, encoding, newline="")
        try:
            if codecs.lookup(encoding).name not in _DROPS_MARK and stream.read(1) != _MARK:
                stream.seek(0)
            yield raw, stream
        except UnicodeDecodeError as error:
            raise _decoding_error(source, encoding, error) from None
        finally:
            stream.detach()


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _encoding_of(source: _Source, encoding: str | None) -> str:
    if encoding is None:
        return _detected(source)
    try:
        name = codecs.lookup(encoding).name
        io.TextIOWrapper(io.BytesIO(), encoding)  # refuses the codecs that are no text encodings
    except LookupError:
        raise ValueError(f"encoding: Python knows no text encoding {encoding!r}") from None
    # "utf-8" would leave the byte order mark in the first word
    return "utf-8-sig" if name == "utf-8" else encoding


def _decoding_error(source: _Source, encoding: str, error: UnicodeDecodeError) -> ValueError:
    """The stream decoder counts from its own chunk; decode again to find the position in the whole file."""
    position, reason = error.start, error.reason
    decoder = codecs.getincrementaldecoder(encoding)()
    with _open(source) as (_, binary):
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
        f"{source.path}: byte {position} is not {shown} ({reason}). Give the file's own encoding, for example "
        f"{_ENCODING_HINT.format('latin-1' if shown != 'latin-1' else 'utf-8')}"
    )


# ---------------------------------------------------------------------------------------------------- CSV


def _rows(path: Path, stream: IO[str], delimiter: str, index: int = 0) -> Iterator[list[str]]:
    """All rows that are not empty; each must have a field number `index`."""
    # the module's limit of 131,072 characters is per process and too small for long posts
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    lines: list[str] = []  # of the row at hand
    reader = csv.reader(_remembered(stream, lines), delimiter=delimiter, skipinitialspace=True)
    last: list[str] = []
    try:
        for row in reader:
            last = lines.copy()
            lines.clear()
            if not row:
                continue
            if len(row) <= index:
                raise ValueError(
                    f"{path}: line {reader.line_num}: the row has {len(row)} field(s), "
                    f"but column {index} (counted from 0) was asked for"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}; is a quotation mark never closed?") from None
    if _ends_inside_quotes(last, delimiter):
        start = reader.line_num - len(last) + 1
        warnings.warn(
            f"{path}: a quotation mark in the row that starts on line {start} is never closed: "
            "the rest of the file was read as one field",
            stacklevel=2,
        )


def _remembered(stream: IO[str], lines: list[str]) -> Iterator[str]:
    for line in stream:
        lines.append(line)
        yield line


def _ends_inside_quotes(row: list[str], delimiter: str) -> bool:
    """Whether the lines of a file's last row leave a quoted field open. Only a strict reader minds."""
    try:
        list(csv.reader(row, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _column_index(path: Path, column: int | str, names: tuple[str, ...], header: bool) -> int:
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


def _listing(names: tuple[str, ...], most: int = 30) -> str:
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
