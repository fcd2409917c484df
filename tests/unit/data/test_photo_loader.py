"""Loader of photographs: torchvision's pixels in the given order, by any number of threads; slow and dead disks."""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import InFiles, InMemory, encoded
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from alexnet_dist.data import GlobalBatches, crops, photo_loader
from alexnet_dist.data.photo_loader import PhotoLoader
from alexnet_dist.data.photographs import prepare
from alexnet_dist.errors import UserError

SIZE = 16
COUNT = 50
STORES = ["pixels", "encoded"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    sides = np.random.default_rng(0).integers(12, 60, (COUNT, 2)).tolist()
    images = InMemory([encoded(*side, seed=k) for k, side in enumerate(sides)])
    made = {
        store: prepare(images, None, ("a", "b"), folder / store, store=store, stored_size=32, threads=2).train
        for store in STORES
    }
    yield made
    for photos in made.values():
        assert photos.folder.exists()


def loader(photos, batches, *, augment=False, **options):
    settings = {"size": SIZE, "device": CPU, "threads": 2, "epoch": lambda: 0, "timeout_seconds": 60.0}
    return PhotoLoader(photos, batches, boxes=boxes_of(photos) if augment else lambda _: None, **settings | options)


def boxes_of(photos):
    return lambda epoch: crops.boxes(0, epoch, photos.heights, photos.widths, (0.08, 1.0))


def as_tensor(picture):
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


# ---- what a batch holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_evaluation_images_are_those_of_torchvision_each_once(stores, store):
    photos = stores[store]
    in_turn = GlobalBatches(COUNT, 8, seed=None, drop_last=False)
    theirs_of = v2.Compose([v2.Resize(round(SIZE * 256 / 224), antialias=True), v2.CenterCrop(SIZE)])
    seen = []
    for batch in loader(photos, in_turn):
        assert batch.keys() == {"images", "labels", "ids"}
        for image, label, index in zip(batch["images"], batch["labels"].tolist(), batch["ids"].tolist(), strict=True):
            assert torch.equal(image, theirs_of(as_tensor(photos.picture(index))))
            assert label == photos.labels[index]
            seen.append(index)
    assert seen == list(range(COUNT))


@pytest.mark.parametrize("store", STORES)
def test_training_images_are_the_boxes_of_their_epoch_resized_by_torchvision(stores, store):
    photos = stores[store]
    order = GlobalBatches(COUNT, 8, seed=3, drop_last=True, partners=True)
    order.set_position(epoch=2, batch=1)
    table = boxes_of(photos)(2)
    given = [np.array(indices) for indices in order]
    batches = list(loader(photos, order, augment=True, epoch=lambda: order.epoch))
    assert len(batches) == len(given) == 5
    for indices, batch in zip(given, batches, strict=True):
        for column, prefix in enumerate(("", "partner_")):
            assert batch[f"{prefix}ids"].tolist() == indices[:, column].tolist()
            assert batch[f"{prefix}labels"].tolist() == photos.labels[indices[:, column]].tolist()
            for image, index in zip(batch[f"{prefix}images"], indices[:, column], strict=True):
                box = table[index].tolist()
                theirs = functional.resized_crop(as_tensor(photos.picture(index)), *box, [SIZE, SIZE], antialias=True)
                assert torch.equal(image, theirs)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("ahead", [1, 2, 5, 100])
def test_threads_change_nothing(stores, store, ahead):
    order = GlobalBatches(COUNT, 12, seed=0, drop_last=False, partners=True)
    one = list(loader(stores[store], order, augment=True, threads=1))
    for threads in (2, 3, 16):
        many = list(loader(stores[store], order, augment=True, threads=threads, ahead=ahead))
        assert len(many) == 5
        for a, b in zip(one, many, strict=True):
            assert_same(a, b)


def test_a_part_of_a_split_has_ids_of_its_own(stores):
    part = stores["pixels"].take(np.array([40, 3, 7]))
    (batch,) = loader(part, [[2, 0]])
    assert batch["ids"].tolist() == [2, 0]
    assert torch.equal(batch["images"][1], crops.evaluation_view(stores["pixels"].picture(40), SIZE))


def test_it_is_as_long_as_its_sampler(stores):
    order = GlobalBatches(COUNT, 8, seed=0, drop_last=True)
    batches = loader(stores["pixels"], order)
    assert len(batches) == 6
    order.set_position(epoch=0, batch=4)
    assert len(batches) == len(list(batches)) == 2


def test_images_are_in_the_layout_that_the_first_layer_reads(stores):
    (batch,) = loader(stores["pixels"], [[0, 1, 2]])
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].shape == (3, 3, SIZE, SIZE)
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)


