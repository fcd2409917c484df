"""Arrows between wings point down only, heavy modules come late, and each library has its one place."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "alexnet_dist"
EVERYTHING = {"sources", "data", "models", "distributed", "training", "visualization", "tracking", "report", "doctor"}
# What each wing may import besides the files at the root and `config`. Design, and reasons: CONTRIBUTING.md.
MAY_IMPORT = {
    "config": set(),
    "sources": set(),
    "data": {"sources"},
    "models": set(),
    "distributed": set(),
    "training": {"data", "models", "distributed"},
    "visualization": set(),
    "tracking": set(),
    "report": set(),
    "doctor": {"sources", "distributed", "tracking"},
    "commands": EVERYTHING,
}
ROOT_FILES = {"architecture", "atomic_files", "errors", "rng", "text"}
ENTRIES = {"__init__", "__main__"}
"""They lead to the commands and to `load`."""
HOMES = {
    "wandb": {"tracking/wandb_tracker"},
    "wandb_workspaces": {"tracking/wandb_tracker"},
    "jinja2": {"report/page"},
    "plotly": {"report/page"},
    "accelerate": {
        *(f"distributed/{name}" for name in ("accelerator", "hardware", "topology", "signals", "watchdog")),
        *(f"training/{name}" for name in ("train_loop", "eval_loop")),
        *(
            f"commands/{name}"
            for name in ("train", "train_setup", "run_summary", "inference", "features", "evaluate", "predict")
        ),
        "tracking/tensorboard_tracker",
    },
    "datasets": {"sources/hub"},
    "huggingface_hub": {"sources/hub", "training/classifier", "commands/publish"},
    "pyarrow": {"sources/hub"},
    "PIL": {
        *("data/decode", "sources/folders", "report/images", "visualization/plots", "visualization/kernel_images"),
        *("tracking/run_logger", "tracking/tensorboard_tracker", "commands/publish"),
    },
    "simplejpeg": {"data/decode"},
    "nvidia": {"data/decode"},
    "matplotlib": {"visualization/plots"},
    "tyro": {"config/cli", "config/commands"},
    "tqdm": {"tracking/console", "data/photographs"},
    "onnxruntime": {"commands/export"},
    "safetensors": {"training/checkpoint", "models/weights"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """Return `data/load` for a module of the package, `train` for the entry script."""
    return str((path.relative_to(PACKAGE) if PACKAGE in path.parents else path.relative_to(ROOT)).with_suffix(""))


def wing(path: Path) -> str:
    """Return the wing that a module belongs to; its own name for a file at the package's root."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, those for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def wings_of(path: Path) -> set[str]:
    """Return the wings and root files that a file imports, its own wing left out."""
    own = {name.split(".")[1] for name in imported(path) if name.startswith("alexnet_dist.")}
    return own & (MAY_IMPORT.keys() | ROOT_FILES) - {wing(path)}


def test_every_module_belongs_to_a_wing():
    assert {wing(path) for path in MODULES} == MAY_IMPORT.keys() | ROOT_FILES | ENTRIES


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_arrows_point_down(path):
    used = wings_of(path)
    if wing(path) in ENTRIES:
        allowed = ROOT_FILES | {"commands", "training"}
    elif wing(path) in ROOT_FILES or wing(path) == "config":
        allowed = ROOT_FILES
    else:
        allowed = ROOT_FILES | {"config"} | MAY_IMPORT[wing(path)]
    assert used <= allowed, f"{place(path)} imports {used - allowed}"


@pytest.mark.parametrize("path", [*MODULES, ROOT / "train.py"], ids=place)
def test_libraries_stay_in_their_place(path):
    used = {name.split(".")[0] for name in imported(path)}
    strangers = {library for library, homes in HOMES.items() if library in used and place(path) not in homes}
    assert not strangers, f"{place(path)} imports {strangers}"


def test_one_accelerator_and_no_ranks_where_they_do_not_belong():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        accelerators = [call for call in calls if ast.unparse(call.func).endswith("Accelerator")]
        assert len(accelerators) == (place(path) == "distributed/accelerator"), path
        if wing(path) in ("config", "sources", "data", "models", "visualization", *ROOT_FILES):
            for word in ("world_size", "is_main_process", "process_index", "LOCAL_RANK"):
                assert word not in text, f"{place(path)} knows about {word}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("alexnet_dist.config", ["torch", "numpy", "wandb", "datasets", "matplotlib", "accelerate"]),
        ("train", ["wandb", "datasets", "matplotlib"]),
        ("alexnet_dist.doctor", ["torch", "accelerate", "wandb"]),
        ("alexnet_dist.report", ["torch", "accelerate", "wandb", "matplotlib", "jinja2", "plotly"]),
    ],
)
def test_heavy_modules_come_late(module, absent):
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


PUBLIC = ["train", "load", "data.load", "config.Config", "config.DataConfig", "config.UserError", "config.parse"]


@pytest.mark.parametrize("name", PUBLIC)
def test_names_that_others_import_stay(name):
    module, _, attribute = f"alexnet_dist.{name}".rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_functions_stay_short():
    for path in [*MODULES, ROOT / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{place(path)}.{node.name} has {length} lines"


def test_test_files_import_no_other():
    for path in (ROOT / "tests").rglob("*.py"):
        others = {name for name in imported(path) if name.split(".")[-1].startswith("test_")}
        assert not others, f"{path.relative_to(ROOT)} imports {others}: what both need belongs in tests/support"


def test_every_module_has_a_test_file_of_its_name():
    expected = {path.relative_to(PACKAGE) for path in MODULES if path.stem not in ENTRIES}
    found = {path.relative_to(ROOT / "tests/unit") for path in (ROOT / "tests/unit").rglob("test_*.py")}
    missing = {path for path in expected if path.with_name(f"test_{path.name}") not in found}
    assert not missing, f"no tests/unit/WING/test_MODULE.py for {sorted(map(str, missing))}"
