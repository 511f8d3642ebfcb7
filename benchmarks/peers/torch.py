"""PyTorch: eager mode, its native time-major layout, no copies in the timed part.

LSTM in float32 runs oneDNN's fused kernels by default; the variant ``ATen`` turns them off, which is faster on some
small shapes. Everything else has one path. Ragged batches run as packed sequences and, as a second variant, padded:
with zero gradients on the padding both give the same result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.peers import Case, Unsupported
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
from benchmarks.workloads import Workload

LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
STEP_CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}


def versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def setup(threads: int) -> None:
    torch.set_num_threads(threads)


def cases(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> dict[str, Case]:
    if workload.window and workload.kind != "sentences":
        raise Unsupported("no sliding-window truncation")
    if workload.kind == "step":
        if workload.layers > 1 or workload.directions > 1:
            raise Unsupported("steps of one layer only")
        return {"cell": _step(workload, arrays)}
    if workload.kind == "sentences":
        kinds = {"dense": False, "sparse embedding": True}
        return {variant: _sentences(workload, arrays, sparse) for variant, sparse in kinds.items()}
    if workload.kind == "stream":
        return {"eager": _stream(workload, arrays)}
    if workload.kind == "ragged":
        return {"packed": _packed(workload, arrays), "padded": _dense(workload, arrays)}
    made = {"eager": _dense(workload, arrays)}
    if workload.cell == "lstm" and workload.dtype == "float32" and torch.backends.mkldnn.is_available():
        made["ATen"] = _without_onednn(made["eager"])
    return made


def _dtype(workload: Workload) -> torch.dtype:
    return torch.float64 if workload.dtype == "float64" else torch.float32


def _load(module: nn.Module, arrays: dict[str, np.ndarray], prefix: str = "") -> None:
    state = {name: torch.from_numpy(arrays[prefix + name].copy()) for name in module.state_dict()}
    module.load_state_dict(state, strict=True)


def _layer(workload: Workload, arrays: dict[str, np.ndarray]) -> nn.RNNBase:
    make, both = LAYERS[workload.cell], workload.directions > 1
    layer: nn.RNNBase = make(
        workload.input, workload.hidden, workload.layers, bidirectional=both, dtype=_dtype(workload)
    )
    _load(layer, arrays)
    return layer


def _time_major(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(time_major(array))


def _batch_major(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(1, 0, 2)


def _gradients(layer: nn.RNNBase, x: torch.Tensor, y: torch.Tensor) -> dict[str, np.ndarray]:
    assert x.grad is not None
    results = {"output": _batch_major(y), "d_input": _batch_major(x.grad)}
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        results[f"d_{name}"] = parameter.grad.numpy()
    return sampled(results)


def _dense(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    layer = _layer(workload, arrays)
    x, dy = _time_major(arrays["x"]), _time_major(arrays["dy"])

    def train() -> torch.Tensor:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        y, _ = layer(x)
        y.backward(dy)
        return y

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return layer(x)[0]

    def result() -> dict[str, np.ndarray]:
        if workload.train:
            y = train()
            if workload.kind == "ragged":
                y = y * (dy.abs().sum(2, keepdim=True) > 0)
            return _gradients(layer, x, y)
        return sampled({"output": _batch_major(infer())})

    x.requires_grad_(workload.train)
    return Case(train if workload.train else infer, result)


def _packed(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    layer = _layer(workload, arrays)
    x, dy = _time_major(arrays["x"]).requires_grad_(), _time_major(arrays["dy"])
    lengths = torch.from_numpy(arrays["lengths"])

    def run() -> torch.Tensor:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        packed, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        y, _ = pad_packed_sequence(packed)
        y.backward(dy)
        return y

    return Case(run, lambda: _gradients(layer, x, run()))


def _step(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    cell = STEP_CELLS[workload.cell](workload.input, workload.hidden, dtype=_dtype(workload))
    _load(cell, {name.removesuffix("_l0"): a for name, a in arrays.items()})
    inputs = list(_time_major(arrays["x"]))
    zero = torch.zeros(workload.batch, workload.hidden, dtype=_dtype(workload))

    def run() -> torch.Tensor:
        state: Any = (zero, zero) if workload.cell == "lstm" else zero
        with torch.inference_mode():
            for x in inputs:
                state = cell(x, state)
        return state[0] if workload.cell == "lstm" else state

    held: list[Any] = [(zero, zero) if workload.cell == "lstm" else zero]

    def one() -> None:
        with torch.inference_mode():
            held[0] = cell(inputs[0], held[0])

    return Case(run, lambda: {"last": run().numpy()}, one)


def _without_onednn(case: Case) -> Case:
    @contextlib.contextmanager
    def off() -> Iterator[None]:
        before = torch.backends.mkldnn.set_flags(False)
        try:
            yield
        finally:
            torch.backends.mkldnn.set_flags(*before)

    def wrapped(function: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            with off():
                return function()

        return call

    return Case(wrapped(case.run), wrapped(case.result))  # type: ignore[arg-type]


class _LanguageModel(nn.Module):
    def __init__(self, workload: Workload, arrays: dict[str, np.ndarray], sparse: bool, bias: bool) -> None:
        super().__init__()
        width, dtype = workload.input or workload.hidden, _dtype(workload)
        self.embedding = nn.Embedding(workload.vocabulary, width, sparse=sparse, dtype=dtype)
        self.rnn = LAYERS[workload.cell](width, workload.hidden, workload.layers, bias=bias, dtype=dtype)
        self.output = nn.Linear(workload.hidden, workload.vocabulary, bias=bias, dtype=dtype)
        _load(self, arrays)

    def forward(self, ids: torch.Tensor, state: object = None) -> tuple[torch.Tensor, object]:
        hidden, state = self.rnn(self.embedding(ids), state)
        return self.output(hidden), state

    def updates(self, label: str, before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return updates(label, before, {name: p.detach().numpy() for name, p in self.named_parameters()})


def _sentences(workload: Workload, arrays: dict[str, np.ndarray], sparse: bool) -> Case:
    # What a user writes: an embedding before the recurrent layer, and back-propagation through the whole sentence,
    # which is cheaper than any sliding window that autograd could emulate.
    arrays = with_embedding(workload, arrays)
    pairs = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in sentences(arrays)]

    def learn(model: _LanguageModel, optimiser: torch.optim.SGD, some: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for x, y in some:
            optimiser.zero_grad(set_to_none=True)
            logits, _ = model(x)
            nn.functional.cross_entropy(logits, y, reduction="sum").backward()
            optimiser.step()

    def fresh() -> tuple[_LanguageModel, torch.optim.SGD]:
        model = _LanguageModel(workload, arrays, sparse, bias=False)
        return model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def result() -> dict[str, np.ndarray]:
        model, optimiser = fresh()
        learn(model, optimiser, pairs[:CHECKED_SENTENCES])
        return model.updates("embedding, full", arrays)

    model, optimiser = fresh()
    return Case(lambda: learn(model, optimiser, pairs), result)


def _stream(workload: Workload, arrays: dict[str, np.ndarray]) -> Case:
    def chunks(ids: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        x, y = (torch.from_numpy(part.reshape(workload.batch, -1).T.copy()) for part in (ids[:-1], ids[1:]))
        return list(zip(x.split(workload.time), (part.reshape(-1) for part in y.split(workload.time)), strict=True))

    def learn(model: _LanguageModel, optimiser: torch.optim.SGD, text: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        state: object = None
        for x, y in text:
            optimiser.zero_grad(set_to_none=True)
            logits, state = model(x, state)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()  # type: ignore[attr-defined]
            loss = nn.functional.cross_entropy(logits.reshape(-1, workload.vocabulary), y, reduction="sum")
            (loss / workload.batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimiser.step()

    def fresh() -> tuple[_LanguageModel, torch.optim.SGD]:
        model = _LanguageModel(workload, arrays, sparse=False, bias=True)
        return model, torch.optim.SGD(model.parameters(), lr=STREAM_RATE)

    def result() -> dict[str, np.ndarray]:
        model, optimiser = fresh()
        learn(model, optimiser, chunks(first_chunks(workload, arrays["ids"])))
        return model.updates("stream", arrays)

    model, optimiser = fresh()
    text = chunks(arrays["ids"])
    return Case(lambda: learn(model, optimiser, text), result)
