"""The contenders of benchmarks/pipeline.py: endless batches of random crops, as users of each library write them.

alexnet_dist    this package's loader: `encoded` over the JPEGs as they are, or `pixels` stored at short side 256
region          the same where nvImageCodec is installed, which decodes no more of a JPEG than the crop's region
torchvision     the reference recipe's loader: ImageFolder, Pillow, transforms on Pillow's images, worker processes
torchvision v2  its own decoder and transforms v2 on uint8 tensors, in the same loader
timm            `create_loader`, without the part that normalises on the device
datasets        `imagefolder` and `with_transform`, as in the Hub's examples of image classification
webdataset      tars that are sampled and shuffled, decoded by Pillow
dali            NVIDIA DALI on the CPU: `image_random_crop` decodes the crop's region
ffcv            a .beton file that holds the same JPEGs, or raw pixels

Every loader crops 0.08 to 1 of the area at ratios of 3/4 to 4/3 and resizes to a square, bilinear and antialiased where
the library can; none flips or normalises. Batches are uint8, channels first or last as each library makes them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets as torchvision_datasets
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from alexnet_dist.data import GlobalBatches, PhotoLoader, crops, photographs
from alexnet_dist.data.photographs import Photographs
from alexnet_dist.distributed import hardware
from alexnet_dist.sources import SourceOptions, find

Batches = Iterator[Any]

STREAM = 400_000  # images of an epoch: a smaller folder is repeated, so that no loader starts anew while it is timed
SCALE = (0.08, 1.0)
STORED_SIZE = 256
SHARDS = 8  # tars of webdataset: a multiple of the workers


@dataclass(frozen=True)
class Task:
    """What a contender reads and returns."""

    images: str
    """`originals`, `resized` (JPEGs of short side 256) or `pixels` (raw, of short side 256)."""
    folder: Path
    """Class folders of JPEGs; for `pixels`, of those that the pixels are decoded from."""
    scratch: Path
    """For stores, tars and the like, which are written by the first run and kept for the next."""
    workers: int
    """Threads or processes."""
    batch_size: int
    size: int
    """Side of the crops in pixels."""

    def files(self) -> list[tuple[Path, int]]:
        """Return all JPEGs, each with the number of its class."""
        classes = sorted(self.folder.iterdir())
        return [(path, label) for label, folder in enumerate(classes) for path in sorted(folder.iterdir())]


# ---- this package ---------------------------------------------------------------------------------------------------


def alexnet_dist(task: Task) -> Batches:
    """Return the batches of this package's loader, without nvImageCodec."""
    photos = _photos(task)
    return _photo_batches(task, Whole(photos.folder, photos.store, photos.stored_size, photos.rows))


def region(task: Task) -> Batches:
    """Return the batches of this package's loader, which uses nvImageCodec where that agrees with Pillow."""
    return _photo_batches(task, _photos(task))


def _photos(task: Task) -> Photographs:
    """Return the prepared images, repeated to an epoch of `STREAM` images."""
    hardware.keep_freed_memory()  # as the commands do
    store: photographs.Store = "pixels" if task.images == "pixels" else "encoded"
    listing = find.list_images(str(task.folder), SourceOptions(cache=task.scratch / "cache"), os.environ)
    prepared = photographs.prepare(
        listing.train,
        None,
        listing.class_names,
        task.scratch / f"store-{task.images}",
        store=store,
        stored_size=STORED_SIZE,
        threads=os.cpu_count() or 1,
    )
    photos = prepared.train
    return photos.take(np.resize(np.arange(len(photos)), max(STREAM, len(photos))))


def _photo_batches(task: Task, photos: Photographs) -> Batches:
    order = GlobalBatches(len(photos), task.batch_size, seed=0, drop_last=True)

    def boxes(epoch: int) -> crops.Boxes:
        return crops.boxes(0, epoch, photos.heights, photos.widths, SCALE)

    loader = PhotoLoader(
        photos,
        order,
        size=task.size,
        device=torch.device("cpu"),
        threads=task.workers,
        boxes=boxes,
        epoch=lambda: order.epoch,
    )
    return (batch["images"] for batch in loader)


class Whole(Photographs):
    """Photographs of which a whole one is decoded for each crop."""

    def picture(self, index: int, box: list[int] | None = None) -> photographs.Images:
        """Return an image, or a box of it, (height, width, 3) uint8."""
        whole = super().picture(index)
        top, left, height, width = box or (0, 0, *whole.shape[:2])
        return whole[top : top + height, left : left + width]


