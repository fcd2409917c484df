"""Saves that are killed, or whose files cannot grow: the earlier checkpoint stays."""

import pytest
import warm
from checkpoints import save

from alexnet_dist.training import checkpoint


def test_file_size_limit_of_the_system_is_one_clear_error(tmp_path):
    """A real refusal by the kernel in the middle of a write, in a process of its own."""
    code = (
        "import signal, resource, sys; from pathlib import Path; sys.path[:0] = ['tests/support', '.']\n"
        "import checkpoints as t; from alexnet_dist.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "model, optimizer = t.trained()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"try: t.save(Path({str(tmp_path)!r}), step=2, model=model, optimizer=optimizer)\n"
        "except UserError as error: print('refused:', error)\n"
    )
    save(tmp_path, step=1)
    ended = warm.execute(code)
    assert "refused: the checkpoint" in ended.stdout, ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("moment", ["model", "optimizer", "manifest", "rename"])
def test_a_kill_at_any_moment_of_a_save_leaves_the_earlier_one(tmp_path, moment):
    """The process dies without warning (as by SIGKILL) between two steps of the save."""
    code = (
        "import os, sys; from pathlib import Path; import checkpoints as t\n"
        "from alexnet_dist import atomic_files as files\n"
        "def die_after(count, original):\n"
        "    calls = []\n"
        "    def wrapped(*a, **k):\n"
        "        result = original(*a, **k) if len(calls) < count else os._exit(9)\n"
        "        calls.append(1)\n"
        "        return result\n"
        "    return wrapped\n"
        f"moment = {moment!r}\n"
        "import safetensors.torch as st\n"
        "if moment in ('model', 'optimizer'): st.save_file = die_after(moment == 'optimizer', st.save_file)\n"
        "elif moment == 'manifest': files.write_text = die_after(2, files.write_text)\n"
        "else: Path.rename = die_after(0, Path.rename)\n"
        f"t.save(Path({str(tmp_path)!r}), step=2)\n"
    )
    save(tmp_path, step=1)
    ended = warm.execute(code)
    assert ended.returncode == 9, ended.stderr
    complete = moment == "rename"  # all of it was on the disk, only its name was missing
    assert checkpoint.newest(tmp_path)[0].name == f"step_0000000{1 + complete}"
    save(tmp_path, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(tmp_path, renames):
    """The only checkpoint there is, and the process dies between the two renames that replace it, or before both."""
    code = (
        "import os, sys; from pathlib import Path; import checkpoints as t\n"
        "rename, calls = Path.rename, []\n"
        "def dying(self, to):\n"
        f"    if len(calls) == {renames}: os._exit(9)\n"
        "    calls.append(1)\n"
        "    return rename(self, to)\n"
        "Path.rename = dying\n"
        f"t.save(Path({str(tmp_path)!r}), step=1, progress='new')\n"
    )
    save(tmp_path, step=1, progress="old")
    ended = warm.execute(code)
    assert ended.returncode == 9, ended.stderr
    assert checkpoint.newest(tmp_path)[1]["progress"] == ("new" if renames else "old")
    save(tmp_path, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]
