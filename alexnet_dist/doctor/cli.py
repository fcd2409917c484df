"""Command line of the preflight: `python -m alexnet_dist.doctor --help`.

Prints a line per check, ok, warning or error; exit code 0 without an error, else 2. Every wait has a deadline.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import os
import platform
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from alexnet_dist import __version__
from alexnet_dist.config import Config, parse, to_dict
from alexnet_dist.doctor.check_result import CheckResult, Nodes, error, warning, within
from alexnet_dist.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USER, UserError, first_line

SKIP = "ALEXNET_DIST_SKIP_DOCTOR"
DEADLINE_SECONDS = 60.0  # for the exchange between nodes, besides the waits for nodes


def main(argv: Sequence[str]) -> int:
    """Run the checks, print their results, and return the exit code.

    Raises:
        UserError: the command line is wrong.
    """
    if os.environ.get(SKIP, "") not in ("", "0") or os.environ.get("LOCAL_RANK", "0") != "0":
        return EXIT_DONE  # under a launcher, one process of each node runs the checks
    if "--quiet" in argv and {"-h", "--help"} & set(argv):
        return EXIT_DONE  # the launch that follows prints its help
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # read at torch's import: a failed connection is one line
    options, rest = _options().parse_known_args(argv)
    config = parse(rest, prog="python -m alexnet_dist.doctor")
    nodes = _nodes(options, os.environ)
    levels = []
    for result in run_checks(config, options, nodes):
        levels.append(result.level)
        if result.level != "ok" or not options.quiet:
            _print(result, sys.stderr if options.quiet else sys.stdout)
    errors, warned = levels.count("error"), levels.count("warning")
    if not options.quiet:
        _print(f"{errors} error{'s' * (errors != 1)}, {warned} warning{'s' * (warned != 1)}", sys.stdout)
    return EXIT_USER if errors else EXIT_DONE


def _print(line: object, stream: TextIO) -> None:
    """Print a line, or drop it where the stream is closed or full: a launch goes on without the preflight's words."""
    with contextlib.suppress(OSError):
        print(line, file=stream, flush=True)


def _options() -> argparse.ArgumentParser:
    """Return the parser of the preflight's own options; those of the run are parsed as by train.py."""
    parser = argparse.ArgumentParser(
        prog="python -m alexnet_dist.doctor",
        description="Check a machine, or all nodes, before a launch: a line per check, exit code 2 on an error.",
        epilog=f"All options of train.py are taken too: give those of the run. {SKIP}=1 skips all, with exit code 0.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quiet", action="store_true", help="print warnings and errors only, to stderr")
    add("--num-processes", "--num_processes", type=int, metavar="N", help="processes to be started, on all nodes")
    add("--config-file", "--config_file", type=Path, metavar="FILE", help="Accelerate's configuration, if one is named")
    add("--nnodes", default="1", metavar="N|MIN:MAX", help="number of nodes (1)")
    add("--node-rank", type=int, metavar="R", help="this node's rank (0 on the host of --rdzv, else by arrival)")
    add("--rdzv", metavar="HOST:PORT", help="address of the launcher's rendezvous, on node 0")
    add("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait for the other nodes (60)")
    return parser


def _nodes(options: argparse.Namespace, environment: Mapping[str, str]) -> Nodes | None:
    """Return the nodes of the launch, by a launcher's variables or by the options; None for a single node.

    Raises:
        UserError: an option is wrong, or one is missing.
    """
    from alexnet_dist.doctor.checks_network import is_here

    least, _, most = options.nnodes.partition(":")
    if not (least.isdigit() and (most or least).isdigit() and 1 <= int(least) <= int(most or least)):
        raise UserError(f"--nnodes {options.nnodes} must be a number of nodes, or MIN:MAX")
    if (groups := int(environment.get("GROUP_WORLD_SIZE", "1"))) > 1:
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return Nodes(groups, groups, int(environment["GROUP_RANK"]), host, port, launched=True)
    if (count := int(most or least)) == 1:
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


