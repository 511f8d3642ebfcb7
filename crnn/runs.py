"""What a training call gives: `Run`, one forward pass that can be propagated back, and `Backward`, its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crnn import _kernels, bptt
from crnn.packed import Batch
from crnn.parameters import Parameters

if TYPE_CHECKING:
    from crnn.recurrent import Recurrent

__all__ = ["Backward", "Run", "State"]

State = np.ndarray | tuple[np.ndarray, np.ndarray]


class Backward:
    """Gradients of one backward pass.

    Attributes
    ----------
    input : numpy.ndarray or list of numpy.ndarray
        With respect to x, in the form of x; zero beyond a sequence's length.
    state : numpy.ndarray or tuple of numpy.ndarray
        With respect to the initial state, (layers*directions, batch, hidden); ``(h, c)`` for an LSTM.
    params : Parameters
        With respect to the parameters: a dict with the names and shapes of ``layer.params``.
    """

    __slots__ = ("input", "params", "state")

    def __init__(self, input: Any, state: State, params: Parameters) -> None:  # noqa: A002
        self.input = input
        self.state = state
        self.params = params

    def __repr__(self) -> str:
        return f"<crnn.layers.Backward: gradients of input, state and {len(self.params)} parameter tensors>"


class Run:
    """One forward pass that remembers what its backward pass needs.

    Attributes
    ----------
    output : numpy.ndarray or list of numpy.ndarray
        Hidden states of the last layer, in the form of x, with directions*hidden features. Several dense sequences come
        back time-major in memory (not C-contiguous), but those of narrow layers one after the other.
    state : numpy.ndarray or tuple of numpy.ndarray
        The state after each sequence's last step, (layers*directions, batch, hidden); ``(h, c)`` for an LSTM.
    """

    __slots__ = ("_batch", "_layer", "_tape", "output", "state")

    def __init__(self, layer: Recurrent, batch: Batch, tape: Any, output: Any, state: State) -> None:
        self._layer = layer
        self._batch = batch
        self._tape = tape
        self.output = output
        self.state = state

    def backward(self, d_output: Any, d_state: Any = None, truncation: bptt.Truncation | None = None) -> Backward:
        """Back-propagate through time.

        The pass uses the layer's parameters as they are now: change them only afterwards. It may be called again, with
        other gradients or another truncation.

        Parameters
        ----------
        d_output : array, list of arrays or None
            Gradient with respect to `output`, in its form; values beyond a sequence's length are ignored. None means
            zero, and then `d_state` is needed.
        d_state : array or tuple of arrays, optional
            Gradient with respect to `state`, in its form. None means zero. For an LSTM either part may be None.
        truncation : crnn.bptt.Full, crnn.bptt.Window or crnn.bptt.Chunk, optional
            How far back a loss reaches; None is `Full`. The final state counts as an output of the last step.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit or holds values that are not finite, if both gradients are None, or if the layer
            is bidirectional and `truncation` is not `Full`.
        """
        layer, batch = self._layer, self._batch
        geometry = batch.geometry
        schedule = bptt.schedule(truncation, layer.bidirectional)
        dy = None
        if d_output is not None:
            dy = batch.read(d_output, layer.output_size, layer.dtype, "d_output")
        elif d_state is None:
            raise ValueError("d_output and d_state are both None: there is nothing to propagate back")
        dh_n, dc_n = layer._read_state(d_state, geometry, "d_state")
        params = layer.params.blank()
        dx, d_input = batch.results(layer.input_size, layer.dtype, self._tape is not None and self._tape.in_halves)
        try:
            _, dh0, dc0 = layer._backward_packed(
                self._tape, geometry, dy, dh_n, dc_n, schedule, layer._kernel_list(params), dx=dx
            )
        except _kernels.NotFinite as found:
            batch.refuse(dy, found.row, "d_output")
        assert dh0 is not None
        return Backward(d_input, layer._write_state(dh0, dc0, geometry), params)

    def __repr__(self) -> str:
        geometry = self._batch.geometry
        return f"<crnn.layers.Run: {geometry.batch_size} sequences, {geometry.rows} steps in all, of {self._layer!r}>"
