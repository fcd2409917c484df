"""Two hosts on a slow link: seconds of a step measured, against what the model said before.

    sudo .venv/bin/python benchmarks/links.py

Two network namespaces are two hosts of one core each; `tc` limits their link. Each starts `launch/multinode.sh` with
the whole network. The prediction knows the steps of a rank that sends nothing, timed here too, and the nominal rate
of the link less headers; nothing is fitted to what it is compared with. Writes links.{json,md}. Expect a quarter
of an hour on two cores; needs root, iproute2 and Linux.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import ddp_model
import measuring
from measuring import Row

sys.path.insert(0, str(measuring.ROOT / "tests/support"))

BATCH = 32  # images a rank
STEPS, WARM_UP = 6, 2
PAYLOAD = 1448 / 1514  # of a full Ethernet frame with TCP's timestamps, as tc counts it
RATES = {"1gbit": 1e9, "100mbit": 1e8}
PROBE = ("allreduce_ms", "allreduce_gb_per_second", "interconnect", "hosts")
START = 900.0  # seconds for a run of six steps at 20 s, its start and its end
QUICK = ["--data.dataset", "synthetic", "--data.limit", "640", "--log.every-steps", "1", "--log.trackers"]
QUICK += ["--optim.name", "adamw"]  # as measuring.train has it


def alone(batch: int) -> float:
    """Return the seconds of a step of one rank on one core."""
    with measuring.one_core():
        return _seconds(measuring.train("--data.batch-size", str(batch), "--max-steps", str(STEPS), *QUICK).records)


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
        return _seconds(measuring.read_records(folder, having="train/loss")), measuring.read_summary(folder)


def predict(machine: ddp_model.Machine, rate: float, hook: str) -> float:
    """Return the model's seconds of a step over a link of `rate` bits a second."""
    link = ddp_model.Link("shaped", rate / 8 * PAYLOAD)
    num_bytes = 4 if hook == "none" else 2
    return ddp_model.step_seconds(machine, link, ranks=2, batch=BATCH, gradient_bytes=num_bytes)


def markdown(results: Row) -> str:
    """Return what was found as Markdown."""
    heading = (
        f"Two hosts of one core, {BATCH} images each; a rank alone takes {1000 * results['alone']:.0f} ms a step. "
        "Nothing in the model is fitted."
    )
    rows = []
    for row in results["rows"]:
        predicted = ("-", "-")
        if row["model"]:
            predicted = (f"{row['model']:.2f} s", f"{100 * (row['model'] / row['step'] - 1):+.0f} %")
        kind, probe = "bf16" if row["hook"] == "bf16" else "fp32", f"{row['allreduce_ms'] / 1000:.2f} s"
        rows.append((row["rate"] or "not limited", kind, probe, f"{row['step']:.2f} s", *predicted))
    heads = ["link", "gradients", "all-reduce of 228 MB (fp32)", "step, measured", "step, model", "error"]
    return f"{heading}\n\n{measuring.table(heads, rows)}"


def main() -> None:
    """Measure, predict, and write both down."""
    options = measuring.parser(__doc__).parse_args()
    small, large = (alone(batch) for batch in (2, BATCH))
    machine = ddp_model.fit_compute("a core", small=(2, small), large=(BATCH, large))
    rows: list[Row] = []
    for rate in (None, *RATES):
        for hook in ("none", "bf16"):
            step, summary = together(rate, hook)
            model = predict(machine, RATES[rate], hook) if rate else None
            probe = {key: summary[key] for key in PROBE}
            rows.append({"rate": rate, "hook": hook, "step": step, "model": model, **probe})
            print(rows[-1], flush=True)
    results = {"alone": large, "small": small, "rows": rows}
    measuring.save("links", results, markdown(results), folder=options.out)


if __name__ == "__main__":
    main()
