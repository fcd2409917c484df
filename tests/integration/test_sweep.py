"""launch/sweep.yaml, run by W&B's own agent: trials get what was drawn, report what is compared, and can be stopped."""

import json
import math
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from deadlines import Deadline, wait
from fake_wandb import serving
from places import ROOT, SUPPORT
from tiny import records, summary
from wandb_server import KEY, PROGRAM
from wandb_server import serving as keeping

SWEEP = yaml.safe_load((ROOT / "launch/sweep.yaml").read_text())
TINY = "--runtime.cpu --log.trackers wandb --wandb.mode online".split()
AGENT = """
from wandb import wandb_agent
from wandb.cli.cli import cli

wandb_agent.Agent.POLL_INTERVAL = 0.2  # seconds, instead of 5
cli(["agent", "default/p/sweep"])
"""


def draw(parameters, rng):
    """Return a trial's values, as W&B's server draws them for a random search."""
    drawn = {}
    for name, how in parameters.items():
        if "value" in how:
            drawn[name] = how["value"]
        elif "values" in how:
            drawn[name] = rng.choice(how["values"])
        elif how["distribution"] == "uniform":
            drawn[name] = rng.uniform(how["min"], how["max"])
        else:
            assert how["distribution"] == "log_uniform_values"
            drawn[name] = math.exp(rng.uniform(math.log(how["min"]), math.log(how["max"])))
    return drawn


def command(number, drawn):
    """Return what the server tells an agent."""
    arguments = {name: {"value": value} for name, value in drawn.items()}
    return {"type": "run", "run_id": f"trial{number}", "program": str(SUPPORT / "tiny_train.py"), "args": arguments}


class Agent:
    """`wandb agent`, in a folder that stands for the repository."""

    def __init__(self, folder, server, *, prefix=()):
        self.folder = folder
        (folder / "notes").mkdir()
        (folder / "accelerate_config.yaml").symlink_to(ROOT / "accelerate_config.yaml")
        where = SWEEP["command"].index("${args}")
        server.sweep = SWEEP | {"command": [*prefix, *SWEEP["command"][:where], *TINY, "${args}"]}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.port}", "WANDB_API_KEY": KEY}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CHAOS": str(folder / "notes")}
        self.training = None
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = psutil.Popen(
                [sys.executable, "-c", AGENT],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.is_running():
            for process in [*self.process.children(recursive=True), self.process]:
                process.kill()
            self.process.wait()
        with suppress(psutil.NoSuchProcess):
            if self.training is not None:  # an orphan
                self.training.kill()

    def until(self, condition, *, within=120):
        end = Deadline(within)
        while not (found := condition()):
            assert self.process.poll() is None, self.output.read_text()
            assert not end.has_passed(), self.output.read_text()
            time.sleep(0.01)
        return found

    def finish(self):
        assert wait(self.process, 240) == 0, self.output.read_text()

    def trials(self):
        """Return the run folders by the ids that their agent chose."""
        return {path.read_text(): path.parent.parent for path in self.folder.glob("runs/*/wandb/run_id")}


def check(folder, drawn):
    """The trial trained with what was drawn."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name, value in drawn.items():
        at = config
        for part in name.replace("-", "_").split("."):
            at = at[part]
        assert at == value, name


def best(rows):
    return [row["best/top1"] for row in rows if "best/top1" in row]


def training(agent):
    """Return the process of the trial under way, once it has evaluated."""
    if any("best/top1" in path.read_text() for path in agent.folder.glob("runs/*/metrics.jsonl")):
        return psutil.Process(int((agent.folder / "notes/rank0").read_text().split()[1]))
    return None


def test_every_parameter_is_an_option():
    """And every drawn value is one that the option takes: 100 draws reach the ends of the ranges."""
    from alexnet_dist.config import parse

    rng = random.Random(0)
    for _ in range(100):
        parse([f"--{name}={value}" for name, value in draw(SWEEP["parameters"], rng).items()])


def test_a_stopped_trial_saves_and_the_next_one_reports(tmp_path):
    """The agent's signal reaches the training process, which is not the one that it started."""
    rng = random.Random(1)
    long, short = (draw(SWEEP["parameters"], rng) | {"epochs": epochs} for epochs in (1000, 2))
    with serving("good") as server:
        server.commands += [command(0, long)]
        with Agent(tmp_path, server) as agent:
            agent.training = agent.until(lambda: training(agent))
            server.commands += [{"type": "stop", "run_id": "trial0"}, command(1, short)]
            agent.until(lambda: not agent.training.is_running(), within=20)
            agent.finish()
            trials = agent.trials()
        stopped, finished = trials["trial0"], trials["trial1"]
        assert (stopped / "PREEMPTED").read_text().startswith("SIGTERM")
        assert summary(stopped)["status"] == "stopped"
        for folder, drawn in ((stopped, long), (finished, short)):
            check(folder, drawn)
        assert summary(finished)["status"] == "finished"
        history = server.history
        sent = [json.loads(body) for path, body in server.requests if path.endswith("/wandb-summary.json")]
    for name, folder in (("trial0", stopped), ("trial1", finished)):
        assert best(history[name]) == best(records(folder)) != [], "what stops a trial"
    assert sent[-1]["best/top1"] == summary(finished)["best_top1"], "what compares trials"


@pytest.mark.slow
@pytest.mark.wandb_server
@pytest.mark.skipif(not PROGRAM, reason="openwandb is not installed")
def test_four_trials(tmp_path):
    rng = random.Random(2)
    drawn = [draw(SWEEP["parameters"], rng) | {"epochs": 2} for _ in range(4)]
    with keeping(tmp_path) as keeper, serving("good") as server:
        server.commands += [command(number, values) for number, values in enumerate(drawn)]
        with Agent(tmp_path, server, prefix=["env", f"WANDB_BASE_URL={keeper.address}"]) as agent:
            agent.finish()
            trials = agent.trials()
        assert sorted(keeper.runs("p")) == sorted(trials) == [f"trial{number}" for number in range(4)]
        for number, values in enumerate(drawn):
            name = f"trial{number}"
            check(trials[name], values)
            held = keeper.run("p", name)
            assert held.summary["best/top1"] == summary(trials[name])["best_top1"]
            assert {parameter: held.config[parameter] for parameter in values} == values, "for the sweep's own charts"
