"""What type checkers must refuse: a comment that silences an error is itself an error where there is none."""

from __future__ import annotations

import numpy as np

import crnn

crnn.LSTM(3)  # type: ignore[call-arg]
crnn.LSTM(3, 4, 1, True)  # type: ignore[call-arg]
crnn.LSTM(3, 4, nonlinearity="relu")  # type: ignore[call-arg]
crnn.RNN("3", 4)  # type: ignore[arg-type]
crnn.GRU(3, 4, reset_after="yes")  # type: ignore[arg-type]
print(crnn.GRU(3, 4).nonlinearity)  # type: ignore[attr-defined]
crnn.GRU(3, 4).reset_after = True  # type: ignore[misc]
crnn.RNN(3, 4).stream(batch=2.0)  # type: ignore[arg-type]
crnn.RNN(3, 4).stream(rows=2)  # type: ignore[call-arg]
crnn.interop.keras.from_weights("conv", [np.zeros(3)])  # type: ignore[arg-type]
crnn.interop.keras.from_weights("lstm", [np.zeros(3)], True)  # type: ignore[call-arg]
crnn.interop.torch.from_state_dict([np.zeros(3)])  # type: ignore[arg-type]
crnn.interop.onnx.from_onnx(3.5)  # type: ignore[arg-type]
crnn.optim.SGD("fast")  # type: ignore[arg-type]
crnn.bptt.Window("4")  # type: ignore[arg-type]
crnn.LanguageModel(8000, cell=3)  # type: ignore[arg-type]
print(crnn.get_num_threads() + "1")  # type: ignore[operator]
