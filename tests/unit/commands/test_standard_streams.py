"""Standard streams that are closed, full, vanished or of few characters."""

import os
import subprocess
import sys

import pytest
from places import ROOT

SPEAK = """
import sys
from alexnet_dist.commands import standard_streams
standard_streams.guard(drop=True)
for number in range(3):
    print("caf\\u00e9", number)
    print("caf\\u00e9", number, file=sys.stderr)
    sys.stdout.flush()
open(sys.argv[1], "w").write("a record")
"""


def speak(path, redirection="", code=SPEAK, **variables):
    """Run a program whose streams a shell redirects, and return its exit code and what it printed."""
    words = [sys.executable, "-c", code, str(path)]
    script = f'"$@" {redirection}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, check=False, env=environment)


@pytest.mark.parametrize(
    "redirection",
    [">/dev/full", ">/dev/full 2>/dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "> >(exit) 2>&1", "2>/dev/full"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_stream_does_not_take_is_dropped(tmp_path, redirection, unbuffered):
    ended = speak(tmp_path / "file", f"{redirection}; exit $?", PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == "a record", "and nothing of what was printed"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_stream_takes_arrives(tmp_path, unbuffered):
    ended = speak(tmp_path / "file", PYTHONUNBUFFERED=unbuffered, PYTHONIOENCODING="utf-8")
    assert ended.stdout.decode() == ended.stderr.decode() == "café 0\ncafé 1\ncafé 2\n"


@pytest.mark.parametrize("drop", [True, False])
def test_characters_that_a_stream_lacks_are_escaped(tmp_path, drop):
    code = SPEAK.replace("drop=True", f"drop={drop}")
    ended = speak(tmp_path / "file", code=code, LC_ALL="C", PYTHONUTF8="0")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == b"caf\\xe9 0\ncaf\\xe9 1\ncaf\\xe9 2\n"


@pytest.mark.parametrize("drop", [True, False])
def test_bytes_of_names_that_are_not_utf8_are_escaped(tmp_path, drop):
    """They come from the command line or, a line each, from standard input."""
    code = (
        "import sys\nfrom alexnet_dist.commands import standard_streams\n"
        f"standard_streams.guard(drop={drop})\nprint(sys.stdin.read().splitlines(), sys.stdin.errors)\n"
        "print('caf\\udce9\\u65e5', 'caf\\u00e9')"
    )
    ended = speak(tmp_path, r"< <(printf 'caf\xe9\n')", code=code, PYTHONIOENCODING="latin-1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == b"['caf\xe9'] surrogateescape\ncaf\\xe9\\u65e5 caf\xe9\n"


def test_output_that_is_a_result_may_not_be_dropped(tmp_path):
    assert speak(tmp_path / "file", ">/dev/full", code=SPEAK.replace("drop=True", "drop=False")).returncode != 0


def test_what_took_the_place_of_a_stream_stays():
    from alexnet_dist.commands import standard_streams

    before = sys.stdout, sys.stderr
    assert sys.stdout is not sys.__stdout__, "pytest's own"
    standard_streams.guard(drop=True)
    assert (sys.stdout, sys.stderr) == before
