"""What the machine can do at this moment, asked of a process that does nothing else.

A virtual machine may lose half its speed for a second without any sign inside: its processors are put on two
hyperthreads of one core, or share theirs with a neighbour. Multiply-adds in registers show it, whatever library is
being timed. For minutes its processors may lie far apart, or neighbours use the cache that all share: the time of a
hand-over and reading what only that cache holds show those.
"""

from __future__ import annotations

import collections
from pathlib import Path

from benchmarks.process import Process, WorkerError

CALM = 0.93  # of the highest peak; two threads on one core reach half of it
QUIET = 0.78  # of the highest rate of reading; looks of a millisecond differ by a tenth in quiet minutes
NEAR = 2.2  # times the shortest hand-over; far cores take three times as long as near ones
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
    isa
        Instruction set of the multiply-adds, empty for the best.
    """

    def __init__(self, threads: int, python: str, folder: Path, isa: str = "") -> None:
        self.looks: dict[tuple[str, str], collections.deque[float]] = {}
        self.process: Process | None = Process("crnn", threads, python, folder / "machine-state.log", isa)
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
        """Look once, and return whether all is close to the best of the last ``MEMORY`` looks; True without crnn.

        Multiply-adds of ``CALM`` times that, reading of ``QUIET``, hand-overs of at most ``NEAR`` times the shortest.
        """
        if not self.process:
            return True
        seen = self.process.ask("rate", dtype=dtype, seconds=LOOK)
        # Multiply-adds come first: two threads on one core hand over faster than any two cores.
        return all(self._close(dtype, name, value) for name, value in seen.items() if value is not None)

    def _close(self, dtype: str, name: str, value: float) -> bool:
        looks = self.looks.setdefault((dtype, name), collections.deque(maxlen=MEMORY))
        looks.append(float(value))
        if name == "handover":
            return looks[-1] <= NEAR * min(looks)
        return looks[-1] >= {"gflops": CALM, "shared": QUIET}[name] * max(looks)
