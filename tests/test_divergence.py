"""What happens when losses or weights stop being numbers: the error, and the weights that are left."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
from bigram import Bigram
from test_trainer import WORDS, Watch

import crnn
from crnn import bptt, optim, schedules
from crnn.data import Sentences
from crnn.trainer import Trainer, TrainingDiverged


@pytest.fixture
def sentences(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, WORDS, length) for length in (5, 2, 9, 3, 7, 4, 6, 2)]


@pytest.mark.parametrize("optimizer", [optim.SGD(0.1), optim.Adam(0.1)])
def test_nan_stops_with_the_good_weights_back(sentences, optimizer) -> None:
    model, twin = Bigram(WORDS, poison_at=19), Bigram(WORDS)
    watch = Watch()
    trainer = Trainer(model, optimizer=copy.deepcopy(optimizer), schedule=schedules.Constant(), callbacks=[watch])
    with pytest.raises(TrainingDiverged, match=r"nan at step 19 \(epoch 3\).*step 16, epoch 2.*lower learning rate"):
        trainer.fit(Sentences(sentences), epochs=5)
    reference = type(optimizer)(0.1)
    Trainer(twin, optimizer=reference, schedule=schedules.Constant()).fit(Sentences(sentences), epochs=2)
    np.testing.assert_array_equal(model.parameters.flat, twin.parameters.flat)
    assert len(trainer.history) == 2
    assert trainer.history.stopped == "diverged"
    assert watch.calls[-1] == "diverged"


def test_nan_goes_back_to_the_best_validated_weights(sentences) -> None:
    model = Bigram(WORDS, poison_at=70)
    trainer = Trainer(model, optimizer=optim.SGD(2.0), normalise=None, schedule=schedules.Constant())
    valid = Sentences(sentences[:2][::-1])
    with pytest.raises(TrainingDiverged, match="validation loss"):
        trainer.fit(Sentences(sentences[3:]), valid, epochs=50)
    assert trainer.evaluate(valid) == pytest.approx(min(trainer.history.column("valid_loss")), rel=1e-14)


def test_nan_at_once_goes_back_to_the_first_weights(sentences) -> None:
    model = Bigram(WORDS, poison_at=0)
    before = model.parameters.flat.copy()
    with pytest.raises(TrainingDiverged, match=r"step 0.*before training"):
        Trainer(model).fit(Sentences(sentences))
    np.testing.assert_array_equal(model.parameters.flat, before)


@pytest.mark.parametrize("epochs", [1, 3, 6])
@pytest.mark.parametrize("optimizer", [optim.SGD(2.0), optim.SGD(1e38), optim.Adam(1e38)], ids=repr)
def test_weights_that_an_epochs_last_update_spoils_are_not_kept(epochs, optimizer) -> None:
    ids = [np.random.default_rng(i).integers(0, 20, 60) for i in range(8)]
    model = crnn.LanguageModel(20, "rnn", 32, nonlinearity="relu", rng=0)
    trainer = Trainer(model, optimizer=optimizer, truncation=bptt.Full(), schedule=schedules.Constant())
    try:
        trainer.fit(Sentences(ids, batch_size=8), epochs=epochs)
    except TrainingDiverged as error:
        assert re.search("(loss|weight) became", str(error))  # noqa: PT017  either end is fine, NaN is not
    assert np.isfinite(model.parameters.flat).all()
    assert math.isfinite(model.loss(ids[0][:-1], ids[0][1:]))
