"""What is measured: every workload as data, and the bytes that all peers receive."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np

CELLS = ("rnn", "lstm", "gru")
GATES = {"rnn": 1, "lstm": 4, "gru": 3}

BATCHES_FROM = 8  # sequences: what counts as a batch in the summary
# batch, time, input, hidden
BATCHED = (
    (64, 50, 500, 500),
    (8, 200, 256, 256),
    (20, 35, 200, 200),
    (32, 100, 128, 128),
    (20, 35, 650, 650),
)
SINGLE = ((1, 35, 100, 100), (1, 200, 128, 128), (1, 50, 512, 512))
# Shapes that no kernel was tuned for: odd widths, few rows, short and long sequences.
ODD = (
    (2, 100, 256, 256),
    (7, 33, 65, 100),
    (13, 25, 300, 127),
    (16, 64, 650, 500),
    (50, 50, 24, 96),
    (100, 20, 300, 333),
    (128, 12, 64, 512),
)
# batch, input, hidden, shortest, longest
RAGGED = ((64, 128, 256, 12, 100), (32, 100, 100, 5, 60), (20, 200, 200, 1, 80))
# batch, time, input, hidden, layers, directions
STACKED = ((20, 35, 256, 256, 2, 1), (32, 50, 100, 128, 1, 2), (16, 40, 300, 200, 2, 2), (1, 100, 128, 256, 1, 2))
STEPS = (64, 128, 256, 512)
INFERENCE = (
    (32, 100, 512, 512),
    (64, 50, 500, 500),
    (8, 200, 256, 256),
    (20, 35, 200, 200),
    (1, 200, 128, 128),
)


@dataclasses.dataclass(frozen=True)
class Workload:
    """One thing to measure.

    Attributes
    ----------
    group
        The row of the summary it counts for, and what ``--only`` selects.
    kind
        ``layer`` (a dense batch), ``ragged`` (sequences of unequal length), ``step`` (one time step per call, state
        carried), ``sentences`` (a language model, SGD after every sentence) or ``stream`` (a language model on
        contiguous streams, state carried from chunk to chunk).
    cell, batch, time, input, hidden, layers, vocabulary
        Sizes. ``input`` is the embedding size of a language model, 0 for one-hot words; ``time`` is the number of
        calls in a ``step`` workload and the unroll length of a ``stream``.
    dtype
        ``float32`` or ``float64``.
    train
        Forward and backward; otherwise inference.
    shortest
        Shortest sequence of a ragged batch (``time`` is the longest).
    window
        Truncation ``Window(window)``; 0 is full back-propagation.
    units
        Sentences or chunks in one timed call of a language model.
    directions
        2 where every layer also runs from the end, 1 otherwise.
    """

    group: str
    kind: str
    cell: str
    batch: int
    time: int
    input: int
    hidden: int
    layers: int = 1
    vocabulary: int = 0
    dtype: str = "float32"
    train: bool = True
    shortest: int = 0
    window: int = 0
    units: int = 0
    directions: int = 1
    peers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A unique, readable key: ``layer-training/lstm-b20-t35-200-200``."""
        parts = [self.cell, f"b{self.batch}", f"t{self.shortest}..{self.time}" if self.shortest else f"t{self.time}"]
        parts += [str(self.input), str(self.hidden) + (f"x{self.layers}" if self.layers > 1 else "")]
        if self.directions > 1:
            parts.append("both")
        if self.vocabulary:
            parts.append(f"v{self.vocabulary}")
        if self.window:
            parts.append(f"w{self.window}")
        if self.dtype != "float32":
            parts.append(self.dtype)
        return f"{self.group}/{'-'.join(parts)}"

    @property
    def shape(self) -> str:
        """The sizes as a reader of a table wants them."""
        if self.kind == "step":
            return (
                f"batch {self.batch}, {self.input} -> {self.hidden}"
                if self.batch > 1
                else f"{self.input} -> {self.hidden}"
            )
        if self.kind == "sentences":
            truncation = f"window {self.window}" if self.window else "full"
            return f"vocabulary {self.vocabulary}, hidden {self.hidden}, {truncation}"
        if self.kind == "stream":
            return f"{self.layers}x{self.hidden}, batch {self.batch}, unroll {self.time}, vocabulary {self.vocabulary}"
        time = f"T {self.shortest}-{self.time}" if self.shortest else f"T {self.time}"
        truncation = f", window {self.window}" if self.window else ""
        stack = f", {self.layers} layers" if self.layers > 1 else ""
        stack += ", both directions" if self.directions > 1 else ""
        return f"batch {self.batch}, {time}, {self.input} -> {self.hidden}{stack}{truncation}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Workload:
        """Rebuild a workload from :meth:`to_json`."""
        return cls(**{**fields, "peers": tuple(fields["peers"])})

    def widened(self) -> Workload:
        """Return the same workload in float64: the reference that results are checked against."""
        return dataclasses.replace(self, dtype="float64")


