"""Weights in and out of other libraries: `crnn.interop.torch`, `crnn.interop.keras`, `crnn.interop.onnx`.

Every converter speaks dicts or lists of arrays; none imports the library it converts for when `crnn` starts.
What comes in keeps its bits: gate blocks may change places, names may change, numbers do not, and the switches that
a foreign GRU implies (`reset_after`, `z_weighs="state"`) are set on the layer instead of being folded into weights.
"""

from crnn.interop import keras, onnx, torch
from crnn.interop.reverse import Reversed

__all__ = ["Reversed", "keras", "onnx", "torch"]
