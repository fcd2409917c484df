"""Charts of one run, or of several compared: plotly figures of the metrics and of the confusion matrix, with tables.

A figure is plotly's JSON, `{"data": [traces], "layout": {...}}`. A colour is written as the name of a CSS property of
report.css, such as `--colour-3`; report.js puts its value in, so that figures follow the light or dark theme.
"""

import bisect
import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from alexnet_dist.report.read_run import JsonObject, Run, evenly, finite
from alexnet_dist.text import NOTHING, percent

MOST_POINTS = 1500  # of a curve: about as many as a wide screen has pixels
MOST_MARKED = 20  # points of a curve that get a dot each
MOST_ROWS = 25  # of the table below a chart
MOST_CLASSES = 100  # with more, the confusion matrix is not drawn
MOST_TABLED_CLASSES = 20  # with more, no curve for each class, no counts in the cells, no table of the matrix
MOST_TICKS = 40  # with more classes, plotly chooses which of them the matrix names at its sides
NUM_COLOURS = 10
LEGEND, TICK = 40, 16  # letters of a name that a chart has room for
PER_EPOCH = ("val/", "kernels/", "per_class/", "train/epoch_loss")
STROKES: dict[str, JsonObject] = {  # plotly's `line`, without the colour
    "solid": {"width": 2, "dash": "solid"},
    "dashed": {"width": 2, "dash": "7px,3px"},
    "faint": {"width": 1.2, "dash": "solid"},
    "chance": {"width": 1.2, "dash": "dot"},
}
MIDDLE_SHARE, HEAT_SHARE = 0.57, 0.83
"""A cell's share of its row from which its number must change from white to black in the dark theme, and from black to
white in the light one, for a contrast of 4.5 (WCAG 2, level AA) with the shade of the cell."""


class Chart(NamedTuple):
    """Metrics that share one chart over epochs."""

    key: str
    title: str
    unit: str
    """Shares are recorded in [0, 1] and drawn as `%`."""
    lines: dict[str, tuple[str, str]]
    """By metric, the line's name and stroke. Faint lines are left out where several runs are compared."""
    capped: bool = False
    """Whether the axis may be cut below a few outliers, such as the time of the first step."""


LOSSES = {
    "train/loss": ("training, steps", "faint"),
    "train/epoch_loss": ("training, mean of the epoch", "dashed"),
    "val/loss": ("evaluation", "solid"),
}
STEP_TIMES = {
    "perf/step_ms": ("mean", "faint"),
    "perf/step_ms_p50": ("median", "solid"),
    "perf/step_ms_p95": ("95th percentile", "dashed"),
}
KERNELS = {"kernels/conv1_rel_change": ("conv1", "solid"), "kernels/conv2_rel_change": ("conv2", "dashed")}
CHARTS = (
    Chart("loss", "Loss", "nats", LOSSES),
    Chart("accuracy", "Accuracy in evaluation", "%", {"val/top1": ("top-1", "solid"), "val/top5": ("top-5", "dashed")}),
    Chart("lr", "Learning rate", "", {"train/lr": ("learning rate", "solid")}),
    Chart("kernels", "Relative change of the kernels", "||now - before|| / ||before||", KERNELS),
    Chart("gradient", "Gradient norm", "", {"train/grad_norm": ("gradient norm", "solid")}, capped=True),
    Chart("weights", "Weight norm", "", {"optim/weight_norm": ("weight norm", "solid")}),
    Chart("speed", "Images per second", "", {"perf/images_per_second": ("images per second", "solid")}),
    Chart("step", "Time of a step", "ms", STEP_TIMES, capped=True),
)


def curves(runs: Sequence[Run]) -> list[JsonObject]:
    """Return the charts that have data, each with the figure, the table and the notes that belong to it.

    The x axis is the epoch; it is the step while the number of steps an epoch is not known of every run.
    """
    by_step = any(run.steps_per_epoch is None for run in runs)
    charts = [*CHARTS, *_per_class(runs)]
    return [drawn for chart in charts if (drawn := _draw(chart, runs, by_step=by_step))]


def _per_class(runs: Sequence[Run]) -> list[Chart]:
    """Return the chart of each class's accuracy: of one run, and where its lines can be told apart."""
    metrics = list(dict.fromkeys(key for record in runs[0].records for key in record if key.startswith("per_class/")))
    if len(runs) > 1 or len(metrics) > MOST_TABLED_CLASSES:
        return []
    lines = {key: (key.partition("/")[2], "solid" if n < NUM_COLOURS else "dashed") for n, key in enumerate(metrics)}
    return [Chart("classes", "Accuracy of each class", "%", lines)]


