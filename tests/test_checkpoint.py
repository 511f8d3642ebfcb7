"""Checkpoints: a resumed run ends with the same bits, a killed one leaves a whole file, a wrong one says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bigram import Bigram
from safetensors.numpy import load_file, save_file

import crnn
from crnn import bptt, callbacks, checkpoint, optim, schedules
from crnn.checkpoint import CheckpointError, Checkpoints
from crnn.data import Sentences, Stream, TokenData
from crnn.trainer import Trainer

WORDS = 11


def sentences(seed: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, WORDS, length) for length in rng.integers(2, 9, 12)]


def text(seed: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, WORDS, 203)


class Interrupt(callbacks.Callback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def plain(seed: int) -> tuple[Any, TokenData, TokenData, dict[str, Any]]:
    model = Bigram(WORDS, seed=seed, noise=0.3)
    options = {"optimizer": optim.SGD(0.4), "schedule": schedules.HalveOnIncrease()}
    return model, Sentences(sentences(), shuffle=True, rng=9), Sentences(sentences(1)), options


def buckets(seed: int) -> tuple[Any, TokenData, TokenData, dict[str, Any]]:
    model = Bigram(WORDS, seed=seed, noise=0.3)
    options = {
        "optimizer": optim.Adam(0.1),
        "schedule": schedules.Warmup(5, schedules.Plateau(0.5)),
        "accumulate": 2,
        "clip_norm": 1.0,
        "evaluate_steps": 2,
        "keep_best": True,
    }
    data = Sentences(sentences(), 2, shuffle=True, bucket=True, rng=np.random.Generator(np.random.MT19937(4)))
    return model, data, Sentences(sentences(1)), options


def stream(seed: int) -> tuple[Any, TokenData, TokenData, dict[str, Any]]:
    model = Bigram(WORDS, seed=seed)
    options = {
        "optimizer": optim.SGD(0.2, momentum=0.9),
        "truncation": bptt.Chunk(7),
        "schedule": schedules.Cosine(20),
    }
    return model, Stream(text(), 5), Stream(text(2), 1), options


def lstm(seed: int) -> tuple[Any, TokenData, TokenData, dict[str, Any]]:
    model = crnn.LanguageModel(WORDS, "lstm", 6, 2, embedding_size=5, dropout=0.4, rng=seed)
    options = {
        "optimizer": optim.AdamW(0.02),
        "truncation": bptt.Chunk(7),
        "schedule": schedules.StepDecay(0.5, 1),
        "callbacks": [callbacks.EarlyStopping(patience=0)],
        "rng": seed + 7,
    }
    return model, Stream(text(), 5), Stream(text(2), 1), options


def timeless(history: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in history]


def uneven(seed: int) -> tuple[Any, TokenData, TokenData, dict[str, Any]]:
    """Updates of five batches, five, and the two that are left; as many epochs between evaluations as steps in one."""
    model = Bigram(WORDS, seed=seed, noise=0.3)
    options = {
        "optimizer": optim.SGD(1.5),
        "schedule": schedules.HalveOnIncrease(np.float32(0.5)),
        "accumulate": 5,
        "evaluate_every": 2,
        "keep_best": True,
        "callbacks": [callbacks.EarlyStopping(9), callbacks.EarlyStopping(patience=1, threshold=0.01)],
    }
    return model, Sentences(sentences(), shuffle=True, rng=9), Sentences(sentences(1)), options


@pytest.mark.parametrize("end", ["interrupted", "step limit"])
@pytest.mark.parametrize(  # steps per epoch: 12, 3, 3, 6, 6
    ("setup", "step"),
    [(plain, step) for step in (1, 11, 12, 13, 35)]
    + [(setup, step) for setup in (buckets, uneven) for step in (1, 2, 3, 4, 6, 8)]
    + [(setup, step) for setup in (stream, lstm) for step in (1, 5, 6, 7, 12, 17)],
)
def test_a_resumed_run_ends_with_the_same_bits(setup, step, end, tmp_path) -> None:
    model, train, valid, options = setup(0)
    whole = Trainer(model, **options).fit(train, valid, epochs=3)

    first, train, valid, options = setup(0)
    watchers = [Checkpoints(tmp_path, options={"lr": 0.4}), *options.pop("callbacks", ())]
    limit = step if end == "step limit" else None
    if limit is None:
        watchers.insert(1, Interrupt(step))
    part = Trainer(first, callbacks=watchers, **options).fit(train, valid, epochs=3, max_steps=limit)
    assert part.stopped == end

    # Another seed: whatever a checkpoint forgets would show.
    second, train, valid, options = setup(1)
    resumed = Trainer(second, **options).fit(train, valid, epochs=3, resume=tmp_path)
    np.testing.assert_array_equal(second.parameters.flat, model.parameters.flat)
    assert timeless(resumed) == timeless(whole)
    assert resumed.evaluations == whole.evaluations
    assert resumed.stopped == whole.stopped
    assert second.rng.bit_generator.state == model.rng.bit_generator.state


class Halving(schedules.Schedule):
    """One that a user wrote: no representation of its own, NumPy's numbers."""

    def rate(self, base: float, epoch: int, step: int) -> Any:
        return np.float32(base) / np.float32(2**epoch)


