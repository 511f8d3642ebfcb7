"""The gradient check: passes on right gradients of every kind, and fails on each wrong one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from language_oracle import Oracle, reach_of

import crnn
from crnn.bptt import Chunk, Full, Window
from crnn.gradient_check import GradientError, GradientReport, gradient_check, surrogate_loss

WORDS = 11
X = [[0, 3, 10, 3, 5, 2, 2, 7], [4, 1]]
Y = [[3, 10, 3, 5, 2, 2, 7, 1], [1, 9]]

MODELS = {
    "rnn": {"cell": "rnn", "bias": False},
    "relu": {"cell": "rnn", "nonlinearity": "relu", "embedding_size": 4},
    "sigmoid": {"cell": "rnn", "nonlinearity": "sigmoid", "num_layers": 2},
    "lstm": {"cell": "lstm", "num_layers": 2, "embedding_size": 4},
    "gru": {"cell": "gru", "embedding_size": 6, "tie_weights": True},
    "gru-torch": {"cell": "gru", "num_layers": 2, "reset_after": True, "z_weighs": "state"},
}


def make(name: str, **options) -> crnn.LanguageModel:
    model = crnn.LanguageModel(WORDS, hidden_size=6, rng=2, **{**MODELS[name], **options})
    model.initialise(2, scale=0.6)
    return model


@pytest.mark.parametrize("truncation", [None, Window(1), Window(3), Chunk(3), Chunk(2, 5)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_right_gradients_pass(name: str, truncation: object) -> None:
    model = make(name)
    before = model.parameters.flat.copy()
    report = model.gradient_check(X, Y, truncation, samples=8)
    assert report.passed
    assert report.worst.worst < 1e-7
    assert [tensor.name for tensor in report.tensors] == list(model.parameters)
    for tensor in report.tensors:
        assert tensor.checked == min(tensor.size, 8)
        assert tensor.name in str(report)
    assert report.truncation == (truncation or Full())
    np.testing.assert_array_equal(model.parameters.flat, before)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_oracle_s(name: str) -> None:
    model = make(name, dtype=np.float64)
    expected = sum(float(losses.sum()) for losses in Oracle(model, X).losses(Y))
    for truncation in (None, Window(2), Chunk(2, 3)):  # unperturbed, the surrogate is the loss
        found = sum(surrogate_loss(model, x, y, truncation) for x, y in zip(X, Y))
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_every_tensor_s_error_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    right = crnn.LanguageModel.gradients
    for wrong_name in model.parameters:

        def wrong(self, x, y, truncation=None, wrong_name=wrong_name):
            found = right(self, x, y, truncation)
            gradient = found[wrong_name]
            at = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
            gradient[at] *= 1.0 + 1e-5
            return found

        monkeypatch.setattr(crnn.LanguageModel, "gradients", wrong)
        with pytest.raises(GradientError, match=rf"{wrong_name}\[.*finite differences say") as caught:
            model.gradient_check(X[1], Y[1], samples=3)
        report = caught.value.report
        assert not report.passed
        assert report.worst.name == wrong_name
        assert report.worst.worst == pytest.approx(1e-5, rel=0.01)
        assert "WRONG" in str(report)


def test_a_wrong_truncation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("gru-torch")
    right = crnn.LanguageModel.gradients
    monkeypatch.setattr(crnn.LanguageModel, "gradients", lambda self, x, y, _: right(self, x, y, Window(4)))
    assert model.gradient_check(X, Y, Window(4), samples=4).passed
    for scheme in (None, Window(3), Chunk(4)):
        with pytest.raises(GradientError):
            model.gradient_check(X, Y, scheme, samples=2)


def test_nan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = crnn.LanguageModel.gradients

    def wrong(self, x, y, truncation=None):
        found = right(self, x, y, truncation)
        found["output.bias"][4] = np.nan
        return found

    monkeypatch.setattr(crnn.LanguageModel, "gradients", wrong)
    with pytest.raises(GradientError, match=r"output.bias\[4\]: the gradient is nan"):
        make("sigmoid").gradient_check(X[1], Y[1], samples=WORDS)


def test_a_wrong_forward_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = crnn.LanguageModel.total_loss
    monkeypatch.setattr(crnn.LanguageModel, "total_loss", lambda self, x, y: right(self, x, y) * (1 + 1e-7))
    with pytest.raises(GradientError, match="plain NumPy says"):
        make("gru").gradient_check(X, Y, samples=2)


def test_the_largest_gradients_are_always_checked() -> None:
    model = make("rnn")
    gradients = model.copy(np.float64).gradients(X, Y)["output.weight"]
    largest = np.unravel_index(np.abs(gradients).argmax(), gradients.shape)
    assert gradient_check(model, X, Y, samples=1).tensors[-1].index == largest


def test_reach_of_the_library_is_the_oracle_s() -> None:
    for scheme in (Full(), Window(1), Window(4), Chunk(3), Chunk(3, 7)):
        assert [scheme.first_step(t) for t in range(20)] == [reach_of(scheme)(t) for t in range(20)]


def test_report_is_data() -> None:
    report = make("rnn").gradient_check(X, Y, samples=3)
    assert isinstance(report, GradientReport)
    assert dataclasses.asdict(report)["tensors"][0]["name"] == "rnn.weight_ih_l0"


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="samples"):
        make("rnn").gradient_check(X, Y, samples=0)
    for wrong in (float("nan"), float("inf"), -1e-6):
        with pytest.raises(ValueError, match=f"tolerance must be a finite number of at least 0, got {wrong}"):
            make("rnn").gradient_check(X, Y, tolerance=wrong)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        make("rnn").gradient_check([[1, 11]], [[1, 1]])
