"""Check a language model's gradients against finite differences, with and without truncation.

The loss that is differentiated is computed here, in plain NumPy and float64, not by the kernels; so the check covers
the forward pass as well as the backward pass. A truncated gradient is not the derivative of the loss. It is the
derivative of a *surrogate*: the loss of step t computed by running from step r(t) to t, with the states that enter step
r(t) held at the values they have under the unperturbed parameters. With r(t) = 0 the surrogate is the loss itself.

Differences are central, of fourth order: (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) / 12 h. With h = 1e-3 their error is
about 1e-12 times the loss. Where that does not agree (a relu has a kink within the step), smaller steps are tried: a
correct gradient agrees with one of them, a wrong one with none.

The relative error of an element is |analytic - numeric| / max(|analytic|, |numeric|, 1e-4 * max(1, loss)). The last
term keeps rounding noise in gradients that are zero from looking like an error; under it an absolute error of
1e-10 * max(1, loss) still fails the default tolerance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arguments import number, whole_number
from .bptt import Truncation, resolve
from .token_sequences import as_sequences, read_pairs

if TYPE_CHECKING:
    from .language_model import LanguageModel
    from .model_configuration import Configuration

__all__ = ["GradientError", "GradientReport", "TensorReport", "gradient_check", "surrogate_loss"]

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
State = tuple[Array, ...]  # (h,) or (h, c), each (rows, hidden)

_STEPS = (1e-3, 1e-4, 1e-5)  # smaller ones drown in rounding
_FLOOR = 1e-4


class GradientError(AssertionError):
    """A gradient that is not the derivative: the message names the tensor, the index and both values.

    Attributes
    ----------
    report : GradientReport
        Of all tensors.
    """

    def __init__(self, message: str, report: GradientReport) -> None:
        super().__init__(message)
        self.report = report


@dataclasses.dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor: its worst element among those checked."""

    name: str
    size: int
    checked: int
    worst: float  # relative error
    index: tuple[int, ...]
    analytic: float
    numeric: float


@dataclasses.dataclass(frozen=True, slots=True)
class GradientReport:
    """What `gradient_check` found; ``str(report)`` is a table of it."""

    tensors: tuple[TensorReport, ...]
    truncation: Truncation
    loss: float  # total, in nats
    tolerance: float

    @property
    def worst(self) -> TensorReport:
        """The tensor with the largest relative error."""
        return max(self.tensors, key=lambda tensor: (np.isnan(tensor.worst), tensor.worst))

    @property
    def passed(self) -> bool:
        """Whether every relative error is at most the tolerance."""
        return all(tensor.worst <= self.tolerance for tensor in self.tensors)

    def __str__(self) -> str:
        width = max(len(tensor.name) for tensor in self.tensors)
        lines = [f"{'tensor':<{width}}  {'checked':>15}  worst relative error"]
        for tensor in self.tensors:
            counts = f"{tensor.checked} of {tensor.size}"
            mark = "" if tensor.worst <= self.tolerance else "  WRONG"
            lines.append(f"{tensor.name:<{width}}  {counts:>15}  {tensor.worst:.2e}{mark}")
        verdict = "passed" if self.passed else "FAILED"
        lines.append(f"{self.truncation}: {verdict}, worst {self.worst.worst:.2e}, tolerance {self.tolerance:g}")
        return "\n".join(lines)


