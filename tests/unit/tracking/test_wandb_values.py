"""Values that W&B is given: what it refuses is refused before it is asked, and what is ours is made to fit."""

import pytest
import wandb
from places import ROOT
from run_logs import KEY, config_for, offline

from alexnet_dist.config import LogConfig, WandbConfig, parse
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import wandb_tracker, wandb_values
from alexnet_dist.tracking.wandb_values import RULES

REFUSED = [  # option, value, words of the message
    ("project", "a/b", "takes none of / "),
    ("project", "50%", "takes none of / "),
    ("project", "p" * 129, "1 to 128 characters here, and it has 129"),
    ("entity", "team/project", "takes none of / "),
    ("name", "n" * 129, "1 to 128"),
    ("name", "caf\udce9", r"caf\\xe9: W&B takes a line of valid UTF-8"),
    ("name", "two\nlines", "takes a line"),
    ("group", "g" * 129, "1 to 128"),
    ("job_type", "j" * 65, "1 to 64"),
    ("tags", ("fine", "t" * 70), "1 to 64 characters here, and it has 70"),
    ("tags", ("fine", ""), "and it has 0"),
]


def settings(**changes):
    return config_for(None, log=LogConfig(), wandb=WandbConfig(**changes))


@pytest.mark.parametrize(("option", "value", "words"), REFUSED)
def test_what_wandb_refuses_is_refused_before_anything_starts(option, value, words):
    with pytest.raises(UserError, match=words) as refusal:
        wandb_tracker.check(settings(**{option: value}))
    assert str(refusal.value).startswith(f"--wandb.{option.replace('_', '-')} ")
    assert "\n" not in str(refusal.value).replace("two\nlines", "")
    assert len(str(refusal.value)) < 140


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PROJECT", "a/b"),
        ("ENTITY", "a b/c"),
        ("NAME", "n" * 129),
        ("RUN_GROUP", "g" * 129),
        ("JOB_TYPE", "j" * 65),
        ("TAGS", f"fine,{'t' * 70}"),
        ("TAGS", "fine,,"),
        ("RUN_ID", "job:17/3"),
        ("RUN_ID", "i" * 65),
        ("RUN_ID", " i"),
        ("MODE", "nonsense"),
        ("MODE", "shared"),
        ("API_KEY", "short"),
        ("API_KEY", f"{KEY}\n"),
        ("CONSOLE", "banana"),
        ("SILENT", "maybe"),
        ("RESUME", "perhaps"),
        ("BASE_URL", "no-address"),
        ("INIT_TIMEOUT", "soon"),
        ("CONFIG_PATHS", "more.yaml"),  # documented; wandb 0.31 takes no text for it
    ],
)
@pytest.mark.parametrize("flags", [{}, {"mode": "offline", "project": "p", "name": "n", "tags": ("t",), "group": "g"}])
def test_variables_that_wandb_refuses_are_refused_too(variable, value, flags, monkeypatch):
    """Also where a flag wins: wandb reads all of them, and fails as a whole."""
    monkeypatch.setenv(f"WANDB_{variable}", value)
    with pytest.raises(UserError, match=rf"^WANDB_{variable}\b") as refusal:
        wandb_tracker.check(settings(**flags))
    assert "\n" not in str(refusal.value)
    assert KEY not in str(refusal.value)


