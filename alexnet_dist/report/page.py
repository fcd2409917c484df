"""report.html: a run folder, or several of them compared, as one page that asks nothing of a server or the network.

    python -m alexnet_dist.report RUN [RUN...] [--out FILE]

A run that still trains, crashed or is older than a file gets the sections that its files allow, and names of classes
and runs stay text. Imports no torch: it takes a second or a few.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from alexnet_dist import __version__, atomic_files
from alexnet_dist.config import Config, flat, to_dict
from alexnet_dist.errors import UserError
from alexnet_dist.report import charts, images
from alexnet_dist.report.read_run import STATUS, Item, Run, finite, read, shorten
from alexnet_dist.text import NBSP, NOTHING, duration, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

REPORT = "report.html"
EXIT_USER = 2
ERRORS_SHOWN = 24  # the rest unfolds
SECTIONS = (
    *("headline", "facts", "confusion", "old_confusion", "errors", "first_batch", "settings"),  # of one run
    *("compared", "differences"),  # of several
)


# ---- what is known of a run -----------------------------------------------------------------------------------------


def _headline(run: Run) -> list[Item]:
    """Return the numbers that a reader wants first: name, value, and what to add to it."""
    rate, mfu = _speed(run)
    seconds = finite(run.summary.get("wall_seconds"))
    final = run.last("val/top1")
    final = finite(run.summary.get("final_top1")) if final is None else final
    steps = run.records[-1]["global_step"] if run.records else 0
    ended = sum("val/top1" in record for record in run.records)
    loss, memory = run.last("val/loss"), run.last("perf/memory_gib")
    best, best_epoch = (run.best[0], f"epoch {run.best[1]}") if run.best else (None, "")
    rows = [
        ("best top-1", percent(best), best_epoch),
        ("final top-1", percent(final), "" if loss is None else f"loss {loss:.4f}"),
        ("epochs", f"{ended} of {run.epochs}", f"{steps:,.0f} steps"),
        ("wall time", NOTHING if seconds is None else duration(seconds), ""),
        ("images per second", _count(rate), "" if mfu is None else f"MFU {100 * mfu:.1f}{NBSP}%"),
        ("peak memory", "" if memory is None else f"{memory:.2f}{NBSP}GiB", ""),
    ]
    return [{"name": name, "value": value, "more": more} for name, value, more in rows if value]


def _speed(run: Run) -> tuple[float | None, float | None]:
    """Return images per second and the share of the peak, over the run, or the median of its records."""
    rate, flops, peak = (
        finite(run.summary.get(key)) for key in ("images_per_second", "flops_per_image", "peak_tflops")
    )
    if rate is None:
        return _median(run, "perf/images_per_second"), _median(run, "perf/mfu")
    return rate, rate * flops / peak / 1e12 if flops and peak else run.last("perf/mfu")


def _median(run: Run, key: str) -> float | None:
    values = [value for _, value in run.points(key)]
    return statistics.median(values) if values else None


def _count(value: object) -> str:
    number = finite(value)
    return NOTHING if number is None else f"{number:,.0f}"


def _facts(run: Run) -> dict[str, str]:
    """Return the rest of the run card, as far as it is known."""
    summary, config = run.summary, run.config
    versions = summary.get("versions")
    found = {
        "data set": shorten(summary.get("dataset") or config.get("data.dataset") or NOTHING),
        "training images": _count(summary.get("num_train_images")),
        f"{summary.get('evaluated_on') or 'test'} images": _count(summary.get("num_eval_images")),
        "classes": _count(run.num_classes),
        "hardware": str(summary.get("device") or NOTHING),
        "processes": _count(summary.get("world_size")),
        "precision": str(summary.get("precision") or config.get("runtime.precision") or NOTHING),
        "global batch": _count(summary.get("global_batch_size") or config.get("data.batch_size")),
        "steps an epoch": _count(summary.get("steps_per_epoch")),
        "parameters": _count(summary.get("num_parameters")),
        "commit": re.sub(r"^(\w{12})\w+", r"\1", str(summary.get("git_commit") or NOTHING)),
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
                "option": _option(key),
                "value": shorten(value),
                "default": shorten(defaults[key]) if key in defaults else NOTHING,
                "changed": key in defaults and value != defaults[key],
            }
        )
    return [{"section": section, "rows": rows} for section, rows in sections.items()]


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


# ---- several compared -----------------------------------------------------------------------------------------------


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Number the runs whose folders have one name."""
    seen: dict[str, int] = {}
    named = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        name = run.name if seen[run.name] == 1 else f"{run.name} ({seen[run.name]})"
        named.append(replace(run, name=name))
    return named


