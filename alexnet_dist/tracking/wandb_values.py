"""Names, tags and ids that W&B is given, by option or environment variable: which it refuses, and ours made to fit."""

import configparser
import os
from pathlib import Path
from typing import NamedTuple

from alexnet_dist.config import WandbConfig
from alexnet_dist.errors import UserError, printable

IN_ADDRESSES = "/\\#?%:"  # have a meaning of their own in the address of a page
SHOWN = 40  # characters of a refused value in an error message


class Rule(NamedTuple):
    """What W&B takes as a value."""

    variable: str
    """Environment variable that gives the value where no option does."""
    longest: int
    """Characters at most."""
    refused: str = ""
    """Characters that it must not have."""


RULES = {
    "project": Rule("WANDB_PROJECT", 128, IN_ADDRESSES),
    "entity": Rule("WANDB_ENTITY", 128, IN_ADDRESSES),
    "name": Rule("WANDB_NAME", 128),
    "group": Rule("WANDB_RUN_GROUP", 128),
    "job_type": Rule("WANDB_JOB_TYPE", 64),
    "tags": Rule("WANDB_TAGS", 64),
    "id": Rule("WANDB_RUN_ID", 64, IN_ADDRESSES + ";,'"),
}
"""By the option's name; an id has no option. Sources: validators of wandb 0.31's settings (project, tags, id), W&B's
documentation of WANDB_RUN_ID (64 characters) and of wandb.init (an id's characters), wandb/wandb#6402 (job type) and
NVIDIA-NeMo/Skills#859 (name, group). For an entity nothing is documented; it is part of addresses, as a project is."""


def given(config: WandbConfig, key: str) -> tuple[str, ...]:
    """Return what the option says, else the environment variable; nothing, one value or several tags."""
    return _option(config, key) or _variable(key)


def check(config: WandbConfig) -> None:
    """Check all values that the user gives W&B; wandb looks at variables that an option overrides, too.

    Raises:
        UserError: W&B refuses one.
    """
    for key, rule in RULES.items():
        options = [(f"--wandb.{key.replace('_', '-')}", value) for value in _option(config, key)]
        for origin, value in [*options, *((rule.variable, value) for value in _variable(key))]:
            if reason := fault(key, value):
                shown = value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
                raise UserError(f"{origin} {printable(shown)}: {reason}")


def _option(config: WandbConfig, key: str) -> tuple[str, ...]:
    option = getattr(config, key, None) or ()
    return (option,) if isinstance(option, str) else option


def _variable(key: str) -> tuple[str, ...]:
    text = os.environ.get(RULES[key].variable)
    if not text:
        return ()
    return tuple(tag.strip() for tag in text.split(",")) if key == "tags" else (text,)


def fault(key: str, value: str) -> str | None:
    """Return why W&B refuses a value, in words; None if it takes it."""
    _, longest, refused = RULES[key]
    if set(refused) & set(value):
        return f"W&B takes none of {' '.join(refused)} here"
    if not 1 <= len(value) <= longest:
        return f"W&B takes 1 to {longest} characters here, and it has {len(value)}"
    if key == "id" and value != value.strip():
        return "W&B takes no white space at its ends"
    return None if value == printable(value) and "\n" not in value else "W&B takes a line of valid UTF-8 here"


def fitted(key: str, text: str) -> str:
    """Return a value of our own, such as a folder's name, in the length that W&B takes."""
    text, longest = printable(text), RULES[key].longest
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def from_file(key: str) -> str | None:
    """Return a setting of wandb's files, which `wandb login --host` and `wandb init` write; None without it."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([folder / "settings", Path("wandb") / "settings"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # wandb reports it, and goes on without
        return None
    return parser.get("default", key, fallback=None)
