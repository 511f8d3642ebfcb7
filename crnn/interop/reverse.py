"""A layer that reads its input backwards: ONNX has such nodes, PyTorch and Keras users build them by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crnn.interop._weights import Layer, kind_of
from crnn.packed import Batch, read_form

__all__ = ["Reversed"]


class Reversed:
    """A one-directional layer run from each sequence's last step to its first, for inference.

    Parameters
    ----------
    layer
        The layer that computes: `num_layers` may be anything, `bidirectional` must be False.

    Attributes
    ----------
    layer
        The same object; its parameters are live.

    Raises
    ------
    ValueError
        The layer is bidirectional.
    TypeError
        `layer` is not a crnn layer.

    Examples
    --------
    >>> import numpy as np, crnn
    >>> x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    >>> layer = crnn.RNN(3, 4, rng=0)
    >>> y, state = crnn.interop.Reversed(layer)(x)
    >>> bool((y == layer(x[:, ::-1])[0][:, ::-1]).all())
    True
    """

    def __init__(self, layer: Layer) -> None:
        kind_of(layer)
        if layer.bidirectional:
            raise ValueError("layer: a bidirectional layer already reads both ways, wanted one direction")
        self.layer = layer

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Outputs in the order of the input, and the state after the first step.

        Parameters
        ----------
        x, state, lengths
            As the layer takes them: (batch, time, features), (time, features), or a list of (time_i, features);
            `state` enters at each sequence's last step.

        Returns
        -------
        tuple
            y in the form of x: y[..., t, :] has seen steps t and later; and the final state.
        """
        batch = read_form(x, lengths)
        y, final = self.layer(_flipped(x, batch), state, lengths)
        return _flipped(y, batch), final

    def __repr__(self) -> str:
        return f"Reversed({self.layer!r})"


def _flipped(x: Any, batch: Batch) -> Any:
    """Every sequence in reverse; padding behind a sequence's length stays where it is."""
    if batch.form == "list":
        return [np.asarray(sequence)[::-1] for sequence in x]
    array: npt.NDArray[Any] = np.asarray(x)
    ends = batch.geometry.lengths[:, None]
    time = np.arange(array.shape[-2])
    index = np.where(time < ends, ends - 1 - time, time)
    return array[index[0]] if batch.form == "single" else np.take_along_axis(array, index[:, :, None], axis=1)
