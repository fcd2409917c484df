"""The watchdog of a run of one process."""

import threading

from tiny import run


def test_one_process_has_no_thread_and_no_store(tmp_path):
    run(tmp_path, "--max-steps", "1")
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
