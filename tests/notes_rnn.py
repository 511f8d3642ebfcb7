"""The word-level RNN of the notes, restated in plain NumPy: one sentence at a time, no biases, tanh.

    s_t = tanh(U[:, x_t] + W s_{t-1}),  o_t = softmax(V s_t),  loss = -sum_t log o_t[y_t]

The tests compare crnn's gradients and weights with it, and the benchmarks time it as the baseline; so it keeps the
notes' way of working (a Python loop per time step, dense gradients of U, a product per word) and is not tuned.
Unlike the notes' listing, `bptt_truncate` is honoured (the listing always looks back 4 steps).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


class NotesRNN:
    """Vocabulary of `words`, `hidden` units, gradients that look back `bptt_truncate` steps (None: to the start)."""

    def __init__(
        self, words: int, hidden: int = 100, bptt_truncate: int | None = 4, rng: np.random.Generator | None = None
    ) -> None:
        rng = np.random.default_rng() if rng is None else rng
        self.bptt_truncate = bptt_truncate
        narrow, wide = 1 / np.sqrt(words), 1 / np.sqrt(hidden)
        self.U = rng.uniform(-narrow, narrow, (hidden, words))
        self.V = rng.uniform(-wide, wide, (words, hidden))
        self.W = rng.uniform(-wide, wide, (hidden, hidden))

    def forward_propagation(self, x: Sequence[int]) -> tuple[Array, Array]:
        """Probabilities o (T, words) and states s (T+1, hidden); s[-1] is the zero state before the first word."""
        s = np.zeros((len(x) + 1, len(self.W)))
        o = np.empty((len(x), len(self.V)))
        for t, word in enumerate(x):
            s[t] = np.tanh(self.U[:, word] + self.W @ s[t - 1])
            o[t] = softmax(self.V @ s[t])
        return o, s

    def predict(self, x: Sequence[int]) -> Array:
        return self.forward_propagation(x)[0].argmax(axis=1)

    def calculate_total_loss(self, xs: Sequence[Sequence[int]], ys: Sequence[Sequence[int]]) -> float:
        """In nats, summed over all words of all sentences."""
        total = 0.0
        for x, y in zip(xs, ys, strict=True):
            o, _ = self.forward_propagation(x)
            total -= float(np.log(o[np.arange(len(y)), np.asarray(y)]).sum())
        return total

    def calculate_loss(self, xs: Sequence[Sequence[int]], ys: Sequence[Sequence[int]]) -> float:
        """In nats per word."""
        return self.calculate_total_loss(xs, ys) / sum(len(y) for y in ys)

    def back_propagation(self, x: Sequence[int], y: Sequence[int]) -> tuple[Array, Array, Array]:
        """Gradients of the sentence's total loss: dU, dV, dW."""
        o, s = self.forward_propagation(x)
        d_U, d_V, d_W = np.zeros_like(self.U), np.zeros_like(self.V), np.zeros_like(self.W)
        for t in reversed(range(len(x))):
            d_logits = o[t].copy()
            d_logits[y[t]] -= 1
            d_V += np.outer(d_logits, s[t])
            reach = t + 1 if self.bptt_truncate is None else min(self.bptt_truncate, t + 1)
            d_pre = (self.V.T @ d_logits) * (1 - s[t] ** 2)
            for step in range(t, t - reach, -1):
                d_U[:, x[step]] += d_pre
                d_W += np.outer(d_pre, s[step - 1])
                d_pre = (self.W.T @ d_pre) * (1 - s[step - 1] ** 2)
        return d_U, d_V, d_W

    def sgd_step(self, x: Sequence[int], y: Sequence[int], learning_rate: float) -> None:
        for parameter, gradient in zip((self.U, self.V, self.W), self.back_propagation(x, y)):
            parameter -= learning_rate * gradient

    def train_with_sgd(
        self,
        xs: Sequence[Sequence[int]],
        ys: Sequence[Sequence[int]],
        learning_rate: float = 0.005,
        nepoch: int = 10,
        evaluate_loss_after: int = 5,
    ) -> list[tuple[int, float]]:
        """One update per sentence, in order; the rate is halved when an evaluated loss rose. Returns (epoch, loss)."""
        losses: list[tuple[int, float]] = []
        for epoch in range(nepoch):
            if epoch % evaluate_loss_after == 0:
                losses.append((epoch, self.calculate_loss(xs, ys)))
                if len(losses) > 1 and losses[-1][1] > losses[-2][1]:
                    learning_rate /= 2
            for x, y in zip(xs, ys, strict=True):
                self.sgd_step(x, y, learning_rate)
        return losses
