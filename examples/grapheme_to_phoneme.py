"""Spelling to sounds: an encoder-decoder GRU with weights from PyTorch, run without PyTorch.

The network is the common one: letters are embedded and read by a GRU; its last state starts a second GRU that emits
one phoneme after the other, each fed back, until it says that it is done. The weights come as a PyTorch state dict (of
arrays or tensors, or a .safetensors file):

    letters.weight (letters, E)    encoder.weight_ih_l0 ...    sounds.weight (phonemes, E)    decoder.weight_ih_l0 ...
    output.weight (phonemes, H)    output.bias (phonemes,)

Run it: `python examples/grapheme_to_phoneme.py [WORD ...]`. It draws random weights, so it babbles; with torch
installed it builds the same network there, and compares every number and every phoneme.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import crnn

Array = npt.NDArray[Any]

LETTERS = ["<pad>", "<unknown>", "</s>", *"abcdefghijklmnopqrstuvwxyz'"]
_ARPABET = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
PHONEMES = ["<pad>", "<s>", "</s>", *_ARPABET.split()]
START, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")


class GraphemeToPhoneme:
    """Pronounces words.

    Parameters
    ----------
    weights
        The state dict described above.

    Raises
    ------
    ValueError
        Weights are missing or do not fit each other.
    """

    def __init__(self, weights: Mapping[str, Any]) -> None:
        missing = {"letters.weight", "sounds.weight", "output.weight", "output.bias"} - set(weights)
        if missing:
            raise ValueError(f"weights: missing {', '.join(sorted(missing))}")
        self.encoder = crnn.interop.torch.from_state_dict(weights, prefix="encoder.")
        self.decoder = crnn.interop.torch.from_state_dict(weights, prefix="decoder.")
        self.letters, self.sounds, self.output, self.bias = (
            np.asarray(weights[name]) for name in ("letters.weight", "sounds.weight", "output.weight", "output.bias")
        )

    def encode(self, words: Sequence[str]) -> Array:
        """The encoder's last states (1, words, H): words of any lengths in one call, no padding."""
        places = {letter: i for i, letter in enumerate(LETTERS)}
        unknown, end = places["<unknown>"], places["</s>"]
        ids = [[*(places.get(letter, unknown) for letter in word.lower()), end] for word in words]
        _, state = self.encoder([self.letters[one] for one in ids])
        return state

    def pronounce(self, words: Sequence[str], longest: int = 20) -> list[list[str]]:
        """The phonemes of every word, the most probable one at each step.

        Parameters
        ----------
        words
            What to pronounce.
        longest
            Words that go on for more phonemes than this are cut.
        """
        if not words:
            return []
        stream = self.decoder.stream(batch=len(words))
        stream.state = self.encode(words)
        said: list[list[str]] = [[] for _ in words]
        going, last = np.arange(len(words)), np.full(len(words), START)
        for _ in range(longest):
            hidden = stream.step(self.sounds[last], rows=going)  # words that are done take no part any more
            last = (hidden @ self.output.T + self.bias).argmax(axis=1)
            going, last = going[last != END], last[last != END]
            for word, phoneme in zip(going, last, strict=True):
                said[word].append(PHONEMES[phoneme])
            if not len(going):
                break
        return said


def random_weights(seed: int = 0, embedding: int = 32, hidden: int = 64) -> dict[str, Array]:
    """Weights of the right shapes, large enough that the answers depend on the words."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    for name in ("encoder", "decoder"):
        layer = crnn.GRU(embedding, hidden, reset_after=True, z_weighs="state", rng=rng)
        for value in layer.params.values():
            value *= 3
        weights |= crnn.interop.torch.to_state_dict(layer, prefix=name)
    for name, shape in (
        ("letters.weight", (len(LETTERS), embedding)),
        ("sounds.weight", (len(PHONEMES), embedding)),
        ("output.weight", (len(PHONEMES), hidden)),
        ("output.bias", (len(PHONEMES),)),
    ):
        weights[name] = rng.normal(size=shape).astype(np.float32)
    return weights


def pronounce_with_torch(weights: Mapping[str, Array], word: str, longest: int = 20) -> tuple[list[str], Array]:
    """The same network in PyTorch, one word at a time: phonemes, and the encoder's last state (1, 1, H)."""
    import torch

    hidden, embedding = weights["output.weight"].shape[1], weights["letters.weight"].shape[1]
    modules = torch.nn.ModuleDict(
        {
            "letters": torch.nn.Embedding(len(LETTERS), embedding),
            "encoder": torch.nn.GRU(embedding, hidden, batch_first=True),
            "sounds": torch.nn.Embedding(len(PHONEMES), embedding),
            "decoder": torch.nn.GRU(embedding, hidden, batch_first=True),
            "output": torch.nn.Linear(hidden, len(PHONEMES)),
        }
    )
    modules.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=True)
    with torch.no_grad():
        unknown, end = LETTERS.index("<unknown>"), LETTERS.index("</s>")
        ids = [LETTERS.index(letter) if letter in LETTERS else unknown for letter in word.lower()]
        _, state = modules["encoder"](modules["letters"](torch.tensor([[*ids, end]])))
        encoded, said, last = state.numpy().copy(), [], START
        for _ in range(longest):
            y, state = modules["decoder"](modules["sounds"](torch.tensor([[last]])), state)
            last = int(modules["output"](y[0, 0]).argmax())
            if last == END:
                break
            said.append(PHONEMES[last])
    return said, encoded


def main(words: Sequence[str]) -> None:
    weights = random_weights()
    network = GraphemeToPhoneme(weights)
    encoded = network.encode(words)
    for i, (word, said) in enumerate(zip(words, network.pronounce(words), strict=True)):
        print(f"{word:12} {' '.join(said)}")
        try:
            expected, state = pronounce_with_torch(weights, word)
        except ModuleNotFoundError:
            continue
        assert said == expected, (word, said, expected)
        np.testing.assert_allclose(encoded[:, i], state[:, 0], rtol=0, atol=1e-5)
        print(
            f"{'':12} PyTorch says the same; largest difference of states {abs(encoded[:, i] - state[:, 0]).max():.1e}"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["hello", "recurrent", "a", "phoneme", "naïve"])
