"""Whole runs on photographs of any size: both stores, threads, a kill, mixtures, evaluation, the network file."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torchvision
import warm
from deadlines import Deadline, communicate, deadline
from image_sets import as_pillow_reads
from photos import encoded, photo_folder
from PIL import Image, ImageOps
from places import ROOT
from ranks import free_port, rank_environment
from tiny import FLAGS, equal, losses, program, records, run, run_with_ids, summary, tiny_alexnet, weights
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

import alexnet_dist
from alexnet_dist.commands import train_setup
from alexnet_dist.config import parse
from alexnet_dist.data import Photographs, load, photo_loader
from alexnet_dist.distributed import RunControl, StoppedError
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.errors import UserError

TRAIN, TEST = 52, 37
"""Three global batches of 16 and four images over; two of evaluation and five over."""
STORES = ["pixels", "encoded"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    photo_folder(folder / "photos", train=TRAIN, test=TEST, sides=(60, 130))
    return folder


def flags_of(place, store="pixels", *, threads=2):
    """Return flags of a run on the photographs of a folder, whose cache all tests share."""
    data = ["--data.dataset", str(place / "photos"), "--data.cache-dir", str(place / "cache"), "--data.limit", "1000"]
    return [*data, "--data.store", store, "--data.stored-size", "72", "--data.threads", str(threads)]


@pytest.fixture(scope="module")
def finished(place):
    """Return the folder of an uninterrupted run of each store."""
    return {store: run(place / f"run {store}", *flags_of(place, store)) for store in STORES}


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_a_run_trains_on_photographs(place, finished, store):
    folder = finished[store]
    found = summary(folder)
    assert (found["status"], found["global_step"], found["dataset"]) == ("finished", 6, "photos")
    assert (found["num_train_images"], found["num_eval_images"]) == (TRAIN, TEST)
    assert all(map(math.isfinite, losses(folder)))
    assert len(losses(folder)) == 6
    assert isinstance(load(parse([*FLAGS, *flags_of(place, store)]).data).train, Photographs)
    assert not equal(weights(folder), weights(finished[STORES[store == "pixels"]])), "stored at 72, pixels differ"


@pytest.mark.parametrize("store", STORES)
def test_the_number_of_threads_changes_nothing(place, tmp_path, finished, store):
    ids = {}
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        ids[threads] = run_with_ids(folder, flags_of(place, store, threads=threads))
        assert losses(folder) == losses(finished[store])
        for name in ("model", "optimizer"):
            assert equal(weights(folder, name=name), weights(finished[store], name=name))
    assert ids[1] == ids[3]
    assert [len(batch) for batch in ids[1]] == [16] * 6


DIE = """
step_of = train_loop.train_step
def dies(*arguments, **keywords):
    if keywords["step"] == {step}:
        os.kill(os.getpid(), {signal})
    return step_of(*arguments, **keywords)
