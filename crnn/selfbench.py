"""How fast crnn is on this machine: a benchmark of itself that takes some seconds (`crnn benchmark`).

The comparison with other libraries stands in the repository's ``benchmarks/`` folder. Speeds of layers count
``6*B*T*G*H*(I+H)`` floating-point operations for forward and backward (G gates: 1 RNN, 3 GRU, 4 LSTM) and are also
given as a fraction of the multiply-add peak that the same threads reached in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crnn.arguments import whole_number

__all__ = ["Timing", "add_arguments", "main", "measure"]

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
SHAPES = ((20, 35, 200, 200), (8, 200, 256, 256), (1, 50, 512, 512))  # batch, time, input, hidden
STEP_WIDTHS = (64, 256)
VOCABULARY, HIDDEN, WINDOW, WORDS = 8000, 100, 4, 20


@dataclasses.dataclass(frozen=True)
class Timing:
    """One measured line.

    Attributes
    ----------
    work : str
        What was done, e.g. ``lstm forward + backward, batch 20, T 35, 200 -> 200``.
    seconds, spread : float
        Median time of one call and the median absolute deviation from it.
    value : float
        The same in `unit`: ``GFLOP/s``, ``us/step`` or ``words/s``.
    unit : str
    of_peak : float or None
        Fraction of the multiply-add peak, for layers.
    """

    work: str
    seconds: float
    spread: float
    value: float
    unit: str
    of_peak: float | None = None


def _time(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median and median absolute deviation of a call's time; the first call warms up and does not count."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or (time.perf_counter() < end and len(samples) < 10_000):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    median = statistics.median(samples)
    return median, statistics.median(abs(sample - median) for sample in samples)


def _layer(cell: str, inputs: int, hidden: int, dtype: Any) -> Any:
    import crnn

    if cell == "gru":
        return crnn.GRU(inputs, hidden, reset_after=True, z_weighs="state", dtype=dtype, rng=0)
    return (crnn.RNN if cell == "rnn" else crnn.LSTM)(inputs, hidden, dtype=dtype, rng=0)


def _training(cell: str, shape: tuple[int, int, int, int], dtype: Any, seconds: float, peak: float) -> Timing:
    batch, steps, inputs, hidden = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, steps, inputs)).astype(dtype)
    dy = rng.standard_normal((batch, steps, hidden)).astype(dtype)
    layer = _layer(cell, inputs, hidden, dtype)
    median, spread = _time(lambda: layer.forward(x).backward(dy), seconds)
    speed = 6 * batch * steps * GATES[cell] * hidden * (inputs + hidden) / median / 1e9
    work = f"{cell} forward + backward, batch {batch}, T {steps}, {inputs} -> {hidden}"
    return Timing(work, median, spread, speed, "GFLOP/s", speed / peak)


def _step(cell: str, width: int, dtype: Any, seconds: float) -> Timing:
    layer = _layer(cell, width, width, dtype)
    x = np.random.default_rng(0).standard_normal(width).astype(dtype)
    calls = 100

    def run() -> None:
        state = None
        for _ in range(calls):
            _, state = layer.step(x, state)

    median, spread = _time(run, seconds)
    return Timing(f"{cell} step, {width} -> {width}", median / calls, spread / calls, median / calls * 1e6, "us/step")


def _model(cell: str, dtype: Any, seconds: float) -> Timing:
    import crnn

    options: dict[str, Any] = {"reset_after": True, "z_weighs": "state"} if cell == "gru" else {}
    model = crnn.LanguageModel(VOCABULARY, cell, HIDDEN, bias=False, dtype=dtype, rng=0, **options)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, WORDS + 1)
    window = crnn.bptt.Window(WINDOW)
    median, spread = _time(lambda: model.sgd_step(ids[:-1], ids[1:], 0.005, window), seconds)
    work = f"{cell} language model, SGD per sentence, vocabulary {VOCABULARY}, hidden {HIDDEN}, window {WINDOW}"
    return Timing(work, median, spread, WORDS / median, "words/s")


def measure(
    cells: Sequence[str] = ("rnn", "lstm", "gru"), dtype: str = "float32", seconds: float = 0.2
) -> dict[str, Any]:
    """Measure this machine.

    Parameters
    ----------
    cells : sequence of str
        Any of "rnn", "lstm", "gru".
    dtype : str
        "float32" or "float64".
    seconds : float
        Time spent on each line.

    Returns
    -------
    dict
        ``peak`` in GFLOP/s, ``isa``, ``threads``, ``dtype`` and ``timings``, a list of `Timing`.

    Raises
    ------
    ValueError
        For an unknown cell or dtype, or a time that is not positive.
    """
    from crnn import _kernels

    unknown = [cell for cell in cells if cell not in GATES]
    if unknown or not cells:
        raise ValueError(f"cells must be some of {', '.join(GATES)}, got {', '.join(map(repr, cells)) or 'none'}")
    if dtype not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be a positive number, got {seconds}")
    threads = _kernels.get_threads()
    peak = float(_kernels.fma_peak(dtype, threads, min(seconds, 0.2)))
    real = np.dtype(dtype)
    timings = [_training(cell, shape, real, seconds, peak) for shape in SHAPES for cell in cells]
    timings += [_step(cell, width, real, seconds) for width in STEP_WIDTHS for cell in cells]
    timings += [_model(cell, real, seconds) for cell in cells]
    return {"peak": peak, "isa": _kernels.isa(), "threads": threads, "dtype": dtype, "timings": timings}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `main` to a parser."""
    parser.add_argument("--cell", choices=(*GATES, "all"), default="all", help="which cell (default: all three)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, help="threads (default: crnn's own choice)")
    parser.add_argument("--seconds", type=float, default=0.2, help="time spent on each line (default: 0.2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def main(args: argparse.Namespace) -> int:
    """Measure as `add_arguments`' options say and print the result; returns the exit code 0."""
    import crnn

    before = crnn.get_num_threads()
    if args.threads is not None:
        crnn.set_num_threads(whole_number(args.threads, "--threads"))
    try:
        report = measure(tuple(GATES) if args.cell == "all" else (args.cell,), args.dtype, args.seconds)
    finally:
        crnn.set_num_threads(before)
    timings: list[Timing] = report["timings"]
    if args.json:
        print(json.dumps({**report, "timings": [dataclasses.asdict(timing) for timing in timings]}, indent=1))
        return 0
    print(f"crnn {crnn.__version__}, {report['isa']}, threads {report['threads']}, {report['dtype']}")
    print(f"multiply-add peak {report['peak']:.0f} GFLOP/s")
    width = max(len(timing.work) for timing in timings)
    for timing in timings:
        share = f"  {100 * timing.of_peak:3.0f} % of peak" if timing.of_peak is not None else ""
        spread = f"+- {100 * timing.spread / timing.seconds:.0f} %"
        print(f"{timing.work:{width}}  {timing.value:10,.1f} {timing.unit:8} {spread:>7}{share}")
    return 0
