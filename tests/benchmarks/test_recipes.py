"""What benchmarks/recipes.py runs, and what it makes of it; nothing is trained here."""

import json
import shlex
import sys
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import measuring

import recipes
from alexnet_dist import config
from alexnet_dist.visualization import kernel_images


@pytest.mark.parametrize("change", recipes.CHANGES)
def test_every_ablation_is_a_run_on_held_out_images_and_differs_from_its_first_row(change):
    def parsed(change):
        return config.parse(shlex.split(f"{recipes.BASE} {change} {recipes.KEEP_LITTLE}"))

    assert parsed(change).data.val_fraction == 0.1, "the test split is for the final recipes"
    assert (parsed(change) != parsed("")) == (change != "")
    assert len({recipes.change_folder(row) for row in recipes.CHANGES}) == len(recipes.CHANGES)


def finished(folder, epochs, **summary):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "epochs": len(epochs)} | summary))
    lines = [
        {
            "epoch": n,
            "global_step": n,
            "val/top1": top1,
            "val/loss": 2.0,
            recipes.SIGNAL: 0.75,
            "train/epoch_loss": 1.5,
            "perf/epoch_seconds": 7.0,
        }
        for n, top1 in enumerate(epochs, 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"train/loss": 1.0, "epoch": 1}, *lines])
    (folder / "metrics.jsonl").write_text(text)


def test_ablations_are_compared_with_the_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", tmp_path)
    monkeypatch.setattr(recipes, "CHANGES", ("", "--seed 1"))
    finished(recipes.change_folder(""), [0.3, 0.5], final_top1=0.5)
    finished(recipes.change_folder("--seed 1"), [0.3, 0.4875], final_top1=0.4875)
    rows = recipes.change_table().splitlines()[-2:]
    assert rows == ["| none | 50.00% | +0.00 | 1.500 | 2.000 |", "| `--seed 1` | 48.75% | -1.25 | 1.500 | 2.000 |"]


@pytest.mark.parametrize(
    ("name", "change"), [(name, row) for name, (_, rows) in recipes.CANDIDATES.items() for row in rows]
)
def test_every_candidate_is_a_run_on_held_out_images_and_differs_from_its_first_row(name, change):
    base, changes = recipes.CANDIDATES[name]
    first, options = (config.parse(shlex.split(f"{base} {row} {recipes.RESUMABLE}")) for row in ("", change))
    assert options.data.val_fraction == 0.1, "the test split is for the final recipes"
    assert (options != first) == (change != "")
    assert len({recipes.candidate_folder(name, row, 0) for row in changes}) == len(changes)


def test_candidates_are_compared_with_the_first_row_on_the_seeds_that_both_have(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", tmp_path)
    monkeypatch.setattr(recipes, "CANDIDATES", {"photographs": ("--epochs 6", ("", "--a 1", "--b 2", "--c 3"))})
    for change, results in {"": (0.5, 0.52), "--a 1": (0.55, 0.55, 0.7), "--b 2": (0.25,)}.items():
        for seed, top1 in enumerate(results):
            finished(recipes.candidate_folder("photographs", change, seed), [0.3, top1])
    finished(recipes.candidate_folder("photographs", "--c 3", 0), [0.5], status="stopped")
    rows = recipes.candidate_table("photographs").splitlines()[-3:]
    assert rows == [
        "| none | 0, 1 | 51.00 ± 1.41 % | +0.00 | 1.500 | 2.000 | 0.750 |",
        "| `--a 1` | 0, 1, 2 | 60.00 ± 8.66 % | +4.00 | 1.500 | 2.000 | 0.750 |",
        "| `--b 2` | 0 | 25.00 % | -25.00 | 1.500 | 2.000 | 0.750 |",
    ]


def test_candidates_are_run_seed_by_seed_and_written_up_with_conv1_at_each_size_of_its_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["recipes.py", "--photographs", "--data.dataset", "folder"])
    order = []

    def train(command, **_):
        options = config.parse(command[2:])
        order.append((options.seed, options.model.conv1_init_scale, options.data.dataset))
        finished(options.out_dir, [0.5], final_top1=0.5)
        figures = options.out_dir / "figures"
        figures.mkdir()
        Image.new("RGB", (8, 8)).save(figures / "conv1_now.png")
        (options.out_dir / "checkpoints").mkdir()

    monkeypatch.setattr(measuring, "subprocess", SimpleNamespace(run=train))
    recipes.main()
    assert order == [(seed, scale, "folder") for seed in (0, 1, 2) for scale in (1, 0.3, 0.1, 0.03, 0.1)]
    assert len((tmp_path / "results" / "photographs.md").read_text(encoding="utf-8").splitlines()) == 9
    assert len(list((tmp_path / "results" / "photographs").glob("*.json"))) == 15
    assert (tmp_path / "results" / "conv1_scales.png").stat().st_size > 5_000
    assert not list((tmp_path / "runs").rglob("checkpoints")), "685 MB each"


