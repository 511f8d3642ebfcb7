"""What a stream hands out is the caller's, whatever the caller does with it; and what it keeps for itself is little."""

from __future__ import annotations

import numpy as np
import pytest

import crnn


def reshape(y: np.ndarray) -> None:
    y.shape = (y.size,)


def retype(y: np.ndarray) -> None:
    y.dtype = np.int32


def lock(y: np.ndarray) -> None:
    y.flags.writeable = False


def shrink(y: np.ndarray) -> None:
    y.resize((1, 1), refcheck=False)


def swap(y: np.ndarray) -> None:
    y.shape = y.shape[::-1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of setting a shape or a dtype: it is what callers did
@pytest.mark.parametrize("change", [reshape, retype, lock, shrink, swap])
@pytest.mark.parametrize("layered", [True, False], ids=["layer", "model"])
def test_an_output_that_was_changed_in_place_is_not_handed_out_again(change, layered, rng) -> None:
    owner = crnn.GRU(3, 4, rng=1) if layered else crnn.LanguageModel(7, "lstm", 5, rng=1)
    stream, twin = owner.stream(2), owner.stream(2)
    steps = rng.normal(size=(12, 2, 3)).astype(np.float32) if layered else rng.integers(0, 7, (12, 2))
    for x in steps:
        y, expected = stream.step(x), twin.step(x).copy()
        assert y.dtype == np.float32
        assert y.shape == expected.shape
        assert y.flags.writeable
        np.testing.assert_array_equal(y, expected)
        change(y)
        del y


def test_steps_of_many_different_numbers_of_rows_keep_little(rng) -> None:
    layer = crnn.GRU(3, 4, rng=1)
    stream, twin = layer.stream(16), layer.stream(16)
    x = rng.normal(size=(3, 16, 3)).astype(np.float32)
    for part in x:
        for n in (5, 1, 15, 5, 9, 2, 11, 7, 5):
            rows = rng.permutation(16)[:n]
            expected = twin.state
            y, after = layer.step(part[rows], expected[:, rows])
            np.testing.assert_allclose(stream.step(part[rows], rows=rows), y, rtol=1e-6, atol=1e-6)
            expected[:, rows] = after
            twin.state = expected
            assert len(stream._some) <= 4
