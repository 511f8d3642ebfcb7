"""`crnn inspect`: a text as the model sees it, as one web page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from crnn.cli.options import HelpFormatter, add_threads_option, check_apart, load_model, note, require_vocabulary

_DESCRIPTION = """\
Write a web page that shows a text coloured by surprise (nats per word), the model's best guesses at
each place, and the activation of any hidden unit or gate along the text. The page is one file that
needs no server and loads nothing.
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
    source.add_argument("--file", type=Path, metavar="FILE", help="a plain text file")
    parser.add_argument("--encoding", metavar="E", help="of the file")
    parser.add_argument("--html", type=Path, default=Path("inspection.html"), metavar="FILE", help="page to write")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="guesses shown for each word (default: 5)")
    parser.add_argument("--title", help="heading of the page (default: the model's file name)")
    parser.add_argument(
        "--most", type=int, default=2000, metavar="N", help="read at most this many tokens (default: 2000)"
    )
    add_threads_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    from crnn import text
    from crnn.atomic import atomic_write, check_writable
    from crnn.inspection import inspect
    from crnn.inspection_page import page

    check_writable(options.html, "--html")
    check_apart({"--html": options.html}, {"MODEL": Path(options.model), "--file": options.file})
    model = load_model(options)
    vocabulary = require_vocabulary(model, options.model)
    documents = [options.text] if options.file is None else text.read_text(options.file, encoding=options.encoding)
    if vocabulary.level == "character":
        documents = [line for document in documents for line in document.split("\n")]
    sentences = text.sentences(documents, level=vocabulary.level, lowercase=vocabulary.lowercase)
    kept, tokens = [], 0
    for sentence in sentences:
        room = options.most - tokens
        if room <= 0:
            note(f"reading the first {options.most} tokens only (--most)")
            break
        kept.append(sentence[:room])
        tokens += len(kept[-1])
    result = inspect(model, kept, top=options.top)
    title = options.title or Path(options.model).name
    content = page(result, title, vocabulary.level, (vocabulary.start_token, vocabulary.end_token))
    with atomic_write(options.html, "w") as stream:
        stream.write(content)
    print(f"{result.loss:.4f} nats/token over {len(result.tokens)} tokens")
    note(f"wrote {options.html}")
    return 0
