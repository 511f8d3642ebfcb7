"""The build: what a changed switch builds anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
pytest.importorskip("Cython")
ROOT = Path(__file__).parent.parent

COMPILER = """\
#!/bin/sh
while [ "$1" != -o ]; do shift; done
: > "$2"
"""


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the checkout is not here")
def test_a_build_never_keeps_what_another_debug_switch_made(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)

    def build(debug: str) -> bytes:
        """The C file of the kernels; nothing is compiled, which is what takes long."""
        folders = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib")]
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", *folders],
            env={**os.environ, "CC": str(compiler), "LDSHARED": str(compiler), "CRNN_DEBUG": debug},
            cwd=ROOT,
            check=True,
        )
        return (tmp_path / "temp" / "crnn" / "_kernels.c").read_bytes()

    plain = build("")
    assert build("1") != plain
    assert build("") == plain
