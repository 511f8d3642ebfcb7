"""What several peers share: constants of the language-model workloads, and how their inputs are cut."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from benchmarks.peers import ROUNDING
from benchmarks.workloads import Workload

CHECKED_SENTENCES = 4
CHECKED_CHUNKS = 2
LEARNING_RATE = 0.005
CLIP_NORM = 5.0
STREAM_RATE = 1.0


def sampled(results: dict[str, np.ndarray], limit: int = 200_000) -> dict[str, np.ndarray]:
    """Thin large arrays out to about ``limit`` elements, at an odd stride that depends on the shape only."""
    return {name: np.array(a).ravel()[:: (np.size(a) // limit) | 1] for name, a in results.items()}


def sentences(arrays: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (inputs, targets) of every sentence: all words but the last, all words but the first."""
    ids, starts = arrays["ids"], arrays["starts"]
    parts = [ids[a:b] for a, b in itertools.pairwise(starts)]
    return [(part[:-1].copy(), part[1:].copy()) for part in parts]


def first_chunks(workload: Workload, ids: np.ndarray) -> np.ndarray:
    """Return a text of as many chunks as results are checked on."""
    return ids[: workload.batch * workload.time * min(CHECKED_CHUNKS, workload.units) + 1]


def updates(label: str, before: dict[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return by how much each parameter changed, and beside it what storing the parameter in its dtype rounds away."""
    results = {}
    for name, array in after.items():
        change = array - before[name]
        results[f"{label}: update of {name}"] = change
        results[f"{ROUNDING}{label}: update of {name}"] = 8 * np.finfo(array.dtype).eps * np.abs(before[name]).max()
    return sampled(results)


def with_embedding(workload: Workload, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a one-hot model as those of a model with an embedding of the hidden size."""
    rng = np.random.default_rng(1)
    bound = 1.0 / np.sqrt(workload.hidden)
    rows = arrays["rnn.weight_hh_l0"].shape[0]
    shapes = {"embedding.weight": (workload.vocabulary, workload.hidden), "rnn.weight_ih_l0": (rows, workload.hidden)}
    added = {name: rng.uniform(-bound, bound, shape).astype(workload.dtype) for name, shape in shapes.items()}
    return {**arrays, **added}


def time_major(array: np.ndarray) -> np.ndarray:
    """Return (batch, time, width) as a contiguous (time, batch, width)."""
    return np.ascontiguousarray(array.transpose(1, 0, 2))
