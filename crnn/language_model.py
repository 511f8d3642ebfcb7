"""A recurrent language model: words in, the probability of every next word out.

The words enter the gates of the first layer directly (one-hot: ``weight_ih_l0`` has a column per word, the notes' U) or
through an embedding. The output layer is softmax(V h + b). All parameters live in one flat buffer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _kernels
from .arguments import as_generator, number
from .bptt import Truncation
from .model_configuration import Configuration
from .token_sequences import as_sequences, in_batches, one_batch, read_ids, read_pairs
from .word_network import GradientSet, WordNetwork

if TYPE_CHECKING:
    from .gradient_check import GradientReport
    from .streaming import ModelStream
    from .text.vocabulary import Vocabulary

__all__ = ["GradientSet", "LanguageModel"]

Array = NDArray[Any]
Ids = NDArray[np.int64]

_PREDICTIONS = 1 << 18  # probabilities that `predict` holds at a time


class LanguageModel(WordNetwork):
    """An RNN, LSTM or GRU language model.

    Parameters
    ----------
    vocabulary_or_size : Vocabulary or int
        A `crnn.Vocabulary`, which is then saved with the model and makes text out of ids, or just the number of words.
    cell : str
        "rnn", "lstm" or "gru".
    hidden_size, num_layers : int
        Units per layer, and layers.
    embedding_size : int, optional
        Width of the embedding. None: one-hot words enter the gates directly, as in the WildML tutorial.
    dropout : float
        Probability of dropping a value while training, on non-recurrent connections only (Zaremba et al., 2014): on
        the embedded words, between layers, and before the output layer. One-hot words are not dropped. Kept values are
        divided by 1 - dropout, so nothing changes outside training.
    tie_weights : bool
        The embedding and the output layer share one matrix (Press & Wolf, 2017); wants embedding_size == hidden_size.
    bias : bool
        False: no bias anywhere, neither in the cells nor in the output layer.
    nonlinearity : str
        Of the "rnn" cell: "tanh", "sigmoid" or "relu".
    reset_after, z_weighs
        The two switches of the "gru" cell, see `crnn.GRU`.
    dtype : numpy dtype
        float32 or float64.
    rng : numpy.random.Generator, int or None
        Draws the initial weights and the dropout masks. The same seed gives the same weights in both dtypes.

    Attributes
    ----------
    params : mapping
        Name -> live array: "embedding.weight" (V, E) if there is one, "rnn.weight_ih_l0" ..., "output.weight" (V, H),
        "output.bias" (V,). With tied weights "embedding.weight" and "output.weight" are two names of one array, which
        an update in place, name by name, would change twice. "output.weight" and one-hot "rnn.weight_ih_l0" are
        transposed views: ``reshape(-1)`` and ``ravel()`` of them are copies, and writing there changes no model.
    parameters : crnn.parameters.Parameters
        The same tensors over their flat buffer, each once, also with tied weights.
    configuration : crnn.model_configuration.Configuration
    vocabulary : Vocabulary or None
    rng : numpy.random.Generator
        Draws the dropout masks; its state is part of a checkpoint.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no model, naming them.

    Notes
    -----
    The calls that the trainer makes, on packed batches, are described at `crnn.word_network.WordNetwork`.
    Inference (`probabilities`, `predict`, `loss`, `generate`, ...) may run in many threads at once; training may not.

    Examples
    --------
    >>> import crnn
    >>> model = crnn.LanguageModel(50, "gru", hidden_size=16, rng=0)
    >>> x, y = [3, 1, 4, 1], [1, 4, 1, 5]
    >>> print(f"{model.loss(x, y):.1f} nats per word, as hard as guessing among {model.perplexity(x, y):.0f} words")
    3.9 nats per word, as hard as guessing among 51 words
    >>> for _ in range(60):
    ...     total = model.sgd_step(x, y, learning_rate=0.5, truncation=crnn.bptt.Window(2))
    >>> model.predict(x).tolist()
    [1, 4, 1, 5]
    """

    def __init__(
        self,
        vocabulary_or_size: Vocabulary | int,
        cell: str = "rnn",
        hidden_size: int = 100,
        num_layers: int = 1,
        *,
        embedding_size: int | None = None,
        dropout: float = 0.0,
        tie_weights: bool = False,
        bias: bool = True,
        nonlinearity: str = "tanh",
        reset_after: bool = False,
        z_weighs: str = "candidate",
        dtype: Any = np.float32,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        vocabulary, size = _read_vocabulary(vocabulary_or_size)
        configuration = Configuration(
            vocabulary_size=size,
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            embedding_size=embedding_size,
            dropout=dropout,
            tie_weights=tie_weights,
            bias=bias,
            nonlinearity=nonlinearity,
            reset_after=reset_after,
            z_weighs=z_weighs,
            dtype=_dtype_name(dtype),
        )
        super().__init__(configuration, as_generator(rng, "rng"))
        self.vocabulary = vocabulary
        self.initialise(self.rng)

    @classmethod
    def from_configuration(
        cls,
        configuration: Configuration,
        vocabulary: Vocabulary | None = None,
        rng: np.random.Generator | int | None = None,
        weights: Array | None = None,
    ) -> Self:
        """A model whose parameters are all zero, to be filled by the caller (files, copies), or lie in `weights`.

        Raises
        ------
        ValueError
            A vocabulary of another size than the configuration's.
        """
        if vocabulary is not None and len(vocabulary) != configuration.vocabulary_size:
            raise ValueError(
                f"vocabulary: has {len(vocabulary)} entries, the configuration wants {configuration.vocabulary_size}"
            )
        model = cls.__new__(cls)
        WordNetwork.__init__(model, configuration, as_generator(rng, "rng"), weights)
        model.vocabulary = vocabulary
        return model

    def __repr__(self) -> str:
        c = self.configuration
        words = "one-hot" if c.onehot else f"embedded in {c.embedding_size}{', tied' if c.tie_weights else ''}"
        return (
            f"LanguageModel({c.vocabulary_size} words {words}, {c.cell} {c.num_layers} x {c.hidden_size}, {c.dtype}, "
            f"{self.parameters.size:,} parameters)"
        )

    def __len__(self) -> int:
        """The number of words."""
        return self.configuration.vocabulary_size

    def __reduce__(self) -> Any:
        made = (type(self), self.configuration, self.vocabulary, self.rng, self.parameters)
        return _restore, made, self._others() or None

    def __copy__(self) -> Self:
        return self.copy()

    def copy(self, dtype: Any = None) -> Self:
        """A model of its own with the same weights, in another dtype if wanted; its rng starts from the same state."""
        c = self.configuration if dtype is None else dataclasses.replace(self.configuration, dtype=_dtype_name(dtype))
        twin = _restore(type(self), c, self.vocabulary, _copied(self.rng), self.parameters)
        twin.__dict__.update(self._others())
        return twin

    def _others(self) -> dict[str, Any]:
        """Attributes that a user has set."""
        return {name: value for name, value in vars(self).items() if name not in _own_attributes()}

    def probabilities(self, ids: ArrayLike) -> Array:
        """The softmax outputs after each word of one sequence.

        Parameters
        ----------
        ids
            (T,) integers.

        Returns
        -------
        numpy.ndarray
            (T, V): row t holds the probability of every word to follow ``ids[: t + 1]``.

        Raises
        ------
        TypeError, ValueError
            Ids that are not integers, none at all, or one outside the vocabulary.
        """
        hidden = self._hidden(self._read_ids(ids))
        return self._softmax(hidden)

    def predict(self, ids: ArrayLike) -> Ids:
        """The most probable word after each word of one sequence: (T,) int64. Errors as `probabilities`."""
        hidden = self._hidden(self._read_ids(ids))
        block = max(1, _PREDICTIONS // self.configuration.vocabulary_size)
        best = [self._softmax(hidden[i : i + block]).argmax(axis=1) for i in range(0, len(hidden), block)]
        return np.concatenate(best).astype(np.int64, copy=False)

    def token_losses(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """The loss of each prediction of one sequence, -log p(y[t] | x[: t + 1]): (T,) float64, in nats."""
        (inputs,), (targets,) = read_pairs([x], [y], self.configuration.vocabulary_size)
        losses = np.empty(len(inputs), np.float64)
        _kernels.softmax_loss(self._hidden(inputs), self._output, self._bias, targets, losses=losses)
        return losses

    def total_loss(self, xs: Any, ys: Any) -> float:
        """The cross entropy of predicting `ys` from `xs`, summed over all words, in nats.

        Parameters
        ----------
        xs, ys
            Sequences of ids, ``ys[i][t]`` being the word to predict after ``xs[i][: t + 1]``; or
            one such sequence each.

        Raises
        ------
        TypeError, ValueError
            Nothing to predict, an empty sequence, lengths that do not match, ids that are not integers or are outside
            the vocabulary.
        """
        return self.evaluate(in_batches(*self._read_pairs(xs, ys)))[0]

    def loss(self, xs: Any, ys: Any) -> float:
        """`total_loss` per word, in nats."""
        total, tokens = self.evaluate(in_batches(*self._read_pairs(xs, ys)))
        return total / tokens

    def perplexity(self, xs: Any, ys: Any) -> float:
        """exp(`loss`): the number of equally likely words that would be as hard to guess. inf where exp overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.loss(xs, ys)))

    def gradients(self, x: Any, y: Any, truncation: Truncation | None = None) -> dict[str, Array]:
        """The gradients of the total loss (not its mean), without dropout.

        Parameters
        ----------
        x, y
            One sequence and its targets, or several, as for `total_loss`.
        truncation
            `crnn.bptt.Full()` (also None), `Window(k)` or `Chunk(k1, k2)`.

        Returns
        -------
        dict
            Name -> array in the public shape, names as in `params`. With tied weights both names hold the same array,
            the gradient of the shared matrix: subtract it once, as a loop over the names of `parameters` does.
        """
        gradients = self.new_gradients()
        self.loss_and_gradients(one_batch(*self._read_pairs(x, y)), gradients, truncation, training=False)
        for name, (ids, rows) in gradients.sparse.items():
            gradients.dense.storage(name)[ids] = rows
        return dict(self._named(gradients.dense))

    def gradient_check(self, x: Any, y: Any, truncation: Truncation | None = None, **options: Any) -> GradientReport:
        """Compare `gradients` with finite differences, every tensor, in float64.

        See `crnn.gradient_check.gradient_check` for the method and the options.

        Raises
        ------
        crnn.gradient_check.GradientError
            Where a gradient is wrong: names the tensor, the index and both values.
        """
        from .gradient_check import gradient_check

        return gradient_check(self, x, y, truncation, **options)

    def sgd_step(self, x: Any, y: Any, learning_rate: float, truncation: Truncation | None = None) -> float:
        """One step of plain gradient descent: ``params -= learning_rate * gradients(x, y, truncation)``.

        This is training: dropout, where the model has it, is applied.

        Returns
        -------
        float
            The total loss before the step, in nats.

        Raises
        ------
        TypeError, ValueError
            As `total_loss`; and for a learning rate that is no number or not finite.
        """
        rate = number(learning_rate, "learning_rate")
        if not math.isfinite(rate):
            raise ValueError(f"learning_rate: got {rate}, wanted a finite number")
        return self.fused_sgd(one_batch(*self._read_pairs(x, y)), rate, truncation)[0]

    def generate(self, n: int = 1, **options: Any) -> list[Any]:
        """Write `n` sentences; see `crnn.generation.generate` for the options (temperature, top_k, prompt, seed...)."""
        from .generation import generate

        return generate(self, n, **options)

    def stream(self, batch: int = 1) -> ModelStream:
        """Feed the model word by word: an object that owns its states and buffers; see `crnn.streaming.ModelStream`."""
        from .streaming import ModelStream

        return ModelStream(self, batch)

    def save(self, path: str | os.PathLike[str], *, mappable: bool = False) -> None:
        """Write weights, configuration and vocabulary into one ``.safetensors`` file, atomically.

        `crnn.load` reads it. With `mappable` it can also map it, so that many processes share one copy of the weights;
        other programs find them as one array then. Raises OSError where the file cannot be written; a file that was
        there stays as it was.
        """
        from .model_file import save

        save(self, path, mappable=mappable)

    def _read_ids(self, ids: ArrayLike) -> Ids:
        return read_ids(ids, self.configuration.vocabulary_size, "ids")

    def _read_pairs(self, xs: Any, ys: Any) -> tuple[list[Ids], list[Ids]]:
        return read_pairs(*as_sequences(xs, ys), self.configuration.vocabulary_size)


