"""What logging and checkpoints cost a run of train.py, timed inside it.

    python benchmarks/overheads.py logging              # `make bench` measures it too
    python benchmarks/overheads.py saving --data.dataset path/to/cifar10

Options that are not its own are train.py's.

`logging`: default logging (a record every 20 steps, pictures and tables every epoch, W&B offline) for two short epochs.
What one record and one epoch's end cost on the training thread, on the trackers' thread and in W&B's own process is
added up; the shares are those of an epoch of CIFAR-10 at that batch, in this run's own median step.

`saving`: the lecture's recipe for `--steps` steps with a checkpoint every `--every` of them, in the background as
train.py does it and, in turn, written while training waits. The cost of a checkpoint is the wait, plus the time by
which the steps until its last byte exceed the median of the other steps. Writes logging_cost.* or saving.*.
"""

import contextlib
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import measuring
import psutil
from measuring import Row

from alexnet_dist.commands import results, train
from alexnet_dist.config import LogConfig
from alexnet_dist.tracking import wandb_tracker
from alexnet_dist.training import checkpoint, train_loop

STEPS = 20  # of each epoch of the run that logs
EPOCHS = 2
IMAGES = 50_000  # of CIFAR-10, whose epoch the shares are of
STEPS_OF_RECIPE = 97  # of an epoch, after which it saves
WAYS = {"in the background": False, "while training waits": True}


# ---- logging --------------------------------------------------------------------------------------------------------


