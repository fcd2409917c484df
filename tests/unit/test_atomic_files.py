"""Files that are replaced whole, with their modes."""

import os
from pathlib import Path

import pytest

from alexnet_dist import atomic_files


def test_write_text_replaces_and_leaves_nothing_behind(tmp_path):
    for text in ("one", "zwölf\n"):
        atomic_files.write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_whole_file_is_flushed_and_then_gets_its_name(tmp_path, monkeypatch):
    path, order = tmp_path / "a", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append(path.exists()), fsync(descriptor)))
    with atomic_files.whole(path) as scratch:
        scratch.write_bytes(b"all of it")
        assert not path.exists()
    assert order == [False]
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_half_a_file_is_none(tmp_path, fault):
    with pytest.raises(fault), atomic_files.whole(tmp_path / "a") as scratch:  # noqa: PT012 - the block is what fails
        scratch.write_bytes(b"half")
        raise fault
    assert list(tmp_path.iterdir()) == []


def mode_of(path):
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_write_text_gives_its_mode_to_old_files_too(mode, tmp_path, monkeypatch):
    path, scratch = tmp_path / "a.txt", tmp_path / ".a.txt.writing"
    seen = []
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, *a, **k: (seen.append(mode_of(self)), write(self, *a, **k))[1])
    atomic_files.write_text(path, "new", mode=mode)
    for old in (path, scratch):
        old.touch()
        old.chmod(0o666)
    atomic_files.write_text(path, "newer", mode=mode)
    assert mode_of(path) == mode
    assert seen == [mode, mode], "before there is anything to read"
    atomic_files.write_text(tmp_path / "b.txt", "private")
    assert mode_of(tmp_path / "b.txt") == 0o600
