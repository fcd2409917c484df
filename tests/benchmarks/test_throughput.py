"""What benchmarks/throughput.py makes of its runs; how fast they are is not looked at."""

import json
import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import measuring
import peers
import throughput

STEPS, BATCH = 2, 100  # 1,000 test images in batches of 4 would take longer than all the rest


def row(name: str, number: int, rate: float) -> measuring.Row:
    return {
        "round": number,
        "name": name,
        "images_per_second": rate,
        "peak_memory_gib": 1.5,
        "data_wait_pct": 3.0,
        "mfu": rate / 100,
        "workers": 2,
        "threads": 2,
        "version": "torch 1",
    }


ROWS = [row("lecture", 0, 10), row("alexnet_dist", 0, 30), row("lecture", 1, 20), row("alexnet_dist", 1, 40)]
ROWS.append(row("accelerate", 1, 20))


def test_ratios_are_taken_within_a_round():
    assert throughput.ratios(ROWS, "lecture") == [3, 2]
    assert throughput.ratios(ROWS, "accelerate") == [2]
    assert throughput.ratios(ROWS, "lightning") == []
    assert throughput.ratios(ROWS, "alexnet_dist") == [1, 1]


def test_every_contender_runs_once_a_round_and_moves_on():
    taken = list(measuring.in_turn(throughput.CONTENDERS, 5))
    orders = [[name for its_round, name in taken if its_round == number] for number in range(5)]
    assert all(sorted(order) == sorted(throughput.CONTENDERS) for order in orders)
    assert {order[0] for order in orders} == set(throughput.CONTENDERS)
    assert orders[0] == orders[4]


def test_table_has_a_row_for_each_contender_and_a_cell_for_each_column():
    summary = throughput.summarize(ROWS)
    assert list(summary) == ["lecture", "accelerate", "alexnet_dist"]
    assert summary["lecture"]["ratio"] == {"median": 2.5, "least": 2, "most": 3}
    lines = throughput.table(summary).splitlines()
    assert len(lines) == 2 + len(summary)
    assert len({line.count("|") for line in lines}) == 1
    assert "| 15.0 (10.0 to 20.0) | 2.50 (2.00 to 3.00) | 1.50 | 3.0 % | 0.15 |" in lines[2]
    assert "| 35.0 (30.0 to 40.0) |  | 1.50 |" in lines[-1]


def test_without_train_py_there_are_no_ratios():
    summary = throughput.summarize([row("lecture", 0, 10)])
    assert summary["lecture"]["ratio"] is None
    assert "| 10.0 (10.0 to 10.0) |  |" in throughput.table(summary)


def test_the_plot_is_a_picture(tmp_path):
    throughput.draw(throughput.summarize(ROWS), tmp_path / "new" / "throughput.png")
    assert (tmp_path / "new" / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_train_py_is_timed_after_the_warm_up_across_the_end_of_an_epoch(monkeypatch):
    def record(step: int, rate: float, wait: float) -> dict[str, float]:
        timing = {"perf/images_per_second": rate, "perf/step_ms": 1000 * 8 / rate, "perf/data_wait_pct": wait}
        return {"global_step": step, "samples_seen": 8 * step, **timing}

    records = [record(3, 1, 90), record(4, 1, 90), record(7, 8, 0), record(8, 4, 50)]
    run = measuring.Run(2**30, 9, None, records, {"cpu_threads": 2}, {"input": 0.3, "forward": 2.0})
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(measuring, "train", lambda *flags: given.append(flags) or run)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--batch-size", "8", "--warmup", "4", "--steps", "4"])
    arguments = throughput.parse()
    ours = throughput.run_ours(arguments)
    assert (ours["images"], ours["seconds"], ours["images_per_second"]) == (32, 5, 6.4)  # 24 in 3 s, 8 in 2 s
    assert ours["data_wait_pct"] == pytest.approx(20)  # 1 of 5 s
    assert ours["step_seconds"] == [1, 2]
    assert "--max-steps 8 --log.every-steps 4" in " ".join(given[0])
    share = throughput.input_share(arguments, [ours, row("lecture", 0, 99)])
    assert share == pytest.approx(0.3 / 3 / (8 / 6.4))  # three steps are traced
    assert "--profile" in given[1]


def test_the_clock_leaves_the_warm_up_out():
    clock = peers.Clock(warmup=1, steps=2)
    for _ in clock.over(range(100)):
        clock.step_done()
    assert (len(clock.ends), len(clock.waits)) == (3, 3)
    result = clock.result()
    assert len(result["step_seconds"]) == 2
    assert sum(result["step_seconds"]) == pytest.approx(result["seconds"])
    assert 0 <= result["wait_seconds"] <= result["seconds"]


def test_logging_is_a_share_of_a_long_epoch():
    """40 steps of 2 s with two records and two epochs' ends; an epoch of 100 steps has five records and one end."""
    found = {
        "steps": [9.0] + [2.0] * 39,
        "waited": {"step": 0.2, "epoch": 1.0},
        "busy": {"step": 0.04, "epoch": 8.0},
        "service": 0.02,
    }
    cost = throughput.overheads.shares(found, steps_per_epoch=100, cores=2)
    assert cost["waited"] == pytest.approx((5 * 0.1 + 0.5) / 200)
    assert cost["busy"] == pytest.approx((5 * 0.02 + 4.0) / 400)
    assert cost["service"] == 0.01
    assert "0.50% of its time for it (100 ms a record, 500 ms at" in throughput.overheads.sentence(cost)
    assert "take 2.02% of" in throughput.overheads.sentence(cost)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning", "others"])
def test_a_round_of_real_runs(name, tmp_path, monkeypatch):
    contenders = ["lightning"] if name == "lightning" else ["lecture", "accelerate", "alexnet_dist"]
    if name == "lightning":
        pytest.importorskip("lightning")
    monkeypatch.setattr(measuring, "matmul_peak", lambda _: 1e12)
    monkeypatch.setattr(throughput, "input_share", lambda *_: 0.04)
    monkeypatch.setattr(throughput.overheads, "STEPS", 1)
    flags = f"--batch-size {BATCH} --image-size 64 --rounds 1 --warmup 1 --steps {STEPS} --workers 1"
    flags += f" --lecture-workers 1 --out {tmp_path} --contenders {' '.join(contenders)}"
    monkeypatch.setattr(sys, "argv", ["throughput.py", *flags.split()])
    throughput.main()
    results = json.loads((tmp_path / "throughput.json").read_text())
    assert set(results) == {"machine", "settings", "contenders", "input_share", "logging", "rounds"}
    assert [run["name"] for run in results["rounds"]] == contenders
    for run in results["rounds"]:
        assert run["images"] == STEPS * BATCH
        assert run["images_per_second"] == pytest.approx(run["images"] / run["seconds"])
        assert len(run["step_seconds"]) == STEPS
        assert sum(run["step_seconds"]) == pytest.approx(run["seconds"])
        assert 0 <= run["data_wait_pct"] <= 100
        assert run["peak_memory_gib"] > 0
        assert run["mfu"] > 0
    if name == "others":
        cost = results["logging"]
        assert 0 < cost["waited"] < 1
        assert cost["busy"] > 0
        assert "training waits" in (tmp_path / "throughput.md").read_text()
        first, *_, ours = results["rounds"]
        quotient = ours["images_per_second"] / first["images_per_second"]
        assert results["contenders"]["lecture"]["ratio"]["median"] == pytest.approx(quotient)
    assert (tmp_path / "throughput.md").read_text().count("\n| ") == 1 + len(contenders)
    assert (tmp_path / "throughput.png").exists()