# ---- crops that the device resizes: here the CPU is the device -------------------------------------------------------


def on_device(photos, batches, **options):
    made = loader(photos, batches, **options)
    assert not made.resizes_on_device, "a CPU's threads resize"
    made.resizes_on_device = True
    return made


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("partners", [True, False])
@pytest.mark.skipif(not crops.UINT8_KERNEL, reason="this CPU resizes in float32")
def test_images_resized_on_the_device_are_those_of_the_threads(stores, augment, partners):
    order = GlobalBatches(COUNT, 12, seed=0, drop_last=False, partners=partners)
    expected = list(loader(stores["pixels"], order, augment=augment))
    found = list(on_device(stores["pixels"], order, augment=augment))
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
        assert one["images"].is_contiguous(memory_format=torch.channels_last)


def test_for_the_device_only_the_pixels_of_a_crop_are_copied(stores, monkeypatch):
    monkeypatch.setattr(crops, "_resized", None)
    photos, taken, picture = stores["pixels"], [], type(stores["pixels"]).picture
    monkeypatch.setattr(type(photos), "picture", lambda self, k, box: taken.append(box) or picture(self, k, box))
    (batch,) = on_device(photos, [[3, 4]], augment=True, threads=1)
    assert batch["ids"].tolist() == [3, 4]
    assert taken == boxes_of(photos)(0)[3:5].tolist()


def test_memory_of_copies_is_used_again_and_grows_with_them(stores, monkeypatch):
    made = count_slots(monkeypatch)
    areas = stores["pixels"].heights * stores["pixels"].widths
    rising = [[index] for index in np.argsort(areas).tolist()]
    for batch in on_device(stores["pixels"], rising * 2, augment=False):
        assert len(batch["ids"]) == 1
    assert len(made) < 40
    made.clear()
    for _ in on_device(stores["pixels"], rising[::-1], augment=False):
        time.sleep(0.002)
    assert len(made) <= 5


@pytest.mark.parametrize(
    ("store", "kernel", "expected"), [("pixels", True, True), ("encoded", True, False), ("pixels", False, False)]
)
def test_a_gpu_resizes_stored_pixels_where_the_cpu_would_give_the_same(stores, monkeypatch, store, kernel, expected):
    monkeypatch.setattr(crops, "UINT8_KERNEL", kernel)
    assert loader(stores[store], [[0]], device=torch.device("cuda")).resizes_on_device == expected


# ---- memory ---------------------------------------------------------------------------------------------------------


def count_slots(monkeypatch):
    made = []
    init = photo_loader._Slot.__init__
    monkeypatch.setattr(
        photo_loader._Slot, "__init__", lambda slot, *a, **k: (made.append(1), init(slot, *a, **k), None)[2]
    )
    return made


def test_memory_of_a_batch_is_used_again_when_no_tensor_shares_it(stores, monkeypatch):
    made = count_slots(monkeypatch)
    order = GlobalBatches(COUNT, 2, seed=0, drop_last=False)
    for batch in loader(stores["pixels"], order):  # noqa: B007
        time.sleep(0.01)
    assert len(made) <= 5, "two ahead, one in use, one just given up"


def test_a_batch_that_is_kept_is_not_overwritten(stores, monkeypatch):
    made = count_slots(monkeypatch)
    order = GlobalBatches(COUNT, 2, seed=0, drop_last=False)
    rows, copies = [], []
    for batch in loader(stores["pixels"], order):
        rows.append(batch["images"][1:, 0])  # a view of a view
        copies.append(batch["images"][1:, 0].clone())
        del batch
    assert all(torch.equal(row, copy) for row, copy in zip(rows, copies, strict=True))
    assert len(made) == 25


def test_torch_starts_no_threads_of_its_own(tmp_path):
    """Threads of torch beside each of the loader's would get in each other's way; small pictures start none anyway."""
    if sys.platform != "linux":
        pytest.skip("counts threads in /proc")

    def count():
        return len(list(Path("/proc/self/task").iterdir()))

    images = InMemory([encoded(400, 500, seed=k) for k in range(12)])
    photos = prepare(images, None, ("a", "b"), tmp_path / "store", store="pixels", stored_size=256, threads=1).train
    before = count()
    batches = loader(photos, [[0, 1, 2, 3, 4, 5]] * 4, augment=True, threads=3, size=224)
    for _ in batches:
        assert count() <= before + 3


# ---- stopping, waiting, errors --------------------------------------------------------------------------------------


