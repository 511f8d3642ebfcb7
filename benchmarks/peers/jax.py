"""JAX: jitted `lax.scan`, the input projection of all steps in one product before it, compiled before it is timed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# float64 workloads need it; float32 arrays stay float32.
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from benchmarks.peers import Case, Unsupported
from benchmarks.peers.common import sampled, time_major
from benchmarks.workloads import Workload

Weights = dict[str, Any]


def versions() -> dict[str, str]:
    return {"jax": jax.__version__}


def setup(threads: int) -> None:
    """XLA sizes its pool by the processors it may run on."""
    if len(os.sched_getaffinity(0)) != threads:
        raise RuntimeError("the worker must be pinned to as many processors as threads")


def cases(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> dict[str, Case]:
    if workload.window or workload.kind not in ("layer", "step"):
        raise Unsupported(f"no {workload.kind} workload for JAX")
    if workload.kind == "step":
        return {"jit": _step(workload, arrays)}
    return {"scan": _layer(workload, arrays)}


def _weights(arrays: dict[str, np.ndarray]) -> Weights:
    """Kernels as (input, gates*hidden), the usual layout of JAX libraries: no transposition inside the product."""
    pairs = {"ih": "weight_ih_l0", "hh": "weight_hh_l0"}
    weights = {key: jnp.asarray(np.ascontiguousarray(arrays[name].T)) for key, name in pairs.items()}
    return weights | {"bih": jnp.asarray(arrays["bias_ih_l0"]), "bhh": jnp.asarray(arrays["bias_hh_l0"])}


def _rnn(weights: Weights, state: Any, projected: Any) -> tuple[Any, Any]:
    h = jnp.tanh(projected + state @ weights["hh"])
    return h, h


def _lstm(weights: Weights, state: Any, projected: Any) -> tuple[Any, Any]:
    h, c = state
    i, f, g, o = jnp.split(projected + h @ weights["hh"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _gru(weights: Weights, state: Any, projected: Any) -> tuple[Any, Any]:
    xr, xz, xn = jnp.split(projected, 3, axis=-1)
    hr, hz, hn = jnp.split(state @ weights["hh"] + weights["bhh"], 3, axis=-1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    h = (1 - z) * jnp.tanh(xn + r * hn) + z * state
    return h, h


STEPS: dict[str, Callable[[Weights, Any, Any], tuple[Any, Any]]] = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}


def _project(cell: str, weights: Weights, x: Any) -> Any:
    bias = weights["bih"] if cell == "gru" else weights["bih"] + weights["bhh"]
    return x @ weights["ih"] + bias


def _zeros(cell: str, batch: int, hidden: int, dtype: str) -> Any:
    zero = jnp.zeros((batch, hidden), dtype)
    return (zero, zero) if cell == "lstm" else zero


def _layer(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    cell = workload.cell
    step = STEPS[cell]
    weights = _weights(arrays)
    x, dy = jnp.asarray(time_major(arrays["x"])), jnp.asarray(time_major(arrays["dy"]))
    state = _zeros(cell, workload.batch, workload.hidden, workload.dtype)

    def forward(weights: Weights, x: Any) -> Any:
        return lax.scan(lambda s, p: step(weights, s, p), state, _project(cell, weights, x))[1]

    def loss(weights: Weights, x: Any) -> tuple[Any, Any]:
        y = forward(weights, x)
        return jnp.vdot(y, dy), y

    training = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    inference = jax.jit(forward)

    def run() -> Any:
        return jax.block_until_ready(training(weights, x) if workload.train else inference(weights, x))

    def result() -> dict[str, np.ndarray]:
        if not workload.train:
            return sampled({"output": np.asarray(run()).transpose(1, 0, 2)})
        (_, y), (grads, dx) = run()
        named = {"output": np.asarray(y).transpose(1, 0, 2), "d_input": np.asarray(dx).transpose(1, 0, 2)}
        named |= {"d_weight_ih_l0": np.asarray(grads["ih"]).T, "d_weight_hh_l0": np.asarray(grads["hh"]).T}
        named |= {"d_bias_ih_l0": np.asarray(grads["bih"]), "d_bias_hh_l0": np.asarray(grads["bhh"])}
        return sampled(named)

    return Case(run, result)


def _step(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    cell = workload.cell
    weights = _weights(arrays)
    inputs = [jnp.asarray(x) for x in time_major(arrays["x"])]
    zero = _zeros(cell, workload.batch, workload.hidden, workload.dtype)
    one = jax.jit(lambda weights, state, x: STEPS[cell](weights, state, _project(cell, weights, x))[0])

    def run() -> Any:
        state = zero
        for x in inputs:
            state = one(weights, state, x)
        return jax.block_until_ready(state)

    return Case(run, lambda: {"last": np.asarray(run()[0] if cell == "lstm" else run())})
