"""Write docs/cli.md and docs/api.md from the command line's parsers and the docstrings: python docs/generate.py

Both pages repeat what the code says, so that it can be read and linked to without installing anything. The tests fail
when a page is not what this program would write.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from pathlib import Path
from types import GenericAlias, ModuleType, UnionType

import crnn
from crnn.cli.main import build_parser

HERE = Path(__file__).parent

MODULES = [
    "layers", "bptt", "data", "optim", "schedules", "trainer", "callbacks", "history", "checkpoint", "recipes", "text",
    "generation", "gradient_check", "model_file", "inspection", "runs", "streaming", "interop.torch", "interop.keras",
    "interop.onnx", "interop.safetensors",
]  # fmt: skip

CLI_INTRODUCTION = """\
# Command line

`crnn COMMAND`, or `python -m crnn COMMAND`. Results go to standard output, progress and notes to standard error. An
error is one line that says what was wrong, and an exit code other than 0; `CRNN_TRACEBACK=1` shows where it happened.
`CRNN_ISA` chooses the instruction set.

This page is written by `docs/generate.py` from the program's own help.
"""

API_INTRODUCTION = """\
# API

One line for each public name; `help(name)` has shapes, types, units and errors, and [guide.md](guide.md) shows them at
work. This page is written by `docs/generate.py` from the docstrings.

A layer (`RNN`, `LSTM`, `GRU`) has:

| | |
|---|---|
| `layer(x, state=None, lengths=None)` | inference: `(y, state)`; remembers nothing, safe from many threads |
| `layer.forward(x, state=None, lengths=None)` | training: a `Run` with `output`, `state` and `backward` |
| `run.backward(d_output, d_state=None, truncation=None)` | a `Backward` with `input`, `state` and `params` |
| `layer.step(x_t, state=None)` | one streaming step: `(y_t, state)` |
| `layer.stream(batch=1)` | a stream that owns its state and buffers |
| `layer.params` | name -> live array, PyTorch's names and shapes |

`x` is `(batch, time, features)`, `(time, features)`, or a list of `(time_i, features)`; `y` has the same form. A state
is `(layers * directions, batch, hidden)`, for the LSTM a pair of them.
"""


def cell(text: str) -> str:
    """Text that fits into a cell of a Markdown table."""
    return re.sub(r"``([^`]*)``", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def option(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"{action.metavar or action.dest}"
    value = ""
    if action.nargs != 0:
        value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "VALUE")
    return ", ".join(f"`{name} {value}`" if value else f"`{name}`" for name in action.option_strings)


def command_section(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [
        f"| {cell(option(action))} | {cell((action.help or '') % vars(action))} |"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    parts = [f"## crnn {name}", (parser.description or "").strip(), "\n".join(["| | |", "|---|---|", *rows])]
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return "\n".join([CLI_INTRODUCTION, *(command_section(name, p) for name, p in commands.choices.items())])


def summary(value: object) -> str:
    """First paragraph of a docstring; constants and type aliases show their value."""
    if isinstance(value, UnionType):
        return f"`{' | '.join(part.__name__ for part in value.__args__)}`"
    if isinstance(value, GenericAlias):
        return f"`{value}`".replace("typing.", "")
    if isinstance(value, (str, int, float, tuple)):
        return f"`{value!r}`"
    if isinstance(value, dict):
        return ", ".join(f"`{key}`" for key in value)
    return (inspect.getdoc(value) or "").split("\n\n")[0] if callable(value) else ""


def module_section(title: str, module: ModuleType, names: list[str]) -> str:
    rows = [f"| `{title}.{name}` | {cell(summary(getattr(module, name)))} |" for name in names]
    intro = (module.__doc__ or "").split("\n\n")[0]
    return "\n\n".join([f"## {title}", intro, "\n".join(["| | |", "|---|---|", *rows])]) + "\n"


def api_page() -> str:
    top = [name for name in crnn.__all__ if name != "__version__" and not isinstance(getattr(crnn, name), ModuleType)]
    sections = [module_section("crnn", crnn, top)]
    for name in MODULES:
        module = importlib.import_module(f"crnn.{name}")
        sections.append(module_section(f"crnn.{name}", module, list(module.__all__)))
    return "\n".join([API_INTRODUCTION, *sections])


PAGES = {"cli.md": cli_page, "api.md": api_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
