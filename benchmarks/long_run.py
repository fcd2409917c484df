"""What many epochs leave behind: their records and pictures, fed to the run folder, W&B (offline) and the report.

    python benchmarks/long_run.py --epochs 10000

Nothing is trained: each epoch has a record of a step and one of its end, kernels that move a little at random, and an
evaluation with mistakes. Measured: time of an epoch at the start and at the end, resident memory, files and bytes, the
report's size and time, and how long a continued run takes to open its folder. Times are the processor's, of all threads
of this process, so that what else the machine does does not count. Writes long_run.*.
"""

import json
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measuring
import numpy as np
import psutil
import torch
from measuring import Row
from torch import nn

from alexnet_dist.commands import results
from alexnet_dist.config import Config, LogConfig, WandbConfig
from alexnet_dist.data import image_data
from alexnet_dist.report import page
from alexnet_dist.tracking import RunLogger
from alexnet_dist.training import Evaluation, Plan, Progress
from alexnet_dist.training.metrics import Answer, Mistake
from alexnet_dist.visualization import kernel_images

NAMES = tuple("0123456789")
NUM_IMAGES = 64
STEP_KEYS = ("train/loss", "train/lr", "train/grad_norm", "optim/weight_norm", "perf/images_per_second", "perf/step_ms")
STEP_KEYS += ("perf/step_ms_p50", "perf/step_ms_p95", "perf/data_wait_pct", "perf/mfu", "perf/memory_gib")
SIZED = ("figures", "wandb", "metrics.jsonl")
WINDOW = 20  # epochs that are timed at the start of the run, behind it, and at its end


class Kernels(nn.Module):
    """conv1 and conv2 under AlexNet's names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 64, 11), nn.Identity(), nn.Identity(), nn.Conv2d(64, 192, 5))

    @torch.no_grad()
    def move(self) -> None:
        """Take a step at random."""
        for parameter in self.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)


def make_run(folder: Path, epochs: int, network: nn.Module) -> Any:  # noqa: ANN401 - what results.report_epoch reads
    """Return a run of one step an epoch on a few images, W&B offline, its log not opened."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 3, 8, 8), dtype=np.uint8)
    split = image_data.Split(images, np.arange(NUM_IMAGES) % len(NAMES))
    config = Config(epochs=epochs, out_dir=folder, log=LogConfig(), wandb=WandbConfig(mode="offline"))
    return SimpleNamespace(
        config=config,
        dataset=image_data.assemble("noise", split, split, NAMES),
        kernels_before=kernel_images.snapshot(network),
        context=SimpleNamespace(
            network=network, inputs=SimpleNamespace(spec=SimpleNamespace(image_size=63, loaded_size=8))
        ),
        plan=Plan(steps_per_epoch=1, last_step=epochs, record_every=20, save_every=None),
        log=RunLogger(config, {"num_classes": len(NAMES)}, enabled=True),
        console=SimpleNamespace(print=lambda _: None, warn=lambda _: None),
    )


def evaluation(epoch: int, epochs: int) -> Evaluation:
    """Return an evaluation that gets better, with ups and downs."""
    rng = np.random.default_rng(epoch)
    right = round(NUM_IMAGES * (0.2 + 0.6 * epoch / epochs + 0.1 * rng.random()))
    confusion = np.zeros((len(NAMES), len(NAMES)), np.int64)
    np.add.at(confusion, (np.arange(right) % 10, np.arange(right) % 10), 1)
    np.add.at(confusion, (np.arange(right, NUM_IMAGES) % 10, np.arange(right + 1, NUM_IMAGES + 1) % 10), 1)
    worst = tuple(Mistake(i, i % 10, (i + 1) % 10, 0.9, 3.0) for i in range(right, NUM_IMAGES))
    best = tuple(Answer(i, i % 10, i % 10, 0.9, 0.1) for i in range(min(30, right)))
    return Evaluation(float(NUM_IMAGES - right), confusion, num_top5=right, worst=worst, best=best)


