"""What a training step's communication costs between ranks: bytes, exposed seconds, with each hook and bucket size.

.venv/bin/python benchmarks/communication.py
.venv/bin/python benchmarks/communication.py --batches 64 --rounds 1 --steps 3

Starts its ranks itself, by `accelerate launch`: CPU processes over gloo with one thread each, or GPUs with --gpu. The
network, its optimizer and its wrapping in DDP are those of train.py; only the hook and the bucket size change. Each
step takes the same images, `--batches` of them a rank; the first `--bucket-mb` is measured at every batch size.

* Bytes of a step: the tensors handed to the all-reduce, as torch's profiler records their shapes and types in one step.
* Exposed communication: the seconds of a step minus those of the same step on the same network at the same time on all
  ranks, without DDP. Each step ends when the slowest rank has ended it, in both. What the exposed time holds besides
  the network's is therefore DDP's own: copying gradients into buckets, rounding them, waking its threads.
* All-reduce alone: one message of all gradients while nothing is computed. Bus bandwidth is 2(P-1)/P bytes / seconds.

Variants take turns within rounds; medians are shown.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ddp_model
import measuring
import torch
import torch.distributed as dist  # noqa: TID251 - the collective itself is measured
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, send_to_device
from measuring import Row
from torch.profiler import ProfilerActivity, profile

from alexnet_dist.commands import train_setup
from alexnet_dist.config import Config
from alexnet_dist.config import parse as parse_config
from alexnet_dist.data import ImageData, load, loader
from alexnet_dist.distributed import Hardware
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.models import alexnet
from alexnet_dist.training import TrainContext, eval_loop, progress, train_loop

Seconds = list[float]
Samples = dict[str, Any]

VALUE_BYTES = {"float": 4, "c10::BFloat16": 2, "c10::Half": 2}  # the profiler's names of types


# ---- on every rank --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What the measurements on a rank share."""

    options: argparse.Namespace
    config: Config
    accelerator: Accelerator
    hardware: Hardware
    dataset: ImageData

    def wait(self, *, alone: bool = False) -> None:
        """Wait for the device, then for the other ranks. Every rank must call it, unless it is alone."""
        if self.options.gpu:
            torch.cuda.synchronize()
        if not alone:
            self.accelerator.wait_for_everyone()

    def timed(self, work: Callable[[], object], count: int, *, warmup: int = 1, alone: bool = False) -> Seconds:
        """Return the seconds of something that all ranks do at once, as the slowest has ended it.

        Args:
            work: what is measured.
            count: how often.
            warmup: times before them.
            alone: this rank works while the others wait elsewhere.
        """
        taken = []
        for _ in range(warmup + count):
            self.wait(alone=alone)
            started = time.perf_counter()
            work()
            self.wait(alone=alone)
            taken.append(time.perf_counter() - started)
        return taken[warmup:]


def start(options: argparse.Namespace) -> Bench:
    """Form the group as train.py does."""
    flags = ["--data.dataset", "synthetic", "--data.image-size", str(options.image_size)]
    flags += ["--runtime.precision", options.precision, "--optim.name", "adamw", "--log.trackers"]
    flags += ["--out-dir", tempfile.gettempdir()]  # nothing is written there
    flags += ["--data.batch-size", str(128 * options.ranks)]  # of evaluations; those of steps are set one by one
    parsed = parse_config(flags if options.gpu else [*flags, "--runtime.cpu"])
    dataset = load(parsed.data)
    accelerator, precision = processes.make_accelerator(parsed)
    if not options.gpu:
        torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name() if options.gpu else "CPU"
    ranks, threads = accelerator.num_processes, torch.get_num_threads()
    hardware = Hardware(name, ranks, threads, precision, peak_flops=1.0)
    return Bench(options, parsed, accelerator, hardware, dataset)


@contextlib.contextmanager
def variant(bench: Bench, hook: str, bucket_mb: int) -> Iterator[tuple[TrainContext, train_setup.Loaders]]:
    """Build a network wrapped with this hook and bucket size, and take it apart at the end."""
    config, dataset, precision = bench.config, bench.dataset, bench.hardware.precision
    handler = bench.accelerator.ddp_handler
    handler.comm_hook = DDPCommunicationHookType["NO" if hook == "none" else hook.upper()]
    handler.bucket_cap_mb = bucket_mb
    size, num_classes = config.data.image_size, len(dataset.class_names)
    network = alexnet.build(config.model, num_classes=num_classes, seed=0, image_size=size)
    inputs = train_setup.make_inputs(config, dataset, None, precision.dtype)
    context, loaders, _ = train_setup.prepare(
        config, dataset, network, bench.accelerator, hardware=bench.hardware, inputs=inputs, waiting=lambda *_: False
    )
    try:
        yield context, loaders
    finally:
        del context, loaders, network
        bench.accelerator.free_memory()
        gc.collect()


