"""Weights mapped from a file: in place, read-only, shared between threads and processes; and damaged files."""

from __future__ import annotations

import copy
import json
import mmap
import os
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import crnn
from crnn.interop import safetensors
from crnn.interop.torch import from_safetensors, to_state_dict

KINDS = {
    "rnn": (crnn.RNN, {}),
    "lstm": (crnn.LSTM, {"num_layers": 2}),
    "gru": (crnn.GRU, {"reset_after": True, "z_weighs": "state", "bidirectional": True}),
}


def saved(path, kind="lstm", dtype=np.float32, seed=3, sizes=(7, 33)):
    """A layer, and the file that holds its weights under the prefix "rnn.", with another tensor behind them."""
    cls, options = KINDS[kind]
    layer = cls(*sizes, dtype=dtype, rng=seed, **options)
    tensors = dict(to_state_dict(layer, prefix="rnn"))
    save_file({**tensors, "zz.padding": np.zeros(64, dtype)}, path)
    return layer


def mapped_places(path):
    """Address ranges at which this process has the file mapped, and their permissions."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            first, last = (int(number, 16) for number in fields[0].split("-"))
            found.append((first, last, fields[1]))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_from_memory(kind, dtype, rng, tmp_path):
    layer = saved(tmp_path / "w.safetensors", kind, dtype)
    mapped = from_safetensors(tmp_path / "w.safetensors", "rnn.", mmap=True)
    copied = from_safetensors(tmp_path / "w.safetensors", "rnn.")
    x = rng.normal(size=(3, 5, 7)).astype(dtype)
    for other in (mapped, copied):
        assert other.config() == layer.config()
        assert (other(x)[0] == layer(x)[0]).all()
    if not layer.bidirectional:
        stream, wanted = mapped.stream(3), layer.stream(3)
        for t in range(5):
            assert (stream.step(x[:, t]) == wanted.step(x[:, t])).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")
def test_weights_stay_in_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    saved(path)
    layer = from_safetensors(path, "rnn.", mmap=True)
    ranges = mapped_places(path)
    assert ranges
    assert all(permissions.startswith("r-") for _, _, permissions in ranges)
    for name, array in layer.params.items():
        place = array.ctypes.data
        assert any(first <= place and place + array.nbytes <= last for first, last, _ in ranges), name
    del layer, array
    assert not mapped_places(path)


def test_the_weights_cannot_be_written(tmp_path):
    saved(tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    layer = from_safetensors(tmp_path / "w.safetensors", "rnn.", mmap=True)
    with pytest.raises(ValueError, match="read-only"):
        layer.params["weight_hh_l0"][0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        layer.params["bias_hh_l0"] = np.zeros(132, np.float32)
    with pytest.raises(ValueError, match="mapped from a file, read-only"):
        _ = layer.params.flat
    with pytest.raises(TypeError, match="mapped weights cannot be converted to float64"):
        from_safetensors(tmp_path / "w.safetensors", "rnn.", mmap=True, dtype=np.float64)
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_copies_own_their_memory(rng, tmp_path):
    saved(tmp_path / "w.safetensors")
    layer = from_safetensors(tmp_path / "w.safetensors", "rnn.", mmap=True)
    x = rng.normal(size=(2, 3, 7)).astype(np.float32)
    y, _ = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (twin(x)[0] == y).all()
        twin.params["weight_ih_l0"][:] += 1
        assert (twin(x)[0] != y).any()
        assert (layer(x)[0] == y).all()
    assert "weight_ih_l0" in layer.summary()


def test_gradients_through_mapped_weights(rng, tmp_path):
    original = saved(tmp_path / "w.safetensors", dtype=np.float64)
    layer = from_safetensors(tmp_path / "w.safetensors", "rnn.", mmap=True)
    x, d_output = rng.normal(size=(2, 4, 7)), rng.normal(size=(2, 4, 33))
    back, wanted = (one.forward(x).backward(d_output) for one in (layer, original))
    assert (back.input == wanted.input).all()
    assert all((back.params[name] == wanted.params[name]).all() for name in wanted.params)


def test_many_threads_on_one_copy(rng, tmp_path):
    saved(tmp_path / "w.safetensors")
    layer = from_safetensors(tmp_path / "w.safetensors", "rnn.", mmap=True)
    x = rng.normal(size=(8, 2, 20, 7)).astype(np.float32)
    expected = [layer(own)[0].copy() for own in x]
    results = [None] * len(x)

    def work(i):
        results[i] = layer(x[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((a == b).all() for a, b in zip(results, expected, strict=True))


SERVER = """
import multiprocessing, os, sys
import numpy as np
from crnn.interop.torch import from_safetensors