def run_checks(config: Config, options: argparse.Namespace, nodes: Nodes | None) -> Iterator[CheckResult]:
    """Yield the result of each check when it has run: first those of this node, then those over all nodes."""
    from alexnet_dist.doctor import checks_hardware, checks_network, checks_storage

    environment, asked, file = os.environ, options.num_processes, options.config_file
    most, least = (nodes.most, nodes.least) if nodes else (1, 1)
    local = max(1, int(environment.get("LOCAL_WORLD_SIZE") or (asked or most) // most))
    found = checks_hardware.find_gpus()
    use_cpu, num_gpus, quota = config.runtime.cpu or not found.names, len(found.names), checks_hardware.cpu_quota()
    default = checks_hardware.accelerate_default(environment)
    checks: list[Callable[[], CheckResult | None]] = [
        lambda: checks_hardware.gpus(found, environment, use_cpu=config.runtime.cpu, processes=local),
        lambda: checks_hardware.precision(config.runtime, use_cpu=use_cpu),
        lambda: checks_hardware.threads(environment, use_cpu=use_cpu, quota=quota, processes=local),
        lambda: checks_hardware.shared_memory(gpu_processes=0 if use_cpu else local),
        lambda: checks_hardware.world(environment, config, asked=asked, nodes=most),
        lambda: checks_hardware.fewer_nodes(config, processes=local * most, least=least, most=most),
        lambda: checks_hardware.slurm(environment, nodes=most),
        lambda: checks_hardware.accelerate_file(file, default, config=config, asked=asked, gpus=num_gpus),
        lambda: checks_network.address(nodes) if nodes else checks_network.launcher_port(environment, processes=local),
        lambda: checks_network.interface(environment, nodes) if nodes else None,
        lambda: checks_storage.run_folder(config),
        lambda: checks_storage.disk(config),
        lambda: checks_storage.data_set(config.data, environment),
        lambda: checks_storage.wandb(config, environment, records=nodes is None or nodes.rank == 0),
    ]
    errors = []
    for check in checks:
        try:
            result = check()
        except (OSError, ValueError) as fault:  # a folder without permission, a variable that is no number
            result = warning("doctor", f"a question could not be asked: {first_line(fault)}")
        if result is None:
            continue
        if result.level == "error":
            errors.append(f"{result.check}: {result.message}")
        yield result
    if nodes is not None and not any(line.startswith("rendezvous: ") for line in errors):
        yield from _compare(config, options, nodes, errors)


def _compare(config: Config, options: argparse.Namespace, nodes: Nodes, errors: list[str]) -> list[CheckResult]:
    """Return the results of the checks that compare all nodes. Every node must call it."""
    from alexnet_dist.doctor import checks_storage, compare_nodes

    command = to_dict(config) | {"nnodes": options.nnodes, "num_processes": options.num_processes}
    del command["data"]["cache_dir"]  # each node may keep its images elsewhere
    mine = compare_nodes.Report(nodes.rank or 0, platform.node(), _versions(), command, errors)
    token = checks_storage.existing(config.out_dir or Path("runs")) / f".doctor-{secrets.token_hex(8)}"
    meet = compare_nodes.serve if nodes.rank == 0 else compare_nodes.join
    try:
        if nodes.rank == 0:
            with contextlib.suppress(OSError):  # the check of the run folder has reported it
                token.touch()
        return within(2 * options.wait + DEADLINE_SECONDS, lambda: meet(nodes, mine, token=token, wait=options.wait))
    except (UserError, OSError, RuntimeError) as fault:  # TimeoutError too
        return [error("nodes", first_line(fault))]
    finally:
        with contextlib.suppress(OSError):
            token.unlink()


def _versions() -> dict[str, str]:
    """Return the versions that should be the same on all nodes, by name."""
    import torch

    from alexnet_dist.doctor.checks_hardware import nccl_version
    from alexnet_dist.tracking.code_version import git_commit

    commit, dash, state = (git_commit() or "unknown").partition("-")
    return {
        "alexnet_dist": __version__,
        "sources": hash_of_sources(Path(__file__).parent.parent),
        "commit": f"{commit[:12]}{dash}{state}",
        "torch": torch.__version__,
        "nccl": nccl_version() or "none",
        "accelerate": importlib.metadata.version("accelerate"),
        "python": platform.python_version(),
    }


def hash_of_sources(package: Path) -> str:
    """Return the SHA-256 of a package's Python files, sub-packages included, and of the `train.py` beside it."""
    paths = sorted([*package.rglob("*.py"), *package.parent.glob("train.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def command(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main` on the arguments (default: the process's) and exit with its code."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that `finally` blocks remove files
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        _print(f"error: {error}", sys.stderr)
        code = EXIT_USER
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except SystemExit as stop:  # --help, SIGTERM
        code = int(stop.code or 0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # a full disk, or None for a stream that is closed
            stream.flush()
    os._exit(code)  # with an abandoned thread that waits for a store, Python's own exit would abort
