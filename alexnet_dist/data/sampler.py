"""GlobalBatches, the order of images: global batches as a function of (seed, epoch), the same at any world size.

Nothing here depends on ranks: Accelerate cuts each global batch into one piece per rank.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from alexnet_dist import rng

Index = int | list[int]
"""An image's id, or [its own, its partner's]."""


class GlobalBatches(Sampler[list[Index]]):
    """Sampler of an epoch's global batches: slices of a permutation that depends on (seed, epoch) alone.

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

    def set_position(self, *, epoch: int, batch: int = 0, end: int | None = None) -> None:
        """Set the batches of the next iteration, in constant time.

        Args:
            epoch: counted from 0.
            batch: number of the first batch.
            end: number of the last batch, plus 1; None for the last of the epoch.
        """
        self.epoch = epoch
        self.first_batch = batch
        self.end_batch = self.num_batches if end is None else end

    @property
    def num_batches(self) -> int:
        """Number of batches of a whole epoch."""
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def partner_table(self) -> npt.NDArray[np.int64] | None:
        """Return the id of each image's partner in this epoch, (N,) int64; None without partners."""
        if not self.partners or self.seed is None:
            return None
        return rng.generator(self.seed, "partners", self.epoch).permutation(self.num_images)

    def __len__(self) -> int:
        return self.end_batch - self.first_batch

    def __iter__(self) -> Iterator[list[Index]]:
        order = np.arange(self.num_images)
        if self.seed is not None:
            order = rng.generator(self.seed, "order", self.epoch).permutation(order)
        partner = self.partner_table()
        for batch in range(self.first_batch, self.end_batch):
            ids = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield (ids if partner is None else np.stack([ids, partner[ids]], axis=1)).tolist()
