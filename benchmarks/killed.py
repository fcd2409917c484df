"""Kill runs in the middle of an epoch and in the middle of a save, resume them, and compare with undisturbed ones.

    python benchmarks/killed.py                         # train.py, Accelerate twice, Lightning; some ten minutes
    python benchmarks/killed.py --systems alexnet_dist

Each system trains the same small job (killed_peers.py) twice undisturbed, which must agree to the bit or the rest says
nothing; once killed by SIGKILL two steps after a checkpoint in the middle of the second epoch; and once killed while a
checkpoint is being written. Then the same command again. Writes killed.json and killed.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measuring

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS_OF_EPOCH, SAVED_AT, KILLED_AT = 10, 16, 18  # killed_peers.py saves every 4 steps
MID_SAVE_BYTES = 50_000_000  # of 685 MB
DEADLINE = 600  # seconds
TITLES = {
    "accelerate": "Accelerate: save_state, skip_first_batches",
    "accelerate-seedable": "the same, use_seedable_sampler=True",
    "lightning": 'Lightning: fit(ckpt_path="last")',
    "alexnet_dist": "alexnet_dist: train.py",
}


def start(system: str, folder: Path, attempt: int) -> subprocess.Popen[bytes]:
    """Start a run in a folder, or start it again."""
    folder.mkdir(exist_ok=True)
    script = Path(__file__).parent / "killed_peers.py"
    environment = {**os.environ, "ATTEMPT": str(attempt), "OMP_NUM_THREADS": "1"}
    with (folder / f"log{attempt}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(script), system, str(folder)], stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def ledger(folder: Path) -> list[dict[str, Any]]:
    """Return the steps that were begun, in their order, over all attempts."""
    path = folder / "ledger.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder, some of which may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def kill_when(process: subprocess.Popen[bytes], due: Callable[[], bool]) -> None:
    """Kill a run at a moment.

    Raises:
        RuntimeError: it ended before, or the moment did not come.
    """
    end = time.monotonic() + DEADLINE
    while not due():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise RuntimeError(f"the moment to kill {process.args} did not come")
        time.sleep(0.002)
    process.kill()
    process.wait()


def in_mid_epoch(folder: Path) -> Callable[[], bool]:
    """Tell when a step begins that is the second after a checkpoint."""
    return lambda: any(line["step"] >= KILLED_AT for line in ledger(folder))


def in_mid_save(folder: Path) -> Callable[[], bool]:
    """Tell when a checkpoint after `SAVED_AT` is on its way to the disk."""
    before: list[int] = []

    def due() -> bool:
        if not any(line["step"] >= SAVED_AT for line in ledger(folder)):
            return False
        before.append(size(folder / "saved"))
        return before[-1] > before[0] + MID_SAVE_BYTES

    return due


def finish(process: subprocess.Popen[bytes], folder: Path) -> str | None:
    """Wait for a run's end; return the last line it printed if it failed."""
    if process.wait(DEADLINE) == 0:
        return None
    newest = max(folder.glob("log*"))
    return (newest.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]


def difference(left: Path, right: Path) -> float:
    """Return the largest difference of two runs' weights."""
    import safetensors.torch

    a, b = (safetensors.torch.load_file(folder / "final.safetensors") for folder in (left, right))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def count(lines: list[dict[str, Any]], *, num_images: int) -> dict[str, int]:
    """Count what the second epoch saw, over the steps whose result is in the final weights.

    Args:
        lines: of the ledger, two attempts.
        num_images: of an epoch.
    """
    first, second = ([line for line in lines if line["attempt"] == attempt] for attempt in ("0", "1"))
    resumed_at = second[0]["step"]
    kept = [line for line in first if line["step"] < resumed_at] + second
    epoch = [line for line in kept if STEPS_OF_EPOCH < line["step"] <= 2 * STEPS_OF_EPOCH]
    seen = Counter(image for line in epoch for image in line["ids"])
    return {
        "steps_lost": first[-1]["step"] - resumed_at,
        "seen_twice": sum(times > 1 for times in seen.values()),
        "never_seen": num_images - len(seen),
    }


def trial(system: str, scratch: Path, moment: Callable[[Path], Callable[[], bool]]) -> dict[str, Any]:
    """Kill a run at a moment, start it again, and compare."""
    folder = scratch / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    kill_when(start(system, folder, 0), moment(folder))
    if error := finish(start(system, folder, 1), folder):
        return {"error": error.replace(str(folder.resolve()), "RUN")}
    found = count(ledger(folder), num_images=20 * STEPS_OF_EPOCH)
    return found | {"difference": difference(folder, scratch / "whole")}


def measure(system: str) -> dict[str, Any]:
    """Return what one system does."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for folder in (scratch / "whole", scratch / "again"):
            if error := finish(start(system, folder, 0), folder):
                raise RuntimeError(f"{system}: {error}")
        repeats = difference(scratch / "whole", scratch / "again")
        shutil.rmtree(scratch / "again")
        package = system.partition("-")[0]
        return {
            "version": importlib.metadata.version(package),
            "undisturbed_runs_differ_by": repeats,
            "mid_epoch": trial(system, scratch, in_mid_epoch),
            "mid_save": trial(system, scratch, in_mid_save),
        }


def markdown(results: dict[str, Any]) -> str:
    """Return the table."""
    heads = ["", "version", "killed", "weights equal the undisturbed run's", "seen twice / never", "steps done again"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for system, found in results.items():
        for moment, words in (("mid_epoch", "in mid-epoch"), ("mid_save", "in mid-save")):
            row = found[moment]
            if "error" in row:
                cells = [f"does not resume: `{row['error'][:120]}`", "", ""]
            else:
                off = row["difference"]
                cells = [
                    "**to the bit**" if off == 0 else f"no, off by up to {off:.1e}",
                    f"{row['seen_twice']} / {row['never_seen']}",
                    str(row["steps_lost"]),
                ]
            lines.append("| " + " | ".join([TITLES[system], found["version"], words, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Kill all; write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    options = parser.parse_args()
    results = {}
    for system in options.systems:
        results[system] = measure(system)
        print(system, json.dumps(results[system]), flush=True)
    text = markdown(results)
    measuring.save("killed", {"machine": measuring.machine(), "systems": results}, text, folder=options.out)
    print(text)


if __name__ == "__main__":
    main()
