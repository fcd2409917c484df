"""report.html: a run folder, or several of them compared, as one page that needs no server and no network.

    python -m alexnet_dist.report RUN [RUN...] [--out FILE]

A run that still trains or crashed gets the sections that its files allow. Names of classes and runs stay text.
"""

import argparse
import base64
import functools
import gzip
import hashlib
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from alexnet_dist import __version__, atomic_files
from alexnet_dist.config import Config, flat, to_dict
from alexnet_dist.errors import EXIT_USER, UserError, printable
from alexnet_dist.report import charts, images
from alexnet_dist.report.read_run import JsonObject, Run, finite, number, read, shorten
from alexnet_dist.text import NBSP, NOTHING, duration, percent

REPORT = "report.html"
MOST_BYTES = 7_900_000  # of the page of one run, of which plotly is 1.9 MB, packed
COMMANDS = {
    "Evaluate it again": "evaluate {}",
    "Name the class of a picture": "predict {} FILE",
    "Write a picture's activations": "features {} FILE",
    "Convert it for other programs": "export {} --format onnx",
    "Put it on the Hugging Face Hub": "publish {} owner/name",
}
"""What the trained network can be used for, with the command; `{}` stands for the run folder."""

TOO_LOW = " (the peak measured at the start is too low)"


# ---- one run --------------------------------------------------------------------------------------------------------


def _headline(run: Run) -> dict[str, tuple[str, str]]:
    """Return the most important results by name: of each the value, and an addition, which may be empty."""
    keys = ("wall_seconds", "images_per_second", "flops_per_image", "peak_tflops")
    seconds, rate, flops, peak = (finite(run.summary.get(key)) for key in keys)
    if rate and flops and peak:  # over the whole run; without a summary, over the last steps
        mfu: float | None = rate * flops / peak / 1e12
    else:
        rate, mfu = run.last("perf/images_per_second"), run.last("perf/mfu")
    steps = run.records[-1]["global_step"] if run.records else 0
    ended = sum("val/top1" in record for record in run.records)
    loss, memory = run.last("val/loss"), run.last("perf/memory_gib")
    best, best_epoch = (run.best[0], f"epoch {run.best[1]}") if run.best else (None, "")
    found = {
        "best top-1": (percent(best), best_epoch),
        "final top-1": (percent(run.last("val/top1")), "" if loss is None else f"loss {loss:.4f}"),
        "epochs": (f"{ended} of {run.epochs}", f"{steps:,.0f} steps"),
        "wall time": (NOTHING if seconds is None else duration(seconds), ""),
        "images per second": (number(rate), "" if mfu is None else f"MFU {100 * mfu:.1f}{NBSP}%{TOO_LOW * (mfu > 1)}"),
    }
    return found if memory is None else found | {"peak memory": (f"{memory:.2f}{NBSP}GiB", "")}