def gradient_check(
    model: LanguageModel,
    x: Any,
    y: Any,
    truncation: Truncation | None = None,
    *,
    tolerance: float = 1e-6,
    samples: int = 40,
    seed: int = 0,
) -> GradientReport:
    """Compare a model's analytic gradients with finite differences, every tensor, in float64.

    A float32 model is checked as its float64 copy, which runs the same kernels in the other precision. Dropout is off.

    Parameters
    ----------
    model
        The model.
    x, y
        One sequence of ids and its targets, or several. Short ones do: the time grows with their length.
    truncation
        `crnn.bptt.Full()` (also None), `Window(k)` or `Chunk(k1, k2)`.
    tolerance
        Largest relative error allowed.
    samples
        Elements checked in each tensor: all of a smaller tensor; in a larger one half are those with the largest
        gradients, half are random.
    seed
        Of the random choice.

    Returns
    -------
    GradientReport
        Every tensor with its worst relative error.

    Raises
    ------
    GradientError
        A relative error above the tolerance, or a loss that differs from the kernels' loss by more than 1e-9 of it.
    TypeError, ValueError
        As `LanguageModel.total_loss`; a tolerance that is not a finite number of at least 0, or no samples.

    Examples
    --------
    >>> import crnn
    >>> model = crnn.LanguageModel(9, "lstm", hidden_size=5, rng=0)
    >>> report = gradient_check(model, [0, 3, 5], [3, 5, 8], crnn.bptt.Window(2), samples=10)
    >>> report.passed, [tensor.checked for tensor in report.tensors]
    (True, [10, 10, 10, 10, 10, 9])
    """
    scheme = resolve(truncation)
    samples = whole_number(samples, "samples")
    tolerance = number(tolerance, "tolerance")
    if not 0.0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number of at least 0, got {tolerance!r}")
    twin = model.copy(np.float64)
    inputs, targets = read_pairs(*as_sequences(x, y), len(model))
    weights = {name: np.array(view) for name, view in twin.parameters.items()}
    analytic = twin.gradients(inputs, targets, scheme)
    runs = [_Surrogate(twin.configuration, weights, *pair, scheme) for pair in zip(inputs, targets, strict=True)]

    def loss() -> float:
        return sum(run.loss(weights) for run in runs)

    base = loss()
    floor = _FLOOR * max(1.0, base)
    rng = np.random.default_rng(seed)
    tensors = []
    for name, values in weights.items():
        elements = _elements(analytic[name], samples, rng)
        found = [_compare(loss, values, index, float(analytic[name][index]), floor, tolerance) for index in elements]
        worst = max(range(len(found)), key=lambda i: (np.isnan(found[i][0]), found[i][0]))
        error, numeric = found[worst]
        index = elements[worst]
        tensors.append(TensorReport(name, values.size, len(found), error, index, float(analytic[name][index]), numeric))
    report = GradientReport(tuple(tensors), scheme, base, tolerance)
    if not report.passed:
        bad = report.worst
        raise GradientError(
            f"{bad.name}{list(bad.index)}: the gradient is {bad.analytic!r}, finite differences say {bad.numeric!r} "
            f"(relative error {bad.worst:.2e}, allowed {tolerance:g})\n{report}",
            report,
        )
    kernel_loss = twin.total_loss(inputs, targets)
    if not abs(kernel_loss - base) <= 1e-9 * max(1.0, base):
        raise GradientError(f"the total loss is {kernel_loss!r}, plain NumPy says {base!r}", report)
    return report


def surrogate_loss(model: LanguageModel, x: Any, y: Any, truncation: Truncation | None = None) -> float:
    """The total loss (nats) of one sequence in plain NumPy and float64, as `gradient_check` computes it."""
    (inputs,), (targets,) = read_pairs([x], [y], len(model))
    weights = {name: np.array(view, np.float64) for name, view in model.parameters.items()}
    return _Surrogate(model.configuration, weights, inputs, targets, resolve(truncation)).loss(weights)


def _compare(
    loss: Callable[[], float], values: Array, index: tuple[int, ...], analytic: float, floor: float, tolerance: float
) -> tuple[float, float]:
    """The smallest relative error over the step sizes, and the numeric gradient that has it."""
    best = (np.nan, np.nan)
    for h in _STEPS:
        numeric = _difference(loss, values, index, h)
        error = abs(analytic - numeric) / max(abs(analytic), abs(numeric), floor)
        if not error >= best[0]:
            best = (error, numeric)
        if error <= 0.1 * tolerance:
            break
    return best


def _difference(loss: Callable[[], float], values: Array, index: tuple[int, ...], h: float) -> float:
    value = values[index]
    at = {}
    for step in (-2, -1, 1, 2):
        values[index] = value + step * h
        at[step] = loss()
    values[index] = value
    return (8.0 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12.0 * h)


