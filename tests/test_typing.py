"""Type checkers understand what users write, and refuse what they should."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import crnn

HERE = Path(__file__).parent / "typing"
ROOT = Path(crnn.__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_package_says_that_it_is_typed():
    assert (Path(crnn.__file__).parent / "py.typed").is_file()


def test_the_stub_names_what_the_extension_has():
    from crnn import _kernels

    stub = (Path(crnn.__file__).parent / "_kernels.pyi").read_text(encoding="utf-8")
    declared = set(re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE)) | {"CELLS"}
    assert declared == {name for name in vars(_kernels) if not name.startswith("_")} - {"cython_runtime"}


def test_mypy():
    pytest.importorskip("mypy", reason="mypy IS NOT INSTALLED: types were NOT checked")
    # follow-imports=silent: what the package itself must satisfy is in pyproject.toml; here its users are checked
    options = ["--strict", "--follow-imports=silent", "--show-error-codes", "--config-file=", "--no-error-summary"]
    result = run(sys.executable, "-m", "mypy", *options, str(HERE / "usage.py"), str(HERE / "mistakes.py"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_pyright():
    checker = shutil.which("pyright") or shutil.which("basedpyright")
    if checker is None and importlib.util.find_spec("basedpyright"):
        checker = str(Path(sys.executable).with_name("basedpyright"))
    if checker is None:
        pytest.skip("pyright IS NOT INSTALLED: types were checked by mypy only")
    result = run(checker, "--outputjson", "--pythonpath", sys.executable, "--level", "error", str(HERE / "usage.py"))
    report = json.loads(result.stdout)
    found = [f"{d['range']['start']['line'] + 1}: {d['message']}" for d in report["generalDiagnostics"]]
    assert not found, "\n".join(found)
    assert report["summary"]["filesAnalyzed"] == 1
