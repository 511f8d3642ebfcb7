"""The notes' NumPy code: a word at a time, dense gradients, float64. The baseline that crnn replaces."""

from __future__ import annotations

import os

import numpy as np

from benchmarks.peers import Case, Unsupported
from benchmarks.peers.common import CHECKED_SENTENCES, LEARNING_RATE, sentences, updates
from benchmarks.workloads import Workload
from tests.notes_rnn import NotesRNN


def versions() -> dict[str, str]:
    return {"numpy": np.__version__}


def setup(threads: int) -> None:
    """NumPy's BLAS reads its thread count from the environment when it loads."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != str(threads):
        raise RuntimeError("OPENBLAS_NUM_THREADS must be set before NumPy is imported")


def cases(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> dict[str, Case]:
    if workload.kind != "sentences" or workload.cell != "rnn":
        raise Unsupported("the notes have an RNN language model only")
    pairs = [(x.tolist(), y.tolist()) for x, y in sentences(arrays)]
    model = _model(workload, arrays)

    def run() -> None:
        for x, y in pairs:
            model.sgd_step(x, y, LEARNING_RATE)

    def result() -> dict[str, np.ndarray]:
        fresh = _model(workload, arrays)
        for x, y in pairs[:CHECKED_SENTENCES]:
            fresh.sgd_step(x, y, LEARNING_RATE)
        after = {"rnn.weight_ih_l0": fresh.U, "rnn.weight_hh_l0": fresh.W, "output.weight": fresh.V}
        return updates("truncated", arrays, after)

    return {"float64": Case(run, result)}


def _model(workload: Workload, arrays: dict[str, np.ndarray]) -> NotesRNN:
    model = NotesRNN(2, 2, workload.window)
    model.U = arrays["rnn.weight_ih_l0"].astype(np.float64)
    model.W = arrays["rnn.weight_hh_l0"].astype(np.float64)
    model.V = arrays["output.weight"].astype(np.float64)
    return model
