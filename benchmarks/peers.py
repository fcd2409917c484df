"""The contenders of benchmarks/throughput.py: loops as their users write them well.

lecture     the notebook's loop: plain torch in float32, Resize and ToTensor in 4 workers, `loss.item()` at every step
accelerate  Accelerator("bf16"), channels_last, fused Adam, torchvision's v2 transforms in persistent workers
lightning   Trainer("bf16-mixed") with the same loader, network and optimizer, and nothing else switched on
timm        as timm's train.py: its loader, which normalises on the device, its optimizer, bf16, channels_last
expert      the strongest loop for small images: all of them as uint8 on the device, batches cropped, flipped, enlarged
            there by F.interpolate, bf16, channels_last, fused Adam, and on a GPU both halves compiled

All of them read the uint8 images that train.py reads, item by item through Pillow as torchvision.datasets.CIFAR10
hands them out. Accelerate and Lightning crop, flip, enlarge and normalise as train.py does by default; of the usual
spellings theirs, which enlarges uint8 tensors, is the fastest: 0.56 ms an image on one core of a Xeon with AMX, where
enlarging Pillow's images takes 0.7 to 0.8. Neither reads the loss, which spares them a wait on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise, repeat
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.transforms import v2

from alexnet_dist.config import DataConfig
from alexnet_dist.data import ImageData, Split, load

Transform = Callable[[Image.Image], torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]

LEARNING_RATE = 1e-4
EPOCH = 50_000  # images drawn before the loader starts afresh, CIFAR-10's number: also where fewer are stored


class Images(Dataset[tuple[torch.Tensor, int]]):
    """torchvision.datasets.CIFAR10 over a split that is in memory already; `transform` takes Pillow's images."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self.data = split.images.transpose(0, 2, 3, 1).copy()
        self.targets = split.labels.tolist()
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

    loader: Any = None
    """Torch's or Accelerate's, whose waits are timed where a framework owns the loop too."""

    def over(self, loader: Any) -> Clock:  # noqa: ANN401
        """Return an iterable of as many batches as there are steps."""
        self.loader = loader
        return self

    def __len__(self) -> int:
        return self.warmup + self.steps

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        for _ in range(len(self)):
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


def network(num_classes: int) -> nn.Module:
    """Return torchvision's AlexNet with a head for the data set's classes, as the notebook swaps it."""
    model = torchvision.models.alexnet()
    model.classifier[6] = nn.Linear(model.classifier[6].in_features, num_classes)
    return model  # type: ignore[no-any-return] # torchvision has no stubs


def loader(dataset: ImageData, arguments: argparse.Namespace, transform: Transform, **more: bool) -> DataLoader[Any]:
    """Return a shuffling loader that never runs dry while it is timed."""
    images = Images(dataset.train, transform)
    num_drawn = max(EPOCH, 2 * int(arguments.batch_size * (arguments.warmup + arguments.steps)))
    return DataLoader(
        images,
        batch_size=arguments.batch_size,
        sampler=RandomSampler(images, num_samples=num_drawn),
        num_workers=arguments.workers,
        **more,
    )


