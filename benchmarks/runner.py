"""Start the workers, check their results against each other, then time them in interleaved rounds."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.flops import bytes_per_step, flops, rows
from benchmarks.machine_state import MachineState
from benchmarks.peers import FLOAT32, ROUNDING
from benchmarks.process import UNLIMITED, Process, WorkerError
from benchmarks.workloads import Workload, arrays, parameter_shapes

# Largest difference from the float64 reference, relative to the largest element of the tensor. Rounding grows with
# the square root of the products' lengths and with the number of steps; wrong formulas miss by 1e-2 and more.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
# PyTorch adds the squares of millions of gradients up in float32: its norms, and all that clipping scales by them, are
# off by 2e-4 (normal numbers) to 1e-3 (the output layer of 650 units and 10,000 words).
CLIPPED = 3
SINGLE_STEPS = 3000
PAUSE = 0.06  # seconds between peers, in which the threads of the last one stop spinning (ONNX Runtime: 40 to 47 ms)
# A disturbance lasts from some milliseconds to minutes; what lasts longer than all tries is accepted, and counted.
TRIES = 8
RECOVERY = 0.05  # seconds before the second try, twice as many before each further one
PATIENCE = 900.0  # seconds that a run spends on further tries at most


class Runner:
    """Workers of one thread count, kept over many workloads.

    Parameters
    ----------
    peers
        Names of the peers to start; those that are not installed are left out and listed in ``missing``.
    threads
        Threads of every peer; workers are pinned to as many processors.
    rounds
        Interleaved rounds per workload.
    seconds
        Time per peer and round.
    python
        Interpreter of the workers.
    isa
        Instruction set that no peer goes beyond ("avx2"), empty for all that the processor has.
    """

    def __init__(
        self,
        peers: Iterable[str],
        threads: int,
        rounds: int,
        seconds: float,
        python: str = sys.executable,
        isa: str = "",
    ) -> None:
        self.threads, self.rounds, self.seconds, self.python, self.isa = threads, rounds, seconds, python, isa
        self.folder = tempfile.TemporaryDirectory(prefix="crnn-benchmarks-")
        self.patience = PATIENCE
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.workers: dict[str, Process] = {}
        self.machine = MachineState(threads, python, Path(self.folder.name), isa)
        for peer in peers:
            self._start(peer)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()
        self.machine.close()
        self.folder.cleanup()

    def _start(self, peer: str) -> None:
        if self.isa and peer in UNLIMITED:
            self.missing[peer] = f"cannot be kept to {self.isa}"
            return
        worker = Process(peer, self.threads, self.python, Path(self.folder.name) / f"{peer}.log", self.isa)
        try:
            answer = worker.ask("info", limit=120)
        except WorkerError as error:
            answer = {"failed": str(error)}
        if "versions" in answer:
            self.workers[peer] = worker
            self.versions |= answer["versions"]
        else:
            self.missing[peer] = answer.get("missing") or answer.get("failed", "")
            worker.close()

    def build(self) -> dict[str, Any]:
        """Return crnn's instruction set and BLAS."""
        return self.workers["crnn"].ask("describe") if "crnn" in self.workers else {}

    def measure(self, workload: Workload) -> dict[str, Any]:
        """Check and time one workload.

        Returns
        -------
        dict
            ``workload`` (its fields), ``name``, ``threads``, ``flops`` and ``tokens`` of one call, ``peak`` (GFLOP/s),
            ``read``, ``shared`` (GB/s) and ``handover`` (microseconds) of the machine in these minutes, ``rounds``,
            ``parameters`` (bytes), ``refused`` (variant -> why it was not timed), ``beside`` (variant -> crnn under
            other conditions) and ``peers``: name -> variant -> ``seconds`` (median of all samples), ``spread``
            (median absolute deviation), ``best`` (fastest), ``calls``, ``rounds`` (median of each), ``stolen``
            (seconds), ``repeated`` (rounds timed again because the machine was disturbed), ``disturbed`` (rounds kept
            although it was), ``error`` (largest difference from the float64 reference), for streams ``grown`` (bytes
            that the first call adds at most) and for steps ``p50`` and ``p99`` (seconds of a single call).
        """
        data = arrays(workload)
        given = Path(self.folder.name) / "arrays.npz"
        np.savez(given, **data)  # type: ignore[arg-type]
        results: dict[tuple[str, str], dict[str, Any]] = {}
        beside: dict[tuple[str, str], dict[str, Any]] = {}
        refused: dict[str, str] = {}
        reference = self._reference(workload, given, refused)
        for peer in workload.peers or tuple(self.workers):
            if peer not in self.workers:
                continue
            answer = self._prepare(peer, workload, given)
            if "results" not in answer:
                refused[peer] = answer.get("unsupported") or answer.get("failed", "")
                continue
            for variant, path in answer["results"].items():
                error, where = compare(_read(path), reference)
                narrow = peer == "onnxruntime" or variant == FLOAT32
                allowed = TOLERANCE["float32" if narrow else workload.dtype]
                if error > (CLIPPED * allowed if workload.kind == "stream" and peer == "torch" else allowed):
                    refused[f"{peer} ({variant})"] = f"disagrees with the reference: {where} differs by {error:.1e}"
                    continue
                record = {"error": error, "rounds": [], "samples": [], "stolen": 0.0, "repeated": 0, "disturbed": 0}
                if answer["grown"].get(variant) is not None:
                    record["grown"] = answer["grown"][variant]
                (beside if variant in answer["beside"] else results)[peer, variant] = record
        size = bytes_per_step(workload)
        roofs = [self.machine.roofs(workload.dtype, size, 0.15)]
        for _ in range(self.rounds):
            for (peer, variant), record in (results | beside).items():
                self._burst(workload, peer, variant, record)
            roofs.append(self.machine.roofs(workload.dtype, size, 0.05))
        if workload.kind == "step":
            for (peer, variant), record in results.items():
                time.sleep(PAUSE)
                record |= self.workers[peer].ask("latency", variant=variant, count=SINGLE_STEPS)
        peers: dict[str, dict[str, Any]] = {}
        for (peer, variant), record in results.items():
            peers.setdefault(peer, {})[variant] = summary(record)
        return {
            "name": workload.name,
            "threads": self.threads,
            "workload": workload.to_json(),
            "flops": flops(workload, data),
            "tokens": rows(workload, data),
            "parameters": sum(data[name].nbytes for name in parameter_shapes(workload)),
            "peak": _most(roofs, "gflops"),
            "read": _most(roofs, "read"),
            "shared": _middle(roofs, "shared"),
            "handover": _middle(roofs, "handover"),
            "rounds": self.rounds,
            "peers": peers,
            "beside": {variant: summary(record) for (_, variant), record in beside.items()},
            "refused": refused,
        }

    def _burst(self, workload: Workload, peer: str, variant: str, record: dict[str, Any]) -> None:
        """Time one burst between two looks at the machine, and again where either finds it disturbed."""
        begin, tries = time.monotonic(), TRIES if self.patience > 0 else 1
        for attempt in range(tries):
            time.sleep(PAUSE + (RECOVERY * 2 ** (attempt - 1) if attempt else 0))
            calm = self.machine.calm(workload.dtype)
            if not calm and attempt + 1 < tries:
                continue
            answer = self.workers[peer].ask("time", variant=variant, seconds=self.seconds, most=1000)
            if "samples" not in answer:
                raise WorkerError(f"{peer} ({variant}) failed on {workload.name}: {answer}")
            time.sleep(PAUSE)
            calm = self.machine.calm(workload.dtype) and calm
            if calm:
                break
        if attempt:
            self.patience -= time.monotonic() - begin
        record["repeated"] += attempt > 0
        record["disturbed"] += not calm
        record["rounds"].append(statistics.median(answer["samples"]))
        record["samples"] += answer["samples"]
        record["stolen"] += answer["stolen"]

    def _prepare(self, peer: str, workload: Workload, given: Path) -> dict[str, Any]:
        target = str(Path(self.folder.name) / f"result-{peer}")
        try:
            return self.workers[peer].ask("prepare", workload=workload.to_json(), arrays=str(given), results=target)
        except WorkerError as error:
            self._start(peer)
            return {"failed": str(error)}

    def _reference(self, workload: Workload, given: Path, refused: dict[str, str]) -> dict[str, np.ndarray]:
        """Results in float64 of the first peer that has them: crnn, which the others then confirm or contradict."""
        for peer in ("crnn", "torch", "jax"):
            if peer in self.workers and peer in (workload.peers or (peer,)):
                answer = self._prepare(peer, workload.widened(), given)
                if "results" in answer:
                    return _read(next(iter(answer["results"].values())))
                refused[f"{peer} (reference)"] = answer.get("unsupported") or answer.get("failed", "")
        return {}


