"""The preflight on a machine that is well, its options, and who is to meet."""

import io
import re
import sys

import pytest
from preflight import WELL, found, levels, nodes_at

from alexnet_dist.doctor import cli
from alexnet_dist.errors import UserError

# ---- a machine that is well -----------------------------------------------------------------------------------------


def test_a_healthy_machine_and_nothing_left_behind(capsys, tmp_path):
    lines = found(capsys, "--out-dir", "runs/new", code=0)
    assert set(levels(lines).values()) == {"ok"}
    assert {"GPUs", "precision", "threads", "world", "accelerate", "disk", "data", "W&B"} <= levels(lines).keys()
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_what_is_wrong_alone_and_to_stderr(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert cli.main([*WELL, "--quiet", "--out-dir", "taken"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error +run folder +taken cannot be written \(.*taken is no folder\).*--out-dir\n", err)
    for arguments in (["--quiet"], ["--quiet", "--out-dir", "taken", "--help"]):
        assert cli.main([*WELL, *arguments]) == 0
        assert capsys.readouterr() == ("", "")


class Full(io.StringIO):
    def write(self, _text):
        raise OSError(28, "No space left on device")

    flush = lambda self: self.write("")  # noqa: E731 - as of a file


@pytest.mark.parametrize("stream", [Full(), None], ids=["full", "closed"])
@pytest.mark.parametrize(("folder", "code"), [("runs/new", 0), ("taken", 2)])
def test_words_that_cannot_be_printed_hold_up_no_launch(monkeypatch, tmp_path, stream, folder, code):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(cli.os, "_exit", sys.exit)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    for quiet in ([], ["--quiet"]):
        with pytest.raises(SystemExit) as ended:
            cli.command([*WELL, *quiet, "--out-dir", folder])
        assert ended.value.code == code


@pytest.mark.parametrize(("variable", "value"), [("ALEXNET_DIST_SKIP_DOCTOR", "1"), ("LOCAL_RANK", "1")])
def test_nothing_is_asked_where_it_is_not_wished_or_another_process_of_the_node_asks(
    capsys, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    assert cli.main(["--nnodes", "nonsense"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nnodes", "two"], "--nnodes two must be a number of nodes, or MIN:MAX"),
        (["--nnodes", "3:2"], "--nnodes 3:2 must be a number of nodes, or MIN:MAX"),
        (["--nnodes", "2", "--node-rank", "0"], "--nnodes 2 needs --rdzv HOST:PORT"),
        (["--nnodes", "2", "--node-rank", "0", "--rdzv", "head"], "--nnodes 2 needs --rdzv HOST:PORT"),
        (["--nnodes", "2", "--rdzv", "head:1", "--node-rank", "2"], "--node-rank 2 must be from 0 to 1"),
        (["--data.batchsize", "2"], "did you mean --data.batch-size?"),
    ],
)
def test_a_mistyped_command_line_is_one_line(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        cli.main(arguments)
    assert "\n" not in str(caught.value)


def test_options_of_the_run_are_taken_as_train_py_takes_them(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {batch_size: 30}\n")
    lines = found(capsys, "--config", "recipe.yaml", "--num_processes", "4", code=2)
    (message,) = [message for level, _, message in lines if level == "error"]
    assert "--data.batch-size 30" in message
    assert "28 or 32" in message


def test_a_question_that_cannot_be_asked_is_a_line_like_others(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NNODES", "many")
    (message,) = [message for level, _, message in found(capsys, code=0) if level == "warning"]
    assert message.startswith("a question could not be asked: ")


# ---- several nodes --------------------------------------------------------------------------------------------------


def test_the_node_that_the_others_go_to_is_number_0():
    options = cli._options().parse_args(["--nnodes", "2", "--rdzv", "127.0.0.1:29500"])
    assert cli._nodes(options, {}).rank == 0
    options.rdzv = "192.0.2.1:29500"  # an address of nobody (RFC 5737)
    assert cli._nodes(options, {}).rank is None


def test_the_nodes_of_a_launcher_are_those_of_its_variables():
    options = cli._options().parse_args([])
    launched = {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "7"}
    assert cli._nodes(options, launched) == nodes_at("head", 7, rank=1, launched=True)
    assert cli._nodes(options, {"GROUP_WORLD_SIZE": "1"}) is None
