"""Which instruction sets this machine has; given the log of a test run, whether it ran on every one of them.

A set that the machine has and the build does not offer would otherwise go untested in silence.
"""

import platform
import re
import sys
from pathlib import Path

# What each set needs, in the names of /proc/cpuinfo. AVX-512 is the four subsets the kernels use, never F alone.
NEEDS = {
    "x86_64": {
        "scalar": set(),
        "sse2": {"sse2"},
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"},
    },
    "aarch64": {"scalar": set(), "neon": {"asimd"}},
}


def machine_isas() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("flags", "features")):
                flags = set(line.split(":", 1)[1].split())
                break
    needs = NEEDS.get(platform.machine(), {"scalar": set()})
    return [name for name, needed in needs.items() if needed <= flags]


def exercised_isas(log: Path) -> list[str]:
    """What the test suite itself reports at its end."""
    found = re.search(r"^instruction sets exercised: ([\w, ]+)", log.read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1).split(", ") if found else []


def main() -> None:
    here = machine_isas()
    print("instruction sets of this machine:", ", ".join(here))
    missing = [name for name in NEEDS.get(platform.machine(), {}) if name not in here]
    if missing:
        print("!!!! NOT exercised, this machine lacks them:", ", ".join(missing))
    if len(sys.argv) > 1:
        exercised = exercised_isas(Path(sys.argv[1]))
        print("instruction sets the tests ran on:", ", ".join(exercised) or "none")
        if absent := [name for name in here if name not in exercised]:
            raise SystemExit(f"the tests did not run on {', '.join(absent)}, which this machine has")


if __name__ == "__main__":
    main()
