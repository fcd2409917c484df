"""What a run is made of: loaders, optimizer, inputs and schedule, built from its configuration."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from torch import nn

from alexnet_dist.config import Config
from alexnet_dist.data import (
    Batch,
    GlobalBatches,
    ImageData,
    Inputs,
    InputSpec,
    PhotoLoader,
    Split,
    augment,
    crops,
    loader,
    threads_of,
)
from alexnet_dist.data.photo_loader import Waiting
from alexnet_dist.data.sampler import Index
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
    waiting: Waiting,
) -> tuple[TrainContext, Loaders, Plan]:
    """Put the network on its device and build what the loops need. Every rank must call it."""
    # ---- network
    network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in the stubs
    # a copy of the weights where the average starts, before Accelerate patches the network's forward
    ema = copy.deepcopy(network).requires_grad_(requires_grad=False) if config.optim.ema else None
    if config.runtime.compile or config.runtime.cuda_graphs:
        network.compile(mode="reduce-overhead" if config.runtime.cuda_graphs else "default")

    # ---- loaders and schedule
    batch_size, loaders = config.data.batch_size, make_loaders(config, dataset, accelerator, waiting)
    steps_per_epoch = loaders.order.num_batches
    total_steps = config.epochs * steps_per_epoch
    plan = Plan(
        steps_per_epoch=steps_per_epoch,
        last_step=min(total_steps, config.max_steps or total_steps),
        record_every=config.log.every_steps,
        save_every=config.checkpoint.every_steps,
        draw_every=config.log.kernels_every_epochs,
    )

    # ---- Accelerate
    products = torch.bfloat16 if hardware.precision.name == "bf16" else torch.float32
    prepared, wrapped = accelerator.prepare(network, optimizer.build(network, config.optim, products=products))
    if accelerator.scaler is None:
        wrapped.optimizer.found_inf = torch.zeros((), device=accelerator.device)
    context = TrainContext(
        accelerator=accelerator,
        model=prepared,
        optimizer=wrapped,
        ema=ema,
        inputs=inputs,
        learning_rate=LearningRate(config.optim, batch_size, steps_per_epoch, total_steps),
        config=config.optim,
        seed=config.seed,
        flops_per_image=alexnet.training_flops(network, config.data.image_size),
        peak_flops=hardware.peak_flops,
    )
    return context, loaders, plan


def make_loaders(
    config: Config, dataset: ImageData, accelerator: Accelerator, waiting: Waiting = lambda *_: False
) -> Loaders:
    """Return the loaders of both splits; each yields this rank's pieces of the global batches.

    Args:
        config: batch size, seed, and how photographs are cropped.
        dataset: arrays, which are copied from, or photographs, which are decoded by threads.
        accelerator: of the run.
        waiting: called about once a second while photographs are waited for, as `PhotoLoader` does.
    """
    train, test = dataset.train, dataset.test
    mixes = config.data.mixup is not None or config.data.cutmix is not None
    batch_size = config.data.batch_size
    order = GlobalBatches(len(train), batch_size, seed=config.seed, drop_last=True, partners=mixes)
    in_turn = GlobalBatches(len(test), batch_size, seed=None, drop_last=False)
    if isinstance(train, Split) and isinstance(test, Split):
        make = partial(loader.make_loader, pin_memory=accelerator.device.type == "cuda")
        loaders = make(train.images, train.labels, order), make(test.images, test.labels, in_turn)
        for_train, for_test = accelerator.prepare(*loaders)
        return Loaders(order, for_train, for_test, in_turn.num_batches)
    ranks = {"num_processes": accelerator.num_processes, "process_index": accelerator.process_index}
    of_rank = partial(BatchSamplerShard, **ranks, split_batches=True, even_batches=False)
    make_photos = partial(photo_loader, config, device=accelerator.device, waiting=waiting)
    of_train = make_photos(dataset, of_rank(order), is_training=True, epoch=lambda: order.epoch)
    return Loaders(order, of_train, make_photos(dataset, of_rank(in_turn), is_training=False), in_turn.num_batches)


def photo_loader(
    config: Config,
    dataset: ImageData,
    batches: Collection[list[Index]],
    *,
    is_training: bool,
    device: torch.device,
    epoch: Callable[[], int] = lambda: 0,
    waiting: Waiting = lambda *_: False,
) -> PhotoLoader:
    """Return the loader of a split of photographs: random crops in training with augmentation, else central ones.

    Args:
        config: side of the input, seed, crops, threads.
        dataset: of photographs.
        batches: of this rank, lists of ids.
        is_training: whether of the training split.
        device: of the batches.
        epoch: returns the epoch whose crops are drawn.
        waiting: called about once a second while a batch is waited for, as `PhotoLoader` does.
    """
    photos = dataset.train if is_training else dataset.test
    assert not isinstance(photos, Split)
    data = config.data

    def boxes(epoch: int) -> crops.Boxes | None:
        if not (is_training and data.augment):
            return None
        return crops.boxes(config.seed, epoch, photos.heights, photos.widths, (data.crop_scale, 1.0))

    return PhotoLoader(
        photos,
        batches,
        size=data.image_size,
        device=device,
        threads=threads_of(data),
        boxes=boxes,
        epoch=epoch,
        waiting=waiting,
        timeout_seconds=config.runtime.timeout_seconds,
    )


def gather(config: Config, dataset: ImageData, indices: list[Index], *, epoch: int) -> Batch:
    """Return training images as the loader gives them in an epoch, on the CPU.

    Args:
        config: of the run.
        dataset: of the run.
        indices: ids, or pairs of an image's and its partner's.
        epoch: counted from 0.
    """
    if isinstance(dataset.train, Split):
        return loader.gather(dataset.train.images, dataset.train.labels, indices)
    made = photo_loader(config, dataset, [indices], is_training=True, device=torch.device("cpu"), epoch=lambda: epoch)
    return next(iter(made))


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
    if isinstance(dataset.train, Split):
        spec = InputSpec(config.data.image_size, dataset.train.images.shape[-1], mean, std)
    else:
        spec = InputSpec(config.data.image_size, dataset.train.stored_size, mean, std, fit="crop")
    red, green, blue = dataset.mean if config.data.normalize else (0.0, 0.0, 0.0)  # what becomes 0 in the input
    augmentation = augment.Augment(
        source_size=spec.loaded_size,
        num_images=len(dataset.train),
        seed=config.seed,
        flips=dataset.flips,
        cutout=config.data.cutout,
        mix="mixup" if config.data.mixup else "cutmix" if config.data.cutmix else None,
        mix_alpha=config.data.mixup or config.data.cutmix or 1.0,
        fill=(round(255 * red), round(255 * green), round(255 * blue)),
        crops=(config.data.resized_crop or 1.0) if spec.fit == "enlarge" else None,
        axes=augment.principal_axes(dataset.covariance(), config.data.pca_color) if config.data.pca_color else None,
    )
    return Inputs(spec, fast_layers.margin(spec.image_size), dtype, augmentation if config.data.augment else None)
