"""Learning-rate schedules: rules from (epoch, step, losses seen) to a rate.

A schedule never touches the optimiser. The trainer asks `rate(base, epoch, step)` at the start of every epoch (and of
every step where `per_step` is set) and tells each evaluated loss to `observe`. Epochs count from 1, steps from 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from . import ranges
from .arguments import whole_number

__all__ = ["Constant", "Cosine", "Exponential", "HalveOnIncrease", "Plateau", "Schedule", "StepDecay", "Warmup"]


class Schedule(ABC):
    """What the trainer needs of a schedule.

    Attributes
    ----------
    per_step
        True when the rate changes within an epoch.
    """

    per_step: bool = False
    _state: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"  # of a class of one's own: the same in every process, as a resumed run wants

    @abstractmethod
    def rate(self, base: float, epoch: int, step: int) -> float:
        """The learning rate for a step: `base` is the optimiser's own rate, epochs count from 1, steps from 0."""

    def observe(self, loss: float) -> None:  # noqa: B027  optional by design
        """Hear of an evaluated loss (nats per token); most schedules do not care."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON types."""
        return {name: getattr(self, name) for name in self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises
        ------
        ValueError
            The keys are not this schedule's.
        """
        if set(state) != set(self._state):
            raise ValueError(
                f"state of {type(self).__name__}: got the keys {sorted(state)}, wanted {sorted(self._state)}"
            )
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Constant(Schedule):
    """The optimiser's own rate, always."""

    def rate(self, base: float, epoch: int, step: int) -> float:
        return base


@dataclass
class HalveOnIncrease(Schedule):
    """Multiply the rate by `factor` whenever an evaluated loss is higher than the one before it.

    The rule of the WildML tutorial. There the loss of the training set is evaluated before each epoch; here every
    evaluation counts (validation loss, or the epoch's training loss when there is no validation set), once.
    """

    factor: float = 0.5
    multiplier: float = field(default=1.0, init=False, repr=False, compare=False)
    last: float | None = field(default=None, init=False, repr=False, compare=False)
    _state: ClassVar[tuple[str, ...]] = ("multiplier", "last")

    def __post_init__(self) -> None:
        self.factor = ranges.fraction("factor", self.factor, zero=False, one=True)

    def rate(self, base: float, epoch: int, step: int) -> float:
        return base * self.multiplier

    def observe(self, loss: float) -> None:
        if self.last is not None and loss > self.last:
            self.multiplier *= self.factor
        self.last = loss


@dataclass
class Plateau(Schedule):
    """Multiply the rate by `factor` when the loss has not beaten its best for more than `patience` evaluations.

    With `factor=0.25` and `patience=0` this is the rule of PyTorch's word-language-model example.

    Parameters
    ----------
    factor
        What the rate is multiplied by, in (0, 1].
    patience
        How many evaluations without improvement are forgiven.
    threshold
        Nats by which the best loss must be beaten to count as improved.
    minimum
        The rate never falls below this, or below the base where that is lower.
    """

    factor: float = 0.25
    patience: int = 0
    threshold: float = 0.0
    minimum: float = 0.0
    multiplier: float = field(default=1.0, init=False, repr=False, compare=False)
    best: float | None = field(default=None, init=False, repr=False, compare=False)
    waited: int = field(default=0, init=False, repr=False, compare=False)
    _state: ClassVar[tuple[str, ...]] = ("multiplier", "best", "waited")

    def __post_init__(self) -> None:
        self.factor = ranges.fraction("factor", self.factor, zero=False, one=True)
        self.patience = whole_number(self.patience, "patience", 0)
        self.threshold = ranges.not_negative("threshold", self.threshold)
        self.minimum = ranges.not_negative("minimum", self.minimum)

    def rate(self, base: float, epoch: int, step: int) -> float:
        return max(base * self.multiplier, min(self.minimum, base))

    def observe(self, loss: float) -> None:
        if self.best is None or loss < self.best - self.threshold:
            self.best = loss
            self.waited = 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.multiplier *= self.factor
            self.waited = 0


@dataclass
class StepDecay(Schedule):
    """Keep the rate for `after` epochs, then multiply it by `factor` every `every` epochs.

    Zaremba et al. (2014), small model: `StepDecay(factor=0.5, after=4)`, medium: `StepDecay(factor=1 / 1.2, after=6)`.
    """

    factor: float
    after: int
    every: int = 1

    def __post_init__(self) -> None:
        self.factor = ranges.fraction("factor", self.factor, zero=False, one=True)
        self.after = whole_number(self.after, "after", 0)
        self.every = whole_number(self.every, "every", 1)

    def rate(self, base: float, epoch: int, step: int) -> float:
        late = epoch - self.after
        return base if late <= 0 else base * self.factor ** (1 + (late - 1) // self.every)


@dataclass
class Exponential(Schedule):
    """`base * factor ** (epoch - 1)`: the first epoch runs at the optimiser's own rate."""

    factor: float

    def __post_init__(self) -> None:
        self.factor = ranges.fraction("factor", self.factor, zero=False, one=True)

    def rate(self, base: float, epoch: int, step: int) -> float:
        return base * self.factor ** (epoch - 1)


@dataclass
class Cosine(Schedule):
    """From the full rate to `final` times it along half a cosine over `steps` steps, then stay there.

    Loshchilov & Hutter (2017), without restarts.
    """

    steps: int
    final: float = 0.0
    per_step = True

    def __post_init__(self) -> None:
        self.steps = whole_number(self.steps, "steps", 1)
        self.final = ranges.fraction("final", self.final, one=True)

    def rate(self, base: float, epoch: int, step: int) -> float:
        done = min(step, self.steps) / self.steps
        return base * (self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done)))


@dataclass
class Warmup(Schedule):
    """Rise linearly to the full rate over the first `steps` steps, then follow `then`.

    Step s (from 0) runs at (s + 1) / steps of the rate. `then` counts its own steps from the end of the warm-up.
    """

    steps: int
    then: Schedule = field(default_factory=Constant)
    per_step = True

    def __post_init__(self) -> None:
        self.steps = whole_number(self.steps, "steps", 1)
        self.then = ranges.instance("then", self.then, Schedule)

    def rate(self, base: float, epoch: int, step: int) -> float:
        full = self.then.rate(base, epoch, max(0, step - self.steps))
        return full * min(1.0, (step + 1) / self.steps)

    def observe(self, loss: float) -> None:
        self.then.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"then": self.then.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != {"then"}:
            raise ValueError(f"state of Warmup: got the keys {sorted(state)}, wanted ['then']")
        self.then.load_state_dict(state["then"])
