"""What recipes and documents say about accuracy is what the recorded runs say; their summaries are in docs/results."""

import json
import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import recipes

RESULTS = ROOT / "docs" / "results"
OTHERS = [
    "quick_first_0.json",
    "reference_AdamW_dropout_0.5_0.json",
    "reference_AdamW_lr_3e_4_0.json",
    "reference_AdamW_cpu_0.json",
    "stopped/data.batch_size_128_optim.weight_decay_0.25.json",
    "stopped/model.init_he.json",
    "stopped/optim.weight_decay_1.json",
]
PROMISED = {"lecture": 0.45, "quick_Adam": 0.75, "quick": 0.80, "reference_AdamW": 0.88, "reference": 0.89}
RECORDED = {"quick": (0,), "reference": (0,)}  # of the others, every seed


def summaries(recipe):
    paths = [RESULTS / f"{recipe}_{seed}.json" for seed in RECORDED.get(recipe, recipes.SEEDS[recipe])]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


@pytest.mark.parametrize("recipe", recipes.SEEDS)
def test_every_recorded_run_is_a_whole_one_on_all_test_images_and_reaches_what_is_promised(recipe):
    for summary in summaries(recipe):
        assert (summary["status"], summary["dataset"], summary["fallback_for"]) == ("finished", "cifar10", None)
        assert (summary["num_train_images"], summary["num_eval_images"]) == (50_000, 10_000)
        assert summary["evaluated_on"] == "test"
        assert summary["num_parameters"] == 57_044_810, "torchvision's AlexNet with ten classes"
        assert summary["final_top1"] >= PROMISED[recipe], "the last epoch's, not the best one's"


def test_all_recorded_runs_saw_the_same_images():
    assert len({summary["fingerprint"] for recipe in recipes.SEEDS for summary in summaries(recipe)}) == 1


@pytest.mark.parametrize("place", ["recipes/{}.yaml", "README.md", "docs/results.md", "docs/recipes.md"])
@pytest.mark.parametrize("recipe", recipes.SEEDS)
def test_accuracies_that_are_quoted_are_those_of_the_recorded_runs(recipe, place):
    text = (ROOT / place.format(recipe.partition("_")[0])).read_text(encoding="utf-8")
    for key in ("final_top1", "final_top1_flip_tta"):
        assert recipes.spread([summary[key] for summary in summaries(recipe)]) in text, f"{place} is silent on {key}"


@pytest.mark.parametrize(
    ("kept", "promised", "place"),
    [
        ("photos_0", 0.76, "docs/results.md"),
        ("photos_1", 0.75, "docs/results.md"),
        ("photos_adamw_0", 0.72, "docs/results.md"),
    ],
)
def test_accuracies_of_photographs_are_those_of_the_recorded_run(kept, promised, place):
    summary = json.loads((RESULTS / f"{kept}.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["epochs"], summary["num_eval_images"]) == ("finished", 30, 1644)
    assert summary["final_top1"] >= promised
    text = (ROOT / place).read_text(encoding="utf-8")
    for key in ("final_top1", "final_top1_flip_tta", "best_top1"):
        assert f"{100 * summary[key]:.2f} %" in text, f"{place} is silent on {key}"


@pytest.mark.parametrize("place", ["README.md", "docs/recipes.md", "docs/results.md", "recipes/photos.yaml"])
def test_pages_quote_the_photographs_accuracy_on_all_seeds(place):
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("photos_[0-9].json")]
    assert len(kept) > 1
    assert recipes.spread([summary["final_top1"] for summary in kept]) in (ROOT / place).read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", OTHERS)
def test_other_runs_that_are_quoted_are_recorded_too(kept):
    summary = json.loads((RESULTS / kept).read_text(encoding="utf-8"))
    assert (summary["status"] == "stopped") == kept.startswith("stopped/")
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"| {100 * summary['final_top1']:.2f} % |" in page or f" {100 * summary['final_top1']:.2f} %, " in page


@pytest.mark.parametrize("name", ["recipes", "ablations", "candidates", "photographs"])
def test_tables_in_the_page_are_those_that_the_benchmarks_wrote(name):
    written = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    table = written[written.index("| ") :]
    assert table in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("change", recipes.CHANGES)
def test_each_ablation_is_a_finished_run_on_held_out_images_with_its_figure_in_the_table(change):
    kept = RESULTS / "ablations" / f"{recipes.change_folder(change).name}.json"
    summary = json.loads(kept.read_text(encoding="utf-8"))
    assert (summary["status"], summary["evaluated_on"], summary["num_eval_images"]) == ("finished", "held-out", 5_000)
    rows = (RESULTS / "ablations.md").read_text(encoding="utf-8").splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {f'`{change}`' if change else 'none'} |")]
    assert f"| {summary['final_top1']:.2%} |" in row
