"""What the machine can do at this moment, asked of a process that does nothing else.

A virtual machine may lose half its speed for a second without any sign inside: its processors are put on two
hyperthreads of one core, or share theirs with a neighbour. Multiply-adds in registers show it, whatever library is
being timed.
"""

from __future__ import annotations

import collections
from pathlib import Path

from benchmarks.process import Process, WorkerError

CALM = 0.93  # of the highest peak; two threads on one core reach half of it
LOOK = 0.002  # seconds
MEMORY = 400  # looks: where a machine has slowed down for good, its present speed is the peak after as many


class MachineState:
    """A worker that measures peaks between the bursts of others.

    Parameters
    ----------
    threads
        How many threads measure at once, on the same processors as the peers.
    python
        Its interpreter.
    folder
        Where it writes its log.
    """

    def __init__(self, threads: int, python: str, folder: Path) -> None:
        self.looks: dict[str, collections.deque[float]] = {}
        self.process: Process | None = Process("crnn", threads, python, folder / "machine-state.log")
        try:
            known = "versions" in self.process.ask("info", limit=120)
        except WorkerError:
            known = False
        if not known:
            self.close()
            self.process = None

    def close(self) -> None:
        """End the process."""
        if self.process:
            self.process.close()

    def roofs(self, dtype: str, size: int, seconds: float) -> dict[str, float | None]:
        """Return peak, bandwidth and time of a hand-over (see ``Worker.peak``); nothing where crnn is not installed."""
        if not self.process:
            return {}
        return self.process.ask("peak", dtype=dtype, seconds=seconds, size=size)

    def calm(self, dtype: str) -> bool:
        """Return whether multiply-adds reach ``CALM`` of the best of the last ``MEMORY`` looks; True without crnn."""
        if not self.process:
            return True
        looks = self.looks.setdefault(dtype, collections.deque(maxlen=MEMORY))
        looks.append(float(self.process.ask("rate", dtype=dtype, seconds=LOOK)["gflops"]))
        return looks[-1] >= CALM * max(looks)
