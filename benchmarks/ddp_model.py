"""An analytic model of data-parallel AlexNet: seconds of a step from rates, bytes and links. A model, no measurement.

    step = b/r + fixed + max(T - h b/r, tail)          where there are several ranks, else b/r + fixed
    T    = c (2 (P-1)/P N g / B + latency)

r images a second of a rank; b images a rank and step; fixed seconds that do not depend on b (optimizer, casts of the
weights); N gradients of g bytes; B bytes a second of bus bandwidth as nccl-tests defines it
(https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md); h the share of b/r under which the all-reduce can
hide: 95.7 % of the gradients are those of fc6 to fc8, ready before the backward pass of the convolutions begins; tail
the convolutions' own, which are ready only at its end; c the contention of ranks that compute meanwhile: 1 where the
network has processors of its own, fitted where it has not (`benchmarks/scaling.py`). The form is that of Shi, Wang and
Chu (arXiv:1805.03812). It knows no launch overheads and no waiting for the slowest, so it is an upper bound.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

CONVOLUTIONS = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))  # inputs, outputs, side
LINEAR = ((9216, 4096), (4096, 4096), (4096, 10))  # fc6, fc7, fc8: inputs, outputs
NODE = 8  # GPUs in a machine


def conv_macs(image_size: int = 224) -> tuple[int, ...]:
    """Return each convolution's multiplications for one image, forward."""
    first = (image_size + 4 - 11) // 4 + 1
    second = (first - 3) // 2 + 1  # a pooling of 3 with stride 2
    third = (second - 3) // 2 + 1
    sides = (first, second, third, third, third)
    return tuple(i * o * k * k * side * side for (i, o, k), side in zip(CONVOLUTIONS, sides, strict=True))


LINEAR_MACS = sum(i * o for i, o in LINEAR)
CONV_GRADIENTS = sum(i * o * k * k + o for i, o, k in CONVOLUTIONS)
GRADIENTS = CONV_GRADIENTS + LINEAR_MACS + sum(o for _, o in LINEAR)


def training_flops(image_size: int = 224) -> int:
    """Return operations of one image, forward and backward; conv1 has no gradient with respect to its input."""
    macs = conv_macs(image_size)
    return 2 * (3 * (sum(macs) + LINEAR_MACS) - macs[0])


def window(image_size: int = 224) -> float:
    """Return h: the backward pass of the convolutions as a share of a step's operations (0.60 at 224)."""
    macs = conv_macs(image_size)
    return 2 * (2 * sum(macs) - macs[0]) / training_flops(image_size)


@dataclass(frozen=True)
class Link:
    """What gradients travel over."""

    name: str
    bandwidth: float
    """Of the bus, bytes a second."""
    latency: float = 10e-6
    """Seconds of one hop of one message."""
    messages: int = 4
    """All-reduces a step. DDP makes 3 of AlexNet with its buckets of 25 MB: fc8 with fc7, fc6, the convolutions."""
    widest: int | None = None
    """GPUs of the largest machine that has such a link; None for a network."""


# Typical bus bandwidths of nccl-tests, as published; not measured here.
LINKS = {
    link.name: link
    for link in (
        Link("NVLink 4", 370e9, widest=NODE),
        Link("NVLink 3", 230e9, widest=NODE),
        Link("PCIe 4", 20e9, widest=NODE),
        Link("InfiniBand 200 Gb/s", 22e9),
        Link("Ethernet 100 Gb/s", 10e9),
        Link("Ethernet 25 Gb/s", 2.7e9),
        Link("Ethernet 10 Gb/s", 1.1e9),
    )
}


@dataclass(frozen=True)
class Machine:
    """What a rank computes on."""

    name: str
    rate: float
    """Images a second of one rank alone, optimizer left out."""
    fixed_seconds: float = 28 * GRADIENTS / 2e12
    """Of a step, whatever its batch. Adam reads and writes 28 bytes a parameter; 2 TB/s is an A100's memory."""
    window: float = window()
    """h, the share of b/r under which communication hides; 0 where it takes the processors from the computation."""
    contention: float = 1.0
    """Factor on the all-reduce's time when ranks compute meanwhile."""
    matmul_flops: float = 0.0
    """Operations a second of a large matrix product; 0 takes what `rate` implies for the whole network."""


P100 = Machine("P100", 2_987)  # published: tensorflow.org/guide/performance/benchmarks, batch 512
A100 = Machine("A100", 20_000, matmul_flops=250e12)  # assumed: 26 % of its 312 TFLOP/s; 80 % in a large product
H100 = Machine("H100", 55_000, matmul_flops=790e12)  # the rate is assumed; the product was measured on such a card


def hops(ranks: int) -> int:
    """Return the hops of an all-reduce one after another: along a machine's GPUs, and as a tree between machines.

    The latency of NCCL's tree algorithm in its own model (src/graph/tuning.cc); up to 8 ranks also that of a ring.
    """
    machines = math.ceil(ranks / NODE)
    return 2 * (min(ranks, NODE) - 1 + math.ceil(math.log2(machines)))


def all_reduce_seconds(link: Link, *, ranks: int, num_bytes: float) -> float:
    """Return the seconds of a step's all-reduces alone, over ranks that do nothing else."""
    return 2 * (ranks - 1) / ranks * num_bytes / link.bandwidth + hops(ranks) * link.latency * link.messages


def compute_seconds(machine: Machine, *, batch: int) -> float:
    """Return the seconds of a step that sends nothing, of `batch` images a rank."""
    return batch / machine.rate + machine.fixed_seconds


