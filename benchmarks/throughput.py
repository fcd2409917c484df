"""How fast train.py trains, next to three other loops on the same images and batch, one process at a time.

make bench                                                      # all of it: 5 rounds, half an hour on two cores
make bench BENCH="--rounds 1"
.venv/bin/python benchmarks/throughput.py --dataset cifar10     # CIFAR-10's own images instead of synthetic ones
.venv/bin/python benchmarks/throughput.py --tune --rounds 1     # which workers and threads suit the Accelerate loop

A round measures the machine's peak and then runs every contender (benchmarks/peers.py with Adam, and train.py with
AdamW) for `--steps` timed steps after `--warmup`, in an order that moves on by one each round. Speeds are
compared within a round, pair by pair. `--workers` are the loader processes of Accelerate and Lightning,
`--lecture-workers` those of the lecture's loop, which says 4. Writes throughput.json, .md and .png.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import measuring
import overheads
import peers
import torch
from measuring import Row

from alexnet_dist import __version__
from alexnet_dist.config import DataConfig, ModelConfig, RuntimeConfig
from alexnet_dist.data import load
from alexnet_dist.distributed import precision as precision_module
from alexnet_dist.models import alexnet
from alexnet_dist.training import profiler

OURS = "alexnet_dist"
CONTENDERS = [*peers.PEERS, OURS]
LABELS = {
    "lecture": "the lecture's loop",
    "accelerate": "Accelerate loop",
    "lightning": "Lightning",
    OURS: "alexnet_dist (train.py)",
}
OF_LOOP = ("workers", "threads", "version")
PROFILED_STEPS = profiler.SKIPPED + 1 + profiler.TRACED

NOTES = (
    "* Memory is that of all processes of a loop together, libraries included; what they share counts once.",
    "* MFU is the share of the best product or convolution of the same round, in the precision that train.py chooses.",
    "* train.py logs: a record every few steps to metrics.jsonl and to W&B (offline). The other loops log nothing.",
)


def run_peer(name: str, options: argparse.Namespace, *, workers: int, threads: int | None = None) -> Row:
    """Run a loop of peers.py in a process of its own."""
    task = {**measuring.settings(options), "workers": workers, "threads": threads}
    finished = measuring.call("peers", "run", name, task)
    result: Row = finished.found
    wait_seconds = result.pop("wait_seconds")
    return {
        **result,
        "images_per_second": result["images"] / result["seconds"],
        "data_wait_pct": 100 * wait_seconds / result["seconds"],
        "peak_memory_gib": finished.peak_memory / 2**30,
    }


def run_ours(options: argparse.Namespace) -> Row:
    """Run train.py, and leave out the records of the warm-up."""
    steps = options.warmup + options.steps
    run = measuring.train(*_sizes(options), "--max-steps", str(steps), "--log.every-steps", str(options.warmup))
    warm = options.warmup * options.batch_size
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


def _sizes(options: argparse.Namespace) -> list[str]:
    sizes = {"dataset": options.dataset, "batch-size": options.batch_size, "image-size": options.image_size}
    return [word for name, value in sizes.items() for word in (f"--data.{name}", str(value))]


def input_share(options: argparse.Namespace, rows: Sequence[Row]) -> float:
    """Return the share of a step of train.py that augments, enlarges and normalises, from one more run.

    The profiler times that section; the step it is a share of is the median one without the profiler, which slows the
    rest of the step down.
    """
    run = measuring.train(*_sizes(options), "--max-steps", str(PROFILED_STEPS), "--profile")
    step = statistics.median(options.batch_size / row["images_per_second"] for row in rows if row["name"] == OURS)
    return run.sections["input"] / profiler.TRACED / step


def measure(options: argparse.Namespace) -> list[Row]:
    """Run all rounds; each row is one contender in one round."""
    precision = precision_module.resolve_precision(RuntimeConfig(), use_cpu=not torch.cuda.is_available()).name
    flops = flops_per_image(options)
    peaks: dict[int, float] = {}
    rows: list[Row] = []
    for number, name in measuring.in_turn(options.contenders, options.rounds):
        if number not in peaks:
            peaks[number] = measuring.peak_flops(precision)
            print(f"round {number + 1}: {precision} at up to {peaks[number] / 1e12:.2f} TFLOP/s", flush=True)
        workers = options.lecture_workers if name == "lecture" else options.workers
        row = run_ours(options) if name == OURS else run_peer(name, options, workers=workers)
        mfu = row["images_per_second"] * flops / peaks[number]
        rows.append({"round": number, **row, "peak_tflops": peaks[number] / 1e12, "mfu": mfu})
        print(f"  {LABELS[name]}: {row['images_per_second']:.1f} images/s", flush=True)
    return rows


def flops_per_image(options: argparse.Namespace) -> int:
    """Count one image's operations in a training step, for the data set's number of classes."""
    config = DataConfig(dataset=options.dataset, batch_size=options.batch_size, image_size=options.image_size)
    network = alexnet.build(ModelConfig(), num_classes=len(load(config).class_names), seed=0)
    return alexnet.training_flops(network, options.image_size)


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
            **{key: measuring.spread([row[key] for row in own]) for key in keys},
            "ratio": measuring.spread(quotients) if quotients else None,
            **{key: own[0][key] for key in OF_LOOP},
        }
    return summary


def table(summary: dict[str, Row]) -> str:
    """Return the summary as a Markdown table."""
    heads = ["loop", "images/s", "train.py is faster by", "peak memory, GiB", "waiting for data", "MFU"]
    heads += ["loader processes", "threads", "version"]
    rows = [
        (
            LABELS[name],
            measuring.ranged(row["images_per_second"], "{:.1f}"),
            "" if name == OURS or row["ratio"] is None else measuring.ranged(row["ratio"], "{:.2f}"),
            f"{row['peak_memory_gib']['median']:.2f}",
            f"{row['data_wait_pct']['median']:.1f} %",
            f"{row['mfu']['median']:.2f}",
            *(row[key] for key in OF_LOOP),
        )
        for name, row in summary.items()
    ]
    return measuring.table(heads, rows)


def report(results: Row) -> str:
    """Return the Markdown file."""
    settings, machine = results["settings"], measuring.machine()
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
        lines.append(f"* {overheads.sentence(results['logging'])}")
    return "\n".join(lines) + "\n"


def draw(summary: dict[str, Row], path: Path) -> None:
    """Draw each contender's median rate as a bar, with its range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.7 * len(summary)), layout="constrained", dpi=120)
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


