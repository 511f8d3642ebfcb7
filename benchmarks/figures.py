"""From records to figures: ratios, shares of the peak, and the rows of the summary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.flops import least_seconds
from benchmarks.peers import FLOAT32, ONE_THREAD
from benchmarks.workloads import BATCHES_FROM, Workload

Record = dict[str, Any]
BASELINE = "notes_numpy"  # compared in a row of its own: nobody would pick it today


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the summary: which workloads, against whom, and the goal."""

    label: str
    chosen: Callable[[Workload], bool]
    worst: float
    mean: float
    rival: Callable[[str, str], bool] = lambda peer, variant: peer != BASELINE


ROWS = (
    Row("layer training, batches of 8 and more",
        lambda w: w.group in ("layer-training", "odd-training") and w.batch >= BATCHES_FROM, 1.05, 1.5),
    Row("layer training, batch 1", lambda w: w.group == "batch1-training", 1.3, 2.0),
    Row("ragged training, against torch packed sequences", lambda w: w.group == "ragged-training", 2.5, 4.0,
        lambda peer, variant: variant == "packed"),
    Row("ragged training, against padded batches of torch and JAX", lambda w: w.group == "ragged-training", 1.0, 1.0,
        lambda peer, variant: variant.startswith("padded")),
    Row("streaming step, Python call included", lambda w: w.group == "step", 1.0, 2.5),
    Row("batch inference", lambda w: w.group == "inference", 0.95, 1.2),
    Row("the notes' run, window 4, against torch", lambda w: w.group == "notes", 5.0, 6.0,
        lambda peer, variant: peer == "torch"),
    Row("the notes' run, against the notes' NumPy code (RNN)", lambda w: w.group == "notes", 50.0, 50.0,
        lambda peer, variant: peer == BASELINE),
    Row("Zaremba small and medium, against torch", lambda w: w.group == "zaremba", 1.2, 1.6,
        lambda peer, variant: peer == "torch"),
    Row("Zaremba small and medium, against JAX", lambda w: w.group == "zaremba", 1.0, 1.0,
        lambda peer, variant: peer == "jax"),
    Row("several layers or both directions, training", lambda w: w.group == "stacked-training", 1.05, 1.5),
    Row("several layers or both directions, inference", lambda w: w.group == "stacked-inference", 0.95, 1.2),
    Row("drawn at random: layer training", lambda w: w.group == "drawn-training", 1.0, 1.0),
    Row("drawn at random: ragged training", lambda w: w.group == "drawn-ragged", 1.0, 1.0),
    Row("drawn at random: streaming step", lambda w: w.group == "drawn-step", 1.0, 1.0),
    Row("drawn at random: inference", lambda w: w.group == "drawn-inference", 1.0, 1.0),
    Row("layer training in float64", lambda w: w.group == "float64-training", 1.0, 1.0),
)  # fmt: skip


def workload_of(record: Record) -> Workload:
    """Return the workload of a record."""
    return Workload.from_json(record["workload"])


def fastest(record: Record, peer: str) -> tuple[str, Record] | None:
    """Return the fastest variant of a peer and its figures, None where the peer was not timed."""
    variants = record["peers"].get(peer)
    if not variants:
        return None
    name = min(variants, key=lambda variant: variants[variant]["seconds"])
    return name, variants[name]


def seconds(record: Record, peer: str = "crnn") -> float | None:
    """Return a peer's best median time of one call."""
    found = fastest(record, peer)
    return found[1]["seconds"] if found else None


def rival(record: Record, allowed: Callable[[str, str], bool] = ROWS[0].rival) -> tuple[str, float] | None:
    """Return the fastest rival's name and time among the allowed peers and variants."""
    candidates = [
        (timed["seconds"], f"{peer} {variant}" if len(variants) > 1 else peer)
        for peer, variants in record["peers"].items()
        if peer != "crnn"
        for variant, timed in variants.items()
        if allowed(peer, variant)
    ]
    if not candidates:
        return None
    best, name = min(candidates)
    return name, best


def ratio(record: Record, allowed: Callable[[str, str], bool] = ROWS[0].rival) -> float | None:
    """Return the best rival's time over crnn's: above 1, crnn is faster."""
    ours, best = seconds(record), rival(record, allowed)
    return best[1] / ours if ours and best else None


def gflops(record: Record, peer: str = "crnn") -> float | None:
    """Return a peer's speed in GFLOP/s."""
    time = seconds(record, peer)
    return record["flops"] / time / 1e9 if time else None


def share(record: Record) -> float | None:
    """Return crnn's fraction of the multiply-add peak measured in the same minutes."""
    speed = gflops(record)
    return speed / record["peak"] if speed and record.get("peak") else None


def floor(record: Record) -> float | None:
    """Return the time at the machine's limits (``least_seconds``), None where they are not known."""
    if not record.get("peak"):
        return None
    return least_seconds(workload_of(record), record["flops"], record["peak"], record.get("read"))