def _draw(chart: Chart, runs: Sequence[Run], *, by_step: bool) -> JsonObject | None:
    """Return a chart's fields with its axis, notes, figure and table; None if no run has recorded its metrics."""
    by_run = [found for place in range(len(runs)) if (found := _traces(chart, runs, place, by_step=by_step))]
    if not by_run:
        return None
    traces = [trace for of_run in by_run for trace in of_run.values()]
    axis, end = "step" if by_step else "epoch", max(x for trace in traces for x in trace["x"])
    traces += _chance(chart, runs, end)

    # ---- the legend: of several runs one entry each, its solid line standing for the others
    entries: set[str] = set()
    for trace in sorted(traces, key=lambda trace: bool(trace["line"]["dash"] != "solid")):
        trace["showlegend"] = trace["legendgroup"] not in entries
        entries.add(trace["legendgroup"])
    strokes = [f"{stroke}: {name}" for name, stroke in chart.lines.values() if stroke != "faint"]
    notes = ["; ".join(strokes)] if len(runs) > 1 < len(strokes) else []

    # ---- the y axis
    values = sorted(y for trace in traces for y in trace["y"])
    usual = values[int(0.95 * (len(values) - 1))]
    capped = chart.capped and values[-1] > 3 * usual > 0  # else the largest would flatten the rest
    if capped:
        notes.append(f"The largest value, {values[-1]:.4g}, is above the picture; a double click shows it.")
    layout = {
        "showlegend": len(entries) > 1,
        "hovermode": "x unified",
        "xaxis": {
            "title": {"text": axis, "standoff": 4},
            "range": [0, 1.02 * end],
            "unifiedhovertitle": {"text": f"{axis} %{{x:{',d' if by_step else '.2~f'}}}"},
            "tickformat": ",d" if by_step else ".4~g",
        },
        "yaxis": {"exponentformat": "e"} | ({"range": [0, 1.3 * usual], "autorange": False} if capped else {}),
    }
    figure = {"data": traces, "layout": layout}
    return chart._asdict() | {"axis": axis, "notes": notes, "figure": figure, "table": _table(by_run)}


def _traces(chart: Chart, runs: Sequence[Run], place: int, *, by_step: bool) -> dict[str, JsonObject]:
    """Return the traces of one run by their full names. Colours tell a run's metrics apart, or several runs."""
    run, several, colours = runs[place], len(runs) > 1, itertools.count()
    traces = {}
    for metric, (line, stroke) in chart.lines.items():
        points = [] if several and stroke == "faint" else run.points(metric, by_step=by_step)
        if not points:
            continue
        name = f"{run.name}, {line}" if several else line
        colour = "faint" if stroke == "faint" else f"colour-{(place if several else next(colours)) % NUM_COLOURS}"
        marked = len(points) <= MOST_MARKED and metric.startswith(PER_EPOCH)
        shown, scale = evenly(points, MOST_POINTS), 100 if chart.unit == "%" else 1
        traces[name] = {
            "name": _label(run.name if several else line, LEGEND),
            "x": [float(f"{x:.6g}") for x, _ in shown],
            "y": [float(f"{scale * y:.6g}") for _, y in shown],
            "mode": "lines+markers" if marked else "lines" if len(points) > 1 else "markers",
            "line": STROKES[stroke] | {"color": f"--{colour}"},
            "marker": {"size": 4.5},
            "legendgroup": str(place) if several else name,
            "hovertemplate": f"%{{y:.4~g}}<extra>{_label(name)}</extra>",
        }
    return traces


def _chance(chart: Chart, runs: Sequence[Run], end: float) -> list[JsonObject]:
    """Return the trace of guessing at random, if all runs have one number of classes."""
    num_classes, *others = {run.num_classes for run in runs}
    if others or num_classes is None or chart.key not in ("loss", "accuracy"):
        return []
    words, value = ("ln", math.log(num_classes)) if chart.key == "loss" else ("1 of", 100 / num_classes)
    name, line = f"chance, {words} {num_classes} = {value:.4g} {chart.unit}", STROKES["chance"] | {"color": "--chance"}
    trace = {"name": name, "x": [0, end], "y": [value, value], "mode": "lines", "line": line}
    return [trace | {"legendgroup": "--chance", "hoverinfo": "skip"}]


def _label(text: str, most: int | None = None) -> str:
    """Return a name, shortened to so many letters, with HTML escaped: plotly's texts know a few tags and entities."""
    return html.escape(text if most is None or len(text) <= most else f"{text[: most - 3]}...", quote=False)


