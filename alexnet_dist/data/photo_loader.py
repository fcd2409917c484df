"""Loader of photographs: threads read, decode, crop and resize images into the memory of a batch, some batches ahead.

A batch's bytes depend on its ids and on the epoch's boxes alone, not on the number of threads or which of them is fast.
For a GPU threads do not resize stored pixels: they copy those of the crops, which the GPU resizes to the same bytes.
"""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist.data import crops, device_crops
from alexnet_dist.data.crops import Boxes
from alexnet_dist.data.image_data import Images
from alexnet_dist.data.loader import Batch
from alexnet_dist.data.sampler import Index
from alexnet_dist.errors import UserError

IMAGES_PER_TASK = 8  # a task's own cost is 30 microseconds, an image's 150 and more
STOP_SECONDS = 2.0  # that an iterator which is closed waits for its threads: those on a dead disk never end


View = Callable[[Images], torch.Tensor]
Waiting = Callable[[float, Callable[[], str]], bool]


class Pictures(Protocol):
    """What a loader needs of images: `Photographs`, or files that are named."""

    @property
    def store(self) -> str:
        """How they are kept: `pixels`, or `encoded`."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,)."""

    @property
    def heights(self) -> npt.NDArray[np.int32]:
        """(N,) in pixels, of the store `pixels`."""

    @property
    def widths(self) -> npt.NDArray[np.int32]:
        """(N,) in pixels, of the store `pixels`."""

    def where(self, index: int) -> str:
        """Return the place of an image for error messages."""

    def picture(self, index: int, box: list[int] | None = None) -> Images:
        """Return an image's pixels, (H, W, 3) uint8, or those of a box."""


