"""Train the recipes whose figures are quoted, on their seeds, and write docs/results from what they recorded.

    python benchmarks/recipes.py --data.dataset path/to/cifar10

Finished runs are not run again, and one that was stopped goes on. Writes each run's summary.json, the table recipes.md,
curves.png, and the kernels of the longest recipe. Six hours on two cores
with AMX; the reference takes a minute on an H200.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import measuring

HERE = Path(__file__).parent.parent
RUNS, RESULTS = HERE / "runs" / "recipes", HERE / "docs" / "results"
SEEDS = {"lecture": (0, 1, 2), "quick": (0, 1, 2), "reference": (0, 1, 2)}
COLOURS = {"lecture": "#9aa7b5", "quick": "#1f5fa8", "reference": "#d1495b"}
PICTURES = ("conv1_before", "conv1_now", "conv1_seen_now")
Record = dict[str, Any]


def main() -> None:
    """Run what is missing and write what docs/results.md shows."""
    for recipe, seeds in SEEDS.items():
        for seed in seeds:
            run(recipe, seed, more=sys.argv[1:])
    RESULTS.mkdir(parents=True, exist_ok=True)
    for recipe, seeds in SEEDS.items():
        for seed in seeds:
            measuring.keep_summary(folder(recipe, seed), RESULTS / f"{recipe}_{seed}.json")
    (RESULTS / "recipes.md").write_text(table(), encoding="utf-8")
    draw_curves(RESULTS / "curves.png")
    for name in PICTURES:
        shutil.copy(folder("reference", 0) / "figures" / f"{name}.png", RESULTS / f"{name}.png")


def folder(recipe: str, seed: int) -> Path:
    """Return a run's folder."""
    return RUNS / f"{recipe}_{seed}"


def run(recipe: str, seed: int, *, more: list[str]) -> None:
    """Train a recipe on a seed, unless that is done."""
    where = folder(recipe, seed)
    if (where / "summary.json").exists() and summary(recipe, seed)["status"] == "finished":
        return
    flags = f"--config {HERE}/recipes/{recipe}.yaml --seed {seed} --log.trackers --checkpoint.every-steps 100".split()
    subprocess.run([sys.executable, str(HERE / "train.py"), *flags, "--out-dir", str(where), *more], check=True)


def summary(recipe: str, seed: int) -> Record:
    """Return a run's summary.json."""
    found: Record = json.loads((folder(recipe, seed) / "summary.json").read_text(encoding="utf-8"))
    return found


def evaluations(recipe: str, seed: int) -> list[Record]:
    """Return the lines of a run's metrics.jsonl that hold an evaluation."""
    lines = (folder(recipe, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "val/top1" in record]


def table() -> str:
    """Return the recipes' accuracies in Markdown: mean and standard deviation over seeds; the first seed's seconds."""
    lines = [
        "| recipe | epochs | seeds | test top-1 | mirror images averaged | training loss | on | one epoch, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, seeds in SEEDS.items():
        found = [summary(recipe, seed) for seed in seeds]
        seconds = [record["perf/epoch_seconds"] for record in evaluations(recipe, seeds[0])]
        lines.append(
            f"| `{recipe}.yaml` | {found[0]['epochs']} | {', '.join(map(str, seeds))} | "
            f"**{spread([one['final_top1'] for one in found])}** | "
            f"{spread([one['final_top1_flip_tta'] for one in found])} | "
            f"{statistics.mean(one['final_train_loss'] for one in found):.3f} | {device(found[0])} | "
            f"{statistics.median(seconds):.3g} s |"
        )
    return "\n".join(lines) + "\n"


def device(found: Record) -> str:
    """Say what a run computed on."""
    return f"{found['cpu_threads']} CPU cores" if found["device"] == "CPU" else str(found["device"])


def spread(shares: list[float]) -> str:
    """Write mean and sample standard deviation in percent; one value alone has none."""
    mean = f"{100 * statistics.mean(shares):.2f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.2f} %" if len(shares) > 1 else f"{mean} %"


def draw_curves(path: Path) -> None:
    """Draw test accuracy over epochs for every run, and beside it the losses of the longest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
    accuracy, loss = figure.subplots(1, 2)
    for recipe, seeds in SEEDS.items():
        for seed in seeds:
            records = evaluations(recipe, seed)
            epochs, top1 = [r["epoch"] for r in records], [100 * r["val/top1"] for r in records]
            label = f"{recipe}.yaml" if seed == seeds[0] else None
            accuracy.plot(epochs, top1, ".-", color=COLOURS[recipe], linewidth=1, label=label)
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)", title="Test accuracy, one line a run")
    records = evaluations("reference", 0)
    epochs = [r["epoch"] for r in records]
    loss.plot(
        epochs, [r["train/epoch_loss"] for r in records], ".-", color="#1f5fa8", label="training (smoothed labels)"
    )
    loss.plot(epochs, [r["val/loss"] for r in records], ".-", color="#d1495b", label="test (labels as they are)")
    loss.set(xlabel="epoch", ylabel="loss (nats)", title="Loss of reference.yaml")
    for axes in (accuracy, loss):
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
