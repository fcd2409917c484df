"""Loader of photographs: threads read, decode, crop and resize images into the memory of a batch, some batches ahead.

A batch's bytes depend on its ids and on the epoch's boxes alone, not on the number of threads or which of them is fast.
"""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist.data import crops
from alexnet_dist.data.crops import Boxes
from alexnet_dist.data.image_data import Images
from alexnet_dist.data.loader import Batch
from alexnet_dist.data.photographs import Photographs
from alexnet_dist.data.sampler import Index
from alexnet_dist.errors import UserError

IMAGES_PER_TASK = 8  # a task's own cost is 30 microseconds, an image's 150 and more
STOP_SECONDS = 2.0  # that an iterator which is closed waits for its threads: those on a dead disk never end


Waiting = Callable[[float, Callable[[], str]], bool]


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
        ahead: batches that are filled while one is used.
        waiting: called about once a second while a batch is waited for, with the seconds in which no image has come and
            what returns the file that is waited for. Where it returns True the iteration ends, as with what it raises.
        timeout_seconds: without any image, after which the disk counts as dead.

    Iterating raises:
        UserError: an image cannot be read or decoded, or does not come in time; the message names its file.
    """

    def __init__(
        self,
        photos: Photographs,
        batches: Collection[list[Index]],
        *,
        size: int,
        device: torch.device,
        threads: int,
        boxes: Callable[[int], Boxes | None],
        epoch: Callable[[], int],
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
        self.ahead = ahead
        self.waiting = waiting
        self.timeout_seconds = timeout_seconds

    def __len__(self) -> int:
        return len(self.batches)

    def __contains__(self, batch: object) -> bool:
        return any(batch is other for other in self)

    def __iter__(self) -> Iterator[Batch]:
        workers = _Workers(self.photos, self.boxes(self.epoch()), self.size, self.threads)
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        slots: list[_Slot] = []
        begun: deque[_Begun] = deque()
        try:
            for indices in self.batches:
                begun.append(_begin(indices, workers, slots, self.size, pinned=stream is not None))
                if len(begun) > self.ahead:
                    yield self._finished(begun.popleft(), workers, stream)
            while begun:
                yield self._finished(begun.popleft(), workers, stream)
        except _EndedError:
            return
        finally:
            workers.stop()

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
        images = torch.from_numpy(begun.pixels).view(*begun.ids.shape, self.size, self.size, 3)
        images = images.permute(0, 1, 4, 2, 3)  # (1 or 2, B, 3, S, S)
        if stream is not None:
            images, labels, ids = _copied((images, labels.pin_memory(), ids.pin_memory()), self.device, stream)
            begun.slot.copied = stream.record_event()
        batch: Batch = {"images": images[0], "labels": labels[0], "ids": ids[0]}
        if len(ids) > 1:
            batch |= {"partner_images": images[1], "partner_labels": labels[1], "partner_ids": ids[1]}
        return batch


class _EndedError(Exception):
    """Whoever asked for batches wants no more."""


class _Slot:
    """Memory of a batch's images, used again when no tensor of an earlier batch is left that shares it."""

    def __init__(self, count: int, size: int, *, pinned: bool) -> None:
        shape = (count, size, size, 3)
        self.pixels: Images = (
            torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy() if pinned else np.empty(shape, np.uint8)
        )
        self.copied: torch.cuda.Event | None = None
        """Of the copy to the GPU."""
        self._unshared = sys.getrefcount(self.pixels)

    def is_free(self, count: int) -> bool:
        """Return whether the memory may be overwritten with so many images: tensors of a batch refer to the array."""
        copied = self.copied is None or self.copied.query()  # type: ignore[no-untyped-call]
        return len(self.pixels) >= count and copied and sys.getrefcount(self.pixels) <= self._unshared


class _Begun(NamedTuple):
    """A batch that threads are filling."""

    ids: npt.NDArray[np.int64]
    """(1, B), or (2, B) with partners"""
    slot: _Slot
    pixels: Images
    """(B or 2 B, S, S, 3) of the slot, which this reference keeps from being free."""
    tasks: list[Future[None]]


def _begin(indices: list[Index], workers: "_Workers", slots: list[_Slot], size: int, *, pinned: bool) -> _Begun:
    """Return a batch whose images are being read into a free slot, or into a new one, which is added to `slots`."""
    ids = np.ascontiguousarray(np.array(indices, np.int64).reshape(len(indices), -1).T)
    slot = next((slot for slot in slots if slot.is_free(ids.size)), None)
    if slot is None:
        slots.append(slot := _Slot(ids.size, size, pinned=pinned))
    per_task = min(IMAGES_PER_TASK, math.ceil(ids.size / workers.count))
    flat, pixels = ids.ravel().tolist(), slot.pixels[: ids.size]
    parts = (slice(start, start + per_task) for start in range(0, ids.size, per_task))
    return _Begun(ids, slot, pixels, [workers.submit(pixels[part], flat[part]) for part in parts])


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
        boxes: (N, 4) of the epoch, by image id; None for the evaluation view.
        size: side of the images in pixels.
        count: number of threads.
    """

    def __init__(self, photos: Photographs, boxes: Boxes | None, size: int, count: int) -> None:
        self.count = count
        self.last_image = time.monotonic()
        """When an image was finished last, by `time.monotonic`."""
        self._photos, self._boxes, self._size = photos, boxes, size
        self._tasks: SimpleQueue[tuple[Images, list[int], Future[None]] | None] = SimpleQueue()
        self._begun: dict[int, tuple[float, int]] = {}  # by thread: since when it works on which image
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"photos {k}", daemon=True) for k in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, pixels: Images, ids: list[int]) -> Future[None]:
        """Return the task of filling `pixels`, (K, S, S, 3) uint8, with the images of K ids."""
        task: Future[None] = Future()
        self._tasks.put((pixels, ids, task))
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
            pixels, ids, task = item
            try:
                for row, index in enumerate(ids):
                    if self._stopped.is_set():
                        break
                    self._begun[threading.get_ident()] = time.monotonic(), index
                    pixels[row] = self._image(index)
                    self.last_image = time.monotonic()
            except BaseException as error:  # noqa: BLE001 - raised where the batch is waited for
                task.set_exception(error)
            else:
                task.set_result(None)
            self._begun[threading.get_ident()] = math.inf, index  # idle
            del item, pixels, task  # a reference to a slot's memory would keep it from being used again

    def _image(self, index: int) -> Images:
        """Return an image as it goes into its batch, (S, S, 3) uint8."""
        picture = self._photos.picture(index)
        if self._boxes is None:
            view = crops.evaluation_view(picture, self._size)
        else:
            view = crops.resized_crop(picture, self._boxes[index], self._size)
        return view.permute(1, 2, 0).numpy()
