"""Loader: batches of images, labels and ids, copied from a split's arrays in the order of a sampler."""

from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from alexnet_dist.data.image_data import Images, Labels
from alexnet_dist.data.sampler import GlobalBatches, Index


class _Images(TypedDict):
    images: torch.Tensor
    """(B, 3, H, W) uint8"""
    labels: torch.Tensor
    """(B,) int64"""
    ids: torch.Tensor
    """(B,) int64: positions in the split, the same for every world size"""


class Batch(_Images, total=False):
    """One rank's share of a global batch; the keys of partners are present where images are mixed."""

    partner_images: torch.Tensor
    """(B, 3, H, W) uint8"""
    partner_labels: torch.Tensor
    """(B,) int64"""
    partner_ids: torch.Tensor
    """(B,) int64"""


def gather(images: Images, labels: Labels, indices: list[Index]) -> Batch:
    """Return the batch of some indices: one indexed copy of the images, and one of their partners, if any."""
    ids, *partner_ids = np.array(indices).reshape(len(indices), -1).T

    def chosen(of: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.from_numpy(images[of]), torch.from_numpy(labels[of]), torch.from_numpy(of.copy())

    its_images, its_labels, its_ids = chosen(ids)
    batch: Batch = {"images": its_images, "labels": its_labels, "ids": its_ids}
    if partner_ids:
        batch["partner_images"], batch["partner_labels"], batch["partner_ids"] = chosen(partner_ids[0])
    return batch


class _IndexedSplit(Dataset[Batch]):
    """Data set that returns a whole batch at once: DataLoader prefers `__getitems__` to `__getitem__`."""

    def __init__(self, images: Images, labels: Labels) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[Index]) -> Batch:
        return gather(self.images, self.labels, indices)


def make_loader(images: Images, labels: Labels, batches: GlobalBatches, *, pin_memory: bool) -> DataLoader[Batch]:
    """Return the loader of a split, without workers: a global batch of 512 small images is a copy of 1.5 MB.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        batches: the sampler.
        pin_memory: whether batches are in page-locked memory, for asynchronous copies to a GPU.
    """
    dataset = _IndexedSplit(images, labels)  # returns whole batches, which are not collated
    return DataLoader(dataset, batch_sampler=batches, collate_fn=lambda batch: batch, pin_memory=pin_memory)
