"""The equations of crnn, readable: one sequence, one time step, one column vector at a time, in float64 NumPy.

This is the specification that the C kernels are tested against. It is written to be checked by eye, not to be
fast. Names follow docs/derivations.md: U and W multiply the input and the previous state, `*` is element-wise,
parameters carry PyTorch's names, shapes and gate order (LSTM i, f, g, o; GRU r, z, n).

Truncation is implemented as its definition reads: every loss step t is back-propagated on its own, down to the
step r(t) that the scheme allows, and the results are added up. The state that enters step r(t) is a constant,
except that the initial state receives its gradient where r(t) = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Array = np.ndarray
Parameters = Mapping[str, Array]
State = tuple[
    Array, ...
]  # (h,), or (h, c) for the LSTM: vectors for one sequence, (layers*directions, batch, H) outside
Reach = Callable[[int], int]  # loss step t -> r(t), the first step that its gradient reaches


@dataclasses.dataclass(frozen=True)
class Net:
    """Which cell, with which switches, stacked how; sizes follow from the parameters."""

    cell: str  # "rnn", "lstm", "gru"
    num_layers: int = 1
    bidirectional: bool = False
    nonlinearity: str = "tanh"  # of the RNN: "tanh", "sigmoid", "relu"
    reset_after: bool = False  # of the GRU
    z_weighs: str = "candidate"  # of the GRU: "candidate", "state"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def state_parts(self) -> int:
        return 2 if self.cell == "lstm" else 1


# ---------------------------------------------------------------------------------------------------- truncation


def full() -> Reach:
    """Textbook BPTT: every loss reaches the first step."""
    return lambda t: 0


def window(k: int) -> Reach:
    """The loss at t reaches k steps, t among them: a window that slides with every step."""
    return lambda t: max(0, t - k + 1)


def chunk(k1: int, k2: int | None = None) -> Reach:
    """The loss at t reaches k2 steps counted back from the (nominal) last step e of t's chunk of k1 steps."""
    k2 = k1 if k2 is None else k2

    def reach(t: int) -> int:
        e = (t // k1 + 1) * k1 - 1
        return max(0, e - k2 + 1)

    return reach


# --------------------------------------------------------------------------------------------- element-wise functions


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)) without overflow on either side."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def activation(name: str, a: Array) -> Array:
    return {"tanh": np.tanh, "sigmoid": sigmoid, "relu": lambda v: np.maximum(v, 0.0)}[name](a)


def activation_slope(name: str, value: Array) -> Array:
    """The derivative, from the function's value: relu's slope at 0 is 0."""
    return {"tanh": lambda v: 1 - v**2, "sigmoid": lambda v: v * (1 - v), "relu": lambda v: (v > 0) * 1.0}[name](value)


# ------------------------------------------------------------------------------------------------------- the cells


@dataclasses.dataclass
class Weights:
    """One layer's parameters in one direction, or their gradients. Missing biases are zeros."""

    weight_ih: Array  # (G*H, input)
    weight_hh: Array  # (G*H, H)
    bias_ih: Array  # (G*H,)
    bias_hh: Array  # (G*H,)

    def gate(self, index: int) -> tuple[Array, Array, Array, Array]:
        """Views of one gate's U, W and its two biases."""
        hidden = self.weight_hh.shape[1]
        rows = slice(index * hidden, (index + 1) * hidden)
        return self.weight_ih[rows], self.weight_hh[rows], self.bias_ih[rows], self.bias_hh[rows]


def affine(w: Weights, gate: int, x: Array, h: Array) -> Array:
    """U x + W h + b_ih + b_hh of one gate."""
    U, W, b_ih, b_hh = w.gate(gate)
    return U @ x + W @ h + b_ih + b_hh


def affine_backward(w: Weights, g: Weights, gate: int, x: Array, h: Array, d_a: Array) -> tuple[Array, Array]:
    """Add the gate's parameter gradients to g; return d_x and d_h."""
    U, W, _, _ = w.gate(gate)
    d_U, d_W, d_b_ih, d_b_hh = g.gate(gate)
    d_U += np.outer(d_a, x)
    d_W += np.outer(d_a, h)
    d_b_ih += d_a
    d_b_hh += d_a
    return U.T @ d_a, W.T @ d_a


