"""Kill runs in the middle of an epoch and in the middle of a save, resume them, and compare with uninterrupted ones.

    python benchmarks/killed.py                         # train.py, Accelerate twice, Lightning; some ten minutes
    python benchmarks/killed.py --systems alexnet_dist

Each system trains the same small job, written as each framework documents resumable training: twice uninterrupted,
and these two must agree to the bit, or the rest proves nothing; once killed by SIGKILL two steps after a checkpoint in
the middle of the second epoch; and once killed while a checkpoint is being written. Then the same command again. A run
appends a line per step to ledger.jsonl before it takes the step, saves every few steps below `saved`, resumes from
there when it finds something, and leaves its weights in final.safetensors. Writes killed.json and killed.md.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
import torchvision
from measuring import Row

IMAGES, BATCH, EPOCHS, EVERY, SIZE = 200, 20, 3, 4, 64  # a checkpoint every 4 steps
LEARNING_RATE = 1e-4
STEPS_OF_EPOCH, SAVED_AT, KILLED_AT = IMAGES // BATCH, 16, 18
MID_SAVE_BYTES = 50_000_000  # of 685 MB
DEADLINE = 600  # seconds
TITLES = {
    "accelerate": "Accelerate: save_state, skip_first_batches",
    "accelerate-seedable": "the same, use_seedable_sampler=True",
    "lightning": 'Lightning: fit(ckpt_path="last")',
    "alexnet_dist": "alexnet_dist: train.py",
}


# ---- a run, in a process of its own ---------------------------------------------------------------------------------


class Images(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random images with their ids."""

    def __init__(self) -> None:
        self.images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": self.images[index], "labels": torch.tensor(index % 10), "ids": torch.tensor(index)}


def note(folder: Path, step: int, batch: dict[str, torch.Tensor]) -> None:
    """Append a step, counted from 1, to the ledger."""
    with (folder / "ledger.jsonl").open("a", encoding="utf-8") as file:
        line = {"attempt": os.environ["ATTEMPT"], "step": step, "ids": batch["ids"].tolist()}
        file.write(json.dumps(line) + "\n")


