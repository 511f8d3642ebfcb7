"""A layer read backwards: every form of input, against flipping by hand."""

from __future__ import annotations

import numpy as np
import pytest

import crnn
from crnn.interop import Reversed


@pytest.fixture
def layer():
    return crnn.LSTM(3, 4, 2, dtype=np.float64, rng=5)


def test_arrays(layer, rng):
    x = rng.normal(size=(2, 6, 3))
    state = tuple(rng.normal(size=(2, 2, 4)) for _ in range(2))
    y, final = Reversed(layer)(x, state)
    wanted, wanted_final = layer(x[:, ::-1], state)
    assert (y == wanted[:, ::-1]).all()
    assert all((a == b).all() for a, b in zip(final, wanted_final, strict=True))
    assert (Reversed(layer)(x[0])[0] == layer(x[0, ::-1])[0][::-1]).all()


def test_lists_and_lengths(layer, rng):
    lengths = [4, 6, 0, 1]
    x = rng.normal(size=(4, 6, 3))
    sequences = [x[i, :n] for i, n in enumerate(lengths)]
    y, (h, _) = Reversed(layer)(x, lengths=lengths)
    as_list, (h_list, _) = Reversed(layer)(sequences)
    for i, n in enumerate(lengths):
        wanted, (h_alone, _) = layer(sequences[i][::-1])
        assert np.abs(as_list[i] - wanted[::-1]).max(initial=0) < 1e-14
        assert np.abs(y[i, :n] - wanted[::-1]).max(initial=0) < 1e-14
        assert not y[i, n:].any()
        assert np.abs(h[:, i] - h_alone[:, 0]).max() < 1e-14
    assert (h == h_list).all()
    single, _ = Reversed(layer)(x[0], lengths=[4])
    assert np.abs(single[:4] - as_list[0]).max() < 1e-14


def test_wrong_arguments(layer):
    with pytest.raises(ValueError, match="bidirectional layer already reads both ways"):
        Reversed(crnn.GRU(3, 4, bidirectional=True))
    with pytest.raises(TypeError, match="layer: got int"):
        Reversed(3)
    with pytest.raises(ValueError, match="x must be"):
        Reversed(layer)(np.zeros(3))
    with pytest.raises(ValueError, match="lengths"):
        Reversed(layer)(np.zeros((2, 4, 3)), lengths=[1, 2, 3])
    with pytest.raises(ValueError, match="lengths"):
        Reversed(layer)(np.zeros((2, 4, 3)), lengths=[1, 9])
    assert repr(Reversed(layer)) == f"Reversed({layer!r})"