def step_record(epoch: int) -> Row:
    """Return a step's record with the keys that training gives it."""
    numbers = dict(zip(STEP_KEYS, np.random.default_rng(epoch).random(len(STEP_KEYS)).tolist(), strict=True))
    return {"global_step": epoch, "epoch": epoch, "samples_seen": NUM_IMAGES * epoch, **numbers}


def drain(log: RunLogger) -> None:
    """Wait until all pictures are drawn and all calls of the trackers done."""
    for worker in (log._drawing, log._sending):  # noqa: SLF001
        assert worker is not None
        done = threading.Event()
        worker.do(done.set, wait=True)
        done.wait()


def feed(folder: Path, epochs: int) -> Row:
    """Feed the epochs, end the run, write its report, open it again, and return what was measured."""
    torch.set_num_threads(1)
    network, process, times, memory = Kernels(), psutil.Process(), [], []
    run, progress = make_run(folder, epochs, network), Progress()
    run.log.open(step=0)
    for epoch in range(1, epochs + 1):
        began = time.process_time()
        network.move()
        run.log.log(step_record(epoch))
        progress.step, progress.batch, progress.loss_sum = epoch, 1, 1.0
        found = evaluation(epoch, epochs)
        record = progress.end_epoch(found, run.plan, seconds=0.1, batch_size=NUM_IMAGES)
        results.report_epoch(run, progress, record, found)
        drain(run.log)
        times.append(time.process_time() - began)
        memory.append(process.memory_info().rss / 1e6)
    results.draw(run, found)
    run.log.write_summary({"status": "finished", "global_step": epochs, "steps_per_epoch": 1})
    run.log.close()

    # ---- what is there, and how long it takes to read
    began, resident = time.process_time(), process.memory_info().rss
    report = page.write(folder)
    report_seconds, report_memory = time.process_time() - began, process.memory_info().rss - resident
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {name: sum(p.stat().st_size for p in files if p.is_relative_to(folder / name)) / 1e6 for name in SIZED}
    again = make_run(folder, epochs + 1, network)
    began = time.process_time()
    again.log.open(step=epochs)
    open_seconds = time.process_time() - began
    again.log.close()
    middle = slice(min(200, epochs // 2), None)
    return {
        "epochs": epochs,
        "picture_sets": len(list((folder / "figures").glob("epoch_*/conv1_now.png"))),
        "files": len(files),
        "megabytes": sizes,
        "seconds_first": float(np.median(times[:WINDOW])),
        "seconds_after": float(np.median(times[middle][:WINDOW])),
        "seconds_last": float(np.median(times[-WINDOW:])),
        "memory_first": memory[min(200, epochs // 2)],
        "memory_last": memory[-1],
        "report_megabytes": report.stat().st_size / 1e6,
        "report_seconds": report_seconds,
        "report_memory": report_memory / 1e6,
        "open_seconds": open_seconds,
    }


def table(found: Row) -> str:
    """Return what was measured as a table."""
    sizes = found["megabytes"]
    rows = [
        ("sets of pictures", found["picture_sets"]),
        ("files", f"{found['files']:,}"),
        ("MB of figures, of W&B, of metrics.jsonl", ", ".join(f"{sizes[name]:.0f}" for name in SIZED)),
        (
            "processor's ms an epoch: with pictures, without, without at the end",
            ", ".join(f"{1000 * found[f'seconds_{when}']:.0f}" for when in ("first", "after", "last")),
        ),
        ("MB resident after 200 epochs, at the end", f"{found['memory_first']:.0f}, {found['memory_last']:.0f}"),
        ("report: MB, processor's seconds", f"{found['report_megabytes']:.1f}, {found['report_seconds']:.0f}"),
        ("processor's seconds to open it again", f"{found['open_seconds']:.2f}"),
    ]
    return measuring.table([f"{found['epochs']:,} epochs", ""], rows)


def main() -> None:
    """Measure, write and print."""
    parser = measuring.parser(__doc__, epochs=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = feed(Path(scratch) / "run", options.epochs)
    print(json.dumps(found))
    measuring.save("long_run", found, table(found), folder=options.out)


if __name__ == "__main__":
    main()