def _elements(gradient: NDArray[Any], samples: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    if gradient.size <= samples:
        chosen = np.arange(gradient.size)
    else:
        flat = np.abs(gradient).reshape(-1)
        largest = np.argsort(-flat, kind="stable")[: (samples + 1) // 2]
        others = np.setdiff1d(np.arange(flat.size), largest)
        chosen = np.sort(np.concatenate([largest, rng.choice(others, samples // 2, replace=False)]))
    return [tuple(int(i) for i in np.unravel_index(at, gradient.shape)) for at in chosen]


class _Surrogate:
    """One sequence's surrogate loss as a function of the weights.

    Loss steps with the same r(t) share a run that starts there; all runs advance side by side, one row each.
    """

    def __init__(
        self, configuration: Configuration, weights: Mapping[str, Array], x: Ids, y: Ids, truncation: Truncation
    ) -> None:
        self._c = configuration
        self._x = x
        self._y = y
        reach = np.array([truncation.first_step(t) for t in range(len(x))])
        self._starts = np.unique(reach)
        self._run_of = np.searchsorted(self._starts, reach)  # loss step -> row
        self._frozen = self._entering(weights)

    def loss(self, weights: Mapping[str, Array]) -> float:
        """In nats, summed over the steps."""
        states = self._frozen
        embedding, outputs = self._embedding(weights), []
        for step in range(int((np.arange(len(self._x)) - self._starts[self._run_of]).max()) + 1):
            at = np.minimum(self._starts + step, len(self._x) - 1)  # rows whose run is over compute something unused
            states = self._step(weights, embedding, self._x[at], states)
            outputs.append(states[-1][0])
        hidden = np.array([outputs[t - self._starts[row]][row] for t, row in enumerate(self._run_of)])
        logits = hidden @ weights["output.weight"].T + weights.get("output.bias", 0.0)
        logits -= logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(self._y)), self._y]
        return float(losses.sum())

    def _entering(self, weights: Mapping[str, Array]) -> list[State]:
        """The states of each layer that enter the runs' first steps, one row per run."""
        c = self._c
        parts = 2 if c.cell == "lstm" else 1
        states: list[State] = [(np.zeros((1, c.hidden_size)),) * parts for _ in range(c.num_layers)]
        embedding, entering = self._embedding(weights), []
        for t in range(int(self._starts[-1]) + 1):
            if t in self._starts:
                entering.append(states)
            states = self._step(weights, embedding, self._x[t : t + 1], states)
        return [
            tuple(np.concatenate([run[layer][part] for run in entering]) for part in range(parts))
            for layer in range(c.num_layers)
        ]

    def _embedding(self, weights: Mapping[str, Array]) -> Array:
        """A row for every word: what it adds to the first layer's pre-activations, or its embedding."""
        if self._c.onehot:
            return weights["rnn.weight_ih_l0"].T
        return weights["output.weight" if self._c.tie_weights else "embedding.weight"]

    def _step(self, weights: Mapping[str, Array], embedding: Array, ids: Ids, states: list[State]) -> list[State]:
        c = self._c
        cell = _CELLS[c.cell]
        x = embedding[ids]
        after = []
        for layer, state in enumerate(states):
            name = f"rnn.{{}}_l{layer}".format
            from_input = x if c.onehot and layer == 0 else x @ weights[name("weight_ih")].T
            b_ih, b_hh = (weights.get(name(bias), 0.0) for bias in ("bias_ih", "bias_hh"))
            after.append(cell(c, from_input + b_ih, weights[name("weight_hh")], b_hh, state))
            x = after[-1][0]
        return after


def _rnn(c: Configuration, a: Array, w: Array, b: Any, state: State) -> State:
    a = a + state[0] @ w.T + b
    if c.nonlinearity == "tanh":
        return (np.tanh(a),)
    return (_sigmoid(a) if c.nonlinearity == "sigmoid" else np.maximum(a, 0.0),)


def _lstm(c: Configuration, a: Array, w: Array, b: Any, state: State) -> State:
    i, f, g, o = np.split(a + state[0] @ w.T + b, 4, axis=1)
    cell = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(cell), cell


def _gru(c: Configuration, a: Array, w: Array, b: Any, state: State) -> State:
    (h,) = state
    size = c.hidden_size
    b = np.broadcast_to(b, (3 * size,))
    gates = _sigmoid(a[:, : 2 * size] + h @ w[: 2 * size].T + b[: 2 * size])
    r, z = gates[:, :size], gates[:, size:]
    w_n, b_n = w[2 * size :], b[2 * size :]
    recurrent = r * (h @ w_n.T + b_n) if c.reset_after else (r * h) @ w_n.T + b_n
    n = np.tanh(a[:, 2 * size :] + recurrent)
    return (z * n + (1.0 - z) * h,) if c.z_weighs == "candidate" else (z * h + (1.0 - z) * n,)


def _sigmoid(a: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * a))


_CELLS: dict[str, Callable[[Configuration, Array, Array, Any, State], State]] = {
    "rnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
}
