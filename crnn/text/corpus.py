"""The text that every Python installation carries: the language reference and the standard library's docstrings.

A first training run needs no download this way. Only prose is kept: paragraphs of whole sentences, without signatures,
examples, tables and headings.
"""

from __future__ import annotations

import ast
import importlib
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["default_documents", "prose"]

# Not documentation of the library: installed packages, tests, vendored grammars, and the data we read by itself.
_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}
)
_PROGRESS_EVERY = 20

_ROLE = re.compile(r":[a-z:+-]+:`~?([^`<>]+)`")
_LITERAL = re.compile(r"``?([^`\n]+)``?")
_EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(\w(?:[^*\n]*\w)?)\1(?![\w*])")
_BULLET = re.compile(r"^\s*(?:[*+-]|\d+[.)]|[a-z]\))\s+")
_CODE = re.compile(
    r">>>|::=|->|[=!<>]=|\w\(\w*=|[{}|\\]|\b(?:def|elif|lambda|import)\b.*[:(]|^\s*(?:@|\$ |#)|\w+\.\w+\(.*,"
)
_SENTENCE = re.compile(r"^[\"'“(]?[A-Z].*[.!?][\"'”)]?$", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_PLAIN = re.compile(r"[A-Za-z\s,.;:'’\"“”()?!-]")


def default_documents(progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
    """Paragraphs of English prose from this Python's own documentation.

    First the language reference (`pydoc_data.topics`), by topic; then the docstrings of the standard library's source
    files, by path. The order is the same at every call and on every machine with the same Python. Parts that an
    installation lacks are left out; a paragraph that occurs twice is given once.

    Parameters
    ----------
    progress
        Called as ``progress(files_done, files)`` every few files and at the end.

    Yields
    ------
    str
        A paragraph as one line.

    Raises
    ------
    ValueError
        At the end, when this installation has neither the reference nor source files.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = False
    seen: set[int] = set()
    for text in _all_texts(folder, progress):
        for paragraph in prose(text):
            key = hash(paragraph)  # numbers instead of a second copy of the text
            if key not in seen:
                seen.add(key)
                found = True
                yield paragraph
    if not found:
        raise ValueError(f"this Python carries no documentation (nothing in {folder}): give a text file instead")


def prose(text: str) -> Iterator[str]:
    """The paragraphs of `text` that are whole sentences, markup removed, each as one line."""
    for block in re.split(r"\n[ \t]*\n", text):
        lines: list[str] = []
        for line in block.splitlines():
            if _BULLET.match(line) and lines:
                yield from _sentence_like(lines)
                lines = []
            lines.append(_BULLET.sub("", line))
        yield from _sentence_like(lines)


def _sentence_like(lines: Iterable[str]) -> Iterator[str]:
    paragraph = " ".join(" ".join(lines).split())
    paragraph = _ROLE.sub(r"\1", paragraph)
    paragraph = _EMPHASIS.sub(r"\2", _LITERAL.sub(r"\1", paragraph))
    if not _SENTENCE.match(paragraph) or _CODE.search(paragraph):
        return
    words = _WORD.findall(paragraph)
    if len(words) < 4 or len(_PLAIN.findall(paragraph)) < 0.95 * len(paragraph):
        return
    yield paragraph


def _all_texts(folder: Path, progress: Callable[[int, int], None] | None) -> Iterator[str]:
    yield from _topics()
    files = sorted(_source_files(folder), key=lambda path: path.relative_to(folder).parts)
    for number, path in enumerate(files):
        if progress is not None and number % _PROGRESS_EVERY == 0:
            progress(number, len(files))
        yield from _docstrings(path)
    if progress is not None:
        progress(len(files), len(files))


def _topics() -> Iterator[str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return
    for name in sorted(topics):
        yield topics[name]


def _source_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS and not entry.name.startswith(("config-", "lib-")):
                yield from _source_files(entry)
        elif entry.suffix == ".py":
            yield entry


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text
