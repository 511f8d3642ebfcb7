"""Checks of numbers against the ranges that training wants, each with one clear error."""

from __future__ import annotations

import math
from typing import Any

from .arguments import number

__all__ = ["fraction", "instance", "not_negative", "optional_positive", "positive"]


def _finite(name: str, value: Any) -> float:
    result = number(value, name)
    if not math.isfinite(result):
        raise ValueError(f"{name}: got {value!r}, wanted a finite number")
    return result


def positive(name: str, value: Any) -> float:
    """A finite number above zero."""
    result = _finite(name, value)
    if result <= 0.0:
        raise ValueError(f"{name}: got {value!r}, wanted a number above 0")
    return result


def optional_positive(name: str, value: Any) -> float | None:
    """A finite number above zero, or None."""
    return None if value is None else positive(name, value)


def not_negative(name: str, value: Any) -> float:
    """A finite number of at least zero."""
    result = _finite(name, value)
    if result < 0.0:
        raise ValueError(f"{name}: got {value!r}, wanted at least 0")
    return result


def fraction(name: str, value: Any, *, one: bool = False, zero: bool = True) -> float:
    """A number between 0 and 1; the ends belong to it where `zero` and `one` say so."""
    result = _finite(name, value)
    if not (0.0 <= result <= 1.0) or (result == 0.0 and not zero) or (result == 1.0 and not one):
        ends = f"{'0 <=' if zero else '0 <'} {name} {'<= 1' if one else '< 1'}"
        raise ValueError(f"{name}: got {value!r}, wanted {ends}")
    return result


def instance(name: str, value: Any, kind: type[Any]) -> Any:
    """An instance of a public class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {value!r}, wanted an instance of {kind.__module__}.{kind.__name__}")
    return value
