"""Callbacks: bars, tables, logs, best models, TensorBoard's file format."""

from __future__ import annotations

import doctest
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from bigram import Bigram

from crnn import callbacks, optim, schedules, tensorboard
from crnn.callbacks import BestModel, Callback, EarlyStopping, EpochTable, JSONLinesLog, ProgressBar, TensorBoard
from crnn.data import Sentences
from crnn.history import History
from crnn.tensorboard import EventFile, crc32c
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


def test_the_bar_is_silent_elsewhere() -> None:
    stream = io.StringIO()
    train(ProgressBar(stream, interval=0.0))
    assert stream.getvalue() == ""


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


def test_castagnoli_checksums() -> None:
    # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def events(path: Path) -> list[dict]:
    """A reader of event files, written from the format's description."""

    def varint(data: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                return value, at

    def fields(data: bytes) -> list[tuple[int, bytes | int]]:
        found, at = [], 0
        while at < len(data):
            key, at = varint(data, at)
            if key & 7 == 0:
                value, at = varint(data, at)
            else:
                size = {1: 8, 5: 4}.get(key & 7)
                if size is None:
                    size, at = varint(data, at)
                value, at = data[at : at + size], at + size
            found.append((key >> 3, value))
        return found

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    content, found = path.read_bytes(), []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        assert check == masked(content[:8])
        payload = content[12 : 12 + length]
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked(payload),)
        content = content[16 + length :]
        event = {"step": 0, "values": {}}
        for number, value in fields(payload):
            if number == 1:
                event["time"] = struct.unpack("<d", value)[0]
            elif number == 2:
                event["step"] = value
            elif number == 3:
                event["version"] = value.decode()
            else:
                assert number == 5
                for one, body in fields(value):
                    assert one == 1
                    parts = dict(fields(body))
                    event["values"][parts[1].decode()] = struct.unpack("<f", parts[2])[0]
        found.append(event)
    return found


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


def test_event_files_do_not_overwrite_each_other_and_hold_large_numbers(tmp_path) -> None:
    files = [EventFile(tmp_path) for _ in range(2)]
    for number, file in enumerate(files):
        file.scalars(300 + number, {"huge": 1e300, "small": -0.5})
        file.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert events(files[1].path)[1]["step"] == 301
    assert events(files[1].path)[1]["values"] == {"huge": pytest.approx(3.4028234e38), "small": -0.5}


def test_tensorboard_itself_reads_the_file(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="TENSORBOARD IS NOT INSTALLED: its own reader was NOT tried")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file = tensorboard.EventFile(tmp_path)
    file.scalars(5, {"loss/train": 2.5})
    file.close()
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    [event] = reader.Scalars("loss/train")
    assert (event.step, event.value) == (5, 2.5)
