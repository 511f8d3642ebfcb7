"""The three cells as data: gates, states, tensor names and shapes, initialisation.

Names, shapes and gate order are PyTorch's: ``weight_ih_l{k}`` (G*H, input), ``weight_hh_l{k}`` (G*H, H) and two biases
(G*H,) per layer, with the suffix ``_reverse`` for the backward direction. A fact about a cell that is not an equation
stands here and nowhere else; the equations themselves are in ``csrc/`` and, readable, in ``tests/reference.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["CELLS", "NONLINEARITIES", "Z_WEIGHS", "Cell", "draw_uniform", "initialise", "kernel_name", "tensors"]

NONLINEARITIES = ("tanh", "sigmoid", "relu")
Z_WEIGHS = ("candidate", "state")

_DRAW_BLOCK = 1 << 20  # values drawn at a time: initialising a large vocabulary must not need a second copy of it


@dataclass(frozen=True, slots=True)
class Cell:
    """What distinguishes one kind of cell from another, seen from outside.

    Attributes
    ----------
    kind : str
        ``"rnn"``, ``"lstm"`` or ``"gru"``.
    gates : tuple of str
        The gates in the order in which they stand in every weight and bias; G is their number.
    states : tuple of str
        The states that a layer carries from step to step.
    """

    kind: str
    gates: tuple[str, ...]
    states: tuple[str, ...]


CELLS = {
    "rnn": Cell("rnn", ("h",), ("h",)),
    "lstm": Cell("lstm", ("i", "f", "g", "o"), ("h", "c")),
    "gru": Cell("gru", ("r", "z", "n"), ("h",)),
}


def kernel_name(cell: Cell, nonlinearity: str) -> str:
    """The name under which the kernels know the cell, e.g. ``"rnn_tanh"``."""
    return f"rnn_{nonlinearity}" if cell.kind == "rnn" else cell.kind


def tensors(
    cell: Cell, input_size: int, hidden_size: int, num_layers: int, *, bidirectional: bool, bias: bool
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yield name and shape of every tensor of a stack, in the kernels' order.

    For each layer, for each direction: weight_ih, weight_hh, bias_ih, bias_hh. Without `bias` the shape of the
    two biases is None, so that the positions stay the same.
    """
    rows = len(cell.gates) * hidden_size
    for layer in range(num_layers):
        width = input_size if layer == 0 else hidden_size * (2 if bidirectional else 1)
        for suffix in ("", "_reverse") if bidirectional else ("",):
            yield f"weight_ih_l{layer}{suffix}", (rows, width)
            yield f"weight_hh_l{layer}{suffix}", (rows, hidden_size)
            yield f"bias_ih_l{layer}{suffix}", (rows,) if bias else None
            yield f"bias_hh_l{layer}{suffix}", (rows,) if bias else None


def initialise(tensor: np.ndarray, hidden_size: int, rng: np.random.Generator) -> None:
    """Fill `tensor` in place from U(-1/sqrt(H), 1/sqrt(H)), PyTorch's rule for every recurrent tensor."""
    draw_uniform(tensor, 1.0 / np.sqrt(hidden_size), rng)


def draw_uniform(tensor: np.ndarray, bound: float, rng: np.random.Generator) -> None:
    """Fill `tensor` in place from U(-bound, bound), some rows at a time.

    The draws are float64 in the order of the public shape, so float32 and float64 tensors with the same seed start from
    the same numbers, whatever the storage layout.
    """
    block = max(1, _DRAW_BLOCK // max(1, tensor[:1].size))
    for start in range(0, tensor.shape[0], block):
        part = tensor[start : start + block]
        part[...] = rng.uniform(-bound, bound, part.shape)
