"""Inverted dropout: what is kept is scaled up, so that nothing changes where nothing is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["draw_mask"]


def draw_mask(rng: np.random.Generator, dropout: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """0 with the probability `dropout`, else 1 / (1 - dropout); drawn as float32, so that both dtypes get the same."""
    keep: np.ndarray = rng.random(shape, np.float32) >= dropout
    return keep * dtype.type(1.0 / (1.0 - dropout))
