"""Callbacks: bars, tables, logs, best models, TensorBoard's file format."""

from __future__ import annotations

import doctest
import io
import itertools
import json
import re

import numpy as np
import pytest
from bigram import Bigram
from test_tensorboard import events

from crnn import callbacks, optim, schedules
from crnn.callbacks import BestModel, Callback, EarlyStopping, EpochTable, JSONLinesLog, ProgressBar, TensorBoard
from crnn.checkpoint import Checkpoints
from crnn.data import Sentences
from crnn.history import History, perplexity_of
from crnn.trainer import Trainer

WORDS = 7


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(*watchers: Callback, epochs: int = 2, valid: bool = True, **options) -> Trainer:
    rng = np.random.default_rng(4)
    sequences = [rng.integers(0, WORDS, 6) for _ in range(9)]
    options = {"optimizer": optim.SGD(0.3), "schedule": schedules.Constant()} | options
    trainer = Trainer(Bigram(WORDS), callbacks=watchers, **options)
    trainer.fit(Sentences(sequences[3:]), Sentences(sequences[:3]) if valid else None, epochs=epochs)
    return trainer


def test_the_base_class_does_nothing() -> None:
    assert len(train(Callback()).history) == 2
    assert Callback().state_dict() == {}


def test_the_examples_in_the_module() -> None:
    assert doctest.testmod(callbacks).failed == 0


def test_the_bar_shows_tokens_loss_perplexity_and_epoch_on_a_terminal() -> None:
    stream = Terminal()
    train(ProgressBar(stream, interval=0.0))
    shown = stream.getvalue()
    assert "epoch 1/2" in shown
    assert "epoch 2/2" in shown
    assert "tok/s" in shown
    assert "loss " in shown
    assert "perplexity " in shown
    assert "30.0/30.0" in shown


def counts(shown: str) -> list[float]:
    """The tokens of every drawing of the bar, those that say the same once."""
    numbers = [float(number) for number in re.findall(r"([\d.]+)/30\.0", shown)]
    return [b for a, b in itertools.pairwise([-1.0, *numbers]) if a != b]


def test_the_bar_counts_the_epochs_tokens_and_shows_their_mean_loss() -> None:
    stream = Terminal()
    trainer = train(ProgressBar(stream, interval=0.0))
    shown = stream.getvalue()
    assert counts(shown) == [0, 5, 10, 15, 20, 25, 30] * 2
    for loss in trainer.history.column("train_loss"):
        assert f"loss {loss:.3f}, perplexity {perplexity_of(loss):.5g}" in shown


def test_the_bar_and_the_table_of_a_resumed_run_go_on_where_it_stood(tmp_path) -> None:
    data = [np.random.default_rng(i).integers(0, WORDS, 6) for i in range(6)]
    Trainer(Bigram(WORDS), callbacks=[Checkpoints(tmp_path)]).fit(Sentences(data), epochs=2, max_steps=8)
    terminal, table = Terminal(), io.StringIO()
    trainer = Trainer(Bigram(WORDS), callbacks=[ProgressBar(terminal, interval=0.0), EpochTable(table)])
    history = trainer.fit(Sentences(data), epochs=2, resume=tmp_path)
    assert counts(terminal.getvalue()) == [10, 15, 20, 25, 30]
    rows = [line.split() for line in table.getvalue().splitlines()[1:]]
    assert [row[0] for row in rows] == ["1/2", "2/2"]
    assert [row[1] for row in rows] == [f"{loss:.4f}" for loss in history.column("train_loss")]


def test_the_bar_is_silent_elsewhere() -> None:
    stream = io.StringIO()
    train(ProgressBar(stream, interval=0.0))
    assert stream.getvalue() == ""


