"""The command line of all commands: which one is meant, and how each ending becomes an exit code."""

import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from alexnet_dist import __version__
from alexnet_dist.commands import standard_streams
from alexnet_dist.config import parse
from alexnet_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREAD, EXIT_USER, UserError

WAIT_FOR_FIRST = 10.0
"""Seconds that other ranks wait before they end; the launcher cuts them short once the first has ended."""
COMMANDS = {
    "train": "train AlexNet on a data set",
    "prepare": "list a data set and decode it into this node's cache, without a GPU",
    "evaluate": "evaluate a network again, and compare the result with the one in its file",
    "predict": "predict the classes of pictures",
    "features": "write features, the outputs of layers, for pictures or for a data set",
    "export": "write a network with its preprocessing as ONNX or pt2",
    "publish": "put a network on the Hugging Face Hub, with a model card",
    "convert": "turn the weights of another program (.pth, .pt, .ckpt) into a network file",
    "dashboard": "save a view of a W&B project: curves, kernels, evaluation, speed, hardware",
    "doctor": "check the machine, the launcher and the data before a run",
    "report": "write report.html of a run, or of several compared",
}
SHARED = {"train", "evaluate", "predict", "features"}
"""Commands whose work several processes share."""
HELP = """\
usage: {prog} COMMAND [OPTIONS]

commands:
{commands}

{prog} COMMAND --help lists a command's options; {prog} --version prints the version.
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "alexnet-dist") -> NoReturn:
    """Run the command that the command line names, and exit.

    Args:
        argv: the command and its options (default: the process's).
        prog: how the user called it, for messages.
    """
    command, *arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    standard_streams.guard(drop=command == "train")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if not (value := os.environ.get(name, "0")).lstrip("-").isdecimal():
            fail(f"the environment has {name}={value}, which is no number: unset it", code=EXIT_USER, common=False)
    if command == "train":
        train(arguments, prog=prog if prog == "train.py" else f"{prog} train")
    if command == "doctor":
        from alexnet_dist.doctor import cli

        cli.command(arguments)
    if command == "report":
        from alexnet_dist.report import page

        sys.exit(page.main(arguments))
    if command in COMMANDS:
        run(command, arguments, prog=f"{prog} {command}")
    if command in ("-h", "--help"):
        rows = "\n".join(f"  {name:<11}{words}" for name, words in COMMANDS.items())
        print(HELP.format(prog=prog, commands=rows), end="")
        sys.exit(EXIT_DONE)
    if command == "--version":
        print(f"alexnet_dist {__version__}")
        sys.exit(EXIT_DONE)
    named = f"there is no command {command}" if command else "name a command"
    fail(f"{named}: {', '.join(COMMANDS)} ({prog} --help explains them)", code=EXIT_USER)


def train(arguments: Sequence[str], *, prog: str) -> NoReturn:
    """Train as the command line says, and exit. Nothing heavy is imported before the command line is understood."""
    try:
        config = parse(arguments, prog=prog)
    except UserError as error:
        fail(str(error), code=EXIT_USER)
    from alexnet_dist.commands import train as train_command
    from alexnet_dist.distributed.signals import StoppedError
    from alexnet_dist.distributed.watchdog import LostRankError
    from alexnet_dist.training.metrics import NonFiniteError

    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(levelname)s: %(message)s")
    logging.raiseExceptions = False  # no tracebacks where wandb's own log file lacks the letters of a name
    again = "the same command with the same --out-dir continues"
    try:
        train_command.train(config)
    except UserError as error:
        fail(str(error), code=EXIT_USER)
    except NonFiniteError as error:
        fail(str(error), code=EXIT_FAILED)
    except LostRankError as error:
        fail(f"{error}. {again.capitalize()}", code=EXIT_FAILED, common=False)
    except StoppedError as stop:
        fail(f"stopped by {stop}, its state is saved; {again}", code=stop.exit_code)
    except KeyboardInterrupt:
        fail(f"interrupted; {again}", code=EXIT_INTERRUPTED)
    sys.exit(EXIT_DONE)


def run(command: str, arguments: Sequence[str], *, prog: str) -> NoReturn:
    """Run a command other than train, which is a module of this package with a function `main`, and exit."""
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(levelname)s: %(message)s")
    try:
        if command not in SHARED and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"{command} is the work of one process: start it without a launcher")
        sys.exit(importlib.import_module(f"alexnet_dist.commands.{command}").main(arguments, prog=prog))
    except UserError as error:
        fail(str(error), code=EXIT_USER)
    except BrokenPipeError:  # who reads the results has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        sys.exit(EXIT_UNREAD)
    except KeyboardInterrupt:
        fail("interrupted; the same command begins again, or continues", code=EXIT_INTERRUPTED)


def fail(message: str, *, code: int, common: bool = True) -> NoReturn:
    """End with one line, printed once per host where every rank fails in the same way.

    Args:
        message: what is wrong, and the way out.
        code: the exit code.
        common: whether all ranks come here; else each prints its own line.
    """
    if not common or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr, flush=True)
    elif code == EXIT_USER:
        time.sleep(WAIT_FOR_FIRST)  # a launcher that sees this one end ends the first, which may not have printed yet
    sys.exit(code)
