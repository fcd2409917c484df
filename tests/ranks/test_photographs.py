"""Photographs on several ranks: the same ids, crops and bytes in each global batch as on one."""

import hashlib
import itertools

from batches import joined
from photos import photo_folder
from ranks import run_ranks

from alexnet_dist.commands import train_setup
from alexnet_dist.config import parse
from alexnet_dist.data import load
from alexnet_dist.distributed import accelerator as processes

TRAIN, TEST, BATCH = 52, 37, 12
EPOCHS = (0, 1, 3)
CASES = {
    "pixels": ["--data.store", "pixels"],
    "encoded, mixed": ["--data.store", "encoded", "--data.mixup", "0.2"],
}


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


def see_all(folder, cache):
    """On each rank, for each case: what it sees in some epochs, the last from its middle, and twice in evaluation."""
    places = ["--data.dataset", folder, "--data.cache-dir", cache, "--data.threads", "2", "--runtime.cpu"]
    sizes = ["--data.batch-size", str(BATCH), "--data.image-size", "64", "--data.stored-size", "72"]
    accelerator, _ = processes.make_accelerator(parse([*places, *sizes]))
    found = {}
    for case, flags in CASES.items():
        config = parse([*places, *sizes, "--seed", "3", *flags])
        loaders = train_setup.make_loaders(config, load(config.data), accelerator, lambda *_: False)
        for epoch in EPOCHS:
            loaders.order.set_position(epoch=epoch, batch=2 if epoch == EPOCHS[-1] else 0)
            found[case, epoch] = [see(batch, loaders.train, epoch) for batch in loaders.train]
        for turn in ("evaluation", "evaluation again"):
            found[case, turn] = [see(batch, loaders.test, 0) for batch in loaders.test]
    accelerator.end_training()
    return found


def test_ranks_share_each_batch_of_photographs_of_one(tmp_path):
    folder = str(photo_folder(tmp_path / "photos", train=TRAIN, test=TEST, sides=(60, 110)))
    of_world = {size: run_ranks(see_all, folder, str(tmp_path / "cache"), world_size=size) for size in (1, 2, 3)}
    (whole,) = of_world[1]
    for world_size, ranks in of_world.items():
        for key, batches in whole.items():
            parts = itertools.zip_longest(*(found[key] for found in ranks), fillvalue=[])
            assert [joined(part) for part in parts] == batches, (world_size, key)
    for case, flags in CASES.items():
        assert [len(batch) for batch in whole[case, 0]] == [BATCH] * 4
        assert [len(batch) for batch in whole[case, 3]] == [BATCH] * 2, "from mid-epoch"
        assert {len(image) for image in joined(whole[case, 0])} == {2 if "--data.mixup" in flags else 1}, "partners"
        for turn in ("evaluation", "evaluation again"):
            assert [len(batch) for batch in whole[case, turn]] == [12, 12, 12, 1]
            assert [own[0] for own, *_ in joined(whole[case, turn])] == list(range(TEST)), "each image once"
        first, second = ({own[0]: own for own, *_ in joined(whole[case, epoch])} for epoch in (0, 1))
        again = first.keys() & second.keys()
        assert all(first[image][2:] != second[image][2:] for image in again), "an epoch has crops of its own"
