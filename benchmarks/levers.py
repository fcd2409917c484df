"""What each lever of the fast path is worth: the real train.py, with one of them off at a time.

.venv/bin/python benchmarks/levers.py                    # 3 rounds at batch 512, half an hour on two CPU cores
.venv/bin/python benchmarks/levers.py --levers memory dropout --rounds 1

In every round all variants run one after another, but for those that the first round found to be large; a lever's
worth is the median, over the rounds, of the speed with all levers over the speed without this one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measuring

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(measuring.ROOT))

WARM_UP, TIMED = 5, 6  # steps; the first are an epoch
LARGE = 1.3  # a lever worth more is measured in the first round only: no repetition would change what is said of it


def without_memory() -> None:
    """Return freed memory to the system at once, as glibc does by default."""
    from alexnet_dist.distributed import hardware

    hardware.keep_freed_memory = lambda: None


def without_batched_enlargement() -> None:
    """Enlarge image by image with Pillow, in two worker processes."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader

    from alexnet_dist.data import loader as loader_module

    class PillowSplit(loader_module._IndexedSplit):  # noqa: SLF001 - what it does differently is the measurement
        def __getitems__(self, indices: list[int]) -> Any:  # noqa: ANN401
            batch = super().__getitems__(indices)
            images = (Image.fromarray(image) for image in batch["images"].permute(0, 2, 3, 1).numpy())
            enlarged = [np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) for image in images]
            return {**batch, "images": torch.from_numpy(np.stack(enlarged)).permute(0, 3, 1, 2)}

    def loader(images: Any, labels: Any, order: Any, *, pin_memory: bool) -> Any:  # noqa: ANN401
        split = PillowSplit(images, labels)
        collate = loader_module._as_is  # noqa: SLF001
        return DataLoader(split, batch_sampler=order, collate_fn=collate, pin_memory=pin_memory, num_workers=2)

    loader_module.loader = loader


def without_fused_input() -> None:
    """Write the normalised batch in float32 without its margin, pad it, and let autocast convert it."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from alexnet_dist.data import augment, inputs
    from alexnet_dist.data import resize as resize_module

    def call(self: Any, images: torch.Tensor, draws: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ANN401
        if draws is not None:
            images = augment.crop_and_flip(images, draws)
        enlarged = resize_module.enlarge(images, self.image_size).contiguous(memory_format=torch.channels_last)
        mean, std = (torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return F.pad((enlarged - mean).div_(std), self.margin * 2).contiguous(memory_format=torch.channels_last)

    inputs.Preprocess.__call__ = call


def without_space_to_depth() -> None:
    """Compute conv1 as torch does, over three channels."""
    from torch import nn

    from alexnet_dist.models import fast_layers

    fast_layers.Conv1.forward = nn.Conv2d.forward


def without_pool_first() -> None:
    """Leave each ReLU before its pool."""
    from alexnet_dist.models import fast_layers

    fast_layers._pool_before_relu = lambda _features: None  # noqa: SLF001


def without_skipped_average_pool() -> None:
    """Average 6 x 6 maps to 6 x 6."""
    from torch import nn

    from alexnet_dist.models import fast_layers

    fast_layers.AveragePool.forward = nn.AdaptiveAvgPool2d.forward


def without_cheap_dropout() -> None:
    """Draw torch's own dropout masks."""
    from torch import nn

    from alexnet_dist.models import fast_layers

    fast_layers.Dropout.forward = nn.Dropout.forward


def without_channels_last() -> None:
    """Keep images and weights in torch's default order of memory, and conv1 as torch computes it there."""
    import torch

    from alexnet_dist.data import inputs

    without_space_to_depth()
    torch.channels_last = torch.contiguous_format
    call = inputs.Preprocess.__call__
    inputs.Preprocess.__call__ = lambda *arguments: call(*arguments).contiguous()


def without_fused_optimizer() -> None:
    """Update the weights one tensor and one operation at a time."""
    from alexnet_dist.training import optimizer as optimizer_module

    build = optimizer_module.build

    def unfused(*arguments: Any) -> Any:  # noqa: ANN401
        optimizer = build(*arguments)
        for group in optimizer.param_groups:
            group["fused"] = False
        step = optimizer.step

        def without_flag(*closure: Any) -> Any:  # noqa: ANN401
            optimizer.found_inf = None  # which fused optimizers alone can read
            return step(*closure)

        optimizer.step = without_flag
        return optimizer

    optimizer_module.build = unfused


