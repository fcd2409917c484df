"""How training scales: with the batch, the number of images and the ranks, and a model of more GPUs than there are.

.venv/bin/python benchmarks/scaling.py
.venv/bin/python benchmarks/scaling.py --batch-sizes 64 512 --images 2000 --steps 3 --rounds 1

1. Images a second of train.py against the global batch, against the number of images, and on one and two CPU ranks.
2. `communication.py` with `--rounds` and `--batches` (images a rank), and the model of `ddp_model.py` fitted to part of
   what it finds. What the model then says of the other batch sizes and of the bf16 hook is compared with it.
3. The model's curves for GPUs and links that this machine need not have, and the comparison on paper of an exchange of
   sufficient factors with the all-reduce.

Writes scaling.{json,md}, scaling_batch.png, scaling_model.png and communication.{json,md}. Expect 15 minutes on two
cores; other work on the machine shows in the figures.
"""

import argparse
import dataclasses
import io
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import communication
import ddp_model
import measuring
from matplotlib.axes import Axes
from measuring import Row

WARM_UP = 3  # steps
NUM_TEST_IMAGES = 64  # every run ends with an evaluation, which nothing here measures
GPU_COUNTS = tuple(2**power for power in range(11))
LINKS = tuple(link for name, link in ddp_model.LINKS.items() if name != "NVLink 3")
GLOO = "gloo, loopback"
FACTOR_TEXT = (
    "A step that gathers inputs and output gradients of fc6 and fc7 in bf16 and multiplies them on every rank, against "
    "the bf16 all-reduce. A gain below 1 is a loss. Where both take longer than one rank takes for the same global "
    "batch, spreading it is a loss either way."
)


# ---- train.py -------------------------------------------------------------------------------------------------------


