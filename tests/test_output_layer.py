"""softmax_loss and softmax_probabilities against a float64 oracle."""

from __future__ import annotations

import dataclasses
import zlib

import grid
import numpy as np
import pytest
import reference
import tolerances

from crnn import _kernels
from crnn.parameters import Parameters, Spec

VOCABULARIES = (1, 2, 15, 16, 17, 63, 64, 65, 1000)
SIZES = [  # (rows, hidden): row tails, width tails, one row, more rows than any tile
    *((rows, 12) for rows in (1, 2, 3, 5, 6, 7, 8, 9, 13)),
    (4, 1),
    (3, 16),
    (70, 17),
    (33, 65),
    (150, 5),
    (12, 20),  # where there are registers enough, six units of W stay while rows pass by, from 13 rows on
    *((13 + units, units) for units in (1, 2, 3, 4)),
]
# From 200 rows on, dh comes from weights that are turned round, 512 columns (of each eighth) and 900 bytes of units
# at a time. (vocabulary, rows, hidden): both sides of the limit, several pieces of columns, several of units.
MANY_ROWS = [(33, 199, 17), (33, 200, 17), (17, 201, 8), (4200, 203, 25), (65, 230, 241)]
# From 96 rows on columns of weights are copied, and where an eighth of the vocabulary is more than six or eight tiles
# wide, so are columns of h, 96 units and 128 rows (with sixteen registers 192) at a time.
COPIED = [(1700, 95, 11), (1700, 96, 11), (1999, 197, 101), (3400, 131, 98)]


@dataclasses.dataclass
class Head:
    """An output layer's stored weights (H, V), as the language model stores them, and some rows to feed it."""

    params: Parameters
    h: np.ndarray
    targets: np.ndarray

    @property
    def weight_t(self) -> np.ndarray:
        return self.params.storage("weight")

    @property
    def bias(self) -> np.ndarray:
        return self.params["bias"]


def head(vocabulary: int, rows: int, hidden: int, dtype: str, size: float = 1.0) -> Head:
    rng = np.random.default_rng(zlib.crc32(f"{vocabulary} {rows} {hidden} {dtype}".encode()))
    params = Parameters([Spec("weight", (vocabulary, hidden), transposed=True), Spec("bias", (vocabulary,))], dtype)
    params["weight"][...] = grid.asymmetric(rng, (vocabulary, hidden), dtype, size)
    params["bias"][...] = grid.asymmetric(rng, (vocabulary,), dtype, size)
    targets = rng.integers(0, vocabulary, rows)
    targets[0] = vocabulary - 1
    return Head(params, grid.asymmetric(rng, (rows, hidden), dtype, size), targets)


def close(actual: object, expected: np.ndarray, quantity: str, given: Head, what: str = "") -> None:
    terms = max(*given.h.shape, given.weight_t.shape[1])
    expected = np.asarray(expected)
    tolerances.assert_close(
        np.asarray(actual), expected, quantity, terms=terms, steps=1, what=what, dtype=given.h.dtype
    )


