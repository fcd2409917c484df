"""The command line of all commands, and the exit code of each ending."""

import subprocess
import sys

import pytest
from places import ROOT

import alexnet_dist
from alexnet_dist.commands import main, train
from alexnet_dist.distributed.signals import StoppedError
from alexnet_dist.distributed.watchdog import LostRankError
from alexnet_dist.errors import UserError
from alexnet_dist.training.metrics import NonFiniteError


def ending(*arguments, prog="alexnet-dist"):
    with pytest.raises(SystemExit) as ended:
        main.main(list(arguments), prog=prog)
    return ended.value.code


def test_help_lists_the_commands(capsys):
    assert ending("--help") == 0
    assert "usage: alexnet-dist COMMAND" in capsys.readouterr().out


def test_the_version(capsys):
    assert ending("--version") == 0
    assert alexnet_dist.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [([], "name a command"), (["trian"], "there is no command trian")])
def test_a_command_that_is_not_there_is_one_line(capsys, arguments, words):
    assert ending(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert "train, prepare, evaluate, predict" in printed.err


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_launchers_variable_without_a_number_is_named(monkeypatch, capsys, name, command):
    monkeypatch.setenv(name, "")  # as a manifest with an empty value gives it
    assert ending(command) == 2
    assert capsys.readouterr().err == f"error: the environment has {name}=, which is no number: unset it\n"


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (None, 0, ""),
        (UserError("no such folder"), 2, "error: no such folder"),
        (NonFiniteError("a NaN", step=1, images=[]), 1, "error: a NaN"),
        (LostRankError("rank 1 is gone"), 1, "error: rank 1 is gone. The same command with the same --out-dir"),
        (StoppedError(15), 143, "error: stopped by SIGTERM, its state is saved"),
        (StoppedError(2), 130, "error: stopped by SIGINT"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_endings_become_exit_codes(monkeypatch, capsys, fault, code, words):
    def end(_config):
        if fault is not None:
            raise fault

    monkeypatch.setattr(train, "train", end)
    assert ending("train", "--epochs", "1") == code
    assert words in capsys.readouterr().err


def test_results_that_nobody_reads_any_more_end_a_command_quietly():
    """As `alexnet-dist predict RUN FOLDER | head -1` does."""
    code = (
        "import sys, types; from alexnet_dist.commands import main\n"
        "results = lambda arguments, prog: print(1_000_000 * 'a result', flush=True)\n"
        "sys.modules['alexnet_dist.commands.predict'] = types.SimpleNamespace(main=results)\n"
        "main.main(['predict'])"
    )
    script = '"$@" | head -c 1; exit ${PIPESTATUS[0]}'
    words = ["bash", "-c", script, "bash", sys.executable, "-c", code]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, "a", "")


def test_messages_name_the_command_as_it_was_called(capsys):
    assert ending("train", "--epoch", "1", prog="train.py") == 2
    assert "(train.py --help lists every option)" in capsys.readouterr().err
    assert ending("train", "--epoch", "1") == 2
    assert "(alexnet-dist train --help lists every option)" in capsys.readouterr().err


def test_both_names_of_the_package_load_late():
    code = "import sys, alexnet_dist as a; print('torch' in sys.modules, 'load' in vars(a), 'train' in vars(a))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.split() == ["False"] * 3
    assert callable(alexnet_dist.load)
    assert callable(alexnet_dist.train)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        alexnet_dist.tarin  # noqa: B018
