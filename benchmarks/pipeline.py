"""How fast the loader of photographs is, next to others on the same files: from bytes to batches of random crops.

make bench-pipeline PHOTOS=folder                               # a folder of class folders of JPEGs; 20 minutes
make bench-pipeline PHOTOS=folder BENCH="--rounds 1 --workers 2"
.venv/bin/python benchmarks/pipeline.py folder --images originals --contenders alexnet_dist dali

Random resized crops (0.08 to 1 of the area) at `--size`, uint8, in batches; nothing trains. Three kinds of images: the
originals, copies of short side 256 (JPEG, quality 90), and raw pixels of short side 256. A contender (as written in
benchmarks/pipeline_loaders.py) is timed for `--seconds` after a warm-up, in a process of its own; a round is every
contender with each number of threads or worker processes, in an order that moves on by one each round. Ratios are taken
within a round. What is not installed is left out: `pip install '.[pipeline]'` brings all but FFCV, which has to be
built. The files are read once before, so the disk is not measured. Writes pipeline.json, .md and .png.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import measuring
import pipeline_loaders as loaders
from measuring import Row
from PIL import Image
from pipeline_loaders import CONTENDERS, EVERY, OURS

JPEG = (".jpg", ".jpeg")
QUALITY = 90
IMAGES = {
    "originals": "originals",
    "resized": f"short side {loaders.STORED_SIZE}, JPEG of quality {QUALITY}",
    "pixels": f"short side {loaders.STORED_SIZE}, raw pixels",
}
OF_OURS = (OURS, "region")  # contenders that are no peers

NOTES = (
    "* CPU time and memory are those of all processes of a loader together, at the larger number of workers.",
    "* Each library crops and resizes with its own code; pixels differ between them by rounding or more.",
    "* FFCV reads the same JPEGs from its own file, where its own writer encodes them anew, with quality 90.",
    "* FFCV decodes by libjpeg-turbo's fast DCT, which is less exact; the others use the exact one.",
    "* timm normalises on the device, which is left out here.",
)


def stage(folder: Path, scratch: Path) -> Path:
    """Return a folder of class folders with links to all JPEGs of a folder of class folders, or of its `train`.

    Raises:
        SystemExit: there are none.
    """
    root = folder / "train" if (folder / "train").is_dir() else folder
    found = [path for path in sorted(root.glob("*/*")) if path.suffix.lower() in JPEG]
    if not found:
        raise SystemExit(f"error: {folder} is no folder of class folders (or of train/CLASS) with JPEGs in them")
    for path in found:
        place = scratch / "originals" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path.resolve())
    return scratch / "originals"


def resize(originals: Path, scratch: Path) -> Path:
    """Return a folder like the staged one with JPEGs whose short side is `STORED_SIZE` where it was larger."""
    resized = scratch / "resized"

    def one(path: Path) -> None:
        place = resized / path.parent.name / path.name
        with Image.open(path) as image:
            scale = max(1.0, min(image.size) / loaders.STORED_SIZE)
            sides = round(image.width / scale), round(image.height / scale)
            image.convert("RGB").resize(sides, Image.Resampling.BILINEAR).save(place, "JPEG", quality=QUALITY)

    for place in originals.iterdir():
        (resized / place.name).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, sorted(originals.glob("*/*"))))
    return resized


def measure(options: argparse.Namespace, scratch: Path) -> tuple[list[Row], Row]:
    """Run all rounds; each row is a contender with one kind of images and number of workers in one round.

    Returns:
        Rows, and what was read.
    """
    folders = {"originals": stage(options.folder, scratch)}
    folders["pixels"] = folders["originals"]
    if "resized" in options.images:
        folders["resized"] = resize(folders["originals"], scratch)
    sizes = [path.stat().st_size for path in folders["originals"].glob("*/*")]  # of what the links point to
    read: Row = {"files": len(sizes), "mean_kb": statistics.mean(sizes) / 1000}
    for path in folders["originals"].glob("*/*"):
        path.read_bytes()

    names = [name for name in options.contenders if loaders.is_installed(name)]
    for name in sorted({*options.contenders} - {*names}):
        print(f"{CONTENDERS[name].label} is left out: {CONTENDERS[name].package} is not installed", flush=True)
    cases = [case for case in product(options.images, options.workers, names) if case[0] in CONTENDERS[case[2]].images]
    sides = {"scratch": str(scratch), "batch_size": options.batch_size, "size": options.size}
    rows: list[Row] = []
    for number, (images, workers, name) in measuring.in_turn(cases, options.rounds):
        task = {"images": images, "folder": str(folders[images]), "workers": workers, **sides}
        run = measuring.call("pipeline_loaders", "run", name, task, options.seconds)
        row = {"round": number, "of": images, "workers": workers, "name": name, **run.found}
        rows.append({**row, "peak_memory_gib": run.peak_memory / 2**30})
        print(f"  {images}, {workers}: {CONTENDERS[name].label} {row['images_per_second']:.0f} images/s", flush=True)
    if "region" in names and "originals" in options.images:
        task = {"images": "originals", "folder": str(folders["originals"]), "workers": 1, **sides}
        read["region_difference"] = measuring.call("pipeline_loaders", "region_difference", task).found
    return rows, read


def ratios(rows: Sequence[Row], name: str, images: str, workers: int, *, of: str = OURS) -> list[float]:
    """Return how many times as fast as a contender another one was, in every round that has both."""
    rates = {
        (row["name"], row["round"]): row["images_per_second"]
        for row in rows
        if (row["of"], row["workers"]) == (images, workers)
    }
    rounds = sorted({number for _, number in rates})
    return [rates[of, k] / rates[name, k] for k in rounds if {(of, k), (name, k)} <= set(rates)]


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Return each contender's figures over all rounds, by kind of images and number of workers, as in the table."""
    summary = []
    workers = sorted({row["workers"] for row in rows})
    for images, name, count in product(EVERY, CONTENDERS, workers):
        own = [row for row in rows if (row["of"], row["name"], row["workers"]) == (images, name, count)]
        if not own:
            continue
        quotients = ratios(rows, name, images, count)
        summary.append(
            {
                "of": images,
                "name": name,
                "workers": count,
                "images_per_second": measuring.spread([row["images_per_second"] for row in own]),
                "ratio": measuring.spread(quotients) if quotients and name not in OF_OURS else None,
                "cpu_ms_per_image": measuring.spread([row["cpu_ms_per_image"] for row in own]),
                "peak_memory_gib": measuring.spread([row["peak_memory_gib"] for row in own]),
                "version": own[0]["version"],
            }
        )
    return summary