def test_a_schedule_of_ones_own_can_be_resumed(tmp_path) -> None:
    def trainer(seed: int, *watchers: callbacks.Callback) -> Trainer:
        return Trainer(Bigram(WORDS, seed=seed), schedule=Halving(), callbacks=watchers)

    whole, resumed = trainer(0), trainer(1)
    whole.fit(Sentences(sentences()), epochs=3)
    trainer(0, Checkpoints(tmp_path), Interrupt(15)).fit(Sentences(sentences()), epochs=3)
    resumed.fit(Sentences(sentences()), epochs=3, resume=tmp_path)
    np.testing.assert_array_equal(resumed.model.parameters.flat, whole.model.parameters.flat)


def test_a_refused_resume_leaves_generators_and_data_alone(tmp_path) -> None:
    model, train, valid, options = plain(0)
    Trainer(model, callbacks=[Checkpoints(tmp_path)], **options).fit(train, valid, epochs=1)
    other, train, valid, options = plain(1)
    trainer = Trainer(other, rng=3, **{**options, "optimizer": optim.SGD(0.3)})
    before = other.rng, train.rng, other.parameters.flat.copy()
    with pytest.raises(CheckpointError, match="optimizer"):
        trainer.fit(train, valid, resume=tmp_path)
    assert (other.rng, train.rng, trainer.train, trainer.valid) == (*before[:2], None, None)
    np.testing.assert_array_equal(other.parameters.flat, before[2])


def test_a_run_may_be_resumed_from_the_end_of_any_epoch_and_longer_than_planned(tmp_path) -> None:
    model, train, valid, options = plain(0)
    Trainer(model, **options).fit(train, valid, epochs=4)
    first, train, valid, options = plain(0)
    Trainer(first, callbacks=[Checkpoints(tmp_path)], **options).fit(train, valid, epochs=2)
    second, train, valid, options = plain(1)
    trainer = Trainer(second, **options)
    history = trainer.fit(train, valid, epochs=4, resume=tmp_path / checkpoint.FILE_NAME)
    assert history.column("epoch") == [1, 2, 3, 4]
    np.testing.assert_array_equal(second.parameters.flat, model.parameters.flat)


def test_after_a_step_limit_the_cut_epoch_is_finished(tmp_path) -> None:
    model, train, valid, options = stream(0)
    whole = Trainer(model, **options).fit(train, valid, epochs=2)
    first, train, valid, options = stream(0)
    part = Trainer(first, callbacks=[Checkpoints(tmp_path)], **options).fit(train, valid, epochs=2, max_steps=8)
    assert part.column("epoch") == [1, 2]
    second, train, valid, options = stream(1)
    history = Trainer(second, **options).fit(train, valid, epochs=2, resume=tmp_path)
    assert timeless(history) == timeless(whole)
    np.testing.assert_array_equal(second.parameters.flat, model.parameters.flat)


def test_a_generator_shared_by_data_and_model(tmp_path) -> None:
    def shared(seed: int) -> tuple[Bigram, Sentences]:
        model = Bigram(WORDS, seed=seed, noise=0.3)
        return model, Sentences(sentences(), shuffle=True, rng=model.rng)

    model, train = shared(0)
    Trainer(model).fit(train, epochs=2)
    first, train = shared(0)
    Trainer(first, callbacks=[Checkpoints(tmp_path), Interrupt(17)]).fit(train, epochs=2)
    second, train = shared(1)
    Trainer(second).fit(train, epochs=2, resume=tmp_path)
    np.testing.assert_array_equal(second.parameters.flat, model.parameters.flat)


def test_minutes_and_options(tmp_path) -> None:
    writes = []

    class Count(callbacks.Callback):
        def on_step(self, trainer: Trainer) -> None:
            if (tmp_path / checkpoint.FILE_NAME).exists():
                writes.append(checkpoint.read(tmp_path).run["step"])

    model, train, valid, options = plain(0)
    saver = Checkpoints(tmp_path, minutes=1e-9, options={"file": "a.csv", "epochs": 2})
    Trainer(model, callbacks=[saver, Count()], **options).fit(train, valid, epochs=1)
    assert writes == list(range(1, 13))
    assert checkpoint.read(tmp_path).options == {"file": "a.csv", "epochs": 2}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