def tune(options: argparse.Namespace) -> str:
    """Run the Accelerate loop with other numbers of workers and threads and return a Markdown table."""
    rates: dict[tuple[int, int], list[float]] = {choice: [] for choice in product((1, 2, 4), (1, 2))}
    for _, (workers, threads) in measuring.in_turn(rates, options.rounds):
        row = run_peer("accelerate", options, workers=workers, threads=threads)
        rates[workers, threads].append(row["images_per_second"])
        print(f"{workers} workers, {threads} threads: {row['images_per_second']:.1f} images/s", flush=True)
    rows = [(*choice, measuring.ranged(measuring.spread(found), "{:.1f}")) for choice, found in rates.items()]
    return measuring.table(["loader processes", "threads", "images/s, median (range)"], rows)


def main() -> None:
    """Measure, and write what was measured."""
    options = parse()
    if options.tune:
        print(tune(options))
        return
    rows = measure(options)
    ours = OURS in options.contenders
    results: Row = {
        "settings": {name: value for name, value in measuring.settings(options).items() if name != "tune"},
        "contenders": summarize(rows),
        "input_share": input_share(options, rows) if ours else None,
        "logging": overheads.measure_logging(*_sizes(options), batch_size=options.batch_size) if ours else None,
        "rounds": rows,
    }
    draw(results["contenders"], options.out / "throughput.png")
    measuring.save("throughput", results, report(results), folder=options.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    sizes = {"batch_size": 512, "image_size": 224, "rounds": 5, "warmup": 4, "steps": 12, "dataset": "synthetic"}
    workers = {"workers": os.cpu_count() or 1, "lecture_workers": 4}
    return measuring.parser(__doc__, **sizes, **workers, contenders=CONTENDERS, tune=False).parse_args()


if __name__ == "__main__":
    main()
