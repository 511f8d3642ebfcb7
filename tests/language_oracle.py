"""A language model in the oracle's terms: losses and gradients of `crnn.LanguageModel` from tests/reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import reference

import crnn
from crnn.model_configuration import Configuration

Array = np.ndarray


def net_of(c: Configuration) -> reference.Net:
    return reference.Net(
        c.cell, c.num_layers, nonlinearity=c.nonlinearity, reset_after=c.reset_after, z_weighs=c.z_weighs
    )


def reach_of(truncation: object) -> reference.Reach:
    if isinstance(truncation, crnn.bptt.Window):
        return reference.window(truncation.k)
    if isinstance(truncation, crnn.bptt.Chunk):
        return reference.chunk(truncation.k1, truncation.k2)
    return reference.full()


class Oracle:
    """Losses, hidden states and gradients of sequences under a model's parameters, in float64."""

    def __init__(self, model: crnn.LanguageModel, xs: Sequence[Sequence[int]], state: reference.State | None = None):
        self.c = model.configuration
        self.params = {name: np.array(view, np.float64) for name, view in model.params.items()}
        self.rnn = {name[4:]: view for name, view in self.params.items() if name.startswith("rnn.")}
        self.words = np.eye(self.c.vocabulary_size) if self.c.onehot else self.params["embedding.weight"]
        self.xs = [np.asarray(x) for x in xs]
        self.run = reference.forward(net_of(self.c), self.rnn, [self.words[x] for x in self.xs], state)

    def probabilities(self, sequence: int = 0) -> Array:
        logits = self.run.outputs[sequence] @ self.params["output.weight"].T + self.params.get("output.bias", 0.0)
        return reference.softmax(logits)

    def losses(self, ys: Sequence[Sequence[int]]) -> list[Array]:
        return [-np.log(self.probabilities(i)[np.arange(len(y)), np.asarray(y)]) for i, y in enumerate(ys)]

    def gradients(self, ys: Sequence[Sequence[int]], truncation: object = None, scale: float = 1.0) -> dict[str, Array]:
        """Of scale * the total loss, names as `LanguageModel.params`; both names of tied weights hold the sum."""
        V, bias = self.params["output.weight"], self.params.get("output.bias")
        found = {name: np.zeros_like(view) for name, view in self.params.items()}
        d_outputs = []
        for hidden, y in zip(self.run.outputs, ys):
            _, d_h, d_V, d_b = reference.softmax_cross_entropy(hidden, V, bias, np.asarray(y), scale)
            d_outputs.append(d_h)
            found["output.weight"] += d_V
            if bias is not None:
                found["output.bias"] += d_b
        back = reference.backward(net_of(self.c), self.rnn, self.run, d_outputs, None, reach_of(truncation))
        for name, d in back.params.items():
            found[f"rnn.{name}"] += d
        if not self.c.onehot:
            for x, d_x in zip(self.xs, back.inputs):
                np.add.at(found["embedding.weight"], x, d_x)
        if self.c.tie_weights:
            found["output.weight"] += found["embedding.weight"]
            found["embedding.weight"] = found["output.weight"]
        return found
