"""CONTRIBUTING.md: its answers to "where is ..." are true."""

import ast
import re

import pytest
from places import ROOT

TERMS = """mixed precision, training loop, W&B, kernel pictures, order of images, layout of folders, photographs,
    random crops, trained network, network file claims, resume, confusion matrix,
    learning rate, launch checks, cache, report page, signals"""


def rows():
    """Return the table's rows: the terms of each, and its file."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where is")[2].partition("\n## ")[0]
    return re.findall(r"^\| ([^|`]+) \| `([^`]+)` \|$", table, re.MULTILINE)


def test_the_table_answers_what_is_asked_most():
    assert [terms.split(",")[0] for terms, _ in rows()] == [" ".join(term.split()) for term in TERMS.split(",")]


@pytest.mark.parametrize(("terms", "path"), rows())
def test_a_file_says_at_once_that_it_is_the_one(terms, path):
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    said = f"{(ROOT / path).stem} {docstring.splitlines()[0]}".lower()
    assert any(all(word in said for word in term.lower().split()) for term in terms.split(",")), said
