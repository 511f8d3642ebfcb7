"""Checks of single arguments, with errors that name the argument, what came and what was wanted."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

__all__ = ["as_generator", "choice", "flag", "number", "whole_number"]


def whole_number(value: object, argument: str, least: int = 1) -> int:
    """`value` as an int of at least `least` (ValueError); TypeError for anything but whole numbers, bools included."""
    if isinstance(value, (bool, np.bool)):
        raise TypeError(f"{argument} must be a whole number, not a bool")
    try:
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{argument} must be a whole number, not {type(value).__name__}") from None
    if result < least:
        raise ValueError(f"{argument} must be at least {least}, got {result}")
    return result


def number(value: object, argument: str) -> float:
    """`value` as a float; TypeError unless it is a real number, ValueError beyond the range of floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{argument} must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{argument} must be a number within the range of floats") from None


def as_generator(value: object, argument: str) -> np.random.Generator:
    """A generator itself, or a new one from a seed (None: from the system); else TypeError or ValueError."""
    try:
        return np.random.default_rng(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{argument} must be a seed or a numpy.random.Generator, got {value!r}") from None
    except ValueError as error:
        raise ValueError(f"{argument} must be a seed or a numpy.random.Generator, got {value!r} ({error})") from None


def flag(value: object, argument: str) -> bool:
    """`value` as a bool; TypeError unless it is one."""
    if not isinstance(value, (bool, np.bool)):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return bool(value)


def choice(value: object, choices: Sequence[str], argument: str) -> str:
    """`value` if it is one of `choices`; else ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
