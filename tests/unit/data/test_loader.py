"""The loader: whole batches that belong together, copied once."""

import warnings

import numpy as np
import torch
from batches import numbered, paired, shuffled

from alexnet_dist.data import loader as loader_module
from alexnet_dist.data.sampler import GlobalBatches

# ---- partners -------------------------------------------------------------------------------------------------------


def test_loader_hands_out_partners_with_their_labels():
    images, labels = numbered(48)
    order = GlobalBatches(48, 8, seed=5, drop_last=True, partners=True)
    for batch, pairs in zip(loader_module.make_loader(images, labels, order, pin_memory=False), paired(), strict=True):
        assert batch["ids"].tolist() == [first for first, _ in pairs]
        assert batch["partner_ids"].tolist() == [second for _, second in pairs]
        for prefix in ("", "partner_"):
            ids = batch[f"{prefix}ids"].numpy()
            assert np.array_equal(batch[f"{prefix}images"].numpy(), images[ids])
            assert np.array_equal(batch[f"{prefix}labels"].numpy(), labels[ids])


# ---- the loader -----------------------------------------------------------------------------------------------------


def test_loader_hands_out_whole_batches_that_belong_together():
    images, labels = numbered(600)
    order = GlobalBatches(600, 64, seed=1, drop_last=True)
    found = list(loader_module.make_loader(images, labels, order, pin_memory=False))
    assert [batch["ids"].tolist() for batch in found] == shuffled(600, 64, seed=1)
    for batch in found:
        assert type(batch) is dict
        assert set(batch) == {"images", "labels", "ids"}
        assert batch["images"].shape == (64, 3, 2, 2)
        assert batch["images"].dtype == torch.uint8
        assert batch["labels"].shape == batch["ids"].shape == (64,)
        assert batch["labels"].dtype == batch["ids"].dtype == torch.int64
        assert torch.equal(batch["images"][:, 0, 0, 0].long() + 256 * batch["images"][:, 1, 0, 0].long(), batch["ids"])
        assert torch.equal(batch["images"][:, 2], (batch["ids"] % 256).to(torch.uint8)[:, None, None].expand(-1, 2, 2))
        assert torch.equal(batch["labels"], batch["ids"] * 7 % 10)


class Counted:
    """An array that records how it is indexed."""

    def __init__(self, array):
        self.array = array
        self.indices = []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        self.indices.append(np.asarray(index).tolist())
        return self.array[index]


def test_a_batch_is_one_indexed_copy():
    images, labels = map(Counted, numbered(30))
    order = GlobalBatches(30, 8, seed=2, drop_last=False)
    loader = loader_module.make_loader(images, labels, order, pin_memory=False)
    assert len(list(loader)) == 4
    assert images.indices == labels.indices == list(order)


def test_batches_are_copies_of_a_read_only_mapping(tmp_path):
    """Who changes a batch changes neither the cache nor the next epoch; torch warns of what cannot be written."""
    images, labels = numbered(16)
    for name, array in (("images", images), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("images", "labels")]
    loader = loader_module.make_loader(*mapped, GlobalBatches(16, 16, seed=None, drop_last=False), pin_memory=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,) = loader
        batch["images"].zero_()
        batch["labels"].zero_()
        (batch,) = loader
    np.testing.assert_array_equal(batch["images"].numpy(), images)
    np.testing.assert_array_equal(batch["labels"].numpy(), labels)


def test_one_loader_serves_all_epochs():
    order = GlobalBatches(40, 8, seed=0, drop_last=True)
    loader = loader_module.make_loader(*numbered(40), order, pin_memory=False)
    for epoch, batch in ((0, 0), (1, 0), (1, 3), (2, 5), (0, 0)):
        order.set_position(epoch=epoch, batch=batch)
        assert [found["ids"].tolist() for found in loader] == shuffled(40, 8, epoch=epoch, batch=batch)
