"""One shape in a few seconds, for tuning: ``python -m benchmarks.quick lstm 20 35 200 200 --threads 2 --train``."""

from __future__ import annotations

import argparse
import sys

from benchmarks.machine import busy, peer_names, positive, processors, thread_counts
from benchmarks.process import LIMITED
from benchmarks.runner import Runner
from benchmarks.workloads import CELLS, Workload


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__)
    options.add_argument("cell", choices=CELLS)
    for name in ("batch", "time", "input", "hidden"):
        options.add_argument(name, type=int)
    options.add_argument("--train", action="store_true", help="forward and backward (default: inference)")
    options.add_argument("--step", action="store_true", help="single steps with carried state; time is their number")
    options.add_argument("--shortest", type=int, default=0, help="ragged batch: shortest sequence, time is the longest")
    options.add_argument("--layers", type=int, choices=range(1, 10), metavar="N", default=1)
    options.add_argument("--both", action="store_true", help="both directions")
    options.add_argument("--window", type=int, default=0, help="truncation Window(k) of the backward pass")
    options.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options.add_argument("--threads", type=thread_counts, default=str(processors()), help="one count or several: 1,2")
    options.add_argument("--rounds", type=int, choices=range(1, 100), metavar="N", default=5)
    options.add_argument("--seconds", type=positive, default=0.15, help="per peer and round")
    options.add_argument("--peers", type=peer_names, default="", help="peers beside crnn: torch,jax,onnxruntime,keras")
    options.add_argument("--python", default=sys.executable, help="interpreter of the peers")
    options.add_argument("--isa", choices=list(LIMITED), default="", help="no peer goes beyond this instruction set")
    return options


def main() -> int:
    """Measure and print one line per variant."""
    given = parser().parse_args()
    kind = "step" if given.step else "ragged" if given.shortest else "layer"
    workload = Workload(
        "quick", kind, given.cell, given.batch, given.time, given.input, given.hidden, dtype=given.dtype,
        train=(given.train or bool(given.shortest)) and not given.step, shortest=given.shortest, window=given.window,
        layers=given.layers, directions=2 if given.both else 1,
    )  # fmt: skip
    if warning := busy():
        print(warning, file=sys.stderr)
    peers = ["crnn", *(peer for peer in given.peers if peer != "crnn")]
    failed = False
    for threads in given.threads:
        with Runner(peers, threads, given.rounds, given.seconds, given.python, given.isa) as runner:
            record = runner.measure(workload)
            print(f"{workload.cell} {workload.shape} {workload.dtype}, {threads} threads, "
                  f"peak {record['peak'] or 0:.1f} GFLOP/s")  # fmt: skip
            calls = workload.time if kind == "step" else 1
            for peer, variants in (*record["peers"].items(), ("crnn", record["beside"])):
                for variant, timed in variants.items():
                    speed = record["flops"] / timed["seconds"] / 1e9
                    share = f"{100 * speed / record['peak']:5.1f} %" if record["peak"] else "    - %"
                    cost = f"{timed['seconds'] / calls * 1e6:10.1f} us +- {timed['spread'] / calls * 1e6:.1f}"
                    text = f"{peer} {variant}"
                    print(f"  {text:24} {speed:7.1f} GFLOP/s {share} {cost}  error {timed['error']:.0e}")
            for peer, reason in {**runner.missing, **record["refused"]}.items():
                print(f"  {peer}: {reason}")
            failed |= "crnn" not in record["peers"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