def _layers(group: str, shapes: tuple[tuple[int, int, int, int], ...], **options: Any) -> list[Workload]:
    return [
        Workload(group, "layer", cell, batch, time, inputs, hidden, **options)
        for batch, time, inputs, hidden in shapes
        for cell in CELLS
    ]


def _stream(group: str, cell: str, hidden: int, unroll: int, vocabulary: int, units: int, layers: int = 2) -> Workload:
    return Workload(
        group, "stream", cell, 20, unroll, hidden, hidden, layers=layers, vocabulary=vocabulary, units=units,
        peers=("crnn", "torch", "jax"),
    )  # fmt: skip


def workloads() -> list[Workload]:
    """Return every workload, in the order in which a full run measures them."""
    train = ("crnn", "torch", "jax", "keras")
    infer = ("crnn", "torch", "jax", "onnxruntime", "keras")
    every = _layers("layer-training", BATCHED, peers=train)
    every += _layers("batch1-training", SINGLE, peers=train)
    every += _layers("odd-training", ODD, peers=("crnn", "torch", "jax"))
    every += [
        Workload(
            "ragged-training",
            "ragged",
            cell,
            batch,
            longest,
            inputs,
            hidden,
            shortest=shortest,
            peers=("crnn", "torch", "jax"),
        )
        for batch, inputs, hidden, shortest, longest in RAGGED
        for cell in CELLS
    ]
    every += [
        Workload("step", "step", cell, 1, 256, width, width, train=False, peers=("crnn", "torch", "jax", "onnxruntime"))
        for width in STEPS
        for cell in CELLS
    ]
    every += _layers("inference", INFERENCE, train=False, peers=infer)
    every += [
        Workload(
            "notes",
            "sentences",
            cell,
            1,
            0,
            0,
            100,
            vocabulary=8000,
            window=4,
            units=24,
            peers=("crnn", "torch", "notes_numpy"),
        )
        for cell in CELLS
    ]
    every += [
        _stream("zaremba", cell, hidden, unroll, 10000, units)
        for hidden, unroll, units in ((200, 20, 32), (650, 35, 16))
        for cell in CELLS
    ]
    for train_too in (True, False):
        group, others = ("stacked-training", ()) if train_too else ("stacked-inference", ("onnxruntime",))
        every += [
            Workload(
                group, "layer", cell, batch, time, inputs, hidden, layers=layers, directions=directions,
                train=train_too, peers=("crnn", "torch", "jax", *others),
            )
            for batch, time, inputs, hidden, layers, directions in STACKED
            for cell in CELLS
        ]  # fmt: skip
    every += _layers("float64-training", BATCHED + SINGLE, dtype="float64", peers=("crnn", "torch"))
    every += _scaling()
    names = [workload.name for workload in every]
    if len(set(names)) != len(names):
        raise ValueError("two workloads share a name")
    return every


def _scaling() -> list[Workload]:
    peers = ("crnn", "torch", "jax")
    hidden = tuple((20, 35, width, width) for width in (32, 64, 128, 256, 512, 1024))
    batch = tuple((rows, 35, 200, 200) for rows in (1, 2, 4, 8, 16, 32, 64, 128))
    every = _layers("scaling-hidden", hidden, peers=peers) + _layers("scaling-batch", batch, peers=peers)
    every += [
        _stream("scaling-vocabulary", "lstm", 200, 20, size, 4, layers=1) for size in (1000, 3000, 10000, 30000, 100000)
    ]
    every += [
        Workload("scaling-window", "layer", cell, 20, 64, 200, 200, window=window, peers=("crnn",))
        for cell in CELLS
        for window in (0, 1, 2, 4, 8, 16, 32)
    ]
    return every


