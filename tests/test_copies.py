"""Copies of layers, models and streams, by `copy` and by pickle: what is theirs alone and what comes along."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from layer_cases import make

import crnn


class Tagged(crnn.LanguageModel):
    """A user's subclass."""


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), Tagged.copy])
def test_copies_of_models_keep_class_and_attributes_and_draw_on_their_own(duplicate) -> None:
    model = Tagged(7, "gru", 4, 2, dropout=0.5, rng=0)
    model.note = ["mine"]  # type: ignore[attr-defined]
    twin = duplicate(model)
    assert type(twin) is Tagged
    assert twin.note == ["mine"]
    assert twin.rng is not model.rng
    assert twin.rng.random() == model.rng.random()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_layers_keep_attributes_and_draw_on_their_own(duplicate):
    class_ = type(make("gru"))
    layer = class_(3, 4, 2, dropout=0.5, rng=0)
    layer.note = ["mine"]
    twin = duplicate(layer)
    assert type(twin) is class_
    assert twin.note == ["mine"]
    x = np.ones((2, 5, 3), np.float32)
    first, second = layer.forward(x).output, twin.forward(x).output
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_deep_copies_have_weights_of_their_own(duplicate, rng):
    layer, model = make("lstm"), crnn.LanguageModel(5, "gru", 3, rng=0)
    for owner, stream, x in ((layer, layer.stream(2), rng.normal(size=(2, 3))), (model, model.stream(2), [1, 4])):
        stream.step(x)
        twin_owner, twin = duplicate((owner, stream))
        assert twin_owner is (twin.layer if owner is layer else twin.model)
        assert twin_owner is not owner
        next(iter(owner.params.values()))[...] += 1  # not in the twin
        y = twin.step(x)
        next(iter(owner.params.values()))[...] -= 1
        np.testing.assert_allclose(stream.step(x), y, rtol=1e-5)
