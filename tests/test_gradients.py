"""crnn's gradients of every tensor against float64 central differences of crnn's own forward pass.

Full BPTT differentiates the loss itself. Window and Chunk differentiate a surrogate: the sum, over loss steps t, of the
loss at t with the state that enters r(t) held constant, each term computed by crnn's inference call.
"""

from __future__ import annotations

import differences
import grid
import numpy as np
import pytest
import tolerances
from grid import KINDS, Case

FULL = [
    Case(kind, 2, 3, lengths, num_layers=layers, bidirectional=both, bias=bias)
    for kind in KINDS
    for layers, both, bias, lengths in [
        (1, False, True, (3, 0, 1, 4)),
        (1, False, False, (2, 3)),
        (2, False, True, (3, 1)),
        (1, True, True, (1, 3, 0)),
        (2, True, True, (2, 3)),
    ]
]
TRUNCATED = [
    Case(kind, 2, 3, (4, 0, 1, 3), num_layers=layers, scheme=scheme)
    for kind in KINDS
    for layers in (1, 2)
    for scheme in [("window", 1), ("window", 2), ("chunk", 2, 2), ("chunk", 2, 3)]
]


def tensors(layer: object, p: grid.Problem) -> dict[str, np.ndarray]:
    """Everything that has a gradient, by name; writing into an array changes what the layer computes with."""
    named = dict(layer.params)
    named |= {f"x[{i}]": x for i, x in enumerate(p.xs)}
    named |= dict(zip(("h0", "c0"), p.state))
    return named


def gradients(case: Case, layer: object, p: grid.Problem) -> dict[str, np.ndarray]:
    run = layer.forward(p.xs, grid.public(p.state))
    back = run.backward(p.d_outputs, grid.public(p.d_state), case.truncation)
    named = dict(back.params)
    named |= {f"x[{i}]": d for i, d in enumerate(back.input)}
    named |= dict(zip(("h0", "c0"), grid.parts(back.state)))
    return named


def weigh(outputs: list[np.ndarray], d_outputs: list[np.ndarray]) -> float:
    return sum(float((y * d).sum()) for y, d in zip(outputs, d_outputs))


def compare(layer: object, p: grid.Problem, loss: object, found: dict[str, np.ndarray]) -> None:
    perturbed = tensors(layer, p)
    assert set(perturbed) == set(found)
    for name, array in perturbed.items():
        estimate = differences.central_differences(loss, array)
        np.testing.assert_allclose(found[name], estimate, err_msg=name, **tolerances.DIFFERENCES)


@pytest.mark.parametrize("case", FULL, ids=lambda case: case.id)
def test_full_gradients(case):
    p = grid.problem_of(case, margin=0.02)
    layer = grid.layer_of(case, p.params)

    def loss() -> float:
        outputs, state = layer(p.xs, grid.public(p.state))
        return weigh([*outputs, *grid.parts(state)], [*p.d_outputs, *p.d_state])

    compare(layer, p, loss, gradients(case, layer, p))


@pytest.mark.parametrize("case", TRUNCATED, ids=lambda case: case.id)
def test_truncated_gradients(case):
    """Each loss step's sequence starts at r(t): from the live initial state if r(t) = 0, else from a frozen copy."""
    p = grid.problem_of(case, margin=0.02)
    layer = grid.layer_of(case, p.params)
    found = gradients(case, layer, p)
    # One row of one batch per (sequence, loss step): which steps it runs, and the state it starts from.
    terms = [(i, t, case.reach(t)) for i, x in enumerate(p.xs) for t in range(len(x))]
    frozen = {}
    for i, _, r in terms:
        if r > 0:
            state = tuple(part[:, i : i + 1] for part in p.state)
            frozen[i, r] = grid.parts(layer([p.xs[i][:r]], grid.public(state))[1])
    empty = [i for i, x in enumerate(p.xs) if len(x) == 0]

    def loss() -> float:
        starts = [frozen[i, r] if r else tuple(part[:, i : i + 1] for part in p.state) for i, _, r in terms]
        state = tuple(np.concatenate(one, axis=1) for one in zip(*starts))
        outputs, final = layer([p.xs[i][r : t + 1] for i, t, r in terms], grid.public(state))
        total = 0.0
        for row, (i, t, _) in enumerate(terms):
            total += float(outputs[row][-1] @ p.d_outputs[i][t])
            if t == len(p.xs[i]) - 1:
                total += sum(float((s[:, row] * d[:, i]).sum()) for s, d in zip(grid.parts(final), p.d_state))
        return total + sum(float((s[:, i] * d[:, i]).sum()) for i in empty for s, d in zip(p.state, p.d_state))

    compare(layer, p, loss, found)


@pytest.mark.parametrize("case", [*FULL, *TRUNCATED], ids=lambda case: case.id)
def test_gradients_agree_with_the_oracle(case):
    grid.check(case, grid.library(case), grid.oracle(case))
