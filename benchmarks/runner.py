"""Start the workers, check their results against each other, then time them in interleaved rounds."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.flops import bytes_per_step, flops, rows
from benchmarks.peers import ROUNDING
from benchmarks.workloads import Workload, arrays, parameter_shapes

ROOT = Path(__file__).resolve().parent.parent
# Largest difference from the float64 reference, relative to the largest element of the tensor. Rounding grows with
# the square root of the products' lengths and with the number of steps; wrong formulas miss by 1e-2 and more.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
# Settings of the shell that would favour or handicap one peer.
DROPPED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "XLA_FLAGS")
COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CRNN_NUM_THREADS")
SINGLE_STEPS = 3000
PAUSE = 0.02  # seconds between peers, in which the threads of the last one stop spinning


class WorkerError(RuntimeError):
    """A worker died, hung or failed."""


class Process:
    """A worker process and the pipe to it."""

    def __init__(self, peer: str, threads: int, python: str, log: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
        environment |= dict.fromkeys(COUNTS, str(threads)) | {"PYTHONPATH": str(ROOT)}
        self.peer, self.log = peer, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", peer, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=log.parent,
            )

    def ask(self, do: str, limit: float = 600.0, **fields: Any) -> dict[str, Any]:
        """Send one command and return its answer; raise WorkerError where there is none within ``limit`` seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], limit)
            line = self.process.stdout.readline() if ready else ""
        except OSError:
            line = ""
        if not line:
            self.close()
            tail = self.log.read_text()[-800:]
            raise WorkerError(f"{self.peer} gave no answer to {do!r} within {limit:.0f} s: {tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


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
    """

    def __init__(
        self, peers: Iterable[str], threads: int, rounds: int, seconds: float, python: str = sys.executable
    ) -> None:
        self.threads, self.rounds, self.seconds, self.python = threads, rounds, seconds, python
        self.folder = tempfile.TemporaryDirectory(prefix="crnn-benchmarks-")
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.workers: dict[str, Process] = {}
        for peer in peers:
            self._start(peer)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()
        self.folder.cleanup()

    def _start(self, peer: str) -> None:
        worker = Process(peer, self.threads, self.python, Path(self.folder.name) / f"{peer}.log")
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

    def peak(self, dtype: str, size: int, seconds: float = 0.15) -> dict[str, float | None]:
        """Return what this run's threads reach (see :meth:`Worker.peak`), nothing without crnn."""
        if "crnn" not in self.workers:
            return {}
        return self.workers["crnn"].ask("peak", dtype=dtype, seconds=seconds, size=size)

    def measure(self, workload: Workload) -> dict[str, Any]:
        """Check and time one workload.

        Returns
        -------
        dict
            ``workload`` (its fields), ``name``, ``threads``, ``flops`` and ``tokens`` of one call, ``peak`` (GFLOP/s),
            ``read`` (GB/s) and ``handover`` (microseconds) of the machine in these minutes, ``rounds``,
            ``parameters`` (bytes), ``refused`` (variant -> why it was not timed) and ``peers``: name ->
            variant -> ``seconds`` (median of all samples), ``spread`` (median absolute deviation), ``best``
            (fastest), ``calls``, ``rounds`` (median of each), ``stolen`` (seconds), ``error`` (largest difference
            from the float64 reference), for streams ``grown`` (bytes that the first call adds at most) and for steps
            ``p50`` and ``p99`` (seconds of a single call).
        """
        data = arrays(workload)
        given = Path(self.folder.name) / "arrays.npz"
        np.savez(given, **data)  # type: ignore[arg-type]
        results: dict[tuple[str, str], dict[str, Any]] = {}
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
                if error > TOLERANCE["float32" if peer == "onnxruntime" else workload.dtype]:
                    refused[f"{peer} ({variant})"] = f"disagrees with the reference: {where} differs by {error:.1e}"
                else:
                    results[peer, variant] = {"error": error, "rounds": [], "samples": [], "stolen": 0.0}
                    if answer["grown"].get(variant) is not None:
                        results[peer, variant]["grown"] = answer["grown"][variant]
        size = bytes_per_step(workload)
        roofs = [self.peak(workload.dtype, size)]
        for _ in range(self.rounds):
            for (peer, variant), record in results.items():
                time.sleep(PAUSE)
                answer = self.workers[peer].ask("time", variant=variant, seconds=self.seconds, most=1000)
                if "samples" not in answer:
                    raise WorkerError(f"{peer} ({variant}) failed on {workload.name}: {answer}")
                record["rounds"].append(statistics.median(answer["samples"]))
                record["samples"] += answer["samples"]
                record["stolen"] += answer["stolen"]
            roofs.append(self.peak(workload.dtype, size, 0.05))
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
            "handover": _middle(roofs, "handover"),
            "rounds": self.rounds,
            "peers": peers,
            "refused": refused,
        }

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
