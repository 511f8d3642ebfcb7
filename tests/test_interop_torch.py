"""PyTorch modules against the layers made from their weights, round trips, and every way to refuse a state dict."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from tolerances import assert_close

import crnn
from crnn.interop.torch import from_safetensors, from_state_dict, to_state_dict, to_torch

torch = pytest.importorskip("torch", reason="PyTorch IS NOT INSTALLED: weights from it were NOT tested")

MODULES = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
CELLS = {"rnn": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}
SHAPES = list(itertools.product((1, 3), (False, True), (True, False)))  # layers, bidirectional, bias


def random_module(rng, kind, input_size, hidden_size, num_layers, bidirectional, bias, dtype=torch.float64, **options):
    """A torch module with weights of order one, so that gates leave their linear range and no two are alike."""
    module = MODULES[kind](
        input_size,
        hidden_size,
        num_layers,
        batch_first=True,
        bidirectional=bidirectional,
        bias=bias,
        dtype=dtype,
        **options,
    )
    draw(rng, module)
    return module


def draw(rng, module):
    with torch.no_grad():
        for parameter in module.parameters():
            width = parameter.shape[-1] if parameter.ndim == 2 else 4
            parameter.copy_(torch.from_numpy(rng.normal(size=tuple(parameter.shape)) / np.sqrt(width)))


def arrays(state):
    return [part.detach().numpy().astype(np.float64) for part in (state if isinstance(state, tuple) else (state,))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), SHAPES)
@pytest.mark.parametrize("kind", MODULES)
def test_numbers_agree_with_the_module(kind, num_layers, bidirectional, bias, dtype, rng):
    for _ in range(3):
        sizes = [int(n) for n in rng.integers(1, 20, 2)]
        batch, steps = (int(n) for n in rng.integers(1, 9, 2))
        module = random_module(rng, kind, *sizes, num_layers, bidirectional, bias, getattr(torch, dtype))
        layer = from_state_dict(module.state_dict())
        x = rng.normal(size=(batch, steps, sizes[0])).astype(dtype)
        shape = (num_layers * (2 if bidirectional else 1), batch, sizes[1])
        state = [rng.normal(size=shape).astype(dtype) for _ in range(2 if kind == "lstm" else 1)]
        tensors = [torch.from_numpy(part) for part in state]
        expected, final = module(torch.from_numpy(x), tuple(tensors) if kind == "lstm" else tensors[0])
        y, ours = layer(x, tuple(state) if kind == "lstm" else state[0])
        assert layer.dtype == dtype
        size = {"terms": sum(sizes) * (1 + bidirectional), "steps": steps * num_layers, "dtype": dtype}
        assert_close(y, arrays(expected)[0], "output", **size)
        for part, wanted in zip(ours if kind == "lstm" else (ours,), arrays(final)):
            assert_close(part, wanted, "state", **size)


def test_relu(rng):
    module = random_module(rng, "rnn", 4, 5, 2, False, True, nonlinearity="relu")
    layer = from_state_dict(module.state_dict(), nonlinearity="relu")
    x = rng.normal(size=(2, 6, 4))
    expected = module(torch.from_numpy(x))[0].detach().numpy()
    assert_close(layer(x)[0], expected, "output", terms=9, steps=12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind, bias, rng):
    cell = CELLS[kind](3, 5, bias=bias, dtype=torch.float64)
    draw(rng, cell)
    layer = from_state_dict(cell.state_dict())
    assert (layer.kind, layer.num_layers, layer.bias) == (kind, 1, bias)
    x, h, c = rng.normal(size=(4, 3)), rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    if kind == "lstm":
        expected = cell(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)))
        y, (_, c_n) = layer.step(x, (h[None], c[None]))
        assert_close(c_n[0], arrays(expected)[1], "state", terms=8, steps=1)
    else:
        expected = cell(torch.from_numpy(x), torch.from_numpy(h))
        y, _ = layer.step(x, h[None])
    assert_close(y, arrays(expected)[0], "output", terms=8, steps=1)
    returned = to_torch(layer, cell=True)
    CELLS[kind](3, 5, bias=bias, dtype=torch.float64).load_state_dict(returned, strict=True)
    assert all(torch.equal(returned[name], value) for name, value in cell.state_dict().items())


@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), SHAPES)
@pytest.mark.parametrize("kind", MODULES)
def test_round_trip_keeps_every_bit(kind, num_layers, bidirectional, bias, rng):
    module = random_module(rng, kind, 3, 4, num_layers, bidirectional, bias, torch.float32)
    original = module.state_dict()
    layer = from_state_dict({f"model.rnn.{name}": value for name, value in original.items()}, prefix="model.rnn")
    if kind == "gru":
        assert layer.reset_after
        assert layer.z_weighs == "state"
    ours = to_state_dict(layer, prefix="model.rnn.")
    assert list(ours) == [f"model.rnn.{name}" for name in original]
    for name, value in original.items():
        assert ours[f"model.rnn.{name}"].tobytes() == value.numpy().tobytes()
    twin = MODULES[kind](3, 4, num_layers, bidirectional=bidirectional, bias=bias)
    assert str(twin.load_state_dict(to_torch(layer), strict=True)) == "<All keys matched successfully>"


def test_weights_are_copies_both_ways(rng):
    module = random_module(rng, "lstm", 3, 4, 1, False, True, torch.float32)
    layer = from_state_dict(module.state_dict())
    before = layer.params["weight_hh_l0"].copy()
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    to_state_dict(layer)["weight_hh_l0"][:] = 7
    assert (layer.params["weight_hh_l0"] == before).all()


def test_candidate_form_becomes_the_same_function_in_state_form(rng):
    layer = crnn.GRU(3, 5, 2, reset_after=True, dtype=np.float64, rng=rng)
    assert layer.z_weighs == "candidate"
    module = torch.nn.GRU(3, 5, 2, batch_first=True, dtype=torch.float64)
    module.load_state_dict(to_torch(layer), strict=True)
    x = rng.normal(size=(2, 7, 3))
    assert_close(layer(x)[0], module(torch.from_numpy(x))[0].detach().numpy(), "output", terms=8, steps=14)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(narrow, rng):
    module = random_module(rng, "gru", 3, 4, 1, False, True).to(narrow)
    layer = from_state_dict(module.state_dict())
    assert layer.dtype == np.float32
    for name, value in module.state_dict().items():
        assert (layer.params[name] == value.float().numpy()).all()


def test_numpy_arrays_of_any_layout(rng):
    weights = to_state_dict(crnn.LSTM(3, 4, rng=rng, dtype=np.float64))
    odd = {name: np.asfortranarray(value).astype(">f8") for name, value in weights.items()}
    for value in odd.values():
        value.flags.writeable = False
    layer = from_state_dict(odd)
    assert all((layer.params[name] == value).all() for name, value in weights.items())
    assert from_state_dict(odd, dtype="float32").params["weight_hh_l0"].dtype == np.float32


def test_torch_is_not_imported():
    code = (
        "import sys, numpy as np, crnn.interop.torch as t;"
        "l = t.from_state_dict({'weight_ih': np.ones((4, 3)), 'weight_hh': np.ones((4, 4))});"
        "t.to_state_dict(l); assert 'torch' not in sys.modules\n"
        "try: t.to_torch(l)\n"
        "except RuntimeError as error: assert 'import torch first' in str(error)\n"
        "else: raise SystemExit('to_torch made tensors without torch')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------------------- refusals


def lstm_weights():
    return to_state_dict(crnn.LSTM(3, 4, 2, rng=0))


def test_all_wrong_keys_are_listed_at_once():
    weights = lstm_weights()
    del weights["weight_ih_l1"], weights["bias_hh_l0"]
    weights["bias_ih_l0"] = weights["bias_ih_l0"][:15]
    weights["weight_hh_l1"] = weights["weight_hh_l1"][:, :3]
    with pytest.raises(ValueError, match="do not fit") as caught:
        from_state_dict({f"enc.{name}": value for name, value in weights.items()}, prefix="enc.")
    text = str(caught.value)
    assert "missing: enc.bias_hh_l0; enc.weight_ih_l1" in text
    assert "enc.bias_ih_l0 is (15,), wanted (16,)" in text
    assert "enc.weight_hh_l1 is (16, 3), wanted (16, 4)" in text


def test_unexpected_keys_name_the_places_of_recurrent_layers():
    weights = {f"encoder.{name}": value for name, value in lstm_weights().items()}
    weights["head.weight"] = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"unexpected: .*head\.weight.*recurrent layers lie under 'encoder\.'"):
        from_state_dict(weights)
    with pytest.raises(ValueError, match=r"prefix: no key starts with 'decoder\.'.*'encoder\.'"):
        from_state_dict(weights, prefix="decoder")


def test_projected_lstm_is_refused_by_name():
    module = torch.nn.LSTM(3, 4, proj_size=2)
    with pytest.raises(ValueError, match=r"weight_hr_l0.*proj_size"):
        from_state_dict(module.state_dict())


@pytest.mark.parametrize("shape", [(8, 4), (20, 4), (4, 16), (10, 4), (4,), (4, 0)])
def test_wrong_gate_counts(shape):
    with pytest.raises(ValueError, match=r"weight_hh_l0 is .*G = 1 gate block for an RNN, 3 for a GRU, 4 for an LSTM"):
        from_state_dict({"weight_ih_l0": np.zeros((16, 3)), "weight_hh_l0": np.zeros(shape)})


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64"])
def test_other_dtypes_are_refused_by_name(dtype):
    weights = {**lstm_weights(), "weight_hh_l0": np.zeros((16, 4), dtype), "bias_ih_l1": np.zeros(16, dtype)}
    with pytest.raises(TypeError, match=rf"weight_hh_l0: got {dtype}.*bias_ih_l1: got {dtype}"):
        from_state_dict(weights)


def test_mixed_dtypes_need_a_decision():
    weights = lstm_weights()
    weights["weight_hh_l0"] = weights["weight_hh_l0"].astype(np.float64)
    with pytest.raises(TypeError, match=r"mix dtypes.*float64: \['weight_hh_l0'\].*dtype="):
        from_state_dict(weights)
    assert from_state_dict(weights, dtype=np.float64).dtype == np.float64


def test_values_that_are_not_finite():
    weights = lstm_weights()
    weights["bias_ih_l1"][3] = np.nan
    with pytest.raises(ValueError, match="bias_ih_l1"):
        from_state_dict(weights)


def test_other_wrong_arguments():
    weights = lstm_weights()
    with pytest.raises(ValueError, match="nonlinearity"):
        from_state_dict(weights, nonlinearity="relu")
    with pytest.raises(ValueError, match="reach layer 9"):
        from_state_dict({"weight_ih_l9": weights["weight_ih_l0"]})
    with pytest.raises(TypeError, match="state_dict: got list"):
        from_state_dict([1, 2])
    with pytest.raises(TypeError, match="weight_ih_l0: got list"):
        from_state_dict({**weights, "weight_ih_l0": [[1.0]]})
    with pytest.raises(TypeError, match="dtype: got int32"):
        from_state_dict(weights, dtype=np.int32)


def test_layers_that_torch_cannot_express():
    with pytest.raises(ValueError, match="reset_after=False"):
        to_state_dict(crnn.GRU(3, 4))
    with pytest.raises(ValueError, match="sigmoid"):
        to_state_dict(crnn.RNN(3, 4, nonlinearity="sigmoid"))
    with pytest.raises(ValueError, match="cell: a cell is one layer"):
        to_state_dict(crnn.LSTM(3, 4, 2), cell=True)
    with pytest.raises(TypeError, match="layer: got dict"):
        to_state_dict({})


def test_straight_from_a_file(rng, tmp_path):
    from safetensors.torch import save_file

    module = random_module(rng, "gru", 3, 4, 2, True, True, torch.float32)
    tensors = {f"a.rnn.{name}": value for name, value in module.state_dict().items()}
    save_file({**tensors, "vocabulary": torch.arange(5)}, tmp_path / "m.safetensors")
    layer = from_safetensors(tmp_path / "m.safetensors", "a.rnn.")
    for name, value in module.state_dict().items():
        assert (layer.params[name] == value.numpy()).all()
    with pytest.raises(TypeError, match="vocabulary is I64"):
        from_safetensors(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "gru"},
        {"cell": "gru", "reset_after": True, "z_weighs": "state", "num_layers": 2},
        {"cell": "rnn", "nonlinearity": "relu", "bias": False},
        {"cell": "lstm"},
    ],
)
def test_a_model_file_of_our_own_has_its_switches(options, rng, tmp_path):
    model = crnn.LanguageModel(9, hidden_size=5, embedding_size=4, rng=0, **options)
    for value in model.params.values():
        value[...] = rng.normal(size=value.shape)
    model.save(tmp_path / "m.safetensors")
    layer = from_safetensors(tmp_path / "m.safetensors", "rnn.")
    assert layer.kind == options.pop("cell")
    assert {name: layer.config()[name] for name in options} == options
    ids = rng.integers(0, 9, 6)
    logits = layer(model.params["embedding.weight"][ids])[0] @ model.params["output.weight"].T
    logits += model.params.get("output.bias", 0)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    assert_close(model.probabilities(ids), expected, "probability", terms=20, steps=12, dtype=np.float32)


def test_a_model_file_that_contradicts_or_is_damaged(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    crnn.LanguageModel(9, "rnn", 5, nonlinearity="relu", rng=0).save(path)
    assert from_safetensors(path, "rnn", "relu").nonlinearity == "relu"
    with pytest.raises(ValueError, match="nonlinearity: got 'tanh', but the file says 'relu'"):
        from_safetensors(path, "rnn", "tanh")
    for configuration in ({}, {"configuration": "{"}, {"configuration": "{}"}):
        save_file(to_state_dict(crnn.RNN(3, 4)), path, {"format": "crnn-language-model", **configuration})
        with pytest.raises(ValueError, match=r"m\.safetensors: damaged, its configuration"):
            from_safetensors(path)


def test_the_final_dot_of_a_prefix(tmp_path):
    """It is added before anything is looked at, and so before errors are written."""
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    weights = to_state_dict(crnn.LSTM(3, 4, rng=0), "encoder")
    save_file({**weights, "encoder_norm.num_batches_tracked": np.array(3)}, path)
    assert from_safetensors(path, "encoder").config() == from_safetensors(path, "encoder.").config()
    with pytest.raises(ValueError, match=r"no key starts with 'decoder\.'.*'encoder\.'"):
        from_safetensors(path, "decoder")
    del weights["encoder.bias_hh_l0"]
    with pytest.raises(ValueError, match=r"missing: encoder\.bias_hh_l0"):
        from_state_dict(weights, "encoder")