def exposed_seconds(
    machine: Machine, link: Link, *, ranks: int, batch: int, gradient_bytes: int = 4, extra: float = 0.0
) -> float:
    """Return the seconds of communication that no computation hides, with `batch` images a rank.

    A gradient takes 4 bytes on the link, or 2 by a bf16 hook; nothing hides `extra`, what a hook computes.
    """
    if ranks == 1:
        return 0.0
    whole = all_reduce_seconds(link, ranks=ranks, num_bytes=GRADIENTS * gradient_bytes)
    return _exposed(machine, link, whole, ranks=ranks, batch=batch, gradient_bytes=gradient_bytes) + extra


def _exposed(machine: Machine, link: Link, sent: float, *, ranks: int, batch: int, gradient_bytes: int) -> float:
    """Return the exposed part of `sent` seconds of messages: what the window leaves, and at least the tail."""
    tail = 2 * (ranks - 1) / ranks * CONV_GRADIENTS * gradient_bytes / link.bandwidth
    return max(machine.contention * sent - machine.window * batch / machine.rate, machine.contention * tail)


def step_seconds(
    machine: Machine, link: Link, *, ranks: int, batch: int, gradient_bytes: int = 4, extra: float = 0.0
) -> float:
    """Return the seconds of a step; the arguments are those of `exposed_seconds`."""
    exposed = exposed_seconds(machine, link, ranks=ranks, batch=batch, gradient_bytes=gradient_bytes, extra=extra)
    return compute_seconds(machine, batch=batch) + exposed


def efficiency(machine: Machine, link: Link, *, ranks: int, batch: int, gradient_bytes: int = 4) -> float:
    """Return the throughput of `ranks` over `ranks` times that of one, with the same images a rank."""
    step = step_seconds(machine, link, ranks=ranks, batch=batch, gradient_bytes=gradient_bytes)
    return compute_seconds(machine, batch=batch) / step


# ---- sufficient factors ---------------------------------------------------------------------------------------------
# The weight gradient of a linear layer over B images is a sum of B outer products of its input and the gradient of its
# output. Where B is small these factors are fewer bytes than their product: gather them, multiply on every rank
# (Poseidon, arXiv:1706.03292).


def factor_bytes(global_batch: int, *, layers: int = 2, value_bytes: int = 2) -> int:
    """Return the bytes of all ranks' factors of the first `layers` linear layers."""
    return value_bytes * global_batch * sum(i + o for i, o in LINEAR[:layers])


def factor_ratio(global_batch: int, *, layers: int = 2) -> float:
    """Return how many times fewer bytes those layers' factors are on the link than their gradients, of equal type.

    A gather moves (P-1)/P of its bytes through each rank, an all-reduce twice that, so P cancels.
    """
    gradients = sum(i * o for i, o in LINEAR[:layers])
    return 2 * gradients / factor_bytes(global_batch, layers=layers, value_bytes=1)


def factor_step_seconds(machine: Machine, link: Link, *, ranks: int, batch: int, value_bytes: int = 2) -> float:
    """Return the seconds of a step that gathers the factors of fc6 and fc7 and all-reduces the rest.

    Every rank then computes the weight gradients of these two layers over the global batch, after the gather.
    """
    if ranks == 1:
        return compute_seconds(machine, batch=batch)
    large = sum(i * o for i, o in LINEAR[:2])
    gather = (ranks - 1) / ranks * factor_bytes(ranks * batch, value_bytes=value_bytes) / link.bandwidth
    rest = all_reduce_seconds(link, ranks=ranks, num_bytes=(GRADIENTS - large) * value_bytes)
    products = (ranks - 1) * batch * 2 * large / (machine.matmul_flops or machine.rate * training_flops())
    exposed = _exposed(machine, link, gather + rest, ranks=ranks, batch=batch, gradient_bytes=value_bytes)
    return compute_seconds(machine, batch=batch) + products + exposed


def factor_cases(
    machine: Machine, links: Iterable[Link], *, ranks: Sequence[int], batches: Sequence[int]
) -> list[dict[str, Any]]:
    """Compare both exchanges on paper, leaving out machines that do not exist.

    Returns:
        Rows with the seconds of a step with the bf16 all-reduce, with factors, and those that one rank alone takes for
        the same global batch: where both others take longer, nobody should spread it.
    """
    return [
        {
            "machine": machine.name,
            "link": link.name,
            "ranks": num,
            "batch": batch,
            "all_reduce": step_seconds(machine, link, ranks=num, batch=batch, gradient_bytes=2),
            "factors": factor_step_seconds(machine, link, ranks=num, batch=batch),
            "alone": compute_seconds(machine, batch=num * batch),
        }
        for link, num, batch in product(links, ranks, batches)
        if link.widest is None or num <= link.widest
    ]


# ---- fitting --------------------------------------------------------------------------------------------------------


def fit_compute(name: str, *, small: tuple[int, float], large: tuple[int, float]) -> Machine:
    """Return the machine whose steps without communication took (images, seconds).

    Nearly all of the small step is the fixed part; the large one is a usual step.
    """
    rate = (large[0] - small[0]) / (large[1] - small[1])
    return Machine(name, rate, fixed_seconds=max(0.0, small[1] - small[0] / rate))


def fit_shared_cores(machine: Machine, link: Link, *, ranks: int, exposed: float) -> Machine:
    """Return the machine with the one factor that explains an exposed time, for ranks that compute and send on one CPU.

    There the all-reduce runs on the cores that compute, so it hides under nothing (h = 0), and its time is that of an
    all-reduce alone times the contention.
    """
    alone = all_reduce_seconds(link, ranks=ranks, num_bytes=GRADIENTS * 4)
    return replace(machine, window=0.0, contention=exposed / alone)