def adding(
    into: dict[str, float], what: str, function: Callable[..., Any], clock: Callable[[], float] = time.perf_counter
) -> Callable[..., Any]:
    """Return the function with the time of its calls added up."""

    def call(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        began = clock()
        try:
            return function(*arguments, **keywords)
        finally:
            into[what] += clock() - began

    return call


def service_seconds() -> float:
    """Return the processor time that W&B's own process has used."""
    with contextlib.suppress(psutil.Error):
        own = [child for child in psutil.Process().children() if child.name() == wandb_tracker.SERVICE]
        return float(sum(sum(child.cpu_times()[:2]) for child in own))
    return 0.0


def spy_on_logging() -> Callable[[], Row]:
    """Add up, in a run of train.py, what steps' records and epochs' ends cost; return what returns the sums."""
    waited, busy, steps, service = defaultdict(float), defaultdict(float), [], []
    kind = ["epoch"]  # what the training thread is at: a step, an epoch's end, or the run's end
    open_log, take, finish = train.open_log, train_loop.train_step, train.finish
    timed_report = adding(waited, "epoch", results.report_epoch)

    def counted(do: Callable[..., bool]) -> Callable[..., bool]:
        def counting_do(job: Callable[[], None], **keywords: Any) -> bool:  # noqa: ANN401
            what = "epoch" if threading.current_thread().name == "drawing" else kind[0]
            return do(adding(busy, what, job, time.thread_time), **keywords)

        return counting_do

    def opened(*arguments: Any) -> Any:  # noqa: ANN401
        log = open_log(*arguments)
        write, timed_write = log.log, adding(waited, "step", log.log)
        log.log = lambda record: timed_write(record) if kind[0] == "step" else write(record)
        for worker in (log._drawing, log._sending):  # noqa: SLF001
            worker.do = counted(worker.do)
        return log

    def timed_step(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        if not steps:
            service.append((time.perf_counter(), service_seconds()))
        kind[0] = "step"
        began = time.perf_counter()
        result = take(*arguments, **keywords)
        steps.append(time.perf_counter() - began)
        return result

    def timed_epoch(*arguments: Any) -> None:  # noqa: ANN401
        kind[0] = "epoch"
        timed_report(*arguments)

    def finished(*arguments: Any, **keywords: Any) -> None:  # noqa: ANN401
        kind[0] = "end"
        service.append((time.perf_counter(), service_seconds()))
        finish(*arguments, **keywords)

    def found() -> Row:
        (began, before), (ended, after) = service
        return {"waited": waited, "busy": busy, "steps": steps, "service": (after - before) / (ended - began)}

    train.open_log, train_loop.train_step, train.finish = opened, timed_step, finished
    train_loop._report = adding(waited, "step", train_loop._report)  # noqa: SLF001
    results.report_epoch = timed_epoch
    return found


def measure_logging(*flags: str, batch_size: int) -> Row:
    """Run train.py once and return the cost of its logging.

    Args:
        flags: of train.py: data set and sizes.
        batch_size: the same as in the flags.

    Returns:
        Shares of an epoch: `waited` of its time, `busy` of the processors' time on the trackers' thread, `service` of
        the processors' time in W&B's process, and the seconds that they come from.
    """
    limit = ["--data.limit", str(STEPS * batch_size), "--epochs", str(EPOCHS)]
    found = measuring.train(*flags, *limit, inside=("overheads", "spy_on_logging")).found
    return shares(found, steps_per_epoch=IMAGES // batch_size, cores=measuring.machine()["cores"])


def shares(found: Row, *, steps_per_epoch: int, cores: int) -> Row:
    """Turn the sums of a run, as its spy returns them, into shares of an epoch of so many steps."""
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


def sentence(cost: Row) -> str:
    """Say it."""
    beside = cost["busy"] + cost["service"]
    waited = cost["seconds"]["waited"]
    return (
        f"Logging at the default interval: training waits {cost['waited']:.2%} of its time for it "
        f"({1000 * waited['record']:.0f} ms a record, {1000 * waited['epoch']:.0f} ms at an epoch's end); beside it, "
        f"pictures and W&B's own process take {beside:.2%} of the processors' time."
    )


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def spy_on_saving(foreground: bool) -> Callable[[], Row]:  # noqa: FBT001 - called through JSON
    """Note when each step of a run of train.py ends and when each save begins and ends."""
    steps, saves, ends = [], [], []
    take, save, write = train_loop.train_step, checkpoint.Saver.save, checkpoint.save

    def timed_step(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        began = time.perf_counter()
        result = take(*arguments, **keywords)
        steps.append((began, time.perf_counter()))
        return result

    def timed_save(self: checkpoint.Saver, **keywords: Any) -> None:  # noqa: ANN401
        began = time.perf_counter()
        save(self, **keywords)
        if foreground:
            self.wait()
        saves.append({"began": began, "waited": time.perf_counter() - began})

    def timed_write(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        path = write(*arguments, **keywords)
        ends.append(time.perf_counter())
        return path

    train_loop.train_step, checkpoint.Saver.save, checkpoint.save = timed_step, timed_save, timed_write
    return lambda: cost(steps, [{**entry, "ended": end} for entry, end in zip(saves, ends, strict=True)])


def cost(steps: list[tuple[float, float]], saves: list[dict[str, float]]) -> Row:
    """Split the time of steps and saves (seconds on one clock); the first save and the last are left out.

    The first touches its memory for the first time, the last is waited for at the end of the run.
    """
    counted = saves[1:-1]
    beside = [[end - began for began, end in steps if save["began"] < began < save["ended"]] for save in counted]
    alone = [end - began for began, end in steps[1:] if not any(s["began"] < end and began < s["ended"] for s in saves)]
    usual = statistics.median(alone)
    return {
        "step_seconds": usual,
        "waited_seconds": statistics.mean(save["waited"] for save in counted),
        "slowed_seconds": statistics.mean(sum(seconds - usual for seconds in group) for group in beside),
        "written_after_seconds": statistics.mean(save["ended"] - save["began"] for save in counted),
        "checkpoints": len(counted),
    }


def measure_saving(*flags: str, steps: int, every: int, rounds: int) -> tuple[Row, str]:
    """Run the recipe with both ways in turn; return each run's cost of a checkpoint, and the table of means."""
    recipe = str(measuring.ROOT / "recipes" / "lecture.yaml")
    words = ["--config", recipe, "--data.dataset", "cifar10", "--log.trackers"]
    words += ["--max-steps", str(steps), "--checkpoint.every-steps", str(every)]
    found: dict[str, list[Row]] = {way: [] for way in WAYS}
    for _, way in measuring.in_turn(WAYS, rounds):
        found[way].append(measuring.train(*words, *flags, inside=("overheads", "spy_on_saving", WAYS[way])).found)
        print(way, found[way][-1], flush=True)
    rows = []
    for way, costs in found.items():
        keys = ("waited_seconds", "slowed_seconds", "written_after_seconds", "step_seconds")
        waited, slowed, after, step = (statistics.mean(cost[key] for cost in costs) for key in keys)
        share = f"{(waited + slowed) / (STEPS_OF_RECIPE * step):.1%}"
        rows.append((way, f"{waited:.2f}", f"{slowed:.2f}", f"{after:.2f}", share))
    heads = ["written", "training waits, s", "steps beside it take longer by, s", "on the disk after, s", "of an epoch"]
    return {"rounds": found}, measuring.table(heads, rows)


def main() -> None:
    """Measure, write and print."""
    parser = measuring.parser(__doc__, batch_size=512, image_size=224, steps=48, every=8, rounds=2)
    parser.add_argument("what", choices=["logging", "saving"])
    options, flags = parser.parse_known_args()
    if options.what == "saving":
        found, text = measure_saving(*flags, steps=options.steps, every=options.every, rounds=options.rounds)
        measuring.save("saving", found, text, folder=options.out)
        return
    sizes = ["--data.batch-size", str(options.batch_size), "--data.image-size", str(options.image_size)]
    cost = measure_logging(*sizes, *flags, batch_size=options.batch_size)
    found = {"settings": {"batch_size": options.batch_size}, **cost}
    measuring.save("logging_cost", found, f"{sentence(cost)}\n", folder=options.out)


if __name__ == "__main__":
    main()
