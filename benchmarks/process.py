"""A worker process, and commands to it."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Settings of the shell that would favour or handicap one peer.
DROPPED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "XLA_FLAGS")
# What keeps peers from wider vectors than other users' processors have. ONNX Runtime heeds nothing; MKL, which does
# PyTorch's products, uses AVX2 on AMD's processors in any case.
LIMITED = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "CRNN_ISA": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    }
}
UNLIMITED = ("onnxruntime",)
COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CRNN_NUM_THREADS")


class WorkerError(RuntimeError):
    """A worker died, hung or failed."""


class Process:
    """A worker process and the pipe to it; ``isa`` is a key of ``LIMITED``, or empty for all that the processor has."""

    def __init__(self, peer: str, threads: int, python: str, log: Path, isa: str = "") -> None:
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
        environment |= dict.fromkeys(COUNTS, str(threads)) | {"PYTHONPATH": str(ROOT)} | LIMITED.get(isa, {})
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
