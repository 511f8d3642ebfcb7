"""The options of `crnn train`, and the recipe that they make."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

from crnn import optim, schedules
from crnn.bptt import Chunk, Truncation, Window
from crnn.cli.options import (
    CELLS,
    HelpFormatter,
    add_reading_options,
    add_threads_option,
    read_seed,
    read_truncation,
    whole_number_from,
)
from crnn.recipes import RECIPES, Recipe, get

__all__ = ["add_parser", "final_schedule", "make_recipe"]

_OPTIMIZERS: dict[str, type[optim.Optimizer]] = {
    "sgd": optim.SGD,
    "adagrad": optim.Adagrad,
    "rmsprop": optim.RMSprop,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
}
_SCHEDULES = "constant, halve[:FACTOR], step:FACTOR:AFTER[:EVERY], exponential:FACTOR, plateau:FACTOR[:PATIENCE]"

_DESCRIPTION = """\
Train a language model on a text and save it.

FILE is a .csv or .tsv file (one column of it, a document per row), or a plain text file; both may be
compressed with gzip. A folder holds the parts of a corpus, such as ptb.train.txt, ptb.valid.txt and
ptb.test.txt. Without FILE the text is Python's own documentation, which every installation carries.

A recipe says how; every other option replaces one of its values (`crnn recipes` shows them all).
"""

_EPILOG = """\
examples:
  crnn train
  crnn train comments.csv --column body --cell gru --hidden 100 --vocab 8000 --truncate 4 \\
             --epochs 10 --out comments.safetensors --log comments.jsonl
  crnn train --recipe char-rnn shakespeare.txt --out shakespeare.safetensors
  crnn train --recipe zaremba-small ptb/ --checkpoint run1 --checkpoint-every 5
  crnn train --resume run1