def without_set_to_none() -> None:
    """Fill gradients with zeros and add to them."""
    import torch

    zero_grad = torch.optim.Optimizer.zero_grad
    torch.optim.Optimizer.zero_grad = lambda self, *_arguments, **_keywords: zero_grad(self, set_to_none=False)


LEVERS: dict[str, tuple[Callable[[], None], list[str]]] = {
    "memory": (without_memory, []),
    "bf16": (lambda: None, ["--runtime.precision", "fp32"]),
    "batched-enlargement": (without_batched_enlargement, []),
    "channels-last": (without_channels_last, []),
    "pool-first": (without_pool_first, []),
    "space-to-depth": (without_space_to_depth, []),
    "fused-input": (without_fused_input, []),
    "cheap-dropout": (without_cheap_dropout, []),
    "skipped-average-pool": (without_skipped_average_pool, []),
    "fused-optimizer": (without_fused_optimizer, []),
    "set-to-none": (without_set_to_none, []),
    "rare-waiting": (lambda: None, ["--log.every-steps", "1"]),
}


def child(lever: str, flags: list[str]) -> None:
    """Train without a lever, in this process."""
    from alexnet_dist.config import parse

    config = parse(flags)
    if lever != "none":
        LEVERS[lever][0]()
    import train

    train.main(config)


def measure(lever: str, *, flags: list[str]) -> float:
    """Return images a second without a lever ("none" for with all), after the first epoch."""
    own = LEVERS[lever][1] if lever in LEVERS else []
    script = ("benchmarks/levers.py", "--without", lever)
    run = measuring.train(*flags, *own, script=script)
    warm_up = next(i for i, record in enumerate(run.records) if record["epoch"] > 1)
    return measuring.rate(run.records, skip=warm_up)


def markdown(rates: dict[str, list[float]]) -> str:
    """Return the table, the dearest lever first."""
    full = rates["none"]
    rows = []
    for lever, values in rates.items():
        worth = [a / b for a, b in zip(full, values, strict=False)]
        what = (LEVERS[lever][0].__doc__ or " ".join(LEVERS[lever][1])) if lever in LEVERS else "all levers on"
        spread = f"{statistics.median(worth):.2f} ({min(worth):.2f} to {max(worth):.2f})"
        row = (
            f"| {lever if lever != 'none' else ''} | {what.rstrip('.')} | {statistics.median(values):.0f} | {spread} |"
        )
        rows.append((-statistics.median(worth) if lever != "none" else float("-inf"), row))
    head = ["| lever off | what happens then | images/s | slower by a factor of |", "|---|---|---|---|"]
    return "\n".join([*head, *(row for _, row in sorted(rows))]) + "\n"


def main() -> None:
    """Measure every variant in every round and write levers.json and levers.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", choices=["none", *LEVERS], help=argparse.SUPPRESS)
    parser.add_argument("--levers", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    arguments, flags = parser.parse_known_args()
    if arguments.without:
        child(arguments.without, flags)
        return
    flags += ["--data.batch-size", str(arguments.batch_size), "--data.limit", str(WARM_UP * arguments.batch_size)]
    flags += ["--max-steps", str(WARM_UP + TIMED), "--checkpoint.every-epochs", "1000"]
    rates: dict[str, list[float]] = {lever: [] for lever in ["none", *arguments.levers]}
    for number in range(arguments.rounds):
        for lever, values in rates.items():
            if number and rates["none"][0] / values[0] > LARGE:
                continue
            values.append(measure(lever, flags=flags))
            print(f"round {number + 1}  without {lever}: {values[-1]:.0f} images/s", flush=True)
    settings = {"rounds": arguments.rounds, "batch_size": arguments.batch_size, "flags": flags}
    results = {"machine": measuring.machine(), "settings": settings, "images_per_second": rates}
    measuring.save("levers", results, markdown(rates), folder=arguments.out)
    print(markdown(rates))


if __name__ == "__main__":
    main()
