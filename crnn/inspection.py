"""A look inside a language model: the surprise of every word, what was guessed instead, and what the units did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arguments import whole_number

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["Inspection", "inspect"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Inspection:
    """What a model did along a text of N tokens, the markers included.

    Attributes
    ----------
    tokens
        The text's own tokens, also where the model saw the one for unknown words.
    known
        (N,) bool: whether the token is in the vocabulary.
    surprise
        (N,) float64: -log p of each token given those before it, in nats; NaN for a token that nothing predicts (the
        first one of a sequence).
    guesses
        For every token the model's most probable words at its place, with their probabilities, best first.
    traces
        Name -> (N, hidden): the values of every unit after reading each token. "hidden 1" is the first layer's state,
        "cell 1" an LSTM's; "input gate 1", "reset gate 1" and so on are the gates.
    loss
        Mean of `surprise`, nats per token.
    """

    tokens: list[str]
    known: NDArray[np.bool_]
    surprise: NDArray[np.float64]
    guesses: list[list[tuple[str, float]]]
    traces: dict[str, Array]

    @property
    def loss(self) -> float:
        return float(np.nanmean(self.surprise))

    @property
    def predictions(self) -> int:
        """How many tokens `loss` is the mean of: all but those that nothing predicts."""
        return int(np.count_nonzero(~np.isnan(self.surprise)))


def inspect(model: LanguageModel, sentences: Sequence[Sequence[str]], top: int = 5) -> Inspection:
    """Run a model over a text and keep everything that happens.

    Parameters
    ----------
    model
        With a vocabulary.
    sentences
        Tokenised sentences, as `crnn.text.sentences` gives them. Models with one marker between sentences read them as
        one stream that begins with the first token, the others start every sentence from the zero state.
    top
        How many guesses to keep for each token.

    Returns
    -------
    Inspection

    Raises
    ------
    ValueError
        A model without vocabulary, no sentence, nothing to predict, or `top` below 1.
    ArithmeticError
        The model gives a token no finite loss; the token is named.
    """
    top = whole_number(top, "top")
    vocabulary = model.vocabulary
    if vocabulary is None:
        raise ValueError("model: has no vocabulary, so there is no text to show")
    if not sentences:
        raise ValueError("sentences: got none, wanted at least one")
    start, end = vocabulary.start_token, vocabulary.end_token
    if start == end:
        # the row that `Vocabulary.encode_stream` makes, so that the loss is that of an evaluation
        sequences = [[token for sentence in sentences for token in (*sentence, end)]]
        if len(sequences[0]) < 2:
            raise ValueError("sentences: got one without tokens, wanted something to predict")
    else:
        sequences = [[start, *sentence, end] for sentence in sentences]
    top = min(top, len(vocabulary))
    surprise: list[float] = []
    guesses: list[list[tuple[str, float]]] = []
    traces: list[dict[str, Array]] = []
    for sequence in sequences:
        ids = vocabulary.encode(sequence, markers=False)
        losses = model.token_losses(ids[:-1], ids[1:])  # not from probabilities, which may underflow
        if not np.isfinite(losses).all():
            at = int(np.argmin(np.isfinite(losses)))
            raise ArithmeticError(
                f"model: the loss of token {len(surprise) + at + 1}, {sequence[at + 1]!r}, is {losses[at]}; "
                "its weights are not usable"
            )
        states, probabilities = _read(model, ids)
        surprise += [np.nan, *losses]
        guesses.append([])
        for row in probabilities[:-1]:
            best = np.argsort(-row, kind="stable")[:top]
            guesses.append([(vocabulary.token(int(number)), float(row[number])) for number in best])
        traces.append(_traces(model, ids, states))
    tokens = [token for sequence in sequences for token in sequence]
    return Inspection(
        tokens,
        np.array([token in vocabulary for token in tokens]),
        np.array(surprise),
        guesses,
        {name: np.concatenate([trace[name] for trace in traces]) for name in traces[0]},
    )


def _read(model: LanguageModel, ids: NDArray[np.int64]) -> tuple[list[Array], Array]:
    """The states after every word, (T, layers, hidden) for h and for an LSTM's c; and the predictions, (T, V)."""
    stream = model.stream()
    states: list[list[Array]] = []
    probabilities = np.empty((len(ids), len(model)), model.dtype)
    for row, word in zip(probabilities, ids):
        row[...] = stream.step(int(word))
        state = stream.state
        states.append([part[:, 0] for part in (state if isinstance(state, tuple) else (state,))])
    return [np.stack(parts) for parts in zip(*states)], probabilities


def _traces(model: LanguageModel, ids: NDArray[np.int64], states: list[Array]) -> dict[str, Array]:
    """States, and the gates that led to them. With the states known no gate waits for another step."""
    configuration = model.configuration
    hidden = states[0]
    traces: dict[str, Array] = {}
    for layer in range(configuration.num_layers):
        number = layer + 1
        traces[f"hidden {number}"] = hidden[:, layer]
        if configuration.cell == "rnn":
            continue
        before = np.concatenate([np.zeros_like(hidden[:1, layer]), hidden[:-1, layer]])
        inner = _input_part(model, ids, hidden, layer)
        weight, bias = model.params[f"rnn.weight_hh_l{layer}"], _bias(model, f"rnn.bias_hh_l{layer}")
        width = configuration.hidden_size
        if configuration.cell == "lstm":
            traces[f"cell {number}"] = states[1][:, layer]
            i, f, g, o = np.split(inner + before @ weight.T + bias, 4, axis=1)
            traces[f"input gate {number}"] = _sigmoid(i)
            traces[f"forget gate {number}"] = _sigmoid(f)
            traces[f"output gate {number}"] = _sigmoid(o)
            traces[f"candidate {number}"] = np.tanh(g)
            continue
        gates = _sigmoid(inner[:, : 2 * width] + before @ weight[: 2 * width].T + bias[: 2 * width])
        reset, update = gates[:, :width], gates[:, width:]
        candidate, candidate_bias = weight[2 * width :], bias[2 * width :]
        if configuration.reset_after:
            recurrent = reset * (before @ candidate.T + candidate_bias)
        else:
            recurrent = (reset * before) @ candidate.T + candidate_bias
        traces[f"reset gate {number}"] = reset
        traces[f"update gate {number}"] = update
        traces[f"candidate {number}"] = np.tanh(inner[:, 2 * width :] + recurrent)
    return traces


def _input_part(model: LanguageModel, ids: NDArray[np.int64], hidden: Array, layer: int) -> Array:
    """W_ih x + b_ih of every gate, (T, gates * hidden)."""
    weight, bias = model.params[f"rnn.weight_ih_l{layer}"], _bias(model, f"rnn.bias_ih_l{layer}")
    if layer:
        return hidden[:, layer - 1] @ weight.T + bias
    if model.configuration.onehot:
        return weight[:, ids].T + bias
    return model.params["embedding.weight"][ids] @ weight.T + bias


def _bias(model: LanguageModel, name: str) -> Array:
    if model.configuration.bias:
        return model.params[name]
    return np.zeros(model.params[name.replace("bias", "weight")].shape[0], model.dtype)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
