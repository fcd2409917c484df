"""Pictures of one run, or of several compared, as data URIs: each epoch's kernels for the slider, and answers.

A picture that is missing or torn is left out.
"""

import base64
import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from alexnet_dist.report.read_run import JsonObject, Run, content, evenly, finite, number
from alexnet_dist.text import NBSP, NOTHING, percent

MOST_EPOCHS, FEWEST_EPOCHS = 60, 3  # of a run, with pictures; an epoch's take about 0.2 MB of the page
FRAME_BYTES = 2_000  # of a frame besides its pictures
MOST_ANSWERS = 64
TILE, TILES_A_ROW = 64, 8  # errors.png and right.png: pixels a side, columns
LAYER_TITLES = {"conv1": "conv1, all 64 kernels", "conv2": "conv2, the 64 channels of one kernel"}
OVERVIEW_TITLES = {"conv2_overview": "conv2, all 192 kernels"}
STATE_TITLES = {"before": "before training", "now": "now", "diff": "difference"}
KERNEL_NUMBERS = ("rel_change", "cosine", "dead", "norm_min", "norm_median", "norm_max")
KERNEL_TEXT = (
    "relative change {:.4f}, cosine to the start {:.4f}, {:.0f} dead kernels, "
    "kernel norms {:.3g} / {:.3g} / {:.3g} (least / median / most)"
)


def _decode(png: bytes) -> Image.Image | None:
    """Return a PNG file's image; None if the file is torn, or is no PNG."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _uri(image: Image.Image) -> str:
    """Return an image as a data URI of lossless WebP, which is smaller than PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, method=3)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(path: Path) -> str | None:
    """Return a PNG file as a data URI; None if the file is missing or torn."""
    return _converted(content(path))


@functools.lru_cache(maxsize=128)  # the kernels before training are the same file in every epoch
def _converted(png: bytes) -> str | None:
    image = _decode(png)
    return None if image is None else _uri(image)


