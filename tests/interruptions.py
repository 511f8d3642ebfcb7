"""Interrupt a training run at random points and compare the final weights with those of a run left alone.

    python tests/interruptions.py FILE [--points 10] [--seed 0]

Half of the runs are stopped by SIGKILL and half by SIGINT, each at a random moment, and then resumed to their end; one
more run is interrupted again and again. Every model file must hold the very same bytes as the undisturbed one; exit
code 1 if one does not. This is the check by hand on real text; the suite has small ones of the same kind.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPTIONS = (
    *("--recipe", "char-rnn", "--hidden", "64", "--epochs", "2", "--dropout", "0.2"),
    *("--checkpoint-every", "0.02", "--samples", "0", "--quiet"),
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "crnn", "train", *arguments]


def start(text: Path, folder: Path) -> list[str]:
    return command(str(text), *OPTIONS, "--out", str(folder / "model.safetensors"), "--checkpoint", str(folder / "ck"))


def interrupt(arguments: list[str], seconds: float, sign: signal.Signals) -> bool:
    """Run for some time, then send the signal; whether it came before the end."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(sign)
        process.wait()
        return True


def go_on(text: Path, folder: Path) -> list[str]:
    """How to continue: from the checkpoint, or from the beginning where none was written yet."""
    if (folder / "ck").is_dir() and any((folder / "ck").iterdir()):
        return command("--resume", str(folder / "ck"), "--quiet")
    return start(text, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Interrupt training at random points; compare the final weights.")
    parser.add_argument("text", type=Path)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    text = arguments.text.resolve()
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch, "alone")
        alone.mkdir()
        began = time.monotonic()
        subprocess.run(start(text, alone), check=True)
        whole = time.monotonic() - began
        wanted = (alone / "model.safetensors").read_bytes()
        print(f"undisturbed: {whole:.1f} s")

        def report(name: str, folder: Path, places: str) -> None:
            nonlocal differing
            subprocess.run(go_on(text, folder), check=True)
            same = (folder / "model.safetensors").read_bytes() == wanted
            differing += not same
            print(f"{name:12} {places:40} {'the same bytes' if same else 'DIFFERENT'}", flush=True)

        for point in range(arguments.points):
            folder = Path(scratch, str(point))
            folder.mkdir()
            sign = signal.SIGKILL if point % 2 else signal.SIGINT
            seconds = chance.uniform(0.05, 0.95) * whole
            late = "" if interrupt(start(text, folder), seconds, sign) else " (had ended)"
            report(f"{sign.name}", folder, f"after {seconds:5.1f} s{late}")
        folder = Path(scratch, "often")
        folder.mkdir()
        count = 0
        while count < arguments.points:
            sign = signal.SIGKILL if count % 2 else signal.SIGINT
            if not interrupt(go_on(text, folder), chance.uniform(0.1, 0.4) * whole, sign):
                break
            count += 1
        report("one run", folder, f"interrupted {count} times")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
