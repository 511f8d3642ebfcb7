"""Parameters that live in a read-only memory map instead of a buffer of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from crnn.parameters import Parameters, Spec

__all__ = ["MappedParameters"]


class MappedParameters(Parameters):
    """A dict of read-only views; for inference.

    Everything that needs one writable buffer (optimisers, `part`) refuses; `copy`, pickling and `like` give ordinary
    parameters, so a layer can still be copied into memory of its own, or asked for gradients.

    Parameters
    ----------
    arrays
        Name -> array of `dtype`, C-contiguous. Made read-only.
    dtype
        float32 or float64.
    """

    __slots__ = ("_specs",)

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._specs = tuple(Spec(name, array.shape) for name, array in arrays.items())
        for name, array in arrays.items():
            view = array.view()
            view.flags.writeable = False
            dict.__setitem__(self, name, view)

    @property  # type: ignore[misc]
    def flat(self) -> npt.NDArray[Any]:
        """Refused: the weights stand where the file has them."""
        raise ValueError(
            "these parameters are mapped from a file, read-only; copy() gives a buffer that can be written"
        )

    @property
    def specs(self) -> tuple[Spec, ...]:
        return self._specs

    def storage(self, name: str) -> npt.NDArray[Any]:
        return self[name]

    def like(self) -> Parameters:
        return Parameters(self._specs, self.dtype)

    def blank(self) -> Parameters:
        return self.like()

    def copy(self) -> Parameters:
        twin = self.like()
        for name, array in self.items():
            twin[name][...] = array
        return twin