PATH, X = sys.argv[1], np.random.default_rng(8).normal(size=(2, 6, 7)).astype(np.float32)

def answer(_=None):
    return from_safetensors(PATH, "rnn.", mmap=True)(X)[0].tobytes()

if __name__ == "__main__":
    layer = from_safetensors(PATH, "rnn.", mmap=True)
    wanted = layer(X)[0].tobytes()      # the kernels have run, with their threads, before the fork
    workers = []
    for _ in range(3):                  # a pre-forking server: children use what the parent loaded
        pid = os.fork()
        if pid == 0:
            ok = layer(X)[0].tobytes() == wanted == answer() and layer.stream(2).step(X[:, 0]).shape == (2, 33)
            os._exit(0 if ok else 1)
        workers.append(pid)
    assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in workers)
    assert layer(X)[0].tobytes() == wanted
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert set(pool.map(answer, range(4))) == {wanted}, method
    print("served")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_and_spawned_processes(tmp_path):
    saved(tmp_path / "w.safetensors")
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    path = str(Path(crnn.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script), str(tmp_path / "w.safetensors")],
        env={"PYTHONPATH": path, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout == "served\n", result.stderr


# ------------------------------------------------------------------------------------------------------ files by hand


def write(path, header, data=b"", pad=0):
    """A safetensors file with this header, given as a dict or as raw bytes, padded with spaces to `pad` bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (pad - len(text))
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_tensor_at_the_end_of_the_last_page_is_copied(rng, tmp_path):
    """Kernels may read a register's width past a tensor; there is nothing to read past the last page."""
    layer = crnn.RNN(4, 5, dtype=np.float32, rng=rng)
    tensors = {name: np.ascontiguousarray(value) for name, value in layer.params.items()}
    header, start = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [start, start + value.nbytes]}
        start += value.nbytes
    for short in (0, 64, 200):  # bytes between the last tensor and the end of the page
        path = tmp_path / f"{short}.safetensors"
        pad = (-8 - start - short) % mmap.PAGESIZE
        assert pad > 400
        write(path, header, b"".join(value.tobytes() for value in tensors.values()), pad)
        assert (path.stat().st_size + short) % mmap.PAGESIZE == 0
        stored = safetensors.read(path, mmap=True)
        assert stored["bias_hh_l0"].flags.owndata is (short < 128)
        assert not stored["weight_ih_l0"].flags.owndata
        mapped = from_safetensors(path, mmap=True)
        x = rng.normal(size=(6, 4)).astype(np.float32)
        assert (mapped(x)[0] == layer(x)[0]).all()


def test_unaligned_tensors_are_copied(tmp_path):
    values = np.arange(6.0)
    write(tmp_path / "w", {"a": {"dtype": "F64", "shape": [6], "data_offsets": [0, 48]}}, values.tobytes(), pad=99)
    stored = safetensors.read(tmp_path / "w", mmap=True)["a"]
    assert stored.flags.aligned
    assert (stored == values).all()


