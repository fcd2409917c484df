"""What the benchmarks share: runs in processes of their own, rounds and medians, the machine, tables and JSON.

A measurement never shares a process with another one. `train` runs train.py and reads its run folder; `call` runs a
function of a benchmark, on several ranks if asked, and returns what it returned; both may be combined, where a function
changes or times something inside train.py. Variants are measured in rounds, so that what else the machine does falls
on all of them, and compared within a round.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SILENT = ["--data.dataset", "synthetic", "--epochs", "1000", "--wandb.mode", "offline", "--optim.name", "adamw"]
"""With the optimizer of the other loops, or its like."""
MEMORY_PERIOD = 1.0  # seconds between two looks at a child's memory: walking 3 GB of pages takes milliseconds

Row = dict[str, Any]
sys.path.insert(0, str(ROOT))  # benchmarks measure the package beside them


# ---- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A child process that ended well."""

    peak_memory: int
    """Bytes of all its processes together, libraries included; what they share counts once."""
    seconds: float
    """From the start of the process to its end."""
    found: Any = None
    """What the function returned that the process ran."""
    records: Sequence[Row] = ()
    """Of train.py: the lines of metrics.jsonl that hold a training loss."""
    summary: Row = field(default_factory=dict)
    sections: dict[str, float] = field(default_factory=dict)
    """Seconds of each named section of the step under --profile, summed over its steps."""


def run_child(command: Sequence[str], *, ranks: int = 1, environment: dict[str, str] | None = None) -> Run:
    """Run a Python script to its end on so many ranks, watching its memory.

    Raises:
        RuntimeError: it failed; the message ends with what it printed.
    """
    program = [sys.executable]
    if ranks > 1:
        accelerate = str(Path(sys.executable).parent / "accelerate")
        program = [accelerate, "launch", "--multi_gpu", "--num_processes", str(ranks)]
    variables = {**os.environ, **(environment or {})}
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = psutil.Popen([*program, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=variables)
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(MEMORY_PERIOD)
        seconds = time.perf_counter() - started
        output.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output.read()[-3000:]}")
    return Run(peak, seconds)


def _memory(process: psutil.Process) -> int:
    """Sum the proportional sets of a process and its children: a page that n of them share counts an nth in each."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = member.memory_full_info()
                total += getattr(memory, "pss", memory.uss)  # Linux alone knows proportional sets
    return total


def call(
    module: str,
    function: str,
    *arguments: object,
    ranks: int = 1,
    flags: Sequence[str] | None = None,
    environment: dict[str, str] | None = None,
) -> Run:
    """Run a function of a benchmark in a process of its own, or on several ranks, of which rank 0's result counts.

    Args:
        module: file name of the benchmark.
        function: of it. Arguments and result are what JSON can hold.
        arguments: of the function.
        ranks: processes.
        flags: of train.py, which then runs in the same process after the function. The function returns another one,
            which is called after the run and returns the result, or None.
        environment: variables besides this process's.
    """
    with tempfile.TemporaryDirectory() as scratch:
        task = Path(scratch) / "task.json"
        task.write_text(json.dumps([module, function, arguments, flags]), encoding="utf-8")
        run = run_child([__file__, str(task)], ranks=ranks, environment=environment)
        return replace(run, found=json.loads(task.with_name("found.json").read_text(encoding="utf-8")))


def _child(task: Path) -> None:
    """Do what `call` asks for, in the child."""
    module, function, arguments, flags = json.loads(task.read_text(encoding="utf-8"))
    found = getattr(importlib.import_module(module), function)(*arguments)
    if flags is not None:
        from alexnet_dist.commands import main

        try:
            main.main(["train", *flags], prog="train.py")
        except SystemExit as end:
            if end.code:
                raise
        found = found() if found else None
    if os.environ.get("RANK", "0") == "0":
        task.with_name("found.json").write_text(json.dumps(found), encoding="utf-8")
    if flags is None:
        os._exit(0)  # a peer's native threads may abort an interpreter that ends in order: FFCV's do


def train(*flags: str, ranks: int = 1, inside: Sequence[Any] = ()) -> Run:
    """Run train.py with synthetic images (unless the flags say otherwise) and W&B offline, and read its run folder.

    Args:
        flags: of train.py.
        ranks: processes.
        inside: module, function and arguments of what changes or times something in that run, as for `call`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        words = [*SILENT, "--out-dir", str(folder), *flags]
        run = call(*inside, ranks=ranks, flags=words) if inside else run_child(["train.py", *words], ranks=ranks)
        return replace(
            run,
            records=read_records(folder, having="train/loss"),
            summary=read_summary(folder),
            sections=sections(folder / "profile" / "trace.json"),
        )


