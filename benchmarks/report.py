"""Write the results: JSON, a Markdown page with tables, and plots."""

from __future__ import annotations

import collections
import json
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import drawn
from benchmarks.figures import Record, fastest, gflops, ratio, rival, seconds, share, summarise, workload_of
from benchmarks.machine_state import CALM, NEAR, QUIET
from benchmarks.peers import PEERS
from benchmarks.workloads import Workload, groups

LIMIT = """The limit is the ratio that a library would have that ran every product at the multiply-add peak, and read
the weights of a single sequence, or of a step, as fast as a loop that does nothing else; both measured in the same
minutes. Nobody gets there: functions of the gates, updates and the calls themselves take no time in it."""
HEADINGS = {
    "layer-training": "Layer training: forward and backward, float32",
    "batch1-training": "Layer training, one sequence, float32",
    "odd-training": "Layer training on shapes that nothing was tuned for, float32",
    "ragged-training": "Ragged batches: forward and backward, float32",
    "step": "Streaming: one time step per call, batch 1, the Python call included",
    "inference": "Batch inference, float32",
    "stacked-training": "Several layers or both directions: forward and backward, float32",
    "stacked-inference": "Several layers or both directions: inference, float32",
    "notes": "The notes' run: SGD after every sentence",
    "zaremba": "Zaremba's language models: a training step with clipping and SGD, no dropout",
    "float64-training": "Layer training, float64",
    "scaling-hidden": "Scaling with the hidden size",
    "scaling-batch": "Scaling with the batch",
    "scaling-vocabulary": "Scaling with the vocabulary: a one-layer LSTM language model",
    "scaling-window": "Truncation: cost of Window(k), k = 0 is full back-propagation",
    "drawn-training": "Layer training, shapes drawn at random, float32",
    "drawn-ragged": "Ragged batches, shapes drawn at random, float32",
    "drawn-step": "Streaming steps of one or more sequences, shapes drawn at random, float32",
    "drawn-inference": "Inference, shapes drawn at random, float32",
}


