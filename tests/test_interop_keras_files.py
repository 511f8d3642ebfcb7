"""Keras 3 files: round trips, how layers and their settings are found, and every way to refuse a file."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

import crnn
from crnn.interop.keras import from_file, to_file, to_weights

h5py = pytest.importorskip("h5py", reason="h5py IS NOT INSTALLED: Keras files were NOT tested")

KINDS = {
    "rnn": (crnn.RNN, {}),
    "lstm": (crnn.LSTM, {}),
    "gru": (crnn.GRU, {"z_weighs": "state"}),
    "gru_after": (crnn.GRU, {"z_weighs": "state", "reset_after": True}),
}


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_files_come_back(kind, bidirectional, ending, rng, tmp_path):
    cls, options = KINDS[kind]
    layer = cls(3, 5, bidirectional=bidirectional, rng=rng, **options)
    to_file(layer, tmp_path / f"m{ending}")
    again = from_file(tmp_path / f"m{ending}")
    assert again.config() == layer.config()
    assert [w.tobytes() for w in to_weights(again)] == [w.tobytes() for w in to_weights(layer)]
    assert [p.name for p in tmp_path.iterdir()] == [f"m{ending}"]


def write_tree(path, layers, h5py):
    """A weights file as Keras lays it out: group path -> (name, list)."""
    with h5py.File(path, "w") as file:
        for group, (name, weights) in layers.items():
            file.create_group(f"{group}/vars").attrs["name"] = name
            cell = file.create_group(f"{group}/cell/vars")
            for i, array in enumerate(weights):
                cell[str(i)] = array


def test_layers_are_found_by_name_or_path(rng, tmp_path):
    encoder, decoder = to_weights(crnn.GRU(3, 5, reset_after=True, rng=rng)), to_weights(crnn.LSTM(3, 5, rng=rng))
    layers = {"layers/gru": ("encoder", encoder), "sub/layers/lstm": ("decoder", decoder)}
    write_tree(tmp_path / "w.weights.h5", layers, h5py)
    assert from_file(tmp_path / "w.weights.h5", "encoder").reset_after is True
    assert isinstance(from_file(tmp_path / "w.weights.h5", "sub/layers/lstm"), crnn.LSTM)
    with pytest.raises(ValueError, match=r"say which by path: 'encoder' \(layers/gru, GRU\), 'decoder'"):
        from_file(tmp_path / "w.weights.h5")
    with pytest.raises(ValueError, match="no recurrent layer 'middle'"):
        from_file(tmp_path / "w.weights.h5", "middle")


def test_a_gru_without_biases_needs_reset_after(rng, tmp_path):
    weights = to_weights(crnn.GRU(3, 5, bias=False, rng=rng))
    write_tree(tmp_path / "w.weights.h5", {"layers/gru": ("gru", weights)}, h5py)
    with pytest.raises(ValueError, match="reset_after: layers/gru is a GRU without biases"):
        from_file(tmp_path / "w.weights.h5")
    assert from_file(tmp_path / "w.weights.h5", reset_after=False).reset_after is False


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Read a .keras file's members, let `change` edit the dict, write them back."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def with_config(path, change):
    """Rewrite the configuration of a .keras file's first layer."""

    def edit(content):
        config = json.loads(content["config.json"])
        change(config["config"]["layers"][1])
        content["config.json"] = json.dumps(config).encode()

    rewrite(path, edit)


def without_names(path):
    """As Keras before 3.6 wrote it: groups without the layers' names."""

    def edit(content):
        buffer = io.BytesIO(content["model.weights.h5"])
        with h5py.File(buffer, "r+") as file:
            for group in file["layers"].values():
                del group["vars"].attrs["name"]
        content["model.weights.h5"] = buffer.getvalue()

    rewrite(path, edit)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("activation", "relu"), ("recurrent_activation", "hard_sigmoid"), ("go_backwards", True)],
)
def test_settings_that_crnn_does_not_compute_are_named(setting, value, tmp_path):
    path = tmp_path / "m.keras"
    to_file(crnn.LSTM(3, 4, rng=0), path)
    with_config(path, lambda entry: entry["config"].update({setting: value}))
    with pytest.raises(ValueError, match=f"'lstm' has settings crnn does not compute: {setting}={value!r}"):
        from_file(path)


def test_merge_modes_other_than_concat(tmp_path):
    path = tmp_path / "m.keras"
    to_file(crnn.GRU(3, 4, bidirectional=True, rng=0), path)
    with_config(path, lambda entry: entry["config"].update(merge_mode="sum"))
    with pytest.raises(ValueError, match="merge_mode='sum'"):
        from_file(path)


