"""report.html: a run folder, or several of them compared, as one page that asks nothing of a server or the network.

    python -m alexnet_dist.report RUN [RUN...] [--out FILE]

Reads what a run folder holds and believes none of it: a run that still trains, crashed or is older than a file gets the
sections that its files allow, and names of classes and runs stay text. Imports no torch: it takes a second or a few.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import io
import itertools
import json
import math
import re
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml
from PIL import Image

from alexnet_dist import __version__, files
from alexnet_dist.config import Config, UserError, flat, to_dict
from alexnet_dist.console import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Record = dict[str, Any]
Item = dict[str, Any]  # what the template, or the page's script, reads
Point = tuple[float, float]

NBSP = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"
REPORT = "report.html"
EXIT_USER = 2
MOST_EPOCHS = 60  # of a run, with pictures: 5 MB of the file
MOST_POINTS = 1500  # a curve: as many as a wide screen has pixels
MOST_MARKED = 20  # points of a curve that get a dot each
MOST_ROWS = 25  # of the table below a chart
MOST_CLASSES = 100  # of the drawn confusion matrix, and
MOST_TABLED_CLASSES = 20  # where each class has a curve, or a column, of its own
LEGEND, TICK = 40, 16  # letters of a name that a chart has room for
MOST_COUNTED = 2**53  # beyond it, JavaScript rounds
MOST_ERRORS, ERRORS_SHOWN = 64, 24  # the rest unfolds
TILE, TILES_A_ROW = 64, 8  # errors.png
LAYERS = {"conv1": "conv1, all 64 kernels", "conv2": "conv2, the 64 channels of one kernel"}
OVERVIEW = {"conv2_overview": "conv2, all 192 kernels"}
WHICH = {"before": "before training", "now": "now", "diff": "difference"}
STATUS = {
    "finished": "finished",
    "max_steps": "ended early, at --max-steps",
    "stopped": "stopped; the same command continues it",
    "non-finite": "ended by a NaN",
    "failed": "failed",
}
EARLIER = "an earlier part of the run: it trains on, or was killed"


# ---- reading a run folder -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run folder holds."""

    name: str
    folder: Path
    config: Record
    """Flat, such as `{"data.batch_size": 64}`; empty if config.yaml cannot be read."""
    summary: Record
    """Empty for a run without summary.json."""
    records: list[Record]
    """metrics.jsonl: each has numbers as `global_step` and `epoch`."""
    evaluation: Record
    """Empty, or evaluation.json with a square matrix and a name for each of its rows."""

    @property
    def steps_per_epoch(self) -> float | None:
        """Return what places a step on the axis of epochs; None before anything tells."""
        counted = [
            r["global_step"] / r["epoch"] for r in self.records if _number(r.get("val/loss")) is not None and r["epoch"]
        ]
        return _number(self.summary.get("steps_per_epoch")) or (counted[0] if counted else None) or None

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes, from whatever names it."""
        names = self.evaluation.get("class_names", [])
        keys = {key for record in self.records for key in record if key.startswith("per_class/")}
        found = _number(self.summary.get("num_classes")) or len(names) or len(keys)
        return int(found) if found >= 2 else None

    @property
    def epochs(self) -> int:
        """Return how many epochs were asked for, or at least are there."""
        return int(_number(self.config.get("epochs")) or max((r["epoch"] for r in self.records), default=0))

    @property
    def state(self) -> str:
        """Return the status in words; a summary older than the last record is that of an earlier part of the run."""
        step = _number(self.summary.get("global_step"))
        if not self.summary:
            return "no summary yet: it still trains, or was killed"
        if step is not None and self.records and self.records[-1]["global_step"] > step:
            return f"{STATUS.get(str(self.summary.get('status')), 'ended')} in {EARLIER}"
        status = str(self.summary.get("status", "unknown"))
        return STATUS.get(status, status)

    def points(self, key: str, *, by_step: bool = False) -> list[Point]:
        """Return a metric over epochs, or over steps."""
        steps = 1.0 if by_step else self.steps_per_epoch or 1.0
        found = ((record["global_step"] / steps, _number(record.get(key))) for record in self.records)
        return [(x, value) for x, value in found if value is not None]

    def last(self, key: str) -> float | None:
        """Return a metric's last value."""
        return next(
            (value for record in reversed(self.records) if (value := _number(record.get(key))) is not None), None
        )

    @property
    def best(self) -> tuple[float, int] | None:
        """Return the best top-1 and its epoch, the first of equals."""
        found = [(r["val/top1"], int(r["epoch"])) for r in self.records if _number(r.get("val/top1")) is not None]
        recorded = _number(self.summary.get("best_top1"))
        if found:
            return max(found, key=lambda pair: (pair[0], -pair[1]))
        return None if recorded is None else (recorded, int(_number(self.summary.get("best_epoch")) or 0))


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: there is no such folder, or no metrics.jsonl in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no metrics.jsonl: name a run folder, such as one below runs/") from None
    except OSError as error:
        raise UserError(f"{folder}/metrics.jsonl cannot be read: {error}") from None
    records = [record for record in map(_parse, lines) if _is_record(record)]  # the last line may be torn
    evaluation = _parse(_text(folder / "evaluation.json"))
    return Run(
        name=folder.resolve().name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        summary=_parse(_text(folder / "summary.json")),
        records=records,
        evaluation=evaluation if _is_evaluation(evaluation) else {},
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parse(text: str) -> Record:
    """Return a JSON object; empty if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_config(path: Path) -> Record:
    try:
        nested = yaml.safe_load(_text(path))
        return flat({str(key): value for key, value in nested.items()}) if isinstance(nested, dict) else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}


def _is_record(record: Record) -> bool:
    return all(_number(record.get(key)) is not None for key in ("global_step", "epoch"))


def _is_evaluation(evaluation: Record) -> bool:
    names, rows = evaluation.get("class_names"), evaluation.get("confusion")
    if not isinstance(names, list) or not isinstance(rows, list) or len(rows) != len(names) or not names:
        return False
    return all(
        isinstance(row, list)
        and len(row) == len(names)
        and all(isinstance(n, int) and 0 <= n < MOST_COUNTED for n in row)
        for row in rows
    )


def _number(value: object) -> float | None:
    """Return a finite number, or None: files may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _shorten(value: object) -> str:
    """Return a value as text; of an absolute path only its last part, which tells nothing about the machine."""
    if isinstance(value, list):
        return ", ".join(map(_shorten, value)) or "none"
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return f".../{kind(text).name}"
    return text


# ---- curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of a chart."""

    key: str
    name: str
    style: Literal["solid", "dash", "dot", "faint"] = "solid"
    compared: bool = True
    """Whether a report of several runs shows it too."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of metrics over epochs."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    scale: float = 1
    chance: Callable[[int], tuple[str, float]] | None = None
    """From the number of classes, what guessing gives: words and value."""
    capped: bool = False
    """Whether a few outliers, such as the first step's, may leave the picture."""


CHARTS = (
    Chart(
        key="loss",
        title="Loss",
        unit="nats",
        lines=(
            Line(key="train/loss", name="training, steps", style="faint", compared=False),
            Line(key="train/epoch_loss", name="training, mean of the epoch", style="dash"),
            Line(key="val/loss", name="test"),
        ),
        chance=lambda num_classes: (f"chance, ln {num_classes}", math.log(num_classes)),
    ),
    Chart(
        key="accuracy",
        title="Test accuracy",
        unit="%",
        lines=(Line(key="val/top1", name="top-1"), Line(key="val/top5", name="top-5", style="dash")),
        scale=100,
        chance=lambda num_classes: (f"chance, 1 of {num_classes}", 100 / num_classes),
    ),
    Chart(key="lr", title="Learning rate", unit="", lines=(Line(key="train/lr", name="learning rate"),)),
    Chart(
        key="kernels",
        title="Relative change of the kernels",
        unit="||now - before|| / ||before||",
        lines=(
            Line(key="kernels/conv1_rel_change", name="conv1"),
            Line(key="kernels/conv2_rel_change", name="conv2", style="dash"),
        ),
    ),
    Chart(
        key="gradient",
        title="Gradient norm",
        unit="",
        lines=(Line(key="train/grad_norm", name="gradient norm"),),
        capped=True,
    ),
    Chart(key="weights", title="Weight norm", unit="", lines=(Line(key="optim/weight_norm", name="weight norm"),)),
    Chart(
        key="speed",
        title="Images per second",
        unit="",
        lines=(Line(key="perf/images_per_second", name="images per second"),),
    ),
    Chart(
        key="step",
        title="Time of a step",
        unit="ms",
        lines=(
            Line(key="perf/step_ms", name="mean", style="faint", compared=False),
            Line(key="perf/step_ms_p50", name="median"),
            Line(key="perf/step_ms_p95", name="95th percentile", style="dash"),
        ),
        capped=True,
    ),
)
PER_EPOCH = ("val/", "kernels/", "per_class/", "train/epoch_loss")
STROKES = {"solid": "solid", "dash": "dashed", "dot": "dotted", "faint": "thin"}


def _charts(runs: Sequence[Run]) -> list[Item]:
    """Return the charts that have data, as the template and the script read them."""
    by_step = any(run.steps_per_epoch is None for run in runs)
    drawn = [_draw(chart, runs, by_step=by_step) for chart in [*CHARTS, *_per_class(runs)]]
    return [chart for chart in drawn if chart["traces"]]


def _per_class(runs: Sequence[Run]) -> list[Chart]:
    """Return the chart of each class's accuracy; of one run, and where its lines can be told apart."""
    keys = list(dict.fromkeys(key for record in runs[0].records for key in record if key.startswith("per_class/")))
    if len(runs) > 1 or len(keys) > MOST_TABLED_CLASSES:
        return []
    styles: tuple[Literal["solid", "dash"], ...] = ("solid", "dash")
    lines = (Line(key=key, name=key.partition("/")[2], style=styles[index // 10]) for index, key in enumerate(keys))
    return [Chart(key="classes", title="Accuracy of each class", unit="%", lines=tuple(lines), scale=100)]


def _draw(chart: Chart, runs: Sequence[Run], *, by_step: bool) -> Item:
    traces = list(_traces(chart, runs, by_step=by_step))
    axis = "step" if by_step else "epoch"
    shown = {trace["style"]: trace["line"] for trace in traces}
    legend = "; ".join(f"{STROKES[style]}: {name}" for style, name in shown.items())
    table = _table(traces)
    numbers = [run.num_classes for run in runs]
    if traces and chart.chance and numbers[0] and len(set(numbers)) == 1:
        words, value = chart.chance(numbers[0])
        xs = [x for trace in traces for x in trace["x"]]
        name = f"{words} = {value:.4g} {chart.unit}"
        traces.append({"name": name, "x": [0, max(xs)], "y": [value] * 2, "style": "chance"})
    values = sorted(y for trace in traces for y in trace["y"])
    return {
        "key": chart.key,
        "title": chart.title,
        "unit": chart.unit,
        "axis": axis,
        "traces": traces,
        "note": legend if len(runs) > 1 and len(shown) > 1 else "",
        "ceiling": _ceiling(values) if chart.capped else None,
        "highest": values[-1] if values else None,
        "table": table,
    }


def _traces(chart: Chart, runs: Sequence[Run], *, by_step: bool) -> Iterator[Item]:
    """Yield the lines that have data: one colour for each line of one run, or for each of several runs."""
    for number, run in enumerate(runs):
        colours = itertools.count()
        for line in chart.lines:
            points = run.points(line.key, by_step=by_step) if line.compared or len(runs) == 1 else []
            if points:
                shown = _evenly(points, MOST_POINTS)
                yield {
                    "name": _label(_brief(line.name if len(runs) == 1 else run.name, LEGEND)),
                    "title": line.name if len(runs) == 1 else f"{run.name}, {line.name}",
                    "label": _label(line.name if len(runs) == 1 else f"{run.name}, {line.name}"),
                    "line": line.name,
                    "x": [_round(x) for x, _ in shown],
                    "y": [_round(chart.scale * y) for _, y in shown],
                    "style": line.style,
                    "marked": len(points) <= MOST_MARKED and line.key.startswith(PER_EPOCH),
                    "colour": number if len(runs) > 1 or line.style == "faint" else next(colours),
                    "run": number,
                }


def _brief(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _label(text: str) -> str:
    """Escape what plotly would read as markup: its texts know a few HTML tags and entities."""
    return html.escape(text, quote=False)


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _ceiling(values: Sequence[float]) -> float | None:
    """Return where to cut the axis if its largest values, such as the first step's time, would flatten the rest."""
    usual = values[int(0.95 * (len(values) - 1))] if values else 0.0
    return 1.3 * usual if values and values[-1] > 3 * usual > 0 else None


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Choose at most so many items evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _table(traces: Sequence[Item]) -> Item:
    """Return a chart's numbers: at the places of its shortest line (of the longest run), what each line had reached."""
    if not traces:
        return {}
    shortest: dict[int, list[float]] = {}
    for trace in traces:
        xs: list[float] = trace["x"]
        shortest[trace["run"]] = min(xs, shortest.get(trace["run"], xs), key=len)
    places = max(shortest.values(), key=lambda xs: xs[-1])
    rows = [[f"{x:.4g}", *(_reached(trace, x) for trace in traces)] for x in _evenly(places, MOST_ROWS)]
    return {"columns": [trace["title"] for trace in traces], "rows": rows, "of": len(places)}


def _reached(trace: Item, place: float) -> str:
    before = [y for x, y in zip(trace["x"], trace["y"], strict=True) if x <= place]
    ended = place - trace["x"][-1] >= trace["x"][0]  # a shorter run, by about the distance of its points
    return f"{before[-1]:.4g}" if before and not ended else NOTHING


# ---- pictures -------------------------------------------------------------------------------------------------------


@dataclass
class Album:
    """Pictures as data URIs, each held once: the kernels before training look alike in many epochs."""

    uris: list[str] = field(default_factory=list)
    _index: dict[bytes, int] = field(default_factory=dict)

    def add(self, path: Path) -> int | None:
        """Return a picture's place; None if there is none, or it cannot be read."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        key = hashlib.sha256(content).digest()
        if key not in self._index:
            uri = _uri(content)
            if uri is None:
                return None
            self._index[key] = len(self.uris)
            self.uris.append(uri)
        return self._index[key]


def _uri(content: bytes) -> str | None:
    """Return a picture, losslessly smaller than the PNG that it was; None if it cannot be read."""
    picture = _open(content)
    return None if picture is None else _encoded(picture)


def _open(content: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # torn, or no picture at all
        return None


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, method=3)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(path: Path) -> str | None:
    try:
        return _uri(path.read_bytes())
    except OSError:
        return None


def _drawn_epochs(run: Run) -> dict[int, Path]:
    """Return the folders of kernel pictures by epoch; an older run has those of its last alone."""
    found = {
        int(path.name[6:]): path
        for path in (run.folder / "figures").glob("epoch_*")
        if re.fullmatch(r"epoch_\d{1,9}", path.name)
        and (path / "conv1_now.png").is_file()
        and _at(run, int(path.name[6:]))  # not from after the checkpoint that a run went on from
    }
    if not found and (run.folder / "figures" / "conv1_now.png").is_file():
        drawn = [r for r in run.records if "kernels/conv1_rel_change" in r] or run.records or [{"epoch": 0}]
        found[int(drawn[-1]["epoch"])] = run.folder / "figures"
    return dict(sorted(found.items()))


def _player(runs: Sequence[Run]) -> Item | None:
    """Return the kernels' pictures of all epochs, for one slider to walk through; None without any."""
    drawn = [_drawn_epochs(run) for run in runs]
    chosen = [{epoch: folders[epoch] for epoch in _evenly(list(folders), MOST_EPOCHS)} for folders in drawn]
    epochs = sorted(set().union(*chosen))
    if not epochs:
        return None
    album, last = Album(), max(run.epochs for run in runs)
    frames = [
        {
            "value": f"epoch {epoch} of {max(last, epochs[-1])}",
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


def _layers(runs: Sequence[Run]) -> dict[str, str]:
    """Return the layers' titles, with the kernel of conv2 that all runs show."""
    kernels = {_number(run.config.get("log.conv2_kernel")) for run in runs}
    kernel = kernels.pop() if len(kernels) == 1 else None
    return LAYERS if kernel is None else LAYERS | {"conv2": f"conv2, the 64 channels of kernel {kernel:.0f}"}


def _groups(runs: Sequence[Run], frame: Item, layers: dict[str, str]) -> list[Item]:
    """Return rows of pictures: a layer before, now and their difference, or one of these over all runs."""
    several = len(runs) > 1
    groups = []
    for layer, title in layers.items():
        rows = [[which] for which in WHICH] if several else [list(WHICH)]
        for row in rows:
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
            words = f"{title}: {WHICH[row[0]]}" if several else title
            if slots:
                groups.append(
                    {"title": words, "slots": slots, "text": "" if several or layer in OVERVIEW else f"0-{layer}"}
                )
    return groups


def _at(run: Run, epoch: int) -> Record:
    """Return what was recorded at an epoch's end."""
    ended = [record for record in run.records if record["epoch"] == epoch and "val/top1" in record]
    return ended[-1] if ended else {}


def _caption(run: Run, epoch: int) -> str:
    record = _at(run, epoch)
    step, top1 = _number(record.get("global_step")), _number(record.get("val/top1"))
    parts = [f"epoch {epoch} of {max(run.epochs, epoch)}"]
    parts += [] if step is None else [f"step {step:,.0f}"]
    parts += [] if top1 is None else [f"top-1 {_percent(top1)}"]
    return ", ".join(parts)


def _about_layer(run: Run, epoch: int, layer: str, *, named: bool) -> str:
    """Return the numbers that belong to a layer's pictures, as far as they were recorded."""
    record = _at(run, epoch)
    value = {name: _number(record.get(f"kernels/{layer}_{name}")) for name in ("rel_change", "cosine", "dead")}
    norms = [_number(record.get(f"kernels/{layer}_norm_{name}")) for name in ("min", "median", "max")]
    parts = [f"epoch {epoch}"] if named else []
    parts += [f"relative change {value['rel_change']:.4f}"] if value["rel_change"] is not None else []
    parts += [f"cosine to the start {value['cosine']:.4f}"] if value["cosine"] is not None else []
    parts += [f"{value['dead']:.0f} dead kernels"] if value["dead"] is not None else []
    parts += [f"kernel norms {' / '.join(f'{n:.3g}' for n in norms if n is not None)} (least / median / most)"] * (
        None not in norms
    )
    return ", ".join(parts)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def _confusion(run: Run) -> Item | None:
    """Return the confusion matrix and what it says of each class; None for a run without evaluation.json."""
    if not run.evaluation:
        return None
    names, counts = [str(name) for name in run.evaluation["class_names"]], run.evaluation["confusion"]
    rows = [_about_class(index, names, counts[index]) for index in range(len(names))]
    num_images = sum(map(sum, counts))
    right = sum(row[index] for index, row in enumerate(counts))
    return {
        "rows": rows,
        "names": names,
        "counts": counts,
        "tabled": len(names) <= MOST_TABLED_CLASSES,
        "chart": _matrix(names, counts) if len(names) <= MOST_CLASSES else None,
        "caption": f"{num_images:,} test images, {_percent(right / max(1, num_images))} on the diagonal",
        "epoch": _number(run.evaluation.get("epoch")),
    }


def _matrix(names: Sequence[str], counts: list[list[int]]) -> Item:
    ticks = [_label(_brief(name, TICK)) for name in names]
    return {"labels": [_label(name) for name in names], "ticks": ticks, "counts": counts}


def _about_class(index: int, names: Sequence[str], row: Sequence[int]) -> Item:
    total = sum(row)
    wrong = [(count, other) for other, count in enumerate(row) if other != index and count]
    count, other = max(wrong, key=lambda pair: (pair[0], -pair[1]), default=(0, None))
    return {
        "name": names[index],
        "images": f"{total:,}",
        "share": row[index] / total if total else None,
        "accuracy": _percent(row[index] / total) if total else NOTHING,
        "confused": NOTHING if other is None else f"{names[other]} ({count:,}, {_percent(count / total)})",
    }


def _errors(run: Run) -> list[Item]:
    """Return the thumbnails of the worst errors, cut from their sprite, with what belongs below them."""
    try:
        sprite = _open((run.folder / "figures" / "errors.png").read_bytes())
    except OSError:
        return []
    worst = run.evaluation.get("worst")
    if sprite is None or not isinstance(worst, list):
        return []
    names, found = [str(name) for name in run.evaluation["class_names"]], []
    for index, error in enumerate(worst[:MOST_ERRORS]):
        top, left = (TILE * place for place in divmod(index, TILES_A_ROW))
        if top + TILE > sprite.height or left + TILE > sprite.width or not isinstance(error, dict):
            break
        probability, loss, number = (_number(error.get(key)) for key in ("probability", "loss", "id"))
        found.append(
            {
                "image": _encoded(sprite.crop((left, top, left + TILE, top + TILE))),
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


# ---- facts ----------------------------------------------------------------------------------------------------------


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.2f}{NBSP}%"


def _count(value: object) -> str:
    number = _number(value)
    return NOTHING if number is None else f"{number:,.0f}"


def _speed(run: Run) -> tuple[float | None, float | None]:
    """Return images per second and the share of the peak, over the run, or the median of its records."""
    rate, flops, peak = (
        _number(run.summary.get(key)) for key in ("images_per_second", "flops_per_image", "peak_tflops")
    )
    if rate is not None:
        return rate, rate * flops / peak / 1e12 if flops and peak else run.last("perf/mfu")
    found = [[y for _, y in run.points(key)] for key in ("perf/images_per_second", "perf/mfu")]
    rates, shares = ([statistics.median(values)] if values else [None] for values in found)
    return rates[0], shares[0]


def _headline(run: Run) -> list[Item]:
    """Return the numbers that a reader wants first: name, value, and what to add to it."""
    rate, mfu = _speed(run)
    seconds = _number(run.summary.get("wall_seconds"))
    final = run.last("val/top1")
    final = _number(run.summary.get("final_top1")) if final is None else final
    steps = run.records[-1]["global_step"] if run.records else 0
    ended = sum("val/top1" in record for record in run.records)
    best_epoch = f"epoch {run.best[1]}" if run.best else ""
    loss = run.last("val/loss")
    memory = run.last("perf/memory_gib")
    rows = [
        ("best top-1", _percent(run.best[0] if run.best else None), best_epoch),
        ("final top-1", _percent(final), "" if loss is None else f"test loss {loss:.4f}"),
        ("epochs", f"{ended} of {run.epochs}", f"{steps:,.0f} steps"),
        ("wall time", NOTHING if seconds is None else duration(seconds), ""),
        ("images per second", _count(rate), "" if mfu is None else f"MFU {100 * mfu:.1f}{NBSP}%"),
        ("peak memory", "" if memory is None else f"{memory:.2f}{NBSP}GiB", ""),
    ]
    return [{"name": name, "value": value, "more": more} for name, value, more in rows if value]


def _facts(run: Run) -> dict[str, str]:
    """Return the rest of the run card, as far as it is known."""
    summary, config = run.summary, run.config
    versions = summary.get("versions")
    found = {
        "data set": _shorten(summary.get("dataset") or config.get("data.dataset") or NOTHING),
        "training images": _count(summary.get("num_train_images")),
        "test images": _count(summary.get("num_eval_images")),
        "classes": _count(run.num_classes),
        "hardware": str(summary.get("device") or NOTHING),
        "processes": _count(summary.get("world_size")),
        "precision": str(summary.get("precision") or config.get("runtime.precision") or NOTHING),
        "global batch": _count(summary.get("global_batch_size") or config.get("data.batch_size")),
        "steps an epoch": _count(summary.get("steps_per_epoch")),
        "parameters": _count(summary.get("num_parameters")),
        "commit": str(summary.get("git_commit") or NOTHING),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items())
        if isinstance(versions, dict)
        else "",
    }
    return {name: value for name, value in found.items() if value not in ("", NOTHING)}


def _settings(run: Run) -> list[Item]:
    """Return the configuration by section, what differs from the defaults marked."""
    defaults = flat(to_dict(Config()))
    sections: dict[str, list[Item]] = {}
    for key, value in run.config.items():
        section = key.partition(".")[0] if "." in key else "the run"
        sections.setdefault(section, []).append(
            {
                "option": "--" + key.replace("_", "-"),
                "value": _shorten(value),
                "default": _shorten(defaults[key]) if key in defaults else NOTHING,
                "changed": key in defaults and value != defaults[key],
            }
        )
    return [{"section": section, "rows": rows} for section, rows in sections.items()]


def _differences(runs: Sequence[Run]) -> list[Item]:
    """Return the options in which the runs differ; their folders, which do by necessity, are left out."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "out_dir")
    rows = [(key, [run.config.get(key) for run in runs]) for key in keys]
    return [
        {"option": "--" + key.replace("_", "-"), "values": [_shorten(value) for value in values]}
        for key, values in rows
        if any(value != values[0] for value in values)
    ]


def _compared(runs: Sequence[Run]) -> Item:
    """Return the runs' headlines and facts as the rows of one table."""
    nothing = {"name": "", "value": NOTHING, "more": ""}
    rows = [
        {item["name"]: item for item in _headline(run)}
        | {
            name: {"name": name, "value": value, "more": ""}
            for name, value in _facts(run).items()
            if name != "versions"
        }
        for run in runs
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    best = max((run.best[0] for run in runs if run.best), default=None)
    return {
        "columns": names,
        "rows": [
            {
                "name": run.name,
                "number": number,
                "state": run.state,
                "best": run.best is not None and run.best[0] == best,
                "cells": [row.get(name, nothing) for name in names],
            }
            for number, (run, row) in enumerate(zip(runs, rows, strict=True))
        ],
    }


# ---- the page -------------------------------------------------------------------------------------------------------


def render(runs: Sequence[Run]) -> str:
    """Return the page of one run, or of several compared."""
    import jinja2  # these two would delay train.py, which needs them once, at its end
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alexnet_dist", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = Path(__file__).with_name("templates")
    scripts = [get_plotlyjs(), _text(source / "report.js")]
    runs = _told_apart(runs)
    return environment.get_template("report.html.j2").render(
        **_content(runs),
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - plotly's and our own
        style=Markup(_text(source / "report.css")),  # noqa: S704 - our own
        hashes=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
    )


def _hash(script: str) -> str:
    """Return what a content security policy names a script by: no other runs, whatever a name smuggles in."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _content(runs: Sequence[Run]) -> Item:
    """Return what the template shows; what belongs to one run alone is empty for several."""
    charts, player = _charts(runs), _player(runs)
    single = len(runs) == 1
    about = _about_one(runs[0]) if single else _about_one(None) | _about_several(runs)
    return about | {
        "title": runs[0].name if single else f"{len(runs)} runs compared",
        "single": single,
        "runs": [_about_run(run) for run in runs],
        "charts": charts,
        "player": player,
        "errors_shown": ERRORS_SHOWN,
        "data": {
            "several": not single,
            "charts": [{key: value for key, value in chart.items() if key != "table"} for chart in charts],
            "confusion": about["confusion"] and about["confusion"]["chart"],
            "player": player and {"frames": player["frames"], "pictures": player["pictures"]},
        },
    }


def _about_run(run: Run) -> Item:
    return {
        "name": run.name,
        "state": run.state,
        "finished": run.state == STATUS["finished"],
        "dataset": _shorten(run.summary.get("dataset") or "another data set"),
        "fallback": _shorten(run.summary.get("fallback_for") or ""),
    }


def _about_one(run: Run | None) -> Item:
    confusion = run and _confusion(run)
    return {
        "headline": _headline(run) if run else [],
        "facts": _facts(run) if run else {},
        "confusion": confusion,
        "old_confusion": None if confusion or not run else _picture(run.folder / "figures" / "confusion.png"),
        "errors": _errors(run) if run else [],
        "first_batch": _picture(run.folder / "figures" / "first_batch.png") if run else None,
        "settings": _settings(run) if run else [],
        "compared": None,
        "differences": [],
    }


def _about_several(runs: Sequence[Run]) -> Item:
    return {"compared": _compared(runs), "differences": _differences(runs)}


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Number the runs whose folders have one name."""
    seen: dict[str, int] = {}
    named = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        name = run.name if seen[run.name] == 1 else f"{run.name} ({seen[run.name]})"
        named.append(replace(run, name=name))
    return named


def write(folder: Path) -> Path:
    """Write a run's report.html into its folder and return its path.

    Raises:
        UserError: the folder holds no run, or cannot be written.
    """
    return _write([folder], folder / REPORT)


def _write(folders: Sequence[Path], path: Path) -> Path:
    text = render([read(folder) for folder in folders])
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


# ---- the command ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line, as train.py does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report that the command line asks for and return the exit code."""
    parser = _Parser(prog="python -m alexnet_dist.report", description="Write report.html of a run, or of several.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html; of several, ./report.html")
    try:
        chosen = parser.parse_args(argv)
        default = chosen.runs[0] / REPORT if len(chosen.runs) == 1 else Path(REPORT)
        path = _write(chosen.runs, chosen.out or default)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER
    sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
