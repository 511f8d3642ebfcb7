"""What documents say is true where a machine can check it: references, links, examples, options, names, C functions."""

from __future__ import annotations

import importlib.util
import re
import types
from pathlib import Path

import pytest

import crnn

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "csrc").glob("*.md")])


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_references_into_the_code_exist(page):
    for path, name in re.findall(r"`([\w./]+\.(?:py|pyx|c|h))::(\w+)`", text_of(page)):
        source = ROOT / path
        assert source.is_file(), f"{page.name} refers to {path}, which does not exist"
        assert re.search(rf"\b{name}\b", source.read_text(encoding="utf-8")), f"{page.name}: {path} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ +(.+)$", text_of(linked), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{page.name} links to {target}; there are {sorted(anchors)}"


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in text_of(p)], ids=lambda page: page.name)
def test_python_examples_run(page, tmp_path, monkeypatch, threads):
    """All blocks of a page in order in one session, in an empty folder: a reader has nothing else."""
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), session)


@pytest.mark.parametrize("name", ["cli.md", "api.md"])
def test_generated_pages_are_what_the_code_says(name):
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = text_of(ROOT / "docs" / name)
    assert page == generate.PAGES[name](), f"docs/{name} is out of date: run python docs/generate.py"


def test_every_public_module_has_its_section():
    api = text_of(ROOT / "docs" / "api.md")
    for name in crnn.__all__:
        if isinstance(getattr(crnn, name), types.ModuleType):
            assert f"## crnn.{name}" in api, f"docs/generate.py leaves out crnn.{name}"
    assert "| `crnn.history.Record` | `dict[str, Any]` |" in api  # an alias shows what it stands for


def test_every_function_of_the_c_header_has_a_c_test():
    header = text_of(ROOT / "csrc" / "include" / "crnn.h")
    functions = re.findall(r"^CRNN_API[^;]*?(crnn_\w+)\(", header, re.MULTILINE)
    tests = "\n".join(text_of(path) for path in (ROOT / "tests" / "c").glob("*.[ch]"))
    assert len(functions) > 15
    assert [name for name in functions if f"{name}(" not in tests] == []
