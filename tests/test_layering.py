"""Arrows point down: modules import what stands below them in the table of docs/internals.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "docs").exists():
    pytest.skip("the table and the sources are part of the checkout, not of the wheel", allow_module_level=True)
PACKAGE = ROOT / "crnn"
ENTRANCES = {"crnn", "crnn.__main__"}  # they load everything on demand


def rows() -> dict[str, int]:
    """Module (or package) -> its row in the table, from the top."""
    text = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| `c")]
    found = {}
    for row, line in enumerate(table):
        for path in re.findall(r"`(crnn/[\w/.]+?)(?:\.pyx?|/)`", line.split("|")[1]):
            found[path.replace("/", ".")] = row
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(nodes: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported: not functions, and nothing that type checkers alone look at."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, part, []))


def imports(path: Path) -> Iterator[str]:
    """Modules of crnn that a file imports."""
    package = module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("crnn"))
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])])
        if base.split(".")[0] == "crnn":
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                place = ROOT / inner.replace(".", "/")
                known = place.is_dir() or place.with_suffix(".py").exists() or place.with_suffix(".pyx").exists()
                yield inner if known else base


def row_of(module: str, table: dict[str, int]) -> int | None:
    while module and module not in table:
        module = module.rpartition(".")[0]
    return table.get(module)


def test_every_module_has_a_row() -> None:
    table = rows()
    modules = {module_of(path) for path in PACKAGE.rglob("*.py")} - ENTRANCES
    assert {module for module in modules if row_of(module, table) is None} == set()
    assert "crnn._kernels" in table


def test_arrows_point_down() -> None:
    table = rows()
    upwards, seen = [], 0
    for path in PACKAGE.rglob("*.py"):
        module = module_of(path)
        if module in ENTRANCES:
            continue
        mine = row_of(module, table)
        assert mine is not None, module
        for other in imports(path):
            theirs = row_of(other, table)
            seen += 1
            if other in ENTRANCES and mine == 0:
                continue  # the command line asks for the version
            if theirs is None or theirs < mine:
                upwards.append(f"{module} imports {other}")
    assert upwards == []
    assert seen > 100  # the walk above finds imports at all
