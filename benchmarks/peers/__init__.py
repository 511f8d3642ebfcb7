"""The peers: one module each, loaded by its own worker process.

A module has three functions. ``versions()`` names what is installed and raises ImportError where it is not;
``setup(threads)`` fixes the thread count; ``cases(workload, arrays, threads)`` returns the ways in which this peer can
run a workload, best known first, or raises :class:`Unsupported`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

ROUNDING = "rounding of "  # results under this prefix are tolerances of the result that follows
ONE_THREAD, FLOAT32 = "one thread", "float32"  # crnn's cases beside the comparison
PEERS = ("crnn", "torch", "jax", "onnxruntime", "keras", "notes_numpy")


class Unsupported(Exception):
    """A peer has no such cell, dtype or mode."""


@dataclasses.dataclass
class Case:
    """One way of running a workload.

    Attributes
    ----------
    run
        Does the work of one timed call and waits until it is finished.
    result
        Computes, from the initial weights, what has to agree between peers: name -> array.
    one
        A single step that carries its state on, for ``step`` workloads: its latencies are told one by one.
    threads
        Threads of this case, where it is not the peer's own count.
    beside
        The peer under other conditions (on one thread, in float32): timed in the same rounds, no entry of its own in
        the comparison.
    """

    run: Callable[[], object]
    result: Callable[[], dict[str, np.ndarray]]
    one: Callable[[], object] | None = None
    threads: int | None = None
    beside: bool = False
