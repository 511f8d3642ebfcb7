"""The oracle itself: against literals worked out by hand, finite differences, the notes' RNN, and PyTorch."""

from __future__ import annotations

import math

import differences
import grid
import numpy as np
import pytest
import reference
import tolerances
from grid import KINDS, Case
from notes_rnn import NotesRNN

# Gate values that are fractions: sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4, sigmoid(0) = 1/2, tanh(ln 3 / 2) = 1/2.
LN3 = math.log(3.0)
HALF = LN3 / 2


def column(*rows: float) -> np.ndarray:
    return np.array(rows, dtype=np.float64)[:, None]


@pytest.mark.parametrize(
    ("nonlinearity", "value"), [("tanh", 1 / 2), ("sigmoid", 3 / (3 + math.sqrt(3.0))), ("relu", HALF)]
)
def test_rnn_step_by_hand(nonlinearity, value):
    # 2 * 0.5 ln 3 + 3 * (-0.5 ln 3) + 0.75 ln 3 + 0.25 ln 3 = 0.5 ln 3; sigmoid of it is sqrt(3) / (1 + sqrt(3)).
    params = {
        "weight_ih_l0": column(2.0),
        "weight_hh_l0": column(3.0),
        "bias_ih_l0": np.array([0.75 * LN3]),
        "bias_hh_l0": np.array([0.25 * LN3]),
    }
    run = reference.forward(
        reference.Net("rnn", nonlinearity=nonlinearity), params, [np.array([[HALF]])], (np.full((1, 1, 1), -HALF),)
    )
    assert run.outputs[0].item() == pytest.approx(value, rel=1e-14)
    assert run.state[0].item() == run.outputs[0].item()


def test_lstm_step_by_hand():
    # x = 1, h = 0: the gates are set by U alone, in the order i, f, g, o.
    params = {"weight_ih_l0": column(LN3, -LN3, HALF, LN3), "weight_hh_l0": column(7.0, 7.0, 7.0, 7.0)}
    state = (np.zeros((1, 1, 1)), np.full((1, 1, 1), 2.0))
    run = reference.forward(reference.Net("lstm"), params, [np.array([[1.0]])], state)
    c = 1 / 4 * 2.0 + 3 / 4 * 1 / 2  # f c + i g
    assert run.state[1].item() == pytest.approx(c, rel=1e-14)
    assert run.state[0].item() == pytest.approx(3 / 4 * math.tanh(c), rel=1e-14)


@pytest.mark.parametrize(
    ("reset_after", "z_weighs", "expected"),
    [
        # r = 1/4, z = 3/4, h = 2. Reset before: a_n = 0.25 ln 3 + W_n (2/4) + 0; W_n = 0.5 ln 3 makes it 0.5 ln 3.
        (False, "candidate", 1 / 4 * 2 + 3 / 4 * 1 / 2),
        (False, "state", 3 / 4 * 2 + 1 / 4 * 1 / 2),
        # Reset after is the same product without biases, as r scales it either way (one unit).
        (True, "candidate", 1 / 4 * 2 + 3 / 4 * 1 / 2),
        (True, "state", 3 / 4 * 2 + 1 / 4 * 1 / 2),
    ],
)
def test_gru_step_by_hand(reset_after, z_weighs, expected):
    net = reference.Net("gru", reset_after=reset_after, z_weighs=z_weighs)
    # Gate order r, z, n; x = 1, h = 2: U + 2 W gives -ln 3 and ln 3.
    params = {"weight_ih_l0": column(LN3, -LN3, HALF / 2), "weight_hh_l0": column(-LN3, LN3, HALF)}
    run = reference.forward(net, params, [np.array([[1.0]])], (np.full((1, 1, 1), 2.0),))
    assert run.outputs[0].item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("reset_after", "a_n"), [(False, 2.0 + 5.0), (True, 2.0 + 5.0 / 4)])
def test_gru_reset_gate_scales_the_recurrent_bias_only_when_after(reset_after, a_n):
    net = reference.Net("gru", reset_after=reset_after)
    params = {
        "weight_ih_l0": column(-LN3, 0.0, 0.0),  # r = 1/4, z = 1/2
        "weight_hh_l0": np.zeros((3, 1)),
        "bias_ih_l0": np.array([0.0, 0.0, 2.0]),
        "bias_hh_l0": np.array([0.0, 0.0, 5.0]),
    }
    run = reference.forward(net, params, [np.array([[1.0]])])
    assert run.outputs[0].item() == pytest.approx(math.tanh(a_n) / 2, rel=1e-14)


def test_gru_reset_before_and_after_differ_with_two_units():
    # Before: W (r * h); after: r * (W h). With r = (1/4, 3/4), h = (1, 1), W = [[0, 1], [1, 0]] they swap.
    eye = np.eye(2)[::-1]
    params = {
        "weight_ih_l0": np.concatenate([[[-LN3], [LN3]], np.full((4, 1), 0.0)]),
        "weight_hh_l0": np.concatenate([np.zeros((4, 2)), eye]),
    }
    outputs = [
        reference.forward(reference.Net("gru", reset_after=after), params, [np.ones((1, 1))], (np.ones((1, 1, 2)),))
        .outputs[0]
        .ravel()
        for after in (False, True)
    ]
    np.testing.assert_allclose(outputs[0], (1 + np.tanh([3 / 4, 1 / 4])) / 2, rtol=1e-14)
    np.testing.assert_allclose(outputs[1], (1 + np.tanh([1 / 4, 3 / 4])) / 2, rtol=1e-14)


