"""The update kernels against plain NumPy and torch.optim, dense and row-sparse."""

from __future__ import annotations

import inspect

import grid
import numpy as np
import pytest
from numpy.typing import NDArray

from crnn import _kernels

Array = NDArray[np.float64]


def sgd(p: Array, g: Array, rate: float) -> None:
    p -= rate * g


def momentum(p: Array, g: Array, v: Array, rate: float, mu: float) -> None:
    v[...] = mu * v + g
    p -= rate * v


def adagrad(p: Array, g: Array, s: Array, rate: float, eps: float) -> None:
    s += g * g
    p -= rate * g / (np.sqrt(s) + eps)


def rmsprop(p: Array, g: Array, s: Array, rate: float, alpha: float, eps: float) -> None:
    s[...] = alpha * s + (1 - alpha) * g * g
    p -= rate * g / (np.sqrt(s) + eps)


def adam(
    p: Array, g: Array, m: Array, v: Array, rate: float, beta1: float, beta2: float, eps: float, step: int, decay: float
) -> None:
    p *= 1 - rate * decay
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    p -= rate / (1 - beta1**step) * m / (np.sqrt(v / (1 - beta2**step)) + eps)


def numbers(step: int) -> dict[str, tuple[object, int, tuple]]:
    """Rule -> its NumPy form, how many moments, and its numbers at this step (all far from the usual ones)."""
    return {
        "sgd": (sgd, 0, (0.3,)),
        "momentum": (momentum, 1, (0.3, 0.7)),
        "adagrad": (adagrad, 1, (0.3, 1e-3)),
        "rmsprop": (rmsprop, 1, (0.3, 0.8, 1e-3)),
        "adam": (adam, 2, (0.3, 0.8, 0.95, 1e-3, step, 0.0)),
        "adamw": (adam, 2, (0.3, 0.8, 0.95, 1e-3, step, 0.2)),
    }


RULES = tuple(numbers(1))


def kernel(rule: str, rows: bool = False) -> object:
    return getattr(_kernels, rule.removesuffix("w") + ("_rows" if rows else ""))


