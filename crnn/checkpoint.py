"""Checkpoints: everything that a run needs to go on, to the same bits, in one safetensors file.

Weights, optimiser moments, the best weights so far and the carried state are the file's tensors. Its metadata holds,
as JSON, the schedule, the random generators (shuffling, dropout), the place in the data, the history, the callbacks'
states, and what the run must find again: the model's configuration, the trainer's settings, the data's fingerprints.
"""

from __future__ import annotations

import json
import os
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _kernels, ranges
from .atomic import atomic_write
from .callbacks import Callback
from .data import Stream, TokenData, generator_state
from .divergence import fault_of_weights
from .history import Kept, Record

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["FILE_NAME", "Checkpoint", "CheckpointError", "Checkpoints", "read", "restore", "save"]

FILE_NAME = "checkpoint.safetensors"
"""The file that `Checkpoints` writes in its folder."""

_FORMAT = "crnn checkpoint"
_VERSION = 1
_PARTS = {
    *("epochs", "epochs_done", "epoch", "step", "epoch_loss", "epoch_tokens", "epoch_seconds", "optimizer_steps"),
    *("options", "schedule", "position", "generator", "kept", "callbacks", "history", "instruction_set"),
}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says what is wrong with it or what differs."""


@dataclass
class Checkpoint:
    """A checkpoint as read, nothing restored yet.

    Attributes
    ----------
    path
        The file.
    run
        Everything but the tensors, as JSON types.
    tensors
        Name -> array: "weights/...", "moments/<moment>/...", "kept/...", "carried/<i>".
    """

    path: Path
    run: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def options(self) -> dict[str, Any]:
        """What the writer wanted to find again; the command line keeps its arguments here."""
        return dict(self.run["options"])

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors whose names start with `prefix/`, under the rest of their names."""
        start = prefix + "/"
        return {name[len(start) :]: array for name, array in self.tensors.items() if name.startswith(start)}


