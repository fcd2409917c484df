"""What `gpu.sh` runs, part by part, on 1 to all GPUs, or with tiny sizes on a CPU and two of its ranks (--smoke).

Parts come in the order of their worth, and each is in gpu.json before the next begins; one that fails leaves the reason
there, and one that would begin after `--minutes` is left out.
"""

import argparse
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import communication
import levers
import measuring
import peers
import scaling
from measuring import Row

EPOCH, TEST = 50_000, 10_000  # images of CIFAR-10


class Case(NamedTuple):
    """One run of train.py, of the kind variant, weak or strong; `batch` images of a step over all ranks."""

    kind: str
    ranks: int
    batch: int
    precision: str
    compiled: bool = False


class Sizes(NamedTuple):
    """How large and how long the runs are; the last three are for communication.py, `batches` images a rank."""

    batch: int
    images: int
    image_size: int
    steps: int
    every: int
    """Steps of a record; the first record is left out."""
    rounds: int
    messages: int
    batches: tuple[int, ...]


GPU = Sizes(batch=512, images=EPOCH, image_size=224, steps=60, every=10, rounds=3, messages=20, batches=(512, 64))
SMOKE = Sizes(batch=4, images=64, image_size=64, steps=2, every=1, rounds=1, messages=1, batches=(4,))


