"""Checks of numbers: what passes comes back as it should, everything else is named."""

from __future__ import annotations

import numpy as np
import pytest

from crnn import ranges


def test_what_passes() -> None:
    assert ranges.positive("x", np.float32(0.5)) == 0.5
    assert isinstance(ranges.positive("x", 3), float)
    assert ranges.optional_positive("x", None) is None
    assert ranges.optional_positive("x", 2) == 2.0
    assert ranges.not_negative("x", 0) == 0.0
    assert ranges.fraction("x", 0.0) == 0.0
    assert ranges.fraction("x", 1, one=True) == 1.0
    assert ranges.instance("x", "text", str) == "text"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ranges.positive("rate", 0), ValueError, "rate: got 0, wanted a number above 0"),
        (lambda: ranges.positive("rate", float("inf")), ValueError, "rate: got inf, wanted a finite number"),
        (lambda: ranges.positive("rate", "1"), TypeError, "rate"),
        (lambda: ranges.positive("rate", True), TypeError, "rate"),
        (lambda: ranges.optional_positive("clip", -1.0), ValueError, "clip"),
        (lambda: ranges.not_negative("decay", -1e-9), ValueError, "decay: got -1e-09, wanted at least 0"),
        (lambda: ranges.fraction("p", 1.0), ValueError, "p: got 1.0, wanted 0 <= p < 1"),
        (lambda: ranges.fraction("p", 0.0, zero=False, one=True), ValueError, "wanted 0 < p <= 1"),
        (lambda: ranges.fraction("p", float("nan")), ValueError, "p"),
        (lambda: ranges.instance("x", 3, str), TypeError, "x: got 3, wanted an instance of builtins.str"),
    ],
)
def test_what_does_not(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
