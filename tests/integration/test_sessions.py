"""Two sessions of pytest beside each other, as where CI runs on a developer's machine."""

import os
import subprocess
import sys
import time

from deadlines import Deadline, wait
from places import ROOT

TESTS = """
import os, pathlib, time

def test_that_waits(tmp_path):
    here = pathlib.Path(os.environ["HERE"])
    (here / "started").touch()
    while not (here / "other_is_done").exists():
        time.sleep(0.05)
    assert tmp_path.is_dir()

def test_that_ends(tmp_path):
    assert tmp_path.is_dir()
"""


def session(folder, name):
    """Start a session with this project's configuration."""
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-q"]
    environment = os.environ | {"HERE": str(folder), "PYTEST_DEBUG_TEMPROOT": str(folder / "temporary")}
    return subprocess.Popen([*command, str(folder / f"test_both.py::{name}")], env=environment, cwd=folder)


def test_a_session_does_not_delete_the_files_of_another_one(tmp_path):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "test_both.py").write_text(TESTS)
    first = session(tmp_path, "test_that_waits")
    try:
        end = Deadline(60)
        while not (tmp_path / "started").exists():
            assert first.poll() is None
            assert not end.has_passed()
            time.sleep(0.05)
        assert wait(session(tmp_path, "test_that_ends"), 60) == 0
        (tmp_path / "other_is_done").touch()
        assert wait(first, 60) == 0
    finally:
        first.kill()
