"""When training diverges: the error that says so, and how the weights are looked at before they are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["TrainingDiverged", "check_weights", "diverged", "fault_of_weights"]


class TrainingDiverged(ArithmeticError):
    """The loss or the gradient became NaN or infinite. The model is back at the last good weights.

    Attributes
    ----------
    step
        The step (from 0) whose loss it was.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def fault_of_weights(trainer: Trainer, evaluate: bool = True) -> str:
    """What is wrong with the weights after an update whose loss nobody has computed yet, or "".

    All must be finite, and with `evaluate` so must their loss on the last batch trained on: a large rate leaves weights
    that are finite and overflow when they are used.
    """
    flat = trainer.model.parameters.flat
    for extreme in (flat.min(), flat.max()):  # both are NaN where a weight is, and neither needs an array of flags
        if not math.isfinite(extreme):
            return f"a weight became {extreme}"
    if trainer.last_batch is None or not evaluate:
        return ""
    loss, _ = trainer.model.evaluate([trainer.last_batch])
    return "" if math.isfinite(loss) else f"the loss became {loss} after the last update"


def check_weights(trainer: Trainer, evaluate: bool = True) -> None:
    """Raise TrainingDiverged, with the good weights back in the model, where `fault_of_weights` finds something."""
    fault = fault_of_weights(trainer, evaluate)
    if fault:
        raise diverged(trainer, fault)


def diverged(trainer: Trainer, what: str) -> TrainingDiverged:
    """Put the kept weights back; the error to raise: what happened, and what to try."""
    trainer.restore_kept()
    kept = trainer.kept
    place = "those before training"
    if kept is not None and kept.step:
        loss = "" if kept.valid_loss is None else f" (validation loss {kept.valid_loss:.4f})"
        place = f"those of step {kept.step}, epoch {kept.epoch}{loss}"
    advice = [f"a lower learning rate (now {trainer.learning_rate:g})"]
    if trainer.clip_norm is None:
        advice.append("clip_norm=5")
    if trainer.model.configuration.cell == "rnn" and trainer.model.configuration.nonlinearity == "relu":
        advice.append("nonlinearity='tanh'")
    return TrainingDiverged(
        f"{what} at step {trainer.step} (epoch {trainer.epoch}); training stopped and the weights are back at {place}. "
        f"Try {' or '.join(advice)}.",
        trainer.step,
    )