def write_json(run: dict[str, Any], path: Path) -> None:
    """Write the run atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(run, indent=1) + "\n")
    os.replace(temporary, path)


def measure_of(workload: Workload) -> tuple[str, Callable[[Record, float], float], str]:
    """Return the unit in which a kind of workload is told, its value from (record, seconds of a call), and a format."""
    if workload.kind == "step":
        return "us/step", lambda record, time: time / record["tokens"] * workload.batch * 1e6, ".2f"
    if workload.kind in ("sentences", "stream"):
        return "words/s", lambda record, time: record["tokens"] / time, ",.0f"
    return "GFLOP/s", lambda record, time: record["flops"] / time / 1e9, ".1f"


def markdown(run: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    records: list[Record] = run["records"]
    counts = sorted({record["threads"] for record in records}, reverse=True)
    parts = ["# Benchmark results", _machine(run)]
    for threads in counts:
        parts += [f"## Summary, {_threads(threads)}", _summary(records, threads)]
    if counts:
        parts.append(LIMIT)
    for group in (*groups(), *drawn.GROUPS):
        for threads in counts:
            chosen = [r for r in records if r["threads"] == threads and workload_of(r).group == group]
            if chosen:
                parts += [f"## {HEADINGS[group]}, {_threads(threads)}", _table(chosen)]
                if any("grown" in timed for r in chosen for timed in (r["peers"].get("crnn") or {}).values()):
                    parts += [
                        "Memory, MB: the parameters, and what the first training call adds to them.",
                        _memory(chosen),
                    ]
                if group == "step":
                    parts += ["Single calls, microseconds: median / 99th percentile.", _latency(chosen)]
    reasons = [(r["name"], peer, why) for r in records for peer, why in r["refused"].items() if "disagrees" in why]
    refused = sorted({f"- {name}: {peer}: {why}" for name, peer, why in reasons})
    if refused:
        parts += ["## Not timed because the results disagree", "\n".join(refused)]
    return "\n\n".join(parts) + "\n"


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _counts(rounds: Iterable[int]) -> str:
    """How many rounds how many workloads had, e.g. "3 (182 workloads), 5 (15 workloads)"."""
    counted = sorted(collections.Counter(rounds).items())
    return ", ".join(f"{number} ({times} workloads)" for number, times in counted) or "none"


def _machine(run: dict[str, Any]) -> str:
    machine, build = run["machine"], run["build"]
    commits = sorted({record.get("commit", "unknown") for record in run["records"]}) or [machine["commit"]]
    peaks: dict[tuple[int, str], float] = {}
    for record in run["records"]:
        key = (record["threads"], record["workload"]["dtype"])
        peaks[key] = max(peaks.get(key, 0.0), record["peak"] or 0.0)
    peak = ", ".join(f"{value:.0f} ({dtype}, {_threads(n)})" for (n, dtype), value in sorted(peaks.items()))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
    blas = "; ".join(f"{key} {value}" for key, value in build.get("blas", {}).items()) or "?"
    rounds = _counts(record["rounds"] for record in run["records"])
    timed = [t for r in run["records"] for variants in r["peers"].values() for t in variants.values()]
    repeated, disturbed = (sum(t.get(key, 0) for t in timed) for key in ("repeated", "disturbed"))
    again = (
        f"of {sum(len(t.get('rounds', [])) for t in timed)} rounds, {repeated} were timed again because, before or "
        f"after, multiply-adds fell below {100 * CALM:.0f} % or reading 8 MB below {100 * QUIET:.0f} % of the best, or "
        f"a hand-over took {NEAR:g} times the shortest; {disturbed} were kept although that was so"
    )
    processor = f"{machine['processor']} (family/model/stepping {machine['family']}), {machine['processors']} in use"
    only = f", no peer beyond {isa}" if (isa := run["settings"].get("isa")) else ""
    lines = [
        f"- processor: {processor}; {', '.join(machine['caches'])}",
        f"- multiply-add peak measured in this run, GFLOP/s: {peak}",
        f"- system: {machine['system']}, Python {machine['python']}; {machine['date']}",
        f"- crnn: commit {', '.join(commits)}, instruction set {build.get('isa', '?')}{only}, BLAS {blas}",
        f"- versions: {versions}",
        f"- interleaved rounds per peer: {rounds} of {run['settings']['seconds']} s in the last run; medians",
        f"- {again}",
    ]
    return "\n".join(lines)


def _summary(records: list[Record], threads: int) -> str:
    rows = ["| work | worst | goal | limit | geometric mean | goal | limit | workloads | met | worst at |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|---|---|")
    for line in summarise(records, threads):
        low, middle = (f"{roof:.2f}" if roof else "-" for roof in (line.worst_limit, line.mean_limit))
        rows.append(
            f"| {line.label} | {line.worst:.2f} | {line.worst_goal:g} | {low} | {line.mean:.2f} | {line.mean_goal:g} "
            f"| {middle} | {line.count} | {'yes' if line.met else 'no'} | {line.where} |"
        )
    for key, what, unit, style in (
        ("handover", "An empty job to the other threads and back", "us", ".2f"),
        ("shared", "Reading 8 MB over and over, which the cores' own caches do not hold", "GB/s", ".0f"),
    ):
        known = [r[key] for r in records if r["threads"] == threads and r.get(key)]
        if known:
            low, middle, high = (format(x, style) for x in (min(known), statistics.median(known), max(known)))
            rows += ["", f"{what}: {middle} {unit} ({low} to {high})."]
    return "\n".join(rows)


def _table(records: list[Record]) -> str:
    present = [peer for peer in PEERS if peer != "crnn" and any(peer in r["peers"] for r in records)]
    columns = [
        (peer, variant)
        for peer in present
        for variant in dict.fromkeys(v for r in records for v in r["peers"].get(peer, {}))
    ]
    unit, value, style = measure_of(workload_of(records[0]))
    names = [f"{p} {v}" if sum(p == q for q, _ in columns) > 1 else p for p, v in columns]
    rows = [
        f"| cell | shape | crnn, {unit} | spread | of peak | {''.join(n + ' | ' for n in names)}best rival | ratio |",
        "|---|---|--:|--:|--:|" + "--:|" * len(columns) + "---|--:|",
    ]
    for record in records:
        workload = workload_of(record)
        ours, best, of_peak, quotient = fastest(record, "crnn"), rival(record), share(record), ratio(record)
        cells = [workload.cell, workload.shape]
        if ours:
            cells += [format(value(record, ours[1]["seconds"]), style)]
            cells += [f"{100 * ours[1]['spread'] / ours[1]['seconds']:.1f} %"]
        else:
            cells += ["-", "-"]
        cells.append(f"{100 * of_peak:.0f} %" if of_peak and workload.kind != "step" else "-")
        for peer, variant in columns:
            timed = record["peers"].get(peer, {}).get(variant)
            cells.append(format(value(record, timed["seconds"]), style) if timed else "-")
        cells += [best[0] if best else "-", f"{quotient:.2f}" if quotient else "-"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _memory(records: list[Record]) -> str:
    peers = [peer for peer in PEERS if any(peer in record["peers"] for record in records)]
    rows = [f"| cell | shape | parameters | {' | '.join(peers)} |", "|---|---|--:|" + "--:|" * len(peers)]
    for record in records:
        workload = workload_of(record)
        grown = [next(iter(record["peers"].get(peer, {}).values()), {}).get("grown") for peer in peers]
        cells = ["-" if size is None else f"{size / 1e6:.0f}" for size in grown]
        rows.append(f"| {workload.cell} | {workload.shape} | {record['parameters'] / 1e6:.0f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _latency(records: list[Record]) -> str:
    pairs = [(peer, variant) for record in records for peer in PEERS for variant in record["peers"].get(peer, {})]
    columns = list(dict.fromkeys(pairs))
    rows = [f"| cell | shape | {' | '.join(f'{peer} {variant}' for peer, variant in columns)} |"]
    rows.append("|---|---|" + "--:|" * len(columns))
    for record in records:
        workload = workload_of(record)
        timed = [record["peers"].get(peer, {}).get(variant, {}) for peer, variant in columns]
        cells = [f"{1e6 * t['p50']:.1f} / {1e6 * t['p99']:.1f}" if "p99" in t else "-" for t in timed]
        rows.append(f"| {workload.cell} | {workload.shape} | {' | '.join(cells)} |")
    return "\n".join(rows)


def write_plots(run: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every plot for which there are records, at the largest thread count; return the files."""
    import matplotlib

    matplotlib.use("Agg")
    records: list[Record] = [record for record in run["records"] if record["peers"]]
    if not records:
        return []
    threads = max(record["threads"] for record in records)
    mine = [record for record in records if record["threads"] == threads]
    drawn = []
    for name, chosen in (
        ("training", ("layer-training", "batch1-training")),
        ("odd-training", ("odd-training",)),
        ("ragged", ("ragged-training",)),
        ("inference", ("inference",)),
        ("step", ("step",)),
        ("language-models", ("notes", "zaremba")),
    ):
        some = [record for record in mine if workload_of(record).group in chosen]
        if some:
            drawn.append(_bars(some, threads, folder / f"{name}.png"))
    for group, axis, label in (
        ("scaling-hidden", "hidden", "hidden size"),
        ("scaling-batch", "batch", "batch"),
        ("scaling-vocabulary", "vocabulary", "vocabulary"),
        ("scaling-window", "window", "window k (full at the dashed line)"),
    ):
        some = [record for record in mine if workload_of(record).group == group]
        if some:
            drawn.append(_curves(some, axis, label, threads, folder / f"{group}.png"))
    if len({record["threads"] for record in records}) > 1:
        drawn.append(_scaling_with_threads(records, folder / "scaling-threads.png"))
    return drawn


