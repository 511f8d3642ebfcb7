"""The trainer's logic, against a model small enough to repeat by hand; then once with the real one."""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
from typing import Any

import numpy as np
import pytest
from bigram import Bigram

import crnn
from crnn import bptt, callbacks, optim, schedules
from crnn.data import Sentences, Stream
from crnn.history import FIELDS
from crnn.trainer import Trainer

WORDS = 7


@pytest.fixture
def sentences(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, WORDS, length) for length in (5, 2, 9, 3, 7, 4, 6, 2)]


@pytest.fixture
def text(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, WORDS, 101)


def by_hand(model: Bigram, data: Any, truncation: Any, rate: float, scale: Any) -> float:
    """One epoch of plain SGD, written out."""
    total, state = 0.0, None
    for batch in data.batches(truncation):
        gradients = model.new_gradients()
        loss, state = model.loss_and_gradients(
            batch, gradients, truncation, scale(batch), state if batch.carry else None
        )
        model.parameters["drift"] -= rate * gradients.dense["drift"]
        ids, rows = gradients.sparse["table"]
        model.parameters["table"][ids] -= rate * rows
        total += loss
    return total


class Watch(callbacks.Callback):
    """Writes down every call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_start(self, trainer: Trainer) -> None:
        self.calls.append("start")

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.calls.append(f"epoch {trainer.epoch}")

    def on_step(self, trainer: Trainer) -> None:
        self.calls.append(trainer.step)

    def on_evaluation(self, trainer: Trainer, valid_loss: float) -> None:
        self.calls.append("evaluation")

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self.calls.append(f"end of {record['epoch']}")

    def on_halt(self, trainer: Trainer, reason: str) -> None:
        self.calls.append(f"halt: {reason}")

    def on_end(self, trainer: Trainer) -> None:
        self.calls.append(trainer.history.stopped)


class At(callbacks.Callback):
    """Does something after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            self.action(trainer)


