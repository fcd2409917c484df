"""The view of a W&B project has a panel for everything that a run sends."""

from fnmatch import fnmatchcase

from tiny import run

from alexnet_dist.commands import dashboard
from alexnet_dist.tracking import RunLogger

NOT_EVERYWHERE = {"optim/loss_scale"}  # fp16 alone


def sent(folder):
    """Train, and return the keys that trackers get."""
    keys, each = set(), RunLogger._each

    def note(log, method, *arguments):
        match method, *arguments:
            case "log", record:
                keys.update(record)
            case "show", _, media:
                keys.update([*media.pictures, *media.histograms])
            case "confusion", *_:
                keys.add("confusion")
            case "table", _, name, _:
                keys.add(name)
        each(log, method, *arguments)

    RunLogger._each = note
    try:
        run(folder, "--log.kernels-every-epochs", "1")
    finally:
        RunLogger._each = each
    return keys


def test_everything_that_a_run_sends_has_a_panel_or_is_left_out_by_name(tmp_path):
    keys = sent(tmp_path / "run")
    shown = {key for section in dashboard.SECTIONS for panel in section.panels for key in panel.keys}
    left_out = dashboard.LEFT_OUT.keys()
    missing = {key for key in keys - left_out if not any(fnmatchcase(key, one) for one in shown)}
    assert not missing
    assert left_out <= keys - shown, "and nothing that no run sends, or that has a panel"
    empty = {one for one in shown if not one.startswith("system/") and not any(fnmatchcase(k, one) for k in keys)}
    assert empty <= NOT_EVERYWHERE
