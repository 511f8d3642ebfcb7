"""How much work a workload is: floating-point operations and tokens of one timed call.

And the least time that it can take, given what the machine reached in the same run.

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
        width = workload.input if layer == 0 else workload.directions * workload.hidden
        products += workload.directions * gates * (width + workload.hidden)
    products += workload.vocabulary * workload.hidden
    return (6 if workload.train else 2) * products


def flops(workload: Workload, data: dict[str, np.ndarray]) -> int:
    """Return the floating-point operations of one timed call."""
    return rows(workload, data) * per_token(workload)


def bytes_per_step(workload: Workload) -> int:
    """Return the bytes of weights that one time step reads anew, because a single row does not share them with others.

    0 where rows do: the weights' traffic then hides behind the multiplications.
    """
    if workload.batch != 1 or workload.kind not in ("layer", "step"):
        return 0
    width = workload.hidden + (workload.input if workload.kind == "step" else 0)
    stack = workload.layers * workload.directions
    return stack * GATES[workload.cell] * workload.hidden * width * np.dtype(workload.dtype).itemsize


def least_seconds(workload: Workload, operations: int, peak: float, read: float | None) -> float:
    """Return the time below which no library can do the work on this machine.

    All products at the multiply-add peak; for one sequence (or one step per call) the recurrent products, forward and
    backward, no faster than the weights can be read.

    Parameters
    ----------
    workload
        The workload.
    operations
        Floating-point operations of one call.
    peak
        Multiply-adds, GFLOP/s.
    read
        Reading :func:`bytes_per_step`, GB/s.
    """
    size = bytes_per_step(workload)
    if not size or not read:
        return operations / peak * 1e-9
    passes = workload.time * (2 if workload.train else 1)
    streamed = passes * size / np.dtype(workload.dtype).itemsize * 2
    return max(0.0, operations - streamed) / peak * 1e-9 + passes * size / read * 1e-9
