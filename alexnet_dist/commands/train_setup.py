"""What a run is made of: loaders, optimizer, inputs and schedule, built from its configuration."""

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from alexnet_dist.config import Config
from alexnet_dist.data import Batch, GlobalBatches, ImageData, Inputs, InputSpec, augment, loader
from alexnet_dist.distributed import Hardware, RunControl
from alexnet_dist.models import StartingWeights, alexnet, fast_layers
from alexnet_dist.tracking import Console, RunLogger
from alexnet_dist.training import LearningRate, Plan, TrainContext, checkpoint, optimizer
from alexnet_dist.visualization import kernel_images


@dataclass(frozen=True)
class Loaders:
    """This rank's shares of both splits, on its device."""

    order: GlobalBatches
    """Of the training loader, whose position it decides."""
    train: Collection[Batch]
    test: Collection[Batch]
    num_eval_batches: int
    """Global batches of the evaluation split; a rank may have one share less."""


@dataclass(frozen=True)
class TrainRun:
    """What one run is made of."""

    config: Config
    dataset: ImageData
    kernels_before: kernel_images.Weights
    context: TrainContext
    plan: Plan
    loaders: Loaders
    control: RunControl
    log: RunLogger
    saver: checkpoint.Saver
    console: Console


def prepare(  # noqa: PLR0917 - each has a type of its own
    config: Config,
    dataset: ImageData,
    network: nn.Module,
    accelerator: Accelerator,
    hardware: Hardware,
    inputs: Inputs,
) -> tuple[TrainContext, Loaders, Plan]:
    """Put the network on its device and build what the loops need. Every rank must call it."""
    # ---- network
    network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in the stubs
    # a copy of the weights where the average starts, before Accelerate patches the network's forward
    ema = copy.deepcopy(network).requires_grad_(requires_grad=False) if config.optim.ema else None
    if config.runtime.compile:
        network.compile()

    # ---- order and schedule
    batch_size, mixes = config.data.batch_size, config.data.mixup is not None or config.data.cutmix is not None
    order = GlobalBatches(len(dataset.train), batch_size, seed=config.seed, drop_last=True, partners=mixes)
    in_turn = GlobalBatches(len(dataset.test), batch_size, seed=None, drop_last=False)
    total_steps = config.epochs * order.num_batches
    plan = Plan(
        steps_per_epoch=order.num_batches,
        last_step=min(total_steps, config.max_steps or total_steps),
        record_every=config.log.every_steps,
        save_every=config.checkpoint.every_steps,
    )

    # ---- Accelerate
    on_gpu = accelerator.device.type == "cuda"
    prepared, wrapped, train_loader, eval_loader = accelerator.prepare(
        network,
        optimizer.build(network, config.optim),
        loader.make_loader(dataset.train.images, dataset.train.labels, order, pin_memory=on_gpu),
        loader.make_loader(dataset.test.images, dataset.test.labels, in_turn, pin_memory=on_gpu),
    )
    if accelerator.scaler is None:
        wrapped.optimizer.found_inf = torch.zeros((), device=accelerator.device)
    context = TrainContext(
        accelerator=accelerator,
        model=prepared,
        optimizer=wrapped,
        ema=ema,
        inputs=inputs,
        learning_rate=LearningRate(config.optim, batch_size, order.num_batches, total_steps),
        config=config.optim,
        seed=config.seed,
        flops_per_image=alexnet.training_flops(network, config.data.image_size),
        peak_flops=hardware.peak_flops,
    )
    return context, Loaders(order, train_loader, eval_loader, in_turn.num_batches), plan


def make_inputs(config: Config, dataset: ImageData, start: StartingWeights | None, dtype: torch.dtype) -> Inputs:
    """Return the way from a stored image to what conv1 reads, by the starting weights' statistics if they have any.

    Args:
        config: image size, normalisation and augmentation.
        dataset: whose statistics serve otherwise.
        start: the starting weights.
        dtype: of the network's arithmetic.
    """
    mean, std = (start.statistics if start else None) or (dataset.mean, dataset.std)
    if not config.data.normalize:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    spec = InputSpec(config.data.image_size, dataset.train.images.shape[-1], mean, std)
    red, green, blue = dataset.mean if config.data.normalize else (0.0, 0.0, 0.0)  # what becomes 0 in the input
    augmentation = augment.Augment(
        source_size=spec.stored_size,
        num_images=len(dataset.train),
        seed=config.seed,
        flips=dataset.flips,
        cutout=config.data.cutout,
        mix="mixup" if config.data.mixup else "cutmix" if config.data.cutmix else None,
        mix_alpha=config.data.mixup or config.data.cutmix or 1.0,
        fill=(round(255 * red), round(255 * green), round(255 * blue)),
    )
    return Inputs(spec, fast_layers.margin(spec.image_size), dtype, augmentation if config.data.augment else None)
