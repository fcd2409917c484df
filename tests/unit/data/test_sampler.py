"""The order of images: a permutation of the seed and the epoch, cut into global batches."""

import numpy as np
import pytest
import torch
from batches import joined, paired, shuffled

from alexnet_dist.data.sampler import GlobalBatches

# ---- partners -------------------------------------------------------------------------------------------------------


def test_partners_are_another_permutation_and_leave_the_order_alone():
    pairs = joined(paired())
    assert [first for first, _ in pairs] == joined(shuffled(48, 8, seed=5))
    assert sorted(second for _, second in pairs) == list(range(48)), "each image is a partner once"
    assert dict(pairs) != dict(joined(paired(epoch=1)))
    assert paired(epoch=1, batch=4) == paired(epoch=1)[4:], "a start in mid-epoch is the tail of the whole"


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