def best(rows: Sequence[Row], summary: Sequence[Row]) -> list[Row]:
    """Return, by kind of images and number of workers, the fastest peer and how many times as fast our loaders were."""
    found = []
    for images, workers in dict.fromkeys((row["of"], row["workers"]) for row in summary):
        same = [row for row in summary if (row["of"], row["workers"]) == (images, workers)]
        peers = [row for row in same if row["name"] not in OF_OURS]
        if not peers:
            continue
        first = max(peers, key=lambda row: row["images_per_second"]["median"])["name"]
        quotients = {name: ratios(rows, first, images, workers, of=name) for name in OF_OURS}
        spreads = {name: measuring.spread(values) for name, values in quotients.items() if values}
        found.append({"of": images, "workers": workers, "peer": first, "ratios": spreads})
    return found


def table(summary: Sequence[Row]) -> str:
    """Return the summary as a Markdown table: a line for each contender and kind of images."""
    workers = sorted({row["workers"] for row in summary})
    heads = ["images", "loader"]
    for count in workers:
        heads += [f"images/s, {count} worker{'s' * (count > 1)}", "alexnet_dist is faster by"]
    heads += ["CPU ms an image", "peak memory, GiB", "version"]
    lines = []
    for images, name in dict.fromkeys((row["of"], row["name"]) for row in summary):
        cells: list[object] = [IMAGES[images], CONTENDERS[name].label]
        own = {row["workers"]: row for row in summary if (row["of"], row["name"]) == (images, name)}
        for count in workers:
            row = own.get(count)
            cells.append(measuring.ranged(row["images_per_second"], "{:,.0f}") if row else "")
            cells.append(measuring.ranged(row["ratio"], "{:.2f}") if row and row["ratio"] else "")
        last = own[max(own)]
        cells.append(f"{last['cpu_ms_per_image']['median']:.2f}")
        lines.append([*cells, f"{last['peak_memory_gib']['median']:.2f}", last["version"]])
    return measuring.table(heads, lines)