CUSTOM = {"module": "builtins", "class_name": "function", "config": "swoosh", "registered_name": "mine>swoosh"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"module": "mine"}, r"the class LSTM of mine \(only Keras' own LSTM or RNN\)"),
        ({"class_name": "GRU"}, r"the class GRU of keras\.layers \(only Keras' own LSTM or RNN\)"),
        ({"class_name": "MyLSTM", "module": "mine"}, "its configuration has no .* for certain 'lstm'"),
        ({"class_name": ["LSTM"]}, "its configuration has no .* for certain 'lstm'"),
        ({"class_name": "RNN", "config": {"name": "lstm", "cell": {}}}, "no configuration of a LSTMCell"),
        (
            {
                "class_name": "RNN",
                "config": {"name": "lstm", "cell": {"class_name": "Minimal", "module": "mine", "config": {}}},
            },
            r"the class Minimal of mine \(only Keras' own LSTMCell\)",
        ),
        *(
            (
                {
                    "class_name": "RNN",
                    "config": {
                        "name": "lstm",
                        "cell": {"class_name": "StackedRNNCells", "module": "keras.layers", "config": cells},
                    },
                },
                "no configuration of a LSTMCell",
            )
            for cells in ({}, {"cells": []}, {"cells": 3})
        ),
        ({"config": {"name": "lstm", "activation": CUSTOM}}, "activation='mine>swoosh'"),
        ({"config": {"name": "lstm", "recurrent_activation": CUSTOM}}, "recurrent_activation='mine>swoosh'"),
        ({"config": {"name": "other"}}, "its configuration has no .* for certain 'lstm'"),
    ],
)
def test_classes_and_functions_that_are_not_kerass(change, match, tmp_path):
    path = tmp_path / "m.keras"
    to_file(crnn.LSTM(3, 4, rng=0), path)
    with_config(path, lambda entry: entry.update(change))
    with pytest.raises(ValueError, match=match):
        from_file(path)


@pytest.mark.parametrize("layer", [None, 3, {}])
def test_both_directions_of_no_layer(layer, tmp_path):
    path = tmp_path / "m.keras"
    to_file(crnn.RNN(3, 4, bidirectional=True, rng=0), path)
    with_config(path, lambda entry: entry["config"].update(layer=layer))
    with pytest.raises(ValueError, match="no configuration of a SimpleRNN or RNN"):
        from_file(path)


def test_settings_are_found_without_names(tmp_path):
    """Keras before 3.6: a layer's group follows from the classes of the layers before it."""
    path = tmp_path / "m.keras"
    layer = crnn.RNN(3, 3, 2, nonlinearity="relu", rng=0)
    to_file(layer, path)
    without_names(path)
    with_config(path, lambda entry: entry["config"].update(name="encoder"))
    lower = from_file(path, "encoder")
    assert lower.nonlinearity == "relu"
    assert (lower.params["weight_hh_l0"] == layer.params["weight_hh_l0"]).all()
    assert (from_file(path, "layers/simple_rnn_1").params["weight_hh_l0"] == layer.params["weight_hh_l1"]).all()
    with_config(path, lambda entry: entry["config"].update(go_backwards=True))
    with pytest.raises(ValueError, match="'encoder' has settings crnn does not compute: go_backwards=True"):
        from_file(path, "encoder")
    with_config(path, lambda entry: entry["config"].update(name="simple_rnn_1"))  # the group is another layer's name
    with pytest.raises(ValueError, match="say which by path"):
        from_file(path, "simple_rnn_1")


def test_settings_whose_layer_is_not_certain_are_refused(tmp_path):
    path = tmp_path / "m.keras"
    to_file(crnn.LSTM(3, 4, rng=0), path)
    with_config(path, lambda entry: entry.update(class_name="Wrapper", config={"inner": dict(entry)}))
    assert isinstance(from_file(path), crnn.LSTM)  # by its name
    without_names(path)
    for name in ("lstm", None):
        with_config(path, lambda entry: entry["config"]["inner"]["config"].update(name=name))  # noqa: B023
        with pytest.raises(ValueError, match=r"for certain \(layers/lstm, LSTM\)"):
            from_file(path)
    to_file(crnn.LSTM(3, 4, 2, rng=0), path)

    def same_names(content):  # the upper layer is of an unknown class and called as the lower one
        content["config.json"] = content["config.json"].replace(b'"class_name": "LSTM"', b'"class_name": "Mine"')
        content["config.json"] = content["config.json"].replace(b"Mine", b"LSTM", 1)
        buffer = io.BytesIO(content["model.weights.h5"])
        with h5py.File(buffer, "r+") as file:
            file["layers/lstm_1/vars"].attrs["name"] = "lstm"
        content["model.weights.h5"] = buffer.getvalue()

    rewrite(path, same_names)
    with pytest.raises(ValueError, match=r"for certain 'lstm' \(layers/lstm_1, LSTM\)"):
        from_file(path, "layers/lstm_1")


