"""`crnn gradcheck`: analytic gradients against finite differences, every tensor."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from typing import Any

from crnn.bptt import Chunk, Full, Truncation, Window
from crnn.cli.options import CELLS, HelpFormatter, read_seed, read_truncation, whole_number_from

_DESCRIPTION = """\
Compare a language model's gradients with finite differences in float64: every tensor is listed with its
worst relative error, and the exit code is 1 when one of them is above the tolerance.

What a truncated gradient has to equal is the derivative of the loss in which the states that enter the
window are constants. Without --truncate the full gradient, a window and two chunks are checked; without
--cell all cells, the rnn with its three nonlinearities, the gru in its four forms.
"""

_EPILOG = """\
examples:
  crnn gradcheck --cell lstm
  crnn gradcheck --cell gru --truncate 4 --layers 2 --embedding 7
"""

_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "rnn": ({"nonlinearity": "tanh"}, {"nonlinearity": "sigmoid"}, {"nonlinearity": "relu"}),
    "lstm": ({},),
    "gru": tuple(
        {"reset_after": after, "z_weighs": weighs} for after in (False, True) for weighs in ("candidate", "state")
    ),
}


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "gradcheck",
        help="check gradients against finite differences",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--cell", choices=(*CELLS, "all"), default="all", help="default: all")
    parser.add_argument(
        "--truncate", type=read_truncation, metavar="K", help="K (a sliding window), full, chunk:K1 or chunk:K1:K2"
    )
    parser.add_argument("--nonlinearity", choices=("tanh", "sigmoid", "relu"), help="of the rnn; default: each")
    parser.add_argument("--layers", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--hidden", type=int, default=9, metavar="N", help="units per layer (default: 9)")
    parser.add_argument("--vocab", type=int, default=31, metavar="N", help="words (default: 31)")
    parser.add_argument("--embedding", type=int, metavar="N", help="width of an embedding (default: one-hot words)")
    parser.add_argument("--no-bias", action="store_true", help="no biases anywhere")
    parser.add_argument(
        "--length", type=int, default=10, metavar="N", help="words of the longer sentence (default: 10)"
    )
    parser.add_argument(
        "--samples", type=whole_number_from(1), default=25, metavar="N", help="elements per tensor (default: 25)"
    )
    parser.add_argument(
        "--tolerance", type=_tolerance, default=1e-6, metavar="X", help="relative error (default: 1e-6)"
    )
    parser.add_argument("--seed", type=read_seed, default=0, metavar="N", help="of weights and words (default: 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    import numpy as np

    import crnn
    from crnn.arguments import whole_number
    from crnn.gradient_check import GradientError

    length = whole_number(options.length, "--length", 2)
    failed = 0
    for cell, variant in _chosen(options):
        model = crnn.LanguageModel(
            options.vocab,
            cell,
            options.hidden,
            options.layers,
            embedding_size=options.embedding,
            bias=not options.no_bias,
            dtype=np.float64,
            rng=options.seed,
            **variant,
        )
        # large, uneven weights: near zero every cell is linear and a wrong formula may pass
        model.initialise(options.seed, scale=0.7)
        rng = np.random.default_rng(options.seed + 1)
        sentences = [rng.integers(0, options.vocab, count + 1) for count in (length, max(1, length // 2))]
        xs, ys = [ids[:-1] for ids in sentences], [ids[1:] for ids in sentences]
        for truncation in _truncations(options):
            title = " ".join([cell, *(f"{name}={value}" for name, value in variant.items())])
            print(f"{title}, {options.layers} x {options.hidden}, {truncation!r}")
            try:
                report: Any = model.gradient_check(
                    xs, ys, truncation, tolerance=options.tolerance, samples=options.samples, seed=options.seed
                )
            except GradientError as error:
                failed += 1
                report = error.report
                print(f"crnn gradcheck: {title}: {str(error).splitlines()[0]}", file=sys.stderr)
            print(f"{report}\n", flush=True)
    if failed:
        print(f"crnn gradcheck: {failed} check(s) failed", file=sys.stderr)
    return 1 if failed else 0


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a finite number above 0")
    return value


def _chosen(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    for cell in CELLS if options.cell == "all" else (options.cell,):
        for variant in _VARIANTS[cell]:
            if options.nonlinearity in (None, variant.get("nonlinearity", options.nonlinearity)):
                yield cell, variant


def _truncations(options: argparse.Namespace) -> tuple[Truncation, ...]:
    if options.truncate is not None:
        return (options.truncate,)
    return Full(), Window(4), Chunk(4), Chunk(3, 5)
