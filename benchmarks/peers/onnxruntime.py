"""ONNX Runtime: an RNN, LSTM or GRU node per layer, time-major; inference and single steps of one layer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers import Case, Unsupported
from benchmarks.peers.common import sampled, time_major
from benchmarks.workloads import Workload, layer_names

# PyTorch's gate order -> ONNX's: LSTM i f g o -> i o f c; GRU r z n -> z r h.
ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
OPERATORS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def versions() -> dict[str, str]:
    return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}


def setup(threads: int) -> None:
    """Each session gets its thread count when it is made."""


def cases(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> dict[str, Case]:
    if workload.train or workload.window or workload.kind not in ("layer", "step"):
        raise Unsupported("inference of layers only")
    if workload.dtype != "float32":
        raise Unsupported("float32 only")
    if workload.kind == "step" and (workload.layers > 1 or workload.directions > 1):
        raise Unsupported("steps of one layer only")
    session = _session(workload, arrays, threads)
    if workload.kind == "step":
        return {"io binding": _bound_steps(workload, arrays, session), "run": _steps(workload, arrays, session)}
    x = time_major(arrays["x"])

    def run() -> np.ndarray:
        return session.run(["y"], {"x": x})[0]

    def result() -> dict[str, np.ndarray]:
        y = run()  # (time, directions, batch, hidden)
        return sampled({"output": y.transpose(2, 0, 1, 3).reshape(workload.batch, workload.time, -1)})

    return {"run": Case(run, result)}


def _reordered(array: np.ndarray, cell: str) -> np.ndarray:
    gates = np.split(array, len(ORDER[cell]))
    return np.concatenate([gates[k] for k in ORDER[cell]])[None]


def _constants(layer: int, workload: Workload, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """W, R and B of one layer, its directions one after the other."""
    suffixes = layer_names(workload)[layer * workload.directions :][: workload.directions]

    def stored(name: str) -> np.ndarray:
        return np.concatenate([_reordered(arrays[f"{name}_{suffix}"], workload.cell) for suffix in suffixes])

    bias = np.concatenate([stored("bias_ih"), stored("bias_hh")], axis=1)
    return {f"W{layer}": stored("weight_ih"), f"R{layer}": stored("weight_hh"), f"B{layer}": bias}


def _session(workload: Workload, arrays: dict[str, np.ndarray], threads: int) -> Any:
    cell, stepwise, directions = workload.cell, workload.kind == "step", workload.directions
    time = 1 if stepwise else workload.time
    states = (["h", "c"] if cell == "lstm" else ["h"]) if stepwise else []
    attributes = {"hidden_size": workload.hidden, "direction": "bidirectional" if directions > 1 else "forward"}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    constants: dict[str, np.ndarray] = {}
    nodes, last = [], workload.layers - 1
    for layer in range(workload.layers):
        constants |= _constants(layer, workload, arrays)
        inputs = [f"x{layer}" if layer else "x", f"W{layer}", f"R{layer}", f"B{layer}"]
        outputs = ["y" if layer == last else f"y{layer}", *(f"{s}_n" for s in states)]
        nodes.append(
            helper.make_node(OPERATORS[cell], inputs + (["", *states] if states else []), outputs, **attributes)
        )
        if layer < last:  # (time, directions, batch, hidden) -> (time, batch, directions*hidden)
            constants["rows"] = np.array([time, workload.batch, directions * workload.hidden], np.int64)
            nodes.append(helper.make_node("Transpose", [f"y{layer}"], [f"z{layer}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"z{layer}", "rows"], [f"x{layer + 1}"]))

    def value(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state_shape = (1, workload.batch, workload.hidden)
    graph = helper.make_graph(
        nodes,
        "layer",
        [value("x", (time, workload.batch, workload.input)), *(value(s, state_shape) for s in states)],
        [
            value("y", (time, directions, workload.batch, workload.hidden)),
            *(value(f"{s}_n", state_shape) for s in states),
        ],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _states(workload: Workload) -> list[str]:
    return ["h", "c"] if workload.cell == "lstm" else ["h"]


def _steps(workload: Workload, arrays: dict[str, np.ndarray], session: Any) -> Case:
    names = _states(workload)
    inputs = [x[None] for x in time_major(arrays["x"])]
    zero = np.zeros((1, workload.batch, workload.hidden), np.float32)
    outputs = [f"{name}_n" for name in names]

    def run() -> np.ndarray:
        state = [zero] * len(names)
        for x in inputs:
            state = session.run(outputs, dict(zip(names, state), x=x))
        return state[0]

    held = [[zero] * len(names)]

    def one() -> None:
        held[0] = session.run(outputs, dict(zip(names, held[0]), x=inputs[0]))

    return Case(run, lambda: {"last": run()[0]}, one)


def _bound_steps(workload: Workload, arrays: dict[str, np.ndarray], session: Any) -> Case:
    """Buffers bound once, states ping-pong between two sets: the least work that a caller can leave to Python."""
    names = _states(workload)
    inputs = time_major(arrays["x"])[:, None]
    x = np.zeros_like(inputs[0])
    sets = [{name: np.zeros((1, workload.batch, workload.hidden), np.float32) for name in names} for _ in range(2)]
    bindings = []
    for source, target in (sets, sets[::-1]):
        binding = session.io_binding()
        for name, array in {"x": x, **source}.items():
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name, array in target.items():
            binding.bind_output(f"{name}_n", "cpu", 0, np.float32, array.shape, array.ctypes.data)
        bindings.append(binding)

    def run() -> np.ndarray:
        for array in sets[0].values():
            array[...] = 0
        for t, values in enumerate(inputs):
            x[...] = values
            session.run_with_iobinding(bindings[t % 2])
        return sets[len(inputs) % 2]["h"]

    turn = itertools.cycle(bindings)

    def one() -> None:
        x[...] = inputs[0]
        session.run_with_iobinding(next(turn))

    return Case(run, lambda: {"last": run()[0].copy()}, one)
