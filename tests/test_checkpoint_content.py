"""Which weights may take the place of a good checkpoint, and which files are none: the trainer stays as it was."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_checkpoint import plain

import crnn
from crnn import callbacks, checkpoint, optim, schedules
from crnn.checkpoint import CheckpointError, Checkpoints
from crnn.data import Sentences
from crnn.trainer import Trainer, TrainingDiverged


class Explosion(schedules.Schedule):
    """A rate that ruins the weights in one step."""

    per_step = True

    def __init__(self, step: int, rate: float) -> None:
        self.step, self.high = step, rate

    def rate(self, base: float, epoch: int, step: int) -> float:
        return self.high if step == self.step else base


def exploding(folder, rate: float, **options) -> Trainer:
    model = crnn.LanguageModel(20, "rnn", 8, nonlinearity="relu", rng=0)
    watchers = [Checkpoints(folder, **options)]
    return Trainer(model, optimizer=optim.SGD(0.01), schedule=Explosion(15, rate), callbacks=watchers, normalise=None)


@pytest.fixture
def data() -> Sentences:
    return Sentences([np.random.default_rng(i).integers(0, 20, 30) for i in range(8)])


@pytest.mark.parametrize("rate", [1e39, 1e20], ids=["weights", "loss"])  # not finite: the weights, or only their loss
@pytest.mark.parametrize("limit", ["steps", "time", "ctrl-c"])
def test_a_limit_after_a_bad_update_leaves_the_good_checkpoint(limit, rate, tmp_path, data) -> None:
    trainer = exploding(tmp_path, rate)
    trainer.fit(data, epochs=1)
    before = (tmp_path / checkpoint.FILE_NAME).read_bytes()

    class Stop(callbacks.Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 16 and limit == "ctrl-c":
                signal.raise_signal(signal.SIGINT)
            elif trainer.step == 16 and limit == "time":
                trainer.stop("time limit")

    trainer.callbacks = (*trainer.callbacks, Stop())
    with pytest.raises(TrainingDiverged):
        trainer.fit(data, epochs=5, max_steps=16 if limit == "steps" else None)
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before
    again = exploding(tmp_path, 0.01)
    again.schedule = trainer.schedule
    assert again.fit(data, epochs=1, resume=tmp_path).stopped == "finished"
    np.testing.assert_array_equal(again.model.parameters.flat, trainer.model.parameters.flat)


@pytest.mark.parametrize("rate", [1e39, 1e20], ids=["weights", "loss"])
def test_nor_does_the_clock_replace_it(rate, tmp_path, data) -> None:
    trainer = exploding(tmp_path, rate, minutes=1e-9)
    with pytest.raises(TrainingDiverged):
        trainer.fit(data, epochs=5)
    found = checkpoint.read(tmp_path)
    assert found.run["step"] == 15
    assert all(np.isfinite(array).all() for array in found.tensors.values())


def test_squares_that_overflowed_go_into_a_checkpoint_and_come_back() -> None:
    model = crnn.LanguageModel(5, "rnn", 3, rng=0)
    rule = optim.Adam(0.1)
    gradients = model.parameters.like()
    gradients.flat[:] = 0.5
    gradients["output.bias"][2] = 1e30
    rule.step(model.parameters, gradients)
    state = rule.state_dict()
    assert np.isposinf(state["moments"]["squares"]["output.bias"][2])
    other = optim.Adam(0.1)
    other.load_state_dict(state, model.parameters)
    for name, moment in rule.state.items():
        for tensor, array in moment.items():
            np.testing.assert_array_equal(other.state[name][tensor], array)
    state["moments"]["squares"]["output.bias"][2] = np.nan
    with pytest.raises(ValueError, match=r"output\.bias: nan"):
        other.load_state_dict(state, model.parameters)


def test_a_word_that_is_half_an_emoji(tmp_path) -> None:
    words = json.loads('["a", "\\ud83d", "b"]')
    vocabulary = crnn.Vocabulary.build([words] * 3, size=10)
    model = crnn.LanguageModel(vocabulary, hidden_size=3, rng=0)
    data = Sentences([vocabulary.encode(words)] * 4)
    Trainer(model, callbacks=[Checkpoints(tmp_path)]).fit(data, epochs=1)
    assert len(Trainer(model).fit(data, epochs=2, resume=tmp_path)) == 2


def rewritten(path, **changes) -> None:
    """The checkpoint with other parts, and a checksum that fits."""
    found = checkpoint.read(path)
    run = {name: part for name, part in (found.run | changes).items() if part is not ...}
    text = json.dumps(run)
    crc = str(checkpoint._checksum(text, found.tensors))
    save_file(found.tensors, found.path, {"format": "crnn checkpoint", "version": "1", "run": text, "crc32": crc})


@pytest.fixture
def written(tmp_path):
    model, train, valid, options = plain(0)
    Trainer(model, callbacks=[Checkpoints(tmp_path)], **options).fit(train, valid, epochs=1)
    return tmp_path


def refused(folder, message: str, **changes) -> None:
    """Resuming raises CheckpointError, and model, optimiser and data are as before."""
    model, train, valid, options = plain(3)
    options |= changes
    trainer = Trainer(model, **options)
    before = model.parameters.flat.copy(), train.state_dict(), trainer.optimizer.steps
    with pytest.raises(CheckpointError, match=message):
        trainer.fit(train, valid, epochs=2, resume=folder)
    np.testing.assert_array_equal(model.parameters.flat, before[0])
    assert (train.state_dict(), trainer.optimizer.steps) == before[1:]


@pytest.mark.parametrize("part", ["epochs_done", "schedule", "position", "history", "generator", "optimizer_steps"])
def test_a_part_that_is_missing(part, written) -> None:
    rewritten(written, **{part: ...})
    refused(written, f"damaged .without {part}")


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "{", "3"])
def test_a_run_that_is_none(text, written) -> None:
    found = checkpoint.read(written)
    crc = str(checkpoint._checksum(text, found.tensors))
    save_file(found.tensors, found.path, {"format": "crnn checkpoint", "version": "1", "run": text, "crc32": crc})
    refused(written, "damaged")


@pytest.mark.parametrize("version", ["\u00b2", "9" * 5000, "", "2"])
def test_other_versions(version, written) -> None:
    found = checkpoint.read(written)
    save_file(found.tensors, found.path, {"format": "crnn checkpoint", "version": version, "run": "{}", "crc32": "0"})
    refused(written, "checkpoint version")


def test_weights_that_are_not_finite(written) -> None:
    found = checkpoint.read(written)
    name = next(name for name in found.tensors if name.startswith("weights/"))
    found.tensors[name].flat[1] = np.inf
    text = json.dumps(found.run)
    crc = str(checkpoint._checksum(text, found.tensors))
    save_file(found.tensors, found.path, {"format": "crnn checkpoint", "version": "1", "run": text, "crc32": crc})
    refused(written, "wanted finite numbers")


def test_generators_of_another_kind(written) -> None:
    found = checkpoint.read(written)
    assert found.run["position"]["rng"]["bit_generator"] == "PCG64"
    position = found.run["position"] | {"rng": {"bit_generator": "Philox"}}
    rewritten(written, position=position)
    refused(written, "random generator, shuffling: Philox in the checkpoint, PCG64 now")
    rewritten(written, position=found.run["position"], generator={"bit_generator": "SFC64"})
    refused(written, "random generator, dropout: SFC64 in the checkpoint, PCG64 now")


def test_another_blas_warns(written) -> None:
    rewritten(written, matrix_products="abacus, 3 threads")
    model, train, valid, options = plain(0)
    with pytest.warns(RuntimeWarning, match=r"matrix products abacus, 3 threads.*last bits will differ"):
        Trainer(model, **options).fit(train, valid, epochs=2, resume=written)


def test_a_checkpoint_that_does_not_say_whose_products_it_used_is_read_in_silence(written, recwarn) -> None:
    rewritten(written, matrix_products=...)
    model, train, valid, options = plain(0)
    assert len(Trainer(model, **options).fit(train, valid, epochs=2, resume=written)) == 2
    assert not recwarn.list


def test_ctrl_c_while_the_last_evaluation_runs_is_heard(tmp_path) -> None:
    class Press(callbacks.Callback):
        def on_evaluation(self, trainer: Trainer, loss: float) -> None:
            signal.raise_signal(signal.SIGINT)

    model, train, valid, options = plain(0)
    history = Trainer(model, callbacks=[Press()], **options).fit(train, valid, epochs=1)
    assert history.interrupted
    assert len(history) == 1
