"""One contender of benchmarks/throughput.py, in a process of its own: the loop as its users write it well.

.venv/bin/python benchmarks/peers.py accelerate --batch-size 512 --workers 2 --out result.json

lecture     the notebook's loop: plain torch in float32, Resize and ToTensor in 4 workers, `loss.item()` at every step
accelerate  Accelerator("bf16"), channels_last, fused Adam, torchvision's v2 transforms in persistent workers
lightning   Trainer("bf16-mixed") with the same loader, network and optimizer, and nothing else switched on

All of them read the uint8 images that train.py reads, item by item through Pillow as torchvision.datasets.CIFAR10
hands them out. Accelerate and Lightning crop, flip, enlarge and normalise as train.py does by default; of the usual
spellings theirs, which enlarges uint8 tensors, is the fastest: 0.56 ms an image on one core of a Xeon with AMX, where
enlarging Pillow's images takes 0.7 to 0.8. Neither reads the loss, which spares them a wait on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.transforms import v2

from alexnet_dist.config import DataConfig
from alexnet_dist.data import sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

    from alexnet_dist.data.image_data import ImageData

    Transform = Callable[[Image.Image], torch.Tensor]
    Batch = tuple[torch.Tensor, torch.Tensor]

LEARNING_RATE = 1e-4
EPOCH = 50_000  # images drawn before the loader starts afresh, CIFAR-10's number: also where fewer are stored


class Images(Dataset[tuple[torch.Tensor, int]]):
    """torchvision.datasets.CIFAR10 over arrays that are in memory already.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        transform: from Pillow's image to the network's input.
    """

    def __init__(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], transform: Transform) -> None:
        self.data = images.transpose(0, 2, 3, 1).copy()
        self.targets = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


@dataclass
class Clock:
    """Times the steps after a warm-up, and the waits for their data."""

    warmup: int
    steps: int
    ends: list[float] = field(default_factory=list)
    """When each step ended, the warm-up's too."""
    waits: list[float] = field(default_factory=list)
    """Seconds that each step waited for its batch."""

    def batches(self, loader: Any) -> Iterator[Any]:  # noqa: ANN401 - torch's loader or Accelerate's
        """Hand out as many batches as there are steps."""
        iterator = iter(loader)
        for _ in range(self.warmup + self.steps):
            asked = time.perf_counter()
            batch = next(iterator)
            self.waits.append(time.perf_counter() - asked)
            yield batch

    def step_done(self) -> None:
        """Note a step's end; at the two ends of the timed steps the device's work has to be done too."""
        if torch.cuda.is_available() and len(self.ends) + 1 in (self.warmup, self.warmup + self.steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def result(self) -> dict[str, Any]:
        """Return the seconds of the timed steps: in all, each, and waiting for data."""
        ends = self.ends[self.warmup - 1 :]
        return {
            "seconds": ends[-1] - ends[0],
            "step_seconds": [end - start for start, end in pairwise(ends)],
            "wait_seconds": sum(self.waits[self.warmup :]),
        }


class TimedLoader:
    """A loader whose waits are timed where a framework owns the loop."""

    def __init__(self, loader: DataLoader[Any], clock: Clock) -> None:
        self.loader = loader
        self.clock = clock

    def __len__(self) -> int:
        return self.clock.warmup + self.clock.steps

    def __iter__(self) -> Iterator[Batch]:
        return self.clock.batches(self.loader)


def network(num_classes: int) -> nn.Module:
    """Return torchvision's AlexNet with a head for the data set's classes, as the notebook swaps it."""
    model = torchvision.models.alexnet()
    model.classifier[6] = nn.Linear(model.classifier[6].in_features, num_classes)
    return model  # type: ignore[no-any-return] # torchvision has no stubs


def careful_loader(dataset: ImageData, arguments: argparse.Namespace) -> DataLoader[Any]:
    """Return the loader of a careful user: train.py's work on each image, in workers that live on."""
    side = dataset.train.images.shape[-1]
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomCrop(side, padding=side // 8),
            v2.RandomHorizontalFlip(),
            v2.Resize(arguments.image_size, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(dataset.mean, dataset.std),
        ]
    )
    images = Images(dataset.train.images, dataset.train.labels, transform)
    return DataLoader(
        images,
        batch_size=arguments.batch_size,
        sampler=RandomSampler(images, num_samples=num_drawn(arguments)),
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


def num_drawn(arguments: argparse.Namespace) -> int:
    """Return how many images the loader draws: never so few that it runs dry while it is timed."""
    return max(EPOCH, 2 * int(arguments.batch_size * (arguments.warmup + arguments.steps)))


def lecture(dataset: ImageData, arguments: argparse.Namespace, clock: Clock) -> None:
    """Train as the lecture's notebook does, its network repaired."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = transforms.Compose([transforms.Resize(arguments.image_size), transforms.ToTensor()])
    images = Images(dataset.train.images, dataset.train.labels, transform)
    loader = DataLoader(
        images,
        batch_size=arguments.batch_size,
        sampler=RandomSampler(images, num_samples=num_drawn(arguments)),
        num_workers=arguments.workers,
    )
    model = network(len(dataset.class_names)).to(device)
    criterion = nn.NLLLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    running_loss = 0.0
    for batch in clock.batches(loader):
        inputs, labels = batch[0].to(device), batch[1].to(device)
        optimizer.zero_grad()
        loss = criterion(F.log_softmax(model(inputs), dim=1), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        clock.step_done()


def accelerate(dataset: ImageData, arguments: argparse.Namespace, clock: Clock) -> None:
    """Train with Accelerate as its documentation advises."""
    from accelerate import Accelerator

    torch.backends.cudnn.benchmark = True
    accelerator = Accelerator(mixed_precision="bf16")
    model = network(len(dataset.class_names)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, careful_loader(dataset, arguments))
    criterion = nn.CrossEntropyLoss()
    model.train()
    for images, labels in clock.batches(loader):
        inputs = images.to(memory_format=torch.channels_last)
        loss = criterion(model(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_done()


def lightning(dataset: ImageData, arguments: argparse.Namespace, clock: Clock) -> None:
    """Train with Lightning: bf16-mixed, channels_last, no logger, no checkpoints."""
    import lightning as lightning_package

    class Classifier(lightning_package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(len(dataset.class_names)).to(memory_format=torch.channels_last)
            self.criterion = nn.CrossEntropyLoss()

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 - Lightning's signature
            images, labels = batch
            loss: torch.Tensor = self.criterion(self.model(images.to(memory_format=torch.channels_last)), labels)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)

        def on_train_batch_end(self, *_: object) -> None:
            clock.step_done()

    trainer = lightning_package.Trainer(
        precision="bf16-mixed",
        max_steps=arguments.warmup + arguments.steps,
        accelerator="auto",
        devices=1,
        benchmark=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), TimedLoader(careful_loader(dataset, arguments), clock))


PEERS = {"lecture": lecture, "accelerate": accelerate, "lightning": lightning}


def main() -> None:
    """Run one contender and write what was timed."""
    arguments = parse()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = DataConfig(dataset=arguments.dataset, batch_size=arguments.batch_size, image_size=arguments.image_size)
    clock = Clock(arguments.warmup, arguments.steps)
    PEERS[arguments.name](sources.load(config), arguments, clock)
    package = arguments.name if arguments.name in ("accelerate", "lightning") else "torch"
    result = {
        "name": arguments.name,
        "images": arguments.steps * arguments.batch_size,
        **clock.result(),
        "workers": arguments.workers,
        "threads": torch.get_num_threads(),
        "version": f"{package} {importlib.metadata.version(package)}",
    }
    arguments.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--warmup", type=int, default=4, help="steps before the clock starts, at least 1")
    parser.add_argument("--steps", type=int, default=12, help="timed steps")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, help="of the training process (default: torch's own choice)")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
