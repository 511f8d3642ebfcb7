"""`crnn plot`: learning curves from history files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from crnn.cli.options import HelpFormatter, check_apart, note

_EPILOG = """\
examples:
  crnn plot run.jsonl                            writes run.png
  crnn plot rnn.jsonl lstm.jsonl gru.jsonl --perplexity --out cells.svg
"""


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "plot",
        help="learning curves as PNG, SVG or PDF",
        description="Draw the histories that `crnn train --log` wrote. Needs matplotlib: pip install crnn[plot].",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("logs", metavar="LOG", nargs="+", type=Path, help="history file, one JSON object a line")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="picture; the suffix names the format (default: LOG.png)"
    )
    parser.add_argument("--perplexity", action="store_true", help="perplexities instead of nats per token")
    parser.add_argument("--title", default="", help="above the picture")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    from crnn.atomic import check_writable
    from crnn.history import History, check_picture, plot_histories

    out = check_writable(options.out or options.logs[0].with_suffix(".png"), "--out")
    check_picture(out, "--out")
    check_apart({"--out": out}, {f"LOG {path}": path for path in options.logs})
    histories = {}
    for path in options.logs:
        name = path.stem if path.stem not in histories else str(path)
        histories[name if len(options.logs) > 1 else ""] = History.load(path)
    plot_histories(histories, out, perplexity=options.perplexity, title=options.title)
    note(f"wrote {out}")
    return 0
