"""What several commands share: help layout, option types, reading models, progress bars."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crnn.bptt import Chunk, Full, Truncation, Window

if TYPE_CHECKING:
    from crnn.language_model import LanguageModel
    from crnn.text import Vocabulary

__all__ = [
    "CELLS",
    "HelpFormatter",
    "add_reading_options",
    "add_threads_option",
    "load_model",
    "note",
    "progress_bar",
    "read_seed",
    "read_truncation",
    "require_vocabulary",
    "set_threads",
    "whole_number_from",
]

CELLS = ("rnn", "lstm", "gru")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples keep their lines; option names get some room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def check_apart(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """No file may be written that is read, or that another option writes.

    Raises
    ------
    ValueError
        Naming both and the file.
    """
    # not Path.resolve, which has an error of its own for links that go round in a circle: opening them tells
    seen = {os.path.realpath(path): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            raise ValueError(f"{name}: {path} is the file of {other} too")


def note(message: str) -> None:
    """Tell the user something that is not a result."""
    print(message, file=sys.stderr, flush=True)


def read_truncation(text: str, plain: str = "window") -> Truncation:
    """The value of --truncate: full, window:K, chunk:K1, chunk:K1:K2, or K, which means a `plain` of K steps.

    Raises
    ------
    argparse.ArgumentTypeError
        Anything else; argparse shows the message.
    """
    kind, *numbers = text.strip().lower().split(":")
    if kind.isdecimal():
        kind, numbers = plain, [kind, *numbers]
    if all(number.isdecimal() for number in numbers):
        try:
            sizes = [int(number) for number in numbers]
            if kind == "full" and not sizes:
                return Full()
            if kind == "window" and len(sizes) == 1:
                return Window(sizes[0])
            if kind == "chunk" and len(sizes) in (1, 2):
                return Chunk(*sizes)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    raise argparse.ArgumentTypeError(f"got {text!r}, wanted K, full, window:K, chunk:K1 or chunk:K1:K2")


def read_seed(text: str) -> int:
    """The value of --seed.

    Raises
    ------
    argparse.ArgumentTypeError
        Not a whole number of at least 0.
    """
    return whole_number_from(0)(text)


def whole_number_from(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers of at least `least`.

    Returns
    -------
    callable
        From text to number; raises argparse.ArgumentTypeError, which argparse shows together with the option's name.
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number of at least {least}")
        return number

    return read


def add_threads_option(parser: argparse._ActionsContainer) -> None:
    """--threads, which `load_model` and the training command obey."""
    parser.add_argument(
        "--threads", type=whole_number_from(1), metavar="N", help="threads (default: what the machine has)"
    )


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """How a text file is read."""
    parser.add_argument(
        "--column", metavar="NAME|N", help="column of a CSV file: its name, or its number from 0 (default: 0)"
    )
    parser.add_argument(
        "--encoding", metavar="E", help="of the text (default: UTF-8, or what its byte order mark says)"
    )
    parser.add_argument("--delimiter", metavar="C", help="between CSV fields (default: a comma; a tab for .tsv)")
    parser.add_argument(
        "--no-header", action="store_true", default=None, help="the CSV file's first row is text, not column names"
    )


def set_threads(options: argparse.Namespace) -> None:
    """Obey --threads."""
    if options.threads is not None:
        import crnn

        crnn.set_num_threads(options.threads)


def load_model(options: argparse.Namespace) -> LanguageModel:
    """The model file that a command was given, with --threads obeyed."""
    import crnn

    set_threads(options)
    return crnn.load(options.model)


def require_vocabulary(model: LanguageModel, path: str) -> Vocabulary:
    """The model's vocabulary.

    Raises
    ------
    ValueError
        The file has none: the model was trained on bare ids.
    """
    if model.vocabulary is None:
        raise ValueError(
            f"{path}: this model has no vocabulary, it was trained on bare ids and cannot read or write text"
        )
    return model.vocabulary


def _draw_nothing(done: int, total: int | None = None) -> None:
    return None


@contextmanager
def progress_bar(
    title: str, unit: str, quiet: bool = False, **options: Any
) -> Iterator[Callable[[int, int | None], None]]:
    """A tqdm bar on standard error; nothing when that is not a terminal.

    Yields
    ------
    callable
        To be called as ``update(done, total)``.
    """
    if quiet or not sys.stderr.isatty():
        yield _draw_nothing
        return
    from tqdm import tqdm

    with tqdm(
        desc=title, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True, file=sys.stderr, **options
    ) as bar:

        def update(done: int, total: int | None = None) -> None:
            if total is not None:
                bar.total = total
            bar.update(done - bar.n)

        yield update
