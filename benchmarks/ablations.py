"""One change at a time: what it does to accuracy, on 5,000 training images that a fixed hash holds out.

    python benchmarks/ablations.py --data.dataset path/to/cifar10

Runs each row's command, two beside each other on a core each, and writes docs/results/ablations.md; finished rows are
not run again. The runs are short: 10,000 images of 96 pixels thirty times, as often as the reference sees its 50,000
of 224. About two hours on two cores.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import measuring

HERE = Path(__file__).parent.parent
RUNS, RESULTS = HERE / "runs" / "ablations", HERE / "docs" / "results"
BASE = (
    "--epochs 30 --data.image-size 96 --data.limit 10000 --data.val-fraction 0.1 --data.batch-size 256 "
    "--data.cutout 0.25 --model.init torch --model.dropout 0.5 --optim.name adamw --optim.lr 5e-4 "
    "--optim.schedule cosine --optim.label-smoothing 0.1 "
    "--optim.weight-decay 2.5"  # over 1,170 steps what 0.5 is over 5,850
)
KEEP_LITTLE = "--log.trackers --checkpoint.every-epochs 1000"
ROWS = (
    "",
    "--data.batch-size 128 --optim.weight-decay 1.25",
    "--model.init he",
    "--data.cutout 0",
    "--data.cutout 0.5",
    "--data.cutmix 0.3",
    "--data.mixup 0.2",
    "--optim.weight-decay 5",
    "--optim.weight-decay 0",
    "--optim.lr 3e-4",
    "--optim.lr 1e-3",
    "--optim.label-smoothing 0",
    "--model.dropout 0.25",
    "--model.init he --optim.name sgd --optim.lr 0.02 --optim.weight-decay 5e-4",
    "--model.init he --optim.name lamb --optim.lr 5e-3 --optim.weight-decay 0",
)


def main() -> None:
    """Run what is missing and write the table."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:2]:
        cores.put(core)
    with ThreadPoolExecutor(cores.qsize()) as pool:
        list(pool.map(lambda change: run(change, cores=cores, more=sys.argv[1:]), ROWS))
    for change in ROWS:
        measuring.keep_summary(folder(change), RESULTS / "ablations" / f"{folder(change).name}.json")
    (RESULTS / "ablations.md").write_text(table(), encoding="utf-8")


def folder(change: str) -> Path:
    """Return a row's run folder."""
    return RUNS / ("".join(c if c.isalnum() or c == "." else "_" for c in change.replace("--", "")) or "base")


def run(change: str, *, cores: SimpleQueue[int], more: list[str]) -> None:
    """Train a row on a core of its own, unless that is done; one that was stopped goes on."""
    where = folder(change)
    if (where / "summary.json").exists() and json.loads((where / "summary.json").read_text())["status"] == "finished":
        return
    core = cores.get()
    command = f"{sys.executable} {HERE / 'train.py'} {BASE} {change} {KEEP_LITTLE} --out-dir {where}"
    print(change or "base", flush=True)
    try:
        subprocess.run(
            [*shlex.split(f"taskset --cpu-list {core} {command}"), *more], check=True, stdout=subprocess.DEVNULL
        )
    finally:
        cores.put(core)


def table() -> str:
    """Return the command and the rows in Markdown, each compared with the first."""
    lines = [
        f"`python train.py {BASE} {KEEP_LITTLE}`, and",
        "",
        "| change | top-1 | against the first row | training loss | loss |",
        "|---|---|---|---|---|",
    ]
    base = None
    for change in ROWS:
        where = folder(change)
        summary = json.loads((where / "summary.json").read_text())
        records = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
        last = [record for record in records if "val/top1" in record][-1]
        base = summary["final_top1"] if base is None else base
        lines.append(
            f"| {f'`{change}`' if change else 'none'} | {summary['final_top1']:.2%} | "
            f"{100 * (summary['final_top1'] - base):+.2f} | {last['train/epoch_loss']:.3f} | {last['val/loss']:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