def test_softmax_cross_entropy_by_hand():
    # Logits (ln 1, ln 2, ln 5) give the probabilities 1/8, 2/8, 5/8.
    weight = np.log(np.array([[1.0], [2.0], [5.0]]))
    losses, d_h, d_weight, d_bias = reference.softmax_cross_entropy(
        np.ones((1, 1)), weight, None, np.array([1]), scale=2.0
    )
    assert losses.item() == pytest.approx(math.log(4.0), rel=1e-14)
    np.testing.assert_allclose(d_bias, [1 / 4, -3 / 2, 5 / 4], rtol=1e-14)
    np.testing.assert_allclose(d_weight.ravel(), d_bias, rtol=1e-14)
    assert d_h.item() == pytest.approx(-1.5 * math.log(2.0) + 1.25 * math.log(5.0), rel=1e-14)


def test_softmax_cross_entropy_differences(rng):
    h, weight, bias = grid.asymmetric(rng, (3, 4)), grid.asymmetric(rng, (5, 4)), grid.asymmetric(rng, (5,))
    targets = np.array([4, 0, 4])
    _, d_h, d_weight, d_bias = reference.softmax_cross_entropy(h, weight, bias, targets, scale=0.7)

    def loss() -> float:
        return 0.7 * reference.softmax_cross_entropy(h, weight, bias, targets)[0].sum()

    for array, gradient in ((h, d_h), (weight, d_weight), (bias, d_bias)):
        np.testing.assert_allclose(gradient, differences.central_differences(loss, array), **tolerances.DIFFERENCES)


@pytest.mark.parametrize(
    ("reach", "first_steps"),
    [
        (reference.full(), [0, 0, 0, 0, 0, 0, 0]),
        (reference.window(1), [0, 1, 2, 3, 4, 5, 6]),
        (reference.window(3), [0, 0, 0, 1, 2, 3, 4]),
        (reference.chunk(3), [0, 0, 0, 3, 3, 3, 6]),
        (reference.chunk(1), [0, 1, 2, 3, 4, 5, 6]),
        (reference.chunk(2, 3), [0, 0, 1, 1, 3, 3, 5]),  # e = 1, 1, 3, 3, 5, 5, 7
        (reference.chunk(3, 5), [0, 0, 0, 1, 1, 1, 4]),  # e = 2, 2, 2, 5, 5, 5, 8
    ],
)
def test_reach_by_hand(reach, first_steps):
    assert [reach(t) for t in range(7)] == first_steps


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        # Linear relu RNN, all values positive: s_t = u x_t + w s_{t-1}, x = 1, u = 2, w = 3, s_{-1} = 1: s = 5, 17, 53.
        # The loss is s_0 + s_1 + s_2. ds_t/du down to step r, the state before r constant: 1; 1, +3; 1, +3, +9.
        (("full",), {"u": 1 + 4 + 13, "w": 1 + (5 + 3) + (17 + 15 + 9), "x": [13 * 2, 4 * 2, 2], "h0": 3 + 9 + 27}),
        (("window", 1), {"u": 3, "w": 1 + 5 + 17, "x": [2, 2, 2], "h0": 3}),
        (("window", 2), {"u": 1 + 4 + 4, "w": 1 + 8 + (17 + 15), "x": [2 + 6, 2 + 6, 2], "h0": 3 + 9}),
        (("chunk", 2, 2), {"u": 1 + 4 + 1, "w": 1 + 8 + 17, "x": [2 + 6, 2, 2], "h0": 3 + 9}),
        (("chunk", 2, 3), {"u": 1 + 4 + 4, "w": 1 + 8 + (17 + 15), "x": [2 + 6, 2 + 6, 2], "h0": 3 + 9}),
    ],
)
def test_truncated_gradients_by_hand(scheme, expected):
    case = Case("rnn_relu", 1, 1, (3,), bias=False, scheme=scheme)
    params = {"weight_ih_l0": column(2.0), "weight_hh_l0": column(3.0)}
    run = reference.forward(case.net, params, [np.ones((3, 1))], (np.ones((1, 1, 1)),))
    np.testing.assert_array_equal(run.outputs[0].ravel(), [5, 17, 53])
    back = reference.backward(case.net, params, run, [np.ones((3, 1))], None, case.reach)
    assert back.params["weight_ih_l0"].item() == expected["u"]
    assert back.params["weight_hh_l0"].item() == expected["w"]
    np.testing.assert_array_equal(back.inputs[0].ravel(), expected["x"])
    assert back.state[0].item() == expected["h0"]


