"""Check a wheel before it is published: nothing but what users need, small, licensed, typed."""

import sys
import zipfile
from pathlib import Path

LARGEST = 2_500_000  # bytes; the design promises a wheel of 1-2 MB
REQUIRED = ("crnn/__init__.py", "crnn/py.typed", "crnn/_kernels")
SOURCES = (".c", ".h", ".pyx", ".pxd", ".o", ".a")


def problems(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    found = [f"source file in the wheel: {name}" for name in names if name.endswith(SOURCES)]
    found += [f"not part of the package: {name}" for name in names if not name.startswith(("crnn/", "crnn-"))]
    found += [f"missing: {start}" for start in REQUIRED if not any(name.startswith(start) for name in names)]
    if not any(name.endswith("licenses/LICENSE") for name in names):
        found.append("missing: LICENSE")
    if path.stat().st_size > LARGEST:
        found.append(f"{path.stat().st_size} bytes, the limit is {LARGEST}")
    if "-linux_" in path.name:
        found.append("not repaired: the platform tag is neither manylinux nor musllinux")
    return found


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]]
    failed = False
    for path in paths:
        with zipfile.ZipFile(path) as wheel:
            installed = sum(entry.file_size for entry in wheel.infolist())
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, installed {installed / 1e6:.2f} MB")
        for problem in problems(path):
            failed = True
            print("  " + problem)
    if failed or not paths:
        raise SystemExit("the wheel is not fit to publish")


if __name__ == "__main__":
    main()
