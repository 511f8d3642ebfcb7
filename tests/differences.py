"""Finite differences: gradients from forward passes alone, for the oracle and for the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import reference


def central_differences(f: Callable[[], float], array: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """The gradient of f with respect to `array` (perturbed in place, restored), by the 4th-order stencil."""
    gradient = np.empty(array.shape, dtype=np.float64)
    for at in np.ndindex(array.shape):
        value = array[at]
        f_at = {}
        for step in (-2, -1, 1, 2):
            array[at] = value + step * h
            f_at[step] = f()
        array[at] = value
        gradient[at] = (8 * (f_at[1] - f_at[-1]) - (f_at[2] - f_at[-2])) / (12 * h)
    return gradient


def surrogate_loss(
    net: reference.Net,
    params: reference.Parameters,
    xs: Sequence[np.ndarray],
    state: reference.State,
    d_outputs: Sequence[np.ndarray],
    d_state: reference.State,
    reach: reference.Reach,
    frozen: reference.Forward,
) -> float:
    """The loss whose exact gradient the truncated one is: steps before r(t) run with the parameters of `frozen`.

    Uses forward passes only, so finite differences of it test a truncated backward without any backward code.
    """
    total = 0.0
    for i, x in enumerate(xs):
        initial, end, last = reference.state_of(state, i), reference.state_of(d_state, i), len(x) - 1
        if len(x) == 0:
            total += sum(float(d @ v) for ds, s in zip(end, initial) for d, v in zip(ds, s))
        for t in range(len(x)):
            r = reach(t)
            start = initial if r == 0 else [states[r] for states in frozen.traces[i].entering]
            stop = len(x) if net.bidirectional else t + 1
            trace = reference.forward_one(net, params, np.asarray(x[r:stop], dtype=np.float64), start)
            total += float(trace.output[t - r] @ d_outputs[i][t])
            if t == last:
                total += sum(float(d @ v) for ds, s in zip(end, trace.final) for d, v in zip(ds, s))
    return total
