"""What the benchmarks share: a run of train.py as its users start it, the machine's peak, and where figures go."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SILENT = ["--data.dataset", "synthetic", "--epochs", "1000", "--wandb.mode", "offline"]
MEMORY_PERIOD = 1.0  # seconds between two looks at a child's memory: walking 3 GB of pages takes milliseconds


@dataclass(frozen=True)
class Finished:
    """A child process that ended well."""

    output: str
    peak_memory: int
    """Bytes of all its processes together, libraries included; what they share counts once."""
    seconds: float


@dataclass(frozen=True)
class TrainRun:
    """What one run of train.py recorded."""

    records: list[dict[str, Any]]
    """The lines of metrics.jsonl that hold a training loss."""
    summary: dict[str, Any]
    sections: dict[str, float]
    """Seconds of each named section of the step under --profile, summed over its steps; empty without."""
    peak_memory: int
    seconds: float
    """From the start of the process to its end."""


def run_child(command: Sequence[str], *, environment: dict[str, str] | None = None) -> Finished:
    """Run a command to its end, watching its memory.

    Raises:
        RuntimeError: it failed; the message ends with what it printed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = psutil.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(MEMORY_PERIOD)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{text[-3000:]}")
    return Finished(output=text, peak_memory=peak, seconds=seconds)


def _memory(process: psutil.Process) -> int:
    """Sum the proportional sets of a process and its children: a page that n of them share counts an nth in each."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = member.memory_full_info()
                total += getattr(memory, "pss", memory.uss)  # Linux alone knows proportional sets
    return total


def train(
    *flags: str,
    ranks: int = 1,
    script: Sequence[str] = ("train.py",),
    environment: dict[str, str] | None = None,
) -> TrainRun:
    """Run train.py with synthetic images (unless the flags say otherwise) and W&B offline, and read its run folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        arguments = [*script, *SILENT, "--out-dir", str(folder), *flags]
        if ranks > 1:
            launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu"]
            command = [*launcher, "--num_processes", str(ranks), *arguments]
        else:
            command = [sys.executable, *arguments]
        finished = run_child(command, environment=environment)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [record for record in map(json.loads, lines) if "train/loss" in record]
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        sections = _sections(folder / "profile" / "trace.json")
    return TrainRun(records, summary, sections, finished.peak_memory, finished.seconds)


def _sections(trace: Path) -> dict[str, float]:
    """Sum the trace's named sections: `record_function` in the engine names them."""
    totals: dict[str, float] = defaultdict(float)
    if trace.exists():
        for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]:
            if event.get("cat") == "user_annotation" and "dur" in event:
                totals[event["name"]] += event["dur"] / 1e6
    return dict(totals)


def rate(records: Sequence[dict[str, Any]], *, skip: int = 1) -> float:
    """Return images a second over all records but the first `skip`, in which memory is touched for the first time."""
    images = records[-1]["samples_seen"] - records[skip - 1]["samples_seen"]
    shares = zip(records[skip - 1 :], records[skip:], strict=False)
    seconds = sum((b["samples_seen"] - a["samples_seen"]) / b["perf/images_per_second"] for a, b in shares)
    return float(images / seconds)


def machine() -> dict[str, Any]:
    """Describe where a benchmark ran, without naming the machine."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def matmul_peak(dtype: str = "bf16") -> float:
    """Return the floating-point operations a second of a matrix product, as a run of train.py measures it at start."""
    code = (
        "import sys, torch; from alexnet_dist import distributed as d; d.keep_freed_memory(); "
        "torch.set_num_threads(d.cpu_threads()); dtype = d.Precision(sys.argv[1], '').dtype; "
        "print(d.matmul_flops(torch.device('cuda' if torch.cuda.is_available() else 'cpu'), dtype))"
    )
    return float(run_child([sys.executable, "-c", code, dtype]).output.splitlines()[-1])


def save(name: str, results: dict[str, Any], markdown: str, *, folder: Path) -> None:
    """Write NAME.json and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")


def keep_summary(run: Path, path: Path) -> None:
    """Copy a run's summary.json, less the names of its machines, to where figures are quoted from."""
    found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    found.pop("hosts", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
