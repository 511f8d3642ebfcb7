"""Truncation schemes as values: their definitions, and what is refused. Their gradients are tested with the layers."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from crnn import bptt


@pytest.mark.parametrize(
    ("scheme", "oracle", "first_steps"),
    [
        (bptt.Full(), reference.full(), [0, 0, 0, 0, 0, 0, 0, 0]),
        (bptt.Window(1), reference.window(1), [0, 1, 2, 3, 4, 5, 6, 7]),
        (bptt.Window(3), reference.window(3), [0, 0, 0, 1, 2, 3, 4, 5]),
        (bptt.Chunk(1), reference.chunk(1), [0, 1, 2, 3, 4, 5, 6, 7]),
        (bptt.Chunk(3), reference.chunk(3), [0, 0, 0, 3, 3, 3, 6, 6]),
        (bptt.Chunk(3, 5), reference.chunk(3, 5), [0, 0, 0, 1, 1, 1, 4, 4]),
        (bptt.Chunk(2, 7), reference.chunk(2, 7), [0, 0, 0, 0, 0, 0, 1, 1]),
    ],
)
def test_first_step_is_the_definition(scheme, oracle, first_steps):
    assert [scheme.first_step(t) for t in range(8)] == first_steps
    assert [scheme.first_step(t) for t in range(50)] == [oracle(t) for t in range(50)]


def test_schedules_for_the_kernels():
    assert bptt.Full().schedule == (0, 0, 0)
    assert bptt.Window(4).schedule == (1, 4, 0)
    assert bptt.Chunk(5).schedule == (2, 5, 5)
    assert bptt.Chunk(5, 9).schedule == (2, 5, 9)


def test_schemes_are_values():
    assert bptt.Chunk(4) == bptt.Chunk(4, 4) != bptt.Chunk(4, 5)
    assert bptt.Window(np.int64(4)) == bptt.Window(4)
    assert type(bptt.Window(np.int64(4)).k) is int
    assert len({bptt.Full(), bptt.Full(), bptt.Window(2)}) == 2
    assert repr(bptt.Window(4)) == "Window(k=4)"
    assert repr(bptt.Chunk(4)) == "Chunk(k1=4, k2=4)"
    with pytest.raises(AttributeError):
        bptt.Window(4).k = 5


@pytest.mark.parametrize("bad", [0, -1])
def test_counts_below_one_are_refused(bad):
    with pytest.raises(ValueError, match=f"Window: k must be at least 1, got {bad}"):
        bptt.Window(bad)
    with pytest.raises(ValueError, match=f"Chunk: k1 must be at least 1, got {bad}"):
        bptt.Chunk(bad)
    with pytest.raises(ValueError, match=f"Chunk: k2 must be at least 1, got {bad}"):
        bptt.Chunk(1, bad)


@pytest.mark.parametrize("bad", [2.0, "4", True, np.True_, None, [4]])
def test_counts_that_are_not_whole_numbers_are_refused(bad):
    with pytest.raises(TypeError, match="Window: k must be a whole number"):
        bptt.Window(bad)
    with pytest.raises(TypeError, match="Chunk: k1 must be a whole number"):
        bptt.Chunk(bad)


def test_a_reach_shorter_than_the_chunk_is_refused():
    with pytest.raises(ValueError, match="k2 must be at least k1 = 5, got 4"):
        bptt.Chunk(5, 4)


def test_resolve():
    assert bptt.resolve(None) == bptt.Full()
    window = bptt.Window(3)
    assert bptt.resolve(window) is window
    for bad in (4, "full", bptt.Window, (1, 4)):
        with pytest.raises(TypeError, match=r"truncation must be None, crnn\.bptt\.Full"):
            bptt.resolve(bad)