def test_where_wandb_is_no_tracker_nothing_is_checked(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    wandb_tracker.check(config_for(None))


@pytest.mark.parametrize("setting", ["project", "run_id", "run_tags"])
def test_the_rules_are_those_of_wandb(setting):
    """Whatever wandb's own validators refuse, the rules refuse."""
    key = {"run_id": "id", "run_tags": "tags"}.get(setting, setting)
    longest = RULES[key].longest
    values = [*(f"a{chr(code)}b" for code in range(0x20, 0x7F)), "", "a" * longest, "a" * (longest + 1), "ä" * longest]
    for value in values:
        try:
            wandb.Settings(**{setting: [value] if key == "tags" else value})
        except (ValueError, wandb.errors.UsageError):  # noqa: PERF203 - each value is asked
            assert wandb_values.fault(key, value), value


def test_our_own_values_are_made_to_fit(tmp_path, spy):
    spy.id = "i" * 64
    folder = tmp_path / ("r" * 200)
    log = offline(folder, tags=["d" * 82, "fp32"])
    given = wandb.init.call_args.kwargs
    assert given["tags"] == [f"{'d' * 63}…", "fp32"]
    assert given["name"] == f"{'r' * 127}…"
    assert wandb_values.fitted("name", "caf\udce9") == r"caf\xe9"
    log.close()


def test_an_id_that_wandb_refuses_does_not_stay(tmp_path, spy, monkeypatch):
    del spy
    folder = tmp_path / "run" / "wandb"
    folder.mkdir(parents=True)
    for bad in ("job:17/3", "", "i" * 65):
        (folder / "run_id").write_text(bad)
        offline(tmp_path / "run").close()
        kept = (folder / "run_id").read_text()
        assert wandb.init.call_args.kwargs["id"] == kept
        assert wandb_values.fault("id", kept) is None
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    offline(tmp_path / "run").close()
    assert wandb.init.call_args.kwargs["id"] == kept, "one folder, one run"


def test_the_files_of_wandb_settings_are_read(tmp_path, monkeypatch):
    """`wandb login --host` notes the server there, `wandb init` the project."""
    monkeypatch.chdir(tmp_path)
    assert wandb_values.from_file("base_url") is None
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "settings").write_text("[default]\nbase_url = http://own:8080\nproject = 100%\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "here"))
    (tmp_path / "netrc").write_text(f"machine own:8080\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_tracker.server() == "http://own:8080"
    assert wandb_tracker.wandb_mode(WandbConfig())[0] == "online"
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nproject = of-this-folder\n")
    assert wandb_values.from_file("project") == "of-this-folder"
    monkeypatch.setenv("WANDB_BASE_URL", "http://another")
    assert wandb_tracker.server() == "http://another"
    (tmp_path / "wandb" / "settings").write_bytes(b"no \xff section")
    assert wandb_values.from_file("project") is None


# ---- every variable of wandb's documentation ------------------------------------------------------------------------

# https://docs.wandb.ai/models/track/environment-variables, and some of wandb/env.py: value, setting, what it becomes
VARIABLES = {
    "WANDB_APP_URL": ("http://app", "app_url_override", "http://app"),
    "WANDB_BASE_URL": ("http://own:8080", "base_url", "http://own:8080"),
    "WANDB_CONSOLE": ("off", "console", "off"),
    "WANDB_DISABLE_CODE": ("true", "disable_code", True),
    "WANDB_DISABLE_GIT": ("false", "disable_git", False),
    "WANDB_DOCKER": ("image", "docker", "image"),
    "WANDB_ENTITY": ("team", "entity", "team"),
    "WANDB_HOST": ("host", "host", "host"),
    "WANDB_IGNORE_GLOBS": ("*.a,*.b", "ignore_globs", ("*.a", "*.b")),
    "WANDB_INIT_TIMEOUT": ("7", "init_timeout", 7),
    "WANDB_JOB_NAME": ("job", "job_name", "job"),
    "WANDB_JOB_TYPE": ("cross-validation", "run_job_type", "cross-validation"),
    "WANDB_NAME": ("shown", "run_name", "shown"),
    "WANDB_NOTEBOOK_NAME": ("notebook.ipynb", "notebook_name", "notebook.ipynb"),
    "WANDB_NOTES": ("notes, of mine", "run_notes", "notes, of mine"),
    "WANDB_PROJECT": ("project", "project", "project"),
    "WANDB_QUIET": ("true", "quiet", True),
    "WANDB_RESUME": ("must", "resume", "must"),
    "WANDB_RUN_GROUP": ("group", "run_group", "group"),
    "WANDB_RUN_ID": ("id17", "run_id", "id17"),
    "WANDB_SILENT": ("false", "silent", False),
    "WANDB_SWEEP_ID": ("sweep", "sweep_id", "sweep"),
    "WANDB_TAGS": ("a, b", "run_tags", ("a", "b", "digits")),
    "WANDB_USERNAME": ("someone", "username", "someone"),
    "WANDB_USER_EMAIL": ("someone@example.org", "email", "someone@example.org"),
}
"""Besides those of logins, modes and folders, which have tests of their own here and in `test_wandb_tracker`; of
ERROR_REPORTING and SHOW_RUN, which wandb reads by itself; and of CONFIG_PATHS, which wandb 0.31 cannot read."""
DEFAULTS = {
    "disable_git": True,
    "entity": None,
    "init_timeout": wandb_tracker.INIT_SECONDS,
    "project": wandb_tracker.PROJECT,
    "resume": "allow",
    "run_group": None,
    "run_job_type": "train",
    "run_name": "run",
    "run_notes": None,
    "run_tags": ("digits",),
    "save_code": False,
    "silent": True,
}


@pytest.fixture
def run_made(tmp_path, monkeypatch):
    """What wandb makes of the environment and of a tracker's options: a run that goes nowhere."""
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # which has read an environment

    def make(**options):
        log = offline(tmp_path / "run", wandb=WandbConfig(**{"mode": "disabled", **options}), tags=["digits"])
        run = log._trackers[0]._run
        log.close()
        return run

    yield make
    wandb.teardown()


def test_without_variables_defaults_are_ours(run_made):
    found = run_made().settings
    assert {name: getattr(found, name) for name in DEFAULTS} == DEFAULTS | {"entity": "dummy"}


def test_each_variable_is_respected(run_made, monkeypatch):
    for variable, (value, _, _) in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    found = run_made().settings
    values = {variable: getattr(found, setting) for variable, (_, setting, _) in VARIABLES.items()}
    assert values == {variable: expected for variable, (_, _, expected) in VARIABLES.items()}


def test_empty_variables_are_none(run_made, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
    found = run_made().settings
    assert {name: getattr(found, name) for name in DEFAULTS} == DEFAULTS | {"entity": "dummy"}


def test_a_flag_wins(run_made, monkeypatch):
    for variable, (value, _, _) in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("WANDB_SWEEP_ID")  # a sweep decides its project, whatever a run asks for
    flags = {"project": "p", "entity": "e", "name": "n", "group": "g", "job_type": "train"}
    found = run_made(**flags, tags=("t",)).settings
    assert (found.project, found.entity, found.run_name, found.run_group, found.run_job_type) == tuple(flags.values())
    assert found.run_tags == ("t", "digits")


def test_code_is_saved_only_where_a_variable_asks_for_it(run_made, monkeypatch):
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    assert run_made().settings.save_code is True


def test_WANDB_RUN_GROUP_wins_over_the_name_of_a_shipped_recipe(tmp_path, monkeypatch):  # noqa: N802
    own = tmp_path / "own.yaml"
    own.write_text("wandb: {group: of-a-file}")
    monkeypatch.setenv("WANDB_RUN_GROUP", "of-the-environment")
    assert parse(["--config", "lecture"]).wandb.group is None
    assert parse(["--config", str(ROOT / "recipes/lecture.yaml")]).wandb.group is None
    assert parse(["--config", "lecture", "--wandb.group", "lecture"]).wandb.group == "lecture"
    assert parse(["--config", str(own)]).wandb.group == "of-a-file"
    monkeypatch.setenv("WANDB_RUN_GROUP", "")
    assert parse(["--config", "lecture"]).wandb.group == "lecture"
