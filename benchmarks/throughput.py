"""Images per second of the training loop as train.py runs it, data and logging included, on synthetic images.

make bench
.venv/bin/python benchmarks/throughput.py --batch-sizes 64 256 512 --steps 6

Prints a Markdown table. The first step of each run, which allocates memory and picks kernels, is left out; the median
and the range of the others are shown, and the share of the matrix products' speed measured by the same run (MFU).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def measure(batch_size: int, *, steps: int, options: list[str]) -> list[dict[str, float]]:
    """Train a few steps in a process of its own and return their records, without the first."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        flags = ["--data.dataset", "synthetic", "--data.batch-size", str(batch_size), "--max-steps", str(steps)]
        flags += ["--log.every-steps", "1", "--wandb.mode", "offline", "--out-dir", str(folder), "--epochs", "100"]
        command = [sys.executable, str(ROOT / "train.py"), *flags, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "train/loss" in record][1:]


def main() -> None:
    """Measure every batch size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--steps", type=int, default=6)
    arguments, options = parser.parse_known_args()
    print("| global batch | images/s, median (range) | step, ms | waiting for data | MFU |")
    print("|---|---|---|---|---|")
    for batch_size in arguments.batch_sizes:
        records = measure(batch_size, steps=arguments.steps, options=options)
        rates = [record["perf/images_per_second"] for record in records]
        keys = ("perf/step_ms", "perf/data_wait_pct", "perf/mfu")
        step, wait, mfu = (statistics.median(record[key] for record in records) for key in keys)
        spread = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
        print(f"| {batch_size} | {spread} | {step:.0f} | {wait:.1f} % | {mfu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