def padding_is_zero(params: Parameters, name: str) -> bool:
    stored = params.storage(name)
    whole = np.lib.stride_tricks.as_strided(
        stored, (stored.shape[0], stored.strides[0] // stored.itemsize), stored.strides, writeable=False
    )
    return not whole[:, stored.shape[1] :].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("vocabulary", "rows", "hidden"), [*((v, *size) for size in SIZES for v in VOCABULARIES), *MANY_ROWS, *COPIED]
)
def test_loss_and_gradients(vocabulary, rows, hidden, dtype, isa, threads):
    threads(1)
    given = head(vocabulary, rows, hidden, dtype)
    expected, d_h, d_weight, d_bias = reference.softmax_cross_entropy(
        given.h, given.params["weight"], given.bias, given.targets, scale=0.25
    )
    grads, dh = given.params.like(), np.full_like(given.h, 7.0)
    for view in grads.values():
        view[...] = 5.0  # must be overwritten
    losses = np.full(rows, np.nan)
    before = given.params.flat.copy()
    total = _kernels.softmax_loss(
        given.h, given.weight_t, given.bias, given.targets, dh, grads.storage("weight"), grads["bias"], 0.0, 0.25,
        False, losses,
    )  # fmt: skip
    close(total, expected.sum(), "loss", given)
    close(losses, expected, "loss", given)
    close(dh, d_h, "d_input", given, "dh")
    close(grads["weight"], d_weight, "d_params", given, "grad_w")
    close(grads["bias"], d_bias, "d_params", given, "grad_b")
    assert padding_is_zero(grads, "weight")
    assert given.params.flat.tobytes() == before.tobytes(), "the weights were changed"

    # Adding to gradients that are there already.
    _kernels.softmax_loss(
        given.h, given.weight_t, given.bias, given.targets, dh, grads.storage("weight"), grads["bias"],
        scale=0.25, accumulate=True,
    )  # fmt: skip
    close(dh, d_h, "d_input", given, "dh is overwritten, not added to")
    close(grads["weight"], 2 * d_weight, "d_params", given, "grad_w, added up")
    close(grads["bias"], 2 * d_bias, "d_params", given, "grad_b, added up")

    # The update folded into the product: dh still belongs to the weights before the update.
    fused = np.full_like(given.h, 7.0)
    total = _kernels.softmax_loss(
        given.h, given.weight_t, given.bias, given.targets, fused, sgd_rate=0.5, scale=0.25
    )  # fmt: skip
    weight, bias = before_update(given, before)
    close(total, expected.sum(), "loss", given)
    close(fused, d_h, "d_input", given, "dh of the fused update")
    close(given.params["weight"], weight - 0.5 * d_weight, "d_params", given, "updated weight")
    close(given.bias, bias - 0.5 * d_bias, "d_params", given, "updated bias")
    assert padding_is_zero(given.params, "weight")


def before_update(given: Head, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias as they were, in float64."""
    then = given.params.like()
    then.flat[...] = flat
    return then["weight"].astype(np.float64), then["bias"].astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_probabilities(vocabulary, bias, dtype, isa):
    given = head(vocabulary, 9, 12, dtype)
    out = np.full((9, vocabulary), 7.0, dtype)
    _kernels.softmax_probabilities(given.h, given.weight_t, given.bias if bias else None, out)
    logits = given.h.astype(np.float64) @ given.params["weight"].astype(np.float64).T + (given.bias if bias else 0)
    close(out, reference.softmax(logits), "probability", given)
    np.testing.assert_allclose(out.sum(axis=1, dtype=np.float64), 1.0, rtol=8 * np.finfo(dtype).eps * 12)


@pytest.mark.parametrize("wanted", ["nothing", "dh", "grad_w", "grad_b", "losses"])
def test_outputs_are_independent_of_each_other(wanted, isa):
    given = head(65, 13, 17, "float32")
    grads, all_grads = given.params.like(), given.params.like()
    outputs = {
        "dh": np.zeros_like(given.h),
        "grad_w": grads.storage("weight"),
        "grad_b": grads["bias"],
        "losses": np.zeros(13),
    }
    everything = {
        "dh": np.zeros_like(given.h),
        "grad_w": all_grads.storage("weight"),
        "grad_b": all_grads["bias"],
        "losses": np.zeros(13),
    }
    total = _kernels.softmax_loss(given.h, given.weight_t, given.bias, given.targets, **everything)
    chosen = {} if wanted == "nothing" else {wanted: outputs[wanted]}
    assert _kernels.softmax_loss(given.h, given.weight_t, given.bias, given.targets, **chosen) == total
    for name, array in chosen.items():
        np.testing.assert_array_equal(array, everything[name])


def test_no_bias(isa):
    given = head(33, 7, 9, "float64")
    expected, d_h, d_weight, _ = reference.softmax_cross_entropy(given.h, given.params["weight"], None, given.targets)
    grads, dh = given.params.like(), np.empty_like(given.h)
    total = _kernels.softmax_loss(given.h, given.weight_t, None, given.targets, dh, grads.storage("weight"))
    close(total, expected.sum(), "loss", given)
    close(dh, d_h, "d_input", given)
    close(grads["weight"], d_weight, "d_params", given)
    before = given.params["weight"].copy()
    _kernels.softmax_loss(given.h, given.weight_t, None, given.targets, sgd_rate=0.1)
    close(given.params["weight"], before - 0.1 * d_weight, "d_params", given)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [60.0, 3e4])
def test_extreme_logits(size, dtype, isa):
    """Logits far beyond exp's range: shifted by the maximum, nothing overflows and no loss is lost."""
    given = head(65, 9, 1, dtype)
    given.params["weight"][...] = np.linspace(-1, 1, 65, dtype=dtype)[:, None] * size
    given.bias[...] = 0
    given.h[...] = np.linspace(-2, 3, 9, dtype=dtype)[:, None]
    given.targets[:] = np.arange(9) * 8
    expected, d_h, d_weight, d_bias = reference.softmax_cross_entropy(
        given.h, given.params["weight"], given.bias, given.targets
    )
    grads, dh, losses = given.params.like(), np.empty_like(given.h), np.empty(9)
    total = _kernels.softmax_loss(
        given.h, given.weight_t, given.bias, given.targets, dh, grads.storage("weight"), grads["bias"], losses=losses
    )
    # The logits carry relative errors, and a loss is a difference of logits: allow their size.
    eps = np.finfo(dtype).eps
    limit = 8 * eps * 3 * size
    assert np.isfinite(total)
    assert abs(total - expected.sum()) <= 9 * limit
    np.testing.assert_allclose(losses, expected, rtol=0, atol=limit)
    np.testing.assert_allclose(grads["bias"], d_bias, rtol=0, atol=9 * limit)
    np.testing.assert_allclose(grads["weight"], d_weight, rtol=0, atol=27 * limit)
    np.testing.assert_allclose(dh, d_h, rtol=0, atol=2 * size * limit)
    out = np.empty((9, 65), dtype)
    _kernels.softmax_probabilities(given.h, given.weight_t, given.bias, out)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out.sum(axis=1), 1.0, rtol=65 * eps)


