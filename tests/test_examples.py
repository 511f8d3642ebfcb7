"""The worked ports run, and do what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close

FOLDER = Path(__file__).parents[1] / "examples"


def load(name):
    """An example as a module; examples are files, not a package."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


WORDS = ["hello", "a", "recurrent", "naïve", "", "phonemes"]


def test_pronunciations_equal_pytorchs():
    pytest.importorskip("torch", reason="PyTorch IS NOT INSTALLED: the ported network was NOT compared with it")
    example = load("grapheme_to_phoneme")
    weights = example.random_weights(seed=3)
    network = example.GraphemeToPhoneme(weights)
    encoded, spoken = network.encode(WORDS), network.pronounce(WORDS)
    for i, word in enumerate(WORDS):
        said, state = example.pronounce_with_torch(weights, word)
        assert spoken[i] == said
        size = {"terms": 96, "steps": len(word) + 1, "dtype": np.float32}
        assert_close(encoded[:, i], state[:, 0].astype(np.float64), "state", **size)
    assert len({tuple(said) for said in spoken}) == len(WORDS)


def test_words_pronounced_together_and_alone():
    example = load("grapheme_to_phoneme")
    network = example.GraphemeToPhoneme(example.random_weights(seed=3))
    together = network.pronounce(WORDS)
    assert together == [network.pronounce([word])[0] for word in WORDS]
    assert len({len(said) for said in together}) > 1  # some words finish before others
    assert network.pronounce([]) == []
    with pytest.raises(ValueError, match=r"missing output\.bias, output\.weight, sounds\.weight"):
        example.GraphemeToPhoneme({"letters.weight": np.zeros((3, 2))})


@pytest.fixture(scope="module")
def detector():
    example = load("streaming_detector")
    rng = np.random.default_rng(0)
    trained = example.Detector(rng)
    losses = trained.train(rng)
    assert np.mean(losses[-10:]) < 0.1 < 0.6 < losses[0]  # nats a frame
    return example, trained


def test_the_detector_detects(detector):
    example, trained = detector
    signal, present = example.synthetic_signal(np.random.default_rng(7), 1000)
    p = trained.probabilities(trained.layer(signal.reshape(-1, example.FRAME))[0])
    assert ((p > 0.5) == present).mean() > 0.97
    assert 0.2 < present.mean() < 0.8


def test_chunks_make_no_difference(detector):
    """Four sessions with chunks of their own lengths, one of them ended and begun anew in between."""
    example, trained = detector
    rng = np.random.default_rng(9)
    signals = [example.synthetic_signal(rng, 60)[0] for _ in range(4)]
    sessions = example.Sessions(trained, count=4)
    sessions.feed({2: rng.normal(size=777)})
    sessions.hang_up(2)
    places, heard = [0, 0, 0, 0], [[] for _ in signals]
    while any(place < len(signal) for place, signal in zip(places, signals)):
        chunks = {}
        for i in rng.permutation(4)[: rng.integers(1, 5)]:
            length = int(rng.integers(0, 150))
            chunks[int(i)] = signals[i][places[i] : places[i] + length]
            places[i] += length
        for i, values in sessions.feed(chunks).items():
            heard[i].append(values)
    for signal, values in zip(signals, heard):
        whole = trained.probabilities(trained.layer(signal.reshape(-1, example.FRAME))[0])
        ours = np.concatenate(values)
        assert_close(ours, whole.astype(np.float64), "output", terms=80, steps=60, dtype=np.float32)


def test_the_table_of_measurements():
    example = load("leaving_pytorch")
    keys = ("own", "all", "import", "loaded", "peak", "step_p50", "step_p99", "sequence")
    text = example.table({"crnn 1": dict.fromkeys(keys, 1.25), "torch 2": dict.fromkeys(keys, 100.0)})
    assert "| one streaming step, median | 1.2 us | 100.0 us |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert {"numpy"} <= example.needs("scipy", set())
    assert 0.1 < example.megabytes("crnn") < 5  # the package itself, as users install it
