"""Named training set-ups: published experiments as data, every value visible and replaceable.

>>> from crnn import recipes
>>> recipe = recipes.get("zaremba-small").override(epochs=2)
>>> recipe.hidden_size, recipe.epochs, recipe.schedule
(200, 2, StepDecay(factor=0.5, after=4, every=1))
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from . import bptt, optim, schedules
from .arguments import as_generator
from .data import Sentences, Stream, TokenData
from .trainer import Normalise, Trainer

if TYPE_CHECKING:
    from .callbacks import Callback
    from .language_model import LanguageModel
    from .text.vocabulary import Vocabulary

__all__ = ["RECIPES", "Recipe", "get"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model, its data and its training, as values.

    Attributes
    ----------
    name, about
        What it is called, and what it reproduces.
    level
        How text is cut: "word" (NLTK sentences and words), "whitespace" (words as they stand, a line ends in an
        end marker), "character".
    vocabulary_size
        Most frequent words kept, the unknown word counted; None: all.
    layout
        "sentences": one sequence each; "stream": the whole text in `batch_size` contiguous streams, state carried.
    batch_size, bucket, shuffle
        See `crnn.data`; the last two concern sentences.
    valid_fraction
        How much of the text validates where no validation file is given.
    valid_split
        Which part of a stream's text that is: "end", the end of the whole text; "streams", the end of each of the
        `batch_size` streams, so that it comes from all over the text. Of sentences every n-th validates.
    cell, hidden_size, num_layers, embedding_size, dropout, tie_weights, bias, nonlinearity, reset_after, z_weighs
        See `crnn.LanguageModel`.
    init_scale
        All parameters from U(-init_scale, init_scale); None: the model's own initialisation.
    forget_bias
        What the biases of an LSTM's forget gates add up to at the start; None: as initialised.
    optimizer, truncation, normalise, schedule, clip_norm, clip_value, accumulate, keep_best, evaluate_first
        See `crnn.Trainer`.
    epochs
        How many.
    evaluation_streams
        Streams that a validation or test text is read in; 1: the whole text from its first word to its last, as the
        papers measure. Concerns streams.
    published
        What the source reports, in words.
    """

    name: str
    about: str
    level: Literal["word", "whitespace", "character"] = "word"
    vocabulary_size: int | None = 8000
    layout: Literal["sentences", "stream"] = "sentences"
    batch_size: int = 1
    bucket: bool = False
    shuffle: bool = False
    valid_fraction: float = 0.1
    valid_split: Literal["end", "streams"] = "end"
    cell: str = "rnn"
    hidden_size: int = 100
    num_layers: int = 1
    embedding_size: int | None = None
    dropout: float = 0.0
    tie_weights: bool = False
    bias: bool = True
    nonlinearity: str = "tanh"
    reset_after: bool = False
    z_weighs: str = "candidate"
    init_scale: float | None = None
    forget_bias: float | None = None
    optimizer: optim.Optimizer = dataclasses.field(default_factory=lambda: optim.SGD(0.005))
    truncation: bptt.Truncation = dataclasses.field(default_factory=lambda: bptt.Window(4))
    normalise: Normalise = "sequences"
    schedule: schedules.Schedule = dataclasses.field(default_factory=schedules.HalveOnIncrease)
    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    keep_best: bool = False
    evaluate_first: bool = False
    epochs: int = 10
    evaluation_streams: int = 1
    published: str = ""

    def __post_init__(self) -> None:
        for name, choices in (
            ("level", ("word", "whitespace", "character")),
            ("layout", ("sentences", "stream")),
            ("valid_split", ("end", "streams")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted one of {', '.join(map(repr, choices))}")
        if self.level != "character" and self.vocabulary_size is not None and self.vocabulary_size < 4:
            raise ValueError(
                f"vocabulary_size: got {self.vocabulary_size}, wanted at least 4 (two markers, the unknown word and "
                "one word) or None"
            )
        if self.forget_bias is not None and (self.cell != "lstm" or not self.bias):
            raise ValueError("forget_bias: only an LSTM with biases has one")
        if self.layout == "stream" and not isinstance(self.truncation, bptt.Chunk):
            raise ValueError(f"truncation: got {self.truncation!r} for a stream, wanted Chunk(k1)")

    def override(self, **values: Any) -> Recipe:
        """A copy with some values replaced.

        Raises
        ------
        TypeError
            A name that no recipe has; the message suggests the nearest.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
                raise TypeError(f"a recipe has no value {name!r}{hint}")
        return dataclasses.replace(self, **values)

    def values(self) -> dict[str, Any]:
        """Name -> value of everything but name, about and published, in the order of the class."""
        left_out = ("name", "about", "published")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}

    def model(
        self,
        vocabulary_or_size: Vocabulary | int,
        rng: np.random.Generator | int | None = None,
        dtype: Any = np.float32,
    ) -> LanguageModel:
        """The model, initialised."""
        from .language_model import LanguageModel

        generator = as_generator(rng, "rng")
        model = LanguageModel(
            vocabulary_or_size,
            self.cell,
            self.hidden_size,
            self.num_layers,
            embedding_size=self.embedding_size,
            dropout=self.dropout,
            tie_weights=self.tie_weights,
            bias=self.bias,
            nonlinearity=self.nonlinearity,
            reset_after=self.reset_after,
            z_weighs=self.z_weighs,
            dtype=dtype,
            rng=generator,
        )
        if self.init_scale is not None:
            model.initialise(generator, self.init_scale)
        if self.forget_bias is not None:
            for layer in range(self.num_layers):
                forget = slice(self.hidden_size, 2 * self.hidden_size)  # gate order i, f, g, o
                model.params[f"rnn.bias_ih_l{layer}"][forget] = self.forget_bias
                model.params[f"rnn.bias_hh_l{layer}"][forget] = 0.0
        return model

    def training_data(
        self, ids: ArrayLike | Iterable[ArrayLike], rng: np.random.Generator | int | None = None
    ) -> TokenData:
        """Training data from ids: one array for a stream, one per sentence otherwise."""
        if self.layout == "stream":
            return Stream(ids, self.batch_size)  # type: ignore[arg-type]
        return Sentences(ids, self.batch_size, self.shuffle, rng, self.bucket)  # type: ignore[arg-type]

    def evaluation_data(self, ids: ArrayLike | Iterable[ArrayLike]) -> TokenData:
        """Validation or test data from ids."""
        if self.layout == "stream":
            return Stream(ids, self.evaluation_streams)  # type: ignore[arg-type]
        return Sentences(ids)  # type: ignore[arg-type]

    def trainer(
        self,
        model: LanguageModel,
        callbacks: Iterable[Callback] = (),
        rng: np.random.Generator | int | None = None,
        **options: Any,
    ) -> Trainer:
        """A trainer with this recipe's settings; `options` go to `Trainer` and replace them."""
        names = ("truncation", "normalise", "clip_norm", "clip_value", "accumulate", "keep_best", "evaluate_first")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        # Optimisers and schedules have a memory: each trainer gets its own.
        settings |= {"optimizer": copy.deepcopy(self.optimizer), "schedule": copy.deepcopy(self.schedule)}
        return Trainer(model, callbacks=callbacks, rng=rng, **(settings | options))

    def describe(self) -> str:
        """All values, one a line."""
        lines = [f"{self.name}: {self.about}"]
        lines += [f"  {name:<19} {value!r}" for name, value in self.values().items()]
        if self.published:
            lines.append(f"  {'published':<19} {self.published}")
        return "\n".join(lines)


_ZAREMBA = Recipe(
    name="zaremba-small",
    about="Zaremba et al. 2014, the small (non-regularised) LSTM; made for the Penn Treebank",
    level="whitespace",
    vocabulary_size=10_000,
    layout="stream",
    batch_size=20,
    cell="lstm",
    hidden_size=200,
    num_layers=2,
    embedding_size=200,
    init_scale=0.1,
    optimizer=optim.SGD(1.0),
    truncation=bptt.Chunk(20),
    schedule=schedules.StepDecay(factor=0.5, after=4),
    clip_norm=5.0,
    epochs=13,
    published="Penn Treebank perplexity: valid 120.7, test 114.5 (arXiv:1409.2329)",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="notes",
            about="the WildML tutorial: one-hot words, one sentence at a time, a window of 4 steps, no biases",
            bias=False,
            evaluate_first=True,
            published="first 100 sentences of the tutorial's corpus: loss 8.987 before training, 5.711 before epoch 10",
        ),
        _ZAREMBA,
        _ZAREMBA.override(
            name="zaremba-medium",
            about="Zaremba et al. 2014, the medium LSTM with dropout; made for the Penn Treebank",
            hidden_size=650,
            embedding_size=650,
            dropout=0.5,
            init_scale=0.05,
            truncation=bptt.Chunk(35),
            schedule=schedules.StepDecay(factor=1 / 1.2, after=6),
            epochs=39,
            published="Penn Treebank perplexity: valid 86.2, test 82.7 (arXiv:1409.2329)",
        ),
        Recipe(
            name="pytorch-word-lm",
            about="the word-language-model example of PyTorch: LSTM 2 x 200, rate 20 quartered when validation stalls",
            level="whitespace",
            vocabulary_size=None,
            layout="stream",
            batch_size=20,
            cell="lstm",
            hidden_size=200,
            num_layers=2,
            embedding_size=200,
            dropout=0.2,
            optimizer=optim.SGD(20.0),
            truncation=bptt.Chunk(35),
            normalise="tokens",
            schedule=schedules.Plateau(factor=0.25, patience=0),
            clip_norm=0.25,
            keep_best=True,
            epochs=40,
            evaluation_streams=10,
            published="test perplexity 87.17, 40 epochs, tied weights (an early README, probably on Penn Treebank)",
        ),
        Recipe(
            name="char-rnn",
            about="char-rnn: LSTM 2 x 128 on characters, RMSprop, 50 streams of 50 characters",
            level="character",
            vocabulary_size=None,
            layout="stream",
            batch_size=50,
            valid_fraction=0.05,
            valid_split="streams",
            cell="lstm",
            hidden_size=128,
            num_layers=2,
            init_scale=0.08,
            forget_bias=1.0,
            optimizer=optim.RMSprop(2e-3, alpha=0.95),
            truncation=bptt.Chunk(50),
            schedule=schedules.StepDecay(factor=0.97, after=10),
            clip_value=5.0,
            epochs=50,
            published="none by its author; about 1.4 to 1.5 nats per character are expected on tinyshakespeare",
        ),
    )
}
"""Name -> recipe."""


def get(name: str) -> Recipe:
    """A recipe by name.

    Raises
    ------
    ValueError
        There is no such recipe; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: got {name!r}, wanted one of {', '.join(RECIPES)}")
    return RECIPES[name]
