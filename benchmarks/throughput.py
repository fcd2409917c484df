"""How fast train.py trains, next to three other loops on the same images and batch, one process at a time.

make bench                                                      # all of it: 5 rounds, half an hour on two cores
make bench BENCH="--rounds 1"
.venv/bin/python benchmarks/throughput.py --dataset cifar10     # CIFAR-10's own images instead of synthetic ones
.venv/bin/python benchmarks/throughput.py --tune --rounds 1     # which workers and threads suit the Accelerate loop

A round measures the machine's matrix products and then runs every contender (benchmarks/peers.py, and train.py with its
default options) in an order that moves on by one each round. Speeds are compared within a round, pair by pair. Writes
throughput.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import logging_cost
import measuring
import torch

from alexnet_dist import __version__
from alexnet_dist.config import DataConfig, ModelConfig, RuntimeConfig
from alexnet_dist.data import sources
from alexnet_dist.distributed import precision as precision_module
from alexnet_dist.models import alexnet
from alexnet_dist.training import profiler

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = "alexnet_dist"
CONTENDERS = ("lecture", "accelerate", "lightning", OURS)
LABELS = {
    "lecture": "the lecture's loop",
    "accelerate": "Accelerate loop",
    "lightning": "Lightning",
    OURS: "alexnet_dist (train.py)",
}
PROFILED_STEPS = profiler.SKIPPED + 1 + profiler.TRACED

NOTES = (
    "* Memory is that of all processes of a loop together, libraries included; what they share counts once.",
    "* MFU is the share of the best matrix product of the same round, in the precision that train.py chooses.",
    "* train.py logs: a record every few steps to metrics.jsonl and to W&B (offline). The other loops log nothing.",
)

Row = dict[str, Any]
Spread = dict[str, float]


def run_peer(name: str, arguments: argparse.Namespace, *, workers: int, threads: int | None = None) -> Row:
    """Run a loop of peers.py in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "result.json"
        flags: dict[str, object] = {
            "--batch-size": arguments.batch_size,
            "--image-size": arguments.image_size,
            "--warmup": arguments.warmup,
            "--steps": arguments.steps,
            "--workers": workers,
            "--dataset": arguments.dataset,
            "--out": path,
        }
        if threads is not None:
            flags["--threads"] = threads
        words = [str(word) for flag in flags.items() for word in flag]
        script = str(Path(__file__).parent / "peers.py")
        finished = measuring.run_child([sys.executable, script, name, *words])
        result: Row = json.loads(path.read_text(encoding="utf-8"))
    wait_seconds = result.pop("wait_seconds")
    return {
        **result,
        "images_per_second": result["images"] / result["seconds"],
        "data_wait_pct": 100 * wait_seconds / result["seconds"],
        "peak_memory_gib": finished.peak_memory / 2**30,
    }


def run_ours(arguments: argparse.Namespace) -> Row:
    """Run train.py as its users start it, and leave out the records of the warm-up."""
    steps = arguments.warmup + arguments.steps
    run = measuring.train(*_sizes(arguments), "--max-steps", str(steps), "--log.every-steps", str(arguments.warmup))
    warm = arguments.warmup * arguments.batch_size
    skip = 1 + next(i for i, record in enumerate(run.records) if record["samples_seen"] >= warm)
    rate = measuring.rate(run.records, skip=skip)
    shares = list(pairwise(run.records[skip - 1 :]))
    images = [record["samples_seen"] - before["samples_seen"] for before, record in shares]
    waits = [
        n / r["perf/images_per_second"] * r["perf/data_wait_pct"] for n, (_, r) in zip(images, shares, strict=True)
    ]
    seconds = sum(images) / rate
    return {
        "name": OURS,
        "images": sum(images),
        "seconds": seconds,
        "step_seconds": [record["perf/step_ms"] / 1000 for _, record in shares],
        "workers": 0,
        "threads": run.summary["cpu_threads"],
        "version": f"{OURS} {__version__}",
        "images_per_second": rate,
        "data_wait_pct": sum(waits) / seconds,
        "peak_memory_gib": run.peak_memory / 2**30,
    }