def test_equal_logits_give_the_uniform_distribution(isa):
    given = head(1000, 5, 3, "float64")
    given.params["weight"][...] = 0
    given.bias[...] = -123.0
    losses = np.empty(5)
    total = _kernels.softmax_loss(given.h, given.weight_t, given.bias, given.targets, losses=losses)
    np.testing.assert_allclose(losses, np.log(1000.0), rtol=1e-14)
    np.testing.assert_allclose(total, 5 * np.log(1000.0), rtol=1e-14)


def test_nan_and_infinity_are_not_swallowed(isa):
    for poison in (np.nan, np.inf):
        given = head(40, 6, 8, "float32")
        given.h[3, 2] = poison
        losses = np.empty(6)
        total = _kernels.softmax_loss(given.h, given.weight_t, given.bias, given.targets, losses=losses)
        assert not np.isfinite(total)
        assert not np.isfinite(losses[3])
        assert np.isfinite(np.delete(losses, 3)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("vocabulary", "rows", "hidden"), [(1000, 70, 17), (65, 300, 33), (3000, 2, 40), (7, 1, 5), *MANY_ROWS, *COPIED]
)
@pytest.mark.parametrize("fused", [False, True])
def test_threads_do_not_change_a_bit(fused, vocabulary, rows, hidden, dtype, isa, threads):
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        given = head(vocabulary, rows, hidden, dtype)
        grads, dh, losses = given.params.like(), np.empty_like(given.h), np.empty(rows)
        outputs = {"sgd_rate": 0.1} if fused else {"grad_w": grads.storage("weight"), "grad_b": grads["bias"]}
        total = _kernels.softmax_loss(
            given.h, given.weight_t, given.bias, given.targets, dh, losses=losses, **outputs
        )  # fmt: skip
        found.append((total, dh.tobytes(), losses.tobytes(), grads.flat.tobytes(), given.params.flat.tobytes()))
    assert found.count(found[0]) == len(found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("vocabulary", [65, 10_007])
def test_company_does_not_change_a_bit(vocabulary, dtype, isa):
    """Rows are taken one by one, a few or many at a time (fewer than are turned): every sum has the same order."""
    given = head(vocabulary, 40, 23, dtype)

    def gradient(first, last):
        dh = np.empty_like(given.h[first:last])
        _kernels.softmax_loss(given.h[first:last], given.weight_t, given.bias, given.targets[first:last], dh)
        return dh

    together = gradient(0, 40)
    for first, last in ((0, 1), (1, 7), (7, 19), (19, 32), (14, 40)):
        np.testing.assert_array_equal(gradient(first, last), together[first:last])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fused", [False, True])
def test_more_rows_than_one_block_of_logits(fused, dtype, threads):
    """Far more logits than are held at a time: every block must see the same weights, and add to the same gradient."""
    threads(2)
    rows = 9_000 if dtype == "float32" else 4_500
    given = head(1000, rows, 3, dtype)
    scale = 1e-3
    expected, d_h, d_weight, d_bias = reference.softmax_cross_entropy(
        given.h, given.params["weight"], given.bias, given.targets, scale
    )
    dh, losses, before = np.full_like(given.h, 7.0), np.empty(rows), given.params.flat.copy()
    weight, bias = before_update(given, before)
    if fused:
        total = _kernels.softmax_loss(
            given.h, given.weight_t, given.bias, given.targets, dh, sgd_rate=3.0, scale=scale, losses=losses
        )
        found, wanted = given.params, (weight - 3.0 * d_weight, bias - 3.0 * d_bias)
    else:
        found, wanted = given.params.like(), (d_weight, d_bias)
        total = _kernels.softmax_loss(
            given.h, given.weight_t, given.bias, given.targets, dh, found.storage("weight"), found["bias"],
            scale=scale, losses=losses,
        )  # fmt: skip
    close(losses, expected, "loss", given)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5 if dtype == "float32" else 1e-12)
    close(dh, d_h, "d_input", given)
    # A row more or less of 9,000 in the wrong weights would show at the size of scale * h * p: bound it far below.
    limit = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(found["weight"], wanted[0], rtol=0, atol=limit * 3)
    np.testing.assert_allclose(found["bias"], wanted[1], rtol=0, atol=limit * 3)


