"""Logs of killed offline runs, mended."""

import struct

import pytest
from run_logs import offline

from alexnet_dist.tracking import wandb_repair


def log_file(*sizes, torn=0):
    """A .wandb file with records of these sizes, less some bytes at its end; and where each record ends."""
    content, ends = b"\0" * 7, []
    for size in sizes:
        left, chunks = size, 0
        while left or not chunks:
            room = 32_768 - len(content) % 32_768
            if room < 7:
                content += b"\0" * room
                continue
            length = min(left, room - 7)
            left, chunks = left - length, chunks + 1
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[chunks == 1, left == 0]
            content += struct.pack("<IHB", 0, length, kind) + b"x" * length
        ends.append(len(content))
    return content[: len(content) - torn], ends


@pytest.mark.parametrize("torn", [0, 1, 40, 70_000])
@pytest.mark.parametrize("sizes", [(10,), (100, 50), (32_747, 5), (32_755, 5), (90_000, 80_000), (32_761 - 7,)])
def test_a_torn_log_ends_behind_its_last_whole_record(sizes, torn):
    content, ends = log_file(*sizes, torn=torn)
    whole = [end for end in ends if end <= len(content)]
    assert wandb_repair._end_of_records(content) == (whole[-1] if whole else 7)


def test_parts_of_a_killed_run_are_mended(tmp_path, spy):
    """`wandb sync` 0.31 sends no part behind one that is torn, and none at all if one is empty."""
    del spy
    wandb_folder = tmp_path / "run" / "wandb"
    torn, ends = log_file(100, 50, torn=3)
    whole, _ = log_file(100)
    for name, content in (("offline-run-1-a", whole[:7]), ("run-2-a", torn), ("offline-run-3-a", whole)):
        (wandb_folder / name).mkdir(parents=True)
        (wandb_folder / name / "run-a.wandb").write_bytes(content)
    (wandb_folder / "latest-run").symlink_to(wandb_folder / "offline-run-1-a")
    (wandb_folder / "unfinished").touch()
    (wandb_folder / "run_id").write_text("a")
    offline(tmp_path / "run").close()
    left = {path.parent.name: path.read_bytes() for path in wandb_folder.glob("*run-*/run-*.wandb")}
    assert left == {"run-2-a": torn[: ends[0]], "offline-run-3-a": whole}
