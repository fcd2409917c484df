"""The package keeps its size and shape: the limits, whose reasons are in CONTRIBUTING.md; figures by structure.py."""

import sys

from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import structure

WING_LINES = {"commands": 2_040, "data": 1_720, "sources": 1_050}


def test_the_package_stays_within_its_limits():
    found = structure.measure()
    limits = [
        (f"fields of {found['largest_dataclass']['name']}", found["largest_dataclass"]["fields"], 10),
        ("arguments of evaluate", found["evaluate_arguments"], 5),
        ("lines of train.py", found["train_py_lines"], 15),
        ("lines to read to understand the training loop", found["loop_lines"], 320),
        ("entries at the package's root", found["root_entries"], 19),
        ("pairs of wings with an arrow", len(found["arrows"]), 6),
        ("pairs of wings with arrows both ways", len(found["two_way"]), 0),
        ("code lines of the product", found["product_lines"], 9_555),
        *((f"code lines of {name}", lines, WING_LINES.get(name, 1_000)) for name, lines in found["wing_lines"].items()),
        (f"lines of {found['longest_function']['name']}", found["longest_function"]["lines"], 55),
    ]
    beyond = [f"{number} {what}, {limit} are allowed" for what, number, limit in limits if number > limit]
    assert not beyond


def test_code_lines_are_those_without_docstrings_comments_blank_lines_and_brackets_alone():
    text = '''"""A docstring
    of two lines."""

    # a comment
X = [
    1,  # one
]
Y = """text
in two lines"""
class A:
    field: int
    """Of an attribute."""
'''.replace("    # a", "# a")
    assert structure.code_lines(text) == len(
        ["X = [", "1,", 'Y = """text', 'in two lines"""', "class A:", "field: int"]
    )


def test_wings_that_import_each_other_are_found():
    assert structure.two_way([("a", "b"), ("b", "a"), ("b", "c")]) == [("a", "b")]


def test_arrows_are_those_of_the_design():
    assert ("training", "data") in structure.arrows()
    assert not {"commands", "root"} & {first for first, _ in structure.arrows()}
    assert "config" not in {second for _, second in structure.arrows()}


def test_the_loop_is_counted_from_def_to_end():
    lines = structure.loop_lines()
    assert {"commands/train.py: train", "commands/train.py: save", *structure.STEP} <= lines.keys()
    source = (structure.PACKAGE / "training" / "train_loop.py").read_text(encoding="utf-8")
    body = source.partition("def train_step(")[2].partition("\n\n\ndef ")[0]
    assert lines["training/train_loop.py: train_step"] == len(body.splitlines())