def careful_loader(dataset: ImageData, arguments: argparse.Namespace) -> DataLoader[Any]:
    """Return the loader of a careful user: train.py's work on each image, in workers that live on."""
    side = dataset.train.images.shape[-1]
    steps = [
        v2.ToImage(),
        v2.RandomCrop(side, padding=side // 8),
        v2.RandomHorizontalFlip(),
        v2.Resize(arguments.image_size, antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(dataset.mean, dataset.std),
    ]
    more = {"persistent_workers": arguments.workers > 0, "pin_memory": torch.cuda.is_available(), "drop_last": True}
    return loader(dataset, arguments, v2.Compose(steps), **more)


def lecture(dataset: ImageData, arguments: argparse.Namespace, clock: Clock) -> None:
    """Train as the lecture's notebook does, its network repaired."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = transforms.Compose([transforms.Resize(arguments.image_size), transforms.ToTensor()])
    model = network(len(dataset.class_names)).to(device)
    criterion = nn.NLLLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    running_loss = 0.0
    for batch in clock.over(loader(dataset, arguments, transform)):
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
    model, optimizer, batches = accelerator.prepare(model, optimizer, careful_loader(dataset, arguments))
    criterion = nn.CrossEntropyLoss()
    model.train()
    for images, labels in clock.over(batches):
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
    trainer.fit(Classifier(), clock.over(careful_loader(dataset, arguments)))


def timm(dataset: ImageData, arguments: argparse.Namespace, clock: Clock) -> None:
    """Train as timm's train.py does, with the image's size and augmentation of the others."""
    import timm.data
    import timm.optim

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = dataset.train.images.shape[-1]
    loader = timm.data.create_loader(
        Images(dataset.train, v2.Identity()),
        input_size=(3, arguments.image_size, arguments.image_size),
        batch_size=arguments.batch_size,
        is_training=True,
        scale=((side - side // 8) ** 2 / side**2, 1.0),
        ratio=(1.0, 1.0),
        interpolation="bilinear",
        mean=dataset.mean,
        std=dataset.std,
        num_workers=arguments.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=arguments.workers > 0,
        device=device,
    )
    model = network(len(dataset.class_names)).to(device, memory_format=torch.channels_last)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=LEARNING_RATE, fused=True)
    criterion = nn.CrossEntropyLoss()
    torch.backends.cudnn.benchmark = True
    model.train()
    for images, labels in clock.over(chain.from_iterable(repeat(loader))):
        with torch.autocast(device.type, torch.bfloat16):
            loss = criterion(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step_done()


def expert(dataset: ImageData, arguments: argparse.Namespace, clock: Clock) -> None:
    """Train with all images on the device, as loops do that hold CIFAR-10's records of speed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiled: Any = torch.compile if device.type == "cuda" else lambda function: function
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    images, labels = (torch.from_numpy(array).to(device) for array in (dataset.train.images, dataset.train.labels))
    side, (mean, std) = (
        images.shape[-1],
        (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std)),
    )
    padding = side // 8
    padded = F.pad(images.float(), (padding,) * 4, mode="reflect").to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    pixel = torch.arange(side, device=device)

    @compiled
    def augmented(ids: torch.Tensor, shifts: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
        columns = torch.where(flips[:, None], pixel.flip(0), pixel) + shifts[:, :1]
        rows = pixel + shifts[:, 1:]
        cropped = padded[ids[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        enlarged = F.interpolate(cropped.float().div(255), size=(arguments.image_size,) * 2, mode="bilinear")
        normalised = (enlarged - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        return normalised.to(torch.bfloat16, memory_format=torch.channels_last)

    model = network(len(dataset.class_names)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    fast, criterion, count = compiled(model), nn.CrossEntropyLoss(), arguments.batch_size
    model.train()

    def batches() -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(len(images), device=device)
            yield from (order[start : start + count] for start in range(0, len(order) - count + 1, count))

    for ids in clock.over(batches()):
        shifts = torch.randint(0, 2 * padding + 1, (count, 2), device=device)
        inputs = augmented(ids, shifts, torch.rand(count, device=device) < 0.5)
        with torch.autocast(device.type, torch.bfloat16):
            loss = criterion(fast(inputs), labels[ids])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_done()


PEERS = {"lecture": lecture, "accelerate": accelerate, "lightning": lightning}
"""Contenders of throughput.py."""
GPU_PEERS = {"expert": expert, "accelerate": accelerate, "lightning": lightning, "timm": timm, "lecture": lecture}
"""Those of gpu.py, in the order of their worth."""


def run(name: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run one contender and return what was timed.

    Args:
        name: of the contender.
        task: options of throughput.py, with the number of loader processes, `workers`, and of torch's `threads` (None
            for torch's own choice).
    """
    arguments = argparse.Namespace(**task)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = DataConfig(dataset=arguments.dataset, batch_size=arguments.batch_size, image_size=arguments.image_size)
    clock = Clock(arguments.warmup, arguments.steps)
    GPU_PEERS[name](load(config), arguments, clock)
    package = name if name in ("accelerate", "lightning", "timm") else "torch"
    return {
        "name": name,
        "images": arguments.steps * arguments.batch_size,
        **clock.result(),
        "workers": arguments.workers,
        "threads": torch.get_num_threads(),
        "version": f"{package} {importlib.metadata.version(package)}",
    }
