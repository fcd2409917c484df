"""The charts of a run, or of several compared: curves over epochs and the confusion matrix, with their tables.

Describes them in plain dictionaries; the page's script draws them.
"""

from __future__ import annotations

import html
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from alexnet_dist.report.read_run import evenly, finite
from alexnet_dist.text import NOTHING, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alexnet_dist.report.read_run import Item, Run

MOST_POINTS = 1500  # a curve: as many as a wide screen has pixels
MOST_MARKED = 20  # points of a curve that get a dot each
MOST_ROWS = 25  # of the table below a chart
MOST_CLASSES = 100  # of the drawn confusion matrix, and
MOST_TABLED_CLASSES = 20  # where each class has a curve, or a column, of its own
NUM_COLOURS = 10
LEGEND, TICK = 40, 16  # letters of a name that a chart has room for
STROKES = {"solid": "solid", "dash": "dashed"}
PER_EPOCH = ("val/", "kernels/", "per_class/", "train/epoch_loss")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of a chart."""

    key: str
    name: str
    style: Literal["solid", "dash", "faint"] = "solid"
    """A faint line is left out where several runs are compared."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of metrics over epochs."""

    key: str
    title: str
    unit: str = ""
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
            Line(key="train/loss", name="training, steps", style="faint"),
            Line(key="train/epoch_loss", name="training, mean of the epoch", style="dash"),
            Line(key="val/loss", name="evaluation"),
        ),
        chance=lambda num_classes: (f"chance, ln {num_classes}", math.log(num_classes)),
    ),
    Chart(
        key="accuracy",
        title="Accuracy in evaluation",
        unit="%",
        lines=(Line(key="val/top1", name="top-1"), Line(key="val/top5", name="top-5", style="dash")),
        scale=100,
        chance=lambda num_classes: (f"chance, 1 of {num_classes}", 100 / num_classes),
    ),
    Chart(key="lr", title="Learning rate", lines=(Line(key="train/lr", name="learning rate"),)),
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
        key="gradient", title="Gradient norm", lines=(Line(key="train/grad_norm", name="gradient norm"),), capped=True
    ),
    Chart(key="weights", title="Weight norm", lines=(Line(key="optim/weight_norm", name="weight norm"),)),
    Chart(
        key="speed",
        title="Images per second",
        lines=(Line(key="perf/images_per_second", name="images per second"),),
    ),
    Chart(
        key="step",
        title="Time of a step",
        unit="ms",
        lines=(
            Line(key="perf/step_ms", name="mean", style="faint"),
            Line(key="perf/step_ms_p50", name="median"),
            Line(key="perf/step_ms_p95", name="95th percentile", style="dash"),
        ),
        capped=True,
    ),
)


def curves(runs: Sequence[Run]) -> list[Item]:
    """Return the charts that have data, as the template and the script read them."""
    by_step = any(run.steps_per_epoch is None for run in runs)
    drawn = [_draw(chart, runs, by_step=by_step) for chart in [*CHARTS, *_per_class(runs)]]
    return [chart for chart in drawn if chart["traces"]]


def _per_class(runs: Sequence[Run]) -> list[Chart]:
    """Return the chart of each class's accuracy; of one run, and where its lines can be told apart."""
    keys = list(dict.fromkeys(key for record in runs[0].records for key in record if key.startswith("per_class/")))
    if len(runs) > 1 or len(keys) > MOST_TABLED_CLASSES:
        return []
    lines = (
        Line(key=key, name=key.partition("/")[2], style="solid" if index < NUM_COLOURS else "dash")
        for index, key in enumerate(keys)
    )
    return [Chart(key="classes", title="Accuracy of each class", unit="%", lines=tuple(lines), scale=100)]


def _draw(chart: Chart, runs: Sequence[Run], *, by_step: bool) -> Item:
    traces = list(_traces(chart, runs, by_step=by_step))
    lines = [*traces, *_chance(chart, runs, traces)]
    values = sorted(y for line in lines for y in line["y"])
    return {
        "key": chart.key,
        "title": chart.title,
        "unit": chart.unit,
        "axis": "step" if by_step else "epoch",
        "traces": lines,
        "note": _strokes(traces) if len(runs) > 1 else "",
        "ceiling": _ceiling(values) if chart.capped else None,
        "highest": values[-1] if values else None,
        "table": _table(traces),
    }


