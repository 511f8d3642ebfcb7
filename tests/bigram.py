"""A stand-in for `crnn.LanguageModel` that is small enough to see through: a bigram table plus a carried drift.

logits(t) = table[x_t] + state * drift, where the state of a stream halves at every step and grows by the word's id. It
has a row-sparse tensor (table), a dense one (drift), a state and a generator: all that a trainer can get wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from crnn.data import TokenBatch
from crnn.parameters import Parameters, Spec


@dataclasses.dataclass(frozen=True)
class Configuration:
    vocabulary_size: int
    cell: str = "rnn"
    nonlinearity: str = "tanh"


class Gradients:
    def __init__(self, parameters: Parameters) -> None:
        self.dense = parameters.like()
        self.sparse: dict[str, tuple[np.ndarray, np.ndarray]] = {}


class Bigram:
    """See the module. `poison_at` makes the loss of that step NaN."""

    def __init__(self, words: int, seed: int = 0, noise: float = 0.0, poison_at: int | None = None) -> None:
        self.configuration = Configuration(words)
        self.vocabulary = None
        self.rng = np.random.default_rng(seed)
        self.parameters = Parameters([Spec("table", (words, words)), Spec("drift", (words,))], np.float64)
        self.params = self.parameters
        self.parameters["table"] = self.rng.normal(size=(words, words))
        self.parameters["drift"] = self.rng.normal(size=words)
        self.noise = noise
        self.poison_at = poison_at
        self.steps = 0
        self.rates: list[float] = []
        self.batches: list[TokenBatch] = []

    def __len__(self) -> int:
        return self.configuration.vocabulary_size

    def new_gradients(self) -> Gradients:
        return Gradients(self.parameters)

    def loss_and_gradients(
        self,
        batch: TokenBatch,
        gradients: Gradients,
        truncation: Any = None,
        scale: float = 1.0,
        state: Any = None,
        training: bool = True,
        accumulate: bool = False,
    ) -> tuple[float, Any]:
        loss, d_table, d_drift, state = self._pass(batch, state)
        if training and self.noise:
            d_table *= 1.0 + self.noise * self.rng.normal(size=d_table.shape)
        if accumulate:
            gradients.dense["drift"] += scale * d_drift
            before = np.zeros_like(d_table)
            ids, rows = gradients.sparse["table"]
            before[ids] = rows
            d_table = before + scale * d_table
            ids = np.union1d(ids, batch.x)
        else:
            gradients.dense["drift"] = scale * d_drift
            d_table = scale * d_table
            ids = np.unique(batch.x)
        gradients.sparse["table"] = ids, d_table[ids]
        self._count(batch)
        return (float("nan") if self.poison_at == self.steps - 1 else loss), state

    def fused_sgd(
        self, batch: TokenBatch, learning_rate: float, truncation: Any = None, scale: float = 1.0, state: Any = None
    ) -> tuple[float, Any]:
        loss, d_table, d_drift, state = self._pass(batch, state)
        if self.noise:
            d_table *= 1.0 + self.noise * self.rng.normal(size=d_table.shape)
        self.parameters["table"] -= learning_rate * scale * d_table
        self.parameters["drift"] -= learning_rate * scale * d_drift
        self.rates.append(learning_rate)
        self._count(batch)
        if self.poison_at == self.steps - 1:
            self.parameters.flat[:] = np.nan
            return float("nan"), state
        return loss, state

    def evaluate(self, batches: Iterable[TokenBatch], carry_state: bool = True) -> tuple[float, int]:
        total, tokens, state = 0.0, 0, None
        for batch in batches:
            loss, _, _, state = self._pass(batch, state if carry_state and batch.carry else None)
            total += loss
            tokens += batch.tokens
        return total, tokens

    def save(self, path: Path) -> None:
        np.save(path, self.parameters.flat)

    def _count(self, batch: TokenBatch) -> None:
        self.steps += 1
        self.batches.append(batch)

    def _pass(self, batch: TokenBatch, state: Any) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        table, drift = self.parameters["table"], self.parameters["drift"]
        h = np.zeros((1, batch.sequences, 1)) if state is None else state.copy()
        loss, d_table, d_drift = 0.0, np.zeros_like(table), np.zeros_like(drift)
        packed = batch.packed
        for row in range(packed.rows):
            x, y, sequence = batch.x[row], batch.y[row], packed.sequence[row]
            h[0, sequence, 0] = 0.5 * h[0, sequence, 0] + 0.1 * x
            logits = table[x] + h[0, sequence, 0] * drift
            p = np.exp(logits - logits.max())
            p /= p.sum()
            loss -= np.log(p[y])
            p[y] -= 1.0
            d_table[x] += p
            d_drift += h[0, sequence, 0] * p
        return float(loss), d_table, d_drift, h