def working():
    return [thread for thread in threading.enumerate() if thread.name.startswith("photos ")]


def test_closing_an_iterator_stops_its_threads(stores, monkeypatch):
    picture = type(stores["pixels"]).picture
    monkeypatch.setattr(type(stores["pixels"]), "picture", lambda self, *k: time.sleep(0.5) or picture(self, *k))
    batches = iter(loader(stores["encoded"], GlobalBatches(COUNT, 4, seed=0, drop_last=True), ahead=2))
    next(batches)
    assert len(working()) == 2
    batches.close()
    assert not working()


def test_batches_are_filled_ahead(stores, monkeypatch):
    asked = []
    picture = type(stores["pixels"]).picture
    monkeypatch.setattr(
        type(stores["pixels"]), "picture", lambda self, k, box: asked.append(k) or picture(self, k, box)
    )
    batches = iter(loader(stores["pixels"], [[k, k + 1] for k in range(0, 20, 2)], ahead=3))
    next(batches)
    deadline = time.monotonic() + 10
    while len(asked) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(asked) == list(range(8)), "the batch in use and three more"
    batches.close()


class Stuck:
    """Photographs one of which does not come until `released`."""

    def __init__(self, photos, index):
        self.photos, self.index, self.released = photos, index, threading.Event()

    def __getattr__(self, name):
        return getattr(self.photos, name)

    def picture(self, index, box=None):
        if index == self.index:
            self.released.wait(60)
        return self.photos.picture(index, box)


def test_while_it_waits_it_says_so_each_second(stores):
    stuck, calls, told = Stuck(stores["pixels"], 5), [], []

    def waiting(seconds, file):
        calls.append(time.monotonic())
        told.append((round(seconds), file()))
        if len(calls) == 2:
            stuck.released.set()

    batches = list(loader(stuck, [[4], [5], [6]], waiting=waiting))
    assert [batch["ids"].item() for batch in batches] == [4, 5, 6]
    assert len(calls) == 2
    assert 0.5 < calls[1] - calls[0] < 3
    assert [file for _, file in told] == ["train[5] of FILE.parquet"] * 2, "not that of a thread that is idle"
    assert 1 <= told[0][0] < told[1][0]


def test_it_ends_where_nobody_waits_any_longer(stores, monkeypatch):
    monkeypatch.setattr(photo_loader, "STOP_SECONDS", 0.1)
    stuck = Stuck(stores["pixels"], 5)
    batches = loader(stuck, [[3], [4], [5], [6]], waiting=lambda _, file: "[5]" in file())
    assert [batch["ids"].item() for batch in batches] == [3, 4]
    stuck.released.set()


def test_what_waiting_raises_ends_the_iteration(stores):
    class StopRequestedError(Exception):
        pass

    def waiting(*_):
        stuck.released.set()
        raise StopRequestedError

    stuck = Stuck(stores["pixels"], 5)
    with pytest.raises(StopRequestedError):
        list(loader(stuck, [[5]], waiting=waiting))
    assert not working()


def test_a_disk_that_does_not_answer_is_told_with_the_file(stores, monkeypatch):
    monkeypatch.setattr(photo_loader, "STOP_SECONDS", 0.1)
    stuck = Stuck(stores["pixels"], 5)
    with pytest.raises(UserError, match=r"^train\[5\] of FILE.parquet has not come within 2 seconds"):
        list(loader(stuck, [[k] for k in range(10)], timeout_seconds=2, ahead=20))
    stuck.released.set()


def test_a_pause_between_batches_is_no_dead_disk(stores):
    slow = Stuck(stores["pixels"], 5)
    batches = iter(loader(slow, [[k] for k in range(10)], timeout_seconds=2, threads=1))
    for _ in range(3):
        next(batches)
    time.sleep(2.5)
    threading.Timer(1.5, slow.released.set).start()
    assert len(list(batches)) == 7


def test_an_error_of_a_thread_is_raised_where_the_batch_is_due(tmp_path):
    images = InFiles(tmp_path / "originals", [encoded(seed=k) for k in range(12)])
    photos = prepare(images, None, ("a", "b"), tmp_path / "store", store="encoded", stored_size=None, threads=1).train
    images.paths[9].unlink()
    batches = iter(loader(photos, [[k, k + 1] for k in range(0, 12, 2)], ahead=5))
    for k in range(4):
        assert next(batches)["ids"].tolist() == [2 * k, 2 * k + 1]
    with pytest.raises(UserError, match=rf"^{images.paths[9]} cannot be read"):
        next(batches)
    assert not working()
