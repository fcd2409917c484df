"""Train what docs/results.md quotes, and write docs/results from what the runs recorded.

    python benchmarks/recipes.py --data.dataset path/to/cifar10
    python benchmarks/recipes.py --ablations --data.dataset path/to/cifar10
    python benchmarks/recipes.py --candidates --data.dataset path/to/cifar10
    python benchmarks/recipes.py --photographs --data.dataset path/to/photographs
    python benchmarks/recipes.py --gpu --candidates FILE --photos FOLDER --data.dataset path/to/cifar10

Finished runs are not run again, and one that was stopped goes on. The first trains the recipes on their seeds, and
writes each run's summary.json, the table recipes.md, curves.png, and the kernels of the longest recipe: about 17
hours on two cores with AMX; the reference with AdamW takes a minute on an H200. The second changes one thing at a
time, on 5,000 training images that a fixed hash holds out, and writes ablations.md: two runs beside each other, on a
core each, of 10,000 images of 96 pixels thirty times, as often as the reference sees its 50,000 of 224. About two
hours on two cores. The third and the fourth compare what may become the next recipe on three seeds, again on held-out
images, one run after another, and write candidates.md, photographs.md and conv1_scales.png from the runs that are done.
`--gpu` (`gpu_runs.sh`) takes runs that only a GPU makes cheap, on three seeds: candidates, each a line of options in
FILE added to the reference's, on held-out images at full size; then reference, quick, lecture and long on the test
images, and photos where a folder is named. It keeps each summary.json in docs/results/gpu. Not measured: no GPU was at
hand.
"""

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import measuring
from measuring import Row

