"""WandbTracker and RankTracker: a run on Weights & Biases; save_view. The only module that imports wandb.

wandb is imported when a tracker starts. Its own process, wandb-core, sends to the server. A server that refuses, does
not answer or fails delays the end of a run by a limited time, and has no other effect on it.
"""

import contextlib
import logging
import netrc
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import psutil

from alexnet_dist import atomic_files
from alexnet_dist.config import Config, WandbConfig
from alexnet_dist.errors import UserError, first_line, printable
from alexnet_dist.tracking import run_dir, wandb_repair, wandb_values
from alexnet_dist.tracking.tracker import Level, Media, Record, Tracker, Weights

logger = logging.getLogger(__name__)

Stop = Callable[[], None] | None
AXES = {  # patterns of the keys that W&B draws over each axis
    "global_step": ("train/*", "optim/*", "perf/*"),
    "epoch": ("val/*", "best/*", "kernels/*", "per_class/*"),
    "samples_seen": (),
}
MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""Modes by the words of WANDB_MODE, their former names among them."""
INIT_SECONDS = 30  # until a run that has not begun is recorded offline; wandb's own limit is 90
FINISH_SECONDS = 120  # at the end of a run, until wandb leaves the rest for `wandb sync`
PROJECT = "alexnet_dist"
CONFUSION_CHART = "wandb/confusion_matrix/v1"  # W&B's own chart
CONFUSION_FIELDS = {name: name for name in ("Actual", "Predicted", "nPredictions")}  # its fields, by column
MOST_CLASSES = 100  # in a confusion matrix: W&B truncates tables of more than 10,000 rows
SHORTEST_KEY = 40  # characters of an API key
LONGEST_ARTIFACT = 128  # characters of an artifact's name
SLOW_SECONDS = 10.0  # of a table or an artifact; wandb asks the server before it records one
RETRY_SECONDS = 300.0  # until tables, artifacts and alerts are sent again
SERVICE = "wandb-core"  # name of wandb's own process, a child of this one
SERVICE_SECONDS = 10.0  # at the end of a run, until wandb's own process is killed
VIEW = "alexnetdist"  # the view's name in its address, the same in every project, so that it is found again
SYSTEM_AXIS = "RelativeTime(Process)"  # of what wandb measures of the machine, which has neither step nor epoch


# ---- mode and login -------------------------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Check, where W&B is a tracker, what it is given and that it has a login if it is to be online.

    Every rank calls it before anything else of the run starts.

    Raises:
        UserError: as `wandb_mode`, or W&B refuses an option or an environment variable.
    """
    if "wandb" not in config.log.trackers:
        return
    mode, _ = wandb_mode(config.wandb)
    wandb_values.check(config.wandb)
    for place in map(str, (Path.cwd(), Path.home()) if mode != "disabled" else ()):
        if printable(place) != place:
            raise UserError(f"{printable(place)} is not UTF-8, as W&B wants it: set LC_ALL=C.UTF-8, or leave W&B out")
    key = os.environ.get("WANDB_API_KEY", "")
    if key and (len(key) < SHORTEST_KEY or key != key.strip()):
        raise UserError(f"WANDB_API_KEY: keys have {SHORTEST_KEY} characters or more, and no white space at their ends")
    checked = {rule.variable for rule in wandb_values.RULES.values()} | {"WANDB_MODE", "WANDB_API_KEY"}
    rest = {name for name, value in os.environ.items() if name.startswith("WANDB_") and value} - checked
    if not rest:
        return
    import wandb

    settings = wandb.Settings()
    for name in sorted(rest):
        try:
            settings.update_from_env_vars({name: os.environ[name]})
        except (ValueError, wandb.errors.UsageError) as error:  # noqa: PERF203 - the name is told
            found = error.errors()[0]["msg"] if hasattr(error, "errors") else error  # pydantic's list
            raise UserError(f"{name}: W&B refuses its value: {found}") from None


def wandb_mode(config: WandbConfig) -> tuple[str, str]:
    """Return W&B's mode, online, offline or disabled, and the reason for it.

    Raises:
        UserError: online was asked for without a login (wandb would ask for a key in the middle of a launch), or
            WANDB_MODE is unknown.
    """
    login, variable = _wandb_login(), os.environ.get("WANDB_MODE", "").lower()
    mode, reason = ("online", login) if login else ("offline", "no login: wandb login")
    if variable and variable not in MODES:
        raise UserError(f"WANDB_MODE {variable}: give online, offline or disabled")
    if config.mode != "auto":
        mode, reason = config.mode, "asked for"
    elif variable:
        mode, reason = MODES[variable], "WANDB_MODE"
    elif os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        mode, reason = "disabled", "WANDB_DISABLED"
    if mode == "online" and not login:
        raise UserError(f"W&B online ({reason}) needs a login: run `wandb login`, or give --wandb.mode offline")
    if mode != "online" and config.shared:
        raise UserError(f"--wandb.shared needs W&B online, and it is {mode} ({reason})")
    return mode, reason