def test_bfloat16_is_widened(rng, tmp_path):
    path = tmp_path / "w.weights.h5"
    layer = crnn.LSTM(3, 4, bias=False, rng=rng)
    to_file(layer, path)
    with h5py.File(path, "r+") as file:
        variables = file["layers/lstm/cell/vars"]
        for key in list(variables):
            bits = (variables[key][...].view("<u4") >> 16).astype("<u2")
            del variables[key]
            variables.create_dataset(key, data=bits.view("V2")).attrs["dtype"] = "bfloat16"
    again = from_file(path)
    assert again.dtype == np.float32
    for name, value in layer.params.items():
        assert (again.params[name].view("u4") == (value.view("u4") & 0xFFFF0000)).all()


def test_arguments_that_contradict_the_file(tmp_path):
    path = tmp_path / "m.keras"
    to_file(crnn.GRU(3, 4, rng=0), path)
    with pytest.raises(ValueError, match="reset_after: got True, but the file says False"):
        from_file(path, reset_after=True)
    to_file(crnn.RNN(3, 4, nonlinearity="sigmoid", rng=0), path)
    assert from_file(path).nonlinearity == "sigmoid"
    with pytest.raises(ValueError, match="nonlinearity: got 'relu', but the file says 'sigmoid'"):
        from_file(path, nonlinearity="relu")


def test_files_that_are_not_kerass(tmp_path):
    (tmp_path / "junk.keras").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a Keras 3 file"):
        from_file(tmp_path / "junk.keras")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(ValueError, match="not a Keras 3 file"):
        from_file(tmp_path / "zip.keras")
    with h5py.File(tmp_path / "empty.weights.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(ValueError, match="no recurrent layer of Keras 3"):
        from_file(tmp_path / "empty.weights.h5")
    with pytest.raises(FileNotFoundError):
        from_file(tmp_path / "absent.keras")
    with pytest.raises(ValueError, match=r"wanted a name that ends with \.weights\.h5 or \.keras"):
        to_file(crnn.LSTM(3, 4), tmp_path / "m.h5")


def test_small_files_that_claim_to_be_large(tmp_path):
    path, archive = tmp_path / "w.weights.h5", tmp_path / "m.keras"
    for shape, external, match in (((1 << 20, 16), None, "more than the file"), ((16,), path, "another file")):
        to_file(crnn.LSTM(3, 4, rng=0), path)
        with h5py.File(path, "r+") as file:
            variables = file["layers/lstm/cell/vars"]
            del variables["2"]
            options = {"chunks": (1024, 16)} if external is None else {"external": str(external)}
            variables.create_dataset("2", shape, "f4", **options)
        with pytest.raises(ValueError, match=match):
            from_file(path)
    to_file(crnn.LSTM(3, 4, rng=0), archive)
    blanks = b" " * 101_000_000
    rewrite(archive, lambda content: content.update({"config.json": blanks}), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"config\.json is \d+ bytes that would become 101000000"):
        from_file(archive)
    rewrite(archive, lambda content: content.update({"config.json": b"[" * 100_000}))
    with pytest.raises(ValueError, match="damaged"):
        from_file(archive)


def test_groups_are_visited_once_and_links_not_followed(tmp_path):
    path, other = tmp_path / "w.weights.h5", tmp_path / "other.weights.h5"
    to_file(crnn.LSTM(3, 4, rng=0), path)
    to_file(crnn.GRU(3, 4, rng=0), other)
    with h5py.File(path, "r+") as file:
        group = file["layers"]
        for i in range(40):  # two ways on at every step
            group["a"] = group["b"] = group.create_group(f"g{i}")
            group = group[f"g{i}"]
        group["root"] = h5py.SoftLink("/")
        group["foreign"] = h5py.ExternalLink(str(other), "/layers")
    assert isinstance(from_file(path), crnn.LSTM)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_damaged_files_are_refused_or_read(ending, rng, tmp_path):
    """Whatever a bit flip does, the answer is a layer or one clear error."""
    path = tmp_path / f"m{ending}"
    to_file(crnn.GRU(3, 4, rng=0), path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            from_file(path)
        except (ValueError, TypeError):
            refused += 1
    assert refused > 30