DIFFERENCE_CASES = [
    Case(kind, 1, 2, (3, 0, 1), num_layers=layers, bidirectional=both, scheme=scheme)
    for kind in KINDS
    for layers in (1, 2)
    for both, scheme in [
        (False, ("full",)),
        (True, ("full",)),
        (False, ("window", 2)),
        (False, ("chunk", 2, 2)),
        (False, ("chunk", 1, 2)),
    ]
]


@pytest.mark.parametrize("case", DIFFERENCE_CASES, ids=lambda case: case.id)
def test_gradients_are_finite_differences_of_the_surrogate_loss(case):
    p = grid.problem_of(case, margin=0.02)
    frozen = reference.forward(case.net, p.params, p.xs, p.state)
    back = reference.backward(case.net, p.params, frozen, p.d_outputs, p.d_state, case.reach)

    def loss() -> float:
        return differences.surrogate_loss(case.net, p.params, p.xs, p.state, p.d_outputs, p.d_state, case.reach, frozen)

    tensors = [*p.params.values(), *p.xs, *p.state]
    gradients = [*back.params.values(), *back.inputs, *back.state]
    for array, gradient in zip(tensors, gradients, strict=True):
        estimate = differences.central_differences(loss, array)
        np.testing.assert_allclose(gradient, estimate, **tolerances.DIFFERENCES)


@pytest.mark.parametrize("truncate", [1, 2, 4, None])
def test_notes_rnn_is_the_oracle_with_one_hot_words(truncate, rng):
    words, hidden = 11, 6
    notes = NotesRNN(words, hidden, truncate, rng)
    for parameter in (notes.U, notes.V, notes.W):
        parameter[...] = grid.asymmetric(rng, parameter.shape)
    ids = rng.integers(0, words, 8)
    x, y = ids[:-1], ids[1:]
    net, params = reference.Net("rnn"), {"weight_ih_l0": notes.U, "weight_hh_l0": notes.W}
    run = reference.forward(net, params, [np.eye(words)[x]])
    losses, d_h, d_v, _ = reference.softmax_cross_entropy(run.outputs[0], notes.V, None, y)
    reach = reference.full() if truncate is None else reference.window(truncate)
    back = reference.backward(net, params, run, [d_h], None, reach)
    d_u_notes, d_v_notes, d_w_notes = notes.back_propagation(x, y)
    assert notes.calculate_total_loss([x], [y]) == pytest.approx(losses.sum(), rel=1e-13)
    np.testing.assert_allclose(d_u_notes, back.params["weight_ih_l0"], **tolerances.SAME_FORMULA)
    np.testing.assert_allclose(d_w_notes, back.params["weight_hh_l0"], **tolerances.SAME_FORMULA)
    np.testing.assert_allclose(d_v_notes, d_v, **tolerances.SAME_FORMULA)


def test_notes_rnn_learns_two_sentences(rng):
    notes = NotesRNN(5, 8, 4, rng)
    losses = notes.train_with_sgd([[0, 1, 2], [0, 3]], [[1, 2, 4], [3, 4]], 0.1, nepoch=41, evaluate_loss_after=10)
    assert [epoch for epoch, _ in losses] == [0, 10, 20, 30, 40]
    assert losses[0][1] == pytest.approx(math.log(5.0), abs=0.1)
    assert losses[-1][1] < 0.75  # of two equally likely second words, ln 2 / 5 * 2 = 0.28 remains at best
    assert list(notes.predict([0, 1, 2]))[1:] == [2, 4]


TORCH_KINDS = [kind for kind in KINDS if kind in ("rnn_tanh", "rnn_relu", "lstm", "gru_after_state")]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_oracle_agrees_with_torch(kind, both):
    torch = pytest.importorskip("torch", reason="PyTorch IS NOT INSTALLED: the oracle was NOT compared with it")
    case = Case(kind, 3, 5, (4, 4, 4), num_layers=2, bidirectional=both)
    p, expected = grid.problem_of(case), grid.oracle(case)
    options = {"nonlinearity": case.net.nonlinearity} if case.net.cell == "rnn" else {}
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.net.cell](
        3, 5, 2, batch_first=True, bidirectional=both, dtype=torch.float64, **options
    )
    module.load_state_dict({name: torch.from_numpy(value) for name, value in p.params.items()})
    x = torch.from_numpy(np.stack(p.xs)).requires_grad_()
    state = tuple(torch.from_numpy(part).requires_grad_() for part in p.state)
    y, final = module(x, grid.public(state))
    loss = (y * torch.from_numpy(np.stack(p.d_outputs))).sum()
    for part, d in zip(grid.parts(final), p.d_state):
        loss = loss + (part * torch.from_numpy(d)).sum()
    loss.backward()

    def same(a: object, e: np.ndarray) -> None:
        np.testing.assert_allclose(a.detach().numpy(), e, **tolerances.SAME_FORMULA)

    same(y, np.stack(expected.outputs))
    for part, e in zip(grid.parts(final), expected.state):
        same(part, e)
    same(x.grad, np.stack(expected.d_inputs))
    for part, e in zip(state, expected.d_state):
        same(part.grad, e)
    for name, parameter in module.named_parameters():
        same(parameter.grad, expected.d_params[name])
