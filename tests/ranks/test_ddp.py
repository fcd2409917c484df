"""Two processes compute what one computes: order, losses, evaluation, files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deadlines import communicate
from places import ROOT
from ranks import free_port, run_ranks
from tiny import DEFAULT_OPTIMIZER, beside_launch_scripts, equal, losses, records, run, run_with_ids, summary, weights

from alexnet_dist.data.inputs import Inputs
from alexnet_dist.errors import UserError
from alexnet_dist.training import checkpoint, metrics

SAME = ["--runtime.cpu", "--model.dropout", "0"]  # what has to be equal for losses to be equal


def rank_run(folder: Path, flags: list[str]) -> list[list[int]]:
    torch.set_num_threads(1)
    return run_with_ids(folder, flags)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process: its run folder and its ids of each step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return folder, run_with_ids(folder, SAME)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes: their run folder and each one's ids of each step."""
    folder = tmp_path_factory.mktemp("two") / "run"
    return folder, run_ranks(rank_run, folder, SAME)


def test_two_ranks_see_the_same_order(one, two):
    joined = [first + second for first, second in zip(*two[1], strict=True)]
    assert joined == one[1]
    assert all(len(first) == len(second) == 8 for first, second in zip(*two[1], strict=True))


def test_two_ranks_have_the_same_losses_and_gradients(one, two):
    check_the_same(one[0], two[0])


def test_two_ranks_have_the_same_losses_and_gradients_with_the_default_optimizer(tmp_path):
    flags = SAME + DEFAULT_OPTIMIZER
    one = run(tmp_path / "one", *flags)
    run_ranks(rank_run, tmp_path / "two", flags)
    check_the_same(one, tmp_path / "two")


def check_the_same(one: Path, two: Path) -> None:
    """The losses, gradients, rates and weights of two run folders are the same, to rounding."""
    assert len(losses(one)) == 6
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    norms = [[record["train/grad_norm"] for record in records(run) if "train/loss" in record] for run in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    rates = [[record["train/lr"] for record in records(run) if "train/lr" in record] for run in (one, two)]
    assert rates[1] == rates[0]
    for key, value in weights(two).items():
        torch.testing.assert_close(value, weights(one)[key], rtol=1e-3, atol=1e-5)


def test_evaluation_counts_every_image_once_at_an_indivisible_size(one, two):
    """52 images in batches of 16 leave 4, on two ranks 4 and 0."""
    for folder in (one[0], two[0]):
        assert [record["val/num_images"] for record in records(folder) if "val/top1" in record] == [52, 52]
    tops = [[record["val/top1"] for record in records(run[0]) if "val/top1" in record] for run in (one, two)]
    assert tops[0] == tops[1]
    evaluated = [[record["val/loss"] for record in records(run[0]) if "val/loss" in record] for run in (one, two)]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-4)


def test_all_ranks_mistakes_are_in_one_list(one, two):
    found = [json.loads((run[0] / "evaluation.json").read_text()) for run in (one, two)]
    assert found[0]["confusion"] == found[1]["confusion"]
    mistakes = [{m["id"]: (m["label"], m["predicted"]) for m in evaluation["worst"]} for evaluation in found]
    assert mistakes[0] == mistakes[1]
    wrong = 52 - sum(found[0]["confusion"][i][i] for i in range(10))
    assert len(mistakes[0]) == len(found[1]["worst"]) == wrong > 40, "each once, though two ranks saw them"
    losses_of = [[m["loss"] for m in evaluation["worst"]] for evaluation in found]
    assert all(losses == sorted(losses, reverse=True) for losses in losses_of)
    assert found[0]["best"]
    right = [[(answer["id"], answer["label"]) for answer in evaluation["best"]] for evaluation in found]
    assert right[0] == right[1], "so the pictures are the same"