def region_difference(values: dict[str, Any]) -> dict[str, float]:
    """Return how the pixels of decoded regions differ from those of whole images, in levels of 0 to 255."""
    photos = _photos(_task(values))
    photos = photos.take(np.arange(min(len(photos), 300)))
    boxes = crops.boxes(0, 0, photos.heights, photos.widths, SCALE)
    same, most, total = 0, 0, 0.0
    for index, (top, left, height, width) in enumerate(boxes.tolist()):
        whole = photos.picture(index)[top : top + height, left : left + width]
        difference = np.abs(whole.astype(np.int16) - photos.picture(index, [top, left, height, width]))
        same, most = same + (not difference.any()), max(most, int(difference.max()))
        total += float(difference.mean())
    return {"images": len(photos), "equal": same, "mean": total / len(photos), "most": most}


# ---- libraries around torch's DataLoader ----------------------------------------------------------------------------


def _torch_loader(task: Task, dataset: Any, collate: Callable[..., Any] | None = None) -> Batches:  # noqa: ANN401 - of each library's own type
    sampler = RandomSampler(dataset, num_samples=max(STREAM, len(dataset)))
    loader = DataLoader(dataset, task.batch_size, sampler=sampler, num_workers=task.workers, collate_fn=collate)
    return iter(loader)


def torchvision(task: Task) -> Batches:
    """Return the batches of torchvision's reference recipe, `--backend pil`."""
    steps = [transforms.RandomResizedCrop(task.size, SCALE), transforms.PILToTensor()]
    dataset = torchvision_datasets.ImageFolder(str(task.folder), transforms.Compose(steps))
    return (images for images, _ in _torch_loader(task, dataset))


def torchvision_v2(task: Task) -> Batches:
    """Return the batches of torchvision's decoder and transforms v2 on uint8 tensors, the fastest of its ways."""
    crop = v2.RandomResizedCrop(task.size, SCALE, antialias=True)
    decode = partial(decode_image, mode=ImageReadMode.RGB)
    dataset = torchvision_datasets.ImageFolder(str(task.folder), crop, loader=decode)
    return (images for images, _ in _torch_loader(task, dataset))