Ctrl-C lets the running step finish, saves the model (and the checkpoint) and says where; the exit code
is then 130.
"""

# Options that name recipe values one to one.
_FIELDS = {
    "cell": "cell",
    "hidden": "hidden_size",
    "layers": "num_layers",
    "dropout": "dropout",
    "tie_weights": "tie_weights",
    "bias": "bias",
    "nonlinearity": "nonlinearity",
    "reset_after": "reset_after",
    "z_weighs": "z_weighs",
    "init_scale": "init_scale",
    "forget_bias": "forget_bias",
    "level": "level",
    "layout": "layout",
    "batch": "batch_size",
    "bucket": "bucket",
    "shuffle": "shuffle",
    "valid_fraction": "valid_fraction",
    "valid_split": "valid_split",
    "clip": "clip_norm",
    "clip_value": "clip_value",
    "accumulate": "accumulate",
    "keep_best": "keep_best",
    "epochs": "epochs",
}


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the program; every option is None unless it was given."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a language model on a text",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help="text file or folder")
    parser.add_argument(
        "--recipe", metavar="NAME", choices=tuple(RECIPES), help=f"one of {', '.join(RECIPES)} (default: notes)"
    )
    _add_text_options(parser.add_argument_group("text"))
    _add_model_options(parser.add_argument_group("model"))
    _add_training_options(parser.add_argument_group("training"))
    _add_run_options(parser.add_argument_group("run"))
    return parser


def _add_text_options(group: argparse._ArgumentGroup) -> None:
    add_reading_options(group)
    group.add_argument("--train", type=Path, metavar="FILE", help="training text, instead of FILE")
    group.add_argument(
        "--valid", type=Path, metavar="FILE", help="validation text (default: a part of the training text)"
    )
    group.add_argument("--test", type=Path, metavar="FILE", help="text to evaluate the finished model on")
    group.add_argument(
        "--valid-fraction",
        type=float,
        metavar="F",
        help="part of the text that validates: of sentences every n-th, of a stream see --valid-split; 0: none",
    )
    group.add_argument(
        "--valid-split", choices=("end", "streams"), help="which part of a stream: its end, or the end of each stream"
    )
    group.add_argument(
        "--valid-on-train",
        action="store_true",
        default=None,
        help="evaluate the loss on the training text itself, as the WildML tutorial does",
    )
    group.add_argument("--level", choices=("word", "whitespace", "character"), help="how text is cut into tokens")
    group.add_argument(
        "--lowercase",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="lower-case the text (default: at word level)",
    )
    group.add_argument("--vocab", type=int, metavar="N", help="entries of the vocabulary; 0: all words")
    group.add_argument("--sentences", type=int, metavar="N", help="train on the first N sentences only")


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cell", choices=CELLS, help="kind of recurrent cell")
    group.add_argument("--hidden", type=int, metavar="N", help="units per layer")
    group.add_argument("--layers", type=int, metavar="N", help="layers")
    group.add_argument("--embedding", type=int, metavar="N", help="width of the embedding; 0: one-hot words")
    group.add_argument("--dropout", type=float, metavar="P", help="on non-recurrent connections")
    group.add_argument("--tie-weights", action=argparse.BooleanOptionalAction, help="embedding = output weights")
    group.add_argument("--bias", action=argparse.BooleanOptionalAction, help="biases, or none anywhere")
    group.add_argument("--nonlinearity", choices=("tanh", "sigmoid", "relu"), help="of the rnn cell")
    group.add_argument("--reset-after", action=argparse.BooleanOptionalAction, help="the gru of PyTorch and cuDNN")
    group.add_argument("--z-weighs", choices=("candidate", "state"), help="what the gru's update gate weighs")
    group.add_argument("--init-scale", type=float, metavar="X", help="draw all weights from U(-X, X)")
    group.add_argument("--forget-bias", type=float, metavar="X", help="initial bias of an lstm's forget gates")
    group.add_argument("--dtype", choices=("float32", "float64"), help="default: float32")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the text")
    group.add_argument(
        "--truncate",
        type=_truncation,
        metavar="K",
        help="how far back gradients reach: K steps (a sliding window, or chunks of a stream), full, window:K, "
        "chunk:K1 or chunk:K1:K2",
    )
    group.add_argument(
        "--layout", choices=("sentences", "stream"), help="each sentence for itself, or one text with carried state"
    )
    group.add_argument("--batch", type=int, metavar="N", help="sentences, or parallel streams, per step")
    group.add_argument("--shuffle", action=argparse.BooleanOptionalAction, help="sentences in a new order each epoch")
    group.add_argument("--bucket", action=argparse.BooleanOptionalAction, help="batches of sentences of like length")
    group.add_argument("--optimizer", choices=tuple(_OPTIMIZERS), help="update rule")
    group.add_argument("--lr", type=float, metavar="X", help="learning rate")
    group.add_argument("--momentum", type=float, metavar="X", help="of sgd")
    group.add_argument("--weight-decay", type=float, metavar="X", help="of any optimizer; decoupled for adamw")
    group.add_argument("--schedule", type=_schedule_text, metavar="S", help=_SCHEDULES)
    group.add_argument("--warmup", type=int, metavar="STEPS", help="rise to the full rate over the first steps")
    group.add_argument("--cosine", action="store_true", default=None, help="fall to zero along a cosine over the run")
    group.add_argument(
        "--normalise", choices=("sequences", "tokens", "none"), help="what the gradient of the total loss is divided by"
    )
    group.add_argument("--clip", type=float, metavar="X", help="limit of the gradient's global norm; 0: none")
    group.add_argument("--clip-value", type=float, metavar="X", help="limit of every gradient value; 0: none")
    group.add_argument("--accumulate", type=int, metavar="N", help="batches per update")
    group.add_argument(
        "--keep-best", action=argparse.BooleanOptionalAction, help="end with the best weights, not the last ones"
    )
    group.add_argument(
        "--patience", type=int, metavar="N", help="stop after more than N evaluations without a new best"
    )


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=read_seed, metavar="N", help="of everything random (default: 0)")
    add_threads_option(group)
    group.add_argument("--out", type=Path, metavar="FILE", help="model file (default: crnn-model.safetensors)")
    group.add_argument("--log", type=Path, metavar="FILE", help="write the history, one JSON object a line")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the learning curves at the end (.png, .svg)")
    group.add_argument("--tensorboard", type=Path, metavar="DIR", help="write events for TensorBoard")
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="write checkpoints there")
    group.add_argument(
        "--checkpoint-every",
        type=float,
        metavar="MIN",
        help="minutes between checkpoints within an epoch (default: 10)",
    )
    group.add_argument("--resume", type=Path, metavar="DIR", help="go on where a checkpoint stands; needs nothing else")
    group.add_argument("--minutes", type=float, metavar="M", help="stop after that time")
    group.add_argument(
        "--samples", type=whole_number_from(0), metavar="N", help="sentences shown at the end (default: 5)"
    )
    group.add_argument("--quiet", action="store_true", default=None, help="print nothing but errors")


def make_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that was asked for, with the values that were given in place of its own.

    Raises
    ------
    ValueError
        A value that cannot be, or that the chosen cell or layout has no use for; the option is named.
    """
    recipe = get(options.recipe or "notes")
    given = {field: getattr(options, name) for name, field in _FIELDS.items() if getattr(options, name) is not None}
    cell = given.get("cell", recipe.cell)
    _check_cell_options(options, cell)
    if cell != "lstm" or not given.get("bias", recipe.bias):
        given.setdefault("forget_bias", None)
    for field in ("clip_norm", "clip_value"):
        if given.get(field) == 0:
            given[field] = None
    if options.embedding is not None:
        given["embedding_size"] = options.embedding or None
    if options.vocab is not None:
        given["vocabulary_size"] = options.vocab or None
    if options.normalise is not None:
        given["normalise"] = None if options.normalise == "none" else options.normalise
    layout = given.get("layout", recipe.layout)
    given["truncation"] = _truncation_for(options, layout, recipe.truncation)
    given["optimizer"] = _optimizer(options, recipe.optimizer)
    if options.schedule is not None:
        given["schedule"] = _schedule(options.schedule)
    return recipe.override(**given)