def test_options_of_the_contract(tmp_path) -> None:
    with pytest.raises(ValueError, match="minutes"):
        Checkpoints(tmp_path, minutes=0.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Checkpoints(tmp_path / "file")


def written(tmp_path: Path) -> Path:
    model, train, valid, options = plain(0)
    Trainer(model, callbacks=[Checkpoints(tmp_path)], **options).fit(train, valid, epochs=1)
    return tmp_path / checkpoint.FILE_NAME


def test_no_checkpoint(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_file_cut_short_is_damaged(keep, tmp_path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_a_flipped_bit_is_damage_wherever_it_is(tmp_path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 60).astype(int):
        bad = bytearray(content)
        bad[place] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


def test_foreign_files(tmp_path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": np.ones(3, np.float32)}, other)
    with pytest.raises(CheckpointError, match="some other safetensors file"):
        checkpoint.read(other)
    save_file({"a": np.ones(3, np.float32)}, other, {"format": "pt"})
    with pytest.raises(CheckpointError, match="'pt' file"):
        checkpoint.read(other)
    other.write_text("not at all")
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        checkpoint.read(other)


@pytest.mark.parametrize(("version", "message"), [("2", "newer crnn"), ("0", "another crnn"), ("x", "another crnn")])
def test_other_versions(version, message, tmp_path) -> None:
    path = written(tmp_path)
    save_file(load_file(path), path, {"format": "crnn checkpoint", "version": version})
    with pytest.raises(CheckpointError, match=f"checkpoint version {version}.*{message}.*reads version 1"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": optim.SGD(0.1)}, r"settings, optimizer: SGD\(learning_rate=0.4.*SGD\(learning_rate=0.1.* now"),
        ({"optimizer": optim.Adam(0.4)}, "settings, optimizer"),
        ({"schedule": schedules.Constant()}, "settings, schedule"),
        ({"truncation": bptt.Full()}, r"truncation: Window\(k=4\) in the checkpoint, Full\(\) now"),
        ({"clip_norm": 2.0}, "clip_norm: None in the checkpoint, 2.0 now"),
        ({"model": Bigram(WORDS + 1)}, "model, vocabulary_size: 11 in the checkpoint, 12 now"),
        ({"train": Sentences(sentences(), shuffle=True)}, ""),
        ({"train": Sentences(sentences(2), shuffle=True)}, "training data, crc32"),
        ({"train": Sentences(sentences(), 2, shuffle=True)}, "training data, batch_size: 1 in the checkpoint, 2 now"),
        ({"train": Sentences(sentences())}, "training data, shuffle: True in the checkpoint, False now"),
        ({"valid": None}, "validation data: .* now"),
        ({"valid": Sentences(sentences(3))}, "validation data, crc32"),
    ],
)
def test_what_differs_is_said_and_nothing_is_touched(change, message, tmp_path) -> None:
    written(tmp_path)
    model, train, valid, options = plain(1)
    model, train, valid = change.pop("model", model), change.pop("train", train), change.pop("valid", valid)
    before = model.parameters.flat.copy()
    trainer = Trainer(model, **(options | change))
    if not message:
        assert len(trainer.fit(train, valid, epochs=2, resume=tmp_path)) == 2
        return
    with pytest.raises(CheckpointError, match=message):
        trainer.fit(train, valid, epochs=2, resume=tmp_path)
    np.testing.assert_array_equal(model.parameters.flat, before)
    assert len(trainer.history) == 0


def test_all_differences_are_listed_at_once(tmp_path) -> None:
    written(tmp_path)
    model, _, valid, options = plain(0)
    options["optimizer"] = optim.SGD(1.0)
    with pytest.raises(CheckpointError, match=r"(?s)settings, optimizer.*training data"):
        Trainer(model, **options).fit(Sentences(sentences(2), shuffle=True), valid, resume=tmp_path)


def test_another_instruction_set_warns(tmp_path) -> None:
    path = written(tmp_path)
    found = checkpoint.read(path)
    text = json.dumps(found.run | {"instruction_set": "abacus"})
    crc = str(checkpoint._checksum(text, found.tensors))
    save_file(found.tensors, path, {"format": "crnn checkpoint", "version": "1", "run": text, "crc32": crc})
    model, train, valid, options = plain(0)
    with pytest.warns(RuntimeWarning, match="instruction set abacus"):
        Trainer(model, **options).fit(train, valid, epochs=2, resume=path)


def test_a_full_disk_leaves_the_old_checkpoint_and_training_goes_on(tmp_path, monkeypatch) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    calls = []

    def full(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model, train, valid, options = plain(0)
    with pytest.warns(RuntimeWarning, match="No space left on device.*training goes on"):
        history = Trainer(model, callbacks=[Checkpoints(tmp_path)], **options).fit(train, valid, epochs=2)
    assert history.stopped == "finished"
    assert calls
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


def test_a_full_disk_on_ctrl_c_is_an_error(tmp_path, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model, train, valid, options = plain(0)
    with pytest.raises(OSError, match="No space left"):
        Trainer(model, callbacks=[Checkpoints(tmp_path), Interrupt(3)], **options).fit(train, valid, epochs=2)


def test_what_a_killed_writer_left_is_swept_away(tmp_path) -> None:
    (tmp_path / f".{checkpoint.FILE_NAME}.abc.part").write_bytes(b"half")
    Checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


RUN = """
    import sys
    sys.path[:0] = [{tests!r}, {root!r}]
    import numpy as np
    from test_checkpoint import Checkpoints, Trainer, {setup}
    model, train, valid, options = {setup}(int(sys.argv[1]))
    options["callbacks"] = [Checkpoints({folder!r}, minutes=1e-9)]
    trainer = Trainer(model, **options)
    print("go", flush=True)
    trainer.fit(train, valid, epochs=40, resume={folder!r} if sys.argv[1] == "1" else None)
"""


@pytest.mark.parametrize(("setup", "delay"), [(plain, 0.03), (lstm, 0.07)])
def test_kill_at_any_moment_leaves_a_whole_checkpoint_that_continues_to_the_same_bits(setup, delay, tmp_path) -> None:
    here = Path(__file__).parent
    code = textwrap.dedent(RUN).format(
        tests=str(here), root=str(here.parent), setup=setup.__name__, folder=str(tmp_path)
    )
    process = subprocess.Popen([sys.executable, "-c", code, "0"], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        until = time.monotonic() + 30
        while not (tmp_path / checkpoint.FILE_NAME).exists() and time.monotonic() < until:
            pass
        started = time.monotonic()
        while time.monotonic() - started < delay:
            assert checkpoint.read(tmp_path).run["step"] >= 1
        process.kill()
    found = checkpoint.read(tmp_path).run
    assert found["epochs_done"] < 40
    results = []
    for seed, resume in ((0, None), (1, tmp_path)):
        model, train, valid, options = setup(seed)
        options["callbacks"] = []
        Trainer(model, **options).fit(train, valid, epochs=40, resume=resume)
        results.append(model.parameters.flat)
    np.testing.assert_array_equal(*results)


def test_a_run_that_was_stopped_early_stays_stopped(tmp_path) -> None:
    def trainer(seed: int, patience: int) -> Trainer:
        watchers = [Checkpoints(tmp_path), callbacks.EarlyStopping(patience)]
        return Trainer(Bigram(WORDS, seed=seed), optimizer=optim.SGD(8.0), callbacks=watchers, normalise=None)

    first = trainer(0, 0)
    assert first.fit(Sentences(sentences()), Sentences(sentences(1)), epochs=50).stopped == "early stopping"
    second = trainer(1, 0)
    history = second.fit(Sentences(sentences()), Sentences(sentences(1)), epochs=50, resume=tmp_path)
    assert history.stopped == "early stopping"
    assert second.step == first.step
    np.testing.assert_array_equal(second.model.parameters.flat, first.model.parameters.flat)
    patient = trainer(1, 3)
    patient.fit(Sentences(sentences()), Sentences(sentences(1)), epochs=50, resume=tmp_path)
    assert patient.step > first.step
    # The same trainer goes on where it is told to.
    assert len(first.fit(Sentences(sentences()), Sentences(sentences(1)), epochs=1)) > len(history) - 1


def test_the_evaluation_before_training_is_made_once(tmp_path) -> None:
    def trainer(*watchers: callbacks.Callback) -> Trainer:
        return Trainer(Bigram(WORDS), evaluate_first=True, callbacks=[callbacks.EarlyStopping(5), *watchers])

    class AtOnce(callbacks.Callback):
        def on_start(self, trainer: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    data = Sentences(sentences()), Sentences(sentences(1))
    history = trainer(AtOnce(), Checkpoints(tmp_path)).fit(*data, epochs=1)
    for _ in range(2):
        history = trainer(AtOnce(), Checkpoints(tmp_path)).fit(*data, epochs=1, resume=tmp_path)
    assert history.stopped == "interrupted"
    assert len(history.evaluations) == 1
    assert history.initial is not None
