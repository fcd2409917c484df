"""What a training step's communication costs between ranks: bytes, exposed seconds, with each hook and bucket size.

.venv/bin/python benchmarks/communication.py
.venv/bin/python benchmarks/communication.py --batches 64 --rounds 1 --steps 3

Starts its ranks itself, by `accelerate launch`: CPU processes over gloo with one thread each, or GPUs with --gpu. The
network, its optimizer and its wrapping in DDP are those of train.py; only the hook and the bucket size change.

* Bytes of a step: the tensors handed to the all-reduce, as torch's profiler records their shapes and types in one step.
* Exposed communication: the seconds of a step minus those of the same step on the same network at the same time on all
  ranks, without DDP. Each step ends when the slowest rank has ended it, in both. What the exposed time holds besides
  the network's is therefore DDP's own: copying gradients into buckets, rounding them, waking its threads.
* All-reduce alone: one message of all gradients while nothing is computed. Bus bandwidth is 2(P-1)/P bytes / seconds.

Variants take turns within rounds, so that what else the machine does falls on all of them; medians are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
import types
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ddp_model
import measuring

sys.path.insert(0, str(measuring.ROOT))  # train.py is no part of the package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator

    from alexnet_dist.config import Config
    from alexnet_dist.data.image_data import ImageData
    from alexnet_dist.distributed import hardware as hardware_module
    from alexnet_dist.training import train_loop

    Seconds = list[float]

MUTE: Any = types.SimpleNamespace(agree=lambda: False)  # for ranks that have nothing to agree on
SPARE_STEPS = 8  # of an epoch, so that no measurement meets its end, where ranks talk about losses
VALUE_BYTES = {"float": 4, "c10::BFloat16": 2, "c10::Half": 2}  # the profiler's names of types


# ---- on every rank --------------------------------------------------------------------------------------------------


@dataclass
class Samples:
    """Seconds of single steps by images a rank, gathered over the rounds."""

    together: dict[int, Seconds] = field(default_factory=lambda: defaultdict(list))
    """With communication."""
    apart: dict[int, Seconds] = field(default_factory=lambda: defaultdict(list))
    """All ranks computing, none sending."""
    alone: dict[int, Seconds] = field(default_factory=lambda: defaultdict(list))
    """Rank 0 computing, the others waiting."""
    sent: dict[str, int] = field(default_factory=dict)
    """Messages and bytes of a step."""


@dataclass(frozen=True)
class Bench:
    """What the measurements on a rank share."""

    options: argparse.Namespace
    config: Config
    accelerator: Accelerator
    hardware: hardware_module.Hardware
    dataset: ImageData

    def synchronize(self) -> None:
        """Wait for the device."""
        import torch

        if self.options.gpu:
            torch.cuda.synchronize()

    def wait(self) -> None:
        """Wait for the device, then for the other ranks. Every rank must call it."""
        self.synchronize()
        self.accelerator.wait_for_everyone()


def start(options: argparse.Namespace) -> Bench:
    """Form the group as train.py does."""
    import torch

    from alexnet_dist import config
    from alexnet_dist.data import sources
    from alexnet_dist.distributed import accelerator as accelerator_module
    from alexnet_dist.distributed import hardware as hardware_module

    flags = ["--data.dataset", "synthetic", "--data.image-size", str(options.image_size), "--epochs", "1000"]
    flags += ["--runtime.precision", options.precision, "--log.every-steps", "1000000", "--log.trackers"]
    flags += ["--out-dir", tempfile.gettempdir()]  # nothing is written there
    flags += ["--data.batch-size", str(128 * options.ranks)]  # of evaluations; those of steps are set one by one
    parsed = config.parse(flags if options.gpu else [*flags, "--runtime.cpu"])
    dataset = _repeated(sources.load(parsed.data), max(options.batches) * options.ranks * (options.steps + SPARE_STEPS))
    accelerator, precision = accelerator_module.make_accelerator(parsed)
    if not options.gpu:
        torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name() if options.gpu else "CPU"
    hardware = hardware_module.Hardware(
        name, accelerator.device.type, accelerator.num_processes, torch.get_num_threads(), precision, peak_flops=1.0
    )
    return Bench(options, parsed, accelerator, hardware, dataset)


def _repeated(dataset: ImageData, least: int) -> ImageData:
    """Repeat the training images until an epoch holds more steps than any measurement takes."""
    import numpy as np

    from alexnet_dist.data.image_data import Split

    times = -(-least // len(dataset.train))
    images, labels = (np.concatenate([array] * times) for array in (dataset.train.images, dataset.train.labels))
    return dataclasses.replace(dataset, train=Split(images, labels))


@contextlib.contextmanager
def variant(bench: Bench, hook: str, bucket_mb: int) -> Iterator[train_loop.Job]:
    """Build a network wrapped with this hook and bucket size, and take it apart at the end."""
    from accelerate.utils import DDPCommunicationHookType

    import train
    from alexnet_dist.models import alexnet

    handler = bench.accelerator.ddp_handler
    handler.comm_hook = DDPCommunicationHookType["NO" if hook == "none" else hook.upper()]
    handler.bucket_cap_mb = bucket_mb
    network = alexnet.build(bench.config.model, num_classes=len(bench.dataset.class_names), seed=0)
    job = train.prepare(bench.config, bench.dataset, network, bench.accelerator, bench.hardware)
    try:
        yield job
    finally:
        del job, network
        bench.accelerator.free_memory()
        gc.collect()


def with_batch(bench: Bench, job: train_loop.Job, batch: int) -> train_loop.Job:
    """Return the job with another number of images a rank."""
    from alexnet_dist.data import loader as loader_module
    from alexnet_dist.data import sampler

    train = bench.dataset.train
    order = sampler.GlobalBatches(len(train), batch * bench.options.ranks, seed=0, drop_last=True)
    loader = loader_module.loader(train.images, train.labels, order, pin_memory=bench.options.gpu)
    return dataclasses.replace(job, order=order, train_loader=bench.accelerator.prepare_data_loader(loader))


def steps(bench: Bench, job: train_loop.Job, count: int, *, warmup: int = 1, alone: bool = False) -> Seconds:
    """Return the seconds of single steps as the slowest rank has ended them.

    Args:
        bench: what the ranks share.
        job: whose steps.
        count: how many are measured.
        warmup: steps before them.
        alone: this rank computes while the others wait elsewhere.
    """
    from alexnet_dist.training import progress, train_loop

    wait = bench.synchronize if alone else bench.wait
    taken = []
    loop = train_loop.train_epoch(job, progress.Progress())
    for _ in range(warmup + count):
        wait()
        started = time.perf_counter()
        next(loop)
        wait()
        taken.append(time.perf_counter() - started)
    return taken[warmup:]


def measure_variant(bench: Bench, hook: str, bucket_mb: int, samples: Samples, *, is_reference: bool) -> None:
    """Add a round's samples of a variant; of the reference also those of one rank alone."""
    options = bench.options
    several = bucket_mb == options.bucket_mb[0]  # the other bucket sizes are compared at one batch size
    with variant(bench, hook, bucket_mb) as job:
        steps(bench, with_batch(bench, job, options.batches[0]), 1)  # DDP orders its buckets after the first step
        for batch in options.batches if several else options.batches[:1]:
            sized = with_batch(bench, job, batch)
            silent = dataclasses.replace(sized, model=bench.accelerator.unwrap_model(job.model), interrupts=MUTE)
            samples.together[batch] += steps(bench, sized, options.steps)
            samples.apart[batch] += steps(bench, silent, options.steps)
            if is_reference and bench.accelerator.is_main_process:
                samples.alone[batch] += steps(bench, silent, options.steps, alone=True)
            bench.wait()
        gradients_alone = dataclasses.replace(with_batch(bench, job, options.batches[0]), interrupts=MUTE)
        samples.sent = samples.sent or count_bytes(bench, gradients_alone)


