"""`crnn evaluate`: loss and perplexity of a model on a text."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from crnn.cli.corpus import Reading, evaluation_data, is_stream
from crnn.cli.options import (
    HelpFormatter,
    add_reading_options,
    add_threads_option,
    load_model,
    note,
    require_vocabulary,
)

_DESCRIPTION = """\
Print a model's loss (nats per token) and perplexity on a text.

The text is cut and lower-cased as the training text was. Models that were trained on one continuous
stream read the text as one stream, with carried state; the others read each sentence for itself.
"""

_EPILOG = """\
example:
  crnn evaluate comments.safetensors held-out.csv --column body
"""


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "evaluate",
        help="loss and perplexity on a text",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model file")
    parser.add_argument("file", metavar="FILE", type=Path, help=".csv, .tsv or text file, also compressed with gzip")
    add_reading_options(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object; a perplexity beyond the range of floats is the largest of them",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no notes")
    add_threads_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    from crnn.history import perplexity_of

    model = load_model(options)
    vocabulary = require_vocabulary(model, options.model)
    reading = Reading.of(options, vocabulary.level, vocabulary.lowercase, options.quiet)
    sentences = reading.sentences(options.file)
    data, unknown = evaluation_data(vocabulary, sentences, is_stream(vocabulary))
    total, tokens = model.evaluate(data.evaluation_batches())
    loss = total / tokens
    if not math.isfinite(loss):
        raise ArithmeticError(f"{options.model}: the loss is {loss}; the model's weights are not usable")
    perplexity = perplexity_of(loss)
    if unknown and not options.quiet:
        note(
            f"{unknown:,} of {tokens:,} tokens ({100 * unknown / tokens:.1f} %) are outside the vocabulary "
            f"and count as {vocabulary.unknown_token}"
        )
    if options.json:
        print(json.dumps({"loss": loss, "perplexity": perplexity, "tokens": tokens, "unknown": unknown}))
    else:
        print(f"loss        {loss:.6f} nats/token")
        print(f"perplexity  {perplexity:.2f}")
        print(f"tokens      {tokens}")
    return 0
