"""`crnn inspect`: a text as the model sees it, as one web page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from crnn.cli.corpus import Reading
from crnn.cli.options import (
    HelpFormatter,
    add_reading_options,
    add_threads_option,
    check_apart,
    load_model,
    note,
    require_vocabulary,
    whole_number_from,
)

_DESCRIPTION = """\
Write a web page that shows a text coloured by surprise (nats per word), the model's best guesses at
each place, and the activation of any hidden unit or gate along the text. The page is one file that
needs no server and loads nothing.

A file is read as `crnn evaluate` reads it. The loss is the mean over the tokens that something predicts;
markers at the start of a sentence are shown as well.
"""

_EPILOG = """\
examples:
  crnn inspect comments.safetensors --text "This is the best thing ever." --html look.html
  crnn inspect comments.safetensors --file letter.txt --html look.html
"""


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "inspect",
        help="a page with each word's surprise, guesses and activations",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text itself")
    source.add_argument("--file", type=Path, metavar="FILE", help=".csv, .tsv or text file, also with gzip")
    add_reading_options(parser)
    parser.add_argument(
        "--html",
        type=Path,
        default=Path("inspection.html"),
        metavar="FILE",
        help="page to write (default: inspection.html)",
    )
    parser.add_argument(
        "--top", type=whole_number_from(1), default=5, metavar="N", help="guesses shown for each word (default: 5)"
    )
    parser.add_argument("--title", help="heading of the page (default: the model's file name)")
    parser.add_argument(
        "--most",
        type=whole_number_from(1),
        default=2000,
        metavar="N",
        help="read at most this many tokens (default: 2000)",
    )
    add_threads_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    from crnn.atomic import atomic_write, check_writable
    from crnn.inspection import inspect
    from crnn.inspection_page import page

    _check_reading(options)
    check_writable(options.html, "--html")
    check_apart({"--html": options.html}, {"MODEL": Path(options.model), "--file": options.file})
    model = load_model(options)
    vocabulary = require_vocabulary(model, options.model)
    reading = Reading.of(options, vocabulary.level, vocabulary.lowercase)
    sentences = reading.sentences_of(options.text) if options.file is None else reading.sentences(options.file)
    result = inspect(model, _beginning(sentences, options.most), top=options.top)
    title = options.title or Path(options.model).name
    content = page(result, title, vocabulary.level, (vocabulary.start_token, vocabulary.end_token))
    with atomic_write(options.html, "w") as stream:
        stream.write(content)
    print(f"{result.loss:.4f} nats/token over {result.predictions} tokens")
    note(f"wrote {options.html}")
    return 0


def _check_reading(options: argparse.Namespace) -> None:
    """Refuse options that say how a file is read where there is none."""
    for name in ("column", "encoding", "delimiter", "no_header"):
        if options.file is None and getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: says how a file is read, but the text was given with --text")


def _beginning(sentences: list[list[str]], most: int) -> list[list[str]]:
    """The first `most` tokens, with a note when there are more."""
    total = sum(map(len, sentences))
    if total <= most:
        return sentences
    note(f"reading the first {most} tokens only, of {total:,} (--most)")
    kept: list[list[str]] = []
    for sentence in sentences:
        if most <= 0:
            break
        kept.append(sentence[:most])
        most -= len(sentence)
    return kept
