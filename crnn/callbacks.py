"""Things that happen while a model trains: progress, logs, best models, early stopping.

A callback is a class with any of the seven methods of `Callback`. Each gets the `crnn.Trainer`, whose public
attributes say everything there is to know (`epoch`, `step`, `learning_rate`, `epoch_loss`, `epoch_tokens`, `history`,
`model`, ...), and may call `trainer.stop("why")` to end the run after this step:

>>> class Shout(Callback):
...     def on_epoch_end(self, trainer, record):
...         print(f"epoch {record['epoch']}: {record['train_loss']:.2f} nats per token")
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import ranges
from .arguments import whole_number
from .atomic import check_writable
from .history import Record, perplexity_of

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["BestModel", "Callback", "EarlyStopping", "EpochTable", "JSONLinesLog", "ProgressBar", "TensorBoard"]


class Callback:
    """What a trainer calls, in this order; the methods of this class do nothing."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step. A resumed run has its history and counters already."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first step of an epoch, or the first one after resuming within it."""

    def on_step(self, trainer: Trainer) -> None:
        """After every update of the weights. Keep it cheap."""

    def on_evaluation(self, trainer: Trainer, valid_loss: float) -> None:
        """After every evaluation of the validation set; the loss is in nats per token."""

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        """After an epoch and its evaluation; the record is in the history already."""

    def on_halt(self, trainer: Trainer, reason: str) -> None:
        """When Ctrl-C, a limit or `trainer.stop` ends the run before its last epoch is over.

        The reason is what `trainer.history.stopped` will be. Within an epoch this comes before the evaluation that
        closes the run, so that what is saved here goes on as if nothing had happened.
        """

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, however the run ended: `trainer.history.stopped` says."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume, as JSON types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


class ProgressBar(Callback):
    """A bar per epoch: tokens/s, running loss and perplexity, time left. Silent when `stream` is not a terminal.

    Parameters
    ----------
    stream
        Where to draw; standard error by default.
    interval
        Seconds between two drawings.
    """

    def __init__(self, stream: IO[str] | None = None, interval: float = 0.1) -> None:
        self.stream = stream
        self.interval = interval
        self._bar: Any = None
        self._drawn = 0.0

    def on_epoch_start(self, trainer: Trainer) -> None:
        stream = self.stream if self.stream is not None else sys.stderr
        if stream is None or not stream.isatty():  # None: the process has no standard error
            return
        from tqdm import tqdm

        class Bar(tqdm):
            monitor_interval = 0  # no thread that watches for stalled bars: `on_step` decides when to draw

        self._bar = Bar(
            desc=f"epoch {trainer.epoch}/{trainer.epochs}",
            total=trainer.tokens_per_epoch,
            initial=trainer.epoch_tokens,
            unit="tok",
            unit_scale=True,
            mininterval=0.0,
            miniters=1,
            leave=False,
            dynamic_ncols=True,
            file=stream,
        )
        self._drawn = time.perf_counter()

    def on_step(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        now = time.perf_counter()
        if now - self._drawn < self.interval:
            return
        self._drawn = now
        loss = trainer.epoch_loss / max(1, trainer.epoch_tokens)
        self._bar.set_postfix_str(f"loss {loss:.3f}, perplexity {perplexity_of(loss):.5g}", refresh=False)
        self._bar.update(trainer.epoch_tokens - self._bar.n)

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        self._close()

    def on_end(self, trainer: Trainer) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class EpochTable(Callback):
    """One aligned line per epoch: losses, perplexities, rate, tokens/s, time.

    Parameters
    ----------
    stream
        Where to print; standard error by default.
    """

    columns = (
        ("epoch", 7),
        ("train loss", 11),
        ("train ppl", 11),
        ("valid loss", 11),
        ("valid ppl", 11),
        ("rate", 10),
        ("tokens/s", 10),
        ("seconds", 9),
    )

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream

    def on_start(self, trainer: Trainer) -> None:
        self._print([name for name, _ in self.columns])
        for record in trainer.history:
            self._row(record, trainer.epochs)

    def on_epoch_start(self, trainer: Trainer) -> None:
        if trainer.step == 0 and trainer.history.initial is not None:
            self._row(trainer.history.initial, trainer.epochs)

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        self._row(record, trainer.epochs)

    def _row(self, record: Record, epochs: int) -> None:
        train, valid = record["train_loss"], record["valid_loss"]
        rate, speed = record["learning_rate"], record["tokens_per_second"]
        self._print(
            [
                f"{record['epoch']}/{epochs}",
                "-" if train is None else f"{train:.4f}",
                "-" if train is None else f"{perplexity_of(train):.2f}",
                "-" if valid is None else f"{valid:.4f}",
                "-" if valid is None else f"{record['valid_perplexity']:.2f}",
                f"{rate:.4g}",
                "-" if speed is None else f"{speed:,.0f}",
                f"{record['seconds']:.1f}",
            ]
        )

    def _print(self, cells: list[str]) -> None:
        line = " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, self.columns, strict=True))
        print(line, file=self.stream if self.stream is not None else sys.stderr, flush=True)


@contextlib.contextmanager
def _training_goes_on(what: str, trainer: Trainer) -> Iterator[None]:
    """What cannot be written beside a run is a warning, not its end."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what} at step {trainer.step} ({error}); training goes on", RuntimeWarning, stacklevel=3)


