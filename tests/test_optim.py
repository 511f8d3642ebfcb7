"""The optimisers over whole models: dense and row-sparse, weight decay, clipping, state; against NumPy and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import crnn
from crnn import optim
from crnn.parameters import Parameters, Spec

# A tensor stored with padded rows before, between and behind dense ones, so that a wrong span shows.
SPECS = (
    Spec("first", (3, 5)),
    Spec("words", (4, 9), transposed=True),
    Spec("middle", (7,)),
    Spec("embedding", (11, 3)),
    Spec("last", (2, 2)),
)
SPARSE = ("words", "embedding")

RULES: dict[str, Callable[[], optim.Optimizer]] = {
    "sgd": lambda: optim.SGD(0.1),
    "sgd decay": lambda: optim.SGD(0.1, weight_decay=0.3),
    "momentum": lambda: optim.SGD(0.1, momentum=0.8),
    "momentum decay": lambda: optim.SGD(0.1, momentum=0.8, weight_decay=0.3),
    "adagrad": lambda: optim.Adagrad(0.1, eps=1e-3),
    "adagrad decay": lambda: optim.Adagrad(0.1, initial=0.2, weight_decay=0.3),
    "rmsprop": lambda: optim.RMSprop(0.1, alpha=0.7, eps=1e-3),
    "rmsprop decay": lambda: optim.RMSprop(0.1, weight_decay=0.3),
    "adam": lambda: optim.Adam(0.1, betas=(0.6, 0.8), eps=1e-3),
    "adam decay": lambda: optim.Adam(0.1, weight_decay=0.3),
    "adamw": lambda: optim.AdamW(0.1, weight_decay=0.3),
}


def random(rng: np.random.Generator, dtype: Any = np.float64) -> Parameters:
    parameters = Parameters(SPECS, dtype)
    for name, view in parameters.items():
        parameters[name] = rng.normal(size=view.shape)
    return parameters


def sparse_gradients(rng: np.random.Generator, parameters: Parameters) -> tuple[Parameters, optim.Rows, Parameters]:
    """(dense part with rubbish in the sparse names, rows, the whole gradient dense)."""
    whole = parameters.like()
    dense = parameters.like()
    rows = {}
    for name in parameters:
        if name in SPARSE:
            stored = whole.storage(name)
            ids = np.sort(rng.choice(len(stored), rng.integers(1, len(stored)), replace=False))
            values = rng.normal(size=(len(ids), stored.shape[1])).astype(parameters.dtype)
            stored[ids] = values
            rows[name] = ids, values
            dense[name][...] = 1e6
        else:
            whole[name] = rng.normal(size=whole[name].shape)
            dense[name] = whole[name]
    return dense, rows, whole


def padding(parameters: Parameters) -> np.ndarray:
    """Every element of the buffer that no tensor shows."""
    copy = parameters.copy()
    for view in copy.values():
        view[...] = 0.0
    return copy.flat


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_rows_give_the_dense_rule_with_zeros_elsewhere(rule, dtype, rng) -> None:
    sparse = random(rng, dtype)
    dense = sparse.copy()
    one, other = RULES[rule](), RULES[rule]()
    tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype is np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    for _ in range(4):
        part, rows, whole = sparse_gradients(rng, sparse)
        one.step(sparse, part, rows)
        other.step(dense, whole)
    for name in sparse:
        np.testing.assert_allclose(sparse[name], dense[name], **tolerance, err_msg=name)
        for moment in one.state:
            np.testing.assert_allclose(one.state[moment][name], other.state[moment][name], **tolerance, err_msg=name)
    assert not padding(sparse).any()
    assert one.steps == 4


def by_hand(rule: str, p: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """The rules as they stand in PyTorch's documentation, step by step."""
    p = p.copy()
    m, s = np.zeros_like(p), np.full_like(p, 0.2 if rule == "adagrad decay" else 0.0)
    for t, g in enumerate(gradients, start=1):
        if rule.endswith("decay"):
            g = g + 0.3 * p
        match rule.split()[0]:
            case "sgd":
                p -= 0.1 * g
            case "momentum":
                m = 0.8 * m + g
                p -= 0.1 * m
            case "adagrad":
                s += g**2
                p -= 0.1 * g / (np.sqrt(s) + (1e-3 if rule == "adagrad" else 1e-10))
            case "rmsprop":
                alpha, eps = (0.7, 1e-3) if rule == "rmsprop" else (0.99, 1e-8)
                s = alpha * s + (1 - alpha) * g**2
                p -= 0.1 * g / (np.sqrt(s) + eps)
            case _:
                beta1, beta2, eps = (0.6, 0.8, 1e-3) if rule == "adam" else (0.9, 0.999, 1e-8)
                if rule == "adamw":
                    p *= 1 - 0.1 * 0.3
                m = beta1 * m + (1 - beta1) * g
                s = beta2 * s + (1 - beta2) * g**2
                p -= 0.1 * (m / (1 - beta1**t)) / (np.sqrt(s / (1 - beta2**t)) + eps)
    return p