COLOURS = {
    "crnn": "#c23b22", "torch": "#e8a33d", "jax": "#4b7f9e", "onnxruntime": "#6a994e", "keras": "#8d6a9f",
    "notes_numpy": "#9a9a9a",
}  # fmt: skip


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def _bars(records: list[Record], threads: int, path: Path) -> Path:
    import matplotlib.pyplot as plt

    cells = [cell for cell in ("rnn", "lstm", "gru") if any(workload_of(r).cell == cell for r in records)]
    peers = [peer for peer in PEERS if any(peer in record["peers"] for record in records)]
    figure, axes = plt.subplots(len(cells), 1, figsize=(10, 2.9 * len(cells)), layout="constrained", squeeze=False)
    unit, value, style = measure_of(workload_of(records[0]))
    short = style.replace(".1f", ".0f").replace(".2f", ".1f")
    width = 0.84 / len(peers)
    for axis, cell in zip(axes[:, 0], cells, strict=True):
        some = [record for record in records if workload_of(record).cell == cell]
        for k, peer in enumerate(peers):
            times = [(x, seconds(record, peer)) for x, record in enumerate(some)]
            points = [(x + (k - (len(peers) - 1) / 2) * width, value(some[x], time)) for x, time in times if time]
            if points:
                bars = axis.bar(*zip(*points, strict=True), width, color=COLOURS[peer])
                axis.bar_label(bars, [format(height, short) for _, height in points], fontsize=6)
        if unit == "GFLOP/s" and all(record["peak"] for record in some):
            axis.axhline(max(record["peak"] for record in some), color="black", linewidth=1, linestyle="--")
        labels = [workload_of(record).shape.replace(", ", "\n") for record in some]
        axis.set_xticks(range(len(some)), labels, fontsize=7)
        axis.set_xlim(-0.5, len(some) - 0.5)
        axis.margins(y=0.12)
        axis.set_ylabel(unit)
        axis.set_title(f"{cell.upper()}, {_threads(threads)}", fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[peer], label=peer) for peer in peers]
    if unit == "GFLOP/s":
        handles.append(plt.Line2D([], [], color="black", linewidth=1, linestyle="--", label="multiply-add peak"))
    figure.legend(handles=handles, fontsize=8, ncols=len(handles), loc="outside upper center")
    return _save(figure, path)


