"""Saving and loading: the same bits back, foreign readers, atomic writes, and every kind of broken file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import crnn
from crnn.model_file import ModelFileError

SENTENCES = [["the", "cat", "sat", "."], ["a", "dog", "ran", "'s", "ünï"], ["the", "dog", '"', "\\"]]

MODELS = {
    "rnn": {"bias": False},
    "lstm": {"cell": "lstm", "num_layers": 2, "embedding_size": 5, "dropout": 0.25},
    "gru-tied": {"cell": "gru", "embedding_size": 6, "tie_weights": True, "reset_after": True, "z_weighs": "state"},
    "double": {"nonlinearity": "relu", "dtype": np.float64},
}


@pytest.fixture
def vocabulary() -> crnn.Vocabulary:
    return crnn.Vocabulary.build(SENTENCES, size=12)


def make(vocabulary: crnn.Vocabulary | int, name: str = "lstm") -> crnn.LanguageModel:
    return crnn.LanguageModel(vocabulary, hidden_size=6, rng=4, **MODELS[name])


@pytest.fixture
def saved(tmp_path: Path, vocabulary: crnn.Vocabulary) -> Path:
    path = tmp_path / "model.safetensors"
    make(vocabulary).save(path)
    return path


def rewrite(path: Path, change) -> None:
    """Read header and data, let `change` edit the header, write them back."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


# ------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name: str, vocabulary: crnn.Vocabulary, tmp_path: Path) -> None:
    model = make(vocabulary, name)
    model.save(tmp_path / "m.safetensors")
    twin = crnn.load(tmp_path / "m.safetensors")
    assert twin.configuration == model.configuration
    assert twin.vocabulary == vocabulary
    assert list(twin.params) == list(model.params)
    for key, view in model.params.items():
        assert twin.params[key].dtype == view.dtype
        np.testing.assert_array_equal(twin.params[key], view)
    np.testing.assert_array_equal(twin.parameters.flat, model.parameters.flat)
    assert twin.generate(3, seed=1) == model.generate(3, seed=1)


def test_a_model_over_bare_ids(tmp_path: Path) -> None:
    model = make(7)
    model.save(str(tmp_path / "m"))
    twin = crnn.load(tmp_path / "m")
    assert twin.vocabulary is None
    np.testing.assert_array_equal(twin.probabilities([1, 6]), model.probabilities([1, 6]))


def test_the_same_model_gives_the_same_bytes(vocabulary: crnn.Vocabulary, tmp_path: Path) -> None:
    make(vocabulary).save(tmp_path / "a")
    crnn.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_readers_find_the_weights(vocabulary: crnn.Vocabulary, tmp_path: Path) -> None:
    for name in MODELS:
        model = make(vocabulary, name)
        model.save(tmp_path / "m")
        tensors = safetensors.numpy.load_file(tmp_path / "m")
        assert set(tensors) == set(model.parameters)
        for key, array in tensors.items():
            np.testing.assert_array_equal(array, model.params[key])


def test_the_description_is_json_in_the_header(saved: Path, vocabulary: crnn.Vocabulary) -> None:
    assert int.from_bytes(saved.read_bytes()[:8], "little") % 8 == 0, "tensors must be aligned"
    seen = {}
    rewrite(saved, lambda header: seen.update(header["__metadata__"]))
    assert seen["format"] == "crnn-language-model"
    assert seen["version"] == "1"
    assert seen["crnn"] == crnn.__version__
    assert json.loads(seen["configuration"])["cell"] == "lstm"
    assert crnn.Vocabulary.from_dict(json.loads(seen["vocabulary"])) == vocabulary


# --------------------------------------------------------------------------------------------------- writing safely


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(9).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def interrupted(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(9).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        make(5).save(tmp_path / "m")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o640


def test_nan_weights_do_not_replace_a_good_file(saved: Path, vocabulary: crnn.Vocabulary) -> None:
    before = saved.read_bytes()
    model = make(vocabulary)
    model.params["output.weight"][3, 2] = np.nan
    with pytest.raises(ValueError, match=r"output\.weight holds NaN or infinite weights"):
        model.save(saved)
    assert saved.read_bytes() == before


# ----------------------------------------------------------------------------------------------------- broken files


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        crnn.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        crnn.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        make(5).save(tmp_path / "no" / "folder")


def test_every_truncation_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(0, 64, 7), *np.linspace(64, len(content) - 1, 60).astype(int)]:
        saved.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"model\.safetensors: "):
            crnn.load(saved)