def _read_vocabulary(value: Any) -> tuple[Vocabulary | None, int]:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return None, int(value)
    from .text.vocabulary import Vocabulary

    if isinstance(value, Vocabulary):
        return value, len(value)
    raise TypeError(f"vocabulary_or_size: got {type(value).__name__}, wanted a crnn.Vocabulary or a whole number")


def _dtype_name(dtype: Any) -> str:
    try:
        if dtype is not None:  # which NumPy takes for float64
            return np.dtype(dtype).name
    except TypeError:
        pass
    raise TypeError(f"dtype: got {dtype!r}, wanted float32 or float64")


def _copied(rng: np.random.Generator) -> np.random.Generator:
    twin = np.random.Generator(type(rng.bit_generator)())
    twin.bit_generator.state = rng.bit_generator.state
    return twin


@functools.cache
def _own_attributes() -> frozenset[str]:
    return frozenset(vars(LanguageModel(4, "rnn", 1)))  # every model has the same


_Model = TypeVar("_Model", bound="LanguageModel")


def _restore(
    kind: type[_Model],
    configuration: Configuration,
    vocabulary: Vocabulary | None,
    rng: np.random.Generator,
    weights: Mapping[str, Array],
) -> _Model:
    """A model with these weights, NaN and all: a copy must not fail where the original exists."""
    model = kind.from_configuration(configuration, vocabulary, rng)
    for name, view in model.parameters.items():
        view[...] = weights[name]
    return model