def _most(roofs: list[dict[str, float | None]], key: str) -> float | None:
    return max((found for roof in roofs if (found := roof.get(key)) is not None), default=None)


def _middle(roofs: list[dict[str, float | None]], key: str) -> float | None:
    known = [found for roof in roofs if (found := roof.get(key)) is not None]
    return statistics.median(known) if known else None


def _read(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def compare(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> tuple[float, str]:
    """Return the largest difference over all tensors that both have, relative to each tensor's largest element.

    What a result declares as its rounding is taken off first.

    Returns
    -------
    (float, str)
        The difference, infinite where shapes differ, values are not finite or no tensor is common, and its tensor.
    """
    worst, where = 0.0, ""
    common = [name for name in found if name in reference and not name.startswith(ROUNDING)]
    if not common:
        return float("inf"), "no common result"
    for name in common:
        a, b = found[name].astype(np.float64), reference[name].astype(np.float64)
        if a.shape != b.shape or not np.isfinite(a).all():
            return float("inf"), name
        scale = float(np.abs(b).max(initial=0.0)) or 1.0
        slack = float(found.get(ROUNDING + name, np.zeros(1)).max())
        error = max(0.0, float(np.abs(a - b).max(initial=0.0)) - slack) / scale
        if error >= worst:
            worst, where = error, name
    return worst, where


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Condense the samples of one variant."""
    samples = record.pop("samples")
    median = statistics.median(samples)
    return {
        "seconds": median,
        "spread": statistics.median(abs(sample - median) for sample in samples),
        "best": min(samples),
        "calls": len(samples),
        **record,
    }
