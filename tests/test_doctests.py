"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import crnn

MODULES = sorted(
    ["crnn", *(info.name for info in pkgutil.walk_packages(crnn.__path__, "crnn.") if "__main__" not in info.name)]
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_main_classes_have_examples():
    finder = doctest.DocTestFinder(recurse=False)
    for item in (crnn.RNN, crnn.LSTM, crnn.GRU, crnn.bptt.Window, crnn.bptt.Chunk):
        assert any(test.examples for test in finder.find(item, item.__name__)), item
