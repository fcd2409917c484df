"""train.py with the tiny network, as a launcher starts it; it notes where it is, for tests that kill it.

The folder CHAOS gets `rank<R>`, which says where the rank is at this moment, and `ledger.jsonl`, a line for each
optimizer step of each rank. Both outlive a SIGKILL to the byte. CHAOS_SLOW_HASH lengthens saves by seconds a file,
CHAOS_SLOW_STEP steps by seconds. While the folder holds a file `hold`, no step goes on. Each decoding of a data set
adds its host's name to `decoded`.
"""

import importlib
import json
import os
import socket
import sys
import time
from pathlib import Path

FOLDER, RANK = Path(os.environ["CHAOS"]), int(os.environ.get("RANK", "0"))
ATTEMPT = int(os.environ.get("CHAOS_ATTEMPT", "0")) + int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
PLACE = os.open(FOLDER / f"rank{RANK}", os.O_CREAT | os.O_WRONLY)
LEDGER = os.open(FOLDER / "ledger.jsonl", os.O_CREAT | os.O_WRONLY | os.O_APPEND)


def at(phase, step=0):
    os.pwrite(PLACE, f"{ATTEMPT} {os.getpid()} {phase} {step}".ljust(79).encode() + b"\n", 0)


def within(phase, function):
    def spy(*arguments, **keywords):
        at(phase)
        result = function(*arguments, **keywords)
        at("between")
        return result

    return spy


if __name__ == "__main__":
    at("start")  # before torch, which takes seconds
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import tiny
    import torch
    import torchvision

    from alexnet_dist import atomic_files
    from alexnet_dist.commands import main, results, train
    from alexnet_dist.distributed import hardware, watchdog
    from alexnet_dist.report import page
    from alexnet_dist.training import eval_loop, train_loop

    loading = importlib.import_module("alexnet_dist.data.load")  # the function of this name hides the module
    step_of, assemble, sha256 = train_loop.train_step, loading.assemble, atomic_files.sha256

    def noted_step(context, batch, draws, **keywords):
        at("step", keywords["step"])
        time.sleep(float(os.environ.get("CHAOS_SLOW_STEP", "0")))
        while (FOLDER / "hold").exists():
            time.sleep(0.02)
        result = step_of(context, batch, draws, **keywords)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        own = {"host": socket.gethostname(), "world": world}
        line = {**own, "attempt": ATTEMPT, "rank": RANK, "step": keywords["step"], "seed": torch.initial_seed()}
        os.write(LEDGER, json.dumps({**line, "ids": batch["ids"].tolist()}).encode() + b"\n")
        at("between", keywords["step"])
        return result

    def noted_assembly(*arguments):
        with (FOLDER / "decoded").open("a") as file:
            file.write(socket.gethostname() + "\n")
        return assemble(*arguments)

    def slow_sha256(path):
        time.sleep(float(os.environ.get("CHAOS_SLOW_HASH", "0")))
        return sha256(path)

    torchvision.models.alexnet = tiny.tiny_alexnet
    hardware.peak_flops = lambda *_: 1e12
    watchdog.PERIOD = 0.2
    page.write, results.draw = lambda _: None, lambda *_: None  # a second
    atomic_files.sha256 = slow_sha256
    loading.assemble = noted_assembly
    train_loop.train_step = noted_step
    eval_loop.evaluate = within("evaluate", eval_loop.evaluate)
    train.resume = within("resume", train.resume)
    main.main(["train", *tiny.FLAGS, *sys.argv[1:]], prog="train.py")
