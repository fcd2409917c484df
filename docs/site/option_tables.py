"""Tables of every option of every command, made from the dataclasses of alexnet_dist/config.

docs/options.md and docs/commands.md hold a mark for each table; build_site.py fills them in.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from alexnet_dist.config import Config, commands
from alexnet_dist.doctor import cli as doctor

COMMANDS = {
    "train": Config(),
    "prepare": Config(),
    "evaluate": commands.EvaluateOptions(),
    "predict": commands.PredictOptions(),
    "features": commands.FeaturesOptions(),
    "export": commands.ExportOptions(),
    "publish": commands.PublishOptions(),
    "convert": commands.ConvertOptions(),
    "dashboard": commands.DashboardOptions(),
}
"""The defaults of each command whose options are a dataclass."""
WORDS = {str: "text", int: "integer", float: "number", Path: "path"}
POSITIONAL = re.compile(r"([^(:]+)(?::|(?= \()) (.*)")
"""The docstring of a positional option: how it is written, then what it is."""
MARK = re.compile(r"<!-- options: (\w+)(?:\.(\w+))? -->")


class Option(NamedTuple):
    """A row of a table."""

    flag: str
    type: str
    default: str
    help: str


def docstrings(kind: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, those that it inherits too."""
    found = {}
    for each in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        for field, after in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[field.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


def words_of(hint: Any) -> str:  # noqa: ANN401 - any annotation
    """Return an annotation in words: `a`, `b` for choices, "several" for a tuple of any length; None is left out."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(words_of(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"several: {words_of(parts[0])}" if parts[-1] is Ellipsis else f"{len(parts)} {words_of(parts[0])}s"
    return "switch" if hint is bool else WORDS[hint]


def default_of(value: object) -> str:
    """Return a default as it would be typed, nothing where there is none."""
    if value is None or value in ((), ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "`" + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) + "`"


def rows(options: Any, prefix: str = "") -> Iterator[Option]:  # noqa: ANN401 - any dataclass of options
    """Yield the options of a dataclass, then those of its sections."""
    hints, texts = get_type_hints(type(options), include_extras=True), docstrings(type(options))
    sections = []
    for field in dataclasses.fields(options):
        value, hint, text = getattr(options, field.name), hints[field.name], texts.get(field.name, "")
        if dataclasses.is_dataclass(value):
            sections.append((value, f"{field.name.replace('_', '-')}."))
            continue
        flag = f"--{prefix}{field.name.replace('_', '-')}"
        if get_origin(hint) is Annotated and Positional in get_args(hint):
            flag, text = POSITIONAL.match(text).groups()
            hint = get_args(hint)[0]
        elif value is True:
            flag = f"--{prefix}no-{field.name.replace('_', '-')}` or `{flag}"
        yield Option(flag, words_of(hint), default_of(value), text)
    for section, name in sections:
        yield from rows(section, name)


def of_parser(parser: argparse.ArgumentParser) -> Iterator[Option]:
    """Yield the options of a command that argparse reads, without --help."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them
        if action.dest != "help":
            kind = "switch" if action.nargs == 0 else action.metavar or "text"
            yield Option(action.option_strings[0], kind, default_of(action.default or None), action.help or "")


def table(command: str, section: str = "") -> str:
    """Return the options of a command, or of one section of them, as a table of Markdown.

    Args:
        command: train, or another of `COMMANDS`, or doctor.
        section: data, model, ...; `own` for those without a section; nothing for all.
    """
    found = list(of_parser(doctor._options()) if command == "doctor" else rows(COMMANDS[command]))  # noqa: SLF001
    if section:
        found = [row for row in found if section == (re.search(r"--(\w+)\.", row.flag) or ["", "own"])[1]]
    assert found, f"there is no section {section} of {command}"
    found.sort(key=lambda row: row.flag.startswith("--"))  # how the command is written comes first
    cells = ((f"`{row.flag}`", row.type, row.default, row.help) for row in found)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join(["| option | type | default | what it does |", "|---|---|---|---|", *lines])


def filled_in(text: str) -> str:
    """Return a page with a table in place of each mark."""
    return MARK.sub(lambda mark: table(mark[1], mark[2] or ""), text)