def write_images(folder: Path, num_images: int) -> None:
    """Write noise in Hub layout, as many images as CIFAR-10 has: the synthetic data set is smaller."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
    from PIL import Image as Pillow

    disable_progress_bars()
    rng = np.random.default_rng(0)
    features = Features({"img": Image(), "label": ClassLabel(names=[f"class {k}" for k in range(10)])})
    for split, count in (("train", num_images), ("test", NUM_TEST_IMAGES)):
        encoded = []
        for pixels in rng.integers(0, 256, (count, 32, 32, 3), np.uint8):
            stream = io.BytesIO()
            Pillow.fromarray(pixels).save(stream, "png", compress_level=0)
            encoded.append({"bytes": stream.getvalue(), "path": None})
        columns = {"img": encoded, "label": [index % 10 for index in range(count)]}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def train_on(images: Path, *flags: str, ranks: int = 1) -> measuring.Run:
    """Run train.py on written images; pictures and checkpoints come too rarely to be measured."""
    data = ["--data.dataset", str(images), "--data.cache-dir", str(images.parent / "cache")]
    rare = ["--log.kernels-every-epochs", "1000000", "--checkpoint.every-epochs", "1000000"]
    return measuring.train(*data, *rare, *flags, ranks=ranks)


def train_rate(
    images: Path, options: argparse.Namespace, batch: int, *flags: str, ranks: int = 1, num_images: int | None = None
) -> Row:
    """Return the images a second of one run, its first steps left out: they touch memory for the first time."""
    num_images = num_images or max(options.images)
    sizes = {"batch-size": batch, "limit": num_images, "image-size": options.image_size}
    words = [word for name, value in sizes.items() for word in (f"--data.{name}", str(value))]
    words += ["--max-steps", str(options.steps + WARM_UP), "--log.every-steps", "1"]
    rate = measuring.rate(train_on(images, *words, *flags, ranks=ranks).records, skip=WARM_UP)
    return {"batch": batch, "num_images": num_images, "ranks": ranks, "images_per_second": rate}


def measure_training(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Measure train.py against batch, number of images and ranks: as many images a rank, and as many together."""
    middle = sorted(options.batch_sizes)[len(options.batch_sizes) // 2]
    batch, cpu = options.batches[0], "--runtime.cpu"
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        write_images(images, max(options.images))
        with measuring.one_core():
            alone = train_rate(images, options, batch, cpu)
        hook = ("--runtime.comm-hook", "bf16")
        ranks = {
            "one rank on one core": alone,
            "one rank on all cores": train_rate(images, options, 2 * batch, cpu),
            "two ranks, weak scaling": train_rate(images, options, 2 * batch, cpu, ranks=2),
            "two ranks, strong scaling": train_rate(images, options, batch, cpu, ranks=2),
            "two ranks, bf16 hook": train_rate(images, options, 2 * batch, cpu, *hook, ranks=2),
        }
        return {
            "batch_sizes": [train_rate(images, options, size) for size in options.batch_sizes],
            "images": [train_rate(images, options, min(middle, num), num_images=num) for num in options.images],
            "ranks": [{"name": name, **row} for name, row in ranks.items()],
        }


# ---- the model ------------------------------------------------------------------------------------------------------


def fit(found: Row) -> tuple[ddp_model.Machine, dict[str, ddp_model.Link]]:
    """Fit a rank and its links.

    Fitted are: rate and fixed seconds, by the smallest and the first batch size without communication; bandwidths, by
    the all-reduce alone; the contention, by the exposed time of the first batch size in float32.
    """
    ranks = found["options"]["ranks"]
    rows = _variant(found, "none")["batches"]
    first = next(iter(rows))
    least = min(rows, key=int)
    points = [(int(key), rows[key]["silent_step"]) for key in (least, first)]
    links = {
        name: ddp_model.Link(f"{GLOO}, {name}", found["all_reduce"][name]["bus_bytes_per_second"], latency=0.0)
        for name in ("fp32", "bf16")
    }
    machine = ddp_model.fit_compute("CPU rank", small=points[0], large=points[1])
    return ddp_model.fit_shared_cores(machine, links["fp32"], ranks=ranks, exposed=rows[first]["exposed"]), links


def _variant(found: Row, hook: str) -> Row:
    reference = found["options"]["bucket_mb"][0]
    return next(v for v in found["variants"] if v["hook"] == hook and v["bucket_mb"] == reference)


def compare(found: Row, machine: ddp_model.Machine, links: dict[str, ddp_model.Link]) -> list[Row]:
    """Return the model's steps beside those measured."""
    rows = []
    for hook, kind, size in (("none", "fp32", 4), ("bf16", "bf16", 2)):
        if hook not in found["options"]["hooks"]:
            continue
        measured = _variant(found, hook)["batches"]
        exchange = {"ranks": found["options"]["ranks"], "gradient_bytes": size}
        exchange["extra"] = found["all_reduce"]["rounding_seconds"] if hook == "bf16" else 0.0
        for batch, row in measured.items():
            predicted = ddp_model.step_seconds(machine, links[kind], batch=int(batch), **exchange)
            fitted = hook == "none" and batch == next(iter(measured))
            rows.append({"hook": hook, "batch": int(batch), "fitted": fitted, "measured": row["step"]})
            rows[-1] |= {"predicted": predicted, "error": predicted / row["step"] - 1}
    return rows


def curves() -> list[Row]:
    """Return the model's efficiency against the number of GPUs."""
    return [
        {
            "machine": ddp_model.A100.name,
            "link": link.name,
            "batch": batch,
            "gradient_bytes": size,
            "gpus": list(GPU_COUNTS),
            "efficiency": [
                ddp_model.efficiency(ddp_model.A100, link, ranks=gpus, batch=batch, gradient_bytes=size)
                for gpus in GPU_COUNTS
            ],
        }
        for link, batch, size in product(LINKS, (512, 64), (4, 2))
    ]


# ---- tables and pictures --------------------------------------------------------------------------------------------


def markdown(results: Row) -> str:
    """Return the tables of everything but communication."""
    training, model = results["training"], results["model"]

    def rates(rows: list[Row], **columns: str) -> str:
        cells = [(*(row[key] for key in columns), f"{row['images_per_second']:.0f}") for row in rows]
        return measuring.table([*columns.values(), "images/s"], cells)

    parts = {
        "Global batch": rates(training["batch_sizes"], batch="global batch"),
        "Number of images": rates(training["images"], num_images="images", batch="global batch"),
        "Ranks": rates(training["ranks"], name="ranks", batch="global batch"),
        "The model and two ranks": f"{fit_text(model['fit'])}\n\n{comparison_table(model['points'])}",
        "The model and GPUs: not measured": efficiency_table(model["curves"]),
        "Sufficient factors for fc6 and fc7: on paper": f"{FACTOR_TEXT}\n\n{factor_table(model['factors'])}",
    }
    return "\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def fit_text(fit: Row) -> str:
    """Say what was fitted and to what."""
    machine, links = fit["machine"], fit["links"]
    bandwidths = " and ".join(f"{link['bandwidth'] / 1e9:.2f} GB/s ({name})" for name, link in links.items())
    return (
        f"Fitted: {machine['rate']:.0f} images/s and {1e3 * machine['fixed_seconds']:.0f} ms a step, by steps that "
        f"send nothing at the smallest and the first batch size; {bandwidths}, by all-reduces alone; and one factor, "
        f"contention {machine['contention']:.2f}, by the exposed time of the first batch size. Ranks here compute and "
        "send on the same cores, so nothing is hidden (h = 0). Rounding is added as measured alone."
    )


def comparison_table(points: list[Row]) -> str:
    """Compare predictions with measurements."""
    rows = [
        (
            point["hook"],
            point["batch"],
            *(f"{1e3 * point[key]:.0f}" for key in ("measured", "predicted")),
            f"{point['error']:+.0%}",
            "fitted" if point["fitted"] else "predicted",
        )
        for point in points
    ]
    return measuring.table(["hook", "images a rank", "measured, ms", "model, ms", "error", ""], rows)


def efficiency_table(found: list[Row], counts: Sequence[int] = (2, 8, 32, 128, 1024)) -> str:
    """Return some points of the curves, float32 / bf16."""
    widest = {link.name: link.widest or max(GPU_COUNTS) for link in LINKS}
    rows = []
    for full, half in zip(found[::2], found[1::2], strict=True):
        pairs = dict(zip(GPU_COUNTS, zip(full["efficiency"], half["efficiency"], strict=True), strict=True))
        cells = ["{:.0%} / {:.0%}".format(*pairs[num]) if num <= widest[full["link"]] else "-" for num in counts]
        rows.append((full["link"], full["batch"], *cells))
    return measuring.table(["link", "images a GPU", *(f"{count} GPUs" for count in counts)], rows)


def factor_table(cases: list[Row]) -> str:
    """Return the comparison of both exchanges."""
    heads = ["rank", "link", "ranks", "images a rank", "bf16 all-reduce, ms", "factors, ms", "gain", "one rank, ms"]
    rows = [
        (
            *(case[key] for key in ("machine", "link", "ranks", "batch")),
            *(f"{1e3 * case[key]:.1f}" for key in ("all_reduce", "factors")),
            f"{case['all_reduce'] / case['factors']:.2f}",
            f"{1e3 * case['alone']:.1f}",
        )
        for case in cases
    ]
    return measuring.table(heads, rows)


def draw(results: Row, folder: Path) -> None:
    """Write both pictures."""
    from matplotlib.figure import Figure

    rows = results["training"]["batch_sizes"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["batch"] for row in rows], [row["images_per_second"] for row in rows], "o-")
    axes.set(xscale="log", xlabel="global batch", ylabel="images/s", ylim=0, title="Throughput of train.py, measured")
    axes.set_xticks([row["batch"] for row in rows], [str(row["batch"]) for row in rows])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.savefig(folder / "scaling_batch.png", dpi=120)

    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for line, size in zip(grid, (4, 2), strict=True):
        for panel, batch in zip(line, (512, 64), strict=True):
            chosen = [c for c in results["model"]["curves"] if (c["batch"], c["gradient_bytes"]) == (batch, size)]
            draw_curves(panel, chosen)
            panel.set_title(f"{batch} images a GPU, {'fp32' if size == 4 else 'bf16'} all-reduce")
    for panel in grid[1]:
        panel.set_xlabel("GPUs (dotted: more than a machine with such a link has)")
    for panel in grid[:, 0]:
        panel.set_ylabel("efficiency")
    figure.suptitle("AlexNet under DDP: a model, not measured. A100 assumed at 20,000 images/s, typical links")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LINKS))
    figure.savefig(folder / "scaling_model.png", dpi=120)