def timm(task: Task) -> Batches:
    """Return the batches of timm's `create_loader` as its workers hand them over."""
    import timm.data

    dataset = timm.data.create_dataset("", root=str(task.folder), is_training=True)
    samples = dataset.reader.samples
    dataset.reader.samples = samples * -(-STREAM // len(samples))
    loader = timm.data.create_loader(
        dataset,
        task.size,
        task.batch_size,
        is_training=True,
        scale=SCALE,
        hflip=0.0,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=task.workers,
        device=torch.device("cpu"),
    )
    return (images for images, _ in loader.loader)  # the outer loader normalises, on the GPU in training


def datasets(task: Task) -> Batches:
    """Return the batches of `datasets` with a transform, in a DataLoader."""
    from datasets import load_dataset

    crop = transforms.Compose([transforms.RandomResizedCrop(task.size, SCALE), transforms.PILToTensor()])

    def transform(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [crop(image.convert("RGB")) for image in rows["image"]]}

    place = {"data_dir": str(task.folder), "cache_dir": str(task.scratch / f"datasets-{task.images}")}
    dataset = load_dataset("imagefolder", split="train", **place).with_transform(transform)
    return (batch["pixel_values"] for batch in _torch_loader(task, dataset))


def webdataset(task: Task) -> Batches:
    """Return the batches of WebDataset over tars, sampled with replacement."""
    import webdataset as wds

    folder = task.scratch / f"webdataset-{task.images}"
    if not folder.exists():
        folder.mkdir()
        for shard in range(SHARDS):
            with wds.TarWriter(str(folder / f"{shard}.tar")) as tar:
                for key, (path, label) in enumerate(task.files()[shard::SHARDS]):
                    tar.write({"__key__": str(key), "jpg": path.read_bytes(), "cls": label})
    crop = transforms.Compose([transforms.RandomResizedCrop(task.size, SCALE), transforms.PILToTensor()])
    shards = [str(path) for path in sorted(folder.iterdir())]
    samples = wds.WebDataset(shards, resampled=True)
    stages = samples.shuffle(200).decode("pilrgb").to_tuple("jpg", "cls").map_tuple(crop).batched(task.batch_size)
    return (images for images, _ in wds.WebLoader(stages, batch_size=None, num_workers=task.workers))


# ---- libraries with loaders of their own ----------------------------------------------------------------------------


def dali(task: Task) -> Batches:
    """Return the batches of DALI's reader, decoder and resize on the CPU."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=task.batch_size, num_threads=task.workers, device_id=None, seed=0)
    def pipeline() -> Any:  # noqa: ANN401 - DALI has no types
        files, labels = fn.readers.file(file_root=str(task.folder), random_shuffle=True)
        images = fn.decoders.image_random_crop(files, random_area=SCALE, random_aspect_ratio=crops.RATIOS)
        sides = {"resize_x": task.size, "resize_y": task.size}
        return fn.resize(images, **sides, interp_type=types.INTERP_LINEAR, antialias=True), labels

    made = pipeline()
    made.build()
    return (made.run()[0].as_array() for _ in count())


def ffcv(task: Task) -> Batches:
    """Return the batches of FFCV, over a file that the operating system caches."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    raw = task.images == "pixels"

    class SameJPEG(RGBImageField):  # type: ignore[misc] # FFCV has no types
        """Field of JPEGs as they are: FFCV's own encodes them anew, with quality 90."""

        def encode(self, destination: Any, image: Path, malloc: Callable[[int], Any]) -> None:  # noqa: ANN401
            with Image.open(image) as opened:
                destination["width"], destination["height"] = opened.size
            content = np.fromfile(image, np.uint8)
            destination["mode"] = IMAGE_MODES["jpg"]
            destination["data_ptr"], storage = malloc(content.nbytes)
            storage[:] = content

    class Files:
        """Data set as FFCV's writer takes it."""

        def __len__(self) -> int:
            return len(task.files())

        def __getitem__(self, index: int) -> tuple[Any, int]:
            path, label = task.files()[index]
            if not raw:
                return path, label
            with Image.open(path) as image:
                return crops.shrunk(np.array(image.convert("RGB")), STORED_SIZE), label

    path = task.scratch / f"{task.images}.beton"
    if not path.exists():
        field = RGBImageField(write_mode="raw") if raw else SameJPEG()
        DatasetWriter(str(path), {"image": field, "label": IntField()}, num_workers=1).from_indexed_dataset(Files())
    stages = [RandomResizedCropRGBImageDecoder((task.size, task.size), SCALE), ToTensor(), ToTorchImage()]
    loader = Loader(
        str(path),
        task.batch_size,
        task.workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=0,
        indices=np.resize(np.arange(len(Files())), STREAM),
        pipelines={"image": stages},
        custom_fields={"image": RGBImageField},
    )
    return (images for images, _ in chain.from_iterable(loader for _ in count()))


# ---- running --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A loader, what it needs and what it can read."""

    batches: Callable[[Task], Batches]
    package: str
    """Module whose absence leaves it out."""
    distribution: str
    """Package whose version is reported."""
    images: tuple[str, ...] = ("originals", "resized")
    label: str = ""


OURS = "alexnet_dist"
EVERY = ("originals", "resized", "pixels")
CONTENDERS = {
    "torchvision": Contender(torchvision, "torchvision", "torchvision", label="torchvision's reference loader"),
    "torchvision-v2": Contender(torchvision_v2, "torchvision", "torchvision", label="torchvision, uint8 v2 transforms"),
    "timm": Contender(timm, "timm", "timm", label="timm `create_loader`"),
    "datasets": Contender(datasets, "datasets", "datasets", label="`datasets` with_transform"),
    "webdataset": Contender(webdataset, "webdataset", "webdataset", label="WebDataset"),
    "dali": Contender(dali, "nvidia.dali", "nvidia-dali-cuda120", label="DALI, CPU reader"),
    "ffcv": Contender(ffcv, "ffcv", "ffcv", EVERY, label="FFCV"),
    OURS: Contender(alexnet_dist, OURS, OURS, EVERY, label="alexnet_dist"),
    "region": Contender(region, "nvidia.nvimgcodec", "nvidia-nvimgcodec-cu12", label="alexnet_dist, region decoder"),
}


def is_installed(name: str) -> bool:
    """Return whether a contender's package is there; it is not imported."""
    try:
        return importlib.util.find_spec(CONTENDERS[name].package) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def run(name: str, values: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return how many images a contender loads in how many seconds, after a warm-up.

    Args:
        name: of the contender.
        values: of the `Task`.
        seconds: at least; the batch that is awaited is waited for.
    """
    torch.set_num_threads(1)  # the workers are the threads that are counted
    task = _task(values)
    batches = CONTENDERS[name].batches(task)
    shapes = (task.batch_size, 3, task.size, task.size), (task.batch_size, task.size, task.size, 3)
    for _ in range(2 * task.workers + 4):  # more batches than a loader prepares ahead
        batch = next(batches)
        assert tuple(batch.shape) in shapes, f"{name} returns batches of shape {tuple(batch.shape)}"
        assert str(batch.dtype).endswith("uint8"), f"{name} returns {batch.dtype}"
        del batch  # as a training loop would
    began, used, loaded = time.perf_counter(), _cpu_seconds(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        next(batches)
        loaded += task.batch_size
    return {
        "images": loaded,
        "seconds": elapsed,
        "images_per_second": loaded / elapsed,
        "cpu_ms_per_image": 1000 * (_cpu_seconds() - used) / loaded,
        "version": importlib.metadata.version(CONTENDERS[name].distribution),
    }


def _cpu_seconds() -> float:
    """Return the CPU time of this process and its workers, which other programs on the machine hardly change."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def _task(values: dict[str, Any]) -> Task:
    return Task(**{**values, "folder": Path(values["folder"]), "scratch": Path(values["scratch"])})