def limit(record: Record, allowed: Callable[[str, str], bool] = ROWS[0].rival) -> float | None:
    """Return the ratio of a library that reached the machine's limits."""
    best, least = rival(record, allowed), floor(record)
    return best[1] / least if best and least else None


def mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


@dataclasses.dataclass(frozen=True)
class Summary:
    """One line of the summary: worst and mean, the goals for both, how many workloads, and which one is worst.

    ``worst_limit`` and ``mean_limit`` are what a library would have that did the same work at the machine's limits, 0
    where that is not known.
    """

    label: str
    worst: float
    mean: float
    worst_goal: float
    mean_goal: float
    count: int
    where: str
    worst_limit: float = 0.0
    mean_limit: float = 0.0

    @property
    def met(self) -> bool:
        return self.worst >= self.worst_goal and self.mean >= self.mean_goal


def _line(
    label: str, pairs: list[tuple[float, str]], worst: float, average: float, limits: list[float] | None = None
) -> list[Summary]:
    if not pairs:
        return []
    low, where = min(pairs)
    roofs = (min(limits), mean(limits)) if limits and len(limits) == len(pairs) else (0.0, 0.0)
    return [Summary(label, low, mean(value for value, _ in pairs), worst, average, len(pairs), where, *roofs)]


def summarise(records: list[Record], threads: int) -> list[Summary]:
    """Return the summary of all records with this thread count."""
    mine = [(record, workload_of(record)) for record in records if record["threads"] == threads]
    lines: list[Summary] = []
    notes = [record for record, w in mine if w.group == "notes" and BASELINE in record["peers"]]
    for row in ROWS:
        pairs, limits = [], []
        for record, workload in mine:
            if not row.chosen(workload):
                continue
            # The baseline has an RNN only; the other cells are held against its speed on the same sentences.
            value, roof = ratio(record, row.rival), limit(record, row.rival)
            if value is None and row.rival(BASELINE, "float64") and not row.rival("torch", "dense") and notes:
                ours, theirs, least = seconds(record), seconds(notes[0], BASELINE), floor(record)
                if ours and theirs:
                    value = (record["tokens"] / ours) / (notes[0]["tokens"] / theirs)
                    roof = value * ours / least if least else None
            if value is not None:
                pairs.append((value, f"{workload.cell} {workload.shape}"))
                limits += [roof] if roof is not None else []
        lines += _line(row.label, pairs, row.worst, row.mean, limits)

    def ones(pairs: list[Any]) -> list[float]:
        return [1.0] * len(pairs)

    large = [
        (share(record), f"{w.cell} {w.shape}")
        for record, w in mine
        if w.group in ("layer-training", "odd-training") and w.batch * w.time >= 700 and w.hidden >= 200
    ]
    lines += _line("fraction of peak, layer training, B*T >= 700, H >= 200", _known(large), 0.8, 0.8, ones(large))
    models = [(share(record), f"{w.cell} {w.shape}") for record, w in mine if w.group == "zaremba"]
    lines += _line("fraction of peak, Zaremba small and medium", _known(models), 0.75, 0.75, ones(models))
    lines += _line("float32 time x 2.2 over float64 time", _widths(mine), 1.0, 1.0)
    if threads > 1:
        known, unknown = speedups(records, threads), speedups(records, threads, drawn=True)
        lines += _line(f"speed-up of {threads} threads, batched shapes", known, 1.7, 1.7)
        lines += _line(f"drawn at random: speed-up of {threads} threads", unknown, 1.0, 1.0)
    return lines


def _known(pairs: list[tuple[float | None, str]]) -> list[tuple[float, str]]:
    return [(value, where) for value, where in pairs if value is not None]


def beside(record: Record, variant: str) -> float | None:
    """Return crnn's median time under other conditions, measured in the same rounds; None where it was not."""
    found = record.get("beside", {}).get(variant)
    return found["seconds"] if found else None


def _widths(mine: list[tuple[Record, Workload]]) -> list[tuple[float, str]]:
    pairs = []
    for record, workload in mine:
        double, single = seconds(record), beside(record, FLOAT32)
        if double and single:
            pairs.append((2.2 * single / double, f"{workload.cell} {workload.shape}"))
    return pairs


def speedups(records: list[Record], threads: int, drawn: bool = False) -> list[tuple[float, str]]:
    """Return (time on one thread / time on ``threads``, workload) of every batched layer and language model.

    Those drawn at random, many of which are too short to share, stand apart.
    """
    pairs = []
    for record in records:
        workload = workload_of(record)
        ours, single = seconds(record), beside(record, ONE_THREAD)
        if workload.group.startswith("scaling") or workload.group.startswith("drawn") != drawn:
            continue
        if record["threads"] == threads and ours and single:
            pairs.append((single / ours, f"{workload.group} {workload.cell} {workload.shape}"))
    return pairs