def test_all_dtypes(rng, tmp_path):
    values = rng.normal(size=(3, 4)).astype(np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype("<u2")
    header, data = {}, b""
    for name, dtype, raw in (
        ("half", "F16", values.astype("<f2")),
        ("brain", "BF16", bf16),
        ("single", "F32", values),
        ("double", "F64", values.astype("<f8")),
    ):
        header[name] = {"dtype": dtype, "shape": [3, 4], "data_offsets": [len(data), len(data) + raw.nbytes]}
        data += raw.tobytes()
    write(tmp_path / "w", {"__metadata__": {"note": "x"}, **header}, data, pad=512)
    for mapped in (False, True):
        stored = safetensors.read(tmp_path / "w", mmap=mapped)
        assert [stored[name].dtype.name for name in header] == ["float16", "float32", "float32", "float64"]
        assert (stored["half"] == values.astype(np.float16)).all()
        assert (stored["brain"].view(np.uint32) == bf16.astype(np.uint32) << 16).all()
        assert (stored["single"] == values).all()
        assert (stored["double"] == values).all()


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"", "not a safetensors file"),
        (b"{]", "header is not JSON"),
        (b'"text"', "not a JSON object"),
        (b"\xff\xfe{}", "header is not JSON"),
        ({"a": {**GOOD, "data_offsets": [0, 20]}}, "ends 4 bytes behind the end of the file"),
        ({"a": {**GOOD, "data_offsets": [8, 4]}}, "entry for 'a' is damaged"),
        ({"a": {**GOOD, "data_offsets": [-4, 12]}}, "entry for 'a' is damaged"),
        ({"a": {**GOOD, "data_offsets": [0.0, 16]}}, "entry for 'a' is damaged"),
        ({"a": {**GOOD, "data_offsets": [False, 16]}}, "entry for 'a' is damaged"),
        ({"a": {**GOOD, "shape": [4] + [1] * 32}}, "entry for 'a' is damaged"),
        ({"a": {**GOOD, "shape": [2**62, 4, 0], "data_offsets": [0, 0]}}, "0 bytes, which is not shape"),
        ({"a": GOOD, "b": {**GOOD, "shape": [1], "data_offsets": [12, 16]}}, "'a' and 'b' overlap"),
        (b'{"a": 1, "a": 2}', "the name 'a' stands there twice"),
        (b"[" * 100_000, r"w\.safetensors: not a safetensors file, its header is not JSON"),
        ({"a": {**GOOD, "shape": [2, -2]}}, "entry for 'a' is damaged"),
        ({"a": {**GOOD, "shape": 4}}, "entry for 'a' is damaged"),
        ({"a": {"dtype": "F32"}}, "entry for 'a' is damaged"),
        ({"a": None}, "entry for 'a' is damaged"),
        ({"a": {**GOOD, "shape": [2, 3]}}, r"16 bytes, which is not shape \(2, 3\) of F32"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_damaged_files(header, match, mapped, tmp_path):
    write(tmp_path / "w.safetensors", header, bytes(16))
    with pytest.raises(ValueError, match=match):
        safetensors.read(tmp_path / "w.safetensors", mmap=mapped)


def test_truncated_at_every_length(tmp_path):
    saved(tmp_path / "w.safetensors", sizes=(2, 3))
    whole = (tmp_path / "w.safetensors").read_bytes()
    for length in [*range(40), *range(40, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        for mapped in (False, True):
            with pytest.raises(ValueError, match=r"cut"):
                safetensors.read(tmp_path / "cut", mmap=mapped)


def test_other_refusals(tmp_path):
    apart = {**GOOD, "data_offsets": [4, 20]}
    write(tmp_path / "w", {"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}, "b": apart}, bytes(20))
    with pytest.raises(TypeError, match="wanted F64, F32, F16 or BF16 tensors, but a is I8"):
        safetensors.read(tmp_path / "w")
    assert list(safetensors.read(tmp_path / "w", wanted=lambda name: name == "b")) == ["b"]
    with pytest.raises(FileNotFoundError):
        safetensors.read(tmp_path / "absent")