train_loop.train_step = dies
"""


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("step", [2, 5])
def test_killed_and_resumed_equals_uninterrupted(*, place, tmp_path, finished, store, step):
    """SIGKILL in the middle of the first and of the second epoch, after a checkpoint at each step."""
    folder = tmp_path / "run"
    own = [*flags_of(place, store), "--checkpoint.every-steps", "1", "--runtime.cpu"]
    flags = [*FLAGS, *own, "--out-dir", str(folder)]
    code = program(flags, before=DIE.format(step=step, signal=int(signal.SIGKILL)))
    killed = warm.execute(code, timeout=deadline(120))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    begun = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))
    assert 0 < begun < step, "no checkpoint to go on from"
    run(folder, *own, "--resume", "must", "--data.threads", "1")
    for name in ("model", "optimizer"):
        assert equal(weights(folder, name=name), weights(finished[store], name=name))
    assert losses(folder) == losses(finished[store])


@contextlib.contextmanager
def stuck_disk(ids, *, step=None, evaluation=None, number=signal.SIGTERM):
    """Have an image of a step, or of the evaluation after an epoch, not come, and a signal while it is waited for."""
    picture, waiting, released, seen, told = Photographs.picture, RunControl.waiting, threading.Event(), [], []
    if step is None:
        wanted, size, before = 3, TEST, evaluation - 1
    else:
        wanted, size = ids[step][3], TRAIN
        before = sum(wanted in batch for batch in ids[:step]) + (wanted in ids[0])  # the first batch is shown

    def stuck(self, index, *box):
        if (index, len(self)) == (wanted, size):
            seen.append(index)
            if len(seen) > before:
                released.wait(30)
        return picture(self, index, *box)

    def signalled(self, *arguments):
        if len(seen) > before and not told:
            told.append(number)
            os.kill(os.getpid(), number)
        return waiting(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_loader, "STOP_SECONDS", 0.1)
        patch.setattr(Photographs, "picture", stuck)
        patch.setattr(RunControl, "waiting", signalled)
        yield
        released.set()


@pytest.fixture(scope="module")
def accumulated(place):
    """Return flags of a run whose steps are of parts, with an average of the weights; its folder and its ids."""
    own = ["--optim.accumulate", "2", "--optim.ema", "0.9", "--log.every-steps", "100"]
    folder = place / "run in parts"
    return own, folder, run_with_ids(folder, [*flags_of(place), *own])


@pytest.mark.parametrize(
    ("moment", "saved"),
    [
        ({"step": 0}, 0),
        ({"step": 1}, 1),
        ({"step": 3, "number": signal.SIGINT}, 3),
        ({"step": 5}, 5),
        ({"evaluation": 1}, 3),
        ({"evaluation": 2}, 6),
    ],
    ids=str,
)
def test_a_stop_does_not_wait_for_a_dead_disk(place, tmp_path, accumulated, moment, saved):
    """The state after the last whole step is saved: the continued run equals the uninterrupted one to the bit."""
    own, uninterrupted, ids = accumulated
    folder, flags = tmp_path / "run", [*flags_of(place), *own]
    with stuck_disk(ids, **moment), pytest.raises(StoppedError) as stop:
        run(folder, *flags)
    assert stop.value.exit_code == 128 + moment.get("number", signal.SIGTERM)
    assert max(path.name for path in (folder / "checkpoints").iterdir()) == f"step_{saved:08}"
    assert summary(folder)["status"] == "stopped"
    run(folder, *flags, "--resume", "must")
    for name in ("model", "optimizer", "ema"):
        assert equal(weights(folder, name=name), weights(uninterrupted, name=name))
    for key in ("final_top1", "best_top1", "global_step", "status"):
        assert summary(folder)[key] == summary(uninterrupted)[key]
    ours, theirs = ([line for line in records(of) if "val/loss" in line] for of in (folder, uninterrupted))
    for key in ("train/epoch_loss", "samples_seen", "val/loss"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-12), key


STUCK = """
import signal
from alexnet_dist.data import Photographs
from alexnet_dist.distributed import signals
signals.GRACE_SECONDS, picture, reads = 2, Photographs.picture, []
def stuck(self, index, *box):
    reads.append(index)
    if os.environ["RANK"] == "1" and len(self) == {size} and len(reads) == {count}:
        open("{folder}/stuck", "w").write(self.where(index))
        open("{folder}/fifo").read()  # nobody writes
    return picture(self, index, *box)
