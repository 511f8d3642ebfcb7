"""Test cases: a network, its sizes and a truncation, with random data, run through the oracle or through crnn."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import numpy as np
import reference
import tolerances
from reference import Net

import crnn

KINDS = {
    "rnn_tanh": Net("rnn"),
    "rnn_sigmoid": Net("rnn", nonlinearity="sigmoid"),
    "rnn_relu": Net("rnn", nonlinearity="relu"),
    "lstm": Net("lstm"),
    "gru": Net("gru"),
    "gru_state": Net("gru", z_weighs="state"),
    "gru_after": Net("gru", reset_after=True),
    "gru_after_state": Net("gru", reset_after=True, z_weighs="state"),
}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    input_size: int = 3
    hidden_size: int = 4
    lengths: tuple[int, ...] = (4, 2, 0, 5, 1)
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    dtype: str = "float64"
    scheme: tuple = ("full",)  # ("full",), ("window", k), ("chunk", k1, k2)

    @property
    def net(self) -> Net:
        return dataclasses.replace(KINDS[self.kind], num_layers=self.num_layers, bidirectional=self.bidirectional)

    @property
    def id(self) -> str:
        parts = [self.kind, f"i{self.input_size}", f"h{self.hidden_size}", f"l{self.num_layers}"]
        parts += ["bi"] * self.bidirectional + ["nobias"] * (not self.bias) + [self.dtype]
        lengths = "x".join(map(str, self.lengths))
        if len(self.lengths) > 9:
            lengths = f"{len(self.lengths)}of{sum(self.lengths)}rows{zlib.crc32(lengths.encode()) % 1000}"
        parts += [lengths, "-".join(map(str, self.scheme))]
        return "_".join(parts)

    @property
    def terms(self) -> int:
        """The longest sum: a product's length, or the rows of a parameter gradient."""
        return self.input_size + 2 * self.hidden_size + sum(self.lengths)

    @property
    def steps(self) -> int:
        return max(self.lengths, default=1) * self.num_layers

    @property
    def reach(self) -> reference.Reach:
        name, *sizes = self.scheme
        return {"full": reference.full, "window": reference.window, "chunk": reference.chunk}[name](*sizes)

    @property
    def truncation(self) -> object:
        name, *sizes = self.scheme
        return {"full": crnn.bptt.Full, "window": crnn.bptt.Window, "chunk": crnn.bptt.Chunk}[name](*sizes)


def parameter_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, in order."""
    net, hidden = case.net, case.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    rows = GATES[net.cell] * hidden
    for layer in range(net.num_layers):
        width = case.input_size if layer == 0 else net.directions * hidden
        for direction in range(net.directions):
            names = reference.parameter_names(layer, direction)
            shapes.update(zip(names, [(rows, width), (rows, hidden), (rows,), (rows,)][: 4 if case.bias else 2]))
    return shapes


def asymmetric(
    rng: np.random.Generator, shape: Sequence[int], dtype: object = np.float64, size: float = 1.0
) -> np.ndarray:
    """Uniform in (-0.6, 0.9) * size: no symmetry that could hide a sign."""
    return (size * rng.uniform(-0.6, 0.9, tuple(shape))).astype(dtype)


@dataclasses.dataclass
class Problem:
    """One case's data, rounded to its dtype, so that the oracle sees what crnn sees."""

    params: dict[str, np.ndarray]
    xs: list[np.ndarray]
    state: tuple[np.ndarray, ...]
    d_outputs: list[np.ndarray]
    d_state: tuple[np.ndarray, ...]