@pytest.mark.parametrize("rule", RULES)
def test_dense_rules_by_hand(rule, rng) -> None:
    parameters = random(rng)
    start = parameters.copy()
    optimizer = RULES[rule]()
    gradients = [random(rng) for _ in range(5)]
    kept = [g.copy() for g in gradients]
    for g in gradients:
        optimizer.step(parameters, g)
    for name in parameters:
        expected = by_hand(rule, start[name], [g[name] for g in kept])
        np.testing.assert_allclose(parameters[name], expected, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("rule", RULES)
def test_against_torch(rule, rng) -> None:
    torch = pytest.importorskip("torch", reason="TORCH IS NOT INSTALLED: update rules were NOT compared with it")
    decay = {"weight_decay": 0.3} if rule.endswith("decay") or rule == "adamw" else {"weight_decay": 0.0}
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, **decay),
        "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, **decay),
        "adagrad": lambda p: torch.optim.Adagrad(
            p, 0.1, eps=1e-10 if "decay" in rule else 1e-3, initial_accumulator_value=0.2 * ("decay" in rule), **decay
        ),
        "rmsprop": lambda p: torch.optim.RMSprop(
            p, 0.1, **({"alpha": 0.99, "eps": 1e-8} if "decay" in rule else {"alpha": 0.7, "eps": 1e-3}), **decay
        ),
        "adam": lambda p: torch.optim.Adam(
            p, 0.1, **({} if "decay" in rule else {"betas": (0.6, 0.8), "eps": 1e-3}), **decay
        ),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, **decay),
    }[rule.split()[0]]
    parameters = random(rng)
    theirs = {name: torch.nn.Parameter(torch.tensor(np.array(p))) for name, p in parameters.items()}
    ours, reference = RULES[rule](), make(list(theirs.values()))
    for _ in range(6):
        gradients = random(rng)
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(np.array(gradients[name]))
        ours.step(parameters, gradients)
        reference.step()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(parameters[name], tensor.detach().numpy(), rtol=1e-10, atol=1e-12, err_msg=name)


def test_decay_of_rows_never_makes_a_dense_gradient(rng) -> None:
    """Rows beyond one block: every row decays, also those in blocks where no row is named."""
    parameters = Parameters([Spec("big", (3000, 40)), Spec("small", (2,))], np.float64)
    parameters["big"] = rng.normal(size=(3000, 40))
    dense = parameters.copy()
    ids = np.array([0, 1637, 1638, 1639, 2999])
    values = rng.normal(size=(5, 40))
    whole = parameters.like()
    whole["big"][ids] = values
    optim.SGD(0.1, momentum=0.5, weight_decay=0.2).step(parameters, parameters.like(), {"big": (ids, values)})
    optim.SGD(0.1, momentum=0.5, weight_decay=0.2).step(dense, whole)
    np.testing.assert_allclose(parameters["big"], dense["big"], rtol=1e-13)


