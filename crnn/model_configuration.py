"""What makes a language model's shape and equations, as plain data."""

from __future__ import annotations

import dataclasses

from .arguments import choice, flag, number, whole_number
from .cells import CELLS, NONLINEARITIES, Z_WEIGHS

__all__ = ["Configuration"]


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """The constructor arguments of `LanguageModel`, the vocabulary as its size and the dtype as its name.

    All values are JSON types; ``dataclasses.asdict`` and ``Configuration(**values)`` are the way out and back.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what was wanted.
    """

    vocabulary_size: int
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
    dtype: str = "float32"

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            name: whole_number(getattr(self, name), name) for name in ("vocabulary_size", "hidden_size", "num_layers")
        }
        if self.embedding_size is not None:
            checked["embedding_size"] = whole_number(self.embedding_size, "embedding_size")
        for name in ("tie_weights", "bias", "reset_after"):
            checked[name] = flag(getattr(self, name), name)
        choice(self.cell, tuple(CELLS), "cell")
        choice(self.nonlinearity, NONLINEARITIES, "nonlinearity")
        choice(self.z_weighs, Z_WEIGHS, "z_weighs")
        choice(self.dtype, ("float32", "float64"), "dtype")
        checked["dropout"] = number(self.dropout, "dropout")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be a probability of at least 0 and below 1, got {self.dropout}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # NumPy's numbers have become Python's, which JSON knows
        if self.tie_weights and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tie_weights wants embedding_size equal to hidden_size = {self.hidden_size}, because one matrix "
                f"serves as both, got embedding_size={self.embedding_size}"
            )

    @property
    def onehot(self) -> bool:
        """Whether words enter the gates directly."""
        return self.embedding_size is None

    @property
    def input_size(self) -> int:
        """Width of what enters the first layer: the vocabulary for one-hot words, else the embedding."""
        return self.vocabulary_size if self.embedding_size is None else self.embedding_size
