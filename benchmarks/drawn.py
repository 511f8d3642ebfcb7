"""Shapes drawn at random: what nobody can have tuned for, and where a library falls behind without noticing.

``python -m benchmarks --drawn 40 --seed 7`` draws forty shapes of each group; the same seed draws the same ones.
"""

from __future__ import annotations

import random

from benchmarks.workloads import CELLS, GATES, Workload

GROUPS = ("drawn-training", "drawn-ragged", "drawn-step", "drawn-inference")
BATCHES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 100, 128, 200, 256)
TIMES = (1, 3, 8, 15, 28, 35, 50, 64, 100, 200, 400)
STEPPED = (1, 1, 2, 4, 8, 16, 20, 24, 40, 64)  # sequences that are fed step by step together
MOST = 3e10  # multiplications and additions in forward and backward: a tenth of a second at 300 GFLOP/s


def drawn(count: int, seed: int) -> list[Workload]:
    """Return ``count`` workloads of every group, no two of them the same.

    Hidden sizes lie evenly on a logarithmic scale from 11 to 1024; inputs are as wide in half of the shapes, elsewhere
    from 1 to 1024.
    """
    return [workload for group in GROUPS for workload in _group(group, count, random.Random(f"{group} {seed}"))]


def _group(group: str, count: int, rng: random.Random) -> list[Workload]:
    found: dict[str, Workload] = {}
    while len(found) < count:
        workload = _one(group, rng)
        flops = 6 * workload.batch * workload.time * GATES[workload.cell] * workload.hidden
        if flops * (workload.input + workload.hidden) <= MOST:
            found[workload.name] = workload
    return list(found.values())


def _one(group: str, rng: random.Random) -> Workload:
    cell, hidden = rng.choice(CELLS), _width(rng, 3.5)
    inputs = hidden if rng.random() < 0.5 else _width(rng, 0)
    if group == "drawn-step":
        peers = ("crnn", "torch", "jax", "onnxruntime")
        return Workload(group, "step", cell, rng.choice(STEPPED), 64, inputs, hidden, train=False, peers=peers)
    batch, time = rng.choice(BATCHES), rng.choice(TIMES)
    if group == "drawn-inference":
        peers = ("crnn", "torch", "jax", "onnxruntime")
        return Workload(group, "layer", cell, batch, time, inputs, hidden, train=False, peers=peers)
    peers = ("crnn", "torch", "jax")
    if group == "drawn-training":
        return Workload(group, "layer", cell, batch, time, inputs, hidden, peers=peers)
    batch, time = max(batch, 2), max(time, 8)
    shortest = max(1, time // rng.choice((2, 4, 8)))
    return Workload(group, "ragged", cell, batch, time, inputs, hidden, shortest=shortest, peers=peers)


def _width(rng: random.Random, least: float) -> int:
    return round(2 ** rng.uniform(least, 10))