def test_the_rate_of_a_step(rng) -> None:
    parameters = random(rng)
    before, gradients = parameters.copy(), random(rng)
    optim.SGD(0.1).step(parameters, gradients, rate=0.4)
    np.testing.assert_allclose(parameters["middle"], before["middle"] - 0.4 * gradients["middle"], rtol=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_state_continues_to_the_same_bits(rule, rng) -> None:
    start = random(rng)
    gradients = [sparse_gradients(rng, start) for _ in range(6)]

    def run(parameters: Parameters, optimizer: optim.Optimizer, steps: slice) -> None:
        for dense, rows, _ in gradients[steps]:
            optimizer.step(parameters, dense.copy(), {k: (i, v.copy()) for k, (i, v) in rows.items()})

    whole, part = start.copy(), start.copy()
    run(whole, RULES[rule](), slice(0, 6))
    first, second = RULES[rule](), RULES[rule]()
    run(part, first, slice(0, 3))
    state = first.state_dict()
    state["moments"] = {m: {k: np.array(v) for k, v in twin.items()} for m, twin in state["moments"].items()}
    second.load_state_dict(state, part)
    run(part, second, slice(3, 6))
    np.testing.assert_array_equal(part.flat, whole.flat)


def test_foreign_states_and_models_are_refused(rng) -> None:
    parameters = random(rng)
    adam = optim.Adam()
    adam.step(parameters, random(rng))
    with pytest.raises(ValueError, match=r"state of RMSprop: got the moments \['mean', 'squares'\]"):
        optim.RMSprop().load_state_dict(adam.state_dict(), parameters)
    other = Parameters([Spec("first", (3, 4))], np.float64)
    with pytest.raises(ValueError, match="middle: unexpected"):
        optim.Adam().load_state_dict(adam.state_dict(), other)
    with pytest.raises(ValueError, match="make a new optimiser"):
        adam.step(other, other.like())
    with pytest.raises(ValueError, match="float32"):
        adam.step(random(rng, np.float32), random(rng, np.float32))


@pytest.mark.parametrize("rule", RULES)
def test_a_refused_step_changes_nothing(rule, rng) -> None:
    parameters, optimizer = random(rng), RULES[rule]()
    # As many elements as the first, in other tensors.
    other = Parameters([Spec("first", (5, 3)), *SPECS[1:]], np.float64)
    assert other.flat.size == parameters.flat.size
    before = parameters.flat.copy()
    for gradients, rate, error, message in (
        (other, None, ValueError, r"gradients: got Parameters .*first \(5, 3\).*, wanted the twin of"),
        (random(rng, np.float32), None, ValueError, "float32 values"),
        (dict(random(rng)), None, TypeError, "gradients: got a dict"),
        (random(rng), float("nan"), ValueError, "rate: got nan"),
        (random(rng), float("inf"), ValueError, "rate"),
        (random(rng), -1.0, ValueError, "rate: got -1.0, wanted at least 0"),
    ):
        with pytest.raises(error, match=message):
            optimizer.step(parameters, gradients, rate=rate)
    assert optimizer.steps == 0
    np.testing.assert_array_equal(parameters.flat, before)
    optimizer.step(parameters, random(rng))
    if optimizer.moments:
        with pytest.raises(ValueError, match="make a new optimiser"):
            optimizer.step(other, other.like())
    assert optimizer.steps == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": -3}, ValueError, "steps must be at least 0, got -3"),
        ({"steps": 2.7}, TypeError, "steps must be a whole number"),
        ({"extra": 1}, ValueError, "wanted steps and moments"),
        ({"moments": None}, ValueError, "negative squares"),
    ],
)
def test_states_that_cannot_be_are_refused(change, error, message, rng) -> None:
    parameters, adam = random(rng), optim.Adam()
    adam.step(parameters, random(rng))
    state = adam.state_dict() | change
    if state["moments"] is None:
        state["moments"] = {"mean": dict(random(rng)), "squares": dict(random(rng))}
    with pytest.raises(error, match=message):
        adam.load_state_dict(state, parameters)
    assert adam.steps == 1


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [optim.clip_norm, optim.clip_value])
def test_limits_that_cannot_be_are_refused(clip, limit, rng) -> None:
    gradients = random(rng)
    before = gradients.flat.copy()
    with pytest.raises(ValueError, match="limit: got"):
        clip(gradients, None, limit)
    np.testing.assert_array_equal(gradients.flat, before)


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_writes_into_padding(rule, rng) -> None:
    parameters, optimizer = random(rng, np.float32), RULES[rule]()
    for _ in range(3):
        optimizer.step(parameters, random(rng, np.float32))
    views = [parameters.storage(name) for name in parameters]
    for view in views:
        view[...] = 0
    assert not parameters.flat.any()


