"""What each lever of the fast path is worth: the real train.py, with one of them off at a time.

.venv/bin/python benchmarks/levers.py                    # 3 rounds at batch 512, half an hour on two CPU cores
.venv/bin/python benchmarks/levers.py --levers memory dropout --rounds 1

In every round all variants run one after another, but for those that the first round found to be large; a lever's
worth is the median, over the rounds, of the speed with all levers over the speed without this one. Further options are
those of train.py.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import measuring
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from alexnet_dist.data import augment, inputs, resize
from alexnet_dist.data import loader as loader_module
from alexnet_dist.distributed import accelerator
from alexnet_dist.models import fast_layers, pool_relu
from alexnet_dist.training import optimizer as optimizer_module

WARM_UP, TIMED = 5, 6  # steps; the first are an epoch
LARGE = 1.3  # a lever worth more is measured in the first round only: no repetition would change what is said of it


def without_memory() -> None:
    """Return freed memory to the system at once, as glibc does by default."""
    accelerator.keep_freed_memory = lambda: None


def without_batched_enlargement() -> None:
    """Enlarge image by image with Pillow, in two worker processes."""
    apply = augment.Augment.__call__

    def augmented(self: augment.Augment, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return apply(dataclasses.replace(self, source_size=images.shape[-1]), images, draws)

    augment.Augment.__call__ = augmented

    class PillowSplit(loader_module._IndexedSplit):  # noqa: SLF001 - what it does differently is the measurement
        def __getitems__(self, indices: list[int]) -> Any:  # noqa: ANN401
            batch = super().__getitems__(indices)
            images = (Image.fromarray(image) for image in batch["images"].permute(0, 2, 3, 1).numpy())
            enlarged = [np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) for image in images]
            return {**batch, "images": torch.from_numpy(np.stack(enlarged)).permute(0, 3, 1, 2)}

    def make_loader(images: Any, labels: Any, order: Any, *, pin_memory: bool) -> Any:  # noqa: ANN401
        split = PillowSplit(images, labels)
        whole = {"batch_sampler": order, "collate_fn": lambda batch: batch}
        return DataLoader(split, **whole, pin_memory=pin_memory, num_workers=2)

    loader_module.make_loader = make_loader


def without_fused_input() -> None:
    """Write the normalised batch in float32 without its margin, pad it, and let autocast convert it."""

    def by_torch(self: Any, images: torch.Tensor, _colors: None) -> torch.Tensor:  # noqa: ANN401
        enlarged = resize.enlarge(images, self.spec.image_size).contiguous(memory_format=torch.channels_last)
        mean, std = (torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in (self.spec.mean, self.spec.std))
        return F.pad((enlarged - mean).div_(std), self.margin * 2).contiguous(memory_format=torch.channels_last)

    inputs.Inputs._by_torch = by_torch  # noqa: SLF001


def without_space_to_depth() -> None:
    """Compute conv1 as torch does, over three channels."""
    fast_layers.Conv1.forward = nn.Conv2d.forward


def without_pool_first() -> None:
    """Leave each ReLU before its pool."""
    fast_layers._pool_before_relu = lambda _features: None  # noqa: SLF001


def without_skipped_average_pool() -> None:
    """Average 6 x 6 maps to 6 x 6."""
    fast_layers.AveragePool.forward = nn.AdaptiveAvgPool2d.forward


def without_cheap_dropout() -> None:
    """Draw torch's own dropout masks."""
    fast_layers.Dropout.forward = nn.Dropout.forward


def without_channels_last() -> None:
    """Keep images and weights in torch's default order of memory, and conv1 as torch computes it there."""
    without_space_to_depth()
    torch.channels_last = torch.contiguous_format
    made = inputs.Inputs._made  # noqa: SLF001
    inputs.Inputs._made = lambda *arguments: made(*arguments).contiguous()  # noqa: SLF001


def without_fused_optimizer() -> None:
    """Update the weights one tensor and one operation at a time."""
    build = optimizer_module.build

    def unfused(*arguments: Any) -> Any:  # noqa: ANN401
        optimizer = build(*arguments)
        for group in optimizer.param_groups:
            group["fused"] = False
        step = optimizer.step

        def without_flag(*closure: Any) -> Any:  # noqa: ANN401
            flag, optimizer.found_inf = optimizer.found_inf, None  # which fused optimizers alone can read
            result = step(*closure)
            optimizer.found_inf = flag
            return result

        optimizer.step = without_flag
        return optimizer

    optimizer_module.build = unfused