def rnn_step(net: Net, w: Weights, x: Array, state: State) -> tuple[State, dict[str, Array]]:
    (h,) = state
    a = affine(w, 0, x, h)
    s = activation(net.nonlinearity, a)
    return (s,), {"x": x, "h": h, "a": a, "s": s}


def rnn_backward(net: Net, w: Weights, g: Weights, saved: dict[str, Array], d_state: State) -> tuple[Array, State]:
    (d_s,) = d_state
    d_a = d_s * activation_slope(net.nonlinearity, saved["s"])
    d_x, d_h = affine_backward(w, g, 0, saved["x"], saved["h"], d_a)
    return d_x, (d_h,)


def lstm_step(net: Net, w: Weights, x: Array, state: State) -> tuple[State, dict[str, Array]]:
    h, c = state
    i = sigmoid(affine(w, 0, x, h))
    f = sigmoid(affine(w, 1, x, h))
    g = np.tanh(affine(w, 2, x, h))
    o = sigmoid(affine(w, 3, x, h))
    c_new = f * c + i * g
    h_new = o * np.tanh(c_new)
    return (h_new, c_new), {"x": x, "h": h, "c": c, "i": i, "f": f, "g": g, "o": o, "tanh_c": np.tanh(c_new)}


def lstm_backward(net: Net, w: Weights, gr: Weights, saved: dict[str, Array], d_state: State) -> tuple[Array, State]:
    d_h_new, d_c_new = d_state
    i, f, g, o, tanh_c = (saved[name] for name in ("i", "f", "g", "o", "tanh_c"))
    d_o = d_h_new * tanh_c
    d_c_new = d_c_new + d_h_new * o * (1 - tanh_c**2)
    d_i, d_f, d_g, d_c = d_c_new * g, d_c_new * saved["c"], d_c_new * i, d_c_new * f
    d_a = (d_i * i * (1 - i), d_f * f * (1 - f), d_g * (1 - g**2), d_o * o * (1 - o))
    parts = [affine_backward(w, gr, gate, saved["x"], saved["h"], d_a[gate]) for gate in range(4)]
    return sum(p[0] for p in parts), (sum(p[1] for p in parts), d_c)


def gru_step(net: Net, w: Weights, x: Array, state: State) -> tuple[State, dict[str, Array]]:
    (h,) = state
    r = sigmoid(affine(w, 0, x, h))
    z = sigmoid(affine(w, 1, x, h))
    U_n, W_n, b_in, b_hn = w.gate(2)
    if net.reset_after:
        q = W_n @ h + b_hn
        n = np.tanh(U_n @ x + b_in + r * q)
    else:
        q = r * h
        n = np.tanh(U_n @ x + W_n @ q + b_in + b_hn)
    h_new = (1 - z) * h + z * n if net.z_weighs == "candidate" else z * h + (1 - z) * n
    return (h_new,), {"x": x, "h": h, "r": r, "z": z, "q": q, "n": n}


def gru_backward(net: Net, w: Weights, g: Weights, saved: dict[str, Array], d_state: State) -> tuple[Array, State]:
    (d_h_new,) = d_state
    x, h, r, z, q, n = (saved[name] for name in ("x", "h", "r", "z", "q", "n"))
    if net.z_weighs == "candidate":
        d_h, d_z, d_n = d_h_new * (1 - z), d_h_new * (n - h), d_h_new * z
    else:
        d_h, d_z, d_n = d_h_new * z, d_h_new * (h - n), d_h_new * (1 - z)

    d_a_n = d_n * (1 - n**2)
    U_n, W_n, _, _ = w.gate(2)
    d_U_n, d_W_n, d_b_in, d_b_hn = g.gate(2)
    d_U_n += np.outer(d_a_n, x)
    d_b_in += d_a_n
    if net.reset_after:  # a_n = U_n x + b_in + r * q, q = W_n h + b_hn
        d_q = d_a_n * r
        d_r = d_a_n * q
        d_W_n += np.outer(d_q, h)
        d_b_hn += d_q
        d_h = d_h + W_n.T @ d_q
    else:  # a_n = U_n x + W_n q + b_in + b_hn, q = r * h
        d_q = W_n.T @ d_a_n
        d_r = d_q * h
        d_W_n += np.outer(d_a_n, q)
        d_b_hn += d_a_n
        d_h = d_h + d_q * r

    d_x_r, d_h_r = affine_backward(w, g, 0, x, h, d_r * r * (1 - r))
    d_x_z, d_h_z = affine_backward(w, g, 1, x, h, d_z * z * (1 - z))
    return U_n.T @ d_a_n + d_x_r + d_x_z, (d_h + d_h_r + d_h_z,)