def close(actual: np.ndarray, expected: Array, steps: int) -> None:
    """A few roundings per step and element; the root's and the quotient's relative errors carry the rate's size."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=16 * steps * np.finfo(actual.dtype).eps)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1000, 70_001])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_dense_rules(rule, dtype, n, isa, rng):
    p = grid.asymmetric(rng, (n,), dtype)
    moments = [np.zeros(n, dtype) for _ in range(numbers(1)[rule][1])]
    exact, exact_moments = p.astype(np.float64), [np.zeros(n) for _ in moments]
    for step in range(1, 4):
        formula, _, rates = numbers(step)[rule]
        g = grid.asymmetric(rng, (n,), dtype)
        before = g.copy()
        kernel(rule)(p, g, *moments, *rates)
        formula(exact, g.astype(np.float64), *exact_moments, *rates)
        assert g.tobytes() == before.tobytes()
        close(p, exact, step)
        for moment, expected in zip(moments, exact_moments):
            close(moment, expected, step)


@pytest.mark.parametrize("step", [21, 400, 10**6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["adam", "adamw"])
def test_corrections_of_late_steps(rule, dtype, step, isa, rng):
    formula, _, rates = numbers(step)[rule]
    beta2 = 1 - 0.5 / step  # far from 1 is the correction at this step, whichever it is
    rates = (*rates[:2], beta2, *rates[3:])
    p, g, mean = (grid.asymmetric(rng, (37,), dtype) for _ in range(3))
    square = np.abs(grid.asymmetric(rng, (37,), dtype)) + np.ones((), dtype)
    exact = [array.astype(np.float64) for array in (p, g, mean, square)]
    kernel(rule)(p, g, mean, square, *rates)
    formula(*exact, *rates)
    for actual, expected in zip((p, g, mean, square), exact):
        close(actual, expected, 4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 5), (40, 17), (23, 64), (300, 33)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_rows_equal_the_dense_rule(rule, dtype, height, width, isa, rng):
    """Rows that are not named have gradient zero: their moments decay and their weights move, as in the dense rule."""
    wide = np.full((3, height, width + 3), 7.0, dtype)  # p and moments with a row stride of their own
    p, *moments = (array[:, :width] for array in wide[: 1 + numbers(1)[rule][1]])
    p[...] = grid.asymmetric(rng, p.shape, dtype)
    for moment in moments:
        moment[...] = 0
    dense, dense_moments = p.ravel().copy(), [moment.ravel().copy() for moment in moments]
    for step in range(1, 5):
        rates = numbers(step)[rule][2]
        named = int(rng.integers(0, height + 1)) if step > 1 else height  # all of them, then some, perhaps none
        ids = np.sort(rng.choice(height, named, replace=False)).astype(np.int64)
        g = grid.asymmetric(rng, (named, width), dtype)
        full = np.zeros((height, width), dtype)
        full[ids] = g
        kernel(rule, rows=True)(p, ids, g, *moments, *rates)
        kernel(rule)(dense, full.ravel(), *dense_moments, *rates)
        for sparse, whole in zip([p, *moments], [dense, *dense_moments], strict=True):
            np.testing.assert_allclose(sparse.ravel(), whole, rtol=0, atol=4 * step * np.finfo(dtype).eps)
    assert (wide[:, :, width:] == 7.0).all(), "the padding between rows was written"


@pytest.mark.parametrize("rule", RULES)
def test_no_named_rows_at_all(rule):
    formula, count, rates = numbers(2)[rule]
    p, moments = np.full((4, 3), 2.0), [np.full((4, 3), 0.5) for _ in range(count)]
    expected, exact_moments = p.copy(), [moment.copy() for moment in moments]
    formula(expected, np.zeros((4, 3)), *exact_moments, *rates)
    kernel(rule, rows=True)(p, np.empty(0, np.int64), np.empty((0, 3)), *moments, *rates)
    np.testing.assert_allclose(p, expected, rtol=1e-15)
    for moment, exact in zip(moments, exact_moments):
        np.testing.assert_allclose(moment, exact, rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_agrees_with_torch_optim(rule, dtype, rng):
    torch = pytest.importorskip(
        "torch", reason="PyTorch IS NOT INSTALLED: the rules were NOT compared with torch.optim"
    )
    p = grid.asymmetric(rng, (37,), dtype)
    weight = torch.nn.Parameter(torch.from_numpy(p.copy()))
    rates = numbers(1)[rule][2]
    optimiser = {
        "sgd": lambda: torch.optim.SGD([weight], lr=rates[0]),
        "momentum": lambda: torch.optim.SGD([weight], lr=rates[0], momentum=rates[1]),
        "adagrad": lambda: torch.optim.Adagrad([weight], lr=rates[0], eps=rates[1]),
        "rmsprop": lambda: torch.optim.RMSprop([weight], lr=rates[0], alpha=rates[1], eps=rates[2]),
        "adam": lambda: torch.optim.Adam([weight], lr=rates[0], betas=rates[1:3], eps=rates[3]),
        "adamw": lambda: torch.optim.AdamW(
            [weight], lr=rates[0], betas=rates[1:3], eps=rates[3], weight_decay=rates[5]
        ),
    }[rule]()
    moments = [np.zeros(37, dtype) for _ in range(numbers(1)[rule][1])]
    for step in range(1, 12):
        g = grid.asymmetric(rng, (37,), dtype)
        weight.grad = torch.from_numpy(g.copy())
        optimiser.step()
        kernel(rule)(p, g, *moments, *numbers(step)[rule][2])
        close(p, weight.detach().numpy().astype(np.float64), 4 * step)


@pytest.mark.parametrize("rule", RULES)
def test_threads_do_not_change_a_bit(rule, threads, rng):
    p = grid.asymmetric(rng, (300_003,), "float32")
    g = grid.asymmetric(rng, p.shape, "float32")
    found = []
    for count in (1, 2, 3):
        threads(count)
        own, moments = p.copy(), [np.zeros_like(p) for _ in range(numbers(1)[rule][1])]
        kernel(rule)(own, g, *moments, *numbers(1)[rule][2])
        found.append(own.tobytes())
    assert found.count(found[0]) == 3


def test_every_rule_has_a_test():
    """Whatever *_rows kernel there is, its rule is in the table above."""
    there = {name.removesuffix("_rows") for name in dir(_kernels) if name.endswith("_rows")}
    assert there - {"take", "put", "add"} == {rule.removesuffix("w") for rule in RULES}
    assert all(inspect.isroutine(kernel(rule, rows)) for rule in RULES for rows in (False, True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
@pytest.mark.parametrize("rest", [1e-4, 1e-6, 1e-8])
def test_averages_over_very_many_steps(rule, rest, dtype, rng):
    """1 - beta to the digits of double precision: from a rounded beta it would be wrong by 6e-8 / rest in float32.

    The relative error of each of 40 steps is a few roundings, and the weights move by some 40 rates.
    """
    shape = (130,)
    wide = [np.zeros(shape) for _ in range(3)]
    narrow = [np.zeros(shape, dtype) for _ in range(3)]
    function, moments, _ = numbers(1)[rule]
    for step in range(1, 41):
        g = rng.normal(size=shape).astype(dtype)
        options = (0.1, 1 - rest, 1e-8) if rule == "rmsprop" else (0.1, 0.9, 1 - rest, 1e-8, step, 0.0)
        function(wide[0], g.astype("float64"), *wide[1 : 1 + moments], *options)
        getattr(_kernels, rule)(narrow[0], g, *narrow[1 : 1 + moments], *options)
    tolerance = 40 * 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(narrow[0], wide[0], rtol=0, atol=tolerance * np.abs(wide[0]).max())
    assert np.abs(wide[0]).max() > 0.1
