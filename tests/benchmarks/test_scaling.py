"""The analytic model against values computed by hand, and the benchmarks around it; speeds are not looked at."""

import argparse
import json
import subprocess
import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import communication
import ddp_model as model
import gpu
import measuring
import scaling

FP32, BF16 = 4, 2
P100_LINK = model.Link("NVLink 1", 60e9)
TINY = ["--image-size=64", "--rounds=1", "--steps=1", "--messages=1", "--bucket-mb=25"]


# ---- the model ------------------------------------------------------------------------------------------------------


def test_sizes_follow_from_the_layers():
    assert model.GRADIENTS == 57_044_810
    assert sum(model.conv_macs()) == pytest.approx(655.6e6, rel=1e-3)
    tail_megabytes = FP32 * model.CONV_GRADIENTS / 1e6
    assert tail_megabytes == pytest.approx(9.9, rel=1e-2)
    share = model.CONV_GRADIENTS / model.GRADIENTS
    assert share == pytest.approx(1 - 0.957, abs=5e-4)
    assert model.window() == pytest.approx(0.60, abs=5e-3)


@pytest.mark.parametrize("image_size", [64, 224])
def test_operations_are_those_that_train_py_counts(image_size):
    from alexnet_dist import config
    from alexnet_dist.models import alexnet as network

    built = network.build(config.ModelConfig(), num_classes=10, seed=0)
    assert sum(p.numel() for p in built.parameters()) == model.GRADIENTS
    counted = network.training_flops(built, image_size)
    assert model.training_flops(image_size) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("link", "fp32", "bf16"),
    [
        ("NVLink 4", 1.1, 0.5),
        ("NVLink 3", 1.7, 0.9),
        ("PCIe 4", 20, 10),
        ("InfiniBand 200 Gb/s", 18, 9),
        ("Ethernet 100 Gb/s", 40, 20),
        ("Ethernet 25 Gb/s", 148, 74),
        ("Ethernet 10 Gb/s", 363, 182),
    ],
)
def test_all_reduce_of_eight(link, fp32, bf16):
    """2 * 7/8 * 228.2 MB over the bus; the hops' 14 * 4 * 10 us are left out."""
    link = model.Link(link, model.LINKS[link].bandwidth, latency=0)
    for size, expected in ((FP32, fp32), (BF16, bf16)):
        milliseconds = 1e3 * model.all_reduce_seconds(link, ranks=8, num_bytes=size * model.GRADIENTS)
        assert milliseconds == pytest.approx(expected, rel=0.01, abs=0.05)