Photographs.picture = stuck
"""


def two_ranks(place, folder, *, before=""):
    flags = [*FLAGS, *flags_of(place, threads=1), "--runtime.cpu", "--checkpoint.every-steps", "1"]
    flags += ["--runtime.timeout-seconds", str(round(deadline(30))), "--out-dir", str(folder)]
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", program(flags, before=before)],
            cwd=ROOT,
            env=os.environ | rank_environment(rank, 2, port),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def test_a_stop_ends_the_rank_whose_disk_is_dead_and_so_the_others(place, tmp_path):
    """They are within a step, in which they wait for it: the run goes on from its last checkpoint."""
    load(parse([*FLAGS, *flags_of(place)]).data)
    os.mkfifo(tmp_path / "fifo")
    ranks = two_ranks(place, tmp_path / "run", before=STUCK.format(size=TRAIN, folder=tmp_path, count=20))
    try:
        end = Deadline(90)
        while not ((tmp_path / "stuck").exists() and (tmp_path / "run/checkpoints/step_00000002").exists()):
            assert not end.has_passed(), "it did not come to its third step"
            time.sleep(0.1)
        for process in ranks:
            process.send_signal(signal.SIGTERM)
        errors = [communicate(process, 90)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [1, 1], errors
    assert not [text for text in errors if "Traceback" in text]
    told = (
        f"error: rank 1 was asked to stop by SIGTERM and waits for {(tmp_path / 'stuck').read_text()}, which does not"
    )
    assert [line for line in errors[1].splitlines() if line.startswith(told)], errors
    assert "The same command with the same --out-dir continues" in errors[1]
    again = two_ranks(place, tmp_path / "run")
    assert [communicate(process, 90) and process.returncode for process in again] == [0, 0]
    assert summary(tmp_path / "run")["status"] == "finished"


def test_a_resumed_run_must_not_change_how_images_are_kept(place, tmp_path):
    folder = run(tmp_path / "run", *flags_of(place), "--max-steps", "2")
    for change in (["--data.store", "encoded"], ["--data.stored-size", "80"], ["--data.crop-scale", "0.5"]):
        with pytest.raises(UserError, match=change[0].removeprefix("--").replace("-", "_")):
            run(folder, *flags_of(place), *change, "--resume", "must")


@pytest.mark.parametrize(
    "flags",
    [
        ["--data.mixup", "0.4"],
        ["--data.cutmix", "1"],
        ["--data.cutout", "0.25"],
        ["--data.pca-color", "0.1"],
        ["--data.no-augment"],
        ["--data.crop-scale", "0.5"],
    ],
    ids=" ".join,
)
def test_augmentation_works_on_photographs(place, tmp_path, finished, flags):
    folder = run(tmp_path / "run", *flags_of(place), *flags, "--epochs", "1")
    assert len(losses(folder)) == 3
    assert all(map(math.isfinite, losses(folder)))
    assert losses(folder)[0] != losses(finished["pixels"])[0]
    assert losses(run(tmp_path / "again", *flags_of(place, threads=1), *flags, "--epochs", "1")) == losses(folder)


# ---- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_verify_finds_a_changed_original(tmp_path, store):
    """Of the same size and time, as only a hash can tell: a start without it goes on."""
    photo_folder(tmp_path / "photos", train=20, test=4)
    own = [*flags_of(tmp_path, store), "--epochs", "1", "--max-steps", "1"]
    run(tmp_path / "first", *own)
    if store == "encoded":
        file = sorted((tmp_path / "photos/train/dog").iterdir())[3]
    else:
        (file,) = (tmp_path / "cache").glob("photos-*/train/contents.bin")
    content, times = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    run(tmp_path / "second", *own)
    with pytest.raises(UserError, match=r"photos/train/\w+/\d+\.jpg is not what was prepared \(its SHA-256 differs\)"):
        run(tmp_path / "third", *own, "--data.verify")


def test_without_evaluation_split_a_tenth_is_held_out(tmp_path, caplog, capsys):
    photo_folder(tmp_path / "photos", train=60, test=0)
    folder = run(tmp_path / "run", *flags_of(tmp_path), "--epochs", "1", "--data.batch-size", "18")
    found = summary(folder)
    assert (found["num_train_images"], found["num_eval_images"]) == (54, 6)
    assert "HAS NO EVALUATION SPLIT" in caplog.text
    assert "54 training and 6 held-out images" in capsys.readouterr().out
    assert records(folder)[-1]["val/num_images"] == 6


def test_a_damaged_photograph_ends_the_run_with_its_name(tmp_path):
    photo_folder(tmp_path / "photos", train=20, test=4)
    file = tmp_path / "photos/test/dog/0001.jpg"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(UserError, match=r"photos/test/dog/0001\.jpg is damaged: "):
        run(tmp_path / "run", *flags_of(tmp_path))


# ---- evaluation, network file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_every_evaluation_image_is_counted_once(place, finished, store):
    found = json.loads((finished[store] / "evaluation.json").read_text())
    labels = load(parse([*FLAGS, *flags_of(place, store)]).data).test.labels
    assert np.sum(found["confusion"], axis=1).tolist() == np.bincount(labels).tolist(), "by true class"
    assert all(line["val/num_images"] == TEST for line in records(finished[store]) if "val/top1" in line)
    ids = [mistake["id"] for mistake in found["worst"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("store", STORES)
def test_a_network_file_reproduces_the_accuracy_from_the_files(place, finished, store, monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)
    trained = alexnet_dist.load(finished[store], which="last")
    entry = trained.metadata["input"]
    assert (entry["fit"], entry["image_size"], entry["channels"]) == ("crop", 64, "RGB")
    assert entry["stored_size"] == (72 if store == "pixels" else None)
    correct = total = 0
    for file in sorted((place / "photos/test").glob("*/*.jpg")):
        view = trained.inputs.spec.fitted(as_pillow_reads(file.read_bytes()))
        assert view.shape == (3, 64, 64)
        with torch.no_grad():
            found = trained.network(trained.inputs(view[None])).argmax().item()
        correct, total = correct + (trained.class_names[found] == file.parent.name), total + 1
    claim = trained.metadata["result"]
    assert (correct, total) == (claim["correct"], claim["total"]) == (claim["correct"], TEST)


# ---- ten thousand ---------------------------------------------------------------------------------------------------


KINDS = {
    ".jpg": ("JPEG", ("RGB", "L", "CMYK")),
    ".png": ("PNG", ("RGB", "L", "RGBA", "P", "LA", "1")),
    ".webp": ("WEBP", ("RGB", "RGBA")),
}


def odd_pictures(folder, count):
    """Write images of random sizes, formats, modes and EXIF orientations in class folders; half of them evaluate."""
    drawn = np.random.default_rng(0)
    for k in range(count):
        suffix = list(KINDS)[drawn.integers(len(KINDS))]
        kind, modes = KINDS[suffix]
        path = folder / ("train", "test")[k % 2] / "abc"[k % 3] / f"{k:05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = drawn.integers(5, 130, 2).tolist()
        orientation = int(drawn.integers(1, 9)) if k % 4 == 0 else None
        mode = modes[drawn.integers(len(modes))]
        path.write_bytes(encoded(height, width, kind, seed=k, mode=mode, orientation=orientation))


def upright(file):
    """Return a file's pixels as Pillow turns them, (3, H, W) uint8."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1).contiguous()


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_ten_thousand_odd_images_equal_torchvision_to_the_bit(tmp_path, store):
    odd_pictures(tmp_path / "photos", 10_000)
    data = parse([*FLAGS, *flags_of(tmp_path, store), "--data.limit", "10000", "--data.batch-size", "128"])
    accelerator, _ = processes.make_accelerator(data)
    loaded = load(data.data)
    loaders = train_setup.make_loaders(data, loaded, accelerator, lambda *_: False)
    loaders.order.set_position(epoch=1)
    view = v2.Compose([v2.Resize(73, antialias=True), v2.CenterCrop(64)])
    for name, split, loader in (("train", loaded.train, loaders.train), ("test", loaded.test, loaders.test)):
        files = sorted((tmp_path / "photos" / name).glob("*/*"))
        assert len(split) == len(files) == 5000
        assert [split.where(k) for k in range(5000)] == [str(file) for file in files]
        boxes, seen = loader.boxes(1), []
        for batch in loader:
            for index, image in zip(batch["ids"].tolist(), batch["images"], strict=True):
                stored = upright(files[index])
                if store == "pixels" and min(stored.shape[1:]) > 72:
                    stored = functional.resize(stored, [72], antialias=True)
                if boxes is None:
                    expected = view(stored)
                else:
                    expected = functional.resized_crop(stored, *boxes[index].tolist(), [64, 64], antialias=True)
                assert torch.equal(image, expected), files[index]
                seen.append(index)
        assert sorted(seen) == list(range(5000)) if name == "test" else len(set(seen)) == len(seen) == 39 * 128
