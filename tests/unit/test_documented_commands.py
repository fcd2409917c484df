"""Every command that a document shows: parsed by the command itself, or another program's, listed by name."""

import re
import sys

import pytest
from documents import HEADERS, NOT_OURS, PAGES, bare, code_lines, inline_commands, is_ours
from places import ROOT

from alexnet_dist.commands.main import COMMANDS
from alexnet_dist.config import parse
from alexnet_dist.config.cli import parse_options
from alexnet_dist.doctor import cli as doctor
from alexnet_dist.report import page as report

sys.path.insert(0, str(ROOT / "docs" / "site"))
import option_tables

SHOWN = sorted({(path.relative_to(ROOT).as_posix(), line) for path in [*PAGES, *HEADERS] for line in code_lines(path)})
WRITTEN = sorted({(path.relative_to(ROOT).as_posix(), code) for path in PAGES for code in inline_commands(path)})
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
EXAMPLES = {"runs/my-run/config.yaml": "quick"}
"""Files that have to be there when a command is parsed, and what stands for them."""
PLACEHOLDER = re.compile(r"…|\.\.\.|\[|\$")


def understood(line):
    """Return the command of this package that a line starts, with its arguments; None for another of this repository.

    Raises:
        AssertionError: what it names is not there.
    """
    words = bare(line)
    if words[0] in ("python", ".venv/bin/python"):
        words = words[1:]
    if words[0] == "accelerate":
        words = words[next((at for at, word in enumerate(words) if word in ("train.py", "-m")), len(words)) :]
    if words[:1] == ["-m"] and words[1].startswith("alexnet_dist"):
        words = ["alexnet-dist", *filter(None, [words[1].partition(".")[2]]), *words[2:]]
    if not words or words[:2] in (["-m", "venv"], ["alexnet-dist", "--help"], ["sbatch", "--array"]):
        return None
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS
        return None
    if words[0] == "alexnet-dist":
        assert words[1] in COMMANDS
        return words[1], words[2:]
    if words[0] == "sbatch":  # its own options come before the script
        words = words[next(at for at, word in enumerate(words) if at and not word.startswith("-")) :]
    assert (ROOT / words[0]).is_file()
    return ("train", words[1:]) if words[0] == "train.py" or words[0].startswith("launch/") else None


def check(command, arguments, monkeypatch):
    """Parse arguments as the command does; where they hold placeholders, look for its options only."""
    if PLACEHOLDER.search(" ".join(arguments)):
        known = set(re.findall(r"--[\w.-]+", option_tables.table(command)))
        assert set(re.findall(r"--[\w.-]+", " ".join(arguments))) <= known
    elif arguments == ["--help"]:
        pass
    elif command in ("train", "prepare"):
        parse([EXAMPLES.get(word, word) for word in arguments])
    elif command == "doctor":
        parse(doctor._options().parse_known_args(arguments)[1])
    elif command == "report":
        monkeypatch.setattr(report, "write", lambda *_, **__: ROOT / "README.md")
        assert report.main(arguments) == 0
    else:
        parse_options(arguments, option_tables.COMMANDS[command], prog=command)


@pytest.mark.parametrize(("place", "line"), SHOWN)
def test_a_command_that_is_shown_can_be_given(place, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    first = bare(line)[0]
    if first in NOT_OURS:
        return
    assert is_ours(first), f"{place}: {first} is neither ours nor listed as another program's"
    if found := understood(line):
        check(*found, monkeypatch)


@pytest.mark.parametrize(("place", "code"), WRITTEN)
def test_a_command_in_a_sentence_can_be_given(place, code, monkeypatch):  # noqa: ARG001 - the place is in its name
    monkeypatch.chdir(ROOT)
    if found := understood(code):
        check(*found, monkeypatch)


def test_commands_are_found_in_every_document_that_shows_some():
    assert len(SHOWN) > 60
    assert {place for place, _ in SHOWN} >= {"README.md", "docs/start.md", "docs/dashboard.md", "launch/node.sh"}
    assert ("docs/scaling.md", "launch/node.sh --config recipes/reference.yaml") in WRITTEN