def _sizes(arguments: argparse.Namespace) -> list[str]:
    sizes = {"dataset": arguments.dataset, "batch-size": arguments.batch_size, "image-size": arguments.image_size}
    return [word for name, value in sizes.items() for word in (f"--data.{name}", str(value))]


def input_share(arguments: argparse.Namespace, rows: Sequence[Row]) -> float:
    """Return the share of a step of train.py that augments, enlarges and normalises, from one more run.

    The profiler times that section; the step it is a share of is the median one without the profiler, which slows the
    rest of the step down.
    """
    run = measuring.train(*_sizes(arguments), "--max-steps", str(PROFILED_STEPS), "--profile")
    step = statistics.median(arguments.batch_size / row["images_per_second"] for row in rows if row["name"] == OURS)
    return run.sections["input"] / profiler.TRACED / step


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Run all rounds; each row is one contender in one round."""
    precision = precision_module.resolve_precision(RuntimeConfig(), use_cpu=not torch.cuda.is_available()).name
    flops = flops_per_image(arguments)
    rows: list[Row] = []
    for number in range(arguments.rounds):
        peak = measuring.matmul_peak(precision)
        print(f"round {number + 1}: {precision} matrix products at {peak / 1e12:.2f} TFLOP/s", flush=True)
        for name in rotated(arguments.contenders, number):
            row = run_ours(arguments) if name == OURS else run_peer(name, arguments, workers=workers(name, arguments))
            mfu = row["images_per_second"] * flops / peak
            rows.append({"round": number, **row, "peak_tflops": peak / 1e12, "mfu": mfu})
            print(f"  {LABELS[name]}: {row['images_per_second']:.1f} images/s", flush=True)
    return rows


def flops_per_image(arguments: argparse.Namespace) -> int:
    """Count one image's operations in a training step, for the data set's number of classes."""
    config = DataConfig(dataset=arguments.dataset, batch_size=arguments.batch_size, image_size=arguments.image_size)
    network = alexnet.build(ModelConfig(), num_classes=len(sources.load(config).class_names), seed=0)
    return alexnet.training_flops(network, arguments.image_size)


def workers(name: str, arguments: argparse.Namespace) -> int:
    """Return how many loader processes a peer gets."""
    return int(arguments.lecture_workers if name == "lecture" else arguments.workers)


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of that round: nobody always runs after the same one."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def spread(values: Sequence[float]) -> Spread:
    """Return median and range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratios(rows: Sequence[Row], name: str) -> list[float]:
    """Return how many times as fast as a contender train.py was, in every round that has both."""
    rates = {(row["name"], row["round"]): row["images_per_second"] for row in rows}
    rounds = sorted({row["round"] for row in rows})
    return [
        rates[OURS, number] / rates[name, number] for number in rounds if {(OURS, number), (name, number)} <= set(rates)
    ]


def summarize(rows: Sequence[Row]) -> dict[str, Row]:
    """Return each contender's figures over all rounds, in the order of the table."""
    summary: dict[str, Row] = {}
    for name in CONTENDERS:
        own = [row for row in rows if row["name"] == name]
        if not own:
            continue
        keys = ("images_per_second", "peak_memory_gib", "data_wait_pct", "mfu")
        quotients = ratios(rows, name)
        summary[name] = {
            **{key: spread([row[key] for row in own]) for key in keys},
            "ratio": spread(quotients) if quotients else None,
            **{key: own[0][key] for key in ("workers", "threads", "version")},
        }
    return summary


