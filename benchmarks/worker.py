"""The process of one peer: prepares, checks and times workloads when the runner says so, and sleeps between.

Commands and answers are JSON, one a line, on standard input and the original standard output; whatever a peer prints
goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Case, Unsupported
from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent
LONG_CALL = 0.5  # seconds: beyond this, what another process left in the caches no longer matters
PEAK_LOOKS = 5
SHARED_BYTES = 8 << 20  # more than the cores' own caches: what neighbours take of the shared one shows


class Worker:
    """State of a worker: the peer's module and the cases of the workload at hand."""

    def __init__(self, peer: str, threads: int) -> None:
        self.threads = threads
        self.peer = importlib.import_module(f"benchmarks.peers.{peer}")
        self.peer.setup(threads)
        self.cases: dict[str, Case] = {}

    def info(self) -> dict[str, Any]:
        return {"versions": self.peer.versions()}

    def prepare(self, workload: dict[str, Any], arrays: str, results: str) -> dict[str, Any]:
        """Build every case, run each once and write its results to ``results`` + variant + ``.npz``."""
        self.cases = {}
        gc.collect()
        described = Workload.from_json(workload)
        with np.load(arrays) as stored:
            data = {name: _aligned(stored[name], described.dtype) for name in stored.files}
        cases = self.peer.cases(described, data, self.threads)
        written, grown = {}, {}
        for index, (variant, case) in enumerate(cases.items()):
            path = f"{results}-{index}.npz"
            with self._threads_of(case):
                if described.kind == "stream":
                    grown[variant] = _growth(case.run)
                np.savez(path, **case.result())
            written[variant] = path
        self.cases = cases
        beside = [variant for variant, case in cases.items() if case.beside]
        return {"results": written, "grown": grown, "beside": beside}

    def time(self, variant: str, seconds: float, most: int) -> dict[str, Any]:
        """Call a case for about ``seconds``, at most ``most`` times; the first call is discarded unless it is long."""
        case, clock = self.cases[variant], time.perf_counter
        run = case.run
        samples: list[float] = []
        steal = _stolen()
        gc.collect()
        gc.disable()
        try:
            with self._threads_of(case):
                begin = clock()
                run()
                first = clock() - begin
                if first > LONG_CALL:
                    samples.append(first)
                end = clock() + seconds
                while not samples or (clock() < end and len(samples) < most):
                    begin = clock()
                    run()
                    samples.append(clock() - begin)
        finally:
            gc.enable()
        return {"samples": samples, "stolen": _stolen() - steal}

    @contextlib.contextmanager
    def _threads_of(self, case: Case) -> Iterator[None]:
        if case.threads is None:
            yield
            return
        self.peer.setup(case.threads)
        try:
            yield
        finally:
            self.peer.setup(self.threads)

    def latency(self, variant: str, count: int) -> dict[str, Any]:
        """Time ``count`` single steps, one by one; return the median and the 99th percentile in seconds."""
        one, clock = self.cases[variant].one, time.perf_counter
        if one is None:
            return {}
        samples = np.empty(count)
        gc.disable()
        try:
            for k in range(-200, count):  # the first 200 warm up: their places are overwritten
                begin = clock()
                one()
                samples[k] = clock() - begin
        finally:
            gc.enable()
        return {"p50": float(np.percentile(samples, 50)), "p99": float(np.percentile(samples, 99))}

    def peak(self, dtype: str, seconds: float, size: int) -> dict[str, Any]:
        """Measure the roofs: multiply-adds of all threads in GFLOP/s, how fast they read ``size`` bytes (None for 0)
        and ``SHARED_BYTES`` over and over, GB/s, and how long it takes to give an empty job to the other threads, in
        microseconds."""
        from crnn import _kernels

        # Of several short looks the best: a neighbour's burst in one of them is not the machine's peak.
        looks = range(PEAK_LOOKS)
        rate = max(_kernels.fma_peak(dtype, self.threads, seconds / PEAK_LOOKS) for _ in looks)
        read = max(_kernels.read_bandwidth(size, self.threads, seconds / PEAK_LOOKS) for _ in looks) if size else None
        shared = _kernels.read_bandwidth(SHARED_BYTES, self.threads, seconds / PEAK_LOOKS)
        handover = _kernels.handover(self.threads) * 1e6 if self.threads > 1 else None
        return {"gflops": float(rate), "read": read, "shared": shared, "handover": handover}

    def rate(self, dtype: str, seconds: float) -> dict[str, float | None]:
        """Look briefly at what ``peak`` measures: multiply-adds (best of three), ``SHARED_BYTES``, a hand-over."""
        from crnn import _kernels

        return {
            "gflops": max(float(_kernels.fma_peak(dtype, self.threads, seconds / 3)) for _ in range(3)),
            "shared": float(max(_kernels.read_bandwidth(SHARED_BYTES, self.threads, seconds / 2) for _ in range(2))),
            "handover": _kernels.handover(self.threads) * 1e6 if self.threads > 1 else None,
        }

    def describe(self) -> dict[str, Any]:
        """Return what crnn says about its build."""
        from crnn import _kernels

        blas = {key: str(value) for key, value in _kernels.blas_info().items()}
        return {"isa": _kernels.isa(), "blas": {k: v for k, v in blas.items() if os.sep not in v}}


def _aligned(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return a copy at a 64-byte boundary, real numbers in ``dtype``: no peer is lucky with its allocation."""
    kind = np.dtype(dtype) if array.dtype.kind == "f" else array.dtype
    raw = np.empty(array.size * kind.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.size * kind.itemsize].view(kind).reshape(array.shape)
    view[...] = array
    return view


def _growth(run: Callable[[], object]) -> int | None:
    """Return by how many bytes resident memory grows at most during a call, None where the system does not say."""

    def status(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024

    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = status("VmRSS:")
        run()
        return status("VmHWM:") - before
    except (OSError, StopIteration):
        return None


def _stolen() -> float:
    """Seconds that the hypervisor gave to somebody else, over all processors; 0 where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) / float(os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return 0.0


def _use_installed_crnn_unless_built_here() -> None:
    if not any((ROOT / "crnn").glob("_kernels*.so")):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def main() -> None:
    """Serve commands until standard input ends."""
    peer, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Here and not in the parent: affinity is inherited by every thread that the peer starts from now on.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    worker: Worker | None = None
    if peer == "crnn":
        _use_installed_crnn_unless_built_here()

    def answer(fields: dict[str, Any]) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    for line in sys.stdin:
        command = json.loads(line)
        try:
            worker = worker or Worker(peer, threads)
            answer(getattr(worker, command.pop("do"))(**command))
        except Unsupported as reason:
            answer({"unsupported": str(reason)})
        except ImportError as reason:
            answer({"missing": str(reason)})
        except Exception as error:
            traceback.print_exc()
            answer({"failed": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
