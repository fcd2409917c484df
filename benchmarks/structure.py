"""Size and shape of the package: fields, arguments, lines and imports, as a table and as JSON.

    python benchmarks/structure.py

Reads sources only; imports nothing of the package. The limits are in tests/unit/test_structure.py.

* A wing is a folder of alexnet_dist/. Wing A has an arrow to wing B where one of its modules imports one of B's, also
  under TYPE_CHECKING. Imports by `commands`, and of `config` or a file at the root, are not counted.
* A code line is not blank, no comment, no part of a docstring and no line of closing brackets alone.
* The training loop is all functions of commands/train.py, `train_epoch` and `train_step`, docstrings included.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alexnet_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))
STEP = {"training/train_loop.py: train_epoch", "training/train_loop.py: train_step"}
FREE_DATACLASSES = {("training/progress.py", "Progress")}  # besides all of config/, whose fields are the options
CLOSING = re.compile(r"[\])}]+[,:]?")
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def nodes(path: Path) -> Iterator[ast.AST]:
    """Return all nodes of a file's syntax tree."""
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def place(path: Path) -> str:
    """Return a module's path within the package; train.py is beside it."""
    return path.relative_to(PACKAGE).as_posix() if PACKAGE in path.parents else path.name


def wing(path: Path) -> str:
    """Return the wing of a module, "root" for train.py and the files at the package's root."""
    return place(path).partition("/")[0] if "/" in place(path) else "root"


def dataclasses() -> dict[str, int]:
    """Return the number of fields of each dataclass; configuration sections and `Progress` are left out."""
    found = {}
    for path in MODULES:
        for node in nodes(path):
            if not isinstance(node, ast.ClassDef) or "dataclass" not in " ".join(map(ast.unparse, node.decorator_list)):
                continue
            if wing(path) != "config" and (place(path), node.name) not in FREE_DATACLASSES:
                fields = (ast.unparse(line.annotation) for line in node.body if isinstance(line, ast.AnnAssign))
                found[f"{place(path)}: {node.name}"] = sum("ClassVar" not in annotation for annotation in fields)
    return found


def functions() -> list[tuple[str, int]]:
    """Return each function of the package and of train.py, nested ones too, with its lines from `def` to the end."""
    return [
        (f"{place(path)}: {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for path in [*MODULES, ROOT / "train.py"]
        for node in nodes(path)
        if isinstance(node, Function)
    ]


def loop_lines() -> dict[str, int]:
    """Return the lines of each function that has to be read to understand the training loop."""
    names = {f"commands/train.py: {node.name}" for node in top_functions("commands/train.py")} | STEP
    return {name: lines for name, lines in functions() if name in names}


def top_functions(module: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return a module's functions and methods; what is nested in them is part of them."""
    body = ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body
    methods = [node for each in body if isinstance(each, ast.ClassDef) for node in each.body]
    return [node for node in [*body, *methods] if isinstance(node, Function)]


def num_arguments(module: str, function: str) -> int:
    """Return the number of a function's arguments, of every kind."""
    (taken,) = (node.args for node in top_functions(module) if node.name == function)
    several = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]
    return len(several) + (taken.vararg is not None) + (taken.kwarg is not None)


def arrows() -> list[tuple[str, str]]:
    """Return the pairs of wings of which the first imports the second."""
    wings, found = {wing(path) for path in MODULES}, set()
    for path in MODULES:
        names = set()
        for node in nodes(path):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        used = {name.split(".")[1] for name in names if name.startswith("alexnet_dist.")}
        found |= {(wing(path), other) for other in used & wings - {wing(path), "config"}}
    return sorted(pair for pair in found if pair[0] not in ("root", "commands"))


def two_way(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs whose wings import each other."""
    return [(a, b) for a, b in pairs if a < b and (b, a) in pairs]


def code_lines(text: str) -> int:
    """Count the code lines of a source text."""
    described: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            described.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return sum(
        number not in described and line != "" and not line.startswith("#") and not CLOSING.fullmatch(line)
        for number, line in lines
    )


def wing_lines() -> dict[str, int]:
    """Return the code lines of each wing, and of the files at the package's root with train.py."""
    counted: Counter[str] = Counter()
    for path in [*MODULES, ROOT / "train.py"]:
        counted[wing(path)] += code_lines(path.read_text(encoding="utf-8"))
    return dict(counted)


def root_entries() -> list[str]:
    """Return the names of the files and folders at the package's root; what tools leave behind is not counted."""
    return sorted(path.name for path in PACKAGE.iterdir() if path.name[0] != "." and path.name != "__pycache__")


def measure() -> dict[str, Any]:
    """Return every figure."""
    pairs, lines, fields = arrows(), wing_lines(), dataclasses()
    largest, (longest, length) = max(fields, key=fields.__getitem__), max(functions(), key=lambda pair: pair[1])
    return {
        "largest_dataclass": {"name": largest, "fields": fields[largest]},
        "evaluate_arguments": num_arguments("training/eval_loop.py", "evaluate"),
        "train_py_lines": len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()),
        "loop_lines": sum(loop_lines().values()),
        "root_entries": len(root_entries()),
        "arrows": pairs,
        "two_way": two_way(pairs),
        "wing_lines": lines,
        "product_lines": sum(lines.values()),
        "longest_function": {"name": longest, "lines": length},
    }


def main() -> None:
    """Print the figures as a table and as JSON."""
    found = measure()
    print("| what | number | which |\n|---|---|---|")
    for key, value in found.items():
        which, number = "", value
        if isinstance(value, list):
            which, number = ", ".join(" > ".join(pair) for pair in value), len(value)
        elif isinstance(value, dict) and "name" in value:
            which, number = value.values()
        elif isinstance(value, dict):
            which, number = ", ".join(f"{name} {lines}" for name, lines in value.items()), max(value.values())
        print(f"| {key.replace('_', ' ')} | {number} | {which} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