def _wandb_login() -> str | None:
    """Return the name of the variable or file that has the login, None without a login; never the key itself."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    host = urlsplit(server()).netloc  # with the port, as wandb has it
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        _, _, key = netrc.netrc(path).authenticators(host) or ("", "", "")
        return str(path) if key else None
    return None


def server() -> str:
    """Return the address of the W&B server: of WANDB_BASE_URL, of `wandb login --host`, or W&B's own."""
    return os.environ.get("WANDB_BASE_URL") or wandb_values.from_file("base_url") or "https://api.wandb.ai"


# ---- trackers -------------------------------------------------------------------------------------------------------


class WandbTracker(Tracker):
    """Tracker that records a run on W&B, one W&B run per run folder: the folder keeps the run's id.

    wandb keeps up to 32 kB or 15 seconds in memory, which are lost when the process is killed. So the file `unfinished`
    marks a run that has not been closed, and a process that continues such a run sends its records again. W&B's charts
    show points that were sent twice once.

    Args:
        config: project, names, mode.
        folder: the run folder; W&B's own files go to its `wandb/`, or to that of WANDB_DIR.
        described: the configuration and facts of the run.
        tags: of the run, besides the configuration's.
        stop: called, on a thread of wandb, when Stop is pressed on the run's page; None for nothing.
    """

    def __init__(
        self, config: WandbConfig, folder: Path, described: Record, *, tags: Sequence[str], stop: Stop
    ) -> None:
        mode, reason = wandb_mode(config)
        own = run_dir.private_folder(folder, "wandb")
        self._wandb = _import_wandb(own)
        self._marker = own / "unfinished"
        self._was_killed = self._marker.exists()
        run_id, elsewhere = _run_id(own, config), os.environ.get("WANDB_DIR")
        if self._was_killed:
            wandb_repair.repair_parts(Path(elsewhere) / "wandb" if elsewhere else own, run_id=run_id)
        self._retry_at, self._artifacts = 0.0, config.artifacts
        parts = f"{elsewhere}/wandb/*run-*-{run_id}" if elsewhere else str(own)
        self.resend = f"wandb sync --include-online {parts}"
        own_tags = [wandb_values.fitted("tags", tag) for tag in tags]
        arguments: Record = {
            **_names(config, name=wandb_values.fitted("name", folder.resolve().name), group=None, job_type="train"),
            "tags": list(dict.fromkeys([*wandb_values.given(config, "tags"), *own_tags])),
            "id": run_id,
            "dir": None if elsewhere else str(folder),
            "config": described,
        }
        try:
            self._run = self._init(mode, arguments, stop=stop, shared=config.shared)
        except Exception as error:
            if isinstance(error, self._wandb.errors.UsageError):  # WANDB_RESUME, with a run that is or is not there
                raise UserError(f"W&B refuses this run: {first_line(error)}") from None
            if mode != "online":
                raise
            logger.warning("W&B is not reachable (%s): this run is recorded offline", error)
            mode, reason = "offline", "not reachable"
            self._wandb.teardown()  # its service still holds the run's id
            self._run = self._init(mode, arguments, stop=stop, shared=False)
        self._marker.touch()
        self._online = mode == "online"
        self.shared_id = str(arguments["id"]) if config.shared and self._online else None
        address = f" {self._run.url}" if self._online else ""
        later = f", later: wandb sync {parts}" if mode == "offline" else ""
        self.where = f"W&B {mode} ({reason}){address}{later}"
        for axis, patterns in AXES.items():
            self._run.define_metric(axis, hidden=True)
            for pattern in patterns:
                self._run.define_metric(pattern, step_metric=axis)

    def _init(self, mode: str, arguments: Record, *, stop: Stop, shared: bool) -> Any:  # noqa: ANN401 - a run
        """Return a W&B run that has begun; a shared one lets other ranks join."""
        # wandb copies its settings deeply: a function stays as it is, and objects that `stop` holds may not be copied.
        stop_fn = None if stop is None else lambda: stop()  # noqa: PLW0108
        first = {"mode": "shared", "x_label": "rank0", "x_primary": True} if shared else {}
        way = {} if shared else {"mode": mode, "resume": os.environ.get("WANDB_RESUME") or "allow"}
        return self._wandb.init(**arguments, **way, settings=_settings(self._wandb, stop_fn=stop_fn, **first))

    def replay(self, records: Sequence[Record]) -> None:
        """Send the records again, if the process that recorded them was killed."""
        if self._was_killed:
            for record in records:
                self.log(record)

    def log(self, record: Record) -> None:
        """Send a record of numbers."""
        self._run.log(record)

    def show(self, record: Record, media: Media) -> None:
        """Send pictures and histograms in one call, with their axes; wandb copies PNG files byte by byte."""
        image, captions = self._wandb.Image, media.captions
        pictures = {name: image(str(path), caption=captions.get(name)) for name, path in media.pictures.items()}
        histograms = {name: self._wandb.Histogram(values.tolist()) for name, values in media.histograms.items()}
        self._run.log({**_axes(record), **pictures, **histograms})

    def confusion(self, record: Record, counts: npt.NDArray[np.int64], class_names: Sequence[str]) -> None:
        """Send the counts as W&B's own chart, for at most `MOST_CLASSES` classes.

        wandb's function for this chart takes the label of each image and no counts.
        """
        if len(class_names) > MOST_CLASSES:
            return
        rows = [[class_names[i], class_names[j], int(count)] for (i, j), count in np.ndenumerate(counts)]
        table = self._wandb.Table(columns=list(CONFUSION_FIELDS), data=rows)
        chart = self._wandb.plot_table(CONFUSION_CHART, table, CONFUSION_FIELDS, {"title": "Confusion matrix"})
        self._patiently("the confusion matrix", lambda: self._run.log({**_axes(record), "confusion": chart}))

    def table(self, record: Record, name: str, rows: Sequence[Record]) -> None:
        """Send a table, in which pictures are thumbnails."""
        if not rows:
            return
        shown = [[self._wandb.Image(x) if isinstance(x, np.ndarray) else x for x in row.values()] for row in rows]
        table = self._wandb.Table(columns=list(rows[0]), data=shown)
        self._patiently(f"the table of {name}", lambda: self._run.log({**_axes(record), name: table}))

    def _patiently(self, what: str, send: Callable[[], object]) -> None:
        """Send a table or an artifact, but none for `RETRY_SECONDS` after a failure or a slow answer of the server.

        wandb asks the server before it records one. Without an answer this takes 20 s and may fail.
        """
        began = time.monotonic()
        if began < self._retry_at:
            return
        try:
            send()
            slow = time.monotonic() - began > SLOW_SECONDS
        except Exception:  # noqa: BLE001 - numbers and pictures are sent further on
            slow = True
        if slow:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            logger.warning("W&B does not answer: %s and such may be missing there, and is in the run folder", what)

    def alert(self, title: str, text: str, level: Level) -> None:
        """Send an alert, which W&B sends on by mail or Slack, according to the user's settings.

        wandb's process retries without end, so nothing is sent while the server does not answer.
        """
        if time.monotonic() >= self._retry_at:
            self._run.alert(title=title, text=text, level=level)

    def publish(self, weights: Weights) -> None:
        """Log an artifact of type model, which wandb sends in the background.

        The best and the last checkpoint stay in the run folder and are sent from there, by `wandb sync` too. Others are
        copied, as they may be pruned before they are sent; wandb removes the copy behind it.
        """
        data_name = re.sub(r"[^\w.-]+", "-", weights.data_name, flags=re.ASCII)
        name = f"alexnet-{data_name[: LONGEST_ARTIFACT - len(f'alexnet--{self._run.id}')]}-{self._run.id}"
        artifact = self._wandb.Artifact(name, type="model", metadata=weights.facts)
        try:
            policy = "immutable" if self._artifacts == "final" else "mutable"
            artifact.add_file(str(weights.path.resolve()), name="model.safetensors", skip_cache=True, policy=policy)
        except (OSError, ValueError) as error:  # replaced by a newer checkpoint meanwhile
            logger.warning("%s is not sent to W&B: %s", weights.path, error)
            return
        for name, text in weights.texts.items():
            with artifact.new_file(name, encoding="utf-8") as file:
                file.write(text)
        self._patiently(str(weights.path), lambda: self._run.log_artifact(artifact, aliases=list(weights.aliases)))

    def summary(self, summary: Record) -> None:
        """Set the run's summary; the best values get names of their own, for sweeps."""
        best = {f"best/{name}": summary.get(f"best_{name}") for name in ("top1", "epoch")}
        self._run.summary.update(summary | best)

    def preempted(self) -> None:
        """Mark the run as preempted, for a sweep to start it again."""
        self._run.mark_preempting()

    def close(self, exit_code: int) -> None:
        """Finish the run; files that are not uploaded in time stay on the disk for `wandb sync`."""
        began = time.monotonic()
        self._run.finish(exit_code=exit_code)
        if self._online and time.monotonic() - began >= FINISH_SECONDS:
            logger.warning("W&B did not take all in time: %s", self.resend)
        self._marker.unlink(missing_ok=True)
        _end_service()


