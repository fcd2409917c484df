"""Imports point downwards only, heavy modules come late, and each library has its one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alexnet_dist"
LEVELS = [
    {"config", "seeds", "files"},
    {"imagedata", "layers", "augment"},
    {"decode", "cache", "batches", "preprocess", "model", "optim", "metrics", "kernels", "figures", "tracing"},
    {"data", "trackers", "recorded"},
    {"distributed", "runlog", "checkpoint", "console", "interrupts", "heartbeat", "charts", "albums"},
    {"topology"},
    {"engine", "cards", "report", "probes"},
    {"exhibits", "rendezvous", "supplies"},
    {"meeting"},
    {"doctor"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
HOMES = {
    "wandb": {"trackers"},
    "jinja2": {"report"},
    "plotly": {"report"},
    "accelerate": {"distributed", "topology", "interrupts", "heartbeat", "engine", "cards", "trackers", "train"},
    "datasets": {"data", "decode"},
    "matplotlib": {"figures"},
    "tyro": {"config"},
    "tqdm": {"console"},
    "safetensors": {"checkpoint", "model"},
}
MODULES = sorted(PACKAGE.glob("[!_]*.py"))


def imported(path: Path, *, at_run_time: bool) -> set[str]:
    """Return the dotted names that a file imports; without those for type checkers alone, if asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if at_run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for child in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def test_every_module_has_a_level():
    assert {path.stem for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_downwards(path):
    own = {name.split(".")[1] for name in imported(path, at_run_time=True) if name.startswith("alexnet_dist.")}
    upwards = {name for name in own & LEVEL.keys() if LEVEL[name] >= LEVEL[path.stem] and name != path.stem}
    allowed = {"cards": {"console"}}.get(path.stem, set())
    assert upwards <= allowed, f"{path.stem} imports {upwards}"


@pytest.mark.parametrize("path", [*MODULES, ROOT / "train.py"], ids=lambda path: path.stem)
def test_libraries_stay_in_their_place(path):
    used = {name.split(".")[0] for name in imported(path, at_run_time=False)}
    strangers = {library for library, homes in HOMES.items() if library in used and path.stem not in homes}
    assert not strangers, f"{path.stem} imports {strangers}"


def test_one_accelerator_and_no_ranks_below_it():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        accelerators = [call for call in calls if ast.unparse(call.func).endswith("Accelerator")]
        assert len(accelerators) == (path.stem == "distributed"), path.stem
        if LEVEL[path.stem] < LEVEL["distributed"]:
            for word in ("world_size", "is_main_process", "process_index", "LOCAL_RANK"):
                assert word not in text, f"{path.stem} knows about {word}"


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


def test_functions_stay_short():
    limits = {"main": 60, "train_epoch": 40}
    for path in [*MODULES, ROOT / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= limits.get(node.name, 60), f"{path.stem}.{node.name} has {length} lines"