def test_two_ranks_leave_one_set_of_files(one, two):
    names = [sorted(str(path.relative_to(run[0])) for path in run[0].rglob("*")) for run in (one, two)]
    assert names[0] == names[1]
    assert [line["global_step"] for line in records(two[0]) if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert (summary(two[0])["world_size"], summary(two[0])["global_batch_size"]) == (2, 16)


@pytest.mark.parametrize(
    "flags", [["--optim.accumulate", "2"], ["--runtime.comm-hook", "bf16"], ["--optim.ema", "0.5"]]
)
def test_options_on_two_ranks(one, tmp_path, flags):
    run_ranks(rank_run, tmp_path / "run", [*SAME, *flags, "--max-steps", "3"])
    assert losses(tmp_path / "run") == pytest.approx(losses(one[0])[:3], rel=1e-3)


@pytest.mark.parametrize("mixing", ["--data.mixup", "--data.cutmix"])
def test_partners_are_the_same_on_two_ranks(tmp_path, mixing):
    """A rank mixes its images with partners that are, for the most part, another rank's."""
    flags = [*SAME, mixing, "1", "--data.cutout", "0.25", "--max-steps", "2"]
    run(tmp_path / "one", *flags)
    run_ranks(rank_run, tmp_path / "two", flags)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def resumed(folder: Path) -> list[list[int]]:
    return rank_run(folder, SAME)


def test_run_continues_on_another_number_of_ranks(one, tmp_path):
    """One process for two steps, then two: the same ids, the same losses to rounding."""
    before = run_with_ids(tmp_path / "run", [*SAME, "--max-steps", "2"])
    after = run_ranks(resumed, tmp_path / "run")
    assert before + [first + second for first, second in zip(*after, strict=True)] == one[1]
    assert losses(tmp_path / "run") == pytest.approx(losses(one[0]), rel=1e-4)


def test_two_ranks_are_repeatable_to_the_bit(two, tmp_path):
    run_ranks(rank_run, tmp_path / "run", SAME)
    assert equal(weights(tmp_path / "run"), weights(two[0]))
    assert losses(tmp_path / "run") == losses(two[0])


def dropout_seeds(folder: Path) -> list[int]:
    """Train three steps and return what torch's generator was seeded with."""
    torch.set_num_threads(1)
    used: list[int] = []
    manual_seed = torch.manual_seed
    torch.manual_seed = lambda seed: (used.append(seed), manual_seed(seed))[1]
    run(folder, "--runtime.cpu", "--max-steps", "3")
    return used


def test_ranks_and_steps_drop_different_units(tmp_path):
    """Dropout's masks are functions of (step, rank): three steps on two ranks are six different seeds."""
    first, second = (set(used) - {0} for used in run_ranks(dropout_seeds, tmp_path / "run"))  # 0: the initial weights
    assert len(first) == len(second) == 3
    assert not first & second


def poisoned_run(folder: Path) -> str:
    """Give rank 1 alone a NaN in step 2 and return how this rank ended."""
    torch.set_num_threads(1)
    prepare, calls = Inputs.augmented, []

    def poison(self, *arguments):
        calls.append(1)
        inputs = prepare(self, *arguments)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            inputs[0] = float("nan")
        return inputs

    Inputs.augmented = poison
    try:
        run(folder, *SAME, "--log.every-steps", "3")
    except metrics.NonFiniteError as error:
        return str(error)
    return "went on"


def test_nan_on_one_rank_stops_both_with_the_same_words(tmp_path):
    first, second = run_ranks(poisoned_run, tmp_path / "run")
    assert first == second
    assert re.search(r"the loss of step 2 is not finite \(images \[\d+\]", first), first
    assert summary(tmp_path / "run")["status"] == "non-finite"
    assert not (tmp_path / "run/checkpoints").exists()


def failing_save(folder: Path) -> str:
    torch.set_num_threads(1)

    def full(*_: object, **__: object) -> None:
        raise UserError("the disk is full")

    checkpoint.Saver.save = full
    try:
        run(folder, *SAME, "--max-steps", "1")
    except UserError as error:
        return str(error)
    return "went on"


def test_a_failed_save_ends_every_rank(tmp_path):
    assert run_ranks(failing_save, tmp_path / "run") == ["the disk is full"] * 2


# ---- as a user starts it ---------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path):
    """A folder like the repository's, with the tiny network."""
    (tmp_path / "notes").mkdir()
    beside_launch_scripts(tmp_path)
    return tmp_path


def launch(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own, all of which is killed at the deadline."""
    scripts = str(Path(sys.executable).parent)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, err = communicate(process, 240)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


SMALL = "--data.dataset digits --data.limit 40 --data.batch-size 16 --data.image-size 64 --max-steps 2".split()
TWO = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
TWO += ["--dynamo_backend", "no"]


def test_accelerate_launch_with_two_cpu_ranks_makes_one_wandb_run(tmp_path, desk):
    flags = [*SMALL, "--runtime.cpu", "--log.trackers", "wandb", "--wandb.mode", "offline"]
    flags += ["--out-dir", str(tmp_path / "run")]
    port = str(free_port())
    ended = launch(*TWO, "--main_process_port", port, "train.py", *flags, cwd=desk, CHAOS=str(desk / "notes"))
    assert ended.returncode == 0, ended.stderr
    assert "2 processes (DDP) on CPU" in ended.stdout
    assert ended.stdout.count("-- result --") == 1
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*"))) == 1
    assert summary(tmp_path / "run")["world_size"] == 2


def test_launch_scripts(tmp_path, desk):
    own = {"cwd": desk, "CHAOS": str(desk / "notes"), "PYTHONPATH": str(ROOT)}
    ended = launch(f"{desk}/launch/node.sh", *SMALL, "--log.trackers", "--out-dir", str(tmp_path / "node"), **own)
    assert ended.returncode == 0, ended.stderr
    assert summary(tmp_path / "node")["world_size"] == 1
    ended = launch(f"{desk}/launch/debug.sh", "--data.image-size", "64", **own)
    assert ended.returncode == 0, ended.stderr
    assert "max_steps" in ended.stdout


def test_processes_that_would_train_apart_are_refused(tmp_path):
    """Without --runtime.cpu Accelerate would start two unconnected runs that overwrite each other."""
    ended = launch(
        *TWO, "--main_process_port", str(free_port()), "train.py", *SMALL, "--out-dir", str(tmp_path / "run")
    )
    assert ended.returncode != 0
    assert ended.stderr.count("error: the launcher started 2 processes and there is no GPU") == 1
    assert not (tmp_path / "run").exists()