def without_set_to_none() -> None:
    """Fill gradients with zeros and add to them."""
    zero_grad = torch.optim.Optimizer.zero_grad
    torch.optim.Optimizer.zero_grad = lambda self, *_arguments, **_keywords: zero_grad(self, set_to_none=False)


def without_input_kernel() -> None:
    """Make the input by torch's operations."""
    inputs.FEWEST_FUSED = 1 << 62


def without_pool_kernels() -> None:
    """Leave pool and ReLU to torch."""
    pool_relu.kernels_work = lambda *_: False


LEVERS: dict[str, Callable[[], None] | list[str]] = {
    "memory": without_memory,
    "bf16": ["--runtime.precision", "fp32"],
    "batched-enlargement": without_batched_enlargement,
    "channels-last": without_channels_last,
    "pool-first": without_pool_first,
    "space-to-depth": without_space_to_depth,
    "fused-input": without_fused_input,
    "cheap-dropout": without_cheap_dropout,
    "skipped-average-pool": without_skipped_average_pool,
    "fused-optimizer": without_fused_optimizer,
    "set-to-none": without_set_to_none,
    "rare-waiting": ["--log.every-steps", "1"],
}
"""What switches each lever off: a function in the run's process, or options of train.py."""
GPU_LEVERS: dict[str, Callable[[], None] | list[str]] = {
    "bf16": LEVERS["bf16"],
    "input-kernel": without_input_kernel,
    "pool-kernels": without_pool_kernels,
    **{name: LEVERS[name] for name in ("channels-last", "space-to-depth", "fused-optimizer", "rare-waiting")},
    "adamw": ["--optim.name", "muon", "--optim.muon-layers", "convolutions"],
    "no-cuda-graphs": ["--runtime.cuda-graphs"],
}
"""Those of a GPU, in the order of `gpu.sh`."""


def measure(lever: str, *, flags: list[str]) -> float:
    """Return images a second without a lever ("none" for with all), after the first epoch."""
    off = (LEVERS | GPU_LEVERS).get(lever, [])
    if isinstance(off, list):
        run = measuring.train(*flags, *off)
    else:
        run = measuring.train(*flags, inside=("levers", off.__name__))
    warm_up = next(i for i, record in enumerate(run.records) if record["epoch"] > 1)
    return measuring.rate(run.records, skip=warm_up)


def markdown(rates: dict[str, list[float]]) -> str:
    """Return the table, the dearest lever first."""
    worth = {
        lever: measuring.spread([a / b for a, b in zip(rates["none"], values, strict=False)])
        for lever, values in rates.items()
    }
    rows = []
    for lever in sorted(worth, key=lambda name: (name != "none", -worth[name]["median"])):
        off = (LEVERS | GPU_LEVERS).get(lever, ["all levers on"])
        what = " ".join(off) if isinstance(off, list) else str(off.__doc__).rstrip(".")
        factor = measuring.ranged(worth[lever], "{:.2f}")
        rows.append((lever if lever != "none" else "", what, f"{statistics.median(rates[lever]):.0f}", factor))
    return measuring.table(["lever off", "what happens then", "images/s", "slower by a factor of"], rows)


def main() -> None:
    """Measure every variant in every round and write levers.json and levers.md."""
    parser = measuring.parser(__doc__, levers=list(LEVERS), rounds=3, batch_size=512)
    options, flags = parser.parse_known_args()
    flags += ["--data.batch-size", str(options.batch_size), "--data.limit", str(WARM_UP * options.batch_size)]
    flags += ["--max-steps", str(WARM_UP + TIMED), "--checkpoint.every-epochs", "1000"]
    rates: dict[str, list[float]] = {lever: [] for lever in ["none", *options.levers]}
    for number, lever in measuring.in_turn(rates, options.rounds):
        values = rates[lever]
        if number and rates["none"][0] / values[0] > LARGE:
            continue
        values.append(measure(lever, flags=flags))
        print(f"round {number + 1}  without {lever}: {values[-1]:.0f} images/s", flush=True)
    settings = {"rounds": options.rounds, "batch_size": options.batch_size, "flags": flags}
    measuring.save("levers", {"settings": settings, "images_per_second": rates}, markdown(rates), folder=options.out)


if __name__ == "__main__":
    main()