def groups() -> list[str]:
    """Return the names of all groups in order."""
    return list(dict.fromkeys(workload.group for workload in workloads()))


def layer_names(workload: Workload) -> list[str]:
    """What PyTorch appends to the parameters of each layer and direction: l0, l0_reverse, l1 ..."""
    directions = ("", "_reverse")[: workload.directions]
    return [f"l{layer}{direction}" for layer in range(workload.layers) for direction in directions]


def parameter_shapes(workload: Workload) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, PyTorch's names and order; language models prefix ``rnn.``."""
    rows, prefix = GATES[workload.cell] * workload.hidden, "rnn." if workload.vocabulary else ""
    bias = workload.kind != "sentences"
    shapes: dict[str, tuple[int, ...]] = {}
    if workload.vocabulary and workload.input:
        shapes["embedding.weight"] = (workload.vocabulary, workload.input)
    for layer, suffix in enumerate(layer_names(workload)):
        first = workload.input or workload.vocabulary
        width = first if layer < workload.directions else workload.directions * workload.hidden
        shapes[f"{prefix}weight_ih_{suffix}"] = (rows, width)
        shapes[f"{prefix}weight_hh_{suffix}"] = (rows, workload.hidden)
        if bias:
            shapes[f"{prefix}bias_ih_{suffix}"] = (rows,)
            shapes[f"{prefix}bias_hh_{suffix}"] = (rows,)
    if workload.vocabulary:
        shapes["output.weight"] = (workload.vocabulary, workload.hidden)
        if bias:
            shapes["output.bias"] = (workload.vocabulary,)
    return shapes


def arrays(workload: Workload) -> dict[str, np.ndarray]:
    """Return the inputs and initial weights of a workload; the same bytes at every call.

    Returns
    -------
    dict
        Every parameter under its name, and by kind: ``x`` (batch, time, input) and ``dy`` (batch, time,
        directions*hidden) real, ``lengths`` (batch,) int64 for ragged batches, ``ids`` (tokens,) int64 and for
        sentences ``starts`` (sentences + 1,) int64. Real arrays have the workload's dtype.
    """
    rng = np.random.default_rng(zlib.crc32(workload.name.removesuffix("-float64").encode()))
    bound = 1.0 / np.sqrt(workload.hidden)
    data = {name: rng.uniform(-bound, bound, shape) for name, shape in parameter_shapes(workload).items()}
    if workload.vocabulary:
        data.update(_tokens(workload, rng))
    else:
        data["x"] = rng.standard_normal((workload.batch, workload.time, workload.input))
        data["dy"] = rng.standard_normal((workload.batch, workload.time, workload.directions * workload.hidden))
        if workload.kind == "ragged":
            lengths = rng.integers(workload.shortest, workload.time + 1, workload.batch)
            lengths[rng.integers(workload.batch)] = workload.time
            data["lengths"] = lengths
            # Zero beyond each length, so that a peer that computes on padding gets the same gradients.
            data["dy"] *= (np.arange(workload.time) < lengths[:, None])[:, :, None]
    return {name: a.astype(workload.dtype) if a.dtype.kind == "f" else a for name, a in data.items()}


def _tokens(workload: Workload, rng: np.random.Generator) -> dict[str, np.ndarray]:
    # Zipf's law, roughly that of English words: how often rows of an embedding repeat matters to sparse updates.
    weight = 1.0 / (np.arange(workload.vocabulary) + 2.7)
    if workload.kind == "stream":
        count = workload.batch * workload.time * workload.units + 1
        return {"ids": rng.choice(workload.vocabulary, count, p=weight / weight.sum())}
    # Sentence lengths of comments: median 15 words, a long tail, both markers included.
    lengths = np.clip(np.exp(rng.normal(np.log(17.0), 0.6, workload.units)).astype(np.int64), 3, 80)
    ids = rng.choice(workload.vocabulary, int(lengths.sum()), p=weight / weight.sum())
    return {"ids": ids, "starts": np.concatenate([[0], np.cumsum(lengths)])}