def steps(
    bench: Bench, context: TrainContext, batch: int, *, count: int = 1, warmup: int = 1, alone: bool = False
) -> Seconds:
    """Return the seconds of single steps of `batch` images a rank; the rest as for `Bench.timed`."""
    train = bench.dataset.train
    stored = loader.gather(train.images, train.labels, [index % len(train) for index in range(batch)])
    images = send_to_device(stored, bench.accelerator.device)
    batches = [images] * (warmup + count + 1)  # the last of an epoch, where ranks talk about losses, is not taken
    loop = train_loop.train_epoch(context, batches, progress.Progress(), wants_record=lambda: False)
    return bench.timed(lambda: next(loop), count, warmup=warmup, alone=alone)


def measure_variant(bench: Bench, hook: str, bucket_mb: int, samples: Samples, *, is_reference: bool) -> None:
    """Add a round's steps of a variant, in seconds by images a rank: `together`, as they are; `apart`, without sending.

    Of the reference also `alone`, of one rank while the others wait; and, once, what is `sent` in a step.
    """
    options = bench.options
    several = bucket_mb == options.bucket_mb[0]  # the other bucket sizes are compared at one batch size
    with variant(bench, hook, bucket_mb) as (context, _):
        silent = dataclasses.replace(context, model=context.network)
        steps(bench, context, options.batches[0])  # DDP orders its buckets after the first step
        for batch in options.batches if several else options.batches[:1]:
            samples["together"][batch] += steps(bench, context, batch, count=options.steps)
            samples["apart"][batch] += steps(bench, silent, batch, count=options.steps)
            if is_reference and bench.accelerator.is_main_process:
                samples["alone"][batch] += steps(bench, silent, batch, count=options.steps, alone=True)
            bench.wait()
        if not samples["sent"]:
            samples["sent"] = count_bytes(bench, context)


def count_bytes(bench: Bench, context: TrainContext) -> dict[str, int]:
    """Return the messages and bytes that one step hands to the all-reduce, as the profiler records them."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        steps(bench, context, bench.options.batches[0], warmup=0)
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    sizes = []
    for event in events:
        facts = event.get("args", {})
        if event.get("name", "").endswith(":all_reduce") and "Input Dims" in facts:
            ((values,),), (kind,) = facts["Input Dims"], facts["Input type"]
            sizes.append(values * VALUE_BYTES[kind])
    return {"messages": len(sizes), "bytes_per_step": sum(sizes)}


def network_alone(bench: Bench) -> Row:
    """Time one message of all gradients while nothing is computed, and what the bf16 hook computes."""
    ranks, device = bench.options.ranks, bench.accelerator.device
    results: Row = {}

    def median_of(work: Callable[[], object]) -> float:
        return statistics.median(bench.timed(work, bench.options.messages))

    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        message = torch.zeros(ddp_model.GRADIENTS, dtype=dtype, device=device)
        seconds = median_of(lambda message=message: dist.all_reduce(message))  # type: ignore[misc]
        bandwidth = 2 * (ranks - 1) / ranks * message.nbytes / seconds
        results[name] = {"bytes": message.nbytes, "seconds": seconds, "bus_bytes_per_second": bandwidth}
    gradients = torch.zeros(ddp_model.GRADIENTS, device=device)
    results["rounding_seconds"] = median_of(lambda: gradients.copy_(gradients.to(torch.bfloat16).div_(ranks)))
    return results


def _middle(rounds: list[Row]) -> Row:
    """Return the median over the rounds of every number, whose places are the same in all."""
    return {
        name: _middle([found[name] for found in rounds])
        if isinstance(value, dict)
        else statistics.median(found[name] for found in rounds)
        for name, value in rounds[0].items()
    }


def evaluation_rate(bench: Bench) -> float:
    """Return test images a second of an evaluation on all ranks, the second of two."""
    with variant(bench, "none", bench.options.bucket_mb[0]) as (context, loaders):
        loop = (context.network, loaders.test, context.inputs, bench.accelerator)
        (seconds,) = bench.timed(lambda: eval_loop.evaluate(*loop), 1)
    return len(bench.dataset.test) / seconds


def work(given: Row) -> Row:
    """Measure on this rank, with the others, and return what `measure` describes."""
    options = argparse.Namespace(**given)
    bench = start(options)
    results: Row = {"precision": bench.hardware.precision.name, "device": bench.hardware.device}
    results["evaluation_images_per_second"] = evaluation_rate(bench)
    if options.ranks > 1:
        alone: list[Row] = []
        kinds = [(hook, bucket_mb) for bucket_mb in options.bucket_mb for hook in options.hooks]
        samples: dict[tuple[str, int], Samples] = {kind: defaultdict(lambda: defaultdict(list)) for kind in kinds}
        for _ in range(options.rounds):
            alone.append(network_alone(bench))
            for kind in kinds:
                measure_variant(bench, *kind, samples[kind], is_reference=kind == kinds[0])
        results["all_reduce"] = _middle(alone)
        results["alone"] = {batch: statistics.median(taken) for batch, taken in samples[kinds[0]]["alone"].items()}
        results["variants"] = [summary(*kind, taken) for kind, taken in samples.items()]
    bench.accelerator.end_training()
    return results


def summary(hook: str, bucket_mb: int, samples: Samples) -> Row:
    """Return a variant's medians, seconds by images a rank."""
    rows: dict[int, Row] = {}
    for batch, taken in samples["together"].items():
        silent = samples["apart"][batch]
        step, silent_step = statistics.median(taken), statistics.median(silent)
        rows[batch] = {
            "step": step,
            "silent_step": silent_step,
            "exposed": step - silent_step,
            "step_range": [min(taken), max(taken)],
            "silent_step_range": [min(silent), max(silent)],
            "samples": len(taken),
        }
    return {"hook": hook, "bucket_mb": bucket_mb, **samples["sent"], "batches": rows}