RUNS, RESULTS = measuring.ROOT / "runs", measuring.ROOT / "docs" / "results"
ADAMW = "--optim.name adamw --model.conv1-init-scale 1"
SEEDS = dict.fromkeys(("lecture", "quick_Adam", "quick", "reference_AdamW", "reference"), (0, 1, 2))
"""By recipe; with an optimizer behind its name, the recipe as it was in version 0.1."""
OLDER = {"quick_Adam": "--optim.name adam", "reference_AdamW": ADAMW}
COLOURS = dict(zip(SEEDS, ("#9aa7b5", "#8ab6e8", "#1f5fa8", "#eba0a8", "#d1495b"), strict=True))
PICTURES = ("conv1_before", "conv1_now", "conv1_diff")
MUON = "--optim.name muon --optim.muon-layers convolutions"
CHOSEN = f"{MUON} --model.conv1-init-scale 0.1"
BASE = (
    "--epochs 30 --data.image-size 96 --data.limit 10000 --data.val-fraction 0.1 --data.batch-size 256 "
    "--data.cutout 0.25 --model.init torch --model.dropout 0.5 --optim.name adamw --optim.lr 5e-4 "
    "--optim.schedule cosine --optim.label-smoothing 0.1 --model.conv1-init-scale 1 "
    "--optim.weight-decay 2.5"  # over 1,170 steps what 0.5 is over 5,850
)
KEEP_LITTLE = "--log.trackers --checkpoint.every-epochs 1000"
CHANGES = (
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
REFERENCE = f"{BASE} --model.dropout 0.25"  # with which the reference is ahead of the ablations' first row
SCALES = ("", *(f"--model.conv1-init-scale {scale}" for scale in ("0.3", "0.1", "0.03")))
CANDIDATES = {
    "candidates": (
        REFERENCE,
        (
            *SCALES,
            "--model.dropout 0.1",
            MUON,
            CHOSEN,
            f"{CHOSEN} --model.dropout 0.5",
            f"{CHOSEN} --model.dropout 0",
            f"{CHOSEN} --data.batch-size 128 --optim.weight-decay 1.25",
            f"{CHOSEN} --optim.beta2 0.95",
            f"{CHOSEN} --optim.ema 0.99",
            f"{CHOSEN} --data.resized-crop 0.6",
        ),
    ),
    "photographs": (
        f"--config recipes/photos.yaml --epochs 6 --data.val-fraction 0.1 {ADAMW}",
        (*SCALES, CHOSEN),
    ),
}
"""By the name of its table: flags of the first row, and what each row changes."""
DRAWN = {"candidates": "CIFAR-10", "photographs": "Caltech-101"}
CANDIDATE_SEEDS = (0, 1, 2)
SIGNAL = "kernels/conv1_signal"
RESUMABLE = "--log.trackers --checkpoint.every-epochs 5 --checkpoint.keep 1"

GPU_CANDIDATES = (
    "--model.dropout 0.5",
    "--optim.muon-layers hidden",
    "--optim.lr 1e-3",
    "--model.conv1-init-scale 1",
    "--model.dropout 0.1",
    "--optim.ema 0.999",
)
"""Changes of the reference that are tried at full size on held-out images, on three seeds."""


def train_on_gpu(more: list[str], *, candidates: list[str], photos: str | None) -> None:
    """Run what is missing of the runs for a GPU, keep each summary as it ends, and write gpu.md."""
    jobs = [("reference", f"--data.val-fraction 0.1 {line}") for line in ["", *GPU_CANDIDATES, *candidates]]
    on_test = ["reference", "quick", "lecture", "long", *(["photos"] if photos else [])]
    jobs += [(recipe, "") for recipe in on_test]
    for recipe, change in jobs:
        data = ["--data.dataset", photos] if recipe == "photos" and photos else []
        for seed in (0, 1, 2):
            where = gpu_folder(recipe, change, seed)
            flags = ["--config", str(measuring.ROOT / "recipes" / f"{recipe}.yaml"), "--seed", str(seed)]
            flags += ["--log.trackers", "--checkpoint.every-steps", "500", *change.split()]
            measuring.train_unless_done(where, *flags, *more, *data)
            measuring.keep_summary(where, RESULTS / "gpu" / f"{where.name}.json")
        (RESULTS / "gpu" / "gpu.md").write_text(gpu_table(jobs), encoding="utf-8")


def gpu_folder(recipe: str, change: str, seed: int) -> Path:
    """Return the folder of a run for a GPU."""
    words = "".join(c if c.isalnum() or c == "." else "_" for c in change.replace("--", "")).strip("_")
    return RUNS / "gpu" / "_".join(filter(None, (recipe, words, str(seed))))


def gpu_table(jobs: list[tuple[str, str]]) -> str:
    """Return in Markdown what is there of the runs for a GPU."""
    rows = []
    for recipe, change in jobs:
        found = [measuring.read_summary(gpu_folder(recipe, change, seed)) for seed in (0, 1, 2)]
        if ended := [one for one in found if one.get("status") == "finished"]:
            top1 = spread([one["final_top1"] for one in ended])
            on, seconds = ended[0]["evaluated_on"], statistics.median(one["wall_seconds"] for one in ended)
            rows.append((f"`{recipe}.yaml` {change}", len(ended), on, top1, device(ended[0]), f"{seconds:.0f} s"))
    return measuring.table(["run", "seeds", "images", "top-1", "on", "median time"], rows)


def train_recipes(more: list[str]) -> None:
    """Run the recipes that are missing and write up all."""
    for recipe, seeds in SEEDS.items():
        for seed in seeds:
            run(recipe, seed, more=more)
            measuring.keep_summary(folder(recipe, seed), RESULTS / f"{recipe}_{seed}.json")
    (RESULTS / "recipes.md").write_text(table(), encoding="utf-8")
    draw_curves(RESULTS / "curves.png")
    for name in PICTURES:
        shutil.copy(folder("reference", 0) / "figures" / f"{name}.png", RESULTS / f"{name}.png")


def folder(recipe: str, seed: int) -> Path:
    """Return a run's folder."""
    return RUNS / "recipes" / f"{recipe}_{seed}"


def run(recipe: str, seed: int, *, more: list[str]) -> None:
    """Train a recipe on a seed, unless that is done; one that was stopped goes on."""
    config = str(measuring.ROOT / "recipes" / f"{recipe.partition('_')[0]}.yaml")
    flags = f"{OLDER.get(recipe, '')} --seed {seed} --log.trackers --checkpoint.every-steps 100".split()
    measuring.train_unless_done(folder(recipe, seed), "--config", config, *flags, *more)


def evaluations(recipe: str, seed: int) -> list[Row]:
    """Return the lines of a run's metrics.jsonl that hold an evaluation."""
    return measuring.read_records(folder(recipe, seed), having="val/top1")


def finished(seeds: Iterable[int], folder_of: Callable[[int], Path]) -> list[int]:
    """Return the seeds whose runs are finished."""
    return [seed for seed in seeds if measuring.read_summary(folder_of(seed)).get("status") == "finished"]


def label(recipe: str) -> str:
    """Return the name of a row."""
    name, _, optimizer = recipe.partition("_")
    return f"`{name}.yaml` with {optimizer}" if optimizer else f"`{name}.yaml`"


def table() -> str:
    """Return the accuracies of what is done in Markdown: mean and standard deviation; seconds of the first seed."""
    rows = []
    for recipe, seeds in ((name, finished(SEEDS[name], partial(folder, name))) for name in SEEDS):
        if not seeds:
            continue
        found = [measuring.read_summary(folder(recipe, seed)) for seed in seeds]
        top1, top1_flip_tta = (spread([one[key] for one in found]) for key in ("final_top1", "final_top1_flip_tta"))
        loss = statistics.mean(one["final_train_loss"] for one in found)
        seconds = statistics.median(record["perf/epoch_seconds"] for record in evaluations(recipe, seeds[0]))
        what = (label(recipe), found[0]["epochs"], ", ".join(map(str, seeds)))
        rows.append((*what, f"**{top1}**", top1_flip_tta, f"{loss:.3f}", device(found[0]), f"{seconds:.3g} s"))
    heads = ["recipe", "epochs", "seeds", "test top-1", "flip TTA", "training loss", "on"]
    return measuring.table([*heads, "one epoch, median"], rows)


def device(found: Row) -> str:
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
            named = label(recipe).replace("`", "") if seed == seeds[0] else None
            accuracy.plot(epochs, top1, ".-", color=COLOURS[recipe], linewidth=1, label=named)
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


# ---- ablations ------------------------------------------------------------------------------------------------------


def train_ablations(more: list[str]) -> None:
    """Run the changes that are missing and write up all."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:2]:
        cores.put(core)
    with ThreadPoolExecutor(cores.qsize()) as pool:
        list(pool.map(lambda change: run_change(change, cores=cores, more=more), CHANGES))
    for change in CHANGES:
        where = change_folder(change)
        measuring.keep_summary(where, RESULTS / "ablations" / f"{where.name}.json")
    (RESULTS / "ablations.md").write_text(change_table(), encoding="utf-8")


def change_folder(change: str) -> Path:
    """Return a row's run folder."""
    return RUNS / "ablations" / row_name(change)


def row_name(change: str) -> str:
    """Return a change as a file's name."""
    return "".join(c if c.isalnum() or c == "." else "_" for c in change.replace("--", "")) or "base"


def run_change(change: str, *, cores: SimpleQueue[int], more: list[str]) -> None:
    """Train a row on a core of its own, unless that is done; one that was stopped goes on."""
    core = cores.get()
    try:
        flags = f"{BASE} {change} {KEEP_LITTLE}".split()
        measuring.train_unless_done(change_folder(change), *flags, *more, core=core)
    finally:
        cores.put(core)


def change_table() -> str:
    """Return the command and the rows in Markdown, each compared with the first."""
    rows, base = [], measuring.read_summary(change_folder(CHANGES[0]))["final_top1"]
    for change in CHANGES:
        top1 = measuring.read_summary(change_folder(change))["final_top1"]
        last = measuring.read_records(change_folder(change), having="val/top1")[-1]
        figures = (f"{top1:.2%}", f"{100 * (top1 - base):+.2f}", f"{last['train/epoch_loss']:.3f}")
        rows.append((f"`{change}`" if change else "none", *figures, f"{last['val/loss']:.3f}"))
    heads = ["change", "top-1", "against the first row", "training loss", "loss"]
    return f"`python train.py {BASE} {KEEP_LITTLE}`, and\n\n{measuring.table(heads, rows)}"


# ---- candidates -----------------------------------------------------------------------------------------------------


def train_candidates(name: str, more: list[str]) -> None:
    """Run a table's candidates that are missing, all on the first seed, then on the next, and write up each."""
    for seed in CANDIDATE_SEEDS:
        for change in CANDIDATES[name][1]:
            train_candidate(name, change, seed, more=more)
            write_candidates(name)


def candidate_folder(name: str, change: str, seed: int) -> Path:
    """Return the run folder of a candidate on a seed."""
    return RUNS / name / f"{row_name(change)}_{seed}"


def train_candidate(name: str, change: str, seed: int, *, more: list[str]) -> None:
    """Train a candidate on a seed, unless that is done; one that was stopped goes on. Its checkpoints do not stay."""
    where = candidate_folder(name, change, seed)
    flags = f"{CANDIDATES[name][0]} {change} {RESUMABLE} --seed {seed}".split()
    measuring.train_unless_done(where, *flags, *more)
    shutil.rmtree(where / "checkpoints", ignore_errors=True)
    measuring.keep_summary(where, RESULTS / name / f"{where.name}.json")


def write_candidates(name: str) -> None:
    """Write a table of the runs that are done, and the picture of conv1 at each size of its draw."""
    (RESULTS / f"{name}.md").write_text(candidate_table(name), encoding="utf-8")
    draw_scales(RESULTS / "conv1_scales.png")


def finished_seeds(name: str, change: str) -> list[int]:
    """Return the seeds on which a candidate is done."""
    return finished(CANDIDATE_SEEDS, partial(candidate_folder, name, change))


def candidate_table(name: str) -> str:
    """Return the command and the rows in Markdown, each compared with the first row on the seeds that both have."""
    base, changes = CANDIDATES[name]
    rows = []
    for change in changes:
        if not (seeds := finished_seeds(name, change)):
            continue
        last = [candidate_records(name, change, seed)[-1] for seed in seeds]
        both = [seed for seed in seeds if seed in finished_seeds(name, "")]
        gains = [
            candidate_records(name, change, seed)[-1]["val/top1"] - candidate_records(name, "", seed)[-1]["val/top1"]
            for seed in both
        ]
        means = (statistics.mean(r[key] for r in last) for key in ("train/epoch_loss", "val/loss", SIGNAL))
        top1, gain = spread([r["val/top1"] for r in last]), f"{100 * statistics.mean(gains):+.2f}" if gains else ""
        figures = (top1, gain, *(f"{mean:.3f}" for mean in means))
        rows.append((f"`{change}`" if change else "none", ", ".join(map(str, seeds)), *figures))
    heads = ["change", "seeds", "top-1", "against the first row", "training loss", "loss", "conv1 signal"]
    return f"`python train.py {base} {RESUMABLE} --seed SEED`, and\n\n{measuring.table(heads, rows)}"


def candidate_records(name: str, change: str, seed: int) -> list[Row]:
    """Return the evaluations of a candidate on a seed."""
    return measuring.read_records(candidate_folder(name, change, seed), having="val/top1")


def draw_scales(path: Path) -> None:
    """Draw conv1_now at each size of its draw, as the runs of the first seed have drawn it, a row for each table."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure = Figure(figsize=(4 * len(SCALES), 4.4 * len(CANDIDATES)), layout="constrained", dpi=100)
    for axes, (name, change) in zip(
        figure.subplots(len(CANDIDATES), len(SCALES)).flat,
        ((name, change) for name in CANDIDATES for change in SCALES),
        strict=True,
    ):
        axes.set_axis_off()
        if finished_seeds(name, change)[:1] == [0]:
            last = candidate_records(name, change, 0)[-1]
            axes.imshow(imread(candidate_folder(name, change, 0) / "figures" / "conv1_now.png"))
            axes.set_title(
                f"{DRAWN[name]}, initial weights x {change.split()[-1] if change else 1}\n"
                f"top-1 {last['val/top1']:.2%}, signal {last[SIGNAL]:.2f}"
            )
    figure.savefig(path)


def main() -> None:
    """Run what is missing and write what docs/results.md shows."""
    more = sys.argv[1:]
    RESULTS.mkdir(parents=True, exist_ok=True)
    if "--gpu" in more:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--gpu", action="store_true", help="the runs that only a GPU makes cheap")
        parser.add_argument("--candidates", type=Path, help="file with a line of options for each candidate")
        parser.add_argument("--photos", help="folder of photographs for photos.yaml")
        own, more = parser.parse_known_args(more)
        lines = own.candidates.read_text(encoding="utf-8").splitlines() if own.candidates else []
        train_on_gpu(more, candidates=[line.strip() for line in lines if line.strip()], photos=own.photos)
    elif "--ablations" in more:
        train_ablations([word for word in more if word != "--ablations"])
    elif asked := [name for name in CANDIDATES if f"--{name}" in more]:
        train_candidates(asked[0], [word for word in more if word != f"--{asked[0]}"])
    else:
        train_recipes(more)


if __name__ == "__main__":
    main()
