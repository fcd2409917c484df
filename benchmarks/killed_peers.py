"""One training run of a kill test: the same small job, written as each framework documents resumable training.

    python benchmarks/killed_peers.py SYSTEM FOLDER

Called by killed.py. A run appends a line per step to FOLDER/ledger.jsonl before it takes the step, saves every few
steps below FOLDER/saved, resumes from there when it finds something, and leaves its weights in final.safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES, BATCH, EPOCHS, EVERY, SIZE = 200, 20, 3, 4, 64
LEARNING_RATE = 1e-4


class Images(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random images with their ids."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator)
        self.labels = torch.arange(IMAGES) % 10

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": self.images[index], "labels": self.labels[index], "ids": torch.tensor(index)}


def note(folder: Path, step: int, ids: list[int]) -> None:
    """Append a step, counted from 1, to the ledger."""
    with (folder / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": os.environ["ATTEMPT"], "step": step, "ids": ids}) + "\n")


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
    step = 0
    saved = sorted((folder / "saved").glob("step_*"), key=lambda path: int(path.name[5:]))
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name[5:])
    first_epoch, skipped = divmod(step, len(loader))
    for epoch in range(first_epoch, EPOCHS):
        model.train()
        loader.set_epoch(epoch)
        rest = accelerator.skip_first_batches(loader, skipped) if epoch == first_epoch and skipped else loader
        for batch in rest:
            step += 1
            note(folder, step, batch["ids"].tolist())
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
            note(folder, self.global_step + 1, batch["ids"].tolist())
            return loss_of(self.network, batch)

        def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's type is a union of twelve
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
    """Train with this package's train.py: the same command each time."""
    root = Path(__file__).parent.parent
    sys.path.insert(0, str(root))
    flags = f"""--data.dataset synthetic --data.limit {IMAGES} --data.batch-size {BATCH} --data.image-size {SIZE}
        --epochs {EPOCHS} --checkpoint.every-steps {EVERY} --runtime.precision fp32 --runtime.cpu --log.trackers
        --model.dropout 0.5 --data.cutout 0 --optim.name adam --optim.weight-decay 0 --optim.label-smoothing 0
        --optim.lr {LEARNING_RATE} --optim.schedule constant --out-dir {folder / "saved"}""".split()
    sys.argv = ["train.py", *flags]
    import train
    from alexnet_dist.config import parse
    from alexnet_dist.training import checkpoint, train_loop

    take = train_loop._train_step  # noqa: SLF001 - the place where ids and steps meet

    def noted(job: Any, batch: Any, *arguments: Any, step: int, lr: float) -> Any:  # noqa: ANN401
        note(folder, step + 1, batch["ids"].tolist())
        return take(job, batch, *arguments, step=step, lr=lr)

    train_loop._train_step = noted  # noqa: SLF001
    train.main(parse(flags))
    newest = checkpoint.checkpoints(folder / "saved" / "checkpoints")[-1]
    (folder / "final.safetensors").write_bytes((newest / "model.safetensors").read_bytes())


SYSTEMS: dict[str, Callable[[Path], None]] = {
    "accelerate": lambda folder: accelerate_run(folder, seedable=False),
    "accelerate-seedable": lambda folder: accelerate_run(folder, seedable=True),
    "lightning": lightning_run,
    "alexnet_dist": own_run,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    SYSTEMS[sys.argv[1]](Path(sys.argv[2]).resolve())
