"""Sentences out of a language model: sampling with temperature, top-k and top-p, or the most probable word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arguments import as_generator, flag, number, whole_number
from .packed import dense
from .token_sequences import read_ids
from .word_network import State

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["choose", "generate", "nucleus"]

Ids = NDArray[np.int64]


def generate(
    model: LanguageModel,
    n: int = 1,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    prompt: str | Sequence[str] | Sequence[int] | Ids | None = None,
    seed: int | None = None,
    rng: np.random.Generator | int | None = None,
    min_length: int = 1,
    max_length: int = 100,
    allow_unknown: bool = False,
    until_end: bool = True,
) -> list[Any]:
    """Write sentences, word by word, each word drawn from the probabilities that the model gives it.

    All sentences are written side by side, one batched step per word. Sentence i depends on the seed and on i only, so
    the first sentences stay the same when more are asked for; beyond 8 up to rounding, since the last bits of a
    probability may then depend on how many are written together.

    Parameters
    ----------
    model
        With a vocabulary, sentences start after SENTENCE_START and end before SENTENCE_END. Over bare ids there are no
        such marks: a `prompt` is needed, and every sequence has `max_length` ids.
    n
        How many.
    temperature
        Probabilities are raised to the power 1 / temperature: below 1 safer, above 1 wilder.
    top_k
        Draw from the k most probable words only.
    top_p
        Draw from the smallest set of most probable words whose probabilities reach `top_p` together (Holtzman et al.,
        2020). Applied after `top_k`.
    greedy
        Always the most probable word; the sentences are then all the same.
    prompt
        What each sentence begins with: text (cut into words as the training text was), a list of words, or ids.
    seed, rng
        For repeatable sentences, a seed or a generator; at most one of them.
    min_length, max_length
        Words of a sentence, the prompt's included. Shorter sentences are not ended; longer ones are cut.
    allow_unknown
        Whether UNKNOWN_TOKEN may be drawn.
    until_end
        False: do not stop at the end marker; the text goes on, the markers are part of it, and it has `max_length`
        tokens. For models of one long stream of text.

    Returns
    -------
    list
        Of text ready for reading; of lists of int for a model over bare ids.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; also where the model's probabilities are NaN.

    Examples
    --------
    >>> import crnn
    >>> vocabulary = crnn.Vocabulary.build([["a", "dog", "ran", "."], ["a", "cat", "sat", "."]], size=20)
    >>> model = crnn.LanguageModel(vocabulary, "gru", hidden_size=12, rng=0)
    >>> ids = vocabulary.encode(["a", "dog", "ran", "."])
    >>> for _ in range(60):
    ...     loss = model.sgd_step(ids[:-1], ids[1:], 0.5)
    >>> generate(model, prompt="A dog", greedy=True)
    ['a dog ran.']
    """
    n = whole_number(n, "n")
    min_length = whole_number(min_length, "min_length", 0)
    max_length = whole_number(max_length, "max_length")
    if max_length < min_length:
        raise ValueError(f"max_length must be at least min_length = {min_length}, got {max_length}")
    if not 0.0 < number(temperature, "temperature") < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature} (greedy=True, --greedy: 0)")
    if top_k is not None:
        top_k = whole_number(top_k, "top_k")
    if top_p is not None and not 0.0 < number(top_p, "top_p") <= 1.0:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    greedy = flag(greedy, "greedy")
    if seed is not None and rng is not None:
        raise ValueError("seed and rng both say what to draw from: give one of them")
    generators = _generators(as_generator(seed, "seed") if rng is None else as_generator(rng, "rng"), n)

    words, known = _read_prompt(model, prompt)
    if len(known) >= max_length:
        raise ValueError(f"prompt has {len(known)} words, but max_length is {max_length}, which counts them")
    vocabulary = model.vocabulary
    end = None if vocabulary is None or not until_end else vocabulary.end_id
    banned = [] if vocabulary is None else _banned(model, flag(allow_unknown, "allow_unknown"), until_end)
    written = _write(
        model,
        known if vocabulary is None else np.concatenate([[vocabulary.start_id], known]).astype(np.int64),
        generators,
        lambda p, u: choose(p, u, temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy),
        banned,
        end,
        min_length - len(known),
        max_length - len(known),
    )
    if vocabulary is None:
        return [[*known.tolist(), *ids] for ids in written]
    from .text.detokenise import join

    return [join([*words, *vocabulary.decode(ids)], level=vocabulary.level) for ids in written]


def choose(
    probabilities: NDArray[Any],
    uniform: NDArray[np.float64],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
) -> Ids:
    """Choose one word per row.

    Parameters
    ----------
    probabilities
        (n, V), none negative; a row need not sum to 1. A word of probability zero is never chosen.
    uniform
        (n,) draws from [0, 1).

    Returns
    -------
    numpy.ndarray
        (n,) int64.
    """
    if greedy:
        return probabilities.argmax(axis=1).astype(np.int64)
    p = probabilities.astype(np.float64)
    if temperature != 1.0:
        # relative to the largest, so that a low temperature does not underflow everything
        p = (p / p.max(axis=1, keepdims=True)) ** (1.0 / temperature)
    if (top_k is not None and top_k < p.shape[1]) or (top_p is not None and top_p < 1.0):
        p *= nucleus(p, top_k, top_p)
    heights = p.cumsum(axis=1)
    chosen = [row.searchsorted(u * row[-1], side="right") for row, u in zip(heights, uniform, strict=True)]
    # u * total may round up to the total; the last word of positive probability is meant then
    last = p.shape[1] - 1 - (p[:, ::-1] > 0.0).argmax(axis=1)
    return np.minimum(np.array(chosen, np.int64), last)


def nucleus(p: NDArray[np.float64], top_k: int | None, top_p: float | None) -> NDArray[np.bool_]:
    """Which words of each row remain under top-k, then top-p; among equals those with lower ids. (n, V) bool."""
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    if top_k is not None:
        ranked[:, top_k:] = 0.0
    keep = ranked > 0.0
    if top_p is not None:
        before = ranked.cumsum(axis=1) - ranked  # what stands above a word; a word stays while that is short of top_p
        keep &= before < top_p * ranked.sum(axis=1, keepdims=True)
        keep[:, 0] = True
    result = np.empty_like(keep)
    np.put_along_axis(result, order, keep, axis=1)
    return result


def _write(
    model: LanguageModel,
    start: Ids,
    generators: list[np.random.Generator],
    draw: Any,
    banned: list[int],
    end: int | None,
    at_least: int,
    at_most: int,
) -> list[list[int]]:
    """Continue `start` once per generator: between `at_least` and `at_most` ids, without the end marker."""
    written: list[list[int]] = [[] for _ in generators]
    writing = np.arange(len(generators))
    hidden, state = model._advance(start, dense(1, len(start)), None)
    probabilities = np.repeat(model._softmax(hidden[-1:]), len(writing), axis=0)
    state = _rows(state, np.zeros(len(writing), np.int64))
    for length in range(at_most):
        if not np.isfinite(probabilities).all():
            raise ValueError("the model's probabilities are NaN: its weights are not those of a trained model")
        probabilities[:, banned] = 0.0
        if end is not None and length < at_least:
            probabilities[:, end] = 0.0
        if not probabilities.any(axis=1).all():
            raise ValueError("no word is left to draw: the model gives all its probability to words that may not come")
        words = draw(probabilities, np.array([generators[i].random() for i in writing]))
        if end is not None and (words == end).any():
            going = words != end
            writing, words = writing[going], words[going]
            state = _rows(state, np.flatnonzero(going))
        for i, word in zip(writing.tolist(), words.tolist(), strict=True):
            written[i].append(word)
        if not len(writing) or length + 1 == at_most:
            break
        hidden, state = model._advance(words, dense(len(words), 1), state)
        probabilities = model._softmax(hidden)
    return written


def _rows(state: State, rows: Ids) -> State:
    """The state of some sequences out of a batch's."""
    if isinstance(state, tuple):
        return state[0][:, rows], state[1][:, rows]
    return state[:, rows]


