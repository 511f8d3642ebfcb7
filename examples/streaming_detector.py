"""A stateful detector on a stream of audio: is there a tone in the noise, right now?

It works like a voice-activity detector: the signal arrives in chunks of whatever length the sound card or the network
delivers; a small GRU reads frames of 32 samples and carries its state across chunks; the answer is a probability for
each frame. Many sessions share one set of weights, and each step takes along only those that have a frame to read.

Run it: `python examples/streaming_detector.py`. It trains the detector with crnn (a few seconds), measures it on new
signals, and shows that the sizes of the chunks make no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import crnn
from crnn.parameters import Parameters, Spec

Array = npt.NDArray[Any]

FRAME = 32  # samples: 4 ms at 8 kHz
HIDDEN = 24


def sigmoid(a: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * a))


class Detector:
    """A GRU over frames with one sigmoid output.

    Parameters
    ----------
    rng
        Draws the initial weights.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.layer = crnn.GRU(FRAME, HIDDEN, rng=rng)
        self.head = Parameters([Spec("weight", (1, HIDDEN)), Spec("bias", (1,))])

    def probabilities(self, hidden: Array) -> Array:
        """Of a tone, from the GRU's outputs (..., HIDDEN)."""
        return sigmoid(hidden @ self.head["weight"][0] + self.head["bias"][0])

    def train(self, rng: np.random.Generator, steps: int = 150, batch: int = 32, frames: int = 100) -> list[float]:
        """Learn from synthetic signals; returns the mean cross entropy (nats a frame) of every step."""
        optimisers = crnn.optim.Adam(0.01), crnn.optim.Adam(0.01)
        gradient = self.head.like()
        losses = []
        for _ in range(steps):
            signals, present = zip(*(synthetic_signal(rng, frames) for _ in range(batch)), strict=True)
            x, wanted = np.stack(signals).reshape(batch, frames, FRAME), np.stack(present)
            run = self.layer.forward(x)
            p = self.probabilities(run.output)
            losses.append(float(-np.log(np.where(wanted, p, 1 - p).clip(1e-7)).mean()))
            d_logit = ((p - wanted) / p.size).astype(np.float32)
            gradient["weight"][0] = np.einsum("bt,bth->h", d_logit, run.output)
            gradient["bias"][0] = d_logit.sum()
            back = run.backward(d_logit[..., None] * self.head["weight"][0], truncation=crnn.bptt.Chunk(50))
            optimisers[0].step(self.layer.params, back.params)
            optimisers[1].step(self.head, gradient)
        return losses


class Sessions:
    """Independent streams through one detector.

    Parameters
    ----------
    detector
        Shared, read only.
    count
        How many sessions there are, numbered from 0.
    """

    def __init__(self, detector: Detector, count: int) -> None:
        self.detector = detector
        self.stream = detector.layer.stream(batch=count)
        self._waiting = [np.empty(0, np.float32) for _ in range(count)]

    def feed(self, chunks: Mapping[int, Array]) -> dict[int, Array]:
        """Take in a chunk of samples for some sessions; returns the probabilities of their frames that became whole.

        Parameters
        ----------
        chunks
            Session -> (samples,) of any length, 0 included.
        """
        answers: dict[int, list[float]] = {session: [] for session in chunks}
        for session, chunk in chunks.items():
            self._waiting[session] = np.concatenate([self._waiting[session], np.asarray(chunk, np.float32)])
        while ready := [session for session in chunks if len(self._waiting[session]) >= FRAME]:
            frames = np.stack([self._waiting[session][:FRAME] for session in ready])
            p = self.detector.probabilities(self.stream.step(frames, rows=ready))
            for session, value in zip(ready, p, strict=True):
                answers[session].append(float(value))
                self._waiting[session] = self._waiting[session][FRAME:]
        return {session: np.array(values) for session, values in answers.items()}

    def hang_up(self, session: int) -> None:
        """Forget a session; its number may be given to the next one."""
        self.stream.reset(rows=[session])
        self._waiting[session] = np.empty(0, np.float32)


def synthetic_signal(rng: np.random.Generator, frames: int) -> tuple[Array, Array]:
    """Noise with bursts of tones: samples (frames * FRAME,), and which frames hold a tone (frames,) bool."""
    samples = rng.normal(size=frames * FRAME)
    present = np.zeros(frames, bool)
    first = int(rng.integers(5, 30))
    while first < frames:
        length = int(rng.integers(10, 40))
        burst = slice(first * FRAME, min(first + length, frames) * FRAME)
        time = np.arange(burst.start, burst.stop)
        frequency = rng.uniform(0.04, 0.2)  # cycles a sample
        samples[burst] += rng.uniform(1.5, 3.0) * np.sin(2 * np.pi * frequency * time + rng.uniform(0, 2 * np.pi))
        present[first : first + length] = True
        first += length + int(rng.integers(10, 40))
    return samples.astype(np.float32), present


def main() -> None:
    rng = np.random.default_rng(0)
    detector = Detector(rng)
    losses = detector.train(rng)
    print(f"training: {losses[0]:.3f} -> {np.mean(losses[-10:]):.3f} nats a frame")

    signal, present = synthetic_signal(rng, 2000)
    whole = detector.probabilities(detector.layer(signal.reshape(-1, FRAME))[0])
    print(f"new signal of {len(present)} frames: {((whole > 0.5) == present).mean():.1%} right")

    sessions = Sessions(detector, count=8)
    pieces, place = [], 0
    while place < len(signal):
        length = int(rng.integers(0, 500))
        pieces.append(sessions.feed({5: signal[place : place + length]})[5])
        place += length
    difference = np.abs(np.concatenate(pieces) - whole).max()
    print(f"the same in {len(pieces)} chunks of 0 to 499 samples: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
