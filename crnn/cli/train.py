"""`crnn train`: from a text to a model on disk."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crnn.cli import train_options
from crnn.cli.corpus import Files, Reading, find_files
from crnn.cli.generate import is_passages, print_texts
from crnn.cli.options import check_apart, note, set_threads
from crnn.cli.train_data import Prepared, describe_source, prepare

if TYPE_CHECKING:
    from crnn.callbacks import Callback
    from crnn.history import History
    from crnn.language_model import LanguageModel
    from crnn.recipes import Recipe
    from crnn.trainer import Trainer

# A first try without a file should be short on any machine.
_DEFAULT_MINUTES = 2.5
_DEFAULT_OUT = "crnn-model.safetensors"
_INTERRUPTED = 130

# What a resumed run may be told anew; everything else must be as it was.
_FREE = frozenset({"checkpoint", "checkpoint_every", "epochs", "log", "minutes", "out", "plot", "quiet", "resume"}) | {
    "samples",
    "tensorboard",
    "threads",
}
_PATHS = ("file", "train", "valid", "test", "out", "log", "plot", "tensorboard", "checkpoint")
_NOT_OPTIONS = ("command", "run")


def add_parser(commands: Any) -> None:
    """Add the command to the program."""
    train_options.add_parser(commands).set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out."""
    if options.resume is not None:
        options = _resumed(options)
    quiet = bool(options.quiet)
    set_threads(options)
    recipe = train_options.make_recipe(options)
    _check_values(recipe)
    out = options.out or Path(_DEFAULT_OUT)
    files = _files(options)
    _check_outputs(options, out, files)
    lowercase = recipe.level == "word" if options.lowercase is None else options.lowercase
    seed = options.seed or 0
    reading = Reading.of(options, recipe.level, lowercase, quiet)
    _say(quiet, f"recipe     {recipe.name}: {recipe.about}")
    _say(quiet, f"text       {describe_source(files)}")
    started = time.perf_counter()
    if files.train is None and options.epochs is None and options.minutes is None:
        options.minutes = _DEFAULT_MINUTES
        _say(quiet, f"           training ends after {_DEFAULT_MINUTES:g} minutes at the latest (--minutes, --epochs)")
    data = prepare(
        files, reading, recipe, first=options.sentences, valid_on_train=bool(options.valid_on_train), seed=seed
    )
    model = recipe.model(data.vocabulary, rng=seed, dtype=options.dtype or "float32")
    if not quiet:
        _describe(recipe, data, model, time.perf_counter() - started, out)
    trainer = _trainer(options, recipe, model, data)
    return _train(options, recipe, trainer, data, out)


# ----------------------------------------------------------------------------------------------------- before


def _resumed(options: argparse.Namespace) -> argparse.Namespace:
    """The options of the run that is resumed; those given anew must agree with them, where they matter.

    Raises
    ------
    ValueError
        No usable checkpoint, or options that differ; all of them are named.
    """
    from crnn import checkpoint

    stored = checkpoint.read(options.resume).options
    if "command line" not in stored:
        raise ValueError(
            f"{options.resume}: this checkpoint was not written by `crnn train`; resume it with Trainer.fit"
        )
    before: dict[str, Any] = {
        name: Path(value) if name in _PATHS and value is not None else value
        for name, value in stored["command line"].items()
    }
    merged = argparse.Namespace(**vars(options))
    differences = []
    for name, value in vars(options).items():
        if name in _NOT_OPTIONS or name == "resume":
            continue
        then = before.get(name)
        if value is None:
            setattr(merged, name, then)
        elif name not in _FREE and (_absolute(value) if name in _PATHS else value) != then:
            differences.append(f"--{name.replace('_', '-')} is {value}, was {'not given' if then is None else then}")
    if differences:
        raise ValueError(f"{options.resume}: cannot resume with other options: {'; '.join(differences)}")
    folder = options.resume if options.resume.is_dir() else options.resume.parent
    merged.checkpoint = merged.checkpoint if options.checkpoint is not None else folder
    return merged