class RankTracker(Tracker):
    """Tracker of a rank other than 0: adds its machine's system metrics to rank 0's W&B run, and nothing else.

    Args:
        config: of the run.
        folder: the run folder.
        run_id: of rank 0's run, which must have begun.
        rank: of this process.
    """

    def __init__(self, config: WandbConfig, folder: Path, *, run_id: str, rank: int) -> None:
        wandb = _import_wandb(run_dir.private_folder(folder, "wandb"))
        shared = {"mode": "shared", "x_label": f"rank{rank}", "x_primary": False, "x_update_finish_state": False}
        place = None if os.environ.get("WANDB_DIR") else str(folder)
        self._run = wandb.init(**_names(config), id=run_id, dir=place, settings=_settings(wandb, **shared))

    def close(self, exit_code: int) -> None:
        """Send what waits in memory; rank 0 ends the run."""
        self._run.finish(exit_code=exit_code)
        _end_service()


# ---- a saved view of a project ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A panel of a saved view."""

    title: str
    keys: tuple[str, ...]
    """Keys of W&B's history; one that ends with `*` stands for all that begin so. Pictures share the panel's slider."""
    kind: Literal["lines", "pictures", "confusion", "table"] = "lines"

    @property
    def axis(self) -> str:
        """Return the x axis of lines: that of the first key."""
        found = (axis for axis, patterns in AXES.items() if any(fnmatchcase(self.keys[0], one) for one in patterns))
        return next(found, SYSTEM_AXIS)


