"""`crnn recipes`: the named training set-ups."""

from __future__ import annotations

import argparse
from typing import Any

from crnn.cli.options import HelpFormatter


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "recipes",
        help="named training set-ups, every value",
        description="Print the recipes that `crnn train --recipe NAME` knows, with every value.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="*", help="only these (default: all)")
    parser.add_argument("--brief", action="store_true", help="one line for each")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    from crnn.recipes import RECIPES, get

    chosen = [get(name) for name in options.name or RECIPES]
    if options.brief:
        width = max(len(recipe.name) for recipe in chosen)
        for recipe in chosen:
            print(f"{recipe.name:<{width}}  {recipe.about}")
    else:
        print("\n\n".join(recipe.describe() for recipe in chosen))
    return 0