def _compared(runs: Sequence[Run]) -> Item:
    """Return the runs' headlines and facts as the rows of one table."""
    nothing = {"value": NOTHING, "more": ""}
    rows = [
        {item["name"]: item for item in _headline(run)}
        | {name: {"value": value, "more": ""} for name, value in _facts(run).items() if name != "versions"}
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


def _differences(runs: Sequence[Run]) -> list[Item]:
    """Return the options in which the runs differ; their folders, which do by necessity, are left out."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "out_dir")
    rows = [(key, [run.config.get(key) for run in runs]) for key in keys]
    return [
        {"option": _option(key), "values": [shorten(value) for value in values]}
        for key, values in rows
        if any(value != values[0] for value in values)
    ]


# ---- the page -------------------------------------------------------------------------------------------------------


def render(runs: Sequence[Run]) -> str:
    """Return the page of one run, or of several compared."""
    import jinja2  # these two would delay train.py, which needs them once, at its end
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alexnet_dist.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = Path(__file__).with_name("templates")
    scripts = [get_plotlyjs(), (source / "report.js").read_text(encoding="utf-8")]
    return environment.get_template("report.html.j2").render(
        **_content(_told_apart(runs)),
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - plotly's and our own
        style=Markup((source / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own
        hashes=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
    )


def _hash(script: str) -> str:
    """Return what a content security policy names a script by: no other runs, whatever a name smuggles in."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _content(runs: Sequence[Run]) -> Item:
    """Return what the template shows."""
    single = len(runs) == 1
    curves, player = charts.curves(runs), images.player(runs)
    about: Item = dict.fromkeys(SECTIONS) | (_about_one(runs[0]) if single else _about_several(runs))
    return about | {
        "title": runs[0].name if single else f"{len(runs)} runs compared",
        "single": single,
        "runs": [_about_run(run) for run in runs],
        "charts": curves,
        "player": player,
        "errors_shown": ERRORS_SHOWN,
        "data": {
            "several": not single,
            "charts": [{key: value for key, value in chart.items() if key != "table"} for chart in curves],
            "confusion": about["confusion"] and about["confusion"]["chart"],
            "player": player and {"frames": player["frames"], "pictures": player["pictures"]},
        },
    }


def _about_run(run: Run) -> Item:
    return {
        "name": run.name,
        "state": run.state,
        "finished": run.state == STATUS["finished"],
        "dataset": shorten(run.summary.get("dataset") or "another data set"),
        "fallback": shorten(run.summary.get("fallback_for") or ""),
    }


def _about_one(run: Run) -> Item:
    confusion = charts.confusion(run)
    return {
        "headline": _headline(run),
        "facts": _facts(run),
        "confusion": confusion,
        "old_confusion": None if confusion else images.picture(run.folder / "figures" / "confusion.png"),
        "errors": images.worst_errors(run),
        "first_batch": images.picture(run.folder / "figures" / "first_batch.png"),
        "settings": _settings(run),
    }


def _about_several(runs: Sequence[Run]) -> Item:
    return {"compared": _compared(runs), "differences": _differences(runs)}


def write(folder: Path) -> Path:
    """Write a run's report.html into its folder and return its path.

    Raises:
        UserError: the folder holds no run, or cannot be written.
    """
    return _write([folder], folder / REPORT)


def _write(folders: Sequence[Path], path: Path) -> Path:
    text = render([read(folder) for folder in folders])
    try:
        atomic_files.write_text(path, text)
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
