"""`crnn generate`: sentences out of a model."""

from __future__ import annotations

import argparse
from typing import Any

from crnn.cli.corpus import is_stream
from crnn.cli.options import HelpFormatter, add_threads_option, load_model, read_seed, require_vocabulary

_DESCRIPTION = """\
Write sentences, one a line on standard output and nothing else there.

The same seed gives the same sentences. Models that were trained on one continuous stream of characters
write passages of --max-length characters instead, with an empty line between them.
"""

_EPILOG = """\
examples:
  crnn generate comments.safetensors -n 5
  crnn generate comments.safetensors -n 5 --seed 7 --temperature 0.7 --prompt "i think"
  crnn generate shakespeare.safetensors -n 1 --max-length 600
"""


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "generate",
        help="write sentences",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model file")
    parser.add_argument("-n", "--number", type=int, default=5, metavar="N", help="how many (default: 5)")
    parser.add_argument(
        "--seed", type=read_seed, metavar="N", help="for repeatable sentences (default: new ones each time)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="below 1 safer, above 1 wilder")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable words only")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the most probable words that reach P together"
    )
    parser.add_argument("--greedy", action="store_true", help="always the most probable word")
    parser.add_argument("--prompt", metavar="TEXT", help="what each sentence begins with")
    parser.add_argument("--min-length", type=int, metavar="N", help="tokens of a sentence at least (default: 1)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens at most (default: 100; 500 characters)")
    parser.add_argument("--unknown", action="store_true", help="allow the token for unknown words")
    add_threads_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    model = load_model(options)
    vocabulary = require_vocabulary(model, options.model)
    passages = is_passages(vocabulary)
    texts = model.generate(
        options.number,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        greedy=options.greedy,
        prompt=options.prompt,
        seed=options.seed,
        min_length=1 if options.min_length is None else options.min_length,
        max_length=(500 if passages else 100) if options.max_length is None else options.max_length,
        allow_unknown=options.unknown,
        until_end=not passages,
    )
    print_texts(texts, passages)
    return 0


def is_passages(vocabulary: Any) -> bool:
    """Whether the model writes running text rather than sentences: characters, with the newline as the only marker."""
    return vocabulary.level == "character" and is_stream(vocabulary)


def print_texts(texts: list[str], passages: bool) -> None:
    """One sentence a line; an empty line between passages."""
    if passages:
        print("\n\n".join(text.strip("\n") for text in texts))
        return
    for text in texts:
        # a line break that was a character of the text must not look like a second sentence
        print(" ".join(text.splitlines()))