def player(runs: Sequence[Run], *, most_bytes: int) -> JsonObject | None:
    """Return the kernels' pictures, a frame for each place of the slider; None without any.

    Args:
        runs: one, or several compared.
        most_bytes: of the page that the slider's data may take; the first, the last and the best epoch always have a
            frame, and others between them as far as there is room.
    """
    found = [(run, _epoch_folders(run)) for run in runs]
    if not any(folders for _, folders in found):
        return None
    frames, pictures, size = _frames(found, most := FEWEST_EPOCHS)
    room = most_bytes - sum(len(pictures[place]) for place in frames[-1]["images"].values())  # in the page's HTML too
    if size < room:  # for others, if they are as large as the first and the last
        frames, pictures, size = _frames(found, most := min(MOST_EPOCHS, len(frames) * room // size))
    while size > room and most > FEWEST_EPOCHS:
        frames, pictures, size = _frames(found, most := most - 1)
    note = "{}: {} of {} epochs with pictures are shown, evenly spaced, and the best."
    kernels = {number(run.config.get("log.conv2_kernel")) for run in runs}
    one_kernel = len(kernels) == 1 and NOTHING not in kernels  # the same in all runs
    conv2 = {"conv2": f"conv2, the 64 channels of kernel {kernels.pop()}"} if one_kernel else {}
    return {
        "frames": frames,
        "pictures": pictures,
        "notes": [
            note.format(run.name, len(_thinned(run, paths, most)), len(paths))
            for run, paths in found
            if len(paths) > most
        ],
        "groups": _groups(runs, frames[-1], LAYER_TITLES | conv2),
        "overview": _groups(runs, frames[-1], OVERVIEW_TITLES),
    }


def _frames(found: Sequence[tuple[Run, dict[int, Path]]], most: int) -> tuple[list[JsonObject], list[str], int]:
    """Return the frames of at most so many epochs of each run, the data URIs of their pictures, and the bytes of both.

    Args:
        found: the runs, each with its folders of pictures by epoch.
        most: number of epochs.
    """
    chosen = [(run, _thinned(run, folders, most)) for run, folders in found]
    epochs = sorted({epoch for _, folders in chosen for epoch in folders})
    last = max(epochs[-1], *(run.epochs for run, _ in found))
    indices: dict[str, int] = {}
    frames = [_frame(chosen, indices, epoch, last) for epoch in epochs]
    return frames, list(indices), FRAME_BYTES * len(frames) + sum(map(len, indices))


def _thinned(run: Run, folders: dict[int, Path], most: int) -> dict[int, Path]:
    """Return at most so many folders of pictures, evenly spaced, with the first, the last and the best epoch's."""
    best = run.best and run.best[1]
    chosen = evenly(list(folders), most)
    if best in folders and best not in chosen:
        chosen = [*evenly(list(folders), most - 1), best]
    return {epoch: folders[epoch] for epoch in sorted(chosen)}


def _epoch_folders(run: Run) -> dict[int, Path]:
    """Return the folders of kernel pictures by epoch.

    A folder of an epoch that has no record is left out: it is from after the checkpoint that the run went on from.
    """
    found = {
        int(name[1]): path
        for path in (run.folder / "figures").glob("epoch_*")
        if (name := re.fullmatch(r"epoch_(\d{1,9})", path.name)) and (path / "conv1_now.png").is_file()
    }
    return {epoch: found[epoch] for epoch in sorted(found) if epoch in run.ended}


def _frame(chosen: Sequence[tuple[Run, dict[int, Path]]], indices: dict[str, int], epoch: int, last: int) -> JsonObject:
    """Return the pictures and texts of an epoch, or of the nearest one before it that a run has.

    Args:
        chosen: the runs, each with its folders of pictures by epoch.
        indices: the place of each picture's data URI among all of the page; new ones are added.
        epoch: of the frame.
        last: epoch that the runs end with.
    """
    images: dict[str, int] = {}
    texts: dict[str, str] = {}
    for place, (run, folders) in enumerate(chosen):
        if not folders:
            continue
        nearest = max((other for other in folders if other <= epoch), default=min(folders))
        ended = run.ended[nearest]
        for name in (f"{layer}_{state}" for layer in [*LAYER_TITLES, *OVERVIEW_TITLES] for state in STATE_TITLES):
            if uri := picture(folders[nearest] / f"{name}.png"):
                images[f"{place}-{name}"] = indices.setdefault(uri, len(indices))
        for layer in LAYER_TITLES:
            numbers = [finite(ended.get(f"kernels/{layer}_{name}")) for name in KERNEL_NUMBERS]
            text = "" if None in numbers else KERNEL_TEXT.format(*numbers)
            texts[f"{place}-{layer}"] = f"epoch {nearest}, {text}" if len(chosen) > 1 else text
    value, record = f"epoch {epoch} of {last}", chosen[0][0].ended.get(epoch, {})
    step, top1 = number(record.get("global_step")), percent(finite(record.get("val/top1")))
    caption = value if len(chosen) > 1 else f"{value}, step {step}, top-1 {top1}"
    return {"value": value, "caption": caption, "images": images, "texts": texts}


def _groups(runs: Sequence[Run], frame: JsonObject, titles: dict[str, str]) -> list[JsonObject]:
    """Return rows of pictures: of one run a layer before, now and the difference; of several one of these for each."""
    several = len(runs) > 1
    rows = [[state] for state in STATE_TITLES] if several else [list(STATE_TITLES)]
    groups = []
    for layer, row in ((layer, row) for layer in titles for row in rows):
        slots = [
            {
                "slot": f"{place}-{layer}_{state}",
                "caption": run.name if several else STATE_TITLES[state],
                "layer": titles[layer],
                "text": f"{place}-{layer}" if several and state != "before" and layer in LAYER_TITLES else "",
            }
            for place, run in enumerate(runs)
            for state in row
            if f"{place}-{layer}_{state}" in frame["images"]
        ]
        title = f"{titles[layer]}: {STATE_TITLES[row[0]]}" if several else titles[layer]
        text = f"0-{layer}" if not several and layer in LAYER_TITLES else ""
        groups.append({"title": title, "slots": slots, "text": text})
    return [group for group in groups if group["slots"]]


def worst_errors(run: Run) -> list[JsonObject]:
    """Return the test images with the largest losses, cut from errors.png, with labels and numbers."""
    return _answers(run, "errors.png", run.evaluation.get("worst"))


def right_answers(run: Run) -> list[JsonObject]:
    """Return the most certain right answers of each class, cut from right.png, with labels and numbers."""
    return _answers(run, "right.png", run.evaluation.get("best"))


def _answers(run: Run, sheet_name: str, answers: object) -> list[JsonObject]:
    """Return thumbnails, cut from a sheet of `figures/`, with what evaluation.json says of them in the same order."""
    sheet = _decode(content(run.folder / "figures" / sheet_name))
    if sheet is None or not isinstance(answers, list):
        return []
    found = []
    for index, answer in enumerate(answers[:MOST_ANSWERS]):
        top, left = (TILE * place for place in divmod(index, TILES_A_ROW))
        if top + TILE > sheet.height or left + TILE > sheet.width or not isinstance(answer, dict):
            break
        probability = finite(answer.get("probability"))
        shown = {
            "image": _uri(sheet.crop((left, top, left + TILE, top + TILE))),
            "id": number(answer.get("id"), ".0f"),
            "label": _class_name(answer.get("label"), run.class_names),
            "predicted": _class_name(answer.get("predicted"), run.class_names),
            "probability": NOTHING if probability is None else f"{100 * probability:.1f}{NBSP}%",
            "loss": number(answer.get("loss"), ".2f"),
        }
        found.append(shown)
    return found


def _class_name(index: object, names: Sequence[str]) -> str:
    return names[index] if isinstance(index, int) and 0 <= index < len(names) else "unknown"
