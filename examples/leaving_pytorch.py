"""What does it cost to run a small recurrent network? crnn, ONNX Runtime and PyTorch side by side on this machine.

Run it: `python examples/leaving_pytorch.py`. Every contender runs in processes of its own, on one thread, with the same
weights and inputs, and its answers are checked against crnn's before anything is timed. What is not installed is left
out. Prints a Markdown table, which is how the one in docs/leaving-pytorch.md was made.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 5
INPUT, HIDDEN, STEPS = 128, 128, 50

# What each contender runs in a fresh process: load the weights, answer one sequence, then stream.
COMMON = """
import json, resource, sys, time
started = time.perf_counter()
import numpy as np
folder, INPUT, HIDDEN, STEPS = sys.argv[1], *map(int, sys.argv[2:5])
x = np.load(folder + "/x.npy")
"""

PROGRAMS = {
    "crnn": """
import crnn
crnn.set_num_threads(1)
layer = crnn.interop.torch.from_safetensors(folder + "/weights.safetensors")
def sequence():
    return layer(x)[0]
stream = layer.stream()
def step(t):
    return stream.step(x[t : t + 1])
""",
    "onnxruntime": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
zero = np.zeros((1, 1, HIDDEN), np.float32)
def sequence():
    return session.run(None, {"x": x[None], "h_0": zero, "c_0": zero})[0][0]
state = [zero, zero]
def step(t):
    y, *state[:] = session.run(None, {"x": x[None, t : t + 1], "h_0": state[0], "c_0": state[1]})
    return y[0]
""",
    "torch": """
import torch
torch.set_num_threads(1)
module = torch.nn.LSTM(INPUT, HIDDEN, batch_first=True)
weights = np.load(folder + "/weights.npz")
module.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
def sequence():
    with torch.inference_mode():
        return module(torch.from_numpy(x[None]))[0][0].numpy()
state = [None]
def step(t):
    with torch.inference_mode():
        y, state[0] = module(torch.from_numpy(x[None, t : t + 1]), state[0])
        return y[0].numpy()
""",
}

MEASURE = """
loaded = time.perf_counter()
y = sequence()
first = time.perf_counter()
np.testing.assert_allclose(y, np.load(folder + "/y.npy"), rtol=0, atol=1e-5)
np.testing.assert_allclose(np.concatenate([step(t) for t in range(STEPS)]), y, rtol=0, atol=1e-5)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for _ in range(20):
    sequence()
    for t in range(STEPS):
        step(t)
clock, steps, sequences = time.perf_counter_ns, [], []
for _ in range(100):
    for t in range(STEPS):
        a = clock(); step(t); steps.append(clock() - a)
for _ in range(200):
    a = clock(); sequence(); sequences.append(clock() - a)
print(json.dumps({
    "loaded": loaded - started, "first": first - started, "peak": peak,
    "step_p50": float(np.percentile(steps, 50)) / 1e3, "step_p99": float(np.percentile(steps, 99)) / 1e3,
    "sequence": float(np.median(sequences)) / 1e3,
}))
"""


def write_problem(folder: Path) -> None:
    """The same LSTM and input in each contender's format, and the right answer."""
    import numpy as np
    from safetensors.numpy import save_file

    import crnn

    layer = crnn.LSTM(INPUT, HIDDEN, rng=0)
    x = np.random.default_rng(1).normal(size=(STEPS, INPUT)).astype(np.float32)
    weights = crnn.interop.torch.to_state_dict(layer)
    save_file(weights, folder / "weights.safetensors")
    np.savez(folder / "weights.npz", **weights)  # type: ignore[arg-type]
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", layer(x)[0])
    if importlib.util.find_spec("onnx") is not None:
        crnn.interop.onnx.to_onnx(layer, folder / "model.onnx")


def run(program: str, *arguments: str) -> str:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=True).stdout


def import_seconds(name: str) -> float:
    """Seconds that the import takes after NumPy, the least of several fresh processes."""
    # crnn loads its parts when they are first named
    statement = "from crnn import LSTM, interop" if name == "crnn" else f"import {name}"
    program = f"import numpy, time; a = time.perf_counter(); {statement}; print(time.perf_counter() - a)"
    return min(float(run(program)) for _ in range(ROUNDS))


def needs(name: str, seen: set[str]) -> set[str]:
    """A distribution and everything it requires, as installed here, extras apart."""
    if name in seen:
        return seen
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return seen
    seen.add(name)
    for requirement in distribution.requires or []:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match and "extra ==" not in requirement:
            needs(match[0].lower().replace("_", "-"), seen)
    return seen


def megabytes(name: str) -> float:
    """Size on disk of one installed distribution, compiled caches apart; crnn may also be a checkout."""
    if name == "crnn":
        folder = Path(str(importlib.util.find_spec("crnn").origin)).parent  # type: ignore[union-attr]
        files = [path for path in folder.rglob("*") if path.is_file()]
    else:
        distribution = importlib.metadata.distribution(name)
        files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    wanted = {path.resolve() for path in files if path.suffix not in (".pyc", ".c") and path.is_file()}
    return sum(path.stat().st_size for path in wanted) / 1e6


def measure(name: str, folder: Path) -> dict[str, float]:
    """One contender's row: the best of several processes."""
    arguments = (str(folder), str(INPUT), str(HIDDEN), str(STEPS))
    results = [json.loads(run(COMMON + PROGRAMS[name] + MEASURE, *arguments)) for _ in range(ROUNDS)]
    row: dict[str, float] = {key: min(result[key] for result in results) for key in results[0]}
    everything = needs(name, set())
    if not everything:  # a checkout of crnn, which no installer knows
        everything = {"crnn"}.union(*(needs(part, set()) for part in ("numpy", "scipy", "nltk", "tqdm", "safetensors")))
    row["own"] = megabytes(name)
    row["all"] = sum(megabytes(part) for part in everything)
    row["import"] = import_seconds(name)
    return row


def table(rows: dict[str, dict[str, float]]) -> str:
    """The measurements as Markdown."""
    lines = [
        ("size on disk, the package itself", "own", "{:.1f} MB"),
        ("size on disk with everything it needs", "all", "{:.0f} MB"),
        ("import, after NumPy", "import", "{:.3f} s"),
        ("fresh process to loaded weights", "loaded", "{:.2f} s"),
        ("peak memory of the process", "peak", "{:.0f} MB"),
        ("one streaming step, median", "step_p50", "{:.1f} us"),
        ("one streaming step, 99 % below", "step_p99", "{:.1f} us"),
        (f"sequence of {STEPS} steps, median", "sequence", "{:.0f} us"),
    ]
    text = [
        f"| LSTM {INPUT} -> {HIDDEN}, float32, one thread | " + " | ".join(rows) + " |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for title, key, form in lines:
        text.append(f"| {title} | " + " | ".join(form.format(row[key]) for row in rows.values()) + " |")
    return "\n".join(text)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_problem(folder)
        present = [one for one in PROGRAMS if importlib.util.find_spec(one) is not None]
        if not (folder / "model.onnx").exists():
            present = [one for one in present if one != "onnxruntime"]
        rows = {}
        for one in present:
            version = importlib.metadata.version(one) if needs(one, set()) else "checkout"
            rows[f"{one} {version}"] = measure(one, folder)
    print(table(rows))


if __name__ == "__main__":
    main()
