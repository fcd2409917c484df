"""What `gpu.sh` runs: train.py and communication.py on 1 to all GPUs, or with tiny sizes on CPU ranks (--smoke)."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import communication
import measuring
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


def measure(num_ranks: int, sizes: Sizes, *, smoke: bool) -> Row:
    """Run the plan, and the communication of every number of ranks in it."""
    found = functools.cache(functools.partial(communicate, sizes=sizes, smoke=smoke))

    def evaluation(ranks: int, precision: str) -> float:
        return float(found(ranks, precision)["evaluation_images_per_second"])

    cases = plan(num_ranks, sizes, smoke=smoke)
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        scaling.write_images(images, sizes.images)
        rows = []
        for case in cases:
            print(f"{case.kind}: {case.ranks} x {case.precision}, batch {case.batch}", flush=True)
            rows.append(measure_case(case, images, sizes, smoke=smoke, evaluation=evaluation))
    counts = sorted({case.ranks for case in cases if case.ranks > 1})
    exchanges = {str(count): found(count, "bf16") for count in counts}
    return {"smoke": smoke, "training": rows, "communication": exchanges}


def markdown(results: Row) -> str:
    """Return the tables."""
    rows = results["training"]
    alone = next(row for row in rows if (row["ranks"], row["precision"], row["compiled"]) == (1, "bf16", False))
    heads = ["run", "ranks", "global batch", "precision", "images/s", "of linear", "MFU", "s an epoch"]
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
        )
        for row in rows
    ]
    note = "A test of the script on CPU ranks with tiny sizes: these are no figures.\n\n" if results["smoke"] else ""
    tables = [communication.markdown(found) for found in results["communication"].values()]
    return note + "\n".join([measuring.table(heads, cells), *tables])


def main() -> None:
    """Measure all GPUs, or the CPU in the smoke mode; write and print."""
    import torch

    options = measuring.parser(__doc__, smoke=False).parse_args()
    smoke = options.smoke or not torch.cuda.is_available()
    results = measure(2 if smoke else torch.cuda.device_count(), SMOKE if smoke else GPU, smoke=smoke)
    measuring.save("gpu", results, markdown(results), folder=options.out)


if __name__ == "__main__":
    main()
