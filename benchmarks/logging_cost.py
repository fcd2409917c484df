"""What logging costs: seconds that training waits for it, and processor time that it takes beside training.

    python benchmarks/logging_cost.py                   # `make bench` calls it too

Runs train.py with its default logging (a record every 20 steps, pictures and tables every epoch, W&B offline) for two
short epochs, and adds up what one record and one epoch's end cost: on the training thread, on the trackers' thread and
in W&B's own process. The shares are those of an epoch of CIFAR-10 at that batch, in this run's own median step.
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

from alexnet_dist.config import LogConfig

STEPS = 20  # of each epoch of the run
EPOCHS = 2
IMAGES = 50_000  # of CIFAR-10, whose epoch the shares are of

# A child of its own: `kind` says whether what happens belongs to a step's record or to an epoch's end.
CHILD = """
import contextlib, json, sys, threading, time
sys.path.insert(0, {root!r})
sys.argv = ["train.py", *{flags!r}]
import psutil
import train
from alexnet_dist import engine, runlog, trackers
from alexnet_dist.config import parse
kind = ["epoch"]
waited, busy, steps, service = {{"step": 0.0, "epoch": 0.0}}, {{"step": 0.0, "epoch": 0.0}}, [], []
def timed(function):
    def spy(*arguments, **keywords):
        began = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            waited[kind[0]] += time.perf_counter() - began
    return spy
def as_epoch(function):
    def spy(*arguments, **keywords):
        kind[0] = "epoch"
        result = timed(function)(*arguments, **keywords)
        kind[0] = "step"
        return result
    return spy
def do(self, job, put=runlog.Worker.do, **keywords):
    label = "epoch" if threading.current_thread().name == "drawing" else kind[0]
    def measured():
        began = time.thread_time()
        try:
            job()
        finally:
            busy[label] += time.thread_time() - began
    return put(self, measured, **keywords)
def cpu():
    with contextlib.suppress(psutil.Error):
        own = [child for child in psutil.Process().children() if child.name() == trackers.SERVICE]
        return sum(sum(child.cpu_times()[:2]) for child in own)
    return 0.0
def taken(*arguments, take=engine._train_step, **keywords):
    if not steps:
        service.append((time.perf_counter(), cpu()))
        kind[0] = "step"
    began = time.perf_counter()
    result = take(*arguments, **keywords)
    steps.append(time.perf_counter() - began)
    return result
def finish(*arguments, end=train.finish, **keywords):
    kind[0] = "end"
    waited["end"] = busy["end"] = 0.0
    service.append((time.perf_counter(), cpu()))
    end(*arguments, **keywords)
engine._report, runlog.RunLog.log = timed(engine._report), timed(runlog.RunLog.log)
engine._train_step, runlog.Worker.do, train.finish = taken, do, finish
train.report_epoch = as_epoch(train.report_epoch)
train.COMMAND_LINE = parse()
try:
    train.command()
except SystemExit as end:
    assert not end.code, end.code
(began, before), (ended, after) = service
rate = (after - before) / (ended - began)
print(json.dumps({{"waited": waited, "busy": busy, "steps": steps, "service": rate}}))
"""


def measure(*flags: str, batch_size: int) -> dict[str, Any]:
    """Run train.py once and return the cost of its logging.

    Args:
        flags: data set and sizes.
        batch_size: among them.

    Returns:
        Shares of an epoch: `waited` of its time, `busy` of the processors' time on the trackers' thread, `service` of
        the processors' time in W&B's process, and the seconds that they come from.
    """
    limit = ["--data.limit", str(STEPS * batch_size), "--epochs", str(EPOCHS)]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [*measuring.SILENT, *flags, *limit, "--out-dir", f"{scratch}/run"]
        code = CHILD.format(root=str(measuring.ROOT), flags=arguments)
        output = measuring.run_child([sys.executable, "-c", code]).output
    found = json.loads(output.splitlines()[-1])
    return shares(found, steps_per_epoch=IMAGES // batch_size, cores=measuring.machine()["cores"])


def shares(found: dict[str, Any], *, steps_per_epoch: int, cores: int) -> dict[str, Any]:
    """Turn the sums of a run into shares of a long epoch.

    Args:
        found: what the child printed.
        steps_per_epoch: of that epoch.
        cores: of the machine.
    """
    step = statistics.median(found["steps"][1:])
    records = EPOCHS * STEPS / LogConfig().every_steps
    of_epoch = steps_per_epoch / LogConfig().every_steps
    seconds = {
        name: {"record": found[name]["step"] / records, "epoch": found[name]["epoch"] / EPOCHS}
        for name in ("waited", "busy")
    }
    total = {name: of_epoch * cost["record"] + cost["epoch"] for name, cost in seconds.items()}
    return {
        "waited": total["waited"] / (steps_per_epoch * step),
        "busy": total["busy"] / (steps_per_epoch * step * cores),
        "service": found["service"] / cores,
        "step_seconds": step,
        "seconds": seconds,
    }


def sentence(cost: dict[str, Any]) -> str:
    """Say it."""
    beside = cost["busy"] + cost["service"]
    waited = cost["seconds"]["waited"]
    return (
        f"Logging at the default interval: training waits {cost['waited']:.2%} of its time for it "
        f"({1000 * waited['record']:.0f} ms a record, {1000 * waited['epoch']:.0f} ms at an epoch's end); beside it, "
        f"pictures and W&B's own process take {beside:.2%} of the processors' time."
    )


def main() -> None:
    """Measure, write logging_cost.json and .md, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    options = parser.parse_args()
    sizes = ["--data.batch-size", str(options.batch_size), "--data.image-size", str(options.image_size)]
    cost = measure(*sizes, batch_size=options.batch_size)
    results = {"machine": measuring.machine(), "settings": {"batch_size": options.batch_size}, **cost}
    measuring.save("logging_cost", results, f"{sentence(cost)}\n", folder=options.out)
    print(sentence(cost))


if __name__ == "__main__":
    main()