def report(results: Row) -> str:
    """Return the Markdown file."""
    settings, machine, read = results["settings"], measuring.machine(), results["read"]
    heading = (
        f"{read['files']} JPEGs of {read['mean_kb']:.0f} kB on average, from the page cache; crops of "
        f"{settings['size']}x{settings['size']} in batches of {settings['batch_size']}; {machine['cores']} cores of "
        f"{machine['cpu']}, torch {machine['torch']}. Medians (and ranges) of {settings['rounds']} rounds of "
        f"{settings['seconds']:.0f} s; ratios are taken within a round."
    )
    lines = [heading, "", table(results["contenders"])]
    for row in results["best"]:
        faster = " and ".join(
            f"{CONTENDERS[name].label} {measuring.ranged(ratio, '{:.2f}')} times"
            for name, ratio in row["ratios"].items()
        )
        if faster:
            peer, count = CONTENDERS[row["peer"]].label, row["workers"]
            lines.append(f"* {IMAGES[row['of']]}, {count} worker{'s' * (count > 1)}: as fast as {peer}: {faster}.")
    lines += NOTES
    if found := read.get("region_difference"):
        lines.append(
            f"* The region decoder gives {found['equal']} of {found['images']} crops the pixels that decoding the whole"
            f" image gives; on average they differ by {found['mean']:.4f} levels, at most by {found['most']}."
        )
    return "\n".join(lines) + "\n"


def draw(summary: Sequence[Row], path: Path) -> None:
    """Draw the median rates of the contenders as bars, with their ranges: a panel for each kind of images."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["of"] for row in summary))
    workers = sorted({row["workers"] for row in summary}, reverse=True)
    names = {images: list(dict.fromkeys(row["name"] for row in summary if row["of"] == images)) for images in kinds}
    heights = [len(names[images]) for images in kinds]
    figure = Figure(figsize=(8, 1 + 0.5 * sum(heights) + 0.6 * len(kinds)), layout="constrained", dpi=120)
    panels = figure.subplots(len(kinds), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for images, axes in zip(kinds, panels, strict=True):
        longest = 0.0
        for row in (row for row in summary if row["of"] == images):
            rate, place = row["images_per_second"], names[images].index(row["name"])
            slot, colour = workers.index(row["workers"]), "#1f5fa8" if row["name"] in OF_OURS else "#9aa7b5"
            height = 0.8 / len(workers)
            position = place + (slot - (len(workers) - 1) / 2) * height
            error = [[rate["median"] - rate["least"]], [rate["most"] - rate["median"]]]
            axes.barh(
                position,
                rate["median"],
                height,
                xerr=error,
                color=colour,
                alpha=1 / (1 + slot),
                error_kw={"capsize": 2},
            )
            axes.text(rate["most"], position, f"  {rate['median']:,.0f}", va="center", fontsize=8)
            longest = max(longest, rate["most"])
        axes.set_yticks(range(len(names[images])), [CONTENDERS[name].label.replace("`", "") for name in names[images]])
        axes.set(title=IMAGES[images], xlim=(0, 1.15 * longest))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    counts = " and ".join(f"{count} worker{'s' * (count > 1)}" for count in workers)
    paler = " (paler: fewer)" * (len(workers) > 1)
    figure.supxlabel(f"images per second, {counts}{paler}; median and range of rounds", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Measure, and write what was measured."""
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        rows, read = measure(options, Path(scratch))
    summary = summarize(rows)
    settings = {name: value for name, value in measuring.settings(options).items() if name not in ("folder", "scratch")}
    found = best(rows, summary)
    results: Row = {"settings": settings, "read": read, "contenders": summary, "best": found, "rounds": rows}
    draw(summary, options.out / "pipeline.png")
    measuring.save("pipeline", results, report(results), folder=options.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    lengths = {"rounds": 3, "seconds": 5.0, "batch_size": 64, "size": 224}
    choices = {"workers": [1, 2], "images": list(EVERY), "contenders": list(CONTENDERS)}
    made = measuring.parser(__doc__, **lengths, **choices, scratch=Path(tempfile.gettempdir()))
    made.add_argument("folder", type=Path, help="class folders of JPEGs, or train/CLASS")
    return made.parse_intermixed_args()


if __name__ == "__main__":
    main()
