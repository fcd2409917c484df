"""The dashboard command: a saved view of a W&B project, with a panel for every key that runs log."""

import os
from collections.abc import Sequence

from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import DashboardOptions
from alexnet_dist.errors import EXIT_DONE, UserError
from alexnet_dist.tracking import Console, wandb_tracker, wandb_values
from alexnet_dist.tracking.wandb_tracker import Panel, Section

TITLE = "alexnet-dist"
MOST_GPUS = 8  # of rank 0's machine
PICTURES = {
    "conv1": "conv1, all 64 kernels",
    "conv2": "conv2, the 64 channels of one kernel",
    "conv2_overview": "conv2, all 192 kernels",
}
LEFT_OUT = {
    "global_step": "an axis",
    "epoch": "an axis",
    "samples_seen": "an axis",
    "val/num_images": "the same in every epoch",
    "kernels/summary": "repeats the pictures of conv1 and conv2, for tables and reports",
}
"""What runs log and the view does not show, with the reason."""


def _pictures(layer: str, title: str) -> Panel:
    """Return the panel of a layer's pictures: before, now and difference under one slider."""
    keys = tuple(f"kernels/{layer}_{which}" for which in ("before", "now", "diff"))
    return Panel(f"{title}: before, now, difference", keys, "pictures")


def _of_both(title: str, name: str) -> Panel:
    """Return the panel of a number that conv1 and conv2 have."""
    return Panel(title, (f"kernels/conv1_{name}", f"kernels/conv2_{name}"))


def _norms(layer: str) -> tuple[Panel, Panel]:
    """Return the panels of the norms of a layer's kernels: three curves, and the histogram."""
    keys = tuple(f"kernels/{layer}_norm_{which}" for which in ("min", "median", "max"))
    return (
        Panel(f"Norms of {layer}'s kernels: least, median, most", keys),
        Panel(f"Norms of {layer}'s kernels, histogram", (f"kernels/{layer}_norms",)),
    )


def _of_gpus(title: str, name: str) -> Panel:
    """Return the panel of what wandb measures of each GPU."""
    return Panel(title, tuple(f"system/gpu.{index}.{name}" for index in range(MOST_GPUS)))


SECTIONS = (
    Section(
        "Learning",
        (
            Panel("Loss: training and evaluation", ("train/loss", "train/epoch_loss", "val/loss")),
            Panel("Accuracy", ("val/top1", "val/top5", "val/top1_flip_tta", "best/top1")),
            Panel("Learning rate", ("train/lr",)),
            Panel("Gradient norm", ("train/grad_norm",)),
            Panel("Weight norm", ("optim/weight_norm",)),
            Panel("Loss scale (fp16)", ("optim/loss_scale",)),
        ),
    ),
    Section("Kernels: pictures", tuple(_pictures(*layer) for layer in PICTURES.items()), columns=2),
    Section(
        "Kernels: numbers",
        (
            _of_both("Relative change since the start", "rel_change"),
            _of_both("Cosine to the start", "cosine"),
            _of_both("Dead kernels", "dead"),
            _of_both("Share of kernels that learned more than they were drawn with", "signal"),
            *_norms("conv1"),
            *_norms("conv2"),
        ),
    ),
    Section(
        "Evaluation",
        (
            Panel("Evaluation loss", ("val/loss",)),
            Panel("Accuracy of each class", ("per_class/*",)),
            Panel("Confusion matrix", ("confusion",), "confusion"),
            Panel("Worst errors", ("errors",), "table"),
            Panel("First training batch", ("inputs/first_batch",), "pictures"),
        ),
    ),
    Section(
        "Speed",
        (
            Panel("Images per second, all ranks", ("perf/images_per_second",)),
            Panel("Step time in ms", ("perf/step_ms", "perf/step_ms_p50", "perf/step_ms_p95")),
            Panel("Waiting for data in percent", ("perf/data_wait_pct",)),
            Panel("MFU", ("perf/mfu",)),
            Panel("Seconds of an epoch", ("perf/epoch_seconds",)),
        ),
    ),
    Section(
        "Hardware",
        (
            Panel("Peak memory in GiB, rank 0", ("perf/memory_gib",)),
            _of_gpus("GPU utilisation in percent", "gpu"),
            _of_gpus("GPU memory in percent", "memoryAllocated"),
            _of_gpus("GPU power in watts", "powerWatts"),
            _of_gpus("GPU temperature in degrees Celsius", "temp"),
            Panel("CPU and memory of the host in percent", ("system/cpu", "system/memory_percent")),
        ),
    ),
)


def main(argv: Sequence[str], *, prog: str) -> int:
    """Save the view of the project that the command line names, print its address and return the exit code.

    Raises:
        UserError: the command line is wrong, or the view cannot be saved.
    """
    named = parse_options(argv, DashboardOptions(), prog=prog).project or os.environ.get("WANDB_PROJECT")
    entity, slash, project = (named or wandb_values.from_file("project") or wandb_tracker.PROJECT).rpartition("/")
    if reason := wandb_values.fault("project", project) or (slash and wandb_values.fault("entity", entity)):
        raise UserError(f"{named}: name a project of W&B, as in PROJECT or ENTITY/PROJECT: {reason}")
    address, is_new = wandb_tracker.save_view(TITLE, SECTIONS, project=project, entity=entity or None)
    Console(enabled=True).print(f"the view {TITLE} is {'made' if is_new else 'made anew'}: {address}")
    return EXIT_DONE