STEP = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}
STEP_BACKWARD = {"rnn": rnn_backward, "lstm": lstm_backward, "gru": gru_backward}


# ---------------------------------------------------------------------------------------- stacks, batches, truncation


def parameter_names(layer: int, direction: int) -> tuple[str, str, str, str]:
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    return f"weight_ih{suffix}", f"weight_hh{suffix}", f"bias_ih{suffix}", f"bias_hh{suffix}"


def weights_of(params: Parameters, layer: int, direction: int) -> Weights:
    ih, hh, b_ih, b_hh = parameter_names(layer, direction)
    none = np.zeros(len(params[ih]))
    arrays = (params[ih], params[hh], params.get(b_ih, none), params.get(b_hh, none))
    return Weights(*(np.array(a, dtype=np.float64) for a in arrays))


@dataclasses.dataclass
class Trace:
    """What one sequence's forward pass leaves behind. [index] is layer * directions + direction."""

    output: Array  # (T, directions*H)
    final: list[State]  # [index]
    entering: list[list[State]]  # [index][local step]: the state that enters the step
    saved: list[list[dict[str, Array]]]  # [index][local step]: a reverse direction's local step 0 is the last time step
    masks: Sequence[Array] | None  # [layer - 1] (T, directions*H): multiplied onto the input of layers 1...


def forward_one(
    net: Net, params: Parameters, x: Array, initial: list[State], masks: Sequence[Array] | None = None
) -> Trace:
    """Run one sequence x (T, input) through the stack from the given states [index]."""
    final: list[State] = []
    entering: list[list[State]] = []
    saved: list[list[dict[str, Array]]] = []
    for layer in range(net.num_layers):
        outputs = []
        if layer > 0 and masks is not None:
            x = x * masks[layer - 1]
        for direction in range(net.directions):
            w = weights_of(params, layer, direction)
            state = initial[layer * net.directions + direction]
            in_order = x[::-1] if direction else x
            states, records, hidden = [], [], []
            for x_t in in_order:
                states.append(state)
                state, record = STEP[net.cell](net, w, x_t, state)
                records.append(record)
                hidden.append(state[0])
            final.append(state)
            entering.append(states)
            saved.append(records)
            h = np.array(hidden).reshape(len(x), len(state[0]))
            outputs.append(h[::-1] if direction else h)
        x = np.concatenate(outputs, axis=1)
    return Trace(x, final, entering, saved, masks)


def backward_one(
    net: Net, params: Parameters, trace: Trace, d_output: Array, d_final: list[State], first: int, grads: list[Weights]
) -> tuple[Array, list[State]]:
    """Back-propagate through one sequence down to step `first`, whose entering state is a constant (unless it is 0).

    Adds to grads [index]; returns d_x (T, input) and the gradients of the initial states [index].
    """
    steps = len(d_output)
    if first > 0 and net.bidirectional:
        raise ValueError("truncation has no meaning for a bidirectional stack")
    d_initial: list[State] = [tuple(np.zeros_like(part) for part in state) for state in d_final]
    d_y = d_output
    for layer in reversed(range(net.num_layers)):
        hidden = d_y.shape[1] // net.directions
        d_x = 0.0
        for direction in range(net.directions):
            index = layer * net.directions + direction
            w = weights_of(params, layer, direction)
            d_h_in_time = d_y[:, direction * hidden : (direction + 1) * hidden]
            d_h_local = d_h_in_time[::-1] if direction else d_h_in_time
            d_x_local = np.zeros((steps, w.weight_ih.shape[1]))
            d_state = d_final[index]
            for s in reversed(range(first, steps)):
                d_state = (d_state[0] + d_h_local[s], *d_state[1:])
                d_x_local[s], d_state = STEP_BACKWARD[net.cell](net, w, grads[index], trace.saved[index][s], d_state)
            if first == 0:
                d_initial[index] = d_state
            d_x = d_x + (d_x_local[::-1] if direction else d_x_local)
        if layer > 0 and trace.masks is not None:
            d_x = d_x * trace.masks[layer - 1]
        d_y = d_x
    return d_y, d_initial


@dataclasses.dataclass
class Forward:
    outputs: list[Array]  # per sequence (T_i, directions*H)
    state: State  # each (layers*directions, batch, H)
    traces: list[Trace]