def test_no_rows():
    given = head(17, 1, 5, "float32")
    grads = given.params.like()
    grads["weight"][...] = 3.0
    empty = np.empty((0, 5), np.float32)
    total = _kernels.softmax_loss(
        empty, given.weight_t, given.bias, np.empty(0, np.int64), np.empty_like(empty), grads.storage("weight")
    )
    assert total == 0.0
    assert not grads["weight"].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("vocabulary", "rows"), [(8192, 7), (8193, 7), (8193, 15), (20_011, 7), (20_011, 22)])
def test_large_vocabularies(vocabulary, rows, dtype, isa, threads):
    """Each slab of columns is walked in several pieces, whose parts of dH add up."""
    threads(2)
    given = head(vocabulary, rows, 9, dtype)
    expected, d_h, d_weight, d_bias = reference.softmax_cross_entropy(
        given.h, given.params["weight"], given.bias, given.targets
    )
    grads, dh, losses = given.params.like(), np.full_like(given.h, 7.0), np.empty(rows)
    _kernels.softmax_loss(
        given.h, given.weight_t, given.bias, given.targets, dh, grads.storage("weight"), grads["bias"], losses=losses
    )
    limit = 64 * np.finfo(dtype).eps
    for found, wanted in ((losses, expected), (dh, d_h), (grads["weight"], d_weight), (grads["bias"], d_bias)):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=limit * np.abs(wanted).max())


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_rows_make_gradients_zero_or_leave_what_they_add_to(dtype, accumulate, isa):
    given = head(17, 3, 5, dtype)
    grads = given.params.like()
    for view in grads.values():
        view[...] = 5.0
    total = _kernels.softmax_loss(
        given.h[:0], given.weight_t, given.bias, given.targets[:0], None, grads.storage("weight"), grads["bias"],
        accumulate=accumulate,
    )  # fmt: skip
    assert total == 0.0
    for name, view in grads.items():
        np.testing.assert_array_equal(view, np.full_like(view, 5.0 if accumulate else 0.0), err_msg=name)