def loss_of(model: Callable[..., torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss."""
    return F.cross_entropy(model(batch["images"]), batch["labels"])


def accelerate_run(folder: Path, *, seedable: bool) -> None:
    """Train as Accelerate's example on checkpointing does: save_state, load_state, skip_first_batches."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed

    set_seed(0)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
    network = torchvision.models.alexnet(num_classes=10)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    images = torch.utils.data.DataLoader(Images(), batch_size=BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(network, optimizer, images)
    step = max((int(path.name[5:]) for path in (folder / "saved").glob("step_*")), default=0)
    if step:
        accelerator.load_state(str(folder / "saved" / f"step_{step}"))
    first_epoch, skipped = divmod(step, len(loader))
    for epoch in range(first_epoch, EPOCHS):
        model.train()
        loader.set_epoch(epoch)
        rest = accelerator.skip_first_batches(loader, skipped) if epoch == first_epoch and skipped else loader
        for batch in rest:
            step += 1
            note(folder, step, batch)
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
            if step % EVERY == 0:
                accelerator.save_state(str(folder / "saved" / f"step_{step}"))
    safetensors.torch.save_file(accelerator.unwrap_model(model).state_dict(), folder / "final.safetensors")


def lightning_run(folder: Path) -> None:
    """Train as Lightning documents it: seed_everything, ModelCheckpoint(save_last=True), fit(ckpt_path="last")."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = torchvision.models.alexnet(num_classes=10)

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            note(folder, self.global_step + 1, batch)
            return loss_of(self.network, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)

    lightning.seed_everything(0, workers=True)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder / "saved", every_n_train_steps=EVERY, save_last=True)],
    )
    loader = torch.utils.data.DataLoader(Images(), batch_size=BATCH, shuffle=True)
    trainer.fit(module, loader, ckpt_path="last")
    safetensors.torch.save_file(module.network.state_dict(), folder / "final.safetensors")


def own_run(folder: Path) -> None:
    """Train with this package's train command: the same command each time."""
    from alexnet_dist.commands.train import train
    from alexnet_dist.config import parse
    from alexnet_dist.training import checkpoint, train_loop

    flags = f"""--data.dataset synthetic --data.limit {IMAGES} --data.batch-size {BATCH} --data.image-size {SIZE}
        --epochs {EPOCHS} --checkpoint.every-steps {EVERY} --runtime.precision fp32 --runtime.cpu --log.trackers
        --model.dropout 0.5 --data.cutout 0 --optim.name adam --optim.weight-decay 0 --optim.label-smoothing 0
        --optim.lr {LEARNING_RATE} --optim.schedule constant --out-dir {folder / "saved"}""".split()
    take = train_loop.train_step

    def noted(context: Any, batch: Any, draws: Any, *, step: int, lr: float) -> Any:  # noqa: ANN401
        note(folder, step + 1, batch)
        return take(context, batch, draws, step=step, lr=lr)

    train_loop.train_step = noted
    train(parse(flags))
    newest = checkpoint.checkpoints(folder / "saved" / "checkpoints")[-1]
    shutil.copyfile(newest / "model.safetensors", folder / "final.safetensors")


def run(system: str, folder: Path) -> None:
    """Train, or go on, in this process."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    if system.startswith("accelerate"):
        accelerate_run(folder, seedable=system == "accelerate-seedable")
    else:
        {"lightning": lightning_run, "alexnet_dist": own_run}[system](folder)


# ---- in the process that kills ---------------------------------------------------------------------------------------


def start(system: str, folder: Path, attempt: int) -> subprocess.Popen[bytes]:
    """Start a run in a folder, or start it again."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "ATTEMPT": str(attempt), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--run", system, str(folder.resolve())]
    with (folder / f"log{attempt}").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=measuring.ROOT)


def ledger(folder: Path) -> list[Row]:
    """Return the steps that were begun, in their order, over all attempts."""
    path = folder / "ledger.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder, some of which may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def in_mid_epoch(folder: Path) -> Callable[[], bool]:
    """Tell when a step begins that is the second after a checkpoint."""
    return lambda: any(line["step"] >= KILLED_AT for line in ledger(folder))


def in_mid_save(folder: Path) -> Callable[[], bool]:
    """Tell when a checkpoint after `SAVED_AT` is on its way to the disk."""
    before: list[int] = []

    def due() -> bool:
        if not any(line["step"] >= SAVED_AT for line in ledger(folder)):
            return False
        before.append(size(folder / "saved"))
        return before[-1] > before[0] + MID_SAVE_BYTES

    return due


MOMENTS = {"mid_epoch": in_mid_epoch, "mid_save": in_mid_save}


def kill_when(process: subprocess.Popen[bytes], due: Callable[[], bool]) -> None:
    """Kill a run at a moment.

    Raises:
        RuntimeError: it ended before, or the moment did not come.
    """
    end = time.monotonic() + DEADLINE
    came = False
    while not came and process.poll() is None and time.monotonic() < end:
        came = due()
        time.sleep(0.002)
    process.kill()
    process.wait()
    if not came:
        raise RuntimeError(f"the moment to kill {process.args} did not come")


def finish(process: subprocess.Popen[bytes], folder: Path) -> str | None:
    """Wait for a run's end; return the last line it printed if it failed."""
    if process.wait(DEADLINE) == 0:
        return None
    newest = max(folder.glob("log*"))
    return (newest.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]


def difference(left: Path, right: Path) -> float:
    """Return the largest difference of two runs' weights."""
    a, b = (safetensors.torch.load_file(folder / "final.safetensors") for folder in (left, right))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def count(lines: list[Row]) -> dict[str, int]:
    """Count what the second epoch saw, over the steps of two attempts whose result is in the final weights."""
    first, second = ([line for line in lines if line["attempt"] == attempt] for attempt in ("0", "1"))
    resumed_at = second[0]["step"]
    kept = [line for line in first if line["step"] < resumed_at] + second
    epoch = [line for line in kept if STEPS_OF_EPOCH < line["step"] <= 2 * STEPS_OF_EPOCH]
    seen = Counter(image for line in epoch for image in line["ids"])
    return {
        "steps_lost": first[-1]["step"] - resumed_at,
        "seen_twice": sum(times > 1 for times in seen.values()),
        "never_seen": IMAGES - len(seen),
    }


def trial(system: str, scratch: Path, moment: Callable[[Path], Callable[[], bool]]) -> Row:
    """Kill a run at a moment, start it again, and compare."""
    folder = scratch / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    kill_when(start(system, folder, 0), moment(folder))
    if error := finish(start(system, folder, 1), folder):
        return {"error": error.replace(str(folder.resolve()), "RUN")}
    return count(ledger(folder)) | {"difference": difference(folder, scratch / "whole")}


def measure(system: str) -> Row:
    """Return what one system does."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for folder in (scratch / "whole", scratch / "again"):
            if error := finish(start(system, folder, 0), folder):
                raise RuntimeError(f"{system}: {error}")
        repeats = difference(scratch / "whole", scratch / "again")
        shutil.rmtree(scratch / "again")
        return {
            "version": importlib.metadata.version(system.partition("-")[0]),
            "uninterrupted_runs_differ_by": repeats,
            **{key: trial(system, scratch, moment) for key, moment in MOMENTS.items()},
        }


def markdown(results: Row) -> str:
    """Return the table."""
    rows = []
    for system, found in results.items():
        for key in MOMENTS:
            row, killed = found[key], f"in {key.replace('_', '-')}"
            cells: tuple[object, ...] = (f"does not resume: `{row.get('error', '')[:120]}`", "", "")
            if "error" not in row:
                off = row["difference"]
                equal = "**to the bit**" if off == 0 else f"no, off by up to {off:.1e}"
                cells = (equal, f"{row['seen_twice']} / {row['never_seen']}", row["steps_lost"])
            rows.append((TITLES[system], found["version"], killed, *cells))
    heads = ["", "version", "killed", "weights equal the uninterrupted run's", "seen twice / never", "steps done again"]
    return measuring.table(heads, rows)


def main() -> None:
    """Kill all; write and print."""
    options = measuring.parser(__doc__, systems=list(TITLES)).parse_args()
    results = {}
    for system in options.systems:
        results[system] = measure(system)
        print(system, json.dumps(results[system]), flush=True)
    measuring.save("killed", {"systems": results}, markdown(results), folder=options.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