def final_schedule(options: argparse.Namespace, recipe: Recipe, steps_per_epoch: int) -> schedules.Schedule:
    """The recipe's schedule under --cosine and --warmup, which need to know how long the run is."""
    schedule = copy.deepcopy(recipe.schedule)  # schedules have a memory, recipes are shared
    if options.cosine:
        if options.schedule is not None:
            raise ValueError("--cosine and --schedule both say how the rate falls: give one of them")
        schedule = schedules.Cosine(max(1, steps_per_epoch * recipe.epochs - (options.warmup or 0)))
    if options.warmup is not None:
        schedule = schedules.Warmup(options.warmup, schedule)
    return schedule


def _check_cell_options(options: argparse.Namespace, cell: str) -> None:
    for name, owner in (("nonlinearity", "rnn"), ("reset_after", "gru"), ("z_weighs", "gru"), ("forget_bias", "lstm")):
        if getattr(options, name) is not None and cell != owner:
            raise ValueError(f"--{name.replace('_', '-')}: only the {owner} cell has it, the cell is {cell}")


def _truncation(text: str) -> str:
    """Checks --truncate early and keeps its text, which a checkpoint can hold."""
    read_truncation(text)
    return text


def _truncation_for(options: argparse.Namespace, layout: str, default: Truncation) -> Truncation:
    if options.truncate is not None:
        truncation = read_truncation(options.truncate, "window" if layout == "sentences" else "chunk")
        if layout == "stream" and not isinstance(truncation, Chunk):
            raise ValueError(f"--truncate: got {options.truncate} for a stream, wanted K or chunk:K")
        return truncation
    # a recipe for the other layout cuts in the other way, equally far
    if layout == "stream" and not isinstance(default, Chunk):
        return Chunk(default.k if isinstance(default, Window) else 35)
    return default


def _optimizer(options: argparse.Namespace, default: optim.Optimizer) -> optim.Optimizer:
    kind = type(default) if options.optimizer is None else _OPTIMIZERS[options.optimizer]
    values: dict[str, Any] = {}
    if kind is type(default):
        values = {name: getattr(default, name) for name in default.options}
    if options.lr is not None:
        values["learning_rate"] = options.lr
    if options.weight_decay is not None:
        values["weight_decay"] = options.weight_decay
    if options.momentum is not None:
        if kind is not optim.SGD:
            raise ValueError(f"--momentum: only sgd has it, the optimizer is {kind.__name__.lower()}")
        values["momentum"] = options.momentum
    if kind is optim.SGD and "learning_rate" not in values:
        raise ValueError("--optimizer sgd: has no usual learning rate, give one with --lr")
    return kind(**values)


def _schedule_text(text: str) -> str:
    try:
        _schedule(text)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; wanted {_SCHEDULES}") from None
    return text


def _schedule(text: str) -> schedules.Schedule:
    kind, *values = text.strip().lower().split(":")
    # what makes it, and from how many numbers at least and at most
    makers: dict[str, tuple[Any, int, int]] = {
        "constant": (schedules.Constant, 0, 0),
        "halve": (schedules.HalveOnIncrease, 0, 1),
        "step": (schedules.StepDecay, 2, 3),
        "exponential": (schedules.Exponential, 1, 1),
        "plateau": (schedules.Plateau, 0, 4),
    }
    if kind not in makers:
        raise ValueError(f"unknown schedule {kind!r}")
    make, least, most = makers[kind]
    if not least <= len(values) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise ValueError(f"{kind} takes {wanted} number(s), got {len(values)}")
    schedule: schedules.Schedule = make(*map(_number, values))
    return schedule


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