def draw(case: Case, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    net, dtype = case.net, case.dtype
    params = {}
    for name, shape in parameter_shapes(case).items():
        fan_in = shape[1] if len(shape) == 2 else 1
        params[name] = asymmetric(rng, shape, dtype, min(1.0, 2.5 / np.sqrt(fan_in)))
    state_shape = (net.num_layers * net.directions, len(case.lengths), case.hidden_size)
    return Problem(
        params=params,
        xs=[asymmetric(rng, (steps, case.input_size), dtype, 1.5) for steps in case.lengths],
        state=tuple(asymmetric(rng, state_shape, dtype) for _ in range(net.state_parts)),
        d_outputs=[asymmetric(rng, (steps, net.directions * case.hidden_size), dtype) for steps in case.lengths],
        d_state=tuple(asymmetric(rng, state_shape, dtype) for _ in range(net.state_parts)),
    )


def away_from_kinks(case: Case, problem: Problem, margin: float = 2e-5) -> bool:
    """Whether no relu sits so near its kink that rounding (or a finite difference) could change its slope."""
    if case.kind != "rnn_relu":
        return True
    run = reference.forward(case.net, problem.params, problem.xs, problem.state)
    records = (record for trace in run.traces for steps in trace.saved for record in steps)
    return all(np.abs(record["a"]).min() > margin for record in records)


@functools.cache
def problem_of(case: Case, margin: float = 2e-5) -> Problem:
    """The case's data: its seed comes from its id."""
    seed = zlib.crc32(case.id.encode())
    while not away_from_kinks(case, problem := draw(case, seed), margin):
        seed += 1
    return problem


@dataclasses.dataclass
class Results:
    outputs: list[np.ndarray]
    state: tuple[np.ndarray, ...]
    d_inputs: list[np.ndarray]
    d_state: tuple[np.ndarray, ...]
    d_params: dict[str, np.ndarray]


@functools.cache
def oracle(case: Case) -> Results:
    p = problem_of(case)
    run = reference.forward(case.net, p.params, p.xs, p.state)
    back = reference.backward(case.net, p.params, run, p.d_outputs, p.d_state, case.reach)
    return Results(run.outputs, run.state, back.inputs, back.state, back.params)


def layer_of(case: Case, params: dict[str, np.ndarray], **options: object) -> object:
    """A crnn layer of this case that holds copies of the given parameters."""
    net = case.net
    if net.cell == "rnn":
        options["nonlinearity"] = net.nonlinearity
    if net.cell == "gru":
        options |= {"reset_after": net.reset_after, "z_weighs": net.z_weighs}
    layer = {"rnn": crnn.RNN, "lstm": crnn.LSTM, "gru": crnn.GRU}[net.cell](
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        bidirectional=case.bidirectional,
        dtype=np.dtype(case.dtype),
        rng=0,
        **options,
    )
    assert list(layer.params) == list(params)
    for name, value in params.items():
        layer.params[name][...] = value
    return layer


def public(state: tuple[np.ndarray, ...]) -> object:
    """A state as the layers take it: the array itself, or a tuple (h, c) for the LSTM."""
    return state if len(state) == 2 else state[0]


def parts(state: object) -> tuple[np.ndarray, ...]:
    """The inverse of `public`."""
    return tuple(state) if isinstance(state, tuple) else (state,)


def library(case: Case, problem: Problem | None = None) -> Results:
    """Run crnn's training forward and backward on the case's data."""
    p = problem_of(case) if problem is None else problem
    run = layer_of(case, p.params).forward(p.xs, public(p.state))
    back = run.backward(p.d_outputs, public(p.d_state), case.truncation)
    return Results(list(run.output), parts(run.state), list(back.input), parts(back.state), dict(back.params))


def check(case: Case, actual: Results, expected: Results) -> None:
    """Assert that all tensors agree within the tolerances of the case."""

    def close(quantity: str, what: str, a: np.ndarray, e: np.ndarray) -> None:
        assert a.dtype == np.dtype(case.dtype), f"{what} is {a.dtype}, wanted {case.dtype}"
        tolerances.assert_close(a, e, quantity, terms=case.terms, steps=case.steps, what=f"{what} of {case.id}")

    assert len(actual.outputs) == len(expected.outputs)
    for i, (a, e) in enumerate(zip(actual.outputs, expected.outputs)):
        close("output", f"output[{i}]", a, e)
    for name, a, e in zip(("h_n", "c_n"), actual.state, expected.state):
        close("state", name, a, e)
    for i, (a, e) in enumerate(zip(actual.d_inputs, expected.d_inputs)):
        close("d_input", f"d_input[{i}]", a, e)
    for name, a, e in zip(("d_h0", "d_c0"), actual.d_state, expected.d_state):
        close("d_state", name, a, e)
    assert list(actual.d_params) == list(expected.d_params)
    for name, e in expected.d_params.items():
        close("d_params", f"d_{name}", actual.d_params[name], e)


def identical(a: Results, b: Results) -> None:
    """Assert that two results agree in every bit."""
    for name in ("outputs", "state", "d_inputs", "d_state"):
        for i, (one, other) in enumerate(zip(getattr(a, name), getattr(b, name))):
            assert one.tobytes() == other.tobytes(), f"{name}[{i}] differs by {np.abs(one - other).max():.3g}"
    for name, one in a.d_params.items():
        assert one.tobytes() == b.d_params[name].tobytes(), f"gradient of {name} differs"