def _curves(records: list[Record], attribute: str, label: str, threads: int, path: Path) -> Path:
    import matplotlib.pyplot as plt

    cells = list(dict.fromkeys(workload_of(record).cell for record in records))
    unit, value, _ = measure_of(workload_of(records[0]))
    by_window = attribute == "window"
    figure, axes = plt.subplots(1, len(cells), figsize=(4.2 * len(cells), 3.4), layout="constrained", squeeze=False)
    for axis, cell in zip(axes[0], cells, strict=True):
        some = [record for record in records if workload_of(record).cell == cell]
        for peer in PEERS:
            timed = [(getattr(workload_of(r), attribute), r, seconds(r, peer)) for r in some]
            shown = [(x, record, time) for x, record, time in timed if time and (x or not by_window)]
            points = sorted((x, 1e3 * time if by_window else value(record, time)) for x, record, time in shown)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=peer, color=COLOURS[peer])
            if by_window:
                for time in (time for x, _, time in timed if time and not x):
                    axis.axhline(1e3 * time, linestyle="--", linewidth=1, color=COLOURS[peer])
        peak = max((record["peak"] or 0.0 for record in some), default=0.0)
        if unit == "GFLOP/s" and peak and not by_window:
            axis.axhline(peak, color="black", linewidth=1, linestyle="--", label="peak")
        axis.set_xscale("log", base=2 if attribute != "vocabulary" else 10)
        axis.set_xlabel(label)
        if by_window:
            axis.set_xticks(sorted({workload_of(r).window for r in some} - {0}))
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylabel("ms per forward and backward" if by_window else unit)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{cell.upper()}, {_threads(threads)}", fontsize=10)
    axes[0, 0].legend(fontsize=7)
    return _save(figure, path)


def _scaling_with_threads(records: list[Record], path: Path) -> Path:
    """Speed against the thread count, the batched training shapes."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    counts = sorted({record["threads"] for record in records})
    for cell, style in (("rnn", ":"), ("lstm", "-"), ("gru", "--")):
        for peer in PEERS:
            per_count = {}
            for threads in counts:
                chosen = [r for r in records if r["threads"] == threads and workload_of(r).group == "layer-training"]
                speeds = [gflops(r, peer) for r in chosen if workload_of(r).cell == cell]
                known = [speed for speed in speeds if speed]
                if known:
                    per_count[threads] = sum(known) / len(known)
            if len(per_count) > 1:
                look = {"marker": "o", "markersize": 3, "color": COLOURS[peer], "label": f"{peer} {cell}"}
                axis.plot(list(per_count), list(per_count.values()), style, **look)
    axis.set_xticks(counts)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("threads")
    axis.set_ylabel("GFLOP/s, mean over the batched shapes")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=6, ncols=2)
    return _save(figure, path)
