"""What users write, for type checkers: every call must be understood, and results must have the types stated here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import crnn
from crnn.interop import Reversed
from crnn.streaming import LayerStream, ModelStream

Array = npt.NDArray[Any]
Layer = crnn.RNN | crnn.LSTM | crnn.GRU


def layers(x: npt.NDArray[np.float32]) -> None:
    rnn = crnn.RNN(3, 4, nonlinearity="relu", rng=0)
    lstm = crnn.LSTM(3, 4, 2, bidirectional=True, dropout=0.5, dtype=np.float64, rng=np.random.default_rng(1))
    gru = crnn.GRU(3, 4, reset_after=True, z_weighs="state", bias=False)
    assert_type(rnn.hidden_size, int)
    assert_type(gru.reset_after, bool)
    assert_type(gru.z_weighs, str)
    assert_type(rnn.nonlinearity, str)
    assert_type(lstm.summary(), str)
    weights: dict[str, np.ndarray] = rnn.params
    weights["weight_ih_l0"][...] = 0
    y, state = lstm(x, lengths=[3, 1])
    run = lstm.forward([x, x], state)
    back = run.backward(run.output, truncation=crnn.bptt.Full())
    gradients: dict[str, np.ndarray] = back.params
    print(y, back.input, back.state, gradients)
    y_t, state = rnn.step(x[0])
    assert_type(y_t, np.ndarray)


def streams(layer: Layer, model: crnn.LanguageModel, x: npt.NDArray[np.float32], path: Path) -> None:
    stream = layer.stream(batch=3)
    assert_type(stream, LayerStream)
    assert_type(stream.step(x), Array)
    assert_type(stream.step(x, rows=[0, 2]), Array)
    stream.reset(rows=[1])
    stream.state = stream.copy().state
    stream.save(path)
    words = model.stream(2)
    assert_type(words, ModelStream)
    assert_type(words.step([1, 2]), Array)


def language_models(text: Iterable[str]) -> None:
    sentences = crnn.text.sentences(text)
    vocabulary = crnn.Vocabulary.build(sentences, size=8000)
    data = crnn.data.Sentences([vocabulary.encode(sentence) for sentence in sentences])
    model = crnn.LanguageModel(vocabulary, cell="gru", hidden_size=100, rng=0)
    trainer = crnn.Trainer(model, optimizer=crnn.optim.SGD(0.005), truncation=crnn.bptt.Window(4))
    history = trainer.fit(data, epochs=2)
    print(history[-1])
    assert_type(model.loss([[1, 2]], [[2, 3]]), float)
    assert_type(model.sgd_step([1, 2], [2, 3], 0.005, crnn.bptt.Chunk(2, 4)), float)
    assert_type(model.probabilities([1, 2]), Array)
    gradients: dict[str, Array] = model.gradients([1, 2], [2, 3])
    model.save("model.safetensors")
    assert_type(crnn.load("model.safetensors"), crnn.LanguageModel)
    print(gradients, model.generate(3, temperature=0.8, seed=1))


def weights_of_others(tensors: dict[str, Any], arrays: list[Array], path: Path) -> None:
    layer: Layer = crnn.interop.torch.from_state_dict(tensors, prefix="encoder.", nonlinearity="relu")
    named: dict[str, Array] = crnn.interop.torch.to_state_dict(layer)
    layer = crnn.interop.torch.from_safetensors(path, mmap=True)
    layer = crnn.interop.keras.from_weights("gru", arrays, reset_after=False, bidirectional=True)
    layer = crnn.interop.keras.from_file(path, "encoder")
    assert_type(crnn.interop.keras.to_weights(layer), list[Array])
    imported = crnn.interop.onnx.from_onnx(path)
    if isinstance(imported, Reversed):
        imported = imported.layer
    crnn.interop.onnx.to_onnx(imported, path)
    print(named)


def settings() -> None:
    crnn.set_num_threads(2)
    assert_type(crnn.get_num_threads(), int)
    crnn.show_config()