def table(summary: dict[str, Row]) -> str:
    """Return the summary as a Markdown table."""
    header = ["loop", "images/s", "train.py is faster by", "peak memory, GiB", "waiting for data", "MFU"]
    header += ["loader processes", "threads", "version"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, row in summary.items():
        quotient = "" if name == OURS or row["ratio"] is None else _ranged(row["ratio"], "{:.2f}")
        cells = [
            LABELS[name],
            _ranged(row["images_per_second"], "{:.1f}"),
            quotient,
            f"{row['peak_memory_gib']['median']:.2f}",
            f"{row['data_wait_pct']['median']:.1f} %",
            f"{row['mfu']['median']:.2f}",
            str(row["workers"]),
            str(row["threads"]),
            row["version"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ranged(values: Spread, style: str) -> str:
    median, least, most = (style.format(values[key]) for key in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def report(results: Row) -> str:
    """Return the Markdown file."""
    settings, machine = results["settings"], results["machine"]
    on = ", ".join(machine["gpus"]) or f"{machine['cores']} cores of {machine['cpu']}"
    heading = (
        f"{settings['dataset']} images at {settings['image_size']}, batch {settings['batch_size']}, on {on}, torch "
        f"{machine['torch']}. Medians (and ranges) of {settings['rounds']} rounds of {settings['steps']} timed steps "
        f"after {settings['warmup']}; ratios are taken within a round."
    )
    lines = [heading, "", table(results["contenders"]), *NOTES]
    if results["input_share"] is not None:
        share = f"{results['input_share']:.1%}"
        lines.append(f"* Augmentation, enlargement and normalisation take {share} of a step of train.py.")
    if results["logging"] is not None:
        lines.append(f"* {logging_cost.sentence(results['logging'])}")
    return "\n".join(lines) + "\n"


def draw(summary: dict[str, Row], path: Path) -> None:
    """Draw each contender's median rate as a bar, with its range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.7 * len(summary)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = [row["images_per_second"] for row in summary.values()]
    medians = [rate["median"] for rate in rates]
    ranges = [[rate["median"] - rate["least"] for rate in rates], [rate["most"] - rate["median"] for rate in rates]]
    colours = ["#1f5fa8" if name == OURS else "#9aa7b5" for name in summary]
    labels = [LABELS[name] for name in summary]
    axes.barh(labels, medians, xerr=ranges, color=colours, height=0.6, error_kw={"capsize": 3, "linewidth": 1})
    longest = max(rate["most"] for rate in rates)
    for position, (rate, (name, row)) in enumerate(zip(rates, summary.items(), strict=True)):
        faster = "" if name == OURS or row["ratio"] is None else f"  (train.py: x {row['ratio']['median']:.2f})"
        axes.text(rate["most"] + 0.02 * longest, position, f"{rate['median']:.1f}{faster}", va="center")
    axes.set(xlim=(0, 1.4 * longest), xlabel="images per second, median and range of the rounds")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def tune(arguments: argparse.Namespace) -> str:
    """Run the Accelerate loop with other numbers of workers and threads and return a Markdown table."""
    choices = list(product((1, 2, 4), (1, 2)))
    rates: dict[tuple[int, int], list[float]] = {choice: [] for choice in choices}
    for _ in range(arguments.rounds):
        for num_workers, threads in choices:
            row = run_peer("accelerate", arguments, workers=num_workers, threads=threads)
            rates[num_workers, threads].append(row["images_per_second"])
            print(f"{num_workers} workers, {threads} threads: {row['images_per_second']:.1f} images/s", flush=True)
    lines = ["| loader processes | threads | images/s, median (range) |", "|---|---|---|"]
    lines += [f"| {w} | {t} | {_ranged(spread(values), '{:.1f}')} |" for (w, t), values in rates.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write what was measured."""
    arguments = parse()
    if arguments.tune:
        print(tune(arguments))
        return
    rows = measure(arguments)
    ours = OURS in arguments.contenders
    share = input_share(arguments, rows) if ours else None
    logging = logging_cost.measure(*_sizes(arguments), batch_size=arguments.batch_size) if ours else None
    settings = {key: value for key, value in vars(arguments).items() if key not in ("out", "tune")}
    results: Row = {
        "machine": measuring.machine(),
        "settings": settings,
        "contenders": summarize(rows),
        "input_share": share,
        "logging": logging,
        "rounds": rows,
    }
    markdown = report(results)
    measuring.save("throughput", results, markdown, folder=arguments.out)
    draw(results["contenders"], arguments.out / "throughput.png")
    print(f"\n{markdown}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=4, help="steps of each run before its clock starts")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each run")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the Accelerate and Lightning loops")
    parser.add_argument("--lecture-workers", type=int, default=4, help="of the lecture's loop, which says 4")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--tune", action="store_true", help="instead, compare workers and threads")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
