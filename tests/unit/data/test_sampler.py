"""The order of images, the loader, and how Accelerate cuts its batches for any number of ranks."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import prepare_data_loader
from accelerate.state import PartialState
from ranks import run_ranks

from alexnet_dist.data import loader as loader_module
from alexnet_dist.data.sampler import GlobalBatches


def shuffled(num_images, batch_size, *, seed=0, epoch=0, batch=0):
    order = GlobalBatches(num_images, batch_size, seed=seed, drop_last=True)
    order.set_position(epoch=epoch, batch=batch)
    return list(order)


def joined(parts):
    return list(itertools.chain.from_iterable(parts))


def numbered(num_images):
    """Return images, each of which holds its own position, and labels that follow from it."""
    ids = np.arange(num_images)
    images = np.empty((num_images, 3, 2, 2), np.uint8)
    images[:] = (ids % 256)[:, None, None, None]
    images[:, 1] = (ids // 256)[:, None, None]
    return images, (ids * 7 % 10).astype(np.int64)


# ---- partners -------------------------------------------------------------------------------------------------------


def paired(epoch=0, batch=0, num_images=48):
    order = GlobalBatches(num_images, 8, seed=5, drop_last=True, partners=True)
    order.set_position(epoch=epoch, batch=batch)
    return list(order)


def test_partners_are_another_permutation_and_leave_the_order_alone():
    pairs = joined(paired())
    assert [first for first, _ in pairs] == joined(shuffled(48, 8, seed=5))
    assert sorted(second for _, second in pairs) == list(range(48)), "each image is a partner once"
    assert dict(pairs) != dict(joined(paired(epoch=1)))
    assert paired(epoch=1, batch=4) == paired(epoch=1)[4:], "a start in mid-epoch is the tail of the whole"


def test_loader_hands_out_partners_with_their_labels():
    images, labels = numbered(48)
    order = GlobalBatches(48, 8, seed=5, drop_last=True, partners=True)
    for batch, pairs in zip(loader_module.loader(images, labels, order, pin_memory=False), paired(), strict=True):
        assert batch["ids"].tolist() == [first for first, _ in pairs]
        assert batch["partner_ids"].tolist() == [second for _, second in pairs]
        for prefix in ("", "partner_"):
            ids = batch[f"{prefix}ids"].numpy()
            assert np.array_equal(batch[f"{prefix}images"].numpy(), images[ids])
            assert np.array_equal(batch[f"{prefix}labels"].numpy(), labels[ids])


# ---- the order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_images", "batch_size"), [(24, 8), (23, 8), (8, 8), (9, 8), (5, 1), (1797, 64)])
def test_an_epoch_holds_each_image_at_most_once_in_full_batches(num_images, batch_size):
    epoch = shuffled(num_images, batch_size)
    assert [len(batch) for batch in epoch] == [batch_size] * (num_images // batch_size)
    ids = joined(epoch)
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(range(num_images))
    assert all(type(index) is int for index in ids)


def test_without_a_remainder_every_image_is_seen():
    assert sorted(joined(shuffled(48, 8))) == list(range(48))


def test_what_is_dropped_changes_from_epoch_to_epoch():
    seen = [set(joined(shuffled(23, 8, epoch=epoch))) for epoch in range(20)]
    assert set().union(*seen) == set(range(23))
    assert set.intersection(*seen) != set(range(23))
    assert len({frozenset(ids) for ids in seen}) > 1


def test_order_depends_on_seed_and_epoch_alone():
    order = GlobalBatches(100, 10, seed=3, drop_last=True)
    order.set_position(epoch=5)
    first = list(order)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    order.set_position(epoch=6)
    next(iter(order))
    order.set_position(epoch=5)
    assert list(order) == first == shuffled(100, 10, seed=3, epoch=5)


def test_batch_size_cuts_the_same_permutation():
    assert joined(shuffled(96, 8)) == joined(shuffled(96, 32))


def test_every_seed_and_epoch_has_an_order_of_its_own():
    """Also those whose sum is equal: seed 1 in epoch 0 must not be seed 0 in epoch 1."""
    orders = {
        (seed, epoch): tuple(joined(shuffled(64, 8, seed=seed, epoch=epoch))) for seed in range(6) for epoch in range(6)
    }
    assert len(set(orders.values())) == 36
    assert tuple(range(64)) not in orders.values()


def test_shuffling_is_even():
    """Each image comes first about equally often: chi-squared over 2,000 epochs, far from its 1e-9 quantile."""
    firsts = np.bincount([shuffled(10, 1, epoch=epoch)[0][0] for epoch in range(2000)], minlength=10)
    assert ((firsts - 200) ** 2 / 200).sum() < 60


def test_a_start_in_mid_epoch_is_the_tail_of_the_whole():
    whole = shuffled(70, 8, seed=4, epoch=2)
    assert len(whole) == 8
    for batch in range(9):
        order = GlobalBatches(70, 8, seed=4, drop_last=True)
        order.set_position(epoch=2, batch=batch)
        assert len(order) == 8 - batch
        assert order.num_batches == 8
        assert list(order) == whole[batch:]


def test_the_next_epoch_starts_at_its_beginning_again():
    order = GlobalBatches(40, 8, seed=0, drop_last=True)
    order.set_position(epoch=0, batch=3)
    assert list(order) == shuffled(40, 8)[3:]
    order.set_position(epoch=1)
    assert list(order) == shuffled(40, 8, epoch=1)


@pytest.mark.parametrize(("num_images", "sizes"), [(24, [8, 8, 8]), (23, [8, 8, 7]), (17, [8, 8, 1]), (3, [3])])
def test_evaluation_sees_every_image_once_in_stored_order(num_images, sizes):
    order = GlobalBatches(num_images, 8, seed=None, drop_last=False)
    found = list(order)
    assert [len(batch) for batch in found] == sizes
    assert joined(found) == list(range(num_images))
    assert len(order) == order.num_batches == len(sizes)
    assert list(order) == found, "a second evaluation is the same"


# ---- the loader -----------------------------------------------------------------------------------------------------


def test_loader_hands_out_whole_batches_that_belong_together():
    images, labels = numbered(600)
    order = GlobalBatches(600, 64, seed=1, drop_last=True)
    found = list(loader_module.loader(images, labels, order, pin_memory=False))
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
    loader = loader_module.loader(images, labels, order, pin_memory=False)
    assert len(list(loader)) == 4
    assert images.indices == labels.indices == list(order)


def test_batches_are_copies_of_a_read_only_mapping(tmp_path):
    """Who changes a batch changes neither the cache nor the next epoch; torch warns of what cannot be written."""
    images, labels = numbered(16)
    for name, array in (("images", images), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("images", "labels")]
    loader = loader_module.loader(*mapped, GlobalBatches(16, 16, seed=None, drop_last=False), pin_memory=False)
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
    loader = loader_module.loader(*numbered(40), order, pin_memory=False)
    for epoch, batch in ((0, 0), (1, 0), (1, 3), (2, 5), (0, 0)):
        order.set_position(epoch=epoch, batch=batch)
        assert [found["ids"].tolist() for found in loader] == shuffled(40, 8, epoch=epoch, batch=batch)


# ---- shares of the ranks --------------------------------------------------------------------------------------------

# name: images, global batch, seed (None: evaluation), epoch, first batch
CASES = {
    "training": (53, 8, 0, 0, 0),
    "second epoch": (53, 8, 0, 1, 0),
    "from mid-epoch": (53, 8, 5, 3, 4),
    "from the end of an epoch": (53, 8, 0, 0, 6),
    "evaluation": (48, 8, None, 0, 0),
    "evaluation, indivisible": (53, 8, None, 0, 0),
    "evaluation, one image over": (49, 8, None, 0, 0),
    "evaluation, less than a batch": (3, 8, None, 0, 0),
}


def make_loader(case):
    num_images, batch_size, seed, epoch, first_batch = CASES[case]
    order = GlobalBatches(num_images, batch_size, seed=seed, drop_last=seed is not None)
    order.set_position(epoch=epoch, batch=first_batch)
    return loader_module.loader(*numbered(num_images), order, pin_memory=False)


def ids_of(loader):
    return [batch["ids"].tolist() for batch in loader]


def make_accelerator():
    configuration = DataLoaderConfiguration(split_batches=True, even_batches=False, dispatch_batches=False)
    return Accelerator(cpu=True, dataloader_config=configuration)


def assert_is_whole(shares, case):
    """Batch k of all ranks, one after another, is batch k of a single process; in training with equal shares."""
    whole = ids_of(make_loader(case))
    assert [joined(parts) for parts in itertools.zip_longest(*shares, fillvalue=[])] == whole
    num_images, batch_size, seed, _, _ = CASES[case]
    if seed is not None:
        assert {len(batch) for share in shares for batch in share} <= {batch_size // len(shares)}
    else:
        assert sorted(joined(joined(shares))) == list(range(num_images))


def load_all_cases():
    """On each rank: the ids of every case, twice over, and whether each batch's images belong to its ids."""
    accelerator = make_accelerator()
    found = {}
    for case in CASES:
        loader = accelerator.prepare(make_loader(case))
        taken = list(loader)
        assert all(torch.equal(batch["images"][:, 0, 0, 0].long(), batch["ids"] % 256) for batch in taken)
        assert all(torch.equal(batch["labels"], batch["ids"] * 7 % 10) for batch in taken)
        found[case] = [batch["ids"].tolist() for batch in taken]
        assert ids_of(loader) == found[case], "the loader can be used again"
    accelerator.end_training()
    return accelerator.num_processes, found


