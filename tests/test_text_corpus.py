import sys

import pytest

from crnn.text import corpus, default_documents
from crnn.text.corpus import prose


@pytest.fixture(scope="module")
def paragraphs():
    return list(default_documents())


def test_enough_english_prose(paragraphs):
    assert sum(map(len, paragraphs)) > 500_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert not any(">>>" in p or "\n" in p for p in paragraphs)
    words = " ".join(paragraphs).lower().split()
    assert words.count("the") / len(words) > 0.04


def small_library(tmp_path, monkeypatch):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "b.py").write_text('class C:\n    """A class that does something useful."""\n', encoding="utf-8")
    (tmp_path / "a.py").write_text('"""The module comes first of all.\n\n>>> 1 + 1\n2\n"""\n', encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (:\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b'"""Caf\xe9 is not declared as such."""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text('"""Nobody reads the tests of it."""\n', encoding="utf-8")
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})


def test_order_and_robustness(tmp_path, monkeypatch):
    small_library(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    calls = []
    texts = list(default_documents(progress=lambda done, total: calls.append((done, total))))
    assert texts == ["The module comes first of all.", "A class that does something useful."]
    assert calls[-1] == (4, 4)


def test_an_installation_without_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "none")})
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="carries no documentation"):
        list(default_documents())


@pytest.mark.parametrize(
    ("text", "paragraphs"),
    [
        ("A whole sentence\nover two lines.", ["A whole sentence over two lines."]),
        ("A Heading\n*********", []),
        ("x = f(1)\ny = x + 2", []),
        ("Too short.", []),
        ("Return *name* and ``value`` of :class:`~abc.Thing` here.", ["Return name and value of abc.Thing here."]),
        (
            "* The first point is this.\n\n* The second point is that.",
            ["The first point is this.", "The second point is that."],
        ),
        ("Items of one block:\n- The first point is this.\n- no sentence", ["The first point is this."]),
        ("Call it with dict(a=1, b=2) to see the result.", []),
    ],
)
def test_prose(text, paragraphs):
    assert list(prose(text)) == paragraphs
