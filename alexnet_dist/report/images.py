"""The pictures of a run, or of several compared: its kernels for the slider, with captions, and its worst errors.

A picture becomes a data URI; one that is missing or torn is left out.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from alexnet_dist.report.read_run import evenly, finite
from alexnet_dist.text import NBSP, NOTHING, percent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alexnet_dist.report.read_run import Item, Run

MOST_EPOCHS = 60  # of a run, with pictures: 5 MB of the file
MOST_ERRORS = 64
TILE, TILES_A_ROW = 64, 8  # errors.png
LAYERS = {"conv1": "conv1, all 64 kernels", "conv2": "conv2, the 64 channels of one kernel"}
OVERVIEW = {
    "conv1_seen": "conv1 as enlarged images meet it: what they hold nothing of is taken away",
    "conv2_overview": "conv2, all 192 kernels",
}
WHICH = {"before": "before training", "now": "now", "diff": "difference"}
ABOUT_LAYER = {
    "rel_change": "relative change {:.4f}",
    "cosine": "cosine to the start {:.4f}",
    "dead": "{:.0f} dead kernels",
}
NORMS = ("norm_min", "norm_median", "norm_max")


@dataclass
class Album:
    """Pictures as data URIs, each held once: the kernels before training look alike in many epochs."""

    uris: list[str] = field(default_factory=list)
    _places: dict[bytes, int] = field(default_factory=dict)

    def add(self, path: Path) -> int | None:
        """Return a picture's place; None if there is none, or it cannot be read."""
        content = _content(path)
        if content not in self._places:
            image = _open(content)
            if image is None:
                return None
            self._places[content] = len(self.uris)
            self.uris.append(_uri(image))
        return self._places[content]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _open(content: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # torn, or no picture at all
        return None


def _uri(image: Image.Image) -> str:
    """Return a picture, losslessly smaller than the PNG that it was."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, method=3)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(path: Path) -> str | None:
    """Return a picture as a data URI; None if there is none, or it cannot be read."""
    image = _open(_content(path))
    return None if image is None else _uri(image)


def player(runs: Sequence[Run]) -> Item | None:
    """Return the kernels' pictures of all epochs, for one slider to walk through; None without any."""
    drawn = [_drawn_epochs(run) for run in runs]
    chosen = [{epoch: folders[epoch] for epoch in evenly(list(folders), MOST_EPOCHS)} for folders in drawn]
    epochs = sorted(set().union(*chosen))
    if not epochs:
        return None
    album, last = Album(), max(epochs[-1], *(run.epochs for run in runs))
    frames = [
        {
            "value": f"epoch {epoch} of {last}",
            "caption": _caption(runs[0], epoch) if len(runs) == 1 else "",
            **_frame(runs, chosen, album, epoch),
        }
        for epoch in epochs
    ]
    left_out = [
        f"{run.name}: {MOST_EPOCHS} of {len(folders)} epochs with pictures are shown, evenly spaced."
        for run, folders in zip(runs, drawn, strict=True)
        if len(folders) > MOST_EPOCHS
    ]
    return {
        "frames": frames,
        "pictures": album.uris,
        "notes": left_out,
        "groups": _groups(runs, frames[-1], _layers(runs)),
        "overview": _groups(runs, frames[-1], OVERVIEW),
    }


def _drawn_epochs(run: Run) -> dict[int, Path]:
    """Return the folders of kernel pictures by epoch; an older run has those of its last alone."""
    figures = run.folder / "figures"
    found: dict[int, Path] = {}
    for path in figures.glob("epoch_*"):
        name = re.fullmatch(r"epoch_(\d{1,9})", path.name)
        # without a record it is from after the checkpoint that the run went on from
        if name and (path / "conv1_now.png").is_file() and run.ended(int(name[1])):
            found[int(name[1])] = path
    if not found and (figures / "conv1_now.png").is_file():
        drawn = [r for r in run.records if "kernels/conv1_rel_change" in r] or run.records or [{"epoch": 0}]
        found[int(drawn[-1]["epoch"])] = figures
    return dict(sorted(found.items()))


def _frame(runs: Sequence[Run], chosen: Sequence[dict[int, Path]], album: Album, epoch: int) -> Item:
    """Return the pictures and texts of an epoch, or of the nearest one before it that a run has."""
    images: dict[str, int] = {}
    texts: dict[str, str] = {}
    for number, (run, folders) in enumerate(zip(runs, chosen, strict=True)):
        if not folders:
            continue
        nearest = max((other for other in folders if other <= epoch), default=min(folders))
        for name in (f"{layer}_{which}" for layer in [*LAYERS, *OVERVIEW] for which in WHICH):
            place = album.add(folders[nearest] / f"{name}.png")
            if place is not None:
                images[f"{number}-{name}"] = place
        for layer in LAYERS:
            texts[f"{number}-{layer}"] = _about_layer(run, nearest, layer, named=len(runs) > 1)
    return {"images": images, "texts": texts}


def _caption(run: Run, epoch: int) -> str:
    record = run.ended(epoch)
    step, top1 = finite(record.get("global_step")), finite(record.get("val/top1"))
    parts = [f"epoch {epoch} of {max(run.epochs, epoch)}"]
    parts += [] if step is None else [f"step {step:,.0f}"]
    parts += [] if top1 is None else [f"top-1 {percent(top1)}"]
    return ", ".join(parts)


def _about_layer(run: Run, epoch: int, layer: str, *, named: bool) -> str:
    """Return the numbers that belong to a layer's pictures, as far as they were recorded."""
    record = run.ended(epoch)
    value = {name: finite(record.get(f"kernels/{layer}_{name}")) for name in [*ABOUT_LAYER, *NORMS]}
    norms = [value[name] for name in NORMS]
    parts = [f"epoch {epoch}"] if named else []
    parts += [words.format(value[name]) for name, words in ABOUT_LAYER.items() if value[name] is not None]
    if None not in norms:
        parts.append(f"kernel norms {' / '.join(f'{norm:.3g}' for norm in norms)} (least / median / most)")
    return ", ".join(parts)


def _layers(runs: Sequence[Run]) -> dict[str, str]:
    """Return the layers' titles, with the kernel of conv2 that all runs show."""
    kernels = {finite(run.config.get("log.conv2_kernel")) for run in runs}
    kernel = kernels.pop() if len(kernels) == 1 else None
    return LAYERS if kernel is None else LAYERS | {"conv2": f"conv2, the 64 channels of kernel {kernel:.0f}"}


def _groups(runs: Sequence[Run], frame: Item, layers: dict[str, str]) -> list[Item]:
    """Return rows of pictures: a layer before, now and their difference, or one of these over all runs."""
    several = len(runs) > 1
    groups = []
    for layer, title in layers.items():
        for row in [[which] for which in WHICH] if several else [list(WHICH)]:
            slots = [
                {
                    "slot": f"{number}-{layer}_{which}",
                    "caption": run.name if several else WHICH[which],
                    "layer": title,
                    "text": f"{number}-{layer}" if several and which != "before" and layer in LAYERS else "",
                }
                for number, run in enumerate(runs)
                for which in row
                if f"{number}-{layer}_{which}" in frame["images"]
            ]
            if slots:
                words = f"{title}: {WHICH[row[0]]}" if several else title
                text = f"0-{layer}" if not several and layer in LAYERS else ""
                groups.append({"title": words, "slots": slots, "text": text})
    return groups


def worst_errors(run: Run) -> list[Item]:
    """Return the thumbnails of the worst errors, cut from their sprite, with what belongs below them."""
    sprite = _open(_content(run.folder / "figures" / "errors.png"))
    worst = run.evaluation.get("worst")
    if sprite is None or not isinstance(worst, list):
        return []
    names, found = run.class_names, []
    for index, error in enumerate(worst[:MOST_ERRORS]):
        top, left = (TILE * place for place in divmod(index, TILES_A_ROW))
        if top + TILE > sprite.height or left + TILE > sprite.width or not isinstance(error, dict):
            break
        probability, loss, number = (finite(error.get(key)) for key in ("probability", "loss", "id"))
        found.append(
            {
                "image": _uri(sprite.crop((left, top, left + TILE, top + TILE))),
                "id": NOTHING if number is None else f"{number:.0f}",
                "label": _class_name(error.get("label"), names),
                "predicted": _class_name(error.get("predicted"), names),
                "probability": NOTHING if probability is None else f"{100 * probability:.1f}{NBSP}%",
                "loss": NOTHING if loss is None else f"{loss:.2f}",
            }
        )
    return found


def _class_name(index: object, names: Sequence[str]) -> str:
    return names[index] if isinstance(index, int) and 0 <= index < len(names) else "unknown"
