"""Two hosts on a slow link: seconds of a step measured, against what the model said before.

    sudo .venv/bin/python benchmarks/links.py

Two network namespaces are two hosts of one core each; `tc` limits their link. Each starts `launch/multinode.sh` with
the whole network. The prediction knows the steps of a rank that sends nothing, timed here too, and the nominal rate
of the link less headers; nothing is fitted to what it is compared with. Writes links.{json,md}. Expect a quarter
of an hour on two cores; needs root, iproute2 and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import ddp_model
import measuring

sys.path.insert(0, str(measuring.ROOT / "tests/support"))

BATCH = 32  # images a rank
STEPS, WARM_UP = 6, 2
PAYLOAD = 1448 / 1514  # of a full Ethernet frame with TCP's timestamps, as tc counts it
RATES = {"1gbit": 1e9, "100mbit": 1e8}
START = 900.0  # seconds for a run of six steps at 20 s, its start and its end
QUICK = ["--data.dataset", "synthetic", "--data.limit", "640", "--log.every-steps", "1", "--log.trackers"]

Row = dict[str, Any]


def alone(batch: int) -> float:
    """Return the seconds of a step of one rank on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # the run inherits it
    try:
        run = measuring.train("--data.batch-size", str(batch), "--max-steps", str(STEPS), *QUICK)
    finally:
        os.sched_setaffinity(0, cores)
    return _seconds(run.records)


def _seconds(records: list[Row]) -> float:
    return statistics.median(record["perf/step_ms"] for record in records[WARM_UP:]) / 1000


def together(rate: str | None, hook: str) -> tuple[float, Row]:
    """Return the seconds of a step of two hosts, and the run's summary.

    Args:
        rate: of the link in tc's units; None leaves it as fast as the kernel is.
        hook: in which type gradients are sent.
    """
    from hosts import Network

    with tempfile.TemporaryDirectory() as scratch, Network(2) as network:
        folder = Path(scratch) / "run"
        flags = [*QUICK, "--out-dir", str(folder), "--data.batch-size", str(2 * BATCH), "--max-steps", str(STEPS)]
        flags += ["--runtime.comm-hook", hook, "--runtime.probe-network"]
        variables = {"NNODES": "2", "RDZV": "h0:29500", "CPU_RANKS": "1", "MAX_RESTARTS": "0"}
        launched = []
        for core, host in enumerate(network.hosts):
            if rate is not None:
                host.shape(rate)
            command = ["taskset", "--cpu-list", str(core), "launch/multinode.sh", *flags]
            launched.append(host.start(command, output=Path(scratch) / host.name, **variables))
        codes = [each.wait(START) for each in launched]
        assert codes == [0, 0], "\n".join(each.text for each in launched)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return _seconds([record for record in records if "train/loss" in record]), summary


def predict(machine: ddp_model.Machine, rate: float, hook: str) -> float:
    """Return the model's seconds of a step over a link of `rate` bits a second."""
    link = ddp_model.Link("shaped", rate / 8 * PAYLOAD)
    num_bytes = 4 if hook == "none" else 2
    return ddp_model.step_seconds(machine, link, ranks=2, batch=BATCH, gradient_bytes=num_bytes)


def table(results: Row) -> str:
    """Return what was found as Markdown."""
    own = f"{1000 * results['alone']:.0f} ms"
    lines = [
        f"Two hosts of one core, {BATCH} images each; a rank alone takes {own} a step. Nothing in the model is fitted.",
        "",
        "| link | gradients | all-reduce of 228 MB (fp32) | step, measured | step, model | error |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        model = f"{row['model']:.2f} s | {100 * (row['model'] / row['step'] - 1):+.0f} %" if row["model"] else "- | -"
        lines.append(
            f"| {row['rate'] or 'not limited'} | {'bf16' if row['hook'] == 'bf16' else 'fp32'} | "
            f"{row['allreduce_ms'] / 1000:.2f} s | {row['step']:.2f} s | {model} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, predict, and write both down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    options = parser.parse_args()
    small, large = (alone(batch) for batch in (2, BATCH))
    machine = ddp_model.fit_compute("a core", small=(2, small), large=(BATCH, large))
    rows: list[Row] = []
    for rate in (None, *RATES):
        for hook in ("none", "bf16"):
            step, summary = together(rate, hook)
            model = predict(machine, RATES[rate], hook) if rate else None
            rows.append({"rate": rate, "hook": hook, "step": step, "model": model, **_probe(summary)})
            print(rows[-1], flush=True)
    results = {"machine": measuring.machine(), "alone": large, "small": small, "rows": rows}
    (options.out / "links.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.out / "links.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def _probe(summary: Row) -> Row:
    return {key: summary[key] for key in ("allreduce_ms", "allreduce_gb_per_second", "interconnect", "hosts")}


if __name__ == "__main__":
    main()
