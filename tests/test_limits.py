"""Runs that a limit cuts short, fits that follow others, and what the clock of an epoch counts."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
from bigram import Bigram
from test_trainer import WORDS

import crnn.trainer
from crnn import optim, schedules
from crnn.data import Sentences
from crnn.trainer import Trainer

STEP, EVALUATION = 1.0, 100.0  # seconds


class Slow(Bigram):
    """A model whose work takes the time of a clock that nothing else moves."""

    def __init__(self, clock: list[float], **options: Any) -> None:
        super().__init__(WORDS, **options)
        self.clock = clock

    def fused_sgd(self, *args: Any) -> tuple[float, Any]:
        self.clock[0] += STEP
        return super().fused_sgd(*args)

    def evaluate(self, *args: Any) -> tuple[float, int]:
        self.clock[0] += EVALUATION
        return super().evaluate(*args)


class Listen(schedules.Constant):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[float] = []

    def observe(self, loss: float) -> None:
        self.heard.append(loss)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(
        crnn.trainer, "time", types.SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    )
    return now


@pytest.fixture
def sentences(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, WORDS, length) for length in (5, 2, 9, 3, 7, 4, 6, 2)]


@pytest.mark.parametrize("change", ["validation set", "weights"])
def test_a_second_fit_that_begins_elsewhere_keeps_a_best_of_its_own(sentences, change) -> None:
    trainer = Trainer(Bigram(WORDS), optimizer=optim.SGD(0.1), schedule=schedules.Constant(), keep_best=True)
    train, valid, other = Sentences(sentences), Sentences(sentences[:3]), Sentences([[0, 0, 0, 0], [3, 3]])
    trainer.fit(train, valid, epochs=4)
    first = trainer.evaluate(valid)
    if change == "validation set":
        valid = other
    else:
        trainer.model.parameters.flat[:] = -4.0 * Bigram(WORDS, seed=5).parameters.flat
    losses = trainer.fit(train, valid, epochs=3).column("valid_loss")[4:]
    assert min(losses) > first
    assert trainer.kept is not None
    assert trainer.kept.valid_loss == min(losses)
    assert trainer.evaluate(valid) == pytest.approx(min(losses), rel=1e-14)


@pytest.mark.parametrize("validate", [False, True])
def test_an_epoch_cut_short_is_recorded_but_not_heard_by_the_schedule(sentences, validate) -> None:
    schedule = Listen()
    valid = Sentences(sentences[:2]) if validate else None
    history = Trainer(Bigram(WORDS), schedule=schedule).fit(Sentences(sentences), valid, epochs=3, max_steps=11)
    assert history.column("epoch") == [1, 2]
    assert schedule.heard == history.column("valid_loss" if validate else "train_loss")[:1]
    assert len(history.evaluations) == (2 if validate else 0)


def test_a_run_that_is_cut_short_is_evaluated_whenever_the_next_evaluation_was_due(sentences) -> None:
    trainer = Trainer(Bigram(WORDS), evaluate_every=4)
    history = trainer.fit(Sentences(sentences), Sentences(sentences[:2]), epochs=4, max_steps=11)
    assert [loss is not None for loss in history.column("valid_loss")] == [False, True]


def test_a_fit_after_a_cut_epoch_begins_its_data_afresh(sentences) -> None:
    trainer, train = Trainer(Bigram(WORDS)), Sentences(sentences)
    trainer.fit(train, epochs=5, max_steps=11)
    history = trainer.fit(train, epochs=1)
    assert trainer.step == 19
    assert history[-1]["tokens"] == train.tokens


def test_evaluations_within_an_epoch_are_no_part_of_its_time(sentences, clock) -> None:
    trainer = Trainer(Slow(clock), evaluate_steps=3)
    history = trainer.fit(Sentences(sentences), Sentences(sentences[:2]), epochs=2)
    assert [evaluation["step"] for evaluation in history.evaluations] == [3, 6, 8, 9, 12, 15, 16]
    assert history.column("seconds") == [8 * STEP, 8 * STEP]
