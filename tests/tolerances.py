"""How far the library may stray from the float64 oracle: one table, with its derivation.

A product of length K accumulated in working precision errs by about sqrt(K) * eps * the size of its terms (random
rounding; the worst case is K * eps); a recurrence of T steps adds T such errors, and each gate function a few ULP
more. So every quantity is allowed

    FACTOR[quantity] * eps(dtype) * sqrt(K) * T * scale,   scale = max(1, largest |expected| of the tensor)

with K the longest sum that goes into it: input + hidden width for states, also the number of rows for parameter
gradients (a sum over rows), the vocabulary for the output layer. The test data are of order one, so a scale below one
would only measure cancellation. The factors cover the constants of the derivation: 1 ULP = eps, at most 4 ULP per gate
function, and two products per step through it. A tolerance is never raised without saying here why.
"""

from __future__ import annotations

import numpy as np

# Beside each: the largest error seen over the whole grid, all instruction sets and both dtypes, in the same unit. The
# room between them (a factor of about 4) is for other compilers, and for processors without fused multiply-add.
FACTOR = {
    "output": 2.0,  # 0.50
    "state": 2.0,  # 0.50
    "d_input": 2.0,  # 0.49
    "d_state": 2.5,  # 0.60
    "d_params": 3.0,  # 0.66
    "loss": 2.0,  # 0.39
    "probability": 1.0,  # 0.19
}

# float64 central differences, 4th-order stencil with h = 1e-3: truncation h^4 / 30 * |5th derivative| ~ 3e-14 * O(100),
# rounding eps * |loss| / h ~ 2e-13 * O(10). Both stay below 1e-9 absolute; 1e-7 relative for the larger entries.
DIFFERENCES = {"rtol": 1e-7, "atol": 1e-9}

# float64 against another float64 implementation of the same formulas, order of sums apart.
SAME_FORMULA = {"rtol": 1e-11, "atol": 1e-12}


def allowed(quantity: str, dtype: np.dtype, terms: int, steps: int, scale: float) -> float:
    """The largest absolute error that `quantity` may show; see the module's derivation."""
    return FACTOR[quantity] * float(np.finfo(dtype).eps) * np.sqrt(max(terms, 1)) * max(steps, 1) * max(1.0, scale)


def assert_close(
    actual: np.ndarray, expected: np.ndarray, quantity: str, *, terms: int, steps: int, what: str = "", dtype=None
) -> None:
    """Assert |actual - expected| <= allowed everywhere, with expected from the float64 oracle."""
    dtype = np.dtype(actual.dtype if dtype is None else dtype)
    assert actual.shape == expected.shape, f"{what or quantity}: shape {actual.shape}, wanted {expected.shape}"
    if expected.size == 0:
        return
    limit = allowed(quantity, dtype, terms, steps, float(np.abs(expected).max()))
    error = np.abs(actual.astype(np.float64) - expected)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
    assert error[worst] <= limit, (
        f"{what or quantity}: |{actual[worst]!r} - {expected[worst]!r}| = {error[worst]:.3g} > {limit:.3g} "
        f"at {tuple(int(i) for i in worst)} ({dtype}, sums of {terms}, {steps} steps)"
    )