@pytest.mark.parametrize(("status", "runs"), [("finished", 0), ("stopped", 1)])
def test_an_ablation_that_was_stopped_goes_on(tmp_path, monkeypatch, status, runs):
    monkeypatch.setattr(recipes, "RUNS", tmp_path)
    finished(recipes.change_folder(""), [0.5], status=status)
    commands = []
    monkeypatch.setattr(measuring, "subprocess", SimpleNamespace(DEVNULL=0, run=lambda *it, **_: commands.append(it)))
    cores = SimpleQueue()
    cores.put(0)
    recipes.run_change("", cores=cores, more=[])
    assert len(commands) == runs


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Runs of every recipe and seed that are done; what would train is an error."""
    monkeypatch.setattr(recipes, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["recipes.py"])
    for recipe, seeds in recipes.SEEDS.items():
        for seed in seeds:
            top1 = 0.5 + seed / 100
            facts = {
                "hosts": {"my-laptop": 1},
                "final_top1": top1,
                "final_top1_flip_tta": top1 + 0.01,
                "final_train_loss": 1.25,
                "device": "NVIDIA H200" if recipe.startswith("reference") else "CPU",
                "cpu_threads": 2,
            }
            finished(recipes.folder(recipe, seed), [0.4, top1], **facts)
    figures = recipes.folder("reference", 0) / "figures"
    figures.mkdir()
    for name in recipes.PICTURES:
        (figures / f"{name}.png").write_bytes(b"png")
    return tmp_path / "results"


def test_recipes_that_are_done_are_only_written_up(trained, monkeypatch):
    monkeypatch.setattr(measuring, "subprocess", SimpleNamespace(run=lambda *_, **__: pytest.fail("trained again")))
    recipes.main()
    figures = "2 | 0, 1, 2 | **51.00 ± 1.00 %** | 52.00 ± 1.00 % | 1.250"
    table = (trained / "recipes.md").read_text(encoding="utf-8")
    assert f"| `quick.yaml` | {figures} | 2 CPU cores | 7 s |" in table
    assert f"| `reference.yaml` with AdamW | {figures} | NVIDIA H200 | 7 s |" in table
    assert f"| `reference.yaml` | {figures} | NVIDIA H200 | 7 s |" in table
    assert json.loads((trained / "lecture_2.json").read_text())["final_top1"] == 0.52
    assert not any("my-laptop" in path.read_text() for path in trained.glob("*.json"))
    assert (trained / "curves.png").stat().st_size > 10_000
    assert (trained / "conv1_diff.png").read_bytes() == b"png"


def test_one_seed_has_no_deviation():
    assert recipes.spread([0.5]) == "50.00 %"


def test_a_recipe_that_was_stopped_goes_on(trained, monkeypatch):
    path = recipes.folder("quick", 1) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "stopped"}))
    commands = []
    monkeypatch.setattr(measuring, "subprocess", SimpleNamespace(run=lambda command, **_: commands.append(command)))
    recipes.main()
    (command,) = commands
    options = config.parse(command[2:])
    assert options.seed == 1
    assert options.out_dir == path.parent
    assert options.epochs == 5
    assert trained.is_dir()


def test_pictures_that_are_copied_are_among_those_that_a_run_draws():
    assert {name.rsplit("_", 1)[0] for name in recipes.PICTURES} <= set(kernel_images.PIXEL)
    assert {name.rsplit("_", 1)[1] for name in recipes.PICTURES} <= set(kernel_images.WHICH)


def test_runs_for_a_gpu_go_on_where_they_were_stopped_and_are_kept_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(recipes, "GPU_CANDIDATES", ("--model.dropout 0",))
    (tmp_path / "lines.txt").write_text("--optim.lr 1e-3\n\n")
    facts = {"evaluated_on": "test", "final_top1": 0.5, "device": "NVIDIA H200", "wall_seconds": 60.0}
    done = recipes.gpu_folder("quick", "", 1)
    finished(done, [0.5], **facts)
    started = []

    def train(command, **_):
        options = config.parse(command[2:])
        started.append(
            (options.seed, options.model.dropout, options.optim.lr, options.data.val_fraction, options.epochs)
        )
        assert options.data.dataset == ("photos" if "photos" in options.out_dir.name else "cifar")
        finished(options.out_dir, [0.5], **facts)

    monkeypatch.setattr(measuring, "subprocess", SimpleNamespace(run=train))
    words = ["--gpu", "--candidates", str(tmp_path / "lines.txt"), "--photos", "photos", "--data.dataset", "cifar"]
    for expected in (3 * 8 - 1, 0):
        monkeypatch.setattr(sys, "argv", ["recipes.py", *words])
        started.clear()
        recipes.main()
        assert len(started) == expected
        if expected:
            assert [run[1:4] for run in started[:9:3]] == [(0.25, 5e-4, 0.1), (0.0, 5e-4, 0.1), (0.25, 1e-3, 0.1)]
            assert [run[0] for run in started[:3]] == [0, 1, 2]
            assert (5, 0.0) in {(run[4], run[3]) for run in started}
    kept = sorted(path.name for path in (tmp_path / "results" / "gpu").glob("*.json"))
    assert len(kept) == 24
    assert "quick_1.json" in kept
    table = (tmp_path / "results" / "gpu" / "gpu.md").read_text()
    assert "| `quick.yaml`  | 3 | test | 50.00 ± 0.00 % | NVIDIA H200 | 60 s |" in table
