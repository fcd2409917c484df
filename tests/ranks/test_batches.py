"""How Accelerate cuts global batches for any number of ranks."""

import itertools

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import prepare_data_loader
from accelerate.state import PartialState
from batches import joined, numbered, shuffled
from ranks import run_ranks

from alexnet_dist.data import loader as loader_module
from alexnet_dist.data.sampler import GlobalBatches

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
    return loader_module.make_loader(*numbered(num_images), order, pin_memory=False)


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
    return run_ranks(load_all_cases, world_size=2)


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
    loader = make_accelerator().prepare(loader_module.make_loader(*numbered(40), order, pin_memory=False))
    for epoch, batch in ((0, 2), (0, 5), (1, 0), (2, 4)):
        order.set_position(epoch=epoch, batch=batch)
        assert ids_of(loader) == shuffled(40, 8, epoch=epoch, batch=batch)
