"""Checks of single arguments."""

from __future__ import annotations

import numpy as np
import pytest

from crnn.arguments import as_generator, choice, flag, number, whole_number


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_whole_numbers_become_ints(value):
    assert whole_number(value, "n") == 3
    assert type(whole_number(value, "n")) is int


@pytest.mark.parametrize("value", [3.0, "3", None, True, np.True_, [3], np.array([3])])
def test_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match="n must be a whole number, not"):
        whole_number(value, "n")


def test_least():
    assert whole_number(0, "n", 0) == 0
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        whole_number(0, "n")
    with pytest.raises(ValueError, match="n must be at least 5, got 4"):
        whole_number(4, "n", 5)


def test_number():
    assert number(np.float32(0.5), "p") == 0.5
    assert type(number(1, "p")) is float
    for bad in ("0.5", None, True, 1j, [0.5]):
        with pytest.raises(TypeError, match="p must be a number, not"):
            number(bad, "p")


def test_flag():
    assert flag(np.True_, "b") is True
    assert flag(False, "b") is False
    for bad in (1, 0, "no", None):
        with pytest.raises(TypeError, match="b must be True or False, got"):
            flag(bad, "b")


def test_choice():
    assert choice("a", ("a", "b"), "c") == "a"
    for bad in ("A", None, 1, ["a"]):
        with pytest.raises(ValueError, match="c must be one of 'a', 'b', got"):
            choice(bad, ("a", "b"), "c")


def test_generators():
    generator = np.random.default_rng(3)
    assert as_generator(generator, "rng") is generator
    assert as_generator(3, "rng").random() == generator.random()
    with pytest.raises(TypeError, match=r"rng must be a seed or a numpy.random.Generator, got 'x'"):
        as_generator("x", "rng")
    with pytest.raises(ValueError, match="rng must be a seed"):
        as_generator(-1, "rng")
