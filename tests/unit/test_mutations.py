"""Every mutation still finds the code that it breaks, and the test that is to fail."""

import importlib.util
import sys

import pytest
from places import ROOT

SPEC = importlib.util.spec_from_file_location("mutations", ROOT / "tests/mutations.py")
mutations = importlib.util.module_from_spec(SPEC)
sys.modules["mutations"] = mutations
SPEC.loader.exec_module(mutations)


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_up_to_date(mutation):
    name, _, function = mutation.where.partition(": ")
    _, source, _ = mutations.cut_out((ROOT / "alexnet_dist" / name).resolve().read_text(encoding="utf-8"), function)
    assert source.count(mutation.old) == 1, mutation.where
    file, _, test = mutation.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_names_are_told_apart():
    names = [mutation.name for mutation in mutations.MUTATIONS]
    assert len(names) == len(set(names))