def _facts(run: Run) -> dict[str, str]:
    """Return the run card: data set, hardware, precision, batch and versions, as far as they are known."""
    summary, config = run.summary, run.config
    versions = summary["versions"] if isinstance(summary.get("versions"), dict) else {}
    found = {
        "data set": shorten(summary.get("dataset") or config.get("data.dataset") or NOTHING),
        "training images": number(summary.get("num_train_images")),
        f"{summary.get('evaluated_on') or 'test'} images": number(summary.get("num_eval_images")),
        "classes": number(run.num_classes),
        "hardware": str(summary.get("device") or NOTHING),
        "processes": number(summary.get("world_size")),
        "precision": str(summary.get("precision") or config.get("runtime.precision") or NOTHING),
        "global batch": number(summary.get("global_batch_size") or config.get("data.batch_size")),
        "steps an epoch": number(summary.get("steps_per_epoch")),
        "parameters": number(summary.get("num_parameters")),
        "commit": re.sub(r"^(\w{12})\w+", r"\1", str(summary.get("git_commit") or NOTHING)),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
    return {name: value for name, value in found.items() if value not in ("", NOTHING)}


def _settings(run: Run) -> dict[str, list[tuple[str, object, object]]]:
    """Return the options by section, each with its value and its default (a dash for an option of another version)."""
    defaults = flat(to_dict(Config()))
    sections: dict[str, list[tuple[str, object, object]]] = {}
    for key, value in run.config.items():
        section = key.partition(".")[0] if "." in key else "the run"
        sections.setdefault(section, []).append((_option(key), value, defaults.get(key, NOTHING)))
    return sections


def _option(key: str) -> str:
    """Return `--data.batch-size` for `data.batch_size`."""
    return "--" + key.replace("_", "-")


def _commands(run: Run) -> JsonObject | None:
    """Return the commands that use the trained network, and beside what to run them; None before the first evaluation.

    The path is relative, for the page names no folder of the machine: to the current folder, or to the run's parent.
    """
    if run.best is None:
        return None
    folder = run.folder.resolve()
    inside = folder != Path.cwd() and folder.is_relative_to(Path.cwd())
    path = folder.relative_to(Path.cwd()).as_posix() if inside else folder.name
    quoted = shlex.quote(f"./{path}" if path.startswith("-") else path)  # else it would be taken for an option
    lines = {words: f"alexnet-dist {command.format(quoted)}" for words, command in COMMANDS.items()}
    return {"beside": path.partition("/")[0], "lines": lines}


# ---- several compared -----------------------------------------------------------------------------------------------


def _distinguish(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, those whose folders have the same name numbered."""
    names = [run.name for run in runs]
    earlier = [names[:place].count(name) for place, name in enumerate(names)]
    return [replace(run, name=f"{run.name} ({n + 1})") if n else run for run, n in zip(runs, earlier, strict=True)]


def _comparison(runs: Sequence[Run]) -> JsonObject:
    """Return a table of headlines and facts: its columns, a row of (value, addition) for each run, the best top-1."""
    cells = [
        _headline(run) | {name: (value, "") for name, value in _facts(run).items() if name != "versions"}
        for run in runs
    ]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    return {
        "columns": columns,
        "rows": [[row.get(name, (NOTHING, "")) for name in columns] for row in cells],
        "best": max((run.best[0] for run in runs if run.best), default=None),
    }


def _differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the options in which the runs differ, with each run's value; run folders always do and are left out."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "out_dir")
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {_option(key): list(map(shorten, row)) for key, row in values.items() if any(v != row[0] for v in row)}


# ---- the page -------------------------------------------------------------------------------------------------------


def render(runs: Sequence[Run]) -> str:
    """Return the page of one run, or of several compared, as HTML."""
    import jinja2  # these two would delay train.py, which needs them once, at its end
    from plotly.offline import get_plotlyjs

    loader = jinja2.PackageLoader("alexnet_dist.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["shorten"] = shorten
    source = Path(__file__).with_name("templates")
    plotly, script = get_plotlyjs(), (source / "report.js").read_text(encoding="utf-8")
    digests = [hashlib.sha256(text.encode()).digest() for text in (plotly, script)]  # no other script runs in the page
    runs = _distinguish(runs)
    draw = functools.partial(
        environment.get_template("report.html.j2").render,
        **_content(runs),
        plotly=_packed(plotly),
        script=script,
        style=(source / "report.css").read_text(encoding="utf-8"),
        hashes=" ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests),
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
    )
    return draw(player=images.player(runs, most_bytes=MOST_BYTES - len(draw(player=None).encode(errors="replace"))))


@functools.cache
def _packed(script: str) -> str:
    """Return a script, compressed by gzip, in base64."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _content(runs: Sequence[Run]) -> JsonObject:
    """Return the variables of the template, besides the slider's."""
    run = runs[0] if len(runs) == 1 else None
    curves, confusion = charts.curves(runs), run and charts.confusion(run)
    figures = {chart["key"]: chart["figure"] for chart in curves}
    if confusion and confusion["figure"]:
        figures["confusion"] = confusion["figure"]
    return {
        "title": run.name if run else f"{len(runs)} runs compared",
        "single": run is not None,
        "runs": runs,
        "headline": run and _headline(run),
        "facts": run and _facts(run),
        "comparison": None if run else _comparison(runs),
        "differences": None if run else _differences(runs),
        "charts": curves,
        "confusion": confusion,
        "commands": run and _commands(run),
        "errors": run and images.worst_errors(run),
        "right": run and images.right_answers(run),
        "first_batch": run and images.picture(run.folder / "figures" / "first_batch.png"),
        "settings": run and _settings(run),
        "figures": figures,
    }


def write(*folders: Path, out: Path | None = None) -> Path:
    """Write the report of one run, or of several compared, and return its path.

    Args:
        folders: of the runs.
        out: the path (default: report.html in the run's folder; of several runs, in the current folder).

    Raises:
        UserError: a folder holds no run, or the report cannot be written.
    """
    path = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    text = printable(render([read(folder) for folder in folders]))
    try:
        atomic_files.write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


# ---- the command ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser of the command line that raises a UserError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report that the command line asks for and return the exit code."""
    parser = _Parser(prog="python -m alexnet_dist.report", description="Write report.html of a run, or of several.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html; of several, ./report.html")
    try:
        chosen = parser.parse_args(argv)
        path = write(*chosen.runs, out=chosen.out)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER
    sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n")
    return 0