class JSONLinesLog(Callback):
    """Write the history as it grows, one JSON object a line. A resumed run goes on where its history stands.

    Parameters
    ----------
    path
        The file. What it held before is replaced.

    A record that cannot be written (full disk) is written with the next one; training goes on with a warning.

    Raises
    ------
    OSError
        The file cannot be written; found at once, not after the first epoch.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_writable(path, "path")
        self._behind = False

    def on_start(self, trainer: Trainer) -> None:
        trainer.history.save(self.path)

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        with _training_goes_on("the log was not written", trainer):
            if self._behind:
                trainer.history.save(self.path)
                self._behind = False
                return
            self._behind = True  # until the line is there
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            self._behind = False


class BestModel(Callback):
    """Save the model whenever the validation loss beats its best so far.

    Parameters
    ----------
    path
        Model file; written atomically with `model.save`. Where that fails, training goes on with a warning.

    Raises
    ------
    OSError
        The file cannot be written; found at once.
    ValueError
        When training starts: there is no validation set.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_writable(path, "path")
        self.best: float | None = None

    def on_start(self, trainer: Trainer) -> None:
        _wants_validation(self, trainer)

    def on_evaluation(self, trainer: Trainer, valid_loss: float) -> None:
        if self.best is None or valid_loss < self.best:
            with _training_goes_on("the best model was not saved", trainer):
                trainer.model.save(self.path)
                self.best = valid_loss

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


def _wants_validation(callback: Callback, trainer: Trainer) -> None:
    if trainer.valid is None:
        raise ValueError(f"callbacks: {type(callback).__name__} has no validation set to judge by; give fit() one")


class EarlyStopping(Callback):
    """Stop when the validation loss has not beaten its best for more than `patience` evaluations in a row.

    Parameters
    ----------
    patience
        Evaluations without improvement that are forgiven.
    threshold
        Nats per token by which the best must be beaten.

    Raises
    ------
    TypeError, ValueError
        Numbers that cannot be; or, when training starts, that there is no validation set.
    """

    def __init__(self, patience: int = 3, threshold: float = 0.0) -> None:
        self.patience = whole_number(patience, "patience", 0)
        self.threshold = ranges.not_negative("threshold", threshold)
        self.best: float | None = None
        self.waited = 0
        self._resumed = False

    def on_start(self, trainer: Trainer) -> None:
        _wants_validation(self, trainer)
        if trainer.step == 0 and not self._resumed:
            self.best, self.waited = None, 0  # another model's
        if self._resumed and self.waited > self.patience:
            trainer.stop("early stopping")  # a run that was stopped stays stopped
        self._resumed = False

    def on_evaluation(self, trainer: Trainer, valid_loss: float) -> None:
        if self.best is None or valid_loss < self.best - self.threshold:
            self.best = valid_loss
            self.waited = 0
            return
        self.waited += 1
        if self.waited > self.patience:
            trainer.stop("early stopping")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
        self._resumed = True


class TensorBoard(Callback):
    """Write scalars for TensorBoard: losses, perplexity, rate and speed by step.

    The event file is written by crnn itself; TensorBoard is needed only to look at it.

    Parameters
    ----------
    folder
        Log folder; made where it is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._events: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from .tensorboard import EventFile

        self._events = EventFile(self.folder)

    def on_evaluation(self, trainer: Trainer, valid_loss: float) -> None:
        self._write(trainer, {"loss/valid": valid_loss, "perplexity/valid": perplexity_of(valid_loss)})

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        self._write(
            trainer,
            {
                "loss/train": record["train_loss"],
                "perplexity/train": perplexity_of(record["train_loss"]),
                "learning_rate": record["learning_rate"],
                "tokens_per_second": record["tokens_per_second"],
            },
        )

    def on_end(self, trainer: Trainer) -> None:
        if self._events is not None:
            with _training_goes_on("the event file was not closed", trainer):
                self._events.close()
            self._events = None

    def _write(self, trainer: Trainer, scalars: dict[str, Any]) -> None:
        with _training_goes_on("no scalars were written for TensorBoard", trainer):
            self._events.scalars(trainer.step, scalars)
