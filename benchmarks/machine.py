"""The machine and the checkout that figures belong to, and options that depend on them."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS

ROOT = Path(__file__).resolve().parent.parent


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts(text: str) -> list[int]:
    """Read ``2,1``; raise argparse's error unless every count is from 1 to the number of processors."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if not all(1 <= count <= processors() for count in counts):
        raise argparse.ArgumentTypeError(f"wanted counts from 1 to {processors()}, comma-separated, got {text!r}")
    return counts


def peer_names(text: str) -> list[str]:
    """Read ``torch,jax``; raise argparse's error for a peer that there is not."""
    names = [name for name in text.split(",") if name]
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise argparse.ArgumentTypeError(f"wanted some of {', '.join(PEERS)}, got {', '.join(unknown)}")
    return names


def positive(text: str) -> float:
    """Read a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"wanted a number above 0, got {text}")
    return value


def busy() -> str:
    """Return a warning where other programs occupied processors in the last minute, else an empty string."""
    if not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    return f"load average {load:.1f}: where that is not an earlier benchmark, figures will suffer" if load > 0.5 else ""


def describe() -> dict[str, Any]:
    """Return processor, system, Python and commit; nothing that names the host or its folders."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    except OSError:
        pass
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "family": "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "processors": processors(),
        "caches": _caches(),
        "features": [f for f in fields.get("flags", "").split() if f.startswith(("avx", "fma", "amx"))],
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _caches() -> list[str]:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / part).read_text().strip() for part in ("level", "type", "size"))
        except OSError:
            continue
        found.append(f"L{level} {kind.lower()} {size}")
    return found


def commit() -> str:
    """Return the checkout's commit, ``+changes`` appended where sources differ from it, or ``unknown``."""
    try:
        git = ["git", "-C", str(ROOT)]
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        watched = ["crnn", "csrc", "setup.py", "pyproject.toml"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", *watched], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
