"""One change at a time: what it does to accuracy, on 5,000 training images that a fixed hash holds out.

    python benchmarks/ablations.py --data.dataset path/to/cifar10

Runs each row's command, two beside each other on a core each, and writes docs/results/ablations.md; finished rows are
not run again. The runs are shortened: "fast" rows see 45,000 images of 128 pixels twice, "long" rows 10,000 images of
96 pixels thirty times, as often as the reference does, which a network of 57 million parameters learns by heart. A row
is compared with its own table's first and says nothing about the other table. About two and a half hours on two cores.
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
SHORT = "--data.val-fraction 0.1 --log.trackers --checkpoint.every-epochs 1000"
TABLES = {
    "fast": "--epochs 2 --data.image-size 128 --data.batch-size 256 --model.init torch --optim.name adam "
    "--optim.lr 5e-4 --optim.schedule one-cycle --data.cutout 0 --optim.label-smoothing 0 --optim.weight-decay 0",
    "long": "--epochs 30 --data.image-size 96 --data.limit 10000 --data.batch-size 256 --model.init torch "
    "--optim.name adamw --optim.lr 5e-4 --optim.schedule cosine --data.cutout 0.25 --optim.label-smoothing 0.1 "
    "--optim.weight-decay 2.5",  # over these 1,170 steps what 0.5 is over the 5,850 of the reference
}
ROWS = {
    "fast": (
        "",
        "--model.init he",
        "--model.init he --optim.lr 1e-3",
        "--data.batch-size 512 --optim.scale-lr sqrt",
        "--optim.name sgd --optim.lr 0.02 --model.init he",
        "--data.no-normalize",
        "--data.no-augment",
    ),
    "long": (
        "",
        "--model.init he",
        "--data.cutout 0.5",
        "--data.cutmix 0.3",
        "--data.cutout 0",
        "--data.mixup 0.2",
        "--data.no-augment",
        "--optim.weight-decay 5",
        "--optim.weight-decay 0",
        "--optim.lr 3e-4",
        "--optim.lr 1e-3",
        "--data.batch-size 128 --optim.weight-decay 1.25",
        "--optim.label-smoothing 0",
        "--optim.ema 0.99",
    ),
}


def main() -> None:
    """Run what is missing and write the table."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:2]:
        cores.put(core)
    jobs = [(table, change) for table in TABLES for change in ROWS[table]]
    with ThreadPoolExecutor(cores.qsize()) as pool:
        list(pool.map(lambda job: run(*job, cores=cores, more=sys.argv[1:]), jobs))
    for name, change in jobs:
        where = folder(name, change)
        measuring.keep_summary(where, RESULTS / "ablations" / f"{name}_{where.name}.json")
    (RESULTS / "ablations.md").write_text("\n\n".join(table(name) for name in TABLES) + "\n", encoding="utf-8")


def folder(table: str, change: str) -> Path:
    """Return a row's run folder."""
    return RUNS / table / ("".join(c if c.isalnum() or c == "." else "_" for c in change.replace("--", "")) or "base")


def run(table: str, change: str, *, cores: SimpleQueue[int], more: list[str]) -> None:
    """Train a row on a core of its own, unless that is done; one that was stopped goes on."""
    where = folder(table, change)
    if (where / "summary.json").exists() and json.loads((where / "summary.json").read_text())["status"] == "finished":
        return
    core = cores.get()
    command = f"{sys.executable} {HERE / 'train.py'} {TABLES[table]} {change} {SHORT} --out-dir {where}"
    print(f"{table}: {change or 'base'}", flush=True)
    try:
        subprocess.run(
            [*shlex.split(f"taskset --cpu-list {core} {command}"), *more], check=True, stdout=subprocess.DEVNULL
        )
    finally:
        cores.put(core)


def table(name: str) -> str:
    """Return a table of the rows that are there."""
    lines = [
        f"**{name}**: `python train.py {TABLES[name]} {SHORT}`",
        "",
        "| change | top-1 | against the first row | training loss | loss |",
        "|---|---|---|---|---|",
    ]
    base = None
    for change in ROWS[name]:
        where = folder(name, change)
        summary = json.loads((where / "summary.json").read_text())
        records = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
        last = [record for record in records if "val/top1" in record][-1]
        base = summary["final_top1"] if base is None else base
        lines.append(
            f"| {f'`{change}`' if change else 'none'} | {summary['final_top1']:.2%} | "
            f"{100 * (summary['final_top1'] - base):+.2f} | {last['train/epoch_loss']:.3f} | {last['val/loss']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
