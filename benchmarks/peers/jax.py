"""JAX: jitted `lax.scan`, the input projection of all steps in one product before it, compiled before it is timed.

Ragged batches are padded: zero gradients on the padding make the result the same. A language model's whole training
step is one jitted function that may reuse the memory of its arguments.
"""

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
from benchmarks.peers.common import CLIP_NORM, STREAM_RATE, first_chunks, sampled, time_major, updates
from benchmarks.workloads import Workload, layer_names

Weights = dict[str, Any]


def versions() -> dict[str, str]:
    return {"jax": jax.__version__}


def setup(threads: int) -> None:
    """XLA sizes its pool by the processors it may run on."""
    if len(os.sched_getaffinity(0)) != threads:
        raise RuntimeError("the worker must be pinned to as many processors as threads")


def cases(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> dict[str, Case]:
    if workload.kind == "sentences":
        raise Unsupported("every sentence length would be compiled anew")
    if workload.window:
        raise Unsupported("no sliding-window truncation")
    if workload.kind == "stream":
        return {"jit": _stream(workload, arrays)}
    if workload.kind == "step":
        if workload.layers > 1 or workload.directions > 1:
            raise Unsupported("steps of one layer only")
        return {"jit": _step(workload, arrays)}
    return {"padded scan" if workload.kind == "ragged" else "scan": _layer(workload, arrays)}


def _weights(arrays: dict[str, np.ndarray], layer: str = "l0", prefix: str = "") -> Weights:
    """Kernels as (input, gates*hidden), the usual layout of JAX libraries: no transposition inside the product."""
    names = {"ih": "weight_ih", "hh": "weight_hh", "bih": "bias_ih", "bhh": "bias_hh"}
    stored = {key: arrays[f"{prefix}{name}_{layer}"] for key, name in names.items()}
    return {key: jnp.asarray(np.ascontiguousarray(array.T)) for key, array in stored.items()}


def _named(weights: Weights, layer: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Undo `_weights`, for gradients and for trained weights."""
    names = {"ih": "weight_ih", "hh": "weight_hh", "bih": "bias_ih", "bhh": "bias_hh"}
    return {f"{prefix}{name}_{layer}": np.asarray(weights[key]).T for key, name in names.items()}


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
    weights = [_weights(arrays, layer) for layer in layer_names(workload)]
    x, dy = jnp.asarray(time_major(arrays["x"])), jnp.asarray(time_major(arrays["dy"]))
    state = _zeros(cell, workload.batch, workload.hidden, workload.dtype)

    def scan(weights: Weights, x: Any, reverse: bool) -> Any:
        return lax.scan(lambda s, p: step(weights, s, p), state, _project(cell, weights, x), reverse=reverse)[1]

    def forward(weights: list[Weights], x: Any) -> Any:
        for first in range(0, len(weights), workload.directions):
            directions = weights[first : first + workload.directions]
            outputs = [scan(own, x, reverse) for own, reverse in zip(directions, (False, True))]
            x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        return x

    inside = 1.0
    if workload.kind == "ragged":
        inside = (np.arange(workload.time) < arrays["lengths"][:, None])[:, :, None]

    def loss(weights: list[Weights], x: Any) -> tuple[Any, Any]:
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
        named = {"output": np.asarray(y).transpose(1, 0, 2) * inside, "d_input": np.asarray(dx).transpose(1, 0, 2)}
        for layer, gradients in zip(layer_names(workload), grads, strict=True):
            named |= _named(gradients, layer, "d_")
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

    held = [zero]

    def single() -> None:
        held[0] = jax.block_until_ready(one(weights, held[0], inputs[0]))

    return Case(run, lambda: {"last": np.asarray(run()[0] if cell == "lstm" else run())}, single)


def _stream(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    cell = workload.cell
    zero = _zeros(cell, workload.batch, workload.hidden, workload.dtype)

    def chunks(ids: np.ndarray) -> list[tuple[Any, Any]]:
        x, y = (np.ascontiguousarray(part.reshape(workload.batch, -1).T) for part in (ids[:-1], ids[1:]))
        starts = range(0, len(x), workload.time)
        return [(jnp.asarray(x[t : t + workload.time]), jnp.asarray(y[t : t + workload.time])) for t in starts]

    def loss(model: Weights, states: list[Any], x: Any, y: Any) -> tuple[Any, list[Any]]:
        hidden, last = model["embedding"][x], []
        for weights, state in zip(model["layers"], states, strict=True):
            projected = _project(cell, weights, hidden)
            final, hidden = lax.scan(lambda s, p, w=weights: STEPS[cell](w, s, p), state, projected)
            last.append(final)
        logits = hidden @ model["output"] + model["bias"]
        picked = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - picked).sum() / workload.batch, last

    def learn(model: Weights, states: list[Any], x: Any, y: Any) -> tuple[Weights, list[Any]]:
        gradients, last = jax.grad(loss, has_aux=True)(model, states, x, y)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients)))
        rate = STREAM_RATE * jnp.minimum(1.0, CLIP_NORM / (norm + 1e-6))
        return jax.tree.map(lambda p, g: p - rate * g, model, gradients), last

    step = jax.jit(learn, donate_argnums=(0, 1))

    def fresh() -> Weights:
        layers = [_weights(arrays, layer, "rnn.") for layer in layer_names(workload)]
        model = {"layers": layers, "embedding": jnp.array(arrays["embedding.weight"])}
        return model | {"output": jnp.array(arrays["output.weight"].T), "bias": jnp.array(arrays["output.bias"])}

    def train(model: Weights, text: list[tuple[Any, Any]]) -> Weights:
        states = [jax.tree.map(jnp.array, zero) for _ in range(workload.layers)]
        for x, y in text:
            model, states = step(model, states, x, y)
        return jax.block_until_ready(model)

    def result() -> dict[str, np.ndarray]:
        model = train(fresh(), chunks(first_chunks(workload, arrays["ids"])))
        after = {"embedding.weight": np.asarray(model["embedding"]), "output.bias": np.asarray(model["bias"])}
        after["output.weight"] = np.asarray(model["output"]).T
        for layer, weights in zip(layer_names(workload), model["layers"], strict=True):
            after |= _named(weights, layer, "rnn.")
        return updates("stream", arrays, after)

    held = [fresh()]
    text = chunks(arrays["ids"])

    def run() -> None:
        held[0] = train(held[0], text)

    return Case(run, result)