def test_a_process_without_standard_error_trains_all_the_same(monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert len(train(ProgressBar()).history) == 2


def test_the_table_has_a_line_per_epoch(capsys) -> None:
    stream = io.StringIO()
    trainer = train(EpochTable(stream), evaluate_first=True)
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == [
        "epoch", "train", "loss", "train", "ppl", "valid", "loss", "valid", "ppl", "rate", "tokens/s", "seconds",
    ]  # fmt: skip
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    cells = lines[-1].split()
    assert cells[0] == "2/2"
    assert float(cells[1]) == pytest.approx(trainer.history[-1]["train_loss"], abs=1e-4)
    assert float(cells[4]) == pytest.approx(trainer.history[-1]["valid_perplexity"], abs=1e-2)
    assert lines[1].split()[:3] == ["0/2", "-", "-"]


def test_the_table_without_validation() -> None:
    stream = io.StringIO()
    train(EpochTable(stream), valid=False)
    assert stream.getvalue().splitlines()[1].split()[3:5] == ["-", "-"]


def test_the_log_grows_with_every_epoch(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("old\n")
    lengths = []

    class Peek(Callback):
        def on_epoch_end(self, trainer: Trainer, record: dict) -> None:
            lengths.append(len(path.read_text().splitlines()))

    trainer = train(JSONLinesLog(path), Peek(), epochs=3)
    assert lengths == [1, 2, 3]
    assert list(History.load(path)) == list(trainer.history)
    assert json.loads(path.read_text().splitlines()[1])["epoch"] == 2


@pytest.mark.parametrize("kind", [JSONLinesLog, BestModel])
def test_an_unwritable_path_is_found_before_training(kind, tmp_path) -> None:
    with pytest.raises(OSError, match="does not exist"):
        kind(tmp_path / "missing" / "file")


def test_best_model_saves_the_weights_of_the_lowest_loss(tmp_path) -> None:
    path = tmp_path / "best.npy"
    saver = BestModel(path)
    trainer = train(saver, EarlyStopping(1), epochs=100, optimizer=optim.SGD(4.0), keep_best=True)
    losses = trainer.history.column("valid_loss")
    assert losses[-1] > min(losses)
    assert saver.best == min(losses)
    np.testing.assert_array_equal(np.load(path), trainer.model.parameters.flat)
    again = BestModel(path)
    again.load_state_dict(json.loads(json.dumps(saver.state_dict())))
    assert again.best == saver.best


def test_early_stopping_counts_evaluations_that_do_not_improve() -> None:
    class Fake:
        reason = ""

        def stop(self, reason: str) -> None:
            self.reason = reason

    trainer = Fake()
    callback = EarlyStopping(patience=1, threshold=0.1)
    for loss, stopped in ((3.0, ""), (2.95, ""), (2.8, ""), (2.75, ""), (2.9, "early stopping")):
        callback.on_evaluation(trainer, loss)  # type: ignore[arg-type]
        assert trainer.reason == stopped
    assert callback.state_dict() == {"best": 2.8, "waited": 2}
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(-1)


def test_tensorboard_file(tmp_path) -> None:
    trainer = train(TensorBoard(tmp_path / "runs" / "a"), epochs=3)
    [path] = (tmp_path / "runs" / "a").iterdir()
    assert ".tfevents." in path.name
    first, *rest = events(path)
    assert first["version"] == "brain.Event:2"
    assert [event["step"] for event in rest] == [6, 6, 12, 12, 18, 18]
    valid = [event["values"]["loss/valid"] for event in rest[::2]]
    assert valid == pytest.approx(trainer.history.column("valid_loss"), rel=1e-6)
    ours = [event["values"]["loss/train"] for event in rest[1::2]]
    assert ours == pytest.approx(trainer.history.column("train_loss"), rel=1e-6)
    assert set(rest[1]["values"]) == {"loss/train", "perplexity/train", "learning_rate", "tokens_per_second"}
    assert all(event["time"] > 1.6e9 for event in rest)


@pytest.mark.parametrize("make", [EarlyStopping, lambda: BestModel("best.npy")])
def test_who_judges_by_a_validation_set_wants_one(make, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="has no validation set to judge by"):
        train(make(), valid=False)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"patience": 1.5}, TypeError),
        ({"patience": True}, TypeError),
        ({"threshold": "x"}, TypeError),
        ({"threshold": -5.0}, ValueError),
        ({"threshold": float("nan")}, ValueError),
    ],
)
def test_early_stopping_checks_its_numbers(options, error) -> None:
    with pytest.raises(error, match=next(iter(options))):
        EarlyStopping(**options)


def test_a_log_that_cannot_be_written_for_a_while_costs_no_training(tmp_path) -> None:
    folder, path = tmp_path / "logs", tmp_path / "logs" / "log.jsonl"
    folder.mkdir()

    class Away(Callback):
        """The folder is gone at the ends of epochs 2 and 3."""

        def on_epoch_start(self, trainer: Trainer) -> None:
            if trainer.epoch == 2:
                folder.rename(tmp_path / "away")
            if trainer.epoch == 4:
                (tmp_path / "away").rename(folder)

    with pytest.warns(RuntimeWarning, match="the log was not written at step .*training goes on") as caught:
        trainer = train(JSONLinesLog(path), Away(), epochs=5)
    assert len(caught) == 2
    assert trainer.history.stopped == "finished"
    assert list(History.load(path)) == list(trainer.history)


def test_a_best_model_that_cannot_be_saved_costs_no_training(tmp_path) -> None:
    (tmp_path / "models").mkdir()
    saver = BestModel(tmp_path / "models" / "best.npy")
    (tmp_path / "models").rename(tmp_path / "away")
    with pytest.warns(RuntimeWarning, match="the best model was not saved at step"):
        trainer = train(saver)
    assert trainer.history.stopped == "finished"
    assert saver.best is None


def test_one_callback_alone_is_told_to_be_a_sequence() -> None:
    with pytest.raises(TypeError, match="callbacks: got one EarlyStopping"):
        Trainer(Bigram(WORDS), callbacks=EarlyStopping())  # type: ignore[arg-type]


def test_early_stopping_begins_anew_with_another_model(rng) -> None:
    callback = EarlyStopping(1)
    ids = [rng.integers(0, WORDS, 6) for _ in range(8)]
    counts = []
    for _ in range(2):
        trainer = Trainer(Bigram(WORDS, seed=2, noise=0.3), optimizer=optim.SGD(30.0), callbacks=[callback])
        counts.append(len(trainer.fit(Sentences(ids[:4]), Sentences(ids[4:]), epochs=20)))
    assert counts[0] == counts[1] < 20