@pytest.mark.parametrize(
    ("normalise", "scale"),
    [
        ("sequences", lambda batch: 1.0 / batch.sequences),
        ("tokens", lambda batch: 1.0 / batch.tokens),
        (None, lambda batch: 1.0),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_epochs_of_plain_sgd(sentences, normalise, scale, batch_size) -> None:
    model, twin = Bigram(WORDS), Bigram(WORDS)
    history = Trainer(model, optimizer=optim.SGD(0.1), normalise=normalise, schedule=schedules.Constant()).fit(
        Sentences(sentences, batch_size), epochs=3
    )
    losses = [by_hand(twin, Sentences(sentences, batch_size), None, 0.1, scale) for _ in range(3)]
    tokens = sum(len(s) - 1 for s in sentences)
    np.testing.assert_allclose(model.parameters.flat, twin.parameters.flat, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(history.column("train_loss"), np.array(losses) / tokens, rtol=1e-12)
    assert history.column("epoch") == [1, 2, 3]
    assert history.column("tokens") == [tokens] * 3
    assert history.stopped == "finished"
    assert not history.interrupted


def test_stream_carries_the_state_from_step_to_step_and_starts_each_epoch_afresh(text) -> None:
    model, twin = Bigram(WORDS), Bigram(WORDS)
    truncation = bptt.Chunk(8)
    Trainer(model, optimizer=optim.SGD(0.05), truncation=truncation, schedule=schedules.Constant()).fit(
        Stream(text, 4), epochs=2
    )
    for _ in range(2):
        by_hand(twin, Stream(text, 4), truncation, 0.05, lambda batch: 1.0 / 4)
    np.testing.assert_allclose(model.parameters.flat, twin.parameters.flat, rtol=1e-12, atol=1e-14)
    assert [batch.carry for batch in model.batches] == [False, True, True, True] * 2


@pytest.mark.parametrize("normalise", ["sequences", "tokens", None])
@pytest.mark.parametrize("optimizer", [optim.Adam(0.05), optim.SGD(0.1, momentum=0.5)])  # Adam does not feel a scale
def test_gradient_accumulation_equals_one_large_batch(sentences, optimizer, normalise) -> None:
    small, large = Bigram(WORDS), Bigram(WORDS)
    for model, batch_size, accumulate in ((small, 2, 4), (large, 8, 1)):
        Trainer(
            model,
            optimizer=copy.deepcopy(optimizer),
            normalise=normalise,
            accumulate=accumulate,
            schedule=schedules.Constant(),
        ).fit(Sentences(sentences, batch_size), epochs=2)
    np.testing.assert_allclose(small.parameters.flat, large.parameters.flat, rtol=1e-10, atol=1e-12)


def test_accumulation_takes_what_is_left_at_the_end_of_an_epoch(sentences) -> None:
    model = Bigram(WORDS)
    trainer = Trainer(model, accumulate=3)
    trainer.fit(Sentences(sentences, 1), epochs=1)
    assert len(model.batches) == 8
    assert trainer.step == 3


def test_clipping_by_norm_scales_the_whole_gradient(sentences) -> None:
    model, twin = Bigram(WORDS), Bigram(WORDS)
    data = Sentences(sentences, 8)
    Trainer(model, optimizer=optim.SGD(1.0), clip_norm=0.25).fit(data, epochs=1)
    gradients = twin.new_gradients()
    twin.loss_and_gradients(next(data.batches()), gradients, None, 1 / 8)
    change = (model.parameters.flat - twin.parameters.flat).copy()
    assert np.linalg.norm(change) == pytest.approx(0.25, rel=1e-12)
    drift = gradients.dense["drift"]
    moved = model.parameters["drift"] - twin.parameters["drift"]
    np.testing.assert_allclose(moved / np.linalg.norm(moved), -drift / np.linalg.norm(drift), rtol=1e-10)


def test_clipping_by_norm_leaves_a_small_gradient_alone(sentences) -> None:
    model, twin = Bigram(WORDS), Bigram(WORDS)
    Trainer(model, optimizer=optim.SGD(0.1), clip_norm=1e6).fit(Sentences(sentences, 8), epochs=1)
    Trainer(twin, optimizer=optim.SGD(0.1)).fit(Sentences(sentences, 8), epochs=1)
    np.testing.assert_allclose(model.parameters.flat, twin.parameters.flat, rtol=1e-13)


def test_clipping_by_value(sentences) -> None:
    model, twin = Bigram(WORDS), Bigram(WORDS)
    data = Sentences(sentences, 8)
    Trainer(model, optimizer=optim.SGD(1.0), clip_value=0.01).fit(data, epochs=1)
    gradients = twin.new_gradients()
    twin.loss_and_gradients(next(data.batches()), gradients, None, 1 / 8)
    expected = twin.parameters["drift"] - np.clip(gradients.dense["drift"], -0.01, 0.01)
    np.testing.assert_allclose(model.parameters["drift"], expected, rtol=1e-12)
    ids, rows = gradients.sparse["table"]
    expected = twin.parameters["table"][ids] - np.clip(rows, -0.01, 0.01)
    np.testing.assert_allclose(model.parameters["table"][ids], expected, rtol=1e-12)


def test_the_norm_is_that_of_the_clipped_values(sentences) -> None:
    model, twin = Bigram(WORDS), Bigram(WORDS)
    data = Sentences(sentences, 8)
    Trainer(model, optimizer=optim.SGD(1.0), clip_value=0.02, clip_norm=0.1).fit(data, epochs=1)
    gradients = twin.new_gradients()
    twin.loss_and_gradients(next(data.batches()), gradients, None, 1 / 8)
    ids, rows = gradients.sparse["table"]
    clipped = [np.clip(g, -0.02, 0.02) for g in (gradients.dense["drift"], rows)]
    factor = 0.1 / math.sqrt(sum((g * g).sum() for g in clipped))
    assert factor < 1.0
    moved = [twin.parameters["drift"] - model.parameters["drift"], (twin.params["table"] - model.params["table"])[ids]]
    for change, g in zip(moved, clipped):
        np.testing.assert_allclose(change, factor * g, rtol=1e-9, atol=1e-15)


def test_record_fields_and_validation(sentences) -> None:
    trainer = Trainer(Bigram(WORDS), optimizer=optim.SGD(0.1))
    valid = Sentences(sentences[:3])
    history = trainer.fit(Sentences(sentences), valid, epochs=2)
    assert tuple(history[-1])[: len(FIELDS)] == FIELDS
    assert history[-1]["valid_loss"] == pytest.approx(trainer.evaluate(valid), rel=1e-14)
    assert history[-1]["valid_perplexity"] == pytest.approx(math.exp(history[-1]["valid_loss"]))
    assert history[-1]["learning_rate"] == 0.1
    assert history[-1]["tokens_per_second"] == pytest.approx(history[-1]["tokens"] / history[-1]["seconds"])
    assert history.initial is None


def test_evaluation_does_not_disturb_training(text) -> None:
    watched, alone = Bigram(WORDS, noise=0.5), Bigram(WORDS, noise=0.5)
    for model, valid, steps in ((watched, Stream(text, 1), 2), (alone, None, None)):
        Trainer(
            model,
            optimizer=optim.SGD(0.1),
            truncation=bptt.Chunk(5),
            schedule=schedules.Constant(),
            evaluate_steps=steps,
        ).fit(Stream(text, 4), valid, epochs=2)
    np.testing.assert_array_equal(watched.parameters.flat, alone.parameters.flat)


def test_evaluation_before_training_every_second_epoch_and_at_the_last(sentences) -> None:
    watch = Watch()
    trainer = Trainer(Bigram(WORDS), evaluate_first=True, evaluate_every=2, callbacks=[watch])
    valid = Sentences(sentences[:2])
    first = trainer.evaluate(valid)
    history = trainer.fit(Sentences(sentences, 8), valid, epochs=3)
    assert history.initial is not None
    assert history.initial["epoch"] == 0
    assert history.initial["valid_loss"] == pytest.approx(first)
    assert [r["valid_loss"] is not None for r in history] == [False, True, True]
    assert watch.calls == [
        "start",
        "evaluation",
        "epoch 1",
        1,
        "end of 1",
        "epoch 2",
        2,
        "evaluation",
        "end of 2",
        "epoch 3",
        3,
        "evaluation",
        "end of 3",
        "finished",
    ]


def test_evaluation_every_n_steps_tells_the_schedule_once_per_evaluation(sentences) -> None:
    heard = []

    class Listen(schedules.Constant):
        def observe(self, loss: float) -> None:
            heard.append(loss)

    trainer = Trainer(Bigram(WORDS), schedule=Listen(), evaluate_steps=4)
    history = trainer.fit(Sentences(sentences), Sentences(sentences[:2]), epochs=1)
    assert [e["step"] for e in history.evaluations] == [4, 8]
    assert heard == [e["valid_loss"] for e in history.evaluations]
    assert history[0]["valid_loss"] == heard[-1]


def test_schedule_hears_the_training_loss_without_a_validation_set(sentences) -> None:
    schedule = schedules.HalveOnIncrease()
    trainer = Trainer(Bigram(WORDS), optimizer=optim.SGD(3.0), schedule=schedule, normalise=None)
    history = trainer.fit(Sentences(sentences), epochs=6)
    losses = history.column("train_loss")
    rises = [b > a for a, b in itertools.pairwise(losses)]
    assert any(rises)
    expected = [3.0] + [3.0 * 0.5 ** sum(rises[: i + 1]) for i in range(len(rises))]
    assert history.column("learning_rate") == [3.0, *expected[:-1]]


def test_per_step_schedule_sets_the_rate_of_every_step(sentences) -> None:
    model = Bigram(WORDS)
    Trainer(model, optimizer=optim.SGD(0.4), schedule=schedules.Warmup(4)).fit(Sentences(sentences), epochs=1)
    np.testing.assert_allclose(model.rates, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4])


def test_step_decay_sets_the_rate_of_every_epoch(sentences) -> None:
    model = Bigram(WORDS)
    Trainer(model, optimizer=optim.SGD(1.0), schedule=schedules.StepDecay(0.5, after=2)).fit(
        Sentences(sentences, 8), epochs=4
    )
    assert model.rates == [1.0, 1.0, 0.5, 0.25]


def test_a_second_fit_goes_on_counting_epochs(sentences) -> None:
    trainer = Trainer(Bigram(WORDS))
    trainer.fit(Sentences(sentences), epochs=2)
    history = trainer.fit(Sentences(sentences), epochs=1)
    assert history.column("epoch") == [1, 2, 3]
    assert trainer.step == 24


def test_step_limit_records_the_part_of_the_epoch(sentences) -> None:
    history = Trainer(Bigram(WORDS)).fit(Sentences(sentences), epochs=5, max_steps=11)
    assert history.stopped == "step limit"
    assert history.column("epoch") == [1, 2]
    assert history[1]["tokens"] == sum(len(s) - 1 for s in sentences[:3])


def test_a_fit_after_a_step_limit_begins_the_next_epoch(sentences) -> None:
    trainer = Trainer(Bigram(WORDS))
    trainer.fit(Sentences(sentences), epochs=5, max_steps=11)
    assert trainer.fit(Sentences(sentences), epochs=1).column("epoch") == [1, 2, 3]
    assert trainer.step == 19


def test_time_limit(sentences) -> None:
    history = Trainer(Bigram(WORDS)).fit(Sentences(sentences), epochs=10**6, max_seconds=0.2)
    assert history.stopped == "time limit"
    assert 1 <= len(history) < 10**6


def test_stop_ends_after_the_step(sentences) -> None:
    trainer = Trainer(Bigram(WORDS), callbacks=[At(3, lambda trainer: trainer.stop("enough"))])
    assert trainer.fit(Sentences(sentences), epochs=5).stopped == "enough"
    assert trainer.step == 3


def test_early_stopping_and_best_weights(sentences) -> None:
    model = Bigram(WORDS)
    trainer = Trainer(
        model,
        optimizer=optim.SGD(2.0),
        normalise=None,
        keep_best=True,
        schedule=schedules.Constant(),
        callbacks=[callbacks.EarlyStopping(patience=2)],
    )
    valid = Sentences(sentences[:2][::-1])
    history = trainer.fit(Sentences(sentences[3:]), valid, epochs=200)
    assert history.stopped == "early stopping"
    losses = history.column("valid_loss")
    best = int(np.argmin(losses))
    assert len(losses) == best + 4
    assert history.best is history[best]
    assert trainer.evaluate(valid) == pytest.approx(losses[best], rel=1e-14)
    assert trainer.kept is not None
    assert trainer.kept.epoch == best + 1


def test_without_keep_best_the_last_weights_stay(sentences) -> None:
    trainer = Trainer(Bigram(WORDS), optimizer=optim.SGD(2.0), normalise=None, schedule=schedules.Constant())
    valid = Sentences(sentences[:2][::-1])
    history = trainer.fit(Sentences(sentences[3:]), valid, epochs=12)
    losses = history.column("valid_loss")
    assert min(losses) < losses[-1]
    assert trainer.evaluate(valid) == pytest.approx(losses[-1], rel=1e-14)


def test_a_second_fit_does_not_lose_the_best_weights_of_the_first(sentences) -> None:
    trainer = Trainer(Bigram(WORDS), optimizer=optim.SGD(0.1), schedule=schedules.Constant(), keep_best=True)
    valid = Sentences(sentences[:2][::-1])
    trainer.fit(Sentences(sentences[3:]), valid, epochs=3)
    best = trainer.evaluate(valid)
    trainer.optimizer.learning_rate = 50.0  # nothing but harm from here on
    trainer.fit(Sentences(sentences[3:]), valid, epochs=2)
    assert trainer.history.column("valid_loss")[-1] > best
    assert trainer.evaluate(valid) == best


def test_ctrl_c_leaves_the_best_weights_where_they_are_wanted(sentences) -> None:
    valid = Sentences(sentences[:2][::-1])
    interrupt = At(40, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
    model = Bigram(WORDS)
    trainer = Trainer(model, optimizer=optim.SGD(2.0), normalise=None, keep_best=True, callbacks=[interrupt])
    history = trainer.fit(Sentences(sentences[3:]), valid, epochs=12)
    assert history.interrupted
    losses = history.column("valid_loss")
    assert losses[-1] > min(losses)
    assert trainer.evaluate(valid) == pytest.approx(min(losses), rel=1e-14)


def test_ctrl_c_before_any_evaluation_keeps_what_was_trained(sentences) -> None:
    interrupt = At(3, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
    model = Bigram(WORDS)
    before = model.parameters.flat.copy()
    trainer = Trainer(model, optimizer=optim.SGD(2.0), keep_best=True, callbacks=[interrupt])
    assert trainer.fit(Sentences(sentences[3:]), Sentences(sentences[:3])).interrupted
    assert (model.parameters.flat != before).any()


def test_ctrl_c_finishes_the_step_and_stops(sentences) -> None:
    model, twin = Bigram(WORDS), Bigram(WORDS)
    interrupt = At(5, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
    trainer = Trainer(model, callbacks=[interrupt])
    history = trainer.fit(Sentences(sentences), epochs=3)
    assert history.interrupted
    assert trainer.step == 5
    assert len(history) == 0
    Trainer(twin).fit(Sentences(sentences), epochs=3, max_steps=5)
    np.testing.assert_array_equal(model.parameters.flat, twin.parameters.flat)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_raises(sentences) -> None:
    def twice(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        math.fsum(range(1000))  # the second signal's handler runs at the next bytecode at the latest

    trainer = Trainer(Bigram(WORDS), callbacks=[At(2, twice)])
    if hasattr(signal, "pthread_sigmask"):
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(Sentences(sentences), epochs=3)
        assert trainer.history.stopped == "failed"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failing_callback_ends_the_run_and_the_others_hear_of_it(sentences) -> None:
    def fail(trainer: Trainer) -> None:
        raise OSError("disk full")

    watch = Watch()
    with pytest.raises(OSError, match="disk full"):
        Trainer(Bigram(WORDS), callbacks=[At(2, fail), watch]).fit(Sentences(sentences))
    assert watch.calls[-1] == "failed"


def test_rng_makes_shuffling_and_dropout_repeatable(sentences) -> None:
    results = []
    for seed in (3, 3, 4):
        model = Bigram(WORDS, noise=0.5)
        Trainer(model, optimizer=optim.SGD(0.1), rng=seed).fit(Sentences(sentences, shuffle=True), epochs=2)
        results.append(model.parameters.flat.copy())
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "sgd"}, TypeError, "optimizer: got 'sgd'"),
        ({"schedule": 0.5}, TypeError, "schedule: got 0.5"),
        ({"truncation": 4}, TypeError, "truncation"),
        ({"normalise": "words"}, ValueError, "normalise: got 'words'"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm"),
        ({"clip_value": -1.0}, ValueError, "clip_value"),
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"evaluate_every": 1.5}, TypeError, "evaluate_every"),
        ({"callbacks": [print]}, TypeError, "callbacks"),
    ],
)
def test_arguments_are_checked(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        Trainer(Bigram(WORDS), **arguments)


def test_data_are_checked(sentences, text) -> None:
    trainer = Trainer(Bigram(WORDS))
    with pytest.raises(TypeError, match=r"train: got list, wanted crnn\.data\.Sentences"):
        trainer.fit(sentences)
    with pytest.raises(ValueError, match=r"valid: got the id 7.*7 words"):
        trainer.fit(Sentences(sentences), Sentences([[0, 7]]))
    with pytest.raises(ValueError, match=r"truncation: got Window\(k=4\) for a Stream, wanted Chunk"):
        trainer.fit(Stream(text, 4))
    with pytest.raises(ValueError, match="epochs"):
        trainer.fit(Sentences(sentences), epochs=0)
    with pytest.raises(ValueError, match="max_seconds"):
        trainer.fit(Sentences(sentences), max_seconds=0.0)
    with pytest.raises(ValueError, match="max_steps"):
        trainer.fit(Sentences(sentences), max_steps=0)
    with pytest.raises(ValueError, match="keep_best"):
        Trainer(Bigram(WORDS), keep_best=True).fit(Sentences(sentences))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("optimizer", [None, optim.SGD(0.05, momentum=0.5), optim.AdamW(0.02)])
def test_a_real_model_learns_the_same_as_written_out_in_numpy_terms(sentences, cell, optimizer) -> None:
    """Fused and unfused updates, through the trainer, against the model's own gradients and dense NumPy rules."""
    model = crnn.LanguageModel(WORDS, cell, 5, dtype=np.float64, rng=1)
    twin = model.copy()
    Trainer(model, optimizer=copy.deepcopy(optimizer), normalise=None).fit(Sentences(sentences), epochs=2)
    velocity = {name: np.zeros_like(p) for name, p in twin.params.items()}
    mean = {name: np.zeros_like(p) for name, p in twin.params.items()}
    for step, sentence in enumerate(sentences * 2, start=1):
        for name, g in twin.gradients(sentence[:-1], sentence[1:], bptt.Window(4)).items():
            p, v, m = twin.params[name], velocity[name], mean[name]
            if optimizer is None:
                p -= 0.005 * g
            elif isinstance(optimizer, optim.SGD):
                v[...] = 0.5 * v + g
                p -= 0.05 * v
            else:
                p *= 1 - 0.02 * 0.01
                m[...] = 0.9 * m + 0.1 * g
                v[...] = 0.999 * v + 0.001 * g * g
                p -= 0.02 / (1 - 0.9**step) * m / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    for name, p in model.params.items():
        np.testing.assert_allclose(p, twin.params[name], rtol=1e-9, atol=1e-11, err_msg=name)