def count_bytes(bench: Bench, job: train_loop.Job) -> dict[str, int]:
    """Return the messages and bytes that one step hands to the all-reduce, as the profiler records them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        steps(bench, job, 1, warmup=0)
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


def timed(bench: Bench, work: Callable[[], object]) -> float:
    """Return the median seconds of something that all ranks do at once."""
    taken = []
    for _ in range(bench.options.messages + 1):
        bench.wait()
        started = time.perf_counter()
        work()
        bench.wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def network_alone(bench: Bench) -> dict[str, Any]:
    """Time one message of all gradients while nothing is computed, and what the bf16 hook computes."""
    import torch
    import torch.distributed as dist  # noqa: TID251 - the collective itself is measured

    ranks, device = bench.options.ranks, bench.accelerator.device
    results: dict[str, Any] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        message = torch.zeros(ddp_model.GRADIENTS, dtype=dtype, device=device)
        seconds = timed(bench, lambda message=message: dist.all_reduce(message))  # type: ignore[misc]
        bandwidth = 2 * (ranks - 1) / ranks * message.nbytes / seconds
        results[name] = {"bytes": message.nbytes, "seconds": seconds, "bus_bytes_per_second": bandwidth}
    gradients = torch.zeros(ddp_model.GRADIENTS, device=device)
    results["rounding_seconds"] = timed(bench, lambda: gradients.copy_(gradients.to(torch.bfloat16).div_(ranks)))
    return results


def _middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median over the rounds of every number, whose places are the same in all."""
    return {
        name: _middle([found[name] for found in rounds])
        if isinstance(value, dict)
        else statistics.median(found[name] for found in rounds)
        for name, value in rounds[0].items()
    }


def evaluation_rate(bench: Bench) -> float:
    """Return test images a second of an evaluation on all ranks, the second of two."""
    from alexnet_dist.training import eval_loop

    with variant(bench, "none", bench.options.bucket_mb[0]) as job:
        for _ in range(2):
            bench.wait()
            started = time.perf_counter()
            eval_loop.evaluate(job)
            bench.wait()
            seconds = time.perf_counter() - started
    return job.num_eval_images / seconds