def draw_curves(panel: Axes, found: list[Row]) -> None:
    """Draw one panel of the model's picture."""
    from matplotlib import colormaps

    for index, (curve, link) in enumerate(zip(found, LINKS, strict=True)):
        colour = colormaps["viridis"](index / len(LINKS))
        real = sum(count <= (link.widest or max(GPU_COUNTS)) for count in GPU_COUNTS)
        panel.plot(GPU_COUNTS[:real], curve["efficiency"][:real], "o-", ms=3, color=colour, label=link.name)
        panel.plot(GPU_COUNTS[real - 1 :], curve["efficiency"][real - 1 :], ":", color=colour)
    panel.set(xscale="log", ylim=(0, 1.03))
    panel.set_xticks(GPU_COUNTS[::2], [str(count) for count in GPU_COUNTS[::2]])
    panel.minorticks_off()
    panel.grid(alpha=0.3)


# ---- command line ---------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Return this program's options, and those that it hands to communication.py."""
    lists = {"batch_sizes": [64, 128, 256, 512, 1024], "images": [2_000, 10_000, 50_000], "batches": [64, 2, 32, 128]}
    parser = measuring.parser(__doc__, **lists, steps=6, image_size=224, rounds=3)
    options = parser.parse_args(argv)
    handed = [f"--image-size={options.image_size}", f"--rounds={options.rounds}", f"--out={options.out}"]
    return options, communication.parse([*handed, "--batches", *map(str, options.batches)])


def main() -> None:
    """Measure, fit, write, draw and print."""
    options, inner = parse()
    training = measure_training(options)
    found = communication.measure(inner)
    measuring.save("communication", found, communication.markdown(found), folder=options.out)
    machine, links = fit(found)
    fitted = {"machine": dataclasses.asdict(machine)}
    fitted["links"] = {name: dataclasses.asdict(link) for name, link in links.items()}
    factors = ddp_model.factor_cases(ddp_model.A100, LINKS, ranks=(2, 8), batches=(32, 64, 512))
    model = {"fit": fitted, "points": compare(found, machine, links), "curves": curves(), "factors": factors}
    results = {"options": measuring.settings(options), "training": training, "model": model}
    draw(results, options.out)
    measuring.save("scaling", results, markdown(results), folder=options.out)


if __name__ == "__main__":
    main()