@pytest.fixture(scope="module")
def two_ranks():
    """What two real processes were handed out."""
    return run_ranks(load_all_cases, world_size=2, deadline=120)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_share_each_batch_of_one(two_ranks, case):
    assert [num_processes for num_processes, _ in two_ranks] == [2, 2]
    assert_is_whole([found[case] for _, found in two_ranks], case)


@pytest.mark.parametrize("case", CASES)
def test_one_rank_gets_the_batches_as_they_are(case):
    assert ids_of(make_accelerator().prepare(make_loader(case))) == ids_of(make_loader(case))


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_share_each_batch_of_one(world_size, case):
    """The same cut, made here for every rank in turn."""
    PartialState(cpu=True)
    shares = [
        ids_of(
            prepare_data_loader(
                make_loader(case),
                num_processes=world_size,
                process_index=rank,
                split_batches=True,
                even_batches=False,
                dispatch_batches=False,
            )
        )
        for rank in range(world_size)
    ]
    assert_is_whole(shares, case)


def test_the_cases_test_what_they_should():
    sizes = {case: [len(ids) for ids in ids_of(make_loader(case))] for case in CASES}
    assert sizes["from the end of an epoch"] == []
    assert sizes["from mid-epoch"] == [8, 8]
    assert sizes["training"] == [8] * 6
    assert sizes["evaluation, indivisible"][-1] == 5, "one rank of two gets more, some of eight get none"
    assert sizes["evaluation, one image over"][-1] == 1


def test_a_prepared_loader_follows_its_order_through_the_epochs():
    order = GlobalBatches(40, 8, seed=0, drop_last=True)
    loader = make_accelerator().prepare(loader_module.loader(*numbered(40), order, pin_memory=False))
    for epoch, batch in ((0, 2), (0, 5), (1, 0), (2, 4)):
        order.set_position(epoch=epoch, batch=batch)
        assert ids_of(loader) == shuffled(40, 8, epoch=epoch, batch=batch)
