"""Run the comparison: ``python -m benchmarks --only layer-training --threads 1,2 --rounds 7``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import drawn, machine
from benchmarks.figures import ratio, rival, seconds, share, summarise
from benchmarks.peers import PEERS
from benchmarks.process import LIMITED
from benchmarks.report import markdown, measure_of, write_json, write_plots
from benchmarks.runner import Runner
from benchmarks.workloads import Workload, groups, workloads

FORMAT = 1
ALL = [*groups(), *drawn.GROUPS]
DEFAULT_FOLDER = Path(__file__).resolve().parent / "results"


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--only", default="", metavar="GROUPS", help="comma-separated; " + ", ".join(ALL))
    options.add_argument("--match", default="", metavar="TEXT", help="only names that contain this, e.g. gru-b20")
    options.add_argument("--drawn", type=int, default=0, metavar="N", help="N shapes at random in every drawn group")
    options.add_argument("--seed", type=int, default=1, help="of the shapes drawn")
    options.add_argument(
        "--threads", type=machine.thread_counts, default=str(machine.processors()), help="one count or several: 2,1"
    )
    options.add_argument(
        "--peers", type=machine.peer_names, default=",".join(PEERS), help="default: all that are installed"
    )
    options.add_argument("--rounds", type=int, choices=range(1, 100), metavar="N", default=7)
    options.add_argument("--seconds", type=machine.positive, default=0.15, help="per peer and round")
    options.add_argument("--quick", action="store_true", help="3 rounds of 0.05 s")
    options.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder of results.json, README.md, plots")
    options.add_argument("--resume", action="store_true", help="skip what the folder's results.json already holds")
    options.add_argument("--fresh", action="store_true", help="forget the folder's earlier results first")
    options.add_argument("--report", action="store_true", help="measure nothing, write tables and plots anew")
    options.add_argument("--list", action="store_true", help="print the chosen workloads and stop")
    options.add_argument("--python", default=sys.executable, help="interpreter of the workers")
    options.add_argument("--isa", choices=list(LIMITED), default="", help="no peer goes beyond this instruction set")
    return options


def chosen(given: argparse.Namespace) -> list[Workload]:
    """Return the workloads that the options select; ValueError for an unknown group."""
    only = [name for name in given.only.split(",") if name]
    unknown = sorted(set(only) - set(ALL))
    if unknown:
        raise ValueError(f"--only names unknown groups {', '.join(unknown)}; there are {', '.join(ALL)}")
    if given.drawn < 0:
        raise ValueError(f"--drawn is {given.drawn}, wanted 0 or more")
    if not given.drawn and any(name in drawn.GROUPS for name in only):
        raise ValueError("--only names shapes drawn at random; --drawn N says how many")
    every = workloads() + drawn.drawn(given.drawn, given.seed)
    return [w for w in every if (not only or w.group in only) and given.match in w.name]


def load(path: Path, fresh: bool, isa: str | None = None) -> dict[str, Any]:
    """Return the stored run, or an empty one; ValueError for another format, or an ``--isa`` that is not ``isa``."""
    empty: dict[str, Any] = {"format": FORMAT, "records": []}
    empty |= {part: {} for part in ("machine", "build", "versions", "settings")}
    if fresh or not path.exists():
        return empty
    run: dict[str, Any] = json.loads(path.read_text())
    if run.get("format") != FORMAT:
        raise ValueError(f"{path} has format {run.get('format')!r}, wanted {FORMAT}; use --fresh")
    if isa is not None and run["records"] and (held := run["settings"].get("isa", "")) != isa:
        raise ValueError(f"{path} holds figures measured with --isa {held or '(all)'}; use another --out, or --fresh")
    return run


def line(record: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    unit, value, style = measure_of(Workload.from_json(record["workload"]))
    ours, best, of_peak, quotient = seconds(record), rival(record), share(record), ratio(record)
    parts = [f"{record['name']:52} {record['threads']}t"]
    parts.append(f"crnn {format(value(record, ours), style):>8} {unit}" if ours else "crnn        -")
    if of_peak:
        parts.append(f"{100 * of_peak:3.0f} %")
    if best:
        parts.append(f"{best[0]} {format(value(record, best[1]), style)}")
    if quotient:
        parts.append(f"ratio {quotient:.2f}")
    parts += [f"! {peer}: {why}" for peer, why in record["refused"].items() if "disagrees" in why or "Error" in why]
    return "  ".join(parts)


def measure(given: argparse.Namespace, run: dict[str, Any], path: Path) -> None:
    """Measure what was chosen, writing the results after every workload."""
    rounds, time = (3, 0.05) if given.quick else (given.rounds, given.seconds)
    run["settings"] = {"rounds": rounds, "seconds": time} | ({"isa": given.isa} if given.isa else {})
    run["machine"] = machine.describe()
    if warning := machine.busy():
        print(f"benchmarks: {warning}", file=sys.stderr)
    for threads in given.threads:
        done = {(r["name"], r["threads"]) for r in run["records"]} if given.resume else set()
        todo = [workload for workload in chosen(given) if (workload.name, threads) not in done]
        if not todo:
            continue
        wanted = [peer for peer in given.peers if any(not w.peers or peer in w.peers for w in todo)]
        with Runner(wanted, threads, rounds, time, given.python, given.isa) as runner:
            for peer, reason in runner.missing.items():
                print(f"{peer} takes no part: {reason}", file=sys.stderr)
            run["versions"] |= runner.versions
            run["build"] = runner.build() or run["build"]
            for workload in todo:
                record = runner.measure(workload) | {"commit": run["machine"]["commit"]}
                key = (record["name"], threads)
                run["records"] = [r for r in run["records"] if (r["name"], r["threads"]) != key] + [record]
                write_json(run, path)
                print(line(record), flush=True)


def main() -> int:
    """Run the command; 0 when every result agreed with the reference."""
    given = parser().parse_args()
    isa = None if given.list or given.report else given.isa
    try:
        selected = chosen(given)
        run = load(given.out / "results.json", given.fresh, isa)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(workload.name for workload in selected))
        return 0
    if not given.report:
        measure(given, run, given.out / "results.json")
    order = {workload.name: k for k, workload in enumerate(workloads())}  # drawn ones stay in theirs, at the end
    run["records"].sort(key=lambda r: (order.get(r["name"], len(order)), r["threads"]))
    if not run["records"]:
        print("benchmarks: nothing was measured", file=sys.stderr)
        return 2
    write_json(run, given.out / "results.json")
    (given.out / "README.md").write_text(markdown(run))
    try:
        write_plots(run, given.out)
    except ImportError as error:
        print(f"benchmarks: no plots: {error}", file=sys.stderr)
    for threads in sorted({record["threads"] for record in run["records"]}):
        for row in summarise(run["records"], threads):
            print(f"{threads}t {row.label:58} worst {row.worst:6.2f} ({row.worst_goal:g})  mean {row.mean:6.2f} "
                  f"({row.mean_goal:g})  {'met' if row.met else 'missed'}")  # fmt: skip
    return int(any("disagrees" in why for record in run["records"] for why in record["refused"].values()))


if __name__ == "__main__":
    sys.exit(main())