def _command_line(options: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON types, files by their whole path: a run may be resumed from another folder."""
    values: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name in _NOT_OPTIONS or name == "resume":
            continue
        values[name] = str(_absolute(value)) if name in _PATHS and value is not None else value
    values["out"] = values["out"] or str(_absolute(Path(_DEFAULT_OUT)))
    return values


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _check_values(recipe: Recipe) -> None:
    """Find values that make no model or no training before the text is read: make both, with a handful of words."""
    from crnn.arguments import whole_number

    whole_number(recipe.epochs, "epochs")
    recipe.trainer(recipe.model(4))


def _check_outputs(options: argparse.Namespace, out: Path, files: Files) -> None:
    """Find what cannot be written, or must not be, now rather than after training."""
    from crnn.atomic import check_writable

    outputs = {"--out": out, "--log": options.log, "--plot": options.plot}
    for name, path in outputs.items():
        if path is not None:
            check_writable(path, name)
    texts = {"the training text": files.train, "the validation text": files.valid, "the test text": files.test}
    check_apart(outputs, texts)
    if options.plot is not None:
        from crnn.history import check_picture

        check_picture(options.plot, "--plot")


def _files(options: argparse.Namespace) -> Files:
    if options.file is not None and options.train is not None:
        raise ValueError("FILE and --train both name the training text: give one of them")
    found = find_files(options.file or options.train)
    if options.valid_on_train and options.valid is not None:
        raise ValueError("--valid and --valid-on-train both say what validates: give one of them")
    for name in ("valid", "test"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            raise FileNotFoundError(f"--{name}: {path}: no such file")
    return Files(found.train, options.valid or found.valid, options.test or found.test)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, flush=True)


def _describe(recipe: Recipe, data: Prepared, model: LanguageModel, seconds: float, out: Path) -> None:
    tokens = data.train.tokens
    valid = ""
    if data.valid is not None:
        valid = f", {data.valid.tokens:,} for validation"
    unit = "sentences" if recipe.level == "word" else "lines"
    print(f"           {data.sentences['train']:,} {unit}, {tokens:,} tokens for training{valid} ({seconds:.1f} s)")
    vocabulary = data.vocabulary
    shares = ", ".join(f"{100 * share:.1f} % of {name}" for name, share in data.unknown.items())
    print(f"words      {len(vocabulary):,}; the text has {vocabulary.words_found:,}; unknown: {shares}")
    if vocabulary.note() is not None:
        note(f"note: {vocabulary.note()}")
    print(f"model      {model!r}")
    limit = f", clip {recipe.clip_norm:g}" if recipe.clip_norm is not None else ""
    print(
        f"training   {recipe.epochs} epochs of {data.train.steps_per_epoch(recipe.truncation):,} steps, "
        f"{recipe.truncation!r}, {recipe.optimizer!r}, {recipe.schedule!r}{limit}"
    )
    print(f"output     {out}\n", flush=True)


def _trainer(options: argparse.Namespace, recipe: Recipe, model: LanguageModel, data: Prepared) -> Trainer:
    from crnn.callbacks import EarlyStopping, EpochTable, JSONLinesLog, ProgressBar, TensorBoard

    callbacks: list[Callback] = []
    if not options.quiet:
        callbacks += [ProgressBar(), EpochTable(sys.stdout)]
    if options.log is not None:
        callbacks.append(JSONLinesLog(options.log))
    if options.tensorboard is not None:
        callbacks.append(TensorBoard(options.tensorboard))
    if options.patience is not None:
        if data.valid is None:
            raise ValueError("--patience: there is no validation text to judge by")
        callbacks.append(EarlyStopping(options.patience))
    if options.checkpoint is not None:
        from crnn.checkpoint import Checkpoints

        minutes = 10.0 if options.checkpoint_every is None else options.checkpoint_every
        callbacks.append(Checkpoints(options.checkpoint, minutes, {"command line": _command_line(options)}))
    elif options.checkpoint_every is not None:
        raise ValueError("--checkpoint-every: give the folder too, with --checkpoint DIR")
    if recipe.keep_best and data.valid is None:
        raise ValueError("--keep-best: there is no validation text to judge by")
    steps = data.train.steps_per_epoch(recipe.truncation)
    schedule = train_options.final_schedule(options, recipe, steps)
    return recipe.trainer(model, callbacks, schedule=schedule, rng=options.seed or 0)


# ------------------------------------------------------------------------------------------------- and after


def _train(options: argparse.Namespace, recipe: Recipe, trainer: Trainer, data: Prepared, out: Path) -> int:
    from crnn.trainer import TrainingDiverged

    quiet = bool(options.quiet)
    seconds = None if options.minutes is None else 60.0 * options.minutes
    try:
        history = trainer.fit(data.train, data.valid, epochs=recipe.epochs, max_seconds=seconds, resume=options.resume)
    except TrainingDiverged as error:
        place = _save(trainer.model, out)
        raise TrainingDiverged(f"{error} They are saved in {place}.", error.step) from None
    except (Exception, KeyboardInterrupt):
        if trainer.step > 0:  # nothing already trained is lost, whatever went wrong
            place = _save(trainer.model, out)
            note(f"note: training broke off after step {trainer.step}; the model is saved in {place}")
        raise
    place = _save(trainer.model, out)
    if options.plot is not None and len(history):
        history.plot(options.plot, perplexity=True)
    if history.interrupted:
        note(f"\ninterrupted after step {trainer.step} (epoch {trainer.epoch}); the model is saved in {place}")
        if options.checkpoint is not None:
            note(f"go on with: crnn train --resume {shlex.quote(str(options.checkpoint))}")
        return _INTERRUPTED
    if not quiet:
        print(f"\nsaved {place}")
        _summarise(options, trainer, history, data)
    return 0


def _save(model: LanguageModel, out: Path) -> Path:
    """Write the model; where that fails now, somewhere else rather than nowhere."""
    try:
        model.save(out)
        return out
    except OSError as error:
        handle, name = tempfile.mkstemp(prefix="crnn-model-", suffix=".safetensors")
        os.close(handle)
        try:
            model.save(name)
        except OSError:
            os.unlink(name)
            raise error from None
        raise OSError(f"cannot write {out} ({error.strerror or error}); the model is saved in {name} instead") from None


def _summarise(options: argparse.Namespace, trainer: Trainer, history: History, data: Prepared) -> None:
    from crnn.history import perplexity_of

    if history.stopped != "finished":
        print(f"ended early: {history.stopped}")
    if data.test is not None:
        loss = trainer.evaluate(data.test)
        print(f"test       loss {loss:.4f} nats/token, perplexity {perplexity_of(loss):.2f}")
    samples = 5 if options.samples is None else options.samples
    if samples > 0:
        passages = is_passages(data.vocabulary)
        texts = trainer.model.generate(
            samples, seed=options.seed or 0, max_length=300 if passages else 40, until_end=not passages
        )
        print("\nthe model writes:\n")
        print_texts(texts, passages)