def test_every_flipped_weight_bit_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for at in np.linspace(start, len(content) - 1, 40).astype(int):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        saved.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="damaged"):
            crnn.load(saved)


@pytest.mark.parametrize(
    "content",
    [b"", b"body\nhello\n", b"\x80\x04\x95pickle", b"PK\x03\x04" + bytes(100), bytes(200), b"\xff" * 100],
    ids=["empty", "text", "pickle", "zip", "zeros", "ones"],
)
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="foreign: not a model file, or truncated or damaged"):
        crnn.load(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"weight": np.ones((2, 3), np.float32)}, tmp_path / "other")
    with pytest.raises(ModelFileError, match="but not a crnn language model"):
        crnn.load(tmp_path / "other")


def change_configuration(**values: object):
    def change(header: dict) -> None:
        metadata = header["__metadata__"]
        metadata["configuration"] = json.dumps({**json.loads(metadata["configuration"]), **values})

    return change


def change_metadata(**values: object):
    def change(header: dict) -> None:
        for key, value in values.items():
            header["__metadata__"][key] = value
            if value is None:
                del header["__metadata__"][key]

    return change


def rename_tensor(header: dict) -> None:
    header["rnn.weight_hh"] = header.pop("rnn.weight_hh_l0")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (change_metadata(version="3"), "version 3 of the format, this crnn reads up to 2: upgrade"),
        (change_metadata(version="new"), "its version is 'new'"),
        (change_metadata(version=None), "its version is ''"),
        (change_metadata(version="0"), "its version is '0'"),
        (change_metadata(version="9" * 5000), "its version is '999"),
        (change_metadata(configuration="[" * 100_000), "cannot be read"),
        (change_metadata(vocabulary="[" * 100_000), "cannot be read"),
        (change_configuration(hidden_size=10**9), r"makes no model \(the parameters take [0-9,]+ bytes"),
        (change_configuration(hidden_size=10**30), r"makes no model \(the parameters take [0-9,]+ bytes"),
        (change_metadata(configuration=None), "its configuration is missing"),
        (change_metadata(configuration="{"), "cannot be read"),
        (change_metadata(configuration="[1]"), "cannot be read"),
        (change_metadata(vocabulary='{"format": "other"}'), "cannot be read"),
        (change_metadata(crc32="00000000"), "checksum"),
        (change_configuration(cell="transformer"), "cell"),
        (change_configuration(heads=8), "heads"),
        (change_configuration(hidden_size=7), r"rnn\.weight_hh_l0: shape \(24, 6\), wanted \(28, 7\)"),
        (change_configuration(vocabulary_size=13), "vocabulary: has 12 entries, the configuration wants 13"),
        (change_configuration(num_layers=200_000), "says 200000 layers, but it names 11 tensors"),
        (change_configuration(num_layers=3), r"rnn\.weight_ih_l2: missing"),
        (change_configuration(num_layers=1), r"rnn\.weight_ih_l1: unexpected"),
        (change_configuration(dtype="float64"), "configuration says float64, but .*float32"),
        (rename_tensor, r"rnn\.weight_hh_l0: missing(.|\n)*rnn\.weight_hh: unexpected"),
    ],
)
def test_inconsistent_files(saved: Path, change, match: str) -> None:
    rewrite(saved, change)
    with pytest.raises(ModelFileError, match=match) as caught:
        crnn.load(saved)
    assert str(saved) in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_many_differences_are_not_all_written_out(tmp_path: Path) -> None:
    path = tmp_path / "m"
    crnn.LanguageModel(5, "lstm", 3, num_layers=5, rng=0).save(path)
    rewrite(path, change_configuration(hidden_size=4))
    with pytest.raises(ModelFileError, match=r"(?s)rnn\.bias_hh_l0.*\n  and 11 more$") as caught:
        crnn.load(path)
    assert str(caught.value).count("\n") == 11


# ------------------------------------------------------------------------------------------------------ mapped models


