"""Run a function on several CPU processes that form a group, with a deadline that kills and reports."""

import os
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any

import warm
from deadlines import Deadline, deadline


def free_port() -> int:
    """Let the system choose a port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return what a launcher sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], results: Any) -> None:
    warm.take(environment)
    rank = int(environment["RANK"])
    try:
        results.put((rank, True, function(*arguments)))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent shows it
        results.put((rank, False, traceback.format_exc()))


def run_ranks(function: Callable[..., Any], *arguments: Any, world_size: int = 2, within: float = 120) -> list[Any]:
    """Call a module-level function on every rank and return the ranks' results, in their order.

    They have `within` seconds of an idle machine.

    Raises:
        AssertionError: a rank failed, with its traceback, or the deadline passed, with the ranks still silent.
    """
    context = warm.context()
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_work, args=(function, arguments, environment, results))
        for environment in (os.environ | rank_environment(rank, world_size, port) for rank in range(world_size))
    ]
    for process in processes:
        process.start()
    end = Deadline(within)
    answers: dict[int, Any] = {}
    try:
        while len(answers) < world_size:
            try:
                rank, succeeded, value = results.get(timeout=1)
            except queue.Empty:
                silent = sorted(set(range(world_size)) - answers.keys())
                assert not end.has_passed(), f"ranks {silent} gave no answer within {end.seconds:.0f} s"
                dead = [rank for rank in silent if processes[rank].exitcode not in (None, 0)]
                assert not dead, f"ranks {dead} died with {[processes[rank].exitcode for rank in dead]}"
                continue
            assert succeeded, f"rank {rank} failed:\n{value}"
            answers[rank] = value
    finally:
        for process in processes:
            if len(answers) < world_size:
                process.kill()
            process.join(deadline(10))
            if process.is_alive():
                process.kill()
    return [answers[rank] for rank in range(world_size)]
