"""The view of a W&B project: what it holds, saved and read back by W&B's library; mistakes are one line."""

import sys

import pytest
from fake_wandb import serving
from run_logs import KEY

from alexnet_dist.commands import dashboard, main
from alexnet_dist.tracking import wandb_tracker


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A login, and no choice of a project."""
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")


def ending(*arguments):
    with pytest.raises(SystemExit) as ended:
        main.main(["dashboard", *arguments])
    return ended.value.code


def panels():
    return [panel for section in dashboard.SECTIONS for panel in section.panels]


# ---- what it holds --------------------------------------------------------------------------------------------------


def test_sections_come_in_the_order_of_questions():
    titles = [section.title for section in dashboard.SECTIONS]
    assert titles == ["Learning", "Kernels: pictures", "Kernels: numbers", "Evaluation", "Speed", "Hardware"]


def test_before_now_and_difference_share_a_slider():
    pictures = {panel.keys for panel in panels() if panel.kind == "pictures"}
    for layer in ("conv1", "conv2", "conv2_overview"):
        assert tuple(f"kernels/{layer}_{which}" for which in ("before", "now", "diff")) in pictures


@pytest.mark.parametrize(
    ("key", "axis"),
    [
        ("train/loss", "global_step"),
        ("perf/step_ms", "global_step"),
        ("val/loss", "epoch"),
        ("per_class/*", "epoch"),
        ("kernels/conv1_dead", "epoch"),
        ("system/gpu.0.gpu", "RelativeTime(Process)"),
    ],
)
def test_axes_are_those_of_the_runs(key, axis):
    assert {panel.axis for panel in panels() if panel.keys[0] == key} == {axis}


# ---- where it goes --------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(monkeypatch):
    """Where views would be saved."""
    places = []

    def save(_title, _sections, *, project, entity):
        places.append((entity, project))
        return "https://wandb.example/view", len(places) == 1

    monkeypatch.setattr(wandb_tracker, "save_view", save)
    return places


@pytest.mark.parametrize(
    "case",
    [
        (["mine"], "other", (None, "mine")),
        (["team/mine"], None, ("team", "mine")),
        ([], "other", (None, "other")),
        ([], "team/other", ("team", "other")),
        ([], None, (None, "alexnet_dist")),
    ],
)
def test_the_project(saved, monkeypatch, capsys, case):
    arguments, variable, place = case
    if variable:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    assert ending(*arguments) == 0
    assert ending(*arguments) == 0
    assert saved == [place, place]
    made, again = capsys.readouterr().out.splitlines()
    assert made == "the view alexnet-dist is made: https://wandb.example/view"
    assert again == "the view alexnet-dist is made anew: https://wandb.example/view"


# ---- mistakes -------------------------------------------------------------------------------------------------------


def one_line(capsys, *arguments):
    assert ending(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("name", ["a/b/c", "/b", "a/"])
def test_a_name_that_is_no_project(saved, capsys, name):
    assert f"{name}: name a project of W&B, as in PROJECT or ENTITY/PROJECT" in one_line(capsys, name)
    assert saved == []


def test_no_login(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "run `wandb login`" in one_line(capsys)


def test_without_the_library(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert "pip install 'wandb-workspaces>=0.4'" in one_line(capsys)


# ---- saved and read back --------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    reason = "wandb-workspaces (extra `dashboard`) saves the view and reads it back"
    return pytest.importorskip("wandb_workspaces.workspaces", reason=reason)


@pytest.fixture
def server(library, monkeypatch):  # noqa: ARG001 - without it nobody asks the server
    with serving("good") as served:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{served.port}")
        yield served


def meant(panel):
    """Return what a panel of the library should hold."""
    match panel.kind:
        case "pictures":
            return ("MediaBrowser", panel.title, list(panel.keys), len(panel.keys))
        case "table":
            return ("WeavePanelSummaryTable", *panel.keys)
        case "confusion":
            return ("CustomChart", "wandb/confusion_matrix/v1", {"title": panel.title}, "confusion_table")
    if panel.keys == ("per_class/*",):
        return ("LinePlot", panel.title, panel.axis, [], "per_class/.*")
    return ("LinePlot", panel.title, panel.axis, list(panel.keys), None)


def held(panel):
    """Return what a panel of the library holds."""
    kind = type(panel).__name__
    match kind:
        case "MediaBrowser":
            return (kind, panel.title, panel.media_keys, panel.num_columns)
        case "WeavePanelSummaryTable":
            return (kind, panel.table_name)
        case "CustomChart":
            fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
            assert panel.chart_fields == fields
            return (kind, panel.chart_name, panel.chart_strings, panel.query["summaryTable"]["tableKey"])
    return (kind, panel.title, panel.x.name, [key.name for key in panel.y], panel.metric_regex)


def test_the_view_read_back_is_the_one_that_was_meant(server, library, capsys):
    assert ending("p") == 0
    address = capsys.readouterr().out.split()[-1]
    assert address == f"http://127.0.0.1:{server.port}/e/p?nw=alexnetdist"
    view = library.Workspace.from_url(address)
    assert view.name == "alexnet-dist"
    assert [section.name for section in view.sections] == [section.title for section in dashboard.SECTIONS]
    for found, section in zip(view.sections, dashboard.SECTIONS, strict=True):
        assert [held(panel) for panel in found.panels] == [meant(panel) for panel in section.panels]
        assert found.is_open
        layout = found.layout_settings
        assert layout.columns == section.columns
        assert layout.columns * layout.rows >= len(section.panels), "on one page"
    grouped = [(type(group).__name__, group.name) for group in view.runset_settings.groupby]
    assert grouped == [("Metric", "Group"), ("Config", "seed")]
    assert view.auto_generate_panels is False


def test_made_anew_there_is_one_view(server, capsys):
    assert ending("e/p") == 0
    (view,) = server.views
    view["displayName"], spec = "changed", view["spec"]
    view["spec"] = spec.replace("Learning", "Changed")
    server.views.append(view | {"id": "other", "name": "nw-somebodyels-v", "displayName": "alexnet-dist"})
    assert ending("e/p") == 0
    first, again = capsys.readouterr().out.splitlines()
    assert (first.split()[-1], " made: " in first, " made anew: " in again) == (again.split()[-1], True, True)
    mine, other = server.views
    assert (mine["id"], mine["displayName"], "Changed" in mine["spec"]) == ("view0", "alexnet-dist", False)
    assert (other["id"], "Changed" in other["spec"]) == ("other", True), "a view of the same title is somebody's own"


def test_no_such_project(server, capsys):
    assert "W&B has no project e/nowhere that this login may see" in one_line(capsys, "nowhere")
    assert server.views == []