@dataclasses.dataclass
class Gradients:
    inputs: list[Array]  # per sequence (T_i, input)
    state: State  # of the initial state
    params: dict[str, Array]


def state_of(state: State, sequence: int) -> list[State]:
    """One sequence's states [index] out of the batch's (layers*directions, batch, H) arrays."""
    return [tuple(np.array(part[index, sequence]) for part in state) for index in range(len(state[0]))]


def forward(
    net: Net, params: Parameters, xs: Sequence[Array], state: State | None = None, masks: Sequence | None = None
) -> Forward:
    """Run every sequence on its own. xs: (T_i, input) each, T_i may be 0; masks[layer - 1][sequence]: (T_i, D*H)."""
    hidden = params["weight_hh_l0"].shape[1]
    if state is None:
        state = (np.zeros((net.num_layers * net.directions, len(xs), hidden)),) * net.state_parts
    state = tuple(np.asarray(part, dtype=np.float64) for part in state)
    traces = []
    for i, x in enumerate(xs):
        own_masks = None if masks is None else [np.asarray(m[i], dtype=np.float64) for m in masks]
        traces.append(forward_one(net, params, np.asarray(x, dtype=np.float64), state_of(state, i), own_masks))
    final = tuple(np.empty_like(part) for part in state)
    for i, trace in enumerate(traces):
        for index, own in enumerate(trace.final):
            for part, vector in zip(final, own):
                part[index, i] = vector
    return Forward([trace.output for trace in traces], final, traces)


def backward(
    net: Net, params: Parameters, run: Forward, d_outputs: Sequence[Array], d_state: State | None, reach: Reach
) -> Gradients:
    """Gradients of sum(d_outputs * outputs) + sum(d_state * final state), each loss step reaching back to r(t).

    The final state's gradient counts as a loss at the sequence's last step. A sequence of length zero ends in its
    initial state, so d_state passes straight through.
    """
    if d_state is None:
        d_state = tuple(np.zeros_like(part) for part in run.state)
    d_state = tuple(np.asarray(part, dtype=np.float64) for part in d_state)
    stack = [(layer, direction) for layer in range(net.num_layers) for direction in range(net.directions)]
    grads = [Weights(*map(np.zeros_like, vars(weights_of(params, *at)).values())) for at in stack]
    d_initial = tuple(np.zeros_like(part) for part in d_state)
    d_inputs = []
    for i, (trace, d_output) in enumerate(zip(run.traces, d_outputs)):
        d_output = np.asarray(d_output, dtype=np.float64)
        steps, width = len(d_output), params["weight_ih_l0"].shape[1]
        d_x = np.zeros((steps, width))
        if steps == 0:
            for part, d in zip(d_initial, d_state):
                part[:, i] = d[:, i]
        for t in range(steps):
            only_t = np.zeros_like(d_output)
            only_t[t] = d_output[t]
            last = state_of(d_state if t == steps - 1 else tuple(0 * d for d in d_state), i)
            d_x_t, d_h0_t = backward_one(net, params, trace, only_t, last, reach(t), grads)
            d_x += d_x_t
            for index, own in enumerate(d_h0_t):
                for part, vector in zip(d_initial, own):
                    part[index, i] += vector
        d_inputs.append(d_x)
    named = {}
    for at, g in zip(stack, grads):
        named.update(zip(parameter_names(*at), (g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh)))
    return Gradients(d_inputs, d_initial, {name: named[name] for name in params})


# ----------------------------------------------------------------------------------------------- output layer


def softmax(a: Array) -> Array:
    """Of each row, shifted by the row's maximum so that no exponential overflows."""
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_cross_entropy(
    h: Array, weight: Array, bias: Array | None, targets: Array, scale: float = 1.0
) -> tuple[Array, Array, Array, Array]:
    """o = softmax(V h + b): the losses -log o[target] (nats, unscaled) and d_h, d_V, d_b of scale * their sum."""
    h, weight = np.asarray(h, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    logits = h @ weight.T + (0.0 if bias is None else np.asarray(bias, dtype=np.float64))
    rows = np.arange(len(h))
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, targets]
    d_logits = softmax(logits)
    d_logits[rows, targets] -= 1.0
    d_logits *= scale
    return losses, d_logits @ weight, d_logits.T @ h, d_logits.sum(axis=0)
