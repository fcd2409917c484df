"""The order in which a run sees its images, and the loader that hands them out a batch at a time.

Knows nothing about processes: Accelerate cuts the global batches made here into one piece per rank.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from alexnet_dist import seeds
from alexnet_dist.imagedata import Images, Labels


class _Images(TypedDict):
    images: torch.Tensor
    """(B, 3, H, W) uint8"""
    labels: torch.Tensor
    """(B,) int64"""
    ids: torch.Tensor
    """(B,) int64: positions in the split, the same for every world size"""


class Batch(_Images, total=False):
    """One rank's share of a global batch; partners are there where images are mixed."""

    partner_images: torch.Tensor
    """(B, 3, H, W) uint8"""
    partner_labels: torch.Tensor
    """(B,) int64"""
    partner_ids: torch.Tensor
    """(B,) int64"""


Index = int | list[int]
"""An image's id, or [its own, its partner's]."""


class GlobalBatches(Sampler[list[Index]]):
    """The global batches of an epoch: a slice each of a permutation that depends on (seed, epoch) alone.

    Accelerate cuts each batch into one piece per rank (`split_batches`), so the batches are the same at any world size.

    Args:
        num_images: size of the split.
        batch_size: the global batch.
        seed: shuffles by (seed, epoch); None keeps the stored order.
        drop_last: leave out the last, smaller batch.
        partners: give each image a partner to be mixed with, by another permutation of (seed, epoch).
    """

    def __init__(
        self, num_images: int, batch_size: int, *, seed: int | None, drop_last: bool, partners: bool = False
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.partners = partners
        self.set_position(epoch=0)

    def set_position(self, *, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at a batch of an epoch; costs the same wherever that is."""
        self.epoch = epoch
        self.first_batch = batch

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def partner_table(self) -> npt.NDArray[np.int64] | None:
        """Return each image's partner in this epoch, (N,) int64; None where there are none."""
        if not self.partners or self.seed is None:
            return None
        return seeds.generator(self.seed, "partners", self.epoch).permutation(self.num_images)

    def __len__(self) -> int:
        return self.num_batches - self.first_batch

    def __iter__(self) -> Iterator[list[Index]]:
        order = np.arange(self.num_images)
        if self.seed is not None:
            order = seeds.generator(self.seed, "order", self.epoch).permutation(order)
        partner = self.partner_table()
        for batch in range(self.first_batch, self.num_batches):
            ids = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield (ids if partner is None else np.stack([ids, partner[ids]], axis=1)).tolist()


def gather(images: Images, labels: Labels, indices: list[Index]) -> Batch:
    """Copy the images that are meant, and their partners, by one indexed copy each."""
    ids, *partner_ids = np.array(indices).reshape(len(indices), -1).T

    def chosen(of: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.from_numpy(images[of]), torch.from_numpy(labels[of]), torch.from_numpy(of.copy())

    its_images, its_labels, its_ids = chosen(ids)
    batch: Batch = {"images": its_images, "labels": its_labels, "ids": its_ids}
    if partner_ids:
        batch["partner_images"], batch["partner_labels"], batch["partner_ids"] = chosen(partner_ids[0])
    return batch


class _IndexedSplit(Dataset[Batch]):
    """Gives a whole batch at once; DataLoader calls `__getitems__` where it exists."""

    def __init__(self, images: Images, labels: Labels) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[Index]) -> Batch:
        return gather(self.images, self.labels, indices)


def _as_is(batch: Any) -> Any:  # noqa: ANN401 - typed as if it got a list of samples; `__getitems__` gave a batch
    return batch


def loader(images: Images, labels: Labels, batches: GlobalBatches, *, pin_memory: bool) -> DataLoader[Batch]:
    """Return the loader of a split: a global batch of 512 images is a copy of 1.5 MB, so it needs no workers.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        batches: which images, in which order.
        pin_memory: hand out page-locked memory, for asynchronous copies to a GPU.
    """
    dataset = _IndexedSplit(images, labels)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_is, pin_memory=pin_memory)
