"""crnn against PyTorch, where PyTorch has the thing: outputs, states and every gradient."""

from __future__ import annotations

import dataclasses

import grid
import numpy as np
import pytest
import reference
import tolerances
from grid import Case

torch = pytest.importorskip("torch", reason="PyTorch IS NOT INSTALLED: parity with it was NOT tested")

KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru_after_state")
RAGGED = (3, 7, 1, 5, 2, 7)  # PyTorch has no packed sequences of length zero


def module_of(case: Case, params: dict[str, np.ndarray]) -> torch.nn.Module:
    net = case.net
    options = {"nonlinearity": net.nonlinearity} if net.cell == "rnn" else {}
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[net.cell](
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        batch_first=True,
        bidirectional=case.bidirectional,
        dtype=getattr(torch, case.dtype),
        **options,
    )
    module.load_state_dict({name: torch.from_numpy(value) for name, value in params.items()}, strict=True)
    return module


def torch_results(case: Case, p: grid.Problem) -> grid.Results:
    """The same forward and backward in PyTorch, through packed sequences when the batch is ragged."""
    module = module_of(case, p.params)
    xs = [torch.from_numpy(x).requires_grad_() for x in p.xs]
    state = tuple(torch.from_numpy(part).requires_grad_() for part in p.state)
    ragged = len(set(case.lengths)) > 1
    if ragged:
        x = torch.nn.utils.rnn.pack_sequence(xs, enforce_sorted=False)
    else:
        x = torch.stack(xs)
    y, final = module(x, grid.public(state))
    outputs = list(torch.nn.utils.rnn.unpack_sequence(y)) if ragged else list(y)
    weighed = zip([*outputs, *grid.parts(final)], [*p.d_outputs, *p.d_state], strict=True)
    sum((value * torch.from_numpy(d)).sum() for value, d in weighed).backward()

    def arrays(tensors: object) -> list[np.ndarray]:
        return [tensor.detach().numpy() for tensor in tensors]

    return grid.Results(
        arrays(outputs),
        tuple(arrays(grid.parts(final))),
        arrays(x.grad for x in xs),
        tuple(arrays(part.grad for part in state)),
        {name: parameter.grad.numpy() for name, parameter in module.named_parameters()},
    )


def doubled(results: grid.Results) -> grid.Results:
    """In float64, as the tolerances want the expected side."""

    def double(arrays: object) -> list[np.ndarray]:
        return [array.astype(np.float64) for array in arrays]

    return grid.Results(
        double(results.outputs),
        tuple(double(results.state)),
        double(results.d_inputs),
        tuple(double(results.d_state)),
        dict(zip(results.d_params, double(results.d_params.values()))),
    )


CASES = [
    Case(kind, inputs, hidden, lengths, layers, both, bias, dtype)
    for kind in KINDS
    for dtype in ("float32", "float64")
    for inputs, hidden, lengths, layers, both, bias in [
        (5, 17, (7,) * 5, 1, False, True),
        (33, 16, (4,) * 3, 3, False, True),
        (8, 9, (6,), 2, True, True),
        (5, 31, RAGGED, 2, False, True),
        (3, 8, RAGGED, 2, True, True),
        (4, 15, RAGGED, 1, True, False),
        (1, 1, (1,), 1, False, True),
        (7, 65, (12,) * 9, 2, False, False),
        (30, 50, (40,) * 40, 1, False, True),  # 1,600 rows: more than one block of every product
        (12, 33, tuple(range(1, 61)), 1, True, True),
    ]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_agrees_with_torch(case):
    p = grid.problem_of(case)
    # Two float32 computations stray from each other by up to twice what one may stray from the exact result; where
    # PyTorch computes in float64, one allowance is enough.
    exact = dataclasses.replace(case, dtype="float64")
    wide = grid.Problem(
        {name: value.astype(np.float64) for name, value in p.params.items()},
        [x.astype(np.float64) for x in p.xs],
        tuple(part.astype(np.float64) for part in p.state),
        [d.astype(np.float64) for d in p.d_outputs],
        tuple(part.astype(np.float64) for part in p.d_state),
    )
    expected = torch_results(exact, wide)
    grid.check(case, grid.library(case), expected)
    grid.check(case, torch_results(case, p), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_training_follows_torch(kind):
    """Twenty steps of SGD with a softmax on top: the same losses, because every gradient of every step was right."""
    case = Case(kind, 6, 11, (8,) * 4, num_layers=2, dtype="float64")
    p = grid.problem_of(case)
    rng = np.random.default_rng(3)
    weight, targets = grid.asymmetric(rng, (7, 11)), rng.integers(0, 7, (4, 8))
    module, head = module_of(case, p.params), torch.nn.Parameter(torch.from_numpy(weight.copy()))
    optimiser = torch.optim.SGD([*module.parameters(), head], lr=0.05)
    layer, x = grid.layer_of(case, p.params), np.stack(p.xs)
    for _ in range(20):
        optimiser.zero_grad()
        logits = module(torch.from_numpy(x))[0] @ head.T
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 7), torch.from_numpy(targets).reshape(-1))
        loss.backward()
        optimiser.step()

        run = layer.forward(x)
        logits = run.output.reshape(-1, 11) @ weight.T
        d_logits = reference.softmax(logits)
        ours = -np.log(d_logits[np.arange(32), targets.ravel()]).mean()
        d_logits[np.arange(32), targets.ravel()] -= 1
        d_logits /= 32
        back = run.backward((d_logits @ weight).reshape(4, 8, 11))
        for name, gradient in back.params.items():
            layer.params[name] -= 0.05 * gradient
        weight = weight - 0.05 * (d_logits.T @ run.output.reshape(-1, 11))
        np.testing.assert_allclose(ours, loss.item(), **tolerances.SAME_FORMULA)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(layer.params[name], parameter.detach().numpy(), err_msg=name, rtol=1e-9, atol=1e-10)