@dataclass(frozen=True)
class Section:
    """Panels under a heading, row by row."""

    title: str
    panels: tuple[Panel, ...]
    columns: int = 3


def save_view(title: str, sections: Sequence[Section], *, project: str, entity: str | None) -> tuple[str, bool]:
    """Save a view of a project on W&B in place of the one saved before; return its address and whether it is new.

    Its runs are grouped by W&B's group, which is the recipe's name, and by seed.

    Args:
        title: of the view.
        sections: of the view, in their order.
        project: its name.
        entity: user or team (default: WANDB_ENTITY, else the login's).

    Raises:
        UserError: no login, no such project, the package wandb-workspaces is missing, or W&B refuses.
    """
    if not _wandb_login():
        raise UserError("W&B needs a login to save a view: run `wandb login`")
    os.environ.setdefault("WANDB_SILENT", "true")  # its messages; an address is returned
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.workspaces import internal
    except ImportError:
        raise UserError("the dashboard needs W&B's package: pip install 'wandb-workspaces>=0.4'") from None
    try:
        owner = entity or os.environ.get("WANDB_ENTITY") or sys.modules["wandb"].Api().default_entity
        if not owner:
            raise UserError(f"the login has no user or team of its own: name one, as in TEAM/{project}")
        view = workspaces.Workspace(owner, project, title, sections=[_view_section(section) for section in sections])
        view.runset_settings.groupby = [workspaces.Metric("Group"), workspaces.Config("seed")]
        view._internal_name, view._internal_id = f"nw-{VIEW}-v", _view_id(internal, owner, project)  # noqa: SLF001
        is_new = not view._internal_id  # noqa: SLF001
        return str(view.save().url), is_new
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - wandb and its library raise many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"W&B does not take the view ({reason}): check `wandb login` and WANDB_BASE_URL") from None
    finally:
        _end_service()


def _view_id(internal: Any, entity: str, project: str) -> str:  # noqa: ANN401 - a module
    """Return the id of the view that was saved before; empty without one.

    Raises:
        UserError: there is no such project.
    """
    try:
        return str(internal.get_view_dict(entity, project, VIEW)["id"])
    except ValueError as error:
        if not str(error).startswith("Project"):  # else "Workspace `...` not found in project `...`"
            return ""
        way_out = "a run makes it, by --wandb.project; or name another, as in ENTITY/PROJECT"
        raise UserError(f"W&B has no project {entity}/{project} that this login may see: {way_out}") from None