def work(options: argparse.Namespace) -> None:
    """Do what `measure` starts on every rank."""
    bench = start(options)
    results: dict[str, Any] = {"precision": bench.hardware.precision.name, "device": bench.hardware.device}
    results["evaluation_images_per_second"] = evaluation_rate(bench)
    if options.ranks > 1:
        alone: list[dict[str, Any]] = []
        kinds = [(hook, bucket_mb) for bucket_mb in options.bucket_mb for hook in options.hooks]
        samples = {kind: Samples() for kind in kinds}
        for _ in range(options.rounds):
            alone.append(network_alone(bench))
            for kind in kinds:
                measure_variant(bench, *kind, samples[kind], is_reference=kind == kinds[0])
        results["all_reduce"] = _middle(alone)
        results["alone"] = {batch: statistics.median(taken) for batch, taken in samples[kinds[0]].alone.items()}
        results["variants"] = [summary(*kind, taken) for kind, taken in samples.items()]
    if bench.accelerator.is_main_process:
        options.json.write_text(json.dumps(results), encoding="utf-8")
    bench.accelerator.end_training()


def summary(hook: str, bucket_mb: int, samples: Samples) -> dict[str, Any]:
    """Return a variant's medians, seconds by images a rank."""
    rows: dict[int, dict[str, Any]] = {}
    for batch, taken in samples.together.items():
        step, silent = statistics.median(taken), statistics.median(samples.apart[batch])
        rows[batch] = {
            "step": step,
            "silent_step": silent,
            "exposed": step - silent,
            "step_range": [min(taken), max(taken)],
            "silent_step_range": [min(samples.apart[batch]), max(samples.apart[batch])],
            "samples": len(taken),
        }
    return {"hook": hook, "bucket_mb": bucket_mb, **samples.sent, "batches": rows}


# ---- in the process that starts them --------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start the ranks and return what they measured; JSON makes the keys of its tables text."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found.json"
        launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num_processes", str(options.ranks)]
        launcher += ["--multi_gpu"] if options.ranks > 1 else []
        flags = [
            word
            for name, value in vars(options).items()
            if name not in ("json", "out") and value is not False
            for word in (f"--{name.replace('_', '-')}", *_words(value))
        ]
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        command = [*launcher, __file__, *flags, "--json", str(found)]
        measuring.run_child(command, environment={} if options.gpu else threads)
        results: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    used = {name: value for name, value in vars(options).items() if name not in ("json", "out")}
    return {"machine": measuring.machine(), "options": used, **results}


def _words(value: object) -> list[str]:
    if value is True:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def markdown(results: dict[str, Any]) -> str:
    """Return the tables."""
    ranks = results["options"]["ranks"]
    lines = [f"{ranks} ranks on {results['device']}, {results['precision']}.", ""]
    lines += ["| all-reduce alone | bytes | ms | bus bandwidth, GB/s |", "|---|---|---|---|"]
    for name in ("fp32", "bf16"):
        row = results["all_reduce"][name]
        cells = f"{row['bytes'] / 1e6:.1f} MB | {1e3 * row['seconds']:.1f} | {row['bus_bytes_per_second'] / 1e9:.2f}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", f"Rounding to bf16 and back alone: {1e3 * results['all_reduce']['rounding_seconds']:.1f} ms.", ""]
    heads = ["hook", "buckets of", "messages", "bytes a step", "images a rank", "step, ms", "without sending, ms"]
    heads += ["exposed, ms", "one rank alone, ms", "efficiency"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for found in results["variants"]:
        sent = f"{found['messages']} | {found['bytes_per_step'] / 1e6:.1f} MB"
        for batch, row in found["batches"].items():
            alone = results["alone"][batch]
            figures = " | ".join(f"{1e3 * row[key]:.0f}" for key in ("step", "silent_step", "exposed"))
            rest = f"{1e3 * alone:.0f} | {alone / row['step']:.0%}"
            lines.append(f"| {found['hook']} | {found['bucket_mb']} MB | {sent} | {batch} | {figures} | {rest} |")
    return "\n".join(lines) + "\n"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 2, 32, 128], help="images a rank")
    parser.add_argument("--hooks", nargs="+", default=["none", "bf16"], choices=["none", "bf16", "fp16"])
    parser.add_argument("--bucket-mb", type=int, nargs="+", default=[25, 1, 256], help="the first at every batch size")
    parser.add_argument("--steps", type=int, default=4, help="a batch size, variant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=5, help="all-reduces alone")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of each CPU rank")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each rank")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS, help="folder of communication.{json,md}")
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)  # given to the ranks
    return parser.parse_args(argv)


def main() -> None:
    """Measure, write and print; with --json, be one of the ranks."""
    options = parse()
    if options.json is not None:
        work(options)
        return
    results = measure(options)
    text = markdown(results)
    measuring.save("communication", results, text, folder=options.out)
    print(text)


if __name__ == "__main__":
    main()
