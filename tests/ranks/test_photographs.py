"""Photographs on several ranks: the same ids, crops and bytes in each global batch as on one."""

import hashlib
import itertools

import pytest
import torch
from batches import joined
from photos import photo_folder
from ranks import run_ranks

from alexnet_dist.commands import train_setup
from alexnet_dist.config import parse
from alexnet_dist.data import load
from alexnet_dist.distributed import accelerator as processes

TRAIN, TEST, BATCH = 52, 37, 12
EPOCHS = (0, 1, 3)


def see(batch, loader, epoch):
    """Return each image of a batch as (id, label, box, SHA-256 of its bytes, the same of its partner)."""
    boxes = loader.boxes(epoch)
    rows = []
    for prefix in ("", "partner_") if "partner_ids" in batch else ("",):
        ids, labels, images = (batch[f"{prefix}{key}"] for key in ("ids", "labels", "images"))
        of_ids = [None] * len(ids) if boxes is None else boxes[ids.numpy()].tolist()
        digests = [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images]
        rows.append(zip(ids.tolist(), labels.tolist(), of_ids, digests, strict=True))
    return list(zip(*rows, strict=True))


def see_all(folder, cache, store, flags):
    """On each rank: what it sees in some epochs, from mid-epoch in the last of them, and twice in evaluation."""
    places = ["--data.dataset", folder, "--data.cache-dir", cache, "--data.store", store, "--data.threads", "2"]
    sizes = ["--data.batch-size", str(BATCH), "--data.image-size", "64", "--data.stored-size", "72"]
    config = parse([*places, *sizes, "--runtime.cpu", "--seed", "3", *flags])
    accelerator, _ = processes.make_accelerator(config)
    loaders = train_setup.make_loaders(config, load(config.data), accelerator, lambda: None)
    found = {}
    for epoch in EPOCHS:
        loaders.order.set_position(epoch=epoch, batch=2 if epoch == EPOCHS[-1] else 0)
        found[epoch] = [see(batch, loaders.train, epoch) for batch in loaders.train]
    for turn in ("evaluation", "evaluation again"):
        found[turn] = [see(batch, loaders.test, 0) for batch in loaders.test]
    accelerator.end_training()
    return found


@pytest.mark.parametrize(
    ("store", "flags"), [("pixels", []), ("encoded", ["--data.mixup", "0.2"])], ids=["pixels", "encoded, mixed"]
)
def test_ranks_share_each_batch_of_photographs_of_one(tmp_path, store, flags):
    folder = str(photo_folder(tmp_path / "photos", train=TRAIN, test=TEST, sides=(60, 110)))
    of_world = {
        world_size: run_ranks(see_all, folder, str(tmp_path / "cache"), store, flags, world_size=world_size)
        for world_size in (1, 2, 3)
    }
    (whole,) = of_world[1]
    for world_size, ranks in of_world.items():
        for case, batches in whole.items():
            parts = itertools.zip_longest(*(found[case] for found in ranks), fillvalue=[])
            assert [joined(part) for part in parts] == batches, (world_size, case)
    assert [len(batch) for batch in whole[0]] == [BATCH] * 4
    assert [len(batch) for batch in whole[3]] == [BATCH] * 2, "from mid-epoch"
    assert [len(batch) for batch in whole["evaluation"]] == [12, 12, 12, 1]
    for turn in ("evaluation", "evaluation again"):
        assert [image[0] for (image, *_) in joined(whole[turn])] == list(range(TEST)), "each image once"
    seen = [{image[0]: image for (image, *_) in joined(whole[epoch])} for epoch in EPOCHS[:2]]
    again = [image for image in seen[0] if image in seen[1]]
    assert all(seen[0][image][2:] != seen[1][image][2:] for image in again), "an epoch has crops of its own"
    assert torch.tensor([len(image) for image in joined(whole[0])]).eq(1 + bool(flags)).all()
