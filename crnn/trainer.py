"""Training: epochs over data, updates, evaluation, and what to do when something goes wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import bptt, optim, ranges, schedules
from .arguments import as_generator, flag, whole_number
from .callbacks import Callback
from .data import Stream, TokenBatch, TokenData, check_data
from .divergence import TrainingDiverged, check_weights, diverged
from .history import History, Kept, epoch_record, perplexity_of
from .interrupt import Interrupt

if TYPE_CHECKING:
    import os

    from .language_model import LanguageModel

__all__ = ["Trainer", "TrainingDiverged"]

_MODEL = ("parameters", "rng", "evaluate", "loss_and_gradients", "fused_sgd", "new_gradients")
_SETTINGS = ("normalise", "clip_norm", "clip_value", "accumulate", "evaluate_every", "evaluate_steps", "keep_best")
Normalise = Literal["sequences", "tokens"] | None


class Trainer:
    """Trains a model, keeps the history, and never loses a run.

    The defaults are those of the WildML tutorial: plain SGD at 0.005, one sentence at a time, a window of 4 steps, the
    rate halved when the loss rose.

    Parameters
    ----------
    model
        A `LanguageModel`.
    optimizer
        Update rule; `SGD(0.005)` by default. Its moments stay with it, as a schedule's
        state does: a new model wants new ones.
    truncation
        How far back gradients reach; `Window(4)` by default. A `Stream` wants `Chunk(k1)`.
    normalise
        What the gradient of the total loss is divided by: the "sequences" of the batch (Zaremba: the loss summed over
        the steps, averaged over the streams), its "tokens", or nothing (None).
    schedule
        Learning-rate schedule; `HalveOnIncrease()` by default. It hears the validation loss of every evaluation, or,
        without a validation set, the training loss of every epoch.
    clip_norm
        Scale the gradient so that its global norm is at most this.
    clip_value
        Clip every element of the gradient into [-clip_value, clip_value], before its norm is taken.
    accumulate
        Batches per update. Their gradients are added up and normalised as one batch.
    evaluate_every
        Evaluate the validation set after every n-th epoch, and after the last.
    evaluate_steps
        Evaluate it after every n-th update as well.
    evaluate_first
        Evaluate it before the first update too; kept as `history.initial`.
    keep_best
        Leave the model with the weights of the lowest validation loss in the end, not with the last ones.
    callbacks
        See `crnn.callbacks`.
    rng
        Seed or generator. Where given, it reseeds what is random in training: the data's shuffling and the model's
        dropout.

    Attributes
    ----------
    history
        `History` so far.
    epoch, epochs, step
        The running (or last) epoch from 1; the epoch that is the last; updates made.
    epochs_done
        Epochs finished.
    epoch_loss, epoch_tokens
        Sum of the losses (nats) and number of predictions in the running epoch.
    learning_rate
        The current rate.
    kept
        The best weights so far (the last epoch's, without a validation set).
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        optimizer: optim.Optimizer | None = None,
        truncation: bptt.Truncation | None = None,
        normalise: Normalise = "sequences",
        schedule: schedules.Schedule | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        accumulate: int = 1,
        evaluate_every: int = 1,
        evaluate_steps: int | None = None,
        evaluate_first: bool = False,
        keep_best: bool = False,
        callbacks: Iterable[Callback] = (),
        rng: np.random.Generator | int | None = None,
    ) -> None:
        missing = [name for name in _MODEL if not hasattr(model, name)]
        if missing:
            raise TypeError(
                f"model: got {type(model).__name__}, wanted a LanguageModel (there is no {', '.join(missing)})"
            )
        self.model = model
        optimizer = optim.SGD(0.005) if optimizer is None else optimizer
        schedule = schedules.HalveOnIncrease() if schedule is None else schedule
        self.optimizer: optim.Optimizer = ranges.instance("optimizer", optimizer, optim.Optimizer)
        self.schedule: schedules.Schedule = ranges.instance("schedule", schedule, schedules.Schedule)
        self.truncation = bptt.Window(4) if truncation is None else bptt.resolve(truncation)
        if normalise not in ("sequences", "tokens", None):
            raise ValueError(f"normalise: got {normalise!r}, wanted 'sequences', 'tokens' or None")
        self.normalise = normalise
        self.clip_norm = ranges.optional_positive("clip_norm", clip_norm)
        self.clip_value = ranges.optional_positive("clip_value", clip_value)
        self.accumulate = whole_number(accumulate, "accumulate")
        self.evaluate_every = whole_number(evaluate_every, "evaluate_every")
        self.evaluate_steps = None if evaluate_steps is None else whole_number(evaluate_steps, "evaluate_steps")
        self.evaluate_first = flag(evaluate_first, "evaluate_first")
        self.keep_best = flag(keep_best, "keep_best")
        if isinstance(callbacks, Callback):
            raise TypeError(f"callbacks: got one {type(callbacks).__name__}, wanted a sequence of callbacks")
        self.callbacks = tuple(ranges.instance("callbacks", callback, Callback) for callback in callbacks)
        self.rng = None if rng is None else as_generator(rng, "rng")

        self.history = History()
        self.epoch = self.epochs = self.epochs_done = self.step = 0
        self.epoch_loss = 0.0
        self.epoch_tokens = 0
        self.learning_rate = self.optimizer.learning_rate
        self.train: TokenData | None = None
        self.valid: TokenData | None = None
        self.kept: Kept | None = None
        self.carried: Any = None
        self._seconds = 0.0  # spent in the running epoch before `_since`
        self._since: float | None = None
        self._stop_reason = ""
        self._gradients: Any = None
        self.last_batch: TokenBatch | None = None

    def fit(
        self,
        train: TokenData,
        valid: TokenData | None = None,
        epochs: int = 10,
        *,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for `epochs` epochs (after those of an earlier `fit`), or continue a checkpoint up to `epochs`.

        Ctrl-C lets the running step finish and returns with `history.interrupted` set; pressed twice it raises
        KeyboardInterrupt at once.

        Parameters
        ----------
        train, valid
            `Sentences` or `Stream`. The validation set is evaluated in batches of its own, with carried state where it
            is a `Stream`.
        epochs
            How many more; with `resume`, how many in all.
        max_steps
            Stop after this many updates in all.
        max_seconds
            Stop after this long in this call.
        resume
            A checkpoint file or its folder: continue that run where it stood, to the same bits.

        Returns
        -------
        History
            The trainer's own, all epochs.

        Raises
        ------
        TrainingDiverged
            A NaN or infinite loss or gradient. The model holds the best weights so far, the history is kept.
        CheckpointError
            The checkpoint is damaged, or belongs to another model, other data or other settings.
        TypeError, ValueError
            Arguments that cannot be.
        """
        self._check_data(train, valid)
        epochs = whole_number(epochs, "epochs")
        last_step = math.inf if max_steps is None else whole_number(max_steps, "max_steps")
        deadline = math.inf if max_seconds is None else time.monotonic() + ranges.positive("max_seconds", max_seconds)
        if resume is None:
            train.position = 0
            self._forget_epoch()
            if self.history:  # an epoch that a limit cut short is not begun again
                self.epochs_done = self.history[-1]["epoch"]
            self.epochs = self.epochs_done + epochs
            if not self._still_kept(valid):
                self.kept = None
                self._keep(None)
            self.train, self.valid = train, valid
            self._reseed()
        else:
            self._resume(resume, train, valid)
            self.epochs = epochs
        self.history.stopped = self._stop_reason = ""
        reason = "failed"
        try:
            with Interrupt() as interrupt:
                self._call("on_start")
                first = self.evaluate_first and self.step == 0 and self.history.initial is None
                if first and self.valid is not None:
                    self._evaluate_first()
                reason = self._run(interrupt, last_step, deadline)
                if interrupt.requested:  # during the last evaluation
                    reason = "interrupted"
        except TrainingDiverged:
            reason = "diverged"
            raise
        finally:
            self.history.stopped = reason
            self._call("on_end")
        if self.keep_best and self.kept is not None and self.kept.valid_loss is not None:
            self.restore_kept()  # after Ctrl-C too: what goes on later goes on from a checkpoint
        return self.history

    def stop(self, reason: str = "stopped") -> None:
        """End the run after this step; `reason` becomes `history.stopped`."""
        self._stop_reason = reason

    def evaluate(self, data: TokenData) -> float:
        """Mean loss over `data` in nats per token, without dropout; nothing is trained."""
        check_data(data, len(self.model), "data")
        total, tokens = self.model.evaluate(data.evaluation_batches())
        return total / tokens

    def restore_kept(self) -> None:
        """Put the best weights so far (`kept`) into the model."""
        if self.kept is not None:
            self.model.parameters.flat[:] = self.kept.weights

    @property
    def tokens_per_epoch(self) -> int:
        """Predictions in an epoch of the training data."""
        return 0 if self.train is None else self.train.tokens

    @property
    def epoch_seconds(self) -> float:
        """Seconds spent on the running epoch's training steps."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be the same, as JSON types."""
        written = {name: repr(getattr(self, name)) for name in ("optimizer", "schedule", "truncation")}
        return written | {name: getattr(self, name) for name in _SETTINGS}

    def _run(self, interrupt: Interrupt, last_step: float, deadline: float) -> str:
        """Epoch after epoch; returns why it ended."""
        while self.epochs_done < self.epochs:
            reason = self._limit(interrupt, last_step, deadline)
            if reason:  # between two epochs
                self._call("on_halt", reason)
                return reason
            self.epoch = self.epochs_done + 1
            self.learning_rate = self._rate()
            self._call("on_epoch_start")
            reason = self._run_epoch(interrupt, last_step, deadline)
            if reason:
                check_weights(self)  # before a checkpoint of them replaces a good one
                try:
                    self._call("on_halt", reason)
                finally:  # a checkpoint that cannot be written costs no evaluation
                    if reason != "interrupted":
                        self._finish_epoch(whole=False)
                return reason
            self._finish_epoch(whole=True)
            if self._stop_reason:
                return self._stop_reason
        return "finished"

    def _limit(self, interrupt: Interrupt, last_step: float, deadline: float) -> str:
        """Why the run ends here, or ""."""
        if interrupt.requested:
            return "interrupted"
        if self._stop_reason:
            return self._stop_reason
        if self.step >= last_step:
            return "step limit"
        return "time limit" if deadline < math.inf and time.monotonic() >= deadline else ""

    def _run_epoch(self, interrupt: Interrupt, last_step: float, deadline: float) -> str:
        """The rest of an epoch; returns why it was cut short, or "" at its end."""
        assert self.train is not None
        advance = self._advance_fused if self._can_fuse else self._advance
        hooks = self._overridden("on_step")
        batches = self.train.batches(self.truncation)
        self._since = time.perf_counter()
        try:
            while advance(batches):
                if not math.isfinite(self.epoch_loss):
                    raise diverged(self, f"the loss became {self.epoch_loss}")
                self.step += 1
                if self.evaluate_steps and self.step % self.evaluate_steps == 0 and self.valid is not None:
                    self._pause()
                    self._evaluate_valid()
                    self.learning_rate = self._rate()
                    self._since = time.perf_counter()
                elif self.schedule.per_step:
                    self.learning_rate = self._rate()
                for hook in hooks:  # last, so that a checkpoint written here has nothing left to do for this step
                    hook(self)
                reason = self._limit(interrupt, last_step, deadline)
                if reason:
                    return reason
            return ""
        finally:
            self._pause()

    @property
    def _can_fuse(self) -> bool:
        """Whether the update may happen inside the gradient product."""
        return (
            self.optimizer.is_plain_sgd and self.clip_norm is None and self.clip_value is None and self.accumulate == 1
        )

    def _advance_fused(self, batches: Iterator[TokenBatch]) -> bool:
        batch = next(batches, None)
        if batch is None:
            return False
        self.last_batch = batch
        state = self.carried if batch.carry else None
        loss, self.carried = self.model.fused_sgd(
            batch, self.learning_rate, self.truncation, self._scale(batch.sequences, batch.tokens), state
        )
        self.epoch_loss += loss
        self.epoch_tokens += batch.tokens
        return True

    def _advance(self, batches: Iterator[TokenBatch]) -> bool:
        assert self.train is not None
        # No further than the epoch's last batch: asking for one more ends the epoch, before its last update counts.
        left = self.train.steps_per_epoch(self.truncation) - self.train.position
        group = list(islice(batches, max(1, min(self.accumulate, left))))
        if not group:
            return False
        gradients = self._gradients
        if gradients is None:
            gradients = self._gradients = self.model.new_gradients()
        self.last_batch = group[-1]
        scale = self._scale(sum(batch.sequences for batch in group), sum(batch.tokens for batch in group))
        for i, batch in enumerate(group):
            loss, self.carried = self.model.loss_and_gradients(
                batch,
                gradients,
                self.truncation,
                scale,
                state=self.carried if batch.carry else None,
                training=True,
                accumulate=i > 0,
            )
            self.epoch_loss += loss
            self.epoch_tokens += batch.tokens
        if not math.isfinite(self.epoch_loss):
            return True  # the caller raises; the weights are left alone
        if self.clip_value is not None:
            optim.clip_value(gradients.dense, gradients.sparse, self.clip_value)
        if self.clip_norm is not None:
            norm = optim.clip_norm(gradients.dense, gradients.sparse, self.clip_norm)
            if not math.isfinite(norm):
                raise diverged(self, f"the norm of the gradient became {norm}")
        self.optimizer.step(self.model.parameters, gradients.dense, gradients.sparse, self.learning_rate)
        return True

    def _scale(self, sequences: int, tokens: int) -> float:
        if self.normalise == "sequences":
            return 1.0 / sequences
        return 1.0 / tokens if self.normalise == "tokens" else 1.0

    def _rate(self) -> float:
        rate = self.schedule.rate(self.optimizer.learning_rate, max(1, self.epoch), self.step)
        if type(rate) is not float:  # a schedule of one's own
            rate = ranges.not_negative(f"the rate of {self.schedule!r}", rate)
        return rate

    def _finish_epoch(self, whole: bool) -> None:
        """Evaluate, record and tell. The record of an epoch cut short by a limit does not count as an epoch done."""
        check_weights(self, evaluate=self.valid is None)  # else the evaluation says
        due = self.epoch % self.evaluate_every == 0 or self.epoch == self.epochs or not whole
        train_loss = self.epoch_loss / max(1, self.epoch_tokens)
        rate, seconds, tokens = self.learning_rate, self._seconds, self.epoch_tokens
        valid_loss = None
        if self.valid is not None and due:
            valid_loss = self._evaluate_valid(observe=whole)
        elif self.valid is None and whole:
            self.schedule.observe(train_loss)
        if self.valid is None:
            self._keep(None)
        self.history.append(epoch_record(self.epoch, self.step, train_loss, valid_loss, rate, tokens, seconds))
        if whole:
            self.epochs_done = self.epoch
            self._forget_epoch()
        self._call("on_epoch_end", self.history[-1])

    def _still_kept(self, valid: TokenData | None) -> bool:
        """Whether the model has the weights that an earlier `fit` found best on the same validation set."""
        kept = self.kept
        return (
            kept is not None
            and kept.valid_loss is not None
            and valid is self.valid
            and np.array_equal(kept.weights, self.model.parameters.flat)
        )

    def _resume(self, path: str | os.PathLike[str], train: TokenData, valid: TokenData | None) -> None:
        from .checkpoint import restore

        before = self.train, self.valid, self.model.rng, train.rng
        self.train, self.valid = train, valid
        self._reseed()
        try:
            restore(path, self)
        except Exception:
            self.train, self.valid, self.model.rng, train.rng = before
            raise

    def _forget_epoch(self) -> None:
        self.epoch_loss, self.epoch_tokens, self._seconds = 0.0, 0, 0.0
        self.carried = None

    def _evaluate_first(self) -> None:
        self.history.initial = epoch_record(0, self.step, None, self._evaluate_valid(), self._rate(), 0, 0.0)

    def _evaluate_valid(self, observe: bool = True) -> float:
        assert self.valid is not None
        done = self.history.evaluations
        if done and done[-1]["step"] == self.step and self.step:
            return float(done[-1]["valid_loss"])
        loss = self.evaluate(self.valid)
        if not math.isfinite(loss):
            raise diverged(self, f"the validation loss became {loss}")
        self.history.evaluations.append(
            {"step": self.step, "epoch": self.epoch, "valid_loss": loss, "valid_perplexity": perplexity_of(loss)}
        )
        if self.kept is None or self.kept.valid_loss is None or loss < self.kept.valid_loss:
            self._keep(loss)
        if observe:
            self.schedule.observe(loss)
        self._call("on_evaluation", loss)
        return loss

    def _keep(self, valid_loss: float | None) -> None:
        weights = self.model.parameters.flat
        if self.kept is None:
            self.kept = Kept(weights.copy(), self.epoch, self.step, valid_loss)
        else:
            self.kept.weights[:] = weights
            self.kept.epoch, self.kept.step, self.kept.valid_loss = self.epoch, self.step, valid_loss

    def resume_epoch(self, loss: float, tokens: int, seconds: float, carried: Any) -> None:
        """Take up the sums of an epoch that a checkpoint stands in, and the state it carries."""
        self.epoch_loss, self.epoch_tokens, self._seconds, self.carried = loss, tokens, seconds, carried

    def _pause(self) -> None:
        self._seconds = self.epoch_seconds
        self._since = None

    def _reseed(self) -> None:
        if self.rng is None:
            return
        assert self.train is not None
        self.model.rng, shuffling = self.rng.spawn(2)
        if self.train.rng is not None:
            self.train.rng = shuffling

    def _check_data(self, train: TokenData, valid: TokenData | None) -> None:
        self.model.parameters.check_writable()
        check_data(train, len(self.model), "train")
        if valid is not None:
            check_data(valid, len(self.model), "valid")
        if isinstance(train, Stream):
            train.steps_per_epoch(self.truncation)
        if valid is None and self.keep_best:
            raise ValueError("keep_best: there is no validation set to find the best weights with")

    def _overridden(self, method: str) -> list[Callable[..., None]]:
        """The callbacks' methods of that name, leaving out those that do nothing."""
        nothing = getattr(Callback, method)
        return [getattr(c, method) for c in self.callbacks if getattr(type(c), method) is not nothing]

    def _call(self, method: str, *arguments: Any) -> None:
        for call in self._overridden(method):
            call(self, *arguments)