def read_records(folder: Path, *, having: str) -> list[Row]:
    """Return the lines of a run's metrics.jsonl that have a key."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if having in record]


def sections(trace: Path) -> dict[str, float]:
    """Sum the trace's named sections: `record_function` in the training loop names them."""
    totals: dict[str, float] = defaultdict(float)
    if trace.exists():
        for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]:
            if event.get("cat") == "user_annotation" and "dur" in event:
                totals[event["name"]] += event["dur"] / 1e6
    return dict(totals)


def read_summary(folder: Path) -> Row:
    """Return a run's summary.json; nothing of a run that has not ended."""
    path = folder / "summary.json"
    found: Row = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def train_unless_done(folder: Path, *flags: str, core: int | None = None) -> None:
    """Train into a run folder that stays, on one core if asked. A finished run stays; a stopped one goes on."""
    if read_summary(folder).get("status") != "finished":
        print(f"{folder.name}: {' '.join(flags)}", flush=True)
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        command = [*pinned, sys.executable, str(ROOT / "train.py"), *flags, "--out-dir", str(folder)]
        subprocess.run(command, check=True, stdout=None if core is None else subprocess.DEVNULL)


def keep_summary(run: Path, path: Path) -> None:
    """Copy a run's summary.json, less the names of its machines, to where figures are quoted from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, {key: value for key, value in read_summary(run).items() if key != "hosts"})


def _write_json(path: Path, content: Row) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Let children have a single core: a rank's share of a machine with as many ranks as cores."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


# ---- figures --------------------------------------------------------------------------------------------------------


def in_turn(names: Iterable[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Yield (round, name): each name once a round, in an order that moves on by one, so that none always runs first."""
    names = list(names)
    for number in range(rounds):
        start = number % len(names)
        yield from ((number, name) for name in [*names[start:], *names[:start]])


def rate(records: Sequence[Row], *, skip: int = 1) -> float:
    """Return images a second over all records but the first `skip`, in which memory is touched for the first time."""
    images = records[-1]["samples_seen"] - records[skip - 1]["samples_seen"]
    shares = zip(records[skip - 1 :], records[skip:], strict=False)
    seconds = sum((b["samples_seen"] - a["samples_seen"]) / b["perf/images_per_second"] for a, b in shares)
    return float(images / seconds)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ranged(values: dict[str, float], style: str) -> str:
    """Write what `spread` returned, with a format for each number."""
    median, least, most = (style.format(values[key]) for key in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def machine() -> Row:
    """Describe where a benchmark ran, without naming the machine."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": [*names, platform.processor() or platform.machine()][0],
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def peak_flops(precision: str = "bf16") -> float:
    """Return the peak in floating-point operations a second, as a run of train.py measures it at its start."""
    return float(call("measuring", "_peak_flops", precision).found)


def _peak_flops(precision: str) -> float:
    import torch

    from alexnet_dist.distributed import hardware
    from alexnet_dist.distributed.precision import Precision

    hardware.keep_freed_memory()
    torch.set_num_threads(hardware.cpu_threads())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return hardware.peak_flops(device, Precision(precision, "").dtype)


# ---- command line and files -----------------------------------------------------------------------------------------


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - as argparse has it
    """Return a command line with an option for each default, of its type, and `--out`, the folder of the results.

    Args:
        description: the benchmark's docstring.
        defaults: by names of options. A list takes one or several values, of those in it where they are words.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**defaults, "out": RESULTS}.items():
        keywords: Row = {"default": default, "help": f"default: {default}"}
        if isinstance(default, bool):
            keywords = {"action": "store_true"}
        elif isinstance(default, list):
            kind = type(default[0])
            keywords |= {"nargs": "+", "type": kind, "choices": default if kind is str else None}
        else:
            keywords |= {"type": Path if isinstance(default, Path) else type(default)}
        made.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return made


def settings(options: argparse.Namespace) -> Row:
    """Return the options as JSON holds them, without the folder of the results."""
    return {name: value for name, value in vars(options).items() if name != "out"}


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, its last line ended."""
    lines = (f"| {' | '.join(map(str, cells))} |\n" for cells in (heads, *rows))
    return next(lines) + "|---" * len(heads) + "|\n" + "".join(lines)


def save(name: str, results: Row, markdown: str, *, folder: Path, is_silent: bool = False) -> None:
    """Write NAME.json, with the machine's description, and NAME.md, and print the latter unless `is_silent`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / f"{name}.json", {"machine": machine(), **results})
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
    if not is_silent:
        print(f"\n{markdown}")


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
