"""Update rules: SGD (with momentum), Adagrad, RMSprop, Adam and AdamW, in PyTorch's formulas.

Every rule works on the flat buffer of `Parameters`. Parameters whose gradient touches few rows (embeddings, one-hot
input weights) may come as rows instead of as a dense array; the result is that of the dense rule with zeros in the
rows not named: their moments decay and their weights move with them. (PyTorch's sparse optimisers skip those rows.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import _kernels, ranges
from .arguments import whole_number
from .parameters import Parameters

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_norm", "clip_value", "global_norm"]

Array = NDArray[Any]
Rows = Mapping[str, tuple[NDArray[np.int64], Array]]
"""Row-sparse gradients: name -> (sorted unique row numbers (n,), gradient rows (n, width)) of `Parameters.storage`."""

_BLOCK = 1 << 16  # elements handled at a time where a temporary is needed: stays within the second-level cache


class Optimizer(ABC):
    """An update rule and its state.

    Parameters
    ----------
    learning_rate
        The base rate; a schedule may give `step` another one.
    weight_decay
        What the decay means is up to the rule.

    Attributes
    ----------
    learning_rate, weight_decay
        As given.
    steps
        Updates made so far.
    state
        Moment name -> `Parameters` twin; empty before the first step and for rules without memory.

    Raises
    ------
    TypeError, ValueError
        A rate that is not positive and finite, or a negative weight decay.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay")
    _decay_joins_gradient: ClassVar[bool] = True

    def __init__(self, learning_rate: float, weight_decay: float = 0.0) -> None:
        self.learning_rate = ranges.positive("learning_rate", learning_rate)
        self.weight_decay = ranges.not_negative("weight_decay", weight_decay)
        self.steps = 0
        self.state: dict[str, Parameters] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.options)})"

    @property
    def is_plain_sgd(self) -> bool:
        """Whether the rule is p -= rate * g and nothing else, so that an update may be fused into the gradient."""
        return False

    def prepare(self, parameters: Parameters) -> None:
        """Allocate the moments for these parameters, unless they are there already."""
        if not self.state and self.moments:
            self.state = {name: self._initial(parameters) for name in self.moments}
        for name, twin in self.state.items():
            if not twin.is_twin(parameters):
                raise ValueError(
                    f"parameters: got {_brief(parameters)}, but {name} of this optimiser belongs to {_brief(twin)}; "
                    "make a new optimiser for a new model"
                )

    def step(
        self, parameters: Parameters, gradients: Parameters, rows: Rows | None = None, rate: float | None = None
    ) -> None:
        """Update `parameters` in place.

        Parameters
        ----------
        parameters
            The weights.
        gradients
            Their twin (`Parameters.like`). May be changed (weight decay is added to it).
        rows
            Row-sparse gradients; for the names in it `gradients` is neither read nor written.
        rate
            The learning rate of this step; by default `learning_rate`.

        Raises
        ------
        TypeError, ValueError
            Gradients that are not a twin of the parameters, moments of another model, or a rate that is negative or not
            finite. Nothing has changed then.
        """
        if not parameters.is_twin(gradients):
            kind = ValueError if isinstance(gradients, Parameters) else TypeError
            raise kind(f"gradients: got {_brief(gradients)}, wanted the twin of {_brief(parameters)}")
        now = self.learning_rate if rate is None else ranges.not_negative("rate", rate)
        parameters.check_writable()
        self.prepare(parameters)
        self.steps += 1
        for part in dense_parts(parameters, rows):
            self._update(parameters.flat[part], gradients.flat[part], part, now)
        for name, (ids, values) in (rows or {}).items():
            if self.weight_decay and self._decay_joins_gradient:
                self._update_decayed_rows(parameters, name, ids, values, now)
            else:
                moments = [twin.storage(name) for twin in self.state.values()]
                self._rows(parameters.storage(name), ids, values, moments, now)

    def state_dict(self) -> dict[str, Any]:
        """`{"steps": int, "moments": {moment: {parameter: array}}}`; the arrays are live views in public shapes."""
        return {"steps": self.steps, "moments": {name: dict(twin) for name, twin in self.state.items()}}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Parameters) -> None:
        """Take up what `state_dict` gave, for a model with these parameters.

        Raises
        ------
        TypeError, ValueError
            The moments are another rule's, or their names or shapes are another model's; or the steps are no number of
            updates. The optimiser is then as it was.
        """
        if set(state) != {"steps", "moments"}:
            raise ValueError(f"state of {type(self).__name__}: got the keys {sorted(state)}, wanted steps and moments")
        steps = whole_number(state["steps"], "steps", 0)
        moments = state["moments"]
        if moments and set(moments) != set(self.moments):
            raise ValueError(
                f"state of {type(self).__name__}: got the moments {sorted(moments)}, wanted {sorted(self.moments)}"
            )
        twins = {}
        for name, arrays in moments.items():
            twin = twins[name] = parameters.like()
            infinite = {}
            if name == "squares":  # of a gradient above 1e19 in float32: its element stands still from there on
                infinite = {n: np.isposinf(array) for n, array in arrays.items()}
                arrays = {n: np.where(infinite[n], 0.0, array) for n, array in arrays.items()}
            twin.assign(arrays)
            for n, where in infinite.items():
                twin[n][where] = np.inf
            if name == "squares" and twins[name].flat.min() < 0.0:
                raise ValueError(f"state of {type(self).__name__}: got negative squares, wanted sums of squares")
        self.state = {name: twins[name] for name in self.moments} if twins else {}
        self.steps = steps

    def _initial(self, parameters: Parameters) -> Parameters:
        return parameters.like()

    @abstractmethod
    def _dense(self, p: Array, g: Array, moments: list[Array], rate: float) -> None:
        """The rule on 1-D arrays of equal length."""

    @abstractmethod
    def _rows(self, p: Array, ids: NDArray[np.int64], g: Array, moments: list[Array], rate: float) -> None:
        """The rule on 2-D stored arrays whose gradient is zero outside the rows `ids`."""

    def _update(self, p: Array, g: Array, part: slice, rate: float) -> None:
        if self.weight_decay and self._decay_joins_gradient:
            for first in range(0, len(p), _BLOCK):
                block = slice(first, first + _BLOCK)
                g[block] += self.weight_decay * p[block]
        self._dense(p, g, [twin.flat[part] for twin in self.state.values()], rate)

    def _update_decayed_rows(
        self, parameters: Parameters, name: str, ids: NDArray[np.int64], values: Array, rate: float
    ) -> None:
        """L2 decay gives every row a gradient; build it for a few rows at a time, never for the whole array."""
        weights = parameters.storage(name)
        start, stride, width = _place(parameters, weights)
        height = max(1, _BLOCK // stride)
        for first in range(0, len(weights), height):
            last = min(first + height, len(weights))
            part = slice(start + first * stride, start + last * stride)
            p = parameters.flat[part]
            g = (self.weight_decay * p).astype(p.dtype, copy=False)
            low, high = np.searchsorted(ids, [first, last])
            g.reshape(last - first, stride)[ids[low:high] - first, :width] += values[low:high]
            self._dense(p, g, [twin.flat[part] for twin in self.state.values()], rate)


class SGD(Optimizer):
    """Stochastic gradient descent.

    v = momentum * v + g (+ weight_decay * p);  p -= rate * v.  Without momentum p -= rate * g.

    Parameters
    ----------
    learning_rate
        Base rate.
    momentum
        In [0, 1).
    weight_decay
        L2 penalty: its gradient weight_decay * p joins g.
    """

    options = ("learning_rate", "momentum", "weight_decay")

    def __init__(self, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate, weight_decay)
        self.momentum = ranges.fraction("momentum", momentum)
        if self.momentum:
            self.moments = ("momentum",)  # type: ignore[misc]

    @property
    def is_plain_sgd(self) -> bool:
        return self.momentum == 0.0 and self.weight_decay == 0.0

    def _dense(self, p: Array, g: Array, moments: list[Array], rate: float) -> None:
        if moments:
            _kernels.momentum(p, g, moments[0], rate, self.momentum)
        else:
            _kernels.sgd(p, g, rate)

    def _rows(self, p: Array, ids: NDArray[np.int64], g: Array, moments: list[Array], rate: float) -> None:
        if moments:
            _kernels.momentum_rows(p, ids, g, moments[0], rate, self.momentum)
        else:
            _kernels.sgd_rows(p, ids, g, rate)


class Adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011): s += g^2;  p -= rate * g / (sqrt(s) + eps).

    Parameters
    ----------
    learning_rate
        Base rate.
    eps
        Added to the root.
    initial
        What s starts from.
    weight_decay
        L2 penalty: its gradient joins g.
    """

    moments = ("squares",)
    options = ("learning_rate", "eps", "initial", "weight_decay")

    def __init__(
        self, learning_rate: float = 0.01, eps: float = 1e-10, initial: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.eps = _epsilon(eps)
        self.initial = ranges.not_negative("initial", initial)

    def _initial(self, parameters: Parameters) -> Parameters:
        twin = parameters.like()
        for view in twin.values():
            view[...] = self.initial
        return twin

    def _dense(self, p: Array, g: Array, moments: list[Array], rate: float) -> None:
        _kernels.adagrad(p, g, moments[0], rate, self.eps)

    def _rows(self, p: Array, ids: NDArray[np.int64], g: Array, moments: list[Array], rate: float) -> None:
        _kernels.adagrad_rows(p, ids, g, moments[0], rate, self.eps)


class RMSprop(Optimizer):
    """RMSprop (Hinton, 2012): s = alpha * s + (1 - alpha) * g^2;  p -= rate * g / (sqrt(s) + eps).

    Parameters
    ----------
    learning_rate
        Base rate.
    alpha
        Memory of the squares, in [0, 1).
    eps
        Added to the root.
    weight_decay
        L2 penalty: its gradient joins g.
    """

    moments = ("squares",)
    options = ("learning_rate", "alpha", "eps", "weight_decay")

    def __init__(
        self, learning_rate: float = 0.01, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.alpha = ranges.fraction("alpha", alpha)
        self.eps = _epsilon(eps)

    def _dense(self, p: Array, g: Array, moments: list[Array], rate: float) -> None:
        _kernels.rmsprop(p, g, moments[0], rate, self.alpha, self.eps)

    def _rows(self, p: Array, ids: NDArray[np.int64], g: Array, moments: list[Array], rate: float) -> None:
        _kernels.rmsprop_rows(p, ids, g, moments[0], rate, self.alpha, self.eps)


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015), bias-corrected.

    m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g^2;
    p -= rate / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps).

    Parameters
    ----------
    learning_rate
        Base rate.
    betas
        (beta1, beta2), each in [0, 1).
    eps
        Added to the root.
    weight_decay
        L2 penalty: its gradient joins g. (`AdamW` decays the weights instead.)
    """

    moments = ("mean", "squares")
    options = ("learning_rate", "betas", "eps", "weight_decay")

    def __init__(
        self,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas: got {betas!r}, wanted two numbers")
        self.betas = (ranges.fraction("betas[0]", betas[0]), ranges.fraction("betas[1]", betas[1]))
        self.eps = _epsilon(eps)

    @property
    def _decoupled_decay(self) -> float:
        return 0.0

    def _dense(self, p: Array, g: Array, moments: list[Array], rate: float) -> None:
        m, v = moments
        _kernels.adam(p, g, m, v, rate, *self.betas, self.eps, self.steps, self._decoupled_decay)

    def _rows(self, p: Array, ids: NDArray[np.int64], g: Array, moments: list[Array], rate: float) -> None:
        m, v = moments
        _kernels.adam_rows(p, ids, g, m, v, rate, *self.betas, self.eps, self.steps, self._decoupled_decay)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019): p *= 1 - rate * weight_decay, then Adam's step."""

    _decay_joins_gradient = False

    def __init__(
        self,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(learning_rate, betas, eps, weight_decay)

    @property
    def _decoupled_decay(self) -> float:
        return self.weight_decay


def global_norm(gradients: Parameters, rows: Rows | None = None) -> float:
    """The Euclidean norm of all gradients together, accumulated in float64 in a fixed order."""
    total = sum(_kernels.sum_squares(gradients.flat[part]) for part in dense_parts(gradients, rows))
    total += sum(_kernels.sum_squares(values.reshape(-1)) for _, values in (rows or {}).values())
    return math.sqrt(total)


def clip_norm(gradients: Parameters, rows: Rows | None, limit: float) -> float:
    """Scale all gradients by limit / norm where their global norm exceeds `limit` (Pascanu et al., 2013).

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError
        A limit that is not positive and finite.
    """
    limit = ranges.positive("limit", limit)
    norm = global_norm(gradients, rows)
    if norm > limit:
        factor = limit / norm
        for part in dense_parts(gradients, rows):
            _kernels.scale(gradients.flat[part], factor)
        for _, values in (rows or {}).values():
            _kernels.scale(values.reshape(-1), factor)
    return norm


def clip_value(gradients: Parameters, rows: Rows | None, limit: float) -> None:
    """Clip every gradient element into [-limit, limit].

    Raises
    ------
    TypeError, ValueError
        A limit that is not positive and finite.
    """
    limit = ranges.positive("limit", limit)
    for part in dense_parts(gradients, rows):
        np.clip(gradients.flat[part], -limit, limit, out=gradients.flat[part])
    for _, values in (rows or {}).values():
        np.clip(values, -limit, limit, out=values)


def _epsilon(eps: float) -> float:
    """What is added to a root: above zero in float32 too, since padding and weights that never had a gradient divide
    zero by it alone."""
    smallest = float(np.finfo(np.float32).tiny)
    result = ranges.not_negative("eps", eps)
    if result < smallest:
        raise ValueError(f"eps: got {eps!r}, wanted at least {smallest:.2g}: weights whose gradient is 0 are 0 / eps")
    return result


def _brief(parameters: object) -> str:
    if not isinstance(parameters, Parameters):
        return f"a {type(parameters).__name__}"
    shapes = ", ".join(f"{name} {view.shape}" for name, view in list(parameters.items())[:3])
    return f"Parameters of {parameters.size:,} {parameters.dtype} values ({shapes}, ...)"


def dense_parts(parameters: Parameters, rows: Rows | None) -> list[slice]:
    """The spans of the flat buffer that no name in `rows` covers, in order."""
    covered = []
    for name in rows or ():
        stored = parameters.storage(name)
        start, stride, _ = _place(parameters, stored)
        covered.append((start, start + stride * len(stored)))
    parts, first = [], 0
    for start, stop in [*sorted(covered), (parameters.flat.size, parameters.flat.size)]:
        if start > first:
            parts.append(slice(first, start))
        first = stop
    return parts


def _place(parameters: Parameters, stored: Array) -> tuple[int, int, int]:
    """First element in the flat buffer, elements per stored row with padding, and without."""
    size = parameters.flat.itemsize
    return (stored.ctypes.data - parameters.flat.ctypes.data) // size, stored.strides[0] // size, stored.shape[1]