@pytest.mark.parametrize("name", MODELS)
def test_a_mapped_model_gives_the_same_bits(name: str, vocabulary: crnn.Vocabulary, tmp_path: Path) -> None:
    model, path = make(vocabulary, name), tmp_path / "m.safetensors"
    model.save(path, mappable=True)
    ids = [3, 1, 4, 1, 5]
    for mapped in (crnn.load(path, mmap=True), crnn.load(path)):
        assert mapped.vocabulary == vocabulary
        assert mapped.configuration == model.configuration
        for key, view in model.params.items():
            np.testing.assert_array_equal(mapped.params[key], view)
        np.testing.assert_array_equal(mapped.probabilities(ids), model.probabilities(ids))
        assert mapped.generate(3, seed=1) == model.generate(3, seed=1)
        assert mapped.loss(ids[:-1], ids[1:]) == model.loss(ids[:-1], ids[1:])
        gradients, wanted = mapped.gradients(ids[:-1], ids[1:]), model.gradients(ids[:-1], ids[1:])
        for key, gradient in wanted.items():
            np.testing.assert_array_equal(gradients[key], gradient)
        one, other = mapped.stream(), model.stream()
        for word in ids:
            np.testing.assert_array_equal(one.step([word]), other.step([word]))
    assert (tmp_path / "m.safetensors").stat().st_size < 2 * sum(v.nbytes for v in model.params.values()) + 20_000


def test_a_mapped_model_lies_in_the_file_and_cannot_be_trained(vocabulary: crnn.Vocabulary, tmp_path: Path) -> None:
    model, path = make(vocabulary), tmp_path / "m.safetensors"
    model.save(path, mappable=True)
    before = path.read_bytes()
    mapped = crnn.load(path, mmap=True)
    assert not any(view.flags.writeable for view in mapped.params.values())
    assert mapped.parameters.flat.ctypes.data % 64 == 0
    if Path("/proc/self/maps").exists():
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
        assert lines
        first, last = (int(place, 16) for place in lines[0][0].split("-"))
        assert first <= mapped.parameters.flat.ctypes.data < last
    for train in (
        lambda: mapped.sgd_step([1, 2], [2, 3], 0.1),
        lambda: mapped.initialise(0),
        lambda: crnn.Trainer(mapped).fit(crnn.data.Sentences([[1, 2, 3]]), epochs=1),
    ):
        with pytest.raises(ValueError, match=r"mapped from a file, read-only: train model.copy\(\)"):
            train()
    with pytest.raises(ValueError, match="read-only"):
        mapped.params["output.bias"][0] = 1
    twin = mapped.copy()
    twin.sgd_step([1, 2], [2, 3], 0.1)
    assert path.read_bytes() == before
    mapped.save(tmp_path / "again.safetensors", mappable=True)
    assert (tmp_path / "again.safetensors").read_bytes() == before
    mapped.save(tmp_path / "named.safetensors")
    assert set(safetensors.numpy.load_file(tmp_path / "named.safetensors")) == set(model.parameters)


def test_what_cannot_be_mapped_says_why(vocabulary: crnn.Vocabulary, tmp_path: Path) -> None:
    model, path = make(vocabulary), tmp_path / "m.safetensors"
    model.save(path)
    with pytest.raises(ModelFileError, match="cannot be mapped, it holds one tensor a name: save the model with "):
        crnn.load(path, mmap=True)

    def damaged(change, message: str) -> None:
        model.save(path, mappable=True)
        rewrite(path, change)
        for mmap in (True, False):
            with pytest.raises(ModelFileError, match=message):
                crnn.load(path, mmap=mmap)

    def metadata(**values):
        return lambda header: header["__metadata__"].update(values)

    damaged(metadata(version="3"), "version 3 of the format, this crnn reads up to 2: upgrade")
    damaged(metadata(layout=json.dumps(dict.fromkeys("ab", 0))), "laid out otherwise")
    damaged(metadata(layout="{}"), "says 2 layers, but it names 0 tensors")
    damaged(metadata(layout="5"), "layout is missing or cannot be read")
    damaged(metadata(layout="x"), "layout is missing or cannot be read")
    damaged(lambda header: header["__metadata__"].pop("layout"), "layout is missing")
    damaged(lambda header: header.update(other=header.pop("parameters")), r"damaged|laid out otherwise|no buffer")
    model.save(path, mappable=True)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes((length + 8).to_bytes(8, "little") + content[8 : 8 + length] + b" " * 8 + content[8 + length :])
    with pytest.raises(ModelFileError, match="do not start on a multiple of 64 bytes"):
        crnn.load(path, mmap=True)
    assert (crnn.load(path).parameters.flat == model.parameters.flat).all()
    for end in (len(content) - 1, len(content) // 2, 30):
        path.write_bytes(content[:end])
        for mmap in (True, False):
            with pytest.raises(ModelFileError):
                crnn.load(path, mmap=mmap)
    broken = bytearray(content)
    broken[-200] ^= 1
    path.write_bytes(bytes(broken))
    with pytest.raises(ModelFileError, match=r"do not match their checksum|not finite"):
        crnn.load(path)