def _generators(rng: np.random.Generator, n: int) -> list[np.random.Generator]:
    """One generator per sentence, so that a sentence does not depend on its neighbours."""
    return [np.random.default_rng(seed) for seed in rng.integers(1 << 63, size=n).tolist()]


def _banned(model: LanguageModel, allow_unknown: bool, until_end: bool) -> list[int]:
    vocabulary = model.vocabulary
    assert vocabulary is not None
    banned = [] if allow_unknown else [vocabulary.unknown_id]
    if until_end and vocabulary.start_id != vocabulary.end_id:
        banned.append(vocabulary.start_id)
    return banned


def _read_prompt(model: LanguageModel, prompt: Any) -> tuple[list[str], Ids]:
    """The prompt as words, as the caller wrote them, and as ids."""
    if prompt is not None and not isinstance(prompt, (str, Sequence, np.ndarray)):
        raise TypeError(f"prompt must be text, words or ids, not {type(prompt).__name__}")
    vocabulary = model.vocabulary
    if vocabulary is None:
        if prompt is None or isinstance(prompt, str):
            raise ValueError("prompt: a model without a vocabulary needs ids to start from")
        return [], read_ids(prompt, len(model), "prompt")
    if prompt is None or len(prompt) == 0:
        return [], np.empty(0, np.int64)
    if isinstance(prompt, str):
        from .text.tokenise import words

        tokens = words(prompt, level=vocabulary.level, lowercase=vocabulary.lowercase)
    elif all(isinstance(token, str) for token in prompt):
        tokens = [str(token) for token in prompt]
    else:
        ids = read_ids(prompt, len(model), "prompt")
        return vocabulary.decode(ids), ids
    return tokens, vocabulary.encode(tokens, markers=False)
