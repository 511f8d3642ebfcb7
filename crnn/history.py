"""What a training run recorded: a list of epochs that can be written, read and drawn."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIELDS", "History", "Kept", "Record", "perplexity_of", "plot_histories"]

Record = dict[str, Any]

FIELDS = (
    "epoch",
    "train_loss",
    "valid_loss",
    "valid_perplexity",
    "learning_rate",
    "tokens",
    "seconds",
    "tokens_per_second",
)
"""The keys of every record, in order. See `History`."""


@dataclass
class Kept:
    """A copy of the weights that were best so far.

    Attributes
    ----------
    weights
        Copy of the model's flat buffer.
    epoch, step
        When it was taken: epochs finished (or running), steps made.
    valid_loss
        Nats per token, or None where nothing was evaluated yet.
    """

    weights: np.ndarray
    epoch: int
    step: int
    valid_loss: float | None


def epoch_record(
    epoch: int,
    step: int,
    train_loss: float | None,
    valid_loss: float | None,
    rate: float,
    tokens: int,
    seconds: float,
) -> Record:
    """The record of an epoch, with the keys of `History`."""
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "valid_loss": valid_loss,
        "valid_perplexity": None if valid_loss is None else perplexity_of(valid_loss),
        "learning_rate": rate,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds > 0.0 else None,
        "step": step,
    }


class History(Sequence[Record]):
    """One record per epoch, oldest first.

    A record has these keys; further ones may follow:

    - ``epoch``: from 1;
    - ``train_loss``: nats per token, mean over the epoch while the weights moved;
    - ``valid_loss``, ``valid_perplexity``: nats per token and its exponential at the epoch's end, None where there was
      no validation;
    - ``learning_rate``: at the epoch's end;
    - ``tokens``: predictions trained on in this epoch;
    - ``seconds``: spent on training steps, evaluation not counted;
    - ``tokens_per_second``.

    Attributes
    ----------
    initial
        A record of epoch 0 (losses before the first step), or None.
    evaluations
        Evaluations of the validation set, those within epochs included: ``step``, ``epoch``, ``valid_loss``,
        ``valid_perplexity``.
    stopped
        Why training ended: "" (still running), "finished", "interrupted", "diverged", "early stopping",
        "step limit", "time limit", "failed" (by an error), or the reason that was given to `crnn.Trainer.stop`.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = [_checked(record) for record in records]
        self.initial: Record | None = None
        self.evaluations: list[Record] = []
        self.stopped = ""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __repr__(self) -> str:
        end = f", {self.stopped}" if self.stopped else ""
        if not self._records:
            return f"History(no epoch yet{end})"
        last = self._records[-1]
        valid = "" if last["valid_loss"] is None else f", valid_loss={last['valid_loss']:.4f}"
        return f"History({len(self)} epochs, train_loss={last['train_loss']:.4f}{valid}{end})"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run."""
        return self.stopped == "interrupted"

    @property
    def best(self) -> Record | None:
        """The record with the lowest validation loss (training loss where nothing was validated)."""
        validated = [record for record in self._records if record["valid_loss"] is not None]
        if validated:
            return min(validated, key=lambda record: record["valid_loss"])
        return min(self._records, key=lambda record: record["train_loss"], default=None)

    def append(self, record: Record) -> None:
        """Add an epoch's record."""
        self._records.append(_checked(record))

    def drop_after(self, epoch: int) -> None:
        """Remove the records of later epochs: those that a step or time limit cut short and that go on now."""
        self._records[:] = [record for record in self._records if record["epoch"] <= epoch]

    def column(self, name: str) -> list[Any]:
        """One key of every record."""
        return [record[name] for record in self._records]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON object a line, atomically."""
        with atomic_write(path, "w") as stream:
            for record in self._records:
                stream.write(json.dumps(record) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read what `save` or the JSON-lines log wrote.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            A line is not a record; the message names it. A last line cut short by a crash is left out.
        """
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                records.append(_checked(json.loads(line)))
            except ValueError as error:
                if number == len(lines) and not line.endswith("\n"):
                    break
                raise ValueError(f"{path}, line {number}: not a history record ({error})") from None
        return cls(records)

    def plot(self, path: str | os.PathLike[str] | None = None, *, perplexity: bool = False, title: str = "") -> Figure:
        """Draw the learning curves: losses (or perplexities) and the learning rate by epoch.

        Needs matplotlib (``pip install crnn[plot]``).

        Parameters
        ----------
        path
            Where to write the picture; the suffix names the format (.png, .svg, .pdf).
        perplexity
            Draw perplexities instead of nats per token.
        title
            Above the picture.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError
            There is no record to draw.
        """
        return plot_histories({"": self}, path, perplexity=perplexity, title=title)

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded, as JSON types."""
        return {
            "records": list(self._records),
            "initial": self.initial,
            "evaluations": list(self.evaluations),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, in place."""
        self._records[:] = [_checked(record) for record in state["records"]]
        self.initial = state["initial"]
        self.evaluations[:] = state["evaluations"]
        self.stopped = state["stopped"]


def check_picture(path: str | os.PathLike[str], what: str = "path") -> None:
    """Find out before there is anything to draw whether it could be written under this name.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        A suffix that names no format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ImportError(f"{what}: plotting needs matplotlib: pip install crnn[plot]") from None
    if (Path(path).suffix[1:].lower() or "png") not in FigureCanvasAgg.get_supported_filetypes():
        raise ValueError(f"{what}: got {os.fspath(path)}, wanted a name that ends in .png, .svg or .pdf")


def plot_histories(
    histories: dict[str, History],
    path: str | os.PathLike[str] | None = None,
    *,
    perplexity: bool = False,
    title: str = "",
) -> Figure:
    """Draw several runs into one picture: name -> history. See `History.plot`."""
    if not any(len(history) for history in histories.values()):
        raise ValueError("history: there is no epoch to plot yet")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install crnn[plot]") from None

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = axes.twinx()
    for number, (name, history) in enumerate(histories.items()):
        colour = f"C{number}"
        label = f"{name}: " if name else ""
        for key, style in (("train_loss", "--"), ("valid_loss", "-")):
            points = [(r["epoch"], r[key]) for r in history if r[key] is not None]
            if points:
                values = [perplexity_of(loss) if perplexity else loss for _, loss in points]
                mark = "o" if len(points) == 1 else None
                axes.plot(
                    [e for e, _ in points], values, style, color=colour, marker=mark, label=label + key.split("_")[0]
                )
        epochs, steps = history.column("epoch"), history.column("learning_rate")
        rates.step(epochs, steps, where="mid", color=colour, linestyle=":", alpha=0.6)
    axes.set_xlabel("epoch")
    axes.set_ylabel("perplexity" if perplexity else "loss (nats per token)")
    if perplexity:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    rates.set_ylabel("learning rate (dotted)")
    rates.set_yscale("log")
    if title:
        axes.set_title(title)
    if path is not None:
        picture = io.BytesIO()
        figure.savefig(picture, dpi=150, format=Path(path).suffix[1:] or "png")
        with atomic_write(path) as stream:
            stream.write(picture.getvalue())
    return figure


def perplexity_of(loss: float) -> float:
    """exp of a loss in nats per token; the largest float where that would overflow."""
    return math.exp(loss) if loss < 709.0 else sys.float_info.max


def _checked(record: Any) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"got {type(record).__name__}, wanted an object")
    missing = [key for key in FIELDS if key not in record]
    if missing:
        raise ValueError(f"the keys {', '.join(missing)} are missing")
    return record