# ---- in the process that starts them --------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> Row:
    """Start the ranks and return what they measured; JSON makes the keys of its tables text."""
    used = measuring.settings(options)
    environment = {} if options.gpu else {"OMP_NUM_THREADS": str(options.threads)}
    found = measuring.call("communication", "work", used, ranks=options.ranks, environment=environment).found
    return {"options": used, **found}


def markdown(results: Row) -> str:
    """Return the tables."""
    reduced = results["all_reduce"]
    sent = [
        (
            name,
            f"{reduced[name]['bytes'] / 1e6:.1f} MB",
            f"{1e3 * reduced[name]['seconds']:.1f}",
            f"{reduced[name]['bus_bytes_per_second'] / 1e9:.2f}",
        )
        for name in ("fp32", "bf16")
    ]
    heads = ["hook", "buckets of", "messages", "bytes a step", "images a rank", "step, ms", "without sending, ms"]
    heads += ["exposed, ms", "one rank alone, ms", "efficiency"]
    rows = [
        (
            found["hook"],
            f"{found['bucket_mb']} MB",
            found["messages"],
            f"{found['bytes_per_step'] / 1e6:.1f} MB",
            batch,
            *(f"{1e3 * row[key]:.0f}" for key in ("step", "silent_step", "exposed")),
            f"{1e3 * results['alone'][batch]:.0f}",
            f"{results['alone'][batch] / row['step']:.0%}",
        )
        for found in results["variants"]
        for batch, row in found["batches"].items()
    ]
    parts = [
        f"{results['options']['ranks']} ranks on {results['device']}, {results['precision']}.\n",
        measuring.table(["all-reduce alone", "bytes", "ms", "bus bandwidth, GB/s"], sent),
        f"Rounding to bf16 and back alone: {1e3 * reduced['rounding_seconds']:.1f} ms.\n",
        measuring.table(heads, rows),
    ]
    return "\n".join(parts)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    lists = {"batches": [64, 2, 32, 128], "hooks": ["none", "bf16", "fp16"], "bucket_mb": [25, 1, 256]}
    numbers = {"ranks": 2, "steps": 4, "rounds": 3, "messages": 5, "image_size": 224, "threads": 1}
    parser = measuring.parser(__doc__, **lists, **numbers, precision="auto", gpu=False)
    parser.set_defaults(hooks=["none", "bf16"])
    return parser.parse_args(argv)


def main() -> None:
    """Measure, write and print."""
    options = parse()
    results = measure(options)
    measuring.save("communication", results, markdown(results), folder=options.out)


if __name__ == "__main__":
    main()
