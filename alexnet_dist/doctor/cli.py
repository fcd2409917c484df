"""The preflight: what a launch needs, looked at before it begins. `python -m alexnet_dist.doctor --help`.

A line per question, ok, warning or error; exit code 0 if there is no error, else 2. Every wait has an end.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import os
import platform
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import alexnet_dist
from alexnet_dist import __version__
from alexnet_dist.config import Config, parse, to_dict
from alexnet_dist.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from alexnet_dist.doctor.checks_hardware import Finding
    from alexnet_dist.doctor.checks_network import Nodes

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
SKIP = "ALEXNET_DIST_SKIP_DOCTOR"
DEADLINE_SECONDS = 60.0  # on top of the wait for other nodes, for all that a meeting asks


def main(argv: Sequence[str]) -> int:
    """Examine and print; return the exit code.

    Raises:
        UserError: the command line is wrong.
    """
    if os.environ.get(SKIP, "") not in ("", "0") or os.environ.get("LOCAL_RANK", "0") != "0":
        return 0  # under a launcher one process of a node speaks for all
    if "--quiet" in argv and {"-h", "--help"} & set(argv):
        return 0  # the launch that follows answers
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # read at torch's import: a failed connection is one line
    options, rest = _options().parse_known_args(argv)
    config = parse(rest, prog="python -m alexnet_dist.doctor")
    nodes = _nodes(options, os.environ)
    stream = sys.stderr if options.quiet else sys.stdout
    levels = []
    for finding in examine(config, options, nodes):
        levels.append(finding.level)
        if finding.level != "ok" or not options.quiet:
            print(finding, file=stream, flush=True)
    errors, warned = levels.count("error"), levels.count("warning")
    if not options.quiet:
        print(f"{errors} error{'s' * (errors != 1)}, {warned} warning{'s' * (warned != 1)}", flush=True)
    return EXIT_ERROR if errors else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_dist.doctor",
        description="Look at what a launch needs before it begins. A line per question; exit code 2 if one is wrong.",
        epilog="All options of train.py are taken too: give those of the run. "
        f"{SKIP}=1 skips everything, with exit code 0.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quiet", action="store_true", help="print warnings and errors only, to stderr")
    add("--num-processes", "--num_processes", type=int, metavar="N", help="processes to be started, on all nodes")
    add("--config-file", "--config_file", type=Path, metavar="FILE", help="Accelerate's configuration, if one is named")
    add("--nnodes", default="1", metavar="N|MIN:MAX", help="nodes that take part (1)")
    add("--node-rank", type=int, metavar="R", help="which of them this is (0 where --rdzv is, else as they come)")
    add("--rdzv", metavar="HOST:PORT", help="where they meet: the launcher's rendezvous, on node 0")
    add("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait for the other nodes (60)")
    return parser


def _nodes(options: argparse.Namespace, environment: Mapping[str, str]) -> Nodes | None:
    """Return who is to meet, by the command line or by a launcher; None for a single node.

    Raises:
        UserError: the options do not say it.
    """
    from alexnet_dist.doctor.checks_network import Nodes, is_here

    least, _, most = options.nnodes.partition(":")
    if not (least.isdigit() and (most or least).isdigit() and 1 <= int(least) <= int(most or least)):
        raise UserError(f"--nnodes {options.nnodes} must be a number of nodes, or MIN:MAX")
    groups = int(environment.get("GROUP_WORLD_SIZE", "1"))
    if groups > 1:
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return Nodes(groups, groups, int(environment["GROUP_RANK"]), host, port, launched=True)
    count = int(most or least)
    if count == 1:
        return None
    host, _, number = (options.rdzv or "").rpartition(":")
    if not host or not number.isdigit() or not 0 < int(number) < 65536:
        raise UserError(f"--nnodes {options.nnodes} needs --rdzv HOST:PORT, where node 0 listens")
    host, rank = host.strip("[]"), options.node_rank
    if rank is None:
        rank = 0 if is_here(host) else None
    elif not 0 <= rank < count:
        raise UserError(f"--node-rank {rank} must be from 0 to {count - 1}")
    return Nodes(int(least), count, rank, host, int(number))


def examine(config: Config, options: argparse.Namespace, nodes: Nodes | None) -> Iterator[Finding]:
    """Ask all questions, of this node and then of all together, and give each answer when it is there."""
    errors = []
    for finding in _this_node(config, options, nodes):
        if finding.level == "error":
            errors.append(f"{finding.what}: {finding.message}")
        yield finding
    if nodes is not None:
        yield from _all_nodes(config, options, nodes, errors=errors)


def _this_node(config: Config, options: argparse.Namespace, nodes: Nodes | None) -> Iterator[Finding]:
    """Ask what can be known on one node."""
    from alexnet_dist.doctor import checks_hardware, checks_network, checks_storage

    environment, asked = os.environ, options.num_processes
    most, least = (nodes.most, nodes.least) if nodes else (1, 1)
    per_node = max(1, int(environment.get("LOCAL_WORLD_SIZE") or (asked or most) // most))
    found = checks_hardware.find_gpus()
    use_cpu = config.runtime.cpu or not found.names
    planned = {**environment, "LOCAL_WORLD_SIZE": str(per_node)}
    default = checks_hardware.accelerate_default(environment)
    first = nodes is None or nodes.rank == 0
    questions: list[Callable[[], Finding | None]] = [
        lambda: checks_hardware.gpus(found, environment, use_cpu=config.runtime.cpu, processes=per_node),
        lambda: checks_hardware.precision(config.runtime, use_cpu=use_cpu),
        lambda: checks_hardware.threads(
            planned, use_cpu=use_cpu, quota=checks_hardware.cpu_quota(), processes=per_node
        ),
        lambda: checks_hardware.shared_memory(gpu_processes=0 if use_cpu else per_node),
        lambda: checks_hardware.world(environment, config, asked=asked, nodes=most),
        lambda: checks_hardware.fewer_nodes(config, processes=per_node * most, least=least, most=most),
        lambda: checks_hardware.slurm(environment, nodes=most),
        lambda: checks_hardware.accelerate_file(
            options.config_file, default, config=config, asked=asked, gpus=len(found.names)
        ),
        lambda: (
            checks_network.address(nodes) if nodes else checks_network.launcher_port(environment, processes=per_node)
        ),
        lambda: checks_network.interface(environment, nodes) if nodes else None,
        lambda: checks_storage.run_folder(config),
        lambda: checks_storage.disk(config),
        lambda: checks_storage.data_set(config.data, environment),
        lambda: checks_storage.wandb(config, environment, records=first),
    ]
    for ask in questions:
        try:
            finding = ask()
        except (OSError, ValueError) as error:  # a folder that cannot be looked into, a variable that is no number
            finding = checks_hardware.Finding(
                "warning", "doctor", f"a question could not be asked: {first_line(error)}"
            )
        if finding is not None:
            yield finding


def _all_nodes(config: Config, options: argparse.Namespace, nodes: Nodes, *, errors: list[str]) -> Iterator[Finding]:
    """Meet the other nodes and compare. Every node must call it."""
    from alexnet_dist.doctor import checks_hardware, checks_storage, compare_nodes

    if any(error.startswith("rendezvous: ") for error in errors):
        return
    told = to_dict(config) | {"nnodes": options.nnodes, "num_processes": options.num_processes}
    del told["data"]["cache_dir"]  # each node may keep its images elsewhere
    host, versions = socket.gethostname(), _versions()
    mine = compare_nodes.Report(rank=nodes.rank or 0, host=host, versions=versions, command=told, errors=errors)

    folder = checks_storage.existing(config.out_dir or Path("runs"))

    def meet(token: Path | None) -> list[Finding]:
        if token:
            return compare_nodes.hold(nodes, mine, token=token, wait=options.wait)
        return compare_nodes.attend(nodes, mine, folder=folder, wait=options.wait)

    try:
        with compare_nodes.token_in(folder) if nodes.rank == 0 else contextlib.nullcontext() as token:
            yield from checks_hardware.within(2 * options.wait + DEADLINE_SECONDS, lambda: meet(token))
    except (UserError, OSError, RuntimeError) as error:  # TimeoutError too
        yield checks_hardware.Finding("error", "nodes", first_line(error))


def _versions() -> dict[str, str]:
    """Return what must be, or should be, the same on all nodes."""
    import torch

    from alexnet_dist.doctor import checks_hardware
    from alexnet_dist.tracking import code_version

    package = Path(alexnet_dist.__file__).parent
    commit, dash, state = (code_version.code_version() or "unknown").partition("-")
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.parent.glob("train.py")]):
        digest.update(path.read_bytes())
    return {
        "alexnet_dist": __version__,
        "sources": digest.hexdigest(),
        "commit": f"{commit[:12]}{dash}{state}",
        "torch": torch.__version__,
        "nccl": checks_hardware.nccl_version() or "none",
        "accelerate": importlib.metadata.version("accelerate"),
        "python": platform.python_version(),
    }


def command() -> NoReturn:
    """Run the command line and turn every ending into an exit code."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # in good order: files are removed
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_ERROR
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except SystemExit as stop:  # --help, SIGTERM
        code = int(stop.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that is left waiting for a store would make Python's own exit abort


if __name__ == "__main__":
    command()
