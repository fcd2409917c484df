"""Whole runs with --profile: a window of steps, named sections, and a word when the run was too short for it."""

import json
import logging
import subprocess
import sys

from tiny import FLAGS, equal, losses, program, run, weights

from alexnet_dist.training import profiler

SECTIONS = {"input", "forward", "backward", "optimizer"}


def annotations(folder):
    events = json.loads((folder / "profile/trace.json").read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def test_trace_holds_three_steps_and_their_sections_and_changes_nothing(tmp_path):
    flags = ["--epochs", "4"]  # of three steps each
    traced = run(tmp_path / "traced", *flags, "--profile")
    names = annotations(traced)
    assert {name: names.count(name) for name in SECTIONS} == dict.fromkeys(SECTIONS, profiler.TRACED)
    table = (traced / "profile/operators.txt").read_text()
    assert "convolution_backward" in table
    plain = run(tmp_path / "plain", *flags)
    assert not (plain / "profile").exists()
    assert losses(traced) == losses(plain)
    assert equal(weights(traced), weights(plain))


def test_sections_are_traced_once_per_part_of_a_batch(tmp_path):
    names = annotations(run(tmp_path / "run", "--epochs", "4", "--profile", "--optim.accumulate", "2"))
    assert names.count("forward") == names.count("input") == 2 * profiler.TRACED
    assert names.count("optimizer") == profiler.TRACED


def test_a_run_too_short_for_the_window_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path / "run", "--epochs", "1", "--profile")
    assert "--profile needs 8 steps and the run had 3" in caplog.text
    assert not (folder / "profile").exists()


def test_a_run_that_ends_within_the_window_exits_in_good_order(tmp_path):
    """torch's profiler, never stopped, crashes at the exit of the process."""
    flags = [*FLAGS, "--epochs", "2", "--profile", "--out-dir", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", program(flags)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "--profile needs 8 steps and the run had 6" in ended.stderr
    assert not (tmp_path / "run/profile").exists()
