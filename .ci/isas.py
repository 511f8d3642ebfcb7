"""Which instruction sets this machine has, and whether the built extension can run all of them.

The test suite runs the kernels on every set that ``crnn._kernels.available_isas()`` names, so a set that the machine
has and the extension does not offer would go untested in silence. ``compare`` makes that an error.
"""

import platform
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


def main() -> None:
    here = machine_isas()
    print("instruction sets of this machine:", ", ".join(here))
    missing = [name for name in NEEDS.get(platform.machine(), {}) if name not in here]
    if missing:
        print("!!!! NOT exercised, this machine lacks them:", ", ".join(missing))
    if sys.argv[1] == "compare":
        from crnn import _kernels

        offered = list(_kernels.available_isas())
        print("instruction sets the tests exercised: ", ", ".join(offered))
        if absent := [name for name in here if name not in offered]:
            raise SystemExit(f"the extension does not offer {', '.join(absent)} though this machine has it")


if __name__ == "__main__":
    main()
