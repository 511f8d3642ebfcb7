"""How much work a workload is: floating-point operations and tokens of one timed call.

Only the products count, two operations per multiply-add. Forward is one product per weight, backward two (the
gradient of the input and of the weight), so training costs three times inference. Word look-ups cost nothing, and a
truncated backward is counted as a full one.
"""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import GATES, Workload


def rows(workload: Workload, data: dict[str, np.ndarray]) -> int:
    """Return the tokens (time steps over all sequences) that one timed call processes."""
    if workload.kind == "ragged":
        return int(data["lengths"].sum())
    if workload.kind == "sentences":
        return int(data["ids"].size - (data["starts"].size - 1))
    if workload.kind == "stream":
        return workload.batch * workload.time * workload.units
    return workload.batch * workload.time


def per_token(workload: Workload) -> int:
    """Return the floating-point operations of one token."""
    gates = GATES[workload.cell] * workload.hidden
    products = 0
    for layer in range(workload.layers):
        width = workload.input if layer == 0 else workload.hidden
        products += gates * (width + workload.hidden)
    products += workload.vocabulary * workload.hidden
    return (6 if workload.train else 2) * products


def flops(workload: Workload, data: dict[str, np.ndarray]) -> int:
    """Return the floating-point operations of one timed call."""
    return rows(workload, data) * per_token(workload)
