"""The `crnn` program: its commands, and what becomes of errors."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from crnn import __version__
from crnn.cli import evaluate, export, generate, gradcheck, info, inspect, plot, recipes, train
from crnn.cli.options import HelpFormatter

__all__ = ["build_parser", "main"]

INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended

_DESCRIPTION = """\
Recurrent language models on the CPU: from a text file to a trained RNN, LSTM or GRU, and back to text.

The first run needs nothing but this:

  crnn train                          learn English from Python's own documentation
  crnn generate crnn-model.safetensors -n 5
"""

_EPILOG = """\
examples:
  crnn train comments.csv --column body --cell gru --epochs 10 --out comments.safetensors
  crnn evaluate comments.safetensors other.csv --column body
  crnn generate comments.safetensors -n 5 --temperature 0.8 --prompt "i think"
  crnn gradcheck --cell lstm --truncate 4

`crnn COMMAND --help` tells more. Results are printed on standard output, progress and notes on standard error.
A run that fails says why in one line and exits with a code other than 0; CRNN_TRACEBACK=1 shows where it failed.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the options in one line; argparse would print a screen of usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; every command leaves its function in `run`."""
    parser = Parser(prog="crnn", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=f"crnn {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (train, evaluate, generate, info, gradcheck, recipes, plot, inspect, export):
        module.add_parser(commands)
    _add_benchmark(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Parameters
    ----------
    arguments
        Without the program's name; None: those of the process.

    Returns
    -------
    int
        The exit code: 0, 1 after an error, 130 after Ctrl-C. Wrong options leave by SystemExit(2), as argparse does.
    """
    _prepare_streams()
    options = build_parser().parse_args(arguments)
    show_traceback = bool(os.environ.get("CRNN_TRACEBACK"))
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            code = options.run(options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            print("\ncrnn: interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # the reader of a pipe went away (`crnn generate ... | head`); the interpreter must not flush again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            if show_traceback:
                raise
            print(f"crnn {options.command}: {describe(error)}", file=sys.stderr)
            return 1
    return int(code)


def _prepare_streams() -> None:
    """What cannot be shown must not end a run: a stream that was closed swallows, an encoding escapes what it lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is from the start


def describe(error: BaseException) -> str:
    """An exception as one line for the user."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    elif isinstance(error, MemoryError):
        text = f"not enough memory {error}".strip()
    elif isinstance(error, (ValueError, TypeError, OSError, ImportError, ArithmeticError)) and str(error):
        text = str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error} (CRNN_TRACEBACK=1 shows where; please report it)"
    return "; ".join(line.strip() for line in text.splitlines() if line.strip()).replace(":; ", ": ")


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"crnn: warning: {message}", file=sys.stderr)


def _add_benchmark(commands: Any) -> None:
    from crnn import selfbench

    parser = commands.add_parser(
        "benchmark",
        help="measure this machine",
        description="Measure crnn on this machine: layers, streaming steps and language models of all cells, "
        "in GFLOP/s, microseconds and words per second.",
        formatter_class=HelpFormatter,
    )
    selfbench.add_arguments(parser)
    parser.set_defaults(run=selfbench.main)
