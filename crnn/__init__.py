"""Recurrent networks for the CPU: RNN, LSTM and GRU layers, exact truncated BPTT, and a language model.

Every name here is loaded on first use, so that ``import crnn`` costs next to nothing.

>>> import crnn, numpy as np
>>> layer = crnn.LSTM(3, 4, rng=0)
>>> y, (h, c) = layer(np.ones((2, 5, 3), np.float32))
>>> y.shape, h.shape
((2, 5, 4), (1, 2, 4))
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from crnn import (
        bptt,
        callbacks,
        checkpoint,
        data,
        generation,
        history,
        inspection,
        interop,
        layers,
        optim,
        recipes,
        schedules,
        streaming,
        text,
    )
    from crnn.config import get_num_threads, release_memory, set_num_threads, show_config
    from crnn.gradient_check import GradientError
    from crnn.language_model import LanguageModel
    from crnn.layers import GRU, LSTM, RNN
    from crnn.model_file import ModelFileError, load
    from crnn.text import Vocabulary
    from crnn.trainer import Trainer

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GradientError",
    "LanguageModel",
    "ModelFileError",
    "Trainer",
    "Vocabulary",
    "__version__",
    "bptt",
    "callbacks",
    "checkpoint",
    "data",
    "generation",
    "get_num_threads",
    "history",
    "inspection",
    "interop",
    "layers",
    "load",
    "optim",
    "recipes",
    "release_memory",
    "schedules",
    "set_num_threads",
    "show_config",
    "streaming",
    "text",
]

_HOME = {
    "RNN": "crnn.layers",
    "LSTM": "crnn.layers",
    "GRU": "crnn.layers",
    "GradientError": "crnn.gradient_check",
    "LanguageModel": "crnn.language_model",
    "ModelFileError": "crnn.model_file",
    "Vocabulary": "crnn.text",
    "Trainer": "crnn.trainer",
    "load": "crnn.model_file",
    "set_num_threads": "crnn.config",
    "get_num_threads": "crnn.config",
    "release_memory": "crnn.config",
    "show_config": "crnn.config",
}
_SUBMODULES = frozenset(__all__) - _HOME.keys() - {"__version__"}


if not TYPE_CHECKING:  # a type checker knows the names above and reports all others

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"crnn.{name}")
        if name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
            globals()[name] = value
            return value
        if name == "_kernels":  # `from crnn import _kernels` asks here before it looks for the module
            return _load_kernels()
        raise AttributeError(f"module 'crnn' has no attribute {name!r}")


def _load_kernels() -> Any:
    try:
        return importlib.import_module("crnn._kernels")
    except ModuleNotFoundError as error:
        if error.name != "crnn._kernels":
            raise
    place = os.path.dirname(__path__[0])
    raise ImportError(
        f"the crnn in {place} has no compiled kernels for this Python (sources that were not built, or a zip file): "
        "start Python in another folder to get an installed crnn, or build this one: pip install -e ."
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