@pytest.mark.parametrize(
    ("machine", "link", "expected"),
    [
        (model.P100, P100_LINK, (99.8, 99.9, 98.7, 99.4)),
        (model.P100, model.LINKS["Ethernet 25 Gb/s"], (79, 98, 14, 27)),
        (model.A100, model.LINKS["NVLink 3"], (99.7, 99.9, 92, 99)),
        (model.A100, model.LINKS["PCIe 4"], (84, 98, 18, 32)),
        (model.A100, model.LINKS["Ethernet 100 Gb/s"], (51, 84, 9, 18)),
        (model.H100, model.LINKS["NVLink 4"], (99.5, 99.8, 68, 83)),
        (model.H100, model.LINKS["InfiniBand 200 Gb/s"], (44, 72, 10, 18)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_efficiency_of_eight(machine, link, expected):
    found = [
        100 * model.efficiency(machine, link, ranks=8, batch=batch, gradient_bytes=size)
        for batch in (512, 64)
        for size in (FP32, BF16)
    ]
    assert found == pytest.approx(expected, abs=0.6)


def test_one_rank_is_efficient_and_more_are_less_so():
    for link in model.LINKS.values():
        curve = [model.efficiency(model.A100, link, ranks=num, batch=64) for num in scaling.GPU_COUNTS]
        assert curve[0] == 1
        assert curve == sorted(curve, reverse=True)


def test_faster_links_larger_batches_and_fewer_bytes_help():
    links = sorted(model.LINKS.values(), key=lambda link: link.bandwidth)
    by_link = [model.efficiency(model.H100, link, ranks=8, batch=64) for link in links]
    by_batch = [model.efficiency(model.H100, links[0], ranks=8, batch=batch) for batch in (16, 64, 256, 1024)]
    assert by_link == sorted(by_link)
    assert by_batch == sorted(by_batch)
    assert model.efficiency(model.H100, links[0], ranks=8, batch=64, gradient_bytes=BF16) > by_link[0]


def test_tail_is_exposed_however_large_the_batch():
    """1.75 * 9.88 MB / 20 GB/s."""
    exposed = model.exposed_seconds(model.A100, model.LINKS["PCIe 4"], ranks=8, batch=10**6)
    assert exposed == pytest.approx(1.75 * 9_878_784 / 20e9)


def test_latency_grows_with_the_logarithm_of_the_machines():
    assert [model.hops(ranks) for ranks in (1, 2, 8, 16, 1024)] == [0, 2, 14, 16, 28]


@pytest.mark.parametrize(("batch", "ratio"), [(64, 66.6), (512, 8.3), (4096, 1.04)])
def test_sufficient_factors_are_fewer_bytes(batch, ratio):
    assert model.factor_ratio(batch, layers=3) == pytest.approx(ratio, rel=5e-3)


def test_sufficient_factors_of_the_two_large_layers():
    """At 512 images (9216 + 4096 + 4096 + 4096) * 512 values stand for 54.5 million gradients, and go one way."""
    assert model.factor_bytes(512) == 2 * 21_504 * 512
    assert model.factor_ratio(512) == pytest.approx(9.9, abs=0.01)


def test_sufficient_factors_win_with_few_images_on_slow_links_only():
    def gain(link, batch):
        (case,) = model.factor_cases(model.A100, [model.LINKS[link]], ranks=[8], batches=[batch])
        return case["all_reduce"] / case["factors"]

    assert gain("PCIe 4", 64) > 2
    assert gain("PCIe 4", 512) < 1
    assert gain("NVLink 3", 512) < 1


def test_machines_wider_than_their_link_are_left_out():
    assert model.factor_cases(model.A100, [model.LINKS["PCIe 4"]], ranks=[32], batches=[64]) == []


# ---- fit and report -------------------------------------------------------------------------------------------------


def found_by(machine: model.Machine, bandwidth: float, batches: tuple[int, ...]) -> dict:
    """Return what communication.py would find where the model holds."""
    links = {name: model.Link(name, bandwidth, latency=0) for name in ("fp32", "bf16")}
    variants = []
    for hook, size, extra in (("none", FP32, 0.0), ("bf16", BF16, 0.1)):
        rows = {}
        for batch in batches:
            silent = model.compute_seconds(machine, batch=batch)
            step = model.step_seconds(machine, links["fp32"], ranks=2, batch=batch, gradient_bytes=size, extra=extra)
            rows[str(batch)] = {"step": step, "silent_step": silent, "exposed": step - silent}
        sent = {"messages": 3, "bytes_per_step": size * model.GRADIENTS}
        variants.append({"hook": hook, "bucket_mb": 25, **sent, "batches": rows})
    alone = {
        name: {"bytes": size * model.GRADIENTS, "seconds": 0.2, "bus_bytes_per_second": bandwidth}
        for name, size in (("fp32", FP32), ("bf16", BF16))
    }
    return {
        "options": {"ranks": 2, "bucket_mb": [25], "hooks": ["none", "bf16"]},
        "device": "CPU",
        "precision": "bf16",
        "all_reduce": {**alone, "rounding_seconds": 0.1},
        "alone": {str(batch): 1.0 for batch in batches},
        "variants": variants,
        "evaluation_images_per_second": 100.0,
    }


FOUND = found_by(model.Machine("CPU", 100, fixed_seconds=0.3, window=0, contention=1.4), 1e9, (64, 2, 32, 128))


def test_fit_finds_what_the_figures_were_made_of():
    machine, links = scaling.fit(FOUND)
    assert (machine.rate, machine.fixed_seconds, machine.contention) == pytest.approx((100, 0.3, 1.4))
    points = scaling.compare(FOUND, machine, links)
    assert [point["fitted"] for point in points] == [True] + [False] * 7
    assert [point["error"] for point in points] == pytest.approx([0] * 8, abs=1e-9)


def test_scaling_writes_tables_and_pictures(tmp_path, monkeypatch):
    def measured(_images, _options, batch, *_flags, ranks=1, num_images=100):
        return {"batch": batch, "num_images": num_images, "ranks": ranks, "images_per_second": 10.0 * batch}

    monkeypatch.setattr(scaling, "train_rate", measured)
    monkeypatch.setattr(communication, "measure", lambda _: FOUND)
    monkeypatch.setattr(
        sys, "argv", ["scaling.py", "--images", "20", "--batch-sizes", "4", "8", "--out", str(tmp_path)]
    )
    scaling.main()
    names = ("communication.json", "communication.md", "scaling.json", "scaling.md", "scaling_batch.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "scaling_model.png"]
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["images_per_second"] for row in written["training"]["batch_sizes"]] == [40, 80]
    assert len(written["training"]["ranks"]) == 5
    assert {curve["gpus"][-1] for curve in written["model"]["curves"]} == {1024}
    text = (tmp_path / "scaling.md").read_text()
    assert "| none | 64 | 1259 | 1259 | +0% | fitted |" in text
    assert "not measured" in text


# ---- GPUs -----------------------------------------------------------------------------------------------------------


def test_plan_for_six_gpus():
    cases = gpu.plan(6, gpu.GPU, smoke=False)
    assert [(c.precision, c.compiled) for c in cases if c.kind == "variant"] == [
        (precision, compiled) for precision in ("fp32", "bf16", "fp16") for compiled in (False, True)
    ]
    assert [(c.ranks, c.batch) for c in cases if c.kind == "weak"] == [(2, 1024), (4, 2048), (6, 3072)]
    assert [(c.ranks, c.batch) for c in cases if c.kind == "strong"] == [(2, 512), (4, 512), (6, 510)]


def test_plan_for_one_gpu_has_no_ranks_to_scale():
    assert {case.ranks for case in gpu.plan(1, gpu.GPU, smoke=False)} == {1}


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Measure with parts that take no time; a rate of 1,000 in training and 100 in evaluation."""
    speed = {"perf/images_per_second": 1000.0, "perf/data_wait_pct": 2.0}
    records = [speed | {"samples_seen": 10 * n, "perf/step_ms": 1000.0 / n} for n in (1, 2)]
    run = measuring.Run(0, 1.0, None, records, {"flops_per_image": 10**9, "peak_tflops": 2.0})
    monkeypatch.setattr(measuring, "train", lambda *_, **__: run)
    monkeypatch.setattr(communication, "measure", lambda _: FOUND)
    loops = {"expert": {"images_per_second": 800.0, "workers": 0}, "timm": {"left_out": "timm is not installed"}}
    for name, found in (("peers", loops), ("levers", {"none": 1000.0, "bf16": 500.0}), ("profile", {}), ("use", {})):
        monkeypatch.setattr(gpu, f"measure_{name}", lambda _, found=found: found)
    monkeypatch.setattr(gpu, "measure_one_rank", lambda _: {"seconds": 0.1})
    monkeypatch.setattr(gpu, "correctness", lambda _: {"exit_code": 0})
    saved = []
    machine = gpu.Machine(gpu.SMOKE, smoke=True, images=tmp_path, folder=tmp_path)

    def measure(minutes=60.0):
        results = gpu.measure(2, machine, minutes=minutes, save=lambda found: saved.append(json.dumps(found)))
        return results, saved

    return measure


def test_gpu_tables(measured):
    results, saved = measured()
    assert list(results["communication"]) == ["2"]
    assert [row["epoch_seconds"] for row in results["training"]] == pytest.approx([150] * 4), "50 + 100 s"
    order = list(results["seconds"])
    assert len(saved) == len(order)
    assert "expert" not in saved[1], "each part is written as it ends"
    assert order[:4] == ["correctness", "train.py variant 1 4 bf16 False", "peers", "levers"]
    text = gpu.markdown(results)
    start = gpu.SMOKE.every * (1.0 - 8 / 1000)  # the first record's steps took a second each
    assert f"| weak | 2 | 8 | bf16 | 1,000 | 50% | 0.50 | 150.00 | {start:.1f} |" in text
    assert "| expert | 800 | 1.25 | 0 |" in text
    assert "| timm | timm is not installed |" in text
    assert "| bf16 | 500 | 2.00 |" in text
    assert "no figures" in text


def test_part_of_the_gpu_script_that_fails_or_comes_too_late_is_named(measured, monkeypatch):
    def fail(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu, "measure_levers", fail)
    results, _ = measured()
    assert results["failed"] == {"levers": "no memory"}
    assert "one rank" in results["seconds"], "the others go on"
    assert "* levers failed: ['no memory']" in gpu.markdown(results)
    late, _ = measured(minutes=-1)
    assert late["left_out"][:2] == ["correctness", "train.py variant 1 4 bf16 False"]
    assert "* peers was left out: time was up" in gpu.markdown(late)


def test_missing_peers_are_installed_from_the_folder_alone(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "timm" else name)
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **_: commands.append(command))
    gpu.install(tmp_path)
    assert commands[0][-4:] == ["--no-index", "--find-links", str(tmp_path), "timm"]


# ---- with children --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_send_half_the_bytes_with_the_hook():
    found = communication.measure(communication.parse([*TINY, "--batches", "4", "2"]))
    full, half = found["variants"]
    assert (full["hook"], full["bytes_per_step"]) == ("none", FP32 * model.GRADIENTS)
    assert (half["hook"], half["bytes_per_step"]) == ("bf16", BF16 * model.GRADIENTS)
    assert full["messages"] == 3  # fc8 with fc7, fc6, the convolutions
    for variant in (full, half):
        assert list(variant["batches"]) == ["4", "2"]
        for row in variant["batches"].values():
            assert row["exposed"] == pytest.approx(row["step"] - row["silent_step"])
    assert set(found["alone"]) == {"4", "2"}
    assert "| bf16 | 25 MB | 3 | 114.1 MB | 4 |" in communication.markdown(found)


@pytest.mark.slow
def test_train_py_runs_on_written_images(tmp_path):
    scaling.write_images(tmp_path / "images", 16)
    options = argparse.Namespace(images=[16], image_size=64, steps=1)
    row = scaling.train_rate(tmp_path / "images", options, 4)
    assert (row["batch"], row["num_images"]) == (4, 16)
    assert row["images_per_second"] > 0


@pytest.mark.slow
def test_gpu_script_without_a_gpu(tmp_path):
    subprocess.run([ROOT / "benchmarks/gpu.sh", "--smoke", "--out", tmp_path], check=True)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["kind"] for row in results["training"]] == ["variant", "weak", "strong", "variant"]
    assert results["failed"] == {}
    assert {"correctness", "peers", "levers", "profile", "photographs", "use", "one rank"} <= results.keys()
    assert results["peers"]["expert"]["images_per_second"] > 0


@pytest.mark.slow
def test_scaling_from_end_to_end(tmp_path):
    sizes = [
        "--image-size=64",
        "--batch-sizes",
        "8",
        "--images",
        "32",
        "--steps=1",
        "--rounds=1",
        "--batches",
        "8",
        "2",
    ]
    subprocess.run([sys.executable, ROOT / "benchmarks/scaling.py", *sizes, "--out", tmp_path], check=True)
    assert {"scaling.json", "scaling.md", "scaling_model.png"} <= {path.name for path in tmp_path.iterdir()}
