"""What a checkpoint costs: seconds that training waits for it, and what its writing takes from the steps beside it.

    python benchmarks/saving.py --dataset path/to/cifar10

Runs the lecture's recipe for some steps with a checkpoint every few of them, in the background as train.py does it and,
in turn, written while training waits. Writes saving.json and saving.md. All is measured within each run: the cost of
a checkpoint is the wait, plus the time by which the steps until its last byte exceed the median of the other steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring

# A child of its own for each run: wraps the saver, and notes when each step ends and when each save begins and ends.
CHILD = """
import json, sys, threading, time
sys.path.insert(0, {root!r})
sys.argv = ["train.py", *{flags!r}]
import train
from alexnet_dist import checkpoint, engine
from alexnet_dist.config import parse
steps, saves = [], []
take, save, write = engine._train_step, checkpoint.Saver.save, checkpoint._write
def timed_step(*arguments, **keywords):
    began = time.perf_counter()
    result = take(*arguments, **keywords)
    steps.append((began, time.perf_counter()))
    return result
def timed_save(self, **keywords):
    began = time.perf_counter()
    save(self, **keywords)
    if {foreground!r}:
        self.wait()
    saves.append({{"began": began, "waited": time.perf_counter() - began}})
def timed_write(*arguments, **keywords):
    write(*arguments, **keywords)
    ends.append(time.perf_counter())
ends = []
engine._train_step, checkpoint.Saver.save, checkpoint._write = timed_step, timed_save, timed_write
train.COMMAND_LINE = parse()
try:
    train.command()
except SystemExit as end:
    assert not end.code, end.code
for entry, end in zip(saves, ends):
    entry["ended"] = end
print(json.dumps({{"steps": steps, "saves": saves}}))
"""


def run(options: argparse.Namespace, *, foreground: bool) -> dict[str, Any]:
    """Run the recipe once and return the cost of a checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = measuring.ROOT / "recipes" / "lecture.yaml"
        flags = ["--config", str(recipe), "--data.dataset", options.dataset, "--out-dir", f"{scratch}/run"]
        flags += ["--max-steps", str(options.steps), "--checkpoint.every-steps", str(options.every)]
        flags += ["--log.trackers", "--data.limit", str(options.limit)]
        code = CHILD.format(root=str(measuring.ROOT), flags=flags, foreground=foreground)
        output = measuring.run_child([sys.executable, "-c", code]).output
        records = (Path(scratch) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = json.loads(output.splitlines()[-1])
    evaluation = json.loads(records[-1])["perf/epoch_seconds"]
    return cost(times["steps"], times["saves"]) | {"epoch_seconds_of_this_run": evaluation}


def cost(steps: list[list[float]], saves: list[dict[str, float]]) -> dict[str, Any]:
    """Split the time of steps and saves (seconds on one clock); the first save and the last are left out.

    The first touches its memory for the first time, the last is waited for at the end of the run.
    """
    counted = saves[1:-1]
    beside = [[end - began for began, end in steps if save["began"] < began < save["ended"]] for save in counted]
    alone = [end - began for began, end in steps[1:] if not any(s["began"] < end and began < s["ended"] for s in saves)]
    usual = statistics.median(alone)
    waited = [save["waited"] for save in counted]
    slowed = [sum(seconds - usual for seconds in group) for group in beside]
    return {
        "step_seconds": usual,
        "waited_seconds": statistics.mean(waited),
        "slowed_seconds": statistics.mean(slowed),
        "written_after_seconds": statistics.mean(save["ended"] - save["began"] for save in counted),
        "checkpoints": len(counted),
    }


def main() -> None:
    """Measure both ways in turn; write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--every", type=int, default=8, help="steps between two checkpoints")
    parser.add_argument("--limit", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    options = parser.parse_args()
    ways = {"in the background": False, "while training waits": True}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, foreground in ways.items():
            rows[name].append(run(options, foreground=foreground))
            print(name, rows[name][-1], flush=True)
    heads = ["written", "training waits, s", "steps beside it take longer by, s", "on the disk after, s", "of an epoch"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|---|---|"]
    for name, found in rows.items():
        waited, slowed, after, step = (
            statistics.mean(row[key] for row in found)
            for key in ("waited_seconds", "slowed_seconds", "written_after_seconds", "step_seconds")
        )
        share = (waited + slowed) / (97 * step)
        lines.append(f"| {name} | {waited:.2f} | {slowed:.2f} | {after:.2f} | {share:.1%} |")
    text = "\n".join(lines) + "\n"
    measuring.save("saving", {"machine": measuring.machine(), "rounds": rows}, text, folder=options.out)
    print(text)


if __name__ == "__main__":
    main()