def _traces(chart: Chart, runs: Sequence[Run], *, by_step: bool) -> Iterator[Item]:
    """Yield the lines that have data: one colour for each line of one run, or for each of several runs."""
    several = len(runs) > 1
    for number, run in enumerate(runs):
        colours = itertools.count()
        for line in chart.lines:
            points = [] if several and line.style == "faint" else run.points(line.key, by_step=by_step)
            if points:
                shown = evenly(points, MOST_POINTS)
                title = f"{run.name}, {line.name}" if several else line.name
                yield {
                    "name": _label(_brief(run.name if several else line.name, LEGEND)),
                    "title": title,
                    "label": _label(title),
                    "line": line.name,
                    "x": [_round(x) for x, _ in shown],
                    "y": [_round(chart.scale * y) for _, y in shown],
                    "style": line.style,
                    "marked": len(points) <= MOST_MARKED and line.key.startswith(PER_EPOCH),
                    "colour": number if several or line.style == "faint" else next(colours),
                    "run": number,
                }


def _chance(chart: Chart, runs: Sequence[Run], traces: Sequence[Item]) -> list[Item]:
    """Return the line of guessing, if all runs have one number of classes."""
    numbers = {run.num_classes for run in runs}
    num_classes = numbers.pop() if len(numbers) == 1 else None
    if not traces or chart.chance is None or num_classes is None:
        return []
    words, value = chart.chance(num_classes)
    end = max(x for trace in traces for x in trace["x"])
    return [{"name": f"{words} = {value:.4g} {chart.unit}", "x": [0, end], "y": [value] * 2, "style": "chance"}]


def _strokes(traces: Sequence[Item]) -> str:
    """Return what solid and dashed lines show, where both are there."""
    shown = {trace["style"]: trace["line"] for trace in traces}
    return "; ".join(f"{STROKES[style]}: {name}" for style, name in shown.items()) if len(shown) > 1 else ""


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


def _table(traces: Sequence[Item]) -> Item:
    """Return a chart's numbers: at the places of its shortest line (of the longest run), what each line had reached."""
    if not traces:
        return {}
    shortest: dict[int, list[float]] = {}
    for trace in traces:
        xs: list[float] = trace["x"]
        shortest[trace["run"]] = min(xs, shortest.get(trace["run"], xs), key=len)
    places = max(shortest.values(), key=lambda xs: xs[-1])
    rows = [[f"{x:.4g}", *(_reached(trace, x) for trace in traces)] for x in evenly(places, MOST_ROWS)]
    return {"columns": [trace["title"] for trace in traces], "rows": rows, "of": len(places)}


def _reached(trace: Item, place: float) -> str:
    before = [y for x, y in zip(trace["x"], trace["y"], strict=True) if x <= place]
    ended = place - trace["x"][-1] >= trace["x"][0]  # a shorter run, by about the distance of its points
    return f"{before[-1]:.4g}" if before and not ended else NOTHING


def confusion(run: Run) -> Item | None:
    """Return the confusion matrix and what it says of each class; None for a run without evaluation.json."""
    if not run.evaluation:
        return None
    names, counts = run.class_names, run.evaluation["confusion"]
    num_images = sum(map(sum, counts))
    right = sum(row[index] for index, row in enumerate(counts))
    return {
        "rows": [_about_class(index, names, row) for index, row in enumerate(counts)],
        "names": names,
        "counts": counts,
        "tabled": len(names) <= MOST_TABLED_CLASSES,
        "chart": _matrix(names, counts) if len(names) <= MOST_CLASSES else None,
        "caption": f"{num_images:,} images, {percent(right / max(1, num_images))} on the diagonal",
        "epoch": finite(run.evaluation.get("epoch")),
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
        "accuracy": percent(row[index] / total) if total else NOTHING,
        "confused": NOTHING if other is None else f"{names[other]} ({count:,}, {percent(count / total)})",
    }