def test_norm_counts_dense_and_rows_and_nothing_else(rng) -> None:
    parameters = random(rng)
    dense, rows, whole = sparse_gradients(rng, parameters)
    expected = np.sqrt(sum(float((view**2).sum()) for view in whole.values()))
    assert optim.global_norm(dense, rows) == pytest.approx(expected, rel=1e-13)
    assert optim.global_norm(whole) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_clip_norm(limit, rng) -> None:
    parameters = random(rng)
    dense, rows, whole = sparse_gradients(rng, parameters)
    norm = optim.global_norm(whole)
    assert optim.clip_norm(dense, rows, limit) == pytest.approx(norm, rel=1e-13)
    factor = min(1.0, limit / norm)
    assert optim.global_norm(dense, rows) == pytest.approx(norm * factor, rel=1e-12)
    np.testing.assert_allclose(dense["middle"], whole["middle"] * factor, rtol=1e-13)
    ids, values = rows["words"]
    np.testing.assert_allclose(values, whole.storage("words")[ids] * factor, rtol=1e-13)
    assert (dense["words"] == 1e6).all()


def test_clip_value(rng) -> None:
    dense, rows, whole = sparse_gradients(rng, random(rng))
    optim.clip_value(dense, rows, 0.3)
    np.testing.assert_array_equal(dense["last"], np.clip(whole["last"], -0.3, 0.3))
    ids, values = rows["embedding"]
    np.testing.assert_array_equal(values, np.clip(whole["embedding"][ids], -0.3, 0.3))
    assert (dense["embedding"] == 1e6).all()


def test_only_plain_sgd_is_plain() -> None:
    assert [name for name, make in RULES.items() if make().is_plain_sgd] == ["sgd"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.SGD(0.0), ValueError, "learning_rate: got 0.0"),
        (lambda: optim.SGD(-1.0), ValueError, "learning_rate"),
        (lambda: optim.SGD(float("nan")), ValueError, "learning_rate"),
        (lambda: optim.SGD("0.1"), TypeError, "learning_rate"),
        (lambda: optim.SGD(0.1, momentum=1.0), ValueError, "momentum: got 1.0, wanted 0 <= momentum < 1"),
        (lambda: optim.SGD(0.1, weight_decay=-0.1), ValueError, "weight_decay"),
        (lambda: optim.Adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda: optim.Adam(betas=(0.9,)), ValueError, "betas"),
        (lambda: optim.Adam(betas=0.9), ValueError, "betas: got 0.9"),
        (lambda: optim.Adam(eps=-1.0), ValueError, "eps"),
        (lambda: optim.Adam(eps=0.0), ValueError, "eps: got 0.0, wanted at least 1.2e-38"),
        (lambda: optim.RMSprop(eps=1e-60), ValueError, "eps"),
        (lambda: optim.Adagrad(eps=0.0), ValueError, "eps"),
        (lambda: optim.RMSprop(alpha=1.5), ValueError, "alpha"),
        (lambda: optim.Adagrad(initial=-1.0), ValueError, "initial"),
    ],
)
def test_arguments_are_checked(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_representation() -> None:
    assert repr(optim.SGD(1, 0.5)) == "SGD(learning_rate=1.0, momentum=0.5, weight_decay=0.0)"
    assert repr(optim.AdamW()) == "AdamW(learning_rate=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)"


def test_mapped_weights_are_refused_and_no_step_counted(tmp_path) -> None:
    crnn.LanguageModel(9, "gru", 4, rng=0).save(tmp_path / "m.safetensors", mappable=True)
    model = crnn.load(tmp_path / "m.safetensors", mmap=True)
    rule = optim.Adam(0.1)
    with pytest.raises(ValueError, match="mapped from a file, read-only"):
        rule.step(model.parameters, model.parameters.like())
    assert rule.steps == 0
