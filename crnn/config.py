"""Threads, instruction set, and what runs underneath."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from crnn import _kernels
from crnn.arguments import whole_number

_MOST_THREADS = 64  # of the C core

__all__ = ["default_threads", "describe", "get_num_threads", "release_memory", "set_num_threads", "show_config"]


def _cgroup_quota(root: Path = Path("/"), process: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors that the control groups above this process grant it, or None without a limit.

    Version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``) hierarchies are read; a limit of any ancestor counts.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, _, hierarchy = line.partition(":")
        controllers, _, path = hierarchy.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            quota = _quota_v1(folder) if controllers else _quota_v2(folder)
            if quota is not None:
                quotas.append(quota)
            if folder == mount:
                break
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def default_threads() -> int:
    """The thread count used unless told otherwise.

    ``CRNN_NUM_THREADS`` if set; else the processors that this process may run on, or fewer where a control group grants
    less time than that (its quota rounded down). At least 1.

    Raises
    ------
    ValueError
        If ``CRNN_NUM_THREADS`` is not a whole number of at least 1.
    """
    told = os.environ.get("CRNN_NUM_THREADS", "").strip()
    if told:
        if not (told.isascii() and told.isdigit() and int(told) >= 1):
            raise ValueError(f"CRNN_NUM_THREADS must be a whole number of at least 1, got {told!r}")
        return min(int(told), _MOST_THREADS)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, count if quota is None else min(count, math.floor(quota)))


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use; with crnn's own products (see `show_config`) results do not depend on it.

    Parameters
    ----------
    n : int
        At least 1; more than 64 count as 64. One pool serves the whole process.

    Raises
    ------
    TypeError, ValueError
        If `n` is not a whole number of at least 1.
    """
    _kernels.set_threads(min(whole_number(n, "n"), _MOST_THREADS))


def get_num_threads() -> int:
    """How many threads a call may use."""
    return int(_kernels.get_threads())


def release_memory() -> None:
    """Give memory that is kept for later calls back to the system.

    Results and what calls work in come from blocks that are used again, since fresh memory costs more than much of the
    arithmetic: together with what is in use, up to 192 MiB more than was in use at once of late (some tens of calls).
    For a process that has done with large batches. Arrays that are still referred to stay.
    """
    _kernels.release_kept()


def describe() -> dict[str, Any]:
    """What runs underneath, as data.

    Returns
    -------
    dict
        ``crnn``, ``python``, ``numpy``, ``scipy``: versions; ``machine``: processor family; ``isa``: the instruction
        set in use; ``available_isas``: those that this machine and this build can run; ``threads``; ``blas``: a dict
        from the BLAS seam.
    """
    import scipy

    from crnn import __version__

    return {
        "crnn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "isa": _kernels.isa(),
        "available_isas": list(_kernels.available_isas()),
        "threads": get_num_threads(),
        "blas": dict(_kernels.blas_info()),
    }


def show_config() -> dict[str, Any]:
    """Print what runs underneath (instruction set, threads, BLAS, versions) and return it as the dict of `describe`."""
    config = describe()
    for key, value in config.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        print(f"{key + ':':<16}{value}")
    return config


_kernels.set_threads(default_threads())
