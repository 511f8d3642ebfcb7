"""Shared fixtures: seeds from test names, instruction sets, thread counts; and a report of the instruction sets."""

from __future__ import annotations

import platform
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# pytest imports test modules by path (importmode=importlib), so the oracle beside them needs a place on sys.path.
sys.path.insert(0, str(Path(__file__).parent))

# Shells start background jobs with Ctrl-C ignored, and children inherit that; tests of interruption need the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

ISAS_OF_MACHINE = {
    "x86_64": ("scalar", "sse2", "avx2", "avx512"),
    "amd64": ("scalar", "sse2", "avx2", "avx512"),
    "aarch64": ("scalar", "neon"),
    "arm64": ("scalar", "neon"),
}.get(platform.machine().lower(), ("scalar",))

exercised: set[str] = set()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: independent of order and selection, the same on every machine."""
    name = f"{request.node.module.__name__.rpartition('.')[2]}::{request.node.name}"
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.fixture(params=ISAS_OF_MACHINE)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this architecture may have, one after the other; a loud skip for a missing one."""
    from crnn import _kernels

    if request.param not in _kernels.available_isas():
        pytest.skip(f"THIS PROCESSOR LACKS {request.param.upper()}: its kernels were NOT tested here")
    before = _kernels.isa()
    _kernels.set_isa(request.param)
    assert _kernels.isa() == request.param
    exercised.add(request.param)
    yield request.param
    _kernels.set_isa(before)


@pytest.fixture
def threads() -> Iterator[object]:
    """A function that sets the number of threads, which then share the work as if the machine were quiet.

    Left to itself the library measures what a hand-over costs, and more threads than cores, or a busy machine, make a
    test of many threads one of a single thread. The former number and the measured time come back afterwards.
    """
    from crnn import _kernels

    before = _kernels.get_threads()
    _kernels.assume_handover(1e-7)
    yield _kernels.set_threads
    _kernels.set_threads(before)
    _kernels.assume_handover(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if exercised:
        missing = [name for name in ISAS_OF_MACHINE if name not in exercised]
        note = f"; NOT exercised: {', '.join(missing)}" if missing else ""
        terminalreporter.write_line(f"instruction sets exercised: {', '.join(sorted(exercised))}{note}")
