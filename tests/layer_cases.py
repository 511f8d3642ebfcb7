"""What the tests of the layers share: small layers, arrays and states for them."""

from __future__ import annotations

import numpy as np
import pytest

import crnn

KINDS = {"rnn": crnn.RNN, "lstm": crnn.LSTM, "gru": crnn.GRU}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "lstm", input_size: int = 3, hidden_size: int = 4, num_layers: int = 1, **options: object):
    return KINDS[kind](input_size, hidden_size, num_layers, **{"rng": 1, "dtype": np.float64, **options})


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.6, 0.9, shape)


def parts(state: object) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def state_for(layer: object, batch: int, seed: int = 5) -> object:
    shape = (layer.num_layers * layer.directions, batch, layer.hidden_size)
    h, c = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    return (h, c) if layer.kind == "lstm" else h


def tensors_of(result: object) -> list[np.ndarray]:
    return list(result) if isinstance(result, (list, tuple)) else [result]
