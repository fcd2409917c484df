"""Whole commands on photographs, next to the scripts of timm and torchvision: training, evaluation, prediction.

.venv/bin/python benchmarks/photographs.py PHOTOS RUN --timm FOLDER --torchvision FOLDER

PHOTOS is a folder of class folders of JPEGs (or of train/CLASS), RUN a network of this package with the same classes.
FOLDER is a checkout of huggingface/pytorch-image-models, whose train.py, validate.py and inference.py are run, and of
pytorch/vision, whose references/classification/train.py is; pip installs neither. timm knows no AlexNet: torchvision's
is registered there. Needs `pip install '.[pipeline]'`.

Each command runs in a process of its own, on `--few` photographs and on `--images`; images/s are the difference of the
images over that of the seconds, so that starting is left out. Commands follow each other in rounds, in an order that
moves on by one, after a first round that does not count; ratios are taken within a round. Writes photographs.json, .md.
"""

import argparse
import contextlib
import io
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import measuring
import pipeline
from measuring import Row

OURS = "alexnet_dist"
BATCH = 64
PEERS = {"train": ("timm", "torchvision"), "evaluate": ("timm",), "predict": ("timm",)}


def stage(folder: Path, scratch: Path, counts: Sequence[int]) -> None:
    """Make train-N, with N photographs to train on, and use-N, with N to evaluate, as links.

    Classes take turns, so that all of them are in each; the other split of each folder has a photograph a class.
    """
    classes = [sorted(place.iterdir()) for place in sorted(pipeline.stage(folder, scratch).iterdir())]
    photographs = [path for path in chain.from_iterable(zip_longest(*classes)) if path is not None]
    for count in counts:
        for kind, numbers in (("train", (count, len(classes))), ("use", (len(classes), count))):
            for split, number in zip(("train", "val"), numbers, strict=True):
                for path in photographs[:number]:
                    place = scratch / f"{kind}-{count}" / split / path.parent.name / path.name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.symlink_to(path.resolve())


def commands(options: argparse.Namespace, scratch: Path, images: int) -> dict[str, list[str]]:
    """Return each command on so many photographs: a script or this package, and the arguments."""
    train, use, out = scratch / f"train-{images}", scratch / f"use-{images}", scratch / "out"
    reference = options.torchvision / "references" / "classification" / "train.py"
    network = ["--model", "alexnet", "--device", "cpu", "--workers", str(options.workers), "--batch-size", str(BATCH)]
    timm = [*network, "--amp", "--amp-dtype", "bfloat16", "--num-classes", str(len(list((use / "val").iterdir())))]
    adamw, store = ["--opt", "adamw", "--lr", "3e-4", "--epochs", "1"], ["--data.cache-dir", str(scratch / "cache")]
    ours = [OURS, "train", "--config", "photos", "--data.dataset", str(train), *store, "--epochs", "1"]
    ours += ["--optim.name", "adamw", "--wandb.mode", "disabled", "--out-dir", str(out / f"run-{time.time_ns()}")]
    evaluate = [OURS, "evaluate", str(options.run), "--data.dataset", str(use), *store]
    return {
        f"train: {OURS}, pixels": [*ours, "--data.store", "pixels"],
        f"train: {OURS}, encoded": [*ours, "--data.store", "encoded"],
        "train: timm": [
            str(options.timm / "train.py"), *timm, *adamw, "--data-dir", str(train), "--output", str(out),
            "--warmup-epochs", "0",
        ],
        "train: torchvision": [
            str(reference), *network, *adamw, "--data-path", str(train), "--output-dir", str(out),
        ],
        f"evaluate: {OURS}": [*evaluate, "--data.store", "encoded", "--data.batch-size", str(BATCH)],
        "evaluate: timm": [str(options.timm / "validate.py"), *timm, "--data-dir", str(use), "--split", "val"],
        f"predict: {OURS}": [OURS, "predict", str(options.run), str(use / "val"), "--format", "csv"],
        "predict: timm": [
            str(options.timm / "inference.py"), *timm, "--data-dir", str(use / "val"), "--topk", "5",
            "--results-dir", str(out),
            "--label-type", "none", "--fullname", "--no-console-results",
        ],
    }  # fmt: skip


def timed(script: str, *arguments: str) -> float:
    """Run a command within this process and return its seconds, from its first import to its end."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        if script == OURS:
            from alexnet_dist.commands import main

            try:
                main.main(list(arguments), prog=OURS)
            except SystemExit as end:
                if end.code:
                    raise
        else:
            _register_alexnet()
            sys.argv = [script, *arguments]
            sys.path.insert(0, str(Path(script).parent))
            runpy.run_path(script, run_name="__main__")
    return time.perf_counter() - started


def _register_alexnet() -> None:
    """Let timm make torchvision's AlexNet."""
    import timm.models
    from torchvision.models import AlexNet

    def alexnet(*, num_classes: int = 1000, **_: Any) -> AlexNet:  # noqa: ANN401
        network = AlexNet(num_classes=num_classes)
        network.num_classes = num_classes
        network.pretrained_cfg = {"input_size": (3, 224, 224), "crop_pct": 0.875}
        return network

    alexnet.__module__ = "timm.models.alexnet"
    sys.modules["timm.models.alexnet"] = sys.modules[__name__]
    timm.models.register_model(alexnet)


def measure(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Run all rounds and return a row for each command and round."""
    counts = (options.few, options.images)
    stage(options.photos, scratch, counts)
    names = list(commands(options, scratch, options.few))
    rows: list[Row] = []
    for number, name in measuring.in_turn(names, options.rounds + 1):
        seconds = []
        for count in counts:
            words = commands(options, scratch, count)[name]
            seconds.append(float(measuring.call("photographs", "timed", *words).found))
        rate = (counts[1] - counts[0]) / (seconds[1] - seconds[0])
        print(f"  {name}: {rate:.1f} images/s", flush=True)
        if number:
            rows.append({"round": number, "name": name, "images_per_second": rate, "seconds": seconds})
    return rows


def markdown(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Return the table: images per second, and how many times as fast this package's commands were."""

    def rates(name: str) -> list[float]:
        return [row["images_per_second"] for row in rows if row["name"] == name]

    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        task, _, who = name.partition(": ")
        others = PEERS[task] if who.startswith(OURS) else ()
        quotients = {
            peer: [a / b for a, b in zip(rates(name), rates(f"{task}: {peer}"), strict=True)] for peer in others
        }
        faster = ", ".join(
            f"{peer} {measuring.ranged(measuring.spread(found), '{:.2f}')}" for peer, found in quotients.items()
        )
        lines.append((task, who, measuring.ranged(measuring.spread(rates(name)), "{:.1f}"), faster))
    found = measuring.machine()
    head = (
        f"{options.images:,} photographs less {options.few}, batches of {BATCH}, {options.workers} workers of peers; "
        f"{found['cores']} cores of {found['cpu']}, torch {found['torch']}. "
        f"Medians (and ranges) of {options.rounds} rounds.\n\n"
    )
    return head + measuring.table(("task", "command", "images/s", "times as fast as"), lines)


def main() -> None:
    """Measure and save."""
    parser = measuring.parser(
        __doc__, images=2000, few=200, rounds=3, workers=os.cpu_count(), timm=Path(), torchvision=Path()
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    for name in ("photos", "run", "timm", "torchvision"):  # children run elsewhere
        setattr(options, name, getattr(options, name).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(options, Path(scratch))
    results = {"images": options.images, "few": options.few, "rounds": options.rounds, "rows": rows}
    measuring.save("photographs", results, markdown(rows, options), folder=options.out)


if __name__ == "__main__":
    main()
