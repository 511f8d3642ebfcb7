"""The public layers: RNN, LSTM and GRU. What they share is in `crnn.recurrent`."""

from __future__ import annotations

from typing import Any

import numpy as np

from crnn.recurrent import Recurrent
from crnn.runs import Backward, Run

__all__ = ["GRU", "LAYERS", "LSTM", "RNN", "Backward", "Recurrent", "Run"]


class RNN(Recurrent):
    """Vanilla recurrent network, ``h_t = f(U x_t + W h_{t-1} + b)``.

    Parameters
    ----------
    input_size : int
        Features per step.
    hidden_size : int
        H, units per layer and direction.
    num_layers : int
        Layers on top of each other.
    nonlinearity : {"tanh", "sigmoid", "relu"}
        f.
    bias : bool
        Whether there are bias_ih and bias_hh, which add up.
    dropout : float
        Probability with which a value between two layers is dropped in `forward`; no effect with one layer.
    bidirectional : bool
        Add a second direction that runs from the end; outputs are concatenated.
    dtype : numpy dtype
        float32 or float64.
    rng : numpy.random.Generator, int or None
        Draws the parameters from U(-1/sqrt(H), 1/sqrt(H)), and later the dropout masks.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of those.

    Examples
    --------
    >>> import numpy as np, crnn
    >>> layer = crnn.RNN(3, 4, nonlinearity="relu", rng=0)
    >>> layer
    <crnn.RNN(3, 4, nonlinearity='relu'): 36 parameters>
    >>> ragged = [np.ones((5, 3)), np.ones((2, 3))]
    >>> y, state = layer(ragged)
    >>> [a.shape for a in y], state.shape
    ([(5, 4), (2, 4)], (1, 2, 4))
    """

    kind = "rnn"
    _switches = ("nonlinearity",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            rng=rng,
            nonlinearity=nonlinearity,
        )

    @property
    def nonlinearity(self) -> str:
        """The cell's function f."""
        return self._nonlinearity


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; no peepholes).

    ``c_t = f_t * c_{t-1} + i_t * g_t``, ``h_t = o_t * tanh(c_t)``. States are tuples ``(h, c)``; the gates stand in
    the order i, f, g, o. Parameters are those of `RNN`, without nonlinearity.

    Examples
    --------
    Three steps of gradient descent on the distance between the last state and a target:

    >>> import numpy as np, crnn
    >>> layer = crnn.LSTM(3, 4, rng=0, dtype=np.float64)
    >>> x, target = np.ones((2, 5, 3)), 0.5
    >>> for step in range(3):
    ...     run = layer.forward(x)
    ...     h, c = run.state
    ...     print(f"{((h - target) ** 2).sum():.3f}")
    ...     gradients = run.backward(None, (2 * (h - target), None), truncation=crnn.bptt.Window(4)).params
    ...     for name, array in layer.params.items():
    ...         array -= 0.1 * gradients[name]
    0.739
    0.407
    0.303
    """

    kind = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            rng=rng,
        )


class GRU(Recurrent):
    """Gated recurrent unit, in all four forms in use. The gates stand in the order r, z, n.

    Parameters
    ----------
    reset_after : bool
        False (Cho et al. 2014): the reset gate multiplies the state before the product, ``W_n (r * h)``. True (PyTorch,
        Keras 3, cuDNN): it multiplies the product, ``r * (W_n h + b_hn)``.
    z_weighs : {"candidate", "state"}
        ``"candidate"`` (Chung et al. 2014): ``h_t = (1 - z) * h_{t-1} + z * n``. ``"state"`` (PyTorch, Keras, ONNX):
        ``h_t = z * h_{t-1} + (1 - z) * n``.

    The other parameters are those of `RNN`, without nonlinearity.

    Examples
    --------
    >>> import numpy as np, crnn
    >>> layer = crnn.GRU(3, 4, 2, reset_after=True, z_weighs="state", rng=0)     # as in PyTorch
    >>> state = None
    >>> for frame in np.ones((5, 3)):
    ...     y, state = layer.step(frame, state)
    >>> y.shape, state.shape
    ((4,), (2, 1, 4))
    """

    kind = "gru"
    _switches = ("reset_after", "z_weighs")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = False,
        z_weighs: str = "candidate",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            rng=rng,
            reset_after=reset_after,
            z_weighs=z_weighs,
        )

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate multiplies the recurrent product instead of the state."""
        return self._reset_after

    @property
    def z_weighs(self) -> str:
        """What the update gate z weighs: the candidate or the old state."""
        return self._z_weighs


LAYERS: dict[str, type[Recurrent]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
