"""The loader: batches of images, labels and ids, copied from a split's arrays in the order of a sampler."""

from typing import Any, TypedDict

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
    """One rank's share of a global batch; partners are there where images are mixed."""

    partner_images: torch.Tensor
    """(B, 3, H, W) uint8"""
    partner_labels: torch.Tensor
    """(B,) int64"""
    partner_ids: torch.Tensor
    """(B,) int64"""


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


def make_loader(images: Images, labels: Labels, batches: GlobalBatches, *, pin_memory: bool) -> DataLoader[Batch]:
    """Return the loader of a split: a global batch of 512 images is a copy of 1.5 MB, so it needs no workers.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        batches: which images, in which order.
        pin_memory: hand out page-locked memory, for asynchronous copies to a GPU.
    """
    dataset = _IndexedSplit(images, labels)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_is, pin_memory=pin_memory)