def _view_section(section: Section) -> Any:  # noqa: ANN401 - a section of wandb_workspaces
    """Return a section as wandb_workspaces has it, with all of its panels on one page."""
    from wandb_workspaces import workspaces

    rows = -(-len(section.panels) // section.columns)
    layout = workspaces.SectionLayoutSettings(columns=section.columns, rows=rows)
    panels = [_view_panel(panel) for panel in section.panels]
    return workspaces.Section(section.title, panels=panels, is_open=True, layout_settings=layout)


def _view_panel(panel: Panel) -> Any:  # noqa: ANN401 - a panel of wandb_workspaces
    """Return a panel as wandb_workspaces has it."""
    from wandb_workspaces.reports import v2

    first = panel.keys[0]
    match panel.kind:
        case "pictures":
            return v2.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=len(panel.keys))
        case "table":
            return v2.WeavePanelSummaryTable(table_name=first)
        case "confusion":
            query = {"summaryTable": {"tableKey": f"{first}_table"}}  # wandb's name for the table of a chart
            return v2.CustomChart(
                query, CONFUSION_CHART, chart_fields=CONFUSION_FIELDS, chart_strings={"title": panel.title}
            )
    if first.endswith("*"):
        return v2.LinePlot(title=panel.title, x=panel.axis, metric_regex=re.escape(first[:-1]) + ".*")
    return v2.LinePlot(title=panel.title, x=panel.axis, y=list(panel.keys))


# ---- wandb itself ---------------------------------------------------------------------------------------------------


def _end_service() -> None:
    """End wandb's own process, for which Python's exit would wait, without a limit if the server does not answer."""
    thread = threading.Thread(target=sys.modules["wandb"].teardown, name="wandb teardown", daemon=True)
    thread.start()
    thread.join(SERVICE_SECONDS)
    if thread.is_alive():
        kill_service()


def kill_service() -> None:
    """Kill wandb's own process, by SIGTERM first; `wandb sync` can send the files that it has written."""
    services = [child for child in psutil.Process().children() if child.name() == SERVICE]
    for end in ("terminate", "kill"):
        for service in services:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(service, end)()
        _, services = psutil.wait_procs(services, timeout=SERVICE_SECONDS / 2)
    with contextlib.suppress(Exception):  # or wandb prints at exit that its process is gone
        sys.modules["wandb"].teardown()


def _import_wandb(folder: Path) -> Any:  # noqa: ANN401 - the module
    """Return the module wandb; its caches are in W&B's folder of the run, not in the home folder. Takes 0.6 s."""
    for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(variable, str(folder.resolve()))
    for variable in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[variable]  # wandb takes no empty text for a switch or a mode
    if mode := os.environ.get("WANDB_MODE"):
        os.environ["WANDB_MODE"] = MODES[mode.lower()]  # which wandb wants in lower case
    import wandb

    return wandb


def _settings(wandb: Any, **settings: object) -> Any:  # noqa: ANN401 - the module, and its settings
    """Return wandb's settings for a run; an environment variable wins over our defaults.

    They leave code and git out: a remote's address may hold a token, a diff anything.
    """
    defaults = {"silent": True, "save_code": False, "disable_git": True, "init_timeout": INIT_SECONDS}
    chosen = {key for key in defaults if os.environ.get(f"WANDB_{key.upper()}")}
    chosen |= {"silent"} if os.environ.get("WANDB_QUIET") else set()
    settings |= {key: value for key, value in defaults.items() if key not in chosen}
    return wandb.Settings(finish_timeout=FINISH_SECONDS, **settings)


def _axes(record: Record) -> Record:
    """Return the step and epoch of a record, for media that belong to it."""
    return {axis: record[axis] for axis in ("global_step", "epoch")}


def _names(config: WandbConfig, **defaults: str | None) -> Record:
    """Return the names of a run for wandb.init: of options, the environment, wandb's files for two, or defaults."""
    keys = ("project", "entity", *defaults)
    names = {key: next(iter(wandb_values.given(config, key)), defaults.get(key)) for key in keys}
    return names | {"project": names["project"] or wandb_values.from_file("project") or PROJECT}


def _run_id(folder: Path, config: WandbConfig) -> str:
    """Return the run's id, kept in W&B's folder; a new id is WANDB_RUN_ID, set by a sweep's agent, or random.

    An id that W&B refuses, which earlier versions could leave there, or none, as after a kill, is replaced.
    """
    path = folder / "run_id"
    known = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
    if wandb_values.fault("id", known):
        known = next(iter(wandb_values.given(config, "id")), secrets.token_hex(4))
        atomic_files.write_text(path, known)
    return known
