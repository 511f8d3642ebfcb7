"""Keras 3 on its JAX backend: the layer's own step function, jitted."""

from __future__ import annotations

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import keras
import numpy as np
from jax import numpy as jnp

from benchmarks.peers import Case, Unsupported
from benchmarks.peers.common import sampled
from benchmarks.workloads import Workload

LAYERS = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
# PyTorch's gate order -> Keras's: LSTM i f g o -> i f c o, the same; GRU r z n -> z r h. Its own inverse.
ORDER = {"rnn": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}


def versions() -> dict[str, str]:
    return {"keras": keras.__version__, "jax": jax.__version__}


def setup(threads: int) -> None:
    """XLA sizes its pool by the processors it may run on."""
    if len(os.sched_getaffinity(0)) != threads:
        raise RuntimeError("the worker must be pinned to as many processors as threads")


def cases(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> dict[str, Case]:
    if workload.window or workload.kind != "layer":
        raise Unsupported(f"no {workload.kind} workload for Keras")
    if workload.dtype != "float32":
        raise Unsupported("float32 only")
    if workload.layers > 1 or workload.directions > 1:
        raise Unsupported("one layer in one direction only")
    cell = workload.cell
    layer = LAYERS[cell](workload.hidden, return_sequences=True)
    layer.build(arrays["x"].shape)
    kernels = [_reordered(arrays[name], cell).T for name in ("weight_ih_l0", "weight_hh_l0")]
    biases = [_reordered(arrays[name], cell) for name in ("bias_ih_l0", "bias_hh_l0")]
    layer.set_weights([*kernels, np.stack(biases) if cell == "gru" else biases[0] + biases[1]])
    weights = [variable.value for variable in layer.trainable_variables]
    fixed = [variable.value for variable in layer.non_trainable_variables]
    x, dy = jnp.asarray(arrays["x"]), jnp.asarray(arrays["dy"])

    def forward(weights: list[Any], x: Any) -> Any:
        return layer.stateless_call(weights, fixed, x)[0]

    def loss(weights: list[Any], x: Any) -> tuple[Any, Any]:
        y = forward(weights, x)
        return jnp.vdot(y, dy), y

    training = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    inference = jax.jit(forward)

    def run() -> Any:
        return jax.block_until_ready(training(weights, x) if workload.train else inference(weights, x))

    def result() -> dict[str, np.ndarray]:
        if not workload.train:
            return sampled({"output": np.asarray(run())})
        (_, y), (grads, dx) = run()
        bias = np.asarray(grads[2])
        pairs = zip(("d_bias_ih_l0", "d_bias_hh_l0"), bias if cell == "gru" else (bias, bias), strict=True)
        named = {"output": np.asarray(y), "d_input": np.asarray(dx)}
        for name, gradient in zip(("d_weight_ih_l0", "d_weight_hh_l0"), grads[:2], strict=True):
            named[name] = _reordered(np.asarray(gradient).T, cell)
        return sampled(named | {name: _reordered(gradient, cell) for name, gradient in pairs})

    return {"jit": Case(run, result)}


def _reordered(array: np.ndarray, cell: str) -> np.ndarray:
    gates = np.split(array, len(ORDER[cell]))
    return np.concatenate([gates[k] for k in ORDER[cell]])