def save(path: str | os.PathLike[str], trainer: Trainer, options: dict[str, Any] | None = None) -> None:
    """Write a checkpoint of a trainer between two steps. Atomic: the file is the old one or the new one, whole.

    Parameters
    ----------
    path
        File to write.
    trainer
        During or after `fit`.
    options
        JSON types to be found again by `Checkpoint.options`.

    Raises
    ------
    OSError
        The file cannot be written; what was there before is untouched.
    """
    from safetensors.numpy import save as serialise

    assert trainer.train is not None
    optimizer = trainer.optimizer.state_dict()
    tensors = {f"weights/{name}": array for name, array in trainer.model.parameters.items()}
    for moment, twin in optimizer["moments"].items():
        tensors |= {f"moments/{moment}/{name}": array for name, array in twin.items()}
    kept = trainer.kept
    if kept is not None:
        tensors["kept/flat"] = kept.weights
    if isinstance(trainer.train, Stream) and trainer.carried is not None:
        parts = trainer.carried if isinstance(trainer.carried, tuple) else (trainer.carried,)
        tensors |= {f"carried/{i}": part for i, part in enumerate(parts)}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    run = {
        **_identity(trainer),
        "options": options or {},
        "epochs": trainer.epochs,
        "epochs_done": trainer.epochs_done,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "epoch_loss": trainer.epoch_loss,
        "epoch_tokens": trainer.epoch_tokens,
        "epoch_seconds": trainer.epoch_seconds,
        "optimizer_steps": optimizer["steps"],
        "schedule": trainer.schedule.state_dict(),
        "position": trainer.train.state_dict(),
        "generator": generator_state(trainer.model.rng),
        "kept": None if kept is None else [kept.epoch, kept.step, kept.valid_loss],
        "callbacks": {name: c.state_dict() for name, c in _named(trainer.callbacks) if c.state_dict()},
        "history": trainer.history.state_dict(),
        **_arithmetic(),
    }
    text = json.dumps(run)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "run": text, "crc32": str(_checksum(text, tensors))}
    content = serialise(tensors, metadata)
    with atomic_write(path) as stream:
        stream.write(content)


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and check a checkpoint file, or the one in a folder.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, something else, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no checkpoint here")
    try:
        with safe_open(file, framework="numpy") as content:
            metadata = content.metadata() or {}
            _check_version(file, metadata)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: damaged, or not a checkpoint ({error})") from None
    text = metadata.get("run", "")
    if metadata.get("crc32") != str(_checksum(text, tensors)):
        raise CheckpointError(f"{file}: damaged (its checksum does not fit its content)")
    try:
        run = json.loads(text)
        missing = _PARTS - run.keys()
    except (ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from None
    if missing:
        raise CheckpointError(f"{file}: damaged (without {', '.join(sorted(missing))})")
    return Checkpoint(file, run, tensors)


def restore(path: str | os.PathLike[str], trainer: Trainer) -> None:
    """Bring a trainer whose model, data and settings are those of the checkpoint to where the checkpoint was made.

    Raises
    ------
    CheckpointError
        As `read`; or the model, the vocabulary, the data or the settings differ (all differences are listed). The
        trainer and its model are then as they were.
    """
    checkpoint = read(path)
    run = checkpoint.run
    assert trainer.train is not None
    now = _identity(trainer) | _generators(generator_state(trainer.model.rng), trainer.train.state_dict())
    differences = list(_differences(run | _generators(run["generator"], run["position"]), now))
    if differences:
        raise CheckpointError(
            f"{checkpoint.path}: this run is not the one that was checkpointed:\n  " + "\n  ".join(differences)
        )
    for what, mine in _arithmetic().items():
        if run.get(what, mine) != mine:
            warnings.warn(
                f"{checkpoint.path} was written with the {what.replace('_', ' ')} {run[what]}, this process uses "
                f"{mine}: the run goes on, but its last bits will differ",
                RuntimeWarning,
                stacklevel=3,
            )
    optimizer, parameters = trainer.optimizer, trainer.model.parameters
    before = optimizer.steps, optimizer.state
    moments: dict[str, dict[str, np.ndarray]] = {}
    for name, array in checkpoint.group("moments").items():
        moment, _, parameter = name.partition("/")
        moments.setdefault(moment, {})[parameter] = array
    try:
        optimizer.load_state_dict({"steps": run["optimizer_steps"], "moments": moments}, parameters)
        parameters.assign(checkpoint.group("weights"))
    except ValueError as error:
        optimizer.steps, optimizer.state = before
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    trainer.schedule.load_state_dict(run["schedule"])
    trainer.train.load_state_dict(run["position"])
    trainer.model.rng.bit_generator.state = run["generator"]
    trainer.epochs_done, trainer.epoch, trainer.step = run["epochs_done"], run["epoch"], run["step"]
    parts = tuple(checkpoint.group("carried").values())
    carried = None if not parts else parts[0] if len(parts) == 1 else parts
    trainer.resume_epoch(run["epoch_loss"], run["epoch_tokens"], run["epoch_seconds"], carried)
    if run["kept"] is not None:
        trainer.kept = Kept(checkpoint.tensors["kept/flat"], *run["kept"])
    trainer.history.load_state_dict(run["history"])
    trainer.history.drop_after(trainer.epochs_done)
    for name, callback in _named(trainer.callbacks):
        state = run["callbacks"].get(name)
        if state is not None:
            callback.load_state_dict(state)


class Checkpoints(Callback):
    """Write a checkpoint every so many minutes, at every epoch's end, and when Ctrl-C or a limit ends the run.

    Parameters
    ----------
    folder
        Where; made where it is missing. The file in it is `FILE_NAME`, replaced each time.
    minutes
        Time between two checkpoints within an epoch; fractions are fine, None: only at epochs' ends.
    options
        JSON types to be found again by `Checkpoint.options`.

    A checkpoint that cannot be written (full disk) leaves the one before it intact; training goes on with a warning,
    and the next one is tried. Only the last one, when the run is cut short, raises.

    Raises
    ------
    OSError
        The folder cannot be made or written; found at once.
    """

    def __init__(
        self, folder: str | os.PathLike[str], minutes: float | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.seconds = None if minutes is None else 60.0 * ranges.positive("minutes", minutes)
        self.options = options or {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / FILE_NAME
        # What a process leaves that was killed while writing.
        for stale in self.folder.glob(f".{FILE_NAME}.*.part"):
            stale.unlink(missing_ok=True)
        self._written = 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._written = time.monotonic()

    def on_step(self, trainer: Trainer) -> None:
        due = self.seconds is not None and time.monotonic() - self._written >= self.seconds
        if due and not fault_of_weights(trainer):  # else the next step says so, and the good file stays
            self._try(trainer)

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        if trainer.epochs_done == trainer.epoch:
            self._try(trainer)

    def on_halt(self, trainer: Trainer, reason: str) -> None:
        if reason in ("interrupted", "step limit", "time limit"):
            save(self.path, trainer, self.options)

    def _try(self, trainer: Trainer) -> None:
        try:
            save(self.path, trainer, self.options)
        except OSError as error:
            warnings.warn(
                f"no checkpoint written at step {trainer.step} ({error}); training goes on",
                RuntimeWarning,
                stacklevel=2,
            )
        self._written = time.monotonic()


def _named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Each callback with the name of its class; a second one of a class is "Name 2"."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name} {seen[name]}"), callback


def _identity(trainer: Trainer) -> dict[str, Any]:
    """What must be equal for a run to be continued, as JSON types."""
    model = trainer.model
    words = None if model.vocabulary is None else list(model.vocabulary)
    assert trainer.train is not None
    return {
        "model": {name: getattr(model.configuration, name) for name in model.configuration.__dataclass_fields__},
        "vocabulary": None if words is None else {"words": len(words), "crc32": _checksum_of_words(words)},
        "settings": trainer.settings(),
        "training data": trainer.train.fingerprint(),
        "validation data": _fingerprint(trainer.valid),
    }


def _arithmetic() -> dict[str, str]:
    """What the last bits of a run depend on."""
    threads = f", {_kernels.get_threads()} threads" if _kernels.blas_info()["used"] != "crnn" else ""
    return {"instruction_set": _kernels.isa(), "matrix_products": _kernels.blas_info()["used"] + threads}


def _generators(model: dict[str, Any], position: dict[str, Any]) -> dict[str, Any]:
    """Which kinds of random generators a run draws from."""
    kinds = {"dropout": model["bit_generator"], "shuffling": (position["rng"] or {}).get("bit_generator")}
    return {"random generator": kinds}


def _checksum_of_words(words: list[str]) -> int:
    return zlib.crc32("\n".join(words).encode("utf-8", "surrogatepass"))  # a text cut inside an emoji is a word too


def _fingerprint(data: TokenData | None) -> dict[str, Any] | None:
    return None if data is None else data.fingerprint()


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for part, mine in now.items():
        theirs = then.get(part)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            keys = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
            found += [f"{part}, {key}: {theirs.get(key)} in the checkpoint, {mine.get(key)} now" for key in keys]
        elif mine != theirs:
            found.append(f"{part}: {_brief(theirs)} in the checkpoint, {_brief(mine)} now")
    return found


def _brief(value: Any) -> str:
    return "none" if value is None else str(value)


def _check_version(file: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        what = f"a {metadata['format']!r} file" if "format" in metadata else "some other safetensors file"
        raise CheckpointError(f"{file}: not a checkpoint of a training run, but {what}")
    version = metadata.get("version", "")
    number = int(version) if version.isdecimal() and version.isascii() and len(version) < 9 else 0
    if number != _VERSION:
        age = "a newer" if number > _VERSION else "another"
        raise CheckpointError(
            f"{file}: checkpoint version {version or 'unknown'}, written by {age} crnn; "
            f"this one reads version {_VERSION}"
        )


def _checksum(text: str, tensors: dict[str, np.ndarray]) -> int:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].data, zlib.crc32(name.encode(), value))
    return value
