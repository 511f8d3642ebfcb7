"""crnn itself, through its public interface only."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import crnn
from benchmarks.peers import FLOAT32, ONE_THREAD, Case
from benchmarks.peers.common import (
    CHECKED_SENTENCES,
    CLIP_NORM,
    LEARNING_RATE,
    STREAM_RATE,
    first_chunks,
    sampled,
    sentences,
    time_major,
    updates,
    with_embedding,
)
from benchmarks.workloads import BATCHES_FROM, Workload

LAYERS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"crnn": crnn.__version__, "numpy": np.__version__, "scipy": version("scipy")}


def setup(threads: int) -> None:
    crnn.set_num_threads(threads)


def cases(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> dict[str, Case]:
    if workload.kind == "step":
        return {"step": _steps(workload, arrays), "stream": _stream_steps(workload, arrays)}
    if workload.kind == "sentences":
        return {"sgd_step": _sentences(workload, arrays)}
    name, make = ("Trainer", _stream) if workload.kind == "stream" else ("layer", _layer_case)
    made = {name: make(workload, arrays)}
    if threads > 1 and workload.batch >= BATCHES_FROM:
        made[ONE_THREAD] = dataclasses.replace(make(workload, arrays), threads=1, beside=True)
    if workload.dtype == "float64":
        narrow = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}
        case = make(dataclasses.replace(workload, dtype="float32"), narrow)
        made[FLOAT32] = dataclasses.replace(case, beside=True)
    return made


def _options(workload: Workload) -> dict[str, Any]:
    # PyTorch's form of the GRU, in every comparison.
    return {"reset_after": True, "z_weighs": "state"} if workload.cell == "gru" else {}


def _layer(workload: Workload, arrays: dict[str, np.ndarray]) -> Any:
    make = getattr(crnn, LAYERS[workload.cell])
    layer = make(
        workload.input, workload.hidden, workload.layers, bidirectional=workload.directions > 1,
        dtype=np.dtype(workload.dtype), **_options(workload),
    )  # fmt: skip
    for name, parameter in layer.params.items():
        parameter[...] = arrays[name]
    return layer


def _layer_case(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    layer, x, dy = _layer(workload, arrays), arrays["x"], arrays["dy"]
    lengths = arrays.get("lengths")
    truncation = crnn.bptt.Window(workload.window) if workload.window else None

    def train() -> Any:
        run = layer.forward(x, lengths=lengths)
        return run, run.backward(dy, truncation=truncation)

    def infer() -> Any:
        return layer(x, lengths=lengths)[0]

    def result() -> dict[str, np.ndarray]:
        if not workload.train:
            return sampled({"output": infer()})
        run, back = train()
        gradients = {f"d_{name}": gradient for name, gradient in back.params.items()}
        return sampled({"output": run.output, "d_input": back.input, **gradients})

    return Case(train if workload.train else infer, result)


def _steps(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    layer = _layer(workload, arrays)
    inputs = list(time_major(arrays["x"]))

    def run() -> np.ndarray:
        state = None
        for x in inputs:
            y, state = layer.step(x, state)
        return y

    held = [layer.step(inputs[0])[1]]

    def one() -> None:
        _, held[0] = layer.step(inputs[0], held[0])

    return Case(run, lambda: {"last": np.array(run())}, one)


def _stream_steps(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    stream = _layer(workload, arrays).stream(batch=workload.batch)
    inputs = list(time_major(arrays["x"]))

    def run() -> np.ndarray:
        stream.reset()
        step = stream.step
        for x in inputs:
            y = step(x)
        return y

    return Case(run, lambda: {"last": np.array(run())}, lambda: stream.step(inputs[0]))


def _model(workload: Workload, arrays: dict[str, np.ndarray], embedding: int | None, bias: bool) -> Any:
    model = crnn.LanguageModel(
        workload.vocabulary, workload.cell, workload.hidden, workload.layers, embedding_size=embedding, bias=bias,
        dtype=np.dtype(workload.dtype), **_options(workload),
    )  # fmt: skip
    for name, parameter in model.params.items():
        parameter[...] = arrays[name]
    return model


def _sentences(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    pairs = sentences(arrays)
    window = crnn.bptt.Window(workload.window)
    model = _model(workload, arrays, embedding=None, bias=False)

    def run() -> None:
        for x, y in pairs:
            model.sgd_step(x, y, LEARNING_RATE, window)

    def result() -> dict[str, np.ndarray]:
        truncated = _model(workload, arrays, embedding=None, bias=False)
        other = with_embedding(workload, arrays)
        full = _model(workload, other, embedding=workload.hidden, bias=False)
        for x, y in pairs[:CHECKED_SENTENCES]:
            truncated.sgd_step(x, y, LEARNING_RATE, window)
            full.sgd_step(x, y, LEARNING_RATE)
        return updates("embedding, full", other, full.params) | updates("truncated", arrays, truncated.params)

    return Case(run, result)


def _stream(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    def learn(model: Any, ids: np.ndarray) -> None:
        trainer = crnn.Trainer(
            model,
            optimizer=crnn.optim.SGD(STREAM_RATE),
            truncation=crnn.bptt.Chunk(workload.time),
            normalise="sequences",
            schedule=crnn.schedules.Constant(),
            clip_norm=CLIP_NORM,
        )
        trainer.fit(crnn.data.Stream(ids, batch_size=workload.batch), epochs=1)

    def result() -> dict[str, np.ndarray]:
        fresh = _model(workload, arrays, embedding=workload.input, bias=True)
        learn(fresh, first_chunks(workload, arrays["ids"]))
        return updates("stream", arrays, fresh.params)

    model = _model(workload, arrays, embedding=workload.input, bias=True)
    return Case(lambda: learn(model, arrays["ids"]), result)
