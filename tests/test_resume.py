"""What a checkpoint finds and refuses when a run goes on: vocabulary, clock, records of a cut epoch, tensors' names."""

from __future__ import annotations

import types

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from test_checkpoint import Interrupt, plain, stream, timeless, written
from test_limits import STEP, Slow, clock  # noqa: F401  a fixture

import crnn
from crnn import callbacks, checkpoint
from crnn.checkpoint import CheckpointError, Checkpoints
from crnn.data import Sentences
from crnn.trainer import Trainer


def test_another_vocabulary_of_the_same_size_is_another_run(tmp_path) -> None:
    def fit(words: str, **resume: object) -> None:
        model = crnn.LanguageModel(crnn.Vocabulary.build([list(words)]), hidden_size=4, rng=0)
        trainer = Trainer(model, callbacks=[Checkpoints(tmp_path)])
        trainer.fit(Sentences([[0, 3, 1], [2, 4]]), epochs=2, **resume)

    fit("abc")
    fit("abc", resume=tmp_path)
    with pytest.raises(CheckpointError, match="vocabulary, crc32: "):
        fit("abd", resume=tmp_path)


def test_minutes_count_from_the_start_of_training(tmp_path, monkeypatch) -> None:
    now, writes = [5000.0], []
    monkeypatch.setattr(checkpoint, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoint, "save", lambda path, trainer, options: writes.append(trainer.step))

    class Second(callbacks.Callback):
        def on_step(self, trainer: Trainer) -> None:
            now[0] += 1.0

    saver = Checkpoints(tmp_path, minutes=5 / 60)
    now[0] += 60.0  # reading data, say
    model, train, valid, options = plain(0)
    Trainer(model, callbacks=[Second(), saver], **options).fit(train, valid, epochs=1)
    assert writes == [5, 10, 12]


def test_a_checkpoint_made_after_a_limit_goes_on_with_the_cut_epoch(tmp_path) -> None:
    model, train, valid, options = stream(0)
    whole = Trainer(model, **options).fit(train, valid, epochs=2)
    first, train, valid, options = stream(0)
    trainer = Trainer(first, **options)
    assert trainer.fit(train, valid, epochs=2, max_steps=8).column("epoch") == [1, 2]
    checkpoint.save(tmp_path / "run", trainer)  # with the record of what there was of epoch 2
    second, train, valid, options = stream(1)
    history = Trainer(second, **options).fit(train, valid, epochs=2, resume=tmp_path / "run")
    assert timeless(history) == timeless(whole)
    np.testing.assert_array_equal(second.parameters.flat, model.parameters.flat)


def test_the_time_before_the_interruption_counts(tmp_path, clock) -> None:  # noqa: F811
    def fit(*watchers: callbacks.Callback, **resume: object) -> list[float]:
        ids = np.random.default_rng(3).integers(0, 7, (9, 4))
        return Trainer(Slow(clock), callbacks=watchers).fit(Sentences(ids), epochs=2, **resume).column("seconds")

    assert fit(Checkpoints(tmp_path), Interrupt(13)) == [9 * STEP]
    clock[0] += 1e6  # what passes in between does not
    assert fit(resume=tmp_path) == [9 * STEP, 9 * STEP]


def test_a_tensor_under_another_name_is_damage(tmp_path) -> None:
    path = written(tmp_path)
    tensors = checkpoint.read(path).tensors
    with safe_open(path, framework="numpy") as content:
        metadata = content.metadata()
    save_file(tensors, path, metadata)
    checkpoint.read(path)
    name = max(tensors)
    save_file({(key + "x" if key == name else key): array for key, array in tensors.items()}, path, metadata)
    with pytest.raises(CheckpointError, match="checksum does not fit"):
        checkpoint.read(path)
