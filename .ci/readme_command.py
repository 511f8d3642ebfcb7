"""Print the first block of shell commands under a heading of README.md, so that CI runs what the README says."""

import re
import sys
from pathlib import Path


def command(readme: str, heading: str) -> str:
    section = re.search(rf"^#+ {re.escape(heading)}\s*$(.*?)(?=^#|\Z)", readme, re.MULTILINE | re.DOTALL)
    if section is None:
        raise SystemExit(f"README.md has no heading {heading!r}")
    block = re.search(r"^```(?:sh|bash|console)\n(.*?)^```", section.group(1), re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit(f"README.md has no shell block under {heading!r}")
    return block.group(1).strip()


if __name__ == "__main__":
    print(command(Path("README.md").read_text(encoding="utf-8"), sys.argv[1]))