def _table(by_run: Sequence[dict[str, JsonObject]]) -> JsonObject:
    """Return a chart's numbers: at the x of its shortest trace (of the longest run), what each trace had reached."""
    lines = {name: trace for traces in by_run for name, trace in traces.items()}
    shortest = [min((trace["x"] for trace in traces.values()), key=len) for traces in by_run]
    places = max(shortest, key=lambda xs: xs[-1])
    rows = [[f"{x:.4g}", *(_reached(trace, x) for trace in lines.values())] for x in evenly(places, MOST_ROWS)]
    return {"columns": list(lines), "rows": rows, "of": len(places)}


def _reached(trace: JsonObject, place: float) -> str:
    """Return a trace's last value up to an x; a dash before its first one, and beyond the end of a shorter run."""
    xs = trace["x"]
    ended = place - xs[-1] >= xs[0]  # later than its last point by about the distance between points
    num_before = bisect.bisect_right(xs, place)
    return NOTHING if ended or not num_before else f"{trace['y'][num_before - 1]:.4g}"


def confusion(run: Run) -> JsonObject | None:
    """Return the confusion matrix, its figure, and a row for each class; None for a run without evaluation.json.

    The figure is None above `MOST_CLASSES` classes.
    """
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
        "figure": _matrix(names, counts) if len(names) <= MOST_CLASSES else None,
        "caption": f"{num_images:,} images, {percent(right / max(1, num_images))} on the diagonal",
        "epoch": finite(run.evaluation.get("epoch")),
    }


def _matrix(names: Sequence[str], counts: list[list[int]]) -> JsonObject:
    """Return the figure of a confusion matrix, its cells shaded by their share of the row."""
    small, places = len(names) <= MOST_TABLED_CLASSES, range(len(names))
    labels, totals = [_label(name) for name in names], [sum(row) for row in counts]
    shares = [[count / max(1, total) for count in row] for row, total in zip(counts, totals, strict=True)]

    # ---- the cells: shades, texts for the pointer, numbers
    text = "true {}, predicted {}<br><b>{}</b> of {}, {}"
    about = [
        [text.format(labels[i], labels[j], counts[i][j], totals[i], percent(shares[i][j])) for j in places]
        for i in places
    ]
    heatmap = {"type": "heatmap", "z": shares, "zmin": 0, "zmax": 1, "xgap": int(small), "ygap": int(small)}
    heatmap |= {"customdata": about, "hovertemplate": "%{customdata}<extra></extra>"}
    cells = [(i, j) for i in places for j in places] if small else []
    numbers: JsonObject = {"mode": "text", "x": [j for _, j in cells], "y": [i for i, _ in cells], "hoverinfo": "skip"}
    numbers["text"] = [str(counts[i][j]) for i, j in cells]
    numbers["textfont"] = {"size": 11, "color": [_number_colour(shares[i][j]) for i, j in cells]}

    # ---- the axes: classes at the integers, the first row at the top
    names_shown = {"tickmode": "array" if len(names) <= MOST_TICKS else "auto", "tickvals": list(places)}
    axis = names_shown | {"ticktext": [_label(name, TICK) for name in names], "showgrid": False}
    end, angle = len(names) - 0.5, -45 if len(names) > 5 else 0
    columns = {"title": {"text": "predicted class", "standoff": 6}, "range": [-0.5, end], "tickangle": angle}
    rows = {"title": {"text": "true class", "standoff": 6}, "range": [end, -0.5]}
    layout = {"xaxis": axis | columns, "yaxis": axis | rows, "showlegend": False}
    return {"data": [heatmap, numbers], "layout": layout}


def _number_colour(share: float) -> str:
    """Return the colour of a cell's number by the cell's share of its row."""
    return "--on-empty" if share < MIDDLE_SHARE else "--on-middle" if share < HEAT_SHARE else "--on-heat"


def _about_class(index: int, names: Sequence[str], row: Sequence[int]) -> JsonObject:
    """Return a class's name, number of images, accuracy, and the class it is most often confused with."""
    total = sum(row)
    errors = [0 if other == index else count for other, count in enumerate(row)]
    most, share = max(errors), row[index] / total if total else None
    return {
        "name": names[index],
        "images": f"{total:,}",
        "share": share,
        "accuracy": percent(share),
        "confused": f"{names[errors.index(most)]} ({most:,}, {percent(most / total)})" if most else NOTHING,
    }