class PhotoLoader(Collection[Batch]):
    """This rank's batches of a split of photographs, in the order of a sampler.

    Args:
        photos: the split.
        batches: this rank's share of each global batch, lists of ids or of [id, partner's id].
        size: S, the side of the images in pixels.
        device: where batches are needed; copied asynchronously to a GPU.
        threads: that decode.
        boxes: returns an epoch's random crops, (N, 4) int32, by image id; None for `crops.evaluation_view`.
        epoch: returns the epoch that an iteration begins.
        view: returns an image, (3, S, S) uint8, for pixels, (H, W, 3), where there are no boxes; None for
            `crops.evaluation_view`.
        ahead: batches that are filled while one is used.
        waiting: called about once a second while a batch is waited for, with the seconds in which no image has come and
            what returns the file that is waited for. Where it returns True the iteration ends, as with what it raises.
        timeout_seconds: without any image, after which the disk counts as dead.

    Iterating raises:
        UserError: an image cannot be read or decoded, or does not come in time; the message names its file.
    """

    def __init__(
        self,
        photos: Pictures,
        batches: Collection[list[Index]],
        *,
        size: int,
        device: torch.device,
        threads: int,
        boxes: Callable[[int], Boxes | None] = lambda _: None,
        epoch: Callable[[], int] = lambda: 0,
        view: View | None = None,
        ahead: int = 2,
        waiting: Waiting = lambda *_: False,
        timeout_seconds: float = 600.0,
    ) -> None:
        self.photos = photos
        self.batches = batches
        self.size = size
        self.device = device
        self.threads = threads
        self.boxes = boxes
        self.epoch = epoch
        self.view = view or partial(crops.evaluation_view, size=size)
        self.ahead = ahead
        self.waiting = waiting
        self.timeout_seconds = timeout_seconds
        self.resizes_on_device = (
            device.type == "cuda" and photos.store == "pixels" and view is None and crops.UINT8_KERNEL
        )
        """Whether `device_crops` makes the images, equal to those of the CPU's uint8 kernel."""

    def __len__(self) -> int:
        return len(self.batches)

    def __contains__(self, batch: object) -> bool:
        return any(batch is other for other in self)

    def __iter__(self) -> Iterator[Batch]:
        boxes = self.boxes(self.epoch())
        workers = _Workers(self.photos, None if self.resizes_on_device else self.size, self.view, self.threads)
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        slots: list[_Slot] = []
        begun: deque[_Begun] = deque()
        try:
            for indices in self.batches:
                begun.append(self._begin(indices, boxes, workers, slots))
                if len(begun) > self.ahead:
                    yield self._finished(begun.popleft(), workers, stream)
            while begun:
                yield self._finished(begun.popleft(), workers, stream)
        except _EndedError:
            return
        finally:
            workers.stop()

    def _begin(self, indices: list[Index], boxes: Boxes | None, workers: "_Workers", slots: list["_Slot"]) -> "_Begun":
        """Return a batch whose images are being read into a free slot, or into a new one, which is added to `slots`."""
        ids = np.ascontiguousarray(np.array(indices, np.int64).reshape(len(indices), -1).T)
        flat, shape, views = ids.ravel(), (ids.size, self.size, self.size, 3), None
        taken = None if boxes is None else boxes[flat]
        if self.resizes_on_device:
            views = device_crops.views(taken, self.photos.heights[flat], self.photos.widths[flat], self.size)
            taken = views.boxes
        num_bytes = int(views.places()[-1]) if views else math.prod(shape)
        slot = next((slot for slot in slots if slot.is_free(num_bytes)), None)
        if slot is None:
            slots[:] = (slot for slot in slots if not slot.is_free(0))  # too small
            # few later batches of copies need an eighth more
            slots.append(slot := _Slot(num_bytes * 9 // 8 if views else num_bytes, pinned=self.device.type == "cuda"))
        pixels = slot.pixels[:num_bytes] if views else slot.pixels[:num_bytes].reshape(shape)
        parts = views.parts(pixels) if views else list(pixels)
        given = [None] * ids.size if taken is None else taken.tolist()
        per_task = min(IMAGES_PER_TASK, math.ceil(ids.size / workers.count))
        cuts = [slice(start, start + per_task) for start in range(0, ids.size, per_task)]
        tasks = [workers.submit(parts[cut], flat[cut].tolist(), given[cut]) for cut in cuts]
        return _Begun(ids, slot, pixels, views, tasks)

    def _finished(self, begun: "_Begun", workers: "_Workers", stream: torch.cuda.Stream | None) -> Batch:
        """Return a batch whose images are waited for, on the device."""
        since, tasks = time.monotonic(), begun.tasks
        while tasks := [*wait(tasks, timeout=1.0).not_done]:
            idle = time.monotonic() - max(since, workers.last_image)
            if self.waiting(idle, lambda: self.photos.where(workers.oldest())):
                raise _EndedError
            if idle > self.timeout_seconds:
                slow = f"has not come within {self.timeout_seconds:.0f} seconds: its disk or network does not answer"
                raise UserError(f"{self.photos.where(workers.oldest())} {slow}")
        for task in begun.tasks:
            task.result()  # raises the error of the first faulty image
        ids = torch.from_numpy(begun.ids)
        labels = torch.from_numpy(self.photos.labels[begun.ids])
        pixels = torch.from_numpy(begun.pixels)
        if stream is not None:
            pixels, labels, ids = _copied((pixels, labels.pin_memory(), ids.pin_memory()), self.device, stream)
            begun.slot.copied = stream.record_event()
        images = device_crops.resized(pixels, begun.views) if begun.views else pixels.permute(0, 3, 1, 2)
        images = images.view(*ids.shape, *images.shape[1:])  # (1 or 2, B, 3, S, S)
        batch: Batch = {"images": images[0], "labels": labels[0], "ids": ids[0]}
        if len(ids) > 1:
            batch |= {"partner_images": images[1], "partner_labels": labels[1], "partner_ids": ids[1]}
        return batch


class _EndedError(Exception):
    """Whoever asked for batches wants no more."""


class _Slot:
    """Memory of a batch's images, used again when no tensor of an earlier batch is left that shares it."""

    def __init__(self, num_bytes: int, *, pinned: bool) -> None:
        memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy() if pinned else None
        self.pixels: npt.NDArray[np.uint8] = np.empty(num_bytes, np.uint8) if memory is None else memory
        self.copied: torch.cuda.Event | None = None
        """Of the copy to the GPU."""
        self._unshared = sys.getrefcount(self.pixels)

    def is_free(self, num_bytes: int) -> bool:
        """Return whether the memory may be overwritten with so much: tensors of a batch refer to the array."""
        copied = self.copied is None or self.copied.query()  # type: ignore[no-untyped-call]
        return len(self.pixels) >= num_bytes and copied and sys.getrefcount(self.pixels) <= self._unshared


class _Begun(NamedTuple):
    """A batch that threads are filling."""

    ids: npt.NDArray[np.int64]
    """(1, B), or (2, B) with partners"""
    slot: _Slot
    pixels: npt.NDArray[np.uint8]
    """Of the slot, which this reference keeps from being free: (B or 2 B, S, S, 3), or the bytes of all copies."""
    views: device_crops.Views | None
    """What of the pictures is copied, to be resized on the device; None where threads resize."""
    tasks: list[Future[None]]


def _copied(
    tensors: tuple[torch.Tensor, ...], device: torch.device, stream: torch.cuda.Stream
) -> tuple[torch.Tensor, ...]:
    """Return copies of pinned tensors on a GPU, made beside its computations, which wait for them."""
    computing = torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        copies = tuple(tensor.to(device, non_blocking=True) for tensor in tensors)
    computing.wait_stream(stream)
    for copy in copies:
        copy.record_stream(computing)
    return copies


class _Workers:
    """Threads of an iteration, which end with it. They are daemons: a thread on a dead disk does not keep Python up.

    Args:
        photos: the split.
        size: side of the images in pixels; None to copy boxes as they are.
        view: returns an image without a box.
        count: number of threads.
    """

    def __init__(self, photos: Pictures, size: int | None, view: View, count: int) -> None:
        self.count = count
        self.last_image = time.monotonic()
        """When an image was finished last, by `time.monotonic`."""
        self._photos, self._size, self._view = photos, size, view
        self._tasks: SimpleQueue[tuple[list[Images], list[int], list[list[int] | None], Future[None]] | None] = (
            SimpleQueue()
        )
        self._begun: dict[int, tuple[float, int]] = {}  # by thread: since when it works on which image
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"photos {k}", daemon=True) for k in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, parts: list[Images], ids: list[int], boxes: list[list[int] | None]) -> Future[None]:
        """Return the task of filling arrays, (S, S, 3) or as large as its box, with the images of these ids.

        Args:
            parts: of a slot's memory, one for each image.
            ids: of the images.
            boxes: top, left, height and width of each crop; each None for the evaluation view.
        """
        task: Future[None] = Future()
        self._tasks.put((parts, ids, boxes, task))
        return task

    def oldest(self) -> int:
        """Return the id of the image that a thread has worked on for longest; 0 before any has begun."""
        return min([*self._begun.values()], default=(0.0, 0))[1]

    def stop(self) -> None:
        """Have all threads end after the image that they work on, and wait for them, not longer than `STOP_SECONDS`."""
        self._stopped.set()
        for _ in self._threads:
            self._tasks.put(None)
        end = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None and not self._stopped.is_set():
            parts, ids, boxes, task = item
            try:
                for part, index, box in zip(parts, ids, boxes, strict=True):
                    if self._stopped.is_set():
                        break
                    self._begun[threading.get_ident()] = time.monotonic(), index
                    self._fill(part, index, box)
                    self.last_image = time.monotonic()
            except BaseException as error:  # noqa: BLE001 - raised where the batch is waited for
                task.set_exception(error)
            else:
                task.set_result(None)
            self._begun[threading.get_ident()] = math.inf, index  # idle
            del item, parts, part, task  # a reference to a slot's memory would keep it from being used again

    def _fill(self, part: Images, index: int, box: list[int] | None) -> None:
        """Write an image into its place in the batch, (S, S, 3) uint8, or the pixels of its box as they are."""
        picture = self._photos.picture(index, box)
        if self._size is None:
            part[:] = picture
        elif box:
            crops.resized_crop(picture, self._size, into=part)
        else:
            part[:] = self._view(picture).permute(1, 2, 0).numpy()
