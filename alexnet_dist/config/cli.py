"""The command line made from the configuration's dataclasses, and YAML files that mirror it."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from alexnet_dist.config.schema import Config
from alexnet_dist.errors import UserError

T = TypeVar("T")

# What a resumed run may change: how long, where and how it runs and is recorded, not what it computes.
MAY_CHANGE_ON_RESUME = re.compile(
    r"epochs|out_dir|resume|max_steps|profile|data\.(cache_dir|fallback|threads|verify)|(runtime|log|wandb|checkpoint)\..*"
)
IN_VERSION_0_1 = {"model.conv1_init_scale": 1.0}
"""What a run without these fields in its config.yaml did, where today's default does something else."""
RECIPES = Path(__file__).with_name("recipes")
"""Configurations that come with the package; `--config` finds them by name."""


def parse(argv: Sequence[str] | None = None, *, prog: str = "train.py") -> Config:
    """Build the configuration from the command line, after the files that `--config` names.

    Raises:
        UserError: one line that names the flag or key at fault and, where there is one, the name that was meant.
        SystemExit: with code 0, for `--help`.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, flags = finder.parse_known_args(argv)
    except argparse.ArgumentError:
        raise UserError("--config needs the name of a YAML file or of a recipe") from None
    from_files: list[str] = []
    for name in found.config:
        tokens = _read_yaml(path := _find(name))
        _parse_tokens(tokens, Config(), prog=prog, origin=f"{name}: ")
        is_recipe = path.resolve().parent == RECIPES.resolve()
        if is_recipe and os.environ.get("WANDB_RUN_GROUP"):  # a recipe's name is a default of ours
            tokens = [token for token in tokens if not token.startswith("--wandb.group=")]
        from_files += tokens
    return _parse_tokens(from_files + flags, Config(), prog=prog)


def parse_options(argv: Sequence[str], default: T, *, prog: str) -> T:
    """Build the options of a command other than train from its command line.

    Args:
        argv: the command's part of the command line.
        default: options where the command line says nothing; a dataclass of `commands.py`.
        prog: how the user called the command, for messages.

    Raises:
        UserError: one line that names the flag at fault.
        SystemExit: with code 0, for `--help`.
    """
    return _parse_tokens(list(argv), default, prog=prog)


def _parse_tokens(tokens: list[str], default: T, *, prog: str, origin: str = "") -> T:
    home = os.path.expanduser("~")  # noqa: PTH111 - no shell expands it in `--out-dir=~/run`, nor does YAML
    tokens = [re.sub("^(--[^=]+=)?~/", rf"\1{home}/", token) for token in tokens]
    printed = io.StringIO()  # not a terminal: tyro then frames its messages in ASCII
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return tyro.cli(type(default), prog=prog, args=tokens, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            print(printed.getvalue(), end="")
            raise
        raise UserError(
            f"{origin}{_one_line(printed.getvalue(), default)} ({prog} --help lists every option)"
        ) from None


def _one_line(box: str, options: object) -> str:
    """Condense tyro's framed message (title, message and more, each ruled off) to a line."""
    paragraphs = [" ".join(text.strip("| \n").split()) for text in re.split(r"\n[\s|]*-{5,}[\s|]*\n", box.strip())]
    message = paragraphs[1] if len(paragraphs) > 1 else paragraphs[0]
    message = re.sub(r"^Error parsing \w+: (?=--)", "", message).rstrip(".")
    unknown = re.match(r"Unrecognized options: (--[\w.-]+)", message)
    suggestion = _closest_option(unknown[1], options) if unknown else None
    return f"{message}; did you mean {suggestion}?" if suggestion else message


def _closest_option(flag: str, known: Any) -> str | None:  # noqa: ANN401 - any dataclass of options
    """Return the option whose name, with its section or without, is most like a mistyped flag."""
    options = [name.replace("_", "-") for name in flat(to_dict(known))]
    names = {option.rpartition(".")[2]: f"--{option}" for option in options} | {o: f"--{o}" for o in options}
    wanted = flag.removeprefix("--").replace("_", "-")
    close = [difflib.get_close_matches(name, names, n=1) for name in (wanted, wanted.rpartition(".")[2])]
    return next((names[found[0]] for found in close if found), None)


def _find(name: str) -> Path:
    """Return the file that `--config` names: one that exists wins over a shipped recipe's name."""
    recipes = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    path = Path(name) if Path(name).is_file() else recipes.get(name, Path(name))
    if not path.exists():
        meant = "" if os.sep in name else f", and the recipes are {', '.join(recipes)}"
        raise UserError(f"--config {name}: there is no such file{meant}")
    return path


def _read_yaml(path: Path) -> list[str]:
    """Turn a YAML mapping into flags, so that files and flags are checked by the same code."""
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"--config {path} must hold a mapping such as 'epochs: 2', not a {type(content).__name__}")
    try:
        return _flatten(content or {}, prefix="--")
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None


class _Loader(yaml.SafeLoader):
    """Reader of YAML that refuses a key given twice in a mapping: the first value would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's
        """Return a mapping, after a check of its keys, where `batch-size` is `batch_size`."""
        names = [str(key.value).replace("-", "_") for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _flatten(mapping: dict[Any, Any], *, prefix: str) -> list[str]:
    """Turn `{"optim": {"lr": 1}}` into `["--optim.lr=1"]`.

    Nothing nests deeper than sections, so a file whose aliases multiply to billions of values is refused, not expanded.
    """
    tokens: list[str] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, dict):
            if prefix != "--":
                raise UserError(f"{name} cannot hold a mapping: options are grouped in sections, one level deep")
            tokens += _flatten(value, prefix=f"{prefix}{key}.")
        elif isinstance(value, bool):
            tokens.append(name if value else re.sub(r"(--|\.)([^.]+)$", r"\1no-\2", name))
        elif isinstance(value, list | tuple | set):
            if any(isinstance(item, dict | list | tuple | set) for item in value):
                raise UserError(f"{name} cannot hold lists of lists or mappings")
            tokens += [name, *map(str, value)]
        else:
            tokens.append(f"{name}={value}")
    return tokens


def to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass of options
    """Return a configuration as nested values of JSON: tuples become lists, paths become text."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config), default=str)))


def to_yaml(config: Config) -> str:
    """Return the configuration as YAML text that `--config` reads back as an equal object."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"optim": {"lr": 1}}` as `{"optim.lr": 1}`."""
    named = {f"{prefix}{key}": value for key, value in nested.items()}
    parts = [flat(value, f"{key}.") if isinstance(value, dict) else {key: value} for key, value in named.items()]
    return {key: value for part in parts for key, value in part.items()}


def changed_fields(recorded: dict[str, Any], config: Config) -> list[str]:
    """Name the fields that differ from a recorded configuration and that a resumed run must not change.

    Args:
        recorded: what `to_dict` gave when the run began; a field that did not exist then has the value in
            `IN_VERSION_0_1`, or today's default.
        config: the configuration of now.

    Returns:
        Lines such as `optim.lr: 0.0005 -> 0.001`.
    """
    before, now = flat(to_dict(Config())) | IN_VERSION_0_1 | flat(recorded), flat(to_dict(config))
    return [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not MAY_CHANGE_ON_RESUME.fullmatch(key)
    ]