def plan(num_ranks: int, sizes: Sizes, *, smoke: bool) -> list[Case]:
    """Return the runs; the CPU of the smoke mode has no fp16, and compiling there takes longer than all else."""
    precisions = ("fp32", "bf16") if smoke else ("fp32", "bf16", "fp16")
    compiled = (False,) if smoke else (False, True)
    cases = [Case("variant", 1, sizes.batch, precision, flag) for precision in precisions for flag in compiled]
    counts = sorted({*(2**power for power in range(1, num_ranks.bit_length())), num_ranks} - {1})
    cases += [Case("weak", count, sizes.batch * count, "bf16") for count in counts]
    return cases + [Case("strong", count, sizes.batch // count * count, "bf16") for count in counts]


def measure_case(case: Case, images: Path, sizes: Sizes, *, smoke: bool, evaluation: Callable[..., float]) -> Row:
    """Return the figures of one run."""
    flags = ["--data.image-size", str(sizes.image_size), "--log.every-steps", str(sizes.every), "--log.trackers"]
    flags += ["--data.batch-size", str(case.batch), "--runtime.precision", case.precision]
    flags += ["--max-steps", str(sizes.steps + sizes.every), *(["--runtime.cpu"] if smoke else [])]
    flags += ["--runtime.compile"] if case.compiled else []
    run = scaling.train_on(images, *flags, ranks=case.ranks)
    rate = measuring.rate(run.records)
    tested = evaluation(case.ranks, case.precision)
    return {
        **case._asdict(),
        "images_per_second": rate,
        "start_seconds": sizes.every * (run.records[0]["perf/step_ms"] / 1e3 - case.batch / rate),
        "mfu": rate * run.summary["flops_per_image"] / run.summary["peak_tflops"] / 1e12,
        "evaluation_images_per_second": tested,
        "epoch_seconds": EPOCH / rate + TEST / tested,
    }


def communicate(ranks: int, precision: str, sizes: Sizes, *, smoke: bool) -> Row:
    """Return what communication.py finds on so many ranks; on one, only the rate of the evaluation."""
    flags = {"ranks": ranks, "precision": precision, "image-size": sizes.image_size, "rounds": sizes.rounds}
    flags |= {"messages": sizes.messages, "steps": sizes.steps, "bucket-mb": 25}
    words = [f"--{name}={value}" for name, value in flags.items()] + ([] if smoke else ["--gpu"])
    return communication.measure(communication.parse([*words, "--batches", *map(str, sizes.batches)]))


# ---- one GPU --------------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """What the parts measure with."""

    sizes: Sizes
    smoke: bool
    images: Path
    """CIFAR-10's size and number of images, in Hub layout."""
    folder: Path
    """Of files that stay: the profile."""

    @property
    def flags(self) -> list[str]:
        """Options of train.py at the plan's batch, in bf16."""
        sizes = self.sizes
        words = ["--data.image-size", str(sizes.image_size), "--data.batch-size", str(sizes.batch), "--log.trackers"]
        words += ["--runtime.precision", "bf16", "--log.every-steps", str(sizes.every)]
        return [*words, *(["--runtime.cpu"] if self.smoke else [])]

    @property
    def rate_flags(self) -> list[str]:
        """With the number of steps that a rate is taken over."""
        return [*self.flags, "--max-steps", str(self.sizes.steps + self.sizes.every)]


def correctness(machine: Machine) -> Row:
    """Run the tests that need a GPU; without one they are collected."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/integration/test_gpu.py",
    ]
    command += ["--collect-only"] if machine.smoke else []
    done = subprocess.run(command, cwd=measuring.ROOT, check=False, capture_output=True, text=True)
    return {"exit_code": done.returncode, "said": done.stdout.splitlines()[-30:]}


def measure_peers(machine: Machine) -> Row:
    """Return images a second of each loop of peers.py; those with workers of the better of two numbers."""
    cores = len(os.sched_getaffinity(0))
    task = {"dataset": str(machine.images), "batch_size": machine.sizes.batch, "image_size": machine.sizes.image_size}
    task |= {"warmup": machine.sizes.every, "threads": None}
    found: Row = {}
    for name in peers.GPU_PEERS:
        if name in ("lightning", "timm") and importlib.util.find_spec(name) is None:
            found[name] = {"left_out": f"{name} is not installed: --wheels DIR"}
            continue
        by_hand = {"expert": (0,), "lecture": (4,)}
        steps = machine.sizes.steps if name == "expert" else max(1, machine.sizes.steps // 4)
        rows = []
        for workers in (1,) if machine.smoke else by_hand.get(name, (cores // 2, cores)):
            row = measuring.call("peers", "run", name, {**task, "steps": steps, "workers": workers}).found
            rows.append({**row, "images_per_second": row["images"] / row["seconds"]})
        best = max(rows, key=lambda row: row["images_per_second"])
        found[name] = {key: best[key] for key in ("images_per_second", "workers", "version")}
    return found


def measure_levers(machine: Machine) -> Row:
    """Return images a second with each lever off, and with all on."""
    names = ["none", *levers.GPU_LEVERS][: 3 if machine.smoke else None]
    return {lever: levers.measure(lever, flags=lever_flags(machine)) for lever in names}


def lever_flags(machine: Machine) -> list[str]:
    """Return options of train.py under which an epoch of some steps warms up, as `levers.measure` counts."""
    limit = ["--data.limit", str(machine.sizes.every * machine.sizes.batch), "--checkpoint.every-epochs", "1000"]
    data = ["--data.dataset", str(machine.images), "--data.cache-dir", str(machine.images.parent / "cache")]
    return [*machine.rate_flags, *limit, *data]


def measure_profile(machine: Machine) -> Row:
    """Return the seconds of a step's sections; the table of operators is kept beside gpu.json."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        words = [*measuring.SILENT, *machine.flags, "--max-steps", "8", "--profile", "--out-dir", str(run)]
        measuring.run_child(["train.py", *words])
        machine.folder.mkdir(parents=True, exist_ok=True)
        (machine.folder / "gpu_operators.txt").write_bytes((run / "profile" / "operators.txt").read_bytes())
        return {"sections": measuring.sections(run / "profile" / "trace.json")}


def write_photographs(folder: Path, count: int) -> None:
    """Write class folders of JPEGs of noise, half as large each way as most photographs of ImageNet."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(count):
            place = folder / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
            small.resize((256, 192), Image.Resampling.BICUBIC).save(place / f"{number}.jpg")


def measure_photographs(machine: Machine) -> Row:
    """Return images a second of photographs, and the share of time that their batches were waited for, by store."""
    found: Row = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_photographs(Path(scratch) / "photos", machine.sizes.images // 16)
        words = ["--data.dataset", str(Path(scratch) / "photos"), "--data.cache-dir", str(Path(scratch) / "cache")]
        words += ["--data.fit", "crop", *machine.rate_flags]
        for store in ("pixels", "encoded"):
            run = measuring.train(*words, "--data.store", store)
            waits = [record["perf/data_wait_pct"] for record in run.records[1:]]
            found[store] = {"images_per_second": measuring.rate(run.records), "data_wait_pct": sum(waits) / len(waits)}
    return found


def measure_use(machine: Machine) -> Row:
    """Return the seconds of `evaluate` and of `predict` on so many images, from their start to their end."""
    cpu = ["--runtime.cpu"] if machine.smoke else []
    count = machine.sizes.images // 16
    with tempfile.TemporaryDirectory() as scratch:
        run, photos = Path(scratch) / "run", Path(scratch) / "photos"
        measuring.run_child(["train.py", *measuring.SILENT, *machine.flags, "--max-steps", "1", "--out-dir", str(run)])
        write_photographs(photos, count)
        program = ["-m", "alexnet_dist"]
        evaluated = measuring.run_child([*program, "evaluate", str(run), *cpu])
        predicted = measuring.run_child([*program, "predict", str(run), str(photos / "test"), *cpu])
    return {"evaluate": {"seconds": evaluated.seconds}, "predict": {"pictures": count, "seconds": predicted.seconds}}


def all_reduce_of_one(backend: str, count: int) -> Row:
    """Return the seconds of an all-reduce of 228 MB among one rank: what NCCL costs before any link does."""
    import torch
    from torch import distributed as dist  # noqa: TID251 - NCCL itself is measured

    with tempfile.NamedTemporaryFile() as meeting:
        dist.init_process_group(backend, init_method=f"file://{meeting.name}_", rank=0, world_size=1)
        message = torch.zeros(57_044_810, device="cuda" if backend == "nccl" else "cpu")
        seconds = []
        for _ in range(count + 1):
            started = time.perf_counter()
            dist.all_reduce(message)
            if message.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        dist.destroy_process_group()
    return {"backend": backend, "seconds": min(seconds[1:])}


def measure_one_rank(machine: Machine) -> Row:
    """Return what `all_reduce_of_one` does, in a process of its own."""
    backend = "gloo" if machine.smoke else "nccl"
    found: Row = measuring.call("gpu", "all_reduce_of_one", backend, machine.sizes.messages).found
    return found


# ---- the parts ------------------------------------------------------------------------------------------------------


def measure(num_ranks: int, machine: Machine, *, minutes: float, save: Callable[[Row], object]) -> Row:
    """Measure every part, and hand over what there is after each."""
    sizes, smoke = machine.sizes, machine.smoke
    found = functools.cache(functools.partial(communicate, sizes=sizes, smoke=smoke))

    def evaluation(ranks: int, precision: str) -> float:
        return float(found(ranks, precision)["evaluation_images_per_second"])

    def case(case: Case) -> Row:
        return measure_case(case, machine.images, sizes, smoke=smoke, evaluation=evaluation)

    cases = plan(num_ranks, sizes, smoke=smoke)
    first = [one for one in cases if one.ranks == 1 and one.precision == "bf16"]
    several = [one for one in cases if one.ranks > 1]
    results: Row = {"smoke": smoke, "training": [], "seconds": {}, "failed": {}, "left_out": [], "communication": {}}
    parts: list[tuple[str, Callable[[], Any]]] = [("correctness", lambda: correctness(machine))]
    parts += [(f"train.py {' '.join(map(str, one))}", functools.partial(case, one)) for one in first]
    parts += [("peers", lambda: measure_peers(machine)), ("levers", lambda: measure_levers(machine))]
    parts += [("profile", lambda: measure_profile(machine)), ("photographs", lambda: measure_photographs(machine))]
    parts += [("use", lambda: measure_use(machine)), ("one rank", lambda: measure_one_rank(machine))]
    rest = [one for one in cases if one not in first and one not in several]
    parts += [(f"train.py {' '.join(map(str, one))}", functools.partial(case, one)) for one in [*several, *rest]]
    parts += [(f"communication {n}", functools.partial(found, n, "bf16")) for n in sorted({c.ranks for c in several})]
    begun = time.monotonic()
    for name, part in parts:
        started = time.monotonic()
        if started - begun > 60 * minutes:
            results["left_out"].append(name)
            continue
        print(f"{started - begun:5.0f} s  {name}", flush=True)
        try:
            made = part()
        except (RuntimeError, OSError, ValueError, KeyError, StopIteration) as error:
            results["failed"][name] = str(error)[-2000:]
            print(f"         failed: {str(error)[-500:]}", flush=True)
        else:
            if name.startswith("train.py"):
                results["training"].append(made)
            elif name.startswith("communication"):
                results["communication"][name.split()[1]] = made
            else:
                results[name] = made
        results["seconds"][name] = round(time.monotonic() - started, 1)
        save(results)
    return results


def markdown(results: Row) -> str:
    """Return the tables."""
    rows = results["training"]
    of_one = [row for row in rows if (row["ranks"], row["precision"], row["compiled"]) == (1, "bf16", False)]
    alone = of_one[0] if of_one else {"images_per_second": float("nan")}
    heads = ["run", "ranks", "global batch", "precision", "images/s", "of linear", "MFU", "s an epoch", "start, s"]
    cells = [
        (
            row["kind"],
            row["ranks"],
            row["batch"],
            row["precision"] + (", compiled" if row["compiled"] else ""),
            f"{row['images_per_second']:,.0f}",
            f"{row['images_per_second'] / row['ranks'] / alone['images_per_second']:.0%}" if row["ranks"] > 1 else "",
            f"{row['mfu']:.2f}",
            f"{row['epoch_seconds']:.2f}",
            f"{row['start_seconds']:.1f}",
        )
        for row in rows
    ]
    start = (
        '"Start" is what the first record\'s steps took longer than others: compiling, memory, the first kernels.\n\n'
    )
    note = "A test of the script on CPU ranks with tiny sizes: these are no figures.\n\n" if results["smoke"] else ""
    tables = [communication.markdown(found) for found in results["communication"].values()]
    best = max((row["images_per_second"] for row in rows if row["ranks"] == 1), default=float("nan"))
    if "peers" in results:
        loops = [
            (name, found["left_out"], "", "")
            if "left_out" in found
            else (
                name,
                f"{found['images_per_second']:,.0f}",
                f"{best / found['images_per_second']:.2f}",
                found["workers"],
            )
            for name, found in results["peers"].items()
        ]
        tables.append(measuring.table(["loop", "images/s", "train.py's best row is faster by", "workers"], loops))
    if "levers" in results:
        all_on = results["levers"]["none"]
        worth = [(name, f"{rate:,.0f}", f"{all_on / rate:.2f}") for name, rate in results["levers"].items()]
        tables.append(measuring.table(["lever off", "images/s", "slower by a factor of"], worth))
    others = [name for name in ("correctness", "profile", "photographs", "use", "one rank") if name in results]
    lines = [f"* {name}: {results[name]}\n" for name in others]
    lines += [f"* {name} failed: {words.splitlines()[-1:]}\n" for name, words in results["failed"].items()]
    lines += [f"* {name} was left out: time was up\n" for name in results["left_out"]]
    return note + start + "\n".join([measuring.table(heads, cells), *tables, "".join(lines)])


def install(wheels: Path) -> None:
    """Install the peers' packages that are missing, from a folder of wheels and from nowhere else."""
    missing = [name for name in ("lightning", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--find-links",
            str(wheels),
            *missing,
        ]
        subprocess.run(command, check=True)
        importlib.invalidate_caches()


def main() -> int:
    """Measure all GPUs, or the CPU in the smoke mode; write after each part, and print."""
    import torch

    options: argparse.Namespace = measuring.parser(__doc__, smoke=False, minutes=9.0, wheels=Path()).parse_args()
    if options.wheels != Path():
        install(options.wheels)
    smoke = options.smoke or not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        machine = Machine(SMOKE if smoke else GPU, smoke, Path(scratch) / "images", options.out)
        scaling.write_images(machine.images, machine.sizes.images)

        def save(results: Row) -> None:
            measuring.save("gpu", results, markdown(results), folder=options.out, is_silent=True)

        ranks, minutes = (2, 60.0) if smoke else (torch.cuda.device_count(), options.minutes)
        results = measure(ranks, machine, minutes=minutes, save=save)
    measuring.save("gpu", results, markdown(results), folder=options.out)
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
