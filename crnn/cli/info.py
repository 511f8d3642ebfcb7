"""`crnn info`: what a model file holds, or what crnn runs on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from crnn.cli.options import HelpFormatter

if TYPE_CHECKING:
    from crnn.language_model import LanguageModel

_EPILOG = """\
examples:
  crnn info comments.safetensors      configuration, parameters, vocabulary
  crnn info                           versions, instruction set, threads, BLAS
"""


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "info",
        help="what a model file holds, or what crnn runs on",
        description="Print what a model file holds; without a file, what crnn runs on.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    import crnn
    from crnn.config import describe

    if options.model is None:
        if options.json:
            print(json.dumps(describe(), default=str))
        else:
            crnn.show_config()
        return 0
    facts = summarise(crnn.load(options.model)) | {"bytes": os.path.getsize(options.model)}
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"{options.model}: {facts['bytes']:,} bytes")
    _print_block("configuration", facts["configuration"])
    print(f"\nparameters ({facts['parameters']:,})")
    width = max(map(len, facts["tensors"]))
    for name, shape in facts["tensors"].items():
        print(f"  {name:<{width}}  {' x '.join(map(str, shape)):>14}")
    if facts["vocabulary"] is None:
        print("\nvocabulary: none, the model was trained on bare ids")
    else:
        _print_block("vocabulary", facts["vocabulary"])
    return 0


def summarise(model: LanguageModel) -> dict[str, Any]:
    """A model's facts as JSON types: configuration, number of parameters, tensors' shapes, vocabulary."""
    vocabulary = model.vocabulary
    words = None
    if vocabulary is not None:
        words = {
            "entries": len(vocabulary),
            "level": vocabulary.level,
            "lowercase": vocabulary.lowercase,
            "markers": [vocabulary.start_token, vocabulary.end_token],
            "unknown": vocabulary.unknown_token,
            "words in the training text": vocabulary.words_found,
            "most frequent": list(vocabulary.tokens[:12]),
        }
    return {
        "configuration": dataclasses.asdict(model.configuration),
        "parameters": model.parameters.size,
        "tensors": {name: list(array.shape) for name, array in model.params.items()},
        "vocabulary": words,
    }


def _print_block(title: str, facts: dict[str, Any]) -> None:
    print(f"\n{title}")
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, list):
            value = " ".join(repr(item) if not item.isprintable() or " " in item else item for item in value)
        print(f"  {name:<{width}}  {value}")
