"""Feature files: what safetensors reads of them, rows that are left out, and disks that object."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from alexnet_dist.commands import feature_files
from alexnet_dist.errors import UserError

COLUMNS = {
    "ids": np.dtype(np.int64),
    "labels": np.dtype(np.int64),
    "pool": np.dtype((np.float16, (2, 3))),
    "fc": np.dtype((np.float32, (5,))),
}
COUNT = 11
LABELS = np.arange(COUNT) % 3
POOL = np.arange(COUNT * 6, dtype=np.float16).reshape(COUNT, 2, 3)
FC = np.arange(COUNT * 5, dtype=np.float32).reshape(COUNT, 5) / 7


def files_of(out, rows=None, *, names=None):
    return feature_files.plan(out, COLUMNS, COUNT, LABELS, names, {"layers": ["pool", "fc"]}, rows=rows)


def fill(files, size=2):
    for file, ids in reversed(files.batches(size)):
        rows = slice(ids[0], ids[-1] + 1)
        pool = torch.from_numpy(POOL[rows].transpose(0, 2, 1).copy()).transpose(1, 2)  # not contiguous
        file.write(ids, {"pool": pool.float(), "fc": torch.from_numpy(FC[rows])})


@pytest.mark.parametrize("rows", [None, 4, 1])
@pytest.mark.parametrize("broken", [set(), {0}, {10}, {1, 2, 5, 9}, {4, 5, 6, 7}, set(range(11))], ids=str)
def test_safetensors_reads_the_rows_that_stay(tmp_path, rows, broken):
    names = [f"picture {index} \udce9\n" for index in range(COUNT)]
    files = files_of(tmp_path / "x.safetensors", rows, names=names)
    files.reserve()
    fill(files)
    files.finish(broken)
    written = sorted(tmp_path.glob("x*.safetensors"))
    assert len(written) == (1 if rows is None else -(-COUNT // rows))
    kept = [index for index in range(COUNT) if index not in broken]
    expected = {"ids": np.array(kept), "labels": LABELS[kept], "pool": POOL[kept], "fc": FC[kept]}
    contents = [safetensors.numpy.load_file(path) for path in written]
    for name, tensor in expected.items():
        found = np.concatenate([content[name] for content in contents])
        assert np.array_equal(found, tensor), name
        assert found.dtype == COLUMNS[name].base, name
    found = []
    for path in written:
        with safetensors.safe_open(path, framework="np") as file:
            found += json.loads(file.metadata()["alexnet_dist"])["names"]
    assert found == [names[index] for index in kept]
    assert sorted(path.name for path in tmp_path.iterdir() if path not in written) == (
        [] if rows is None else ["x.safetensors.index.json"]
    )


def test_a_file_has_its_full_size_before_anything_is_written(tmp_path):
    files = files_of(tmp_path / "x.safetensors")
    files.reserve()
    size = (tmp_path / ".x.safetensors.writing").stat().st_size
    fill(files)
    files.finish(set())
    assert (tmp_path / "x.safetensors").stat().st_size == size


def test_a_file_holds_a_gigabyte_and_100_000_rows_at_most(tmp_path):
    def rows(columns, count):
        files = feature_files.plan(tmp_path / "x.safetensors", columns, count, None, None, {}, rows=None)
        assert sum(len(shard.ids) for shard in files.shards) == count
        return len(files.shards[0].ids)

    fc7 = {"ids": np.dtype(np.int64), "fc7": np.dtype((np.float32, (4096,)))}
    assert rows(fc7, 1_281_167) == 10**9 // (8 + 4 * 4096)
    assert rows({"ids": np.dtype(np.int64), "logits": np.dtype((np.float32, (10,)))}, 1_281_167) == 100_000
    assert rows(fc7, 10) == 10
    assert rows({"ids": np.dtype(np.int64), "huge": np.dtype((np.float32, (3 * 10**8,)))}, 3) == 1


def test_no_batch_lies_in_two_files(tmp_path):
    found = files_of(tmp_path / "x.safetensors", 4).batches(3)
    assert [[*ids] for _, ids in found] == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9, 10]]
    assert all(set(ids) <= set(file.ids) for file, ids in found)


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    with pytest.raises(UserError, match=r"x.safetensors: 0.0 GB are needed and 0.0 are free; fewer layers"):
        files_of(tmp_path / "x.safetensors").reserve()
    assert not [*tmp_path.iterdir()]


def test_what_a_disk_objects_to_is_one_line(tmp_path):
    files = files_of(tmp_path / "x.safetensors")
    files.reserve()
    files.clear()
    assert not [*tmp_path.iterdir()]
    with pytest.raises(UserError, match=r"--out .*x.safetensors cannot be written: No such file or directory$"):
        files.finish(set())


@pytest.mark.parametrize("name", ["x.safetensors", "x.safetensors.index.json"])
def test_nothing_is_written_over(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{name} exists: name another file"):
        files_of(tmp_path / "x.safetensors").reserve()
    assert [path.name for path in tmp_path.iterdir()] == [name]
